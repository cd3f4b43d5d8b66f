//! The Gaussian KL of one element and its gradients, on lanes, in nats.

use crate::lanes::{Floats, Scalar};
use crate::math::{Deviation, deviation};

/// What the KL needs to know of the ratio of two standard deviations, s.
#[derive(Clone, Copy)]
pub(crate) struct Ratio<V> {
    /// s - 1.
    pub growth: V,
    /// 2 (s - 1 - ln s).
    pub twice_excess: V,
}

impl<V: Floats> Ratio<V> {
    /// The ratio to a standard deviation of 1.
    #[inline(always)]
    pub(crate) fn to_unit(sigma: Deviation<V>) -> Self {
        let growth = sigma.growth();
        Self { growth, twice_excess: sigma.twice_excess(growth) }
    }

    /// Twice the KL of a Gaussian whose mean is `distance` standard deviations of the prior away.
    ///
    /// With l = 2 ln s, e^l - 1 - l = 2 (s - 1 - ln s) + (s - 1)^2: two terms that are never negative.
    #[inline(always)]
    pub(crate) fn twice_kl(self, distance: V) -> V {
        distance.fma(distance, self.growth.fma(self.growth, self.twice_excess))
    }

    /// The KL itself.
    #[inline(always)]
    pub(crate) fn kl(self, distance: V) -> V {
        self.twice_kl(distance).mul(V::splat(V::Scalar::HALF))
    }

    /// (s^2 - 1) / 2: the gradient with respect to the logarithm of the variance.
    #[inline(always)]
    pub(crate) fn of_logvar(self) -> V {
        let (half, one) = (V::splat(V::Scalar::HALF), V::splat(V::Scalar::ONE));
        self.growth.mul(self.growth.fma(half, one))
    }
}

/// A posterior as seen from a prior.
#[derive(Clone, Copy)]
pub(crate) struct Relative<V> {
    /// (mu - `prior_mu`) / `prior_sigma`.
    pub distance: V,
    /// 1 / `prior_sigma`.
    pub inverse: V,
    /// sigma / `prior_sigma`.
    pub ratio: Ratio<V>,
}

/// Sets a posterior in relation to a prior.
#[inline(always)]
pub(crate) fn relative<V: Floats>(mu: V, logvar: V, prior_mu: V, prior_logvar: V) -> Relative<V> {
    let half = V::splat(V::Scalar::HALF);
    // The rounding error of the difference (Knuth's two-sum) is worth a factor e^error in the result.
    let difference = logvar.sub(prior_logvar);
    let back = difference.sub(logvar);
    let error = logvar.sub(difference.sub(back)).sub(prior_logvar.add(back));
    let s = deviation(difference);
    let (value, Ratio { growth, twice_excess }) = (s.value(), Ratio::to_unit(s));
    // Where the difference is infinite its error is NaN, and where the exponential overflowed infinity times 0
    // would be: there is nothing to correct.
    let finite = V::splat(V::Scalar::MAX);
    let correction = difference.select_within(finite, error, V::splat(V::Scalar::ZERO));
    let ratio = Ratio {
        growth: growth.select_within(finite, value.fma(correction.mul(half), growth), growth),
        twice_excess: growth.select_within(finite, growth.fma(correction, twice_excess), twice_excess),
    };
    let inverse = deviation(V::splat(V::Scalar::ZERO).sub(prior_logvar)).value();
    Relative { distance: mu.sub(prior_mu).mul(inverse), inverse, ratio }
}

//! The Gaussian KL of one element and its gradients, on lanes, in nats.

use crate::lanes::{Floats, Scalar};
use crate::math::{Exponential, exponential};

/// What the KL needs to know of the ratio of two standard deviations, s = e^h.
#[derive(Clone, Copy)]
pub(crate) struct Ratio<V> {
    /// s - 1.
    pub growth: V,
    /// s - 1 - h.
    pub excess: V,
}

impl<V: Floats> Ratio<V> {
    /// The ratio to a standard deviation of 1, from the exponential of logvar / 2.
    #[inline(always)]
    pub(crate) fn to_unit(e: Exponential<V>) -> Self {
        Self { growth: e.growth, excess: e.excess }
    }

    /// The KL of a Gaussian whose mean is `distance` standard deviations of the prior away.
    ///
    /// With l = 2 h, e^l - 1 - l = 2 (e^h - 1 - h) + (e^h - 1)^2: two terms that are never negative.
    #[inline(always)]
    pub(crate) fn kl(self, distance: V) -> V {
        let half = V::splat(V::Scalar::HALF);
        half.mul(distance).fma(distance, half.mul(self.growth).fma(self.growth, self.excess))
    }

    /// s^2 - 1: twice the gradient with respect to the logarithm of the variance.
    #[inline(always)]
    pub(crate) fn variance_growth(self) -> V {
        self.growth.mul(self.growth.add(V::splat(V::Scalar::TWO)))
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
    let e = exponential(difference.mul(half));
    // Where the difference is infinite its error is NaN, and where the exponential overflowed infinity times 0
    // would be: there is nothing to correct.
    let finite = V::splat(V::Scalar::MAX);
    let correction = difference.select_within(finite, error.mul(half), V::splat(V::Scalar::ZERO));
    let ratio = Ratio {
        growth: e.value.select_within(finite, e.value.fma(correction, e.growth), e.growth),
        excess: e.value.select_within(finite, e.growth.fma(correction, e.excess), e.excess),
    };
    let inverse = exponential(prior_logvar.mul(V::splat(V::Scalar::ZERO - V::Scalar::HALF))).value;
    Relative { distance: mu.sub(prior_mu).mul(inverse), inverse, ratio }
}

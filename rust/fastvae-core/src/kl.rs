//! The Gaussian KL of one element and its gradients, on lanes, in nats.

use crate::lanes::{Floats, Scalar};
use crate::math::{Exponential, exponential};

/// KL(N(mu, e^logvar) || N(0, 1)) with `e` the exponential of logvar / 2.
///
/// e^l - 1 - l = 2 (e^h - 1 - h) + (e^h - 1)^2 with h = l / 2: two terms that are never negative.
#[inline(always)]
pub fn standard<V: Floats>(mu: V, e: Exponential<V>) -> V {
    let half = V::splat(V::Scalar::HALF);
    half.mul(mu).fma(mu, half.mul(e.growth).fma(e.growth, e.excess))
}

/// e^logvar - 1 with `e` the exponential of logvar / 2: twice the gradient with respect to logvar.
#[inline(always)]
pub fn variance_growth<V: Floats>(e: Exponential<V>) -> V {
    e.growth.mul(e.growth.add(V::splat(V::Scalar::TWO)))
}

/// A posterior and a prior, as the KL between them needs them.
#[derive(Clone, Copy)]
pub struct Relative<V> {
    /// (mu - `prior_mu`) / `prior_sigma`.
    pub distance: V,
    /// 1 / `prior_sigma`.
    pub inverse: V,
    /// The exponential of (logvar - `prior_logvar`) / 2.
    pub ratio: Exponential<V>,
}

/// Sets a posterior in relation to a prior.
#[inline(always)]
pub fn relative<V: Floats>(mu: V, logvar: V, prior_mu: V, prior_logvar: V) -> Relative<V> {
    let half = V::splat(V::Scalar::HALF);
    // The rounding error of the difference (Knuth's two-sum) is worth e^error in the result.
    let difference = logvar.sub(prior_logvar);
    let back = difference.sub(logvar);
    let error = logvar.sub(difference.sub(back)).sub(prior_logvar.add(back));
    let rounded = exponential(difference.mul(half));
    let correction = error.mul(half);
    // Where the exponential overflowed there is nothing to correct, and infinity times 0 would be NaN.
    let finite = V::splat(V::Scalar::MAX);
    let ratio = Exponential {
        value: rounded.value.select_within(
            finite,
            rounded.value.fma(correction, rounded.value),
            rounded.value,
        ),
        growth: rounded.value.select_within(
            finite,
            rounded.value.fma(correction, rounded.growth),
            rounded.growth,
        ),
        excess: rounded.value.select_within(
            finite,
            rounded.growth.fma(correction, rounded.excess),
            rounded.excess,
        ),
    };
    let inverse = exponential(prior_logvar.mul(V::splat(V::Scalar::ZERO - V::Scalar::HALF))).value;
    Relative { distance: mu.sub(prior_mu).mul(inverse), inverse, ratio }
}

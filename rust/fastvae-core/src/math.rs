//! The functions behind the kernels, on lanes.
//!
//! Coefficients of `log`, `sin` and `cos` are those of Cephes (`logf`, `sinf`, `cosf`); those of the exponential
//! and of the inverse hyperbolic tangent are Chebyshev fits. Each function is a fixed sequence of correctly rounded operations.

use crate::lanes::{Floats, Scalar, Words};

const LOG: [f32; 9] = [
    7.0376836292e-2,
    -1.1514610310e-1,
    1.1676998740e-1,
    -1.2420140846e-1,
    1.4249322787e-1,
    -1.6668057665e-1,
    2.0000714765e-1,
    -2.4999993993e-1,
    3.3333331174e-1,
];
const LOG_LN_2_HIGH: f32 = 0.693359375;
const LOG_LN_2_LOW: f32 = -2.12194440e-4;
const SIN: [f32; 3] = [-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1];
const COS: [f32; 3] = [2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2];
/// pi/2 * 2^-30: one unit of a 30-bit fraction of a quarter turn, in radians.
const QUARTER_TURN: f32 = 1.462918119976564e-9;
/// The bits of sqrt(1/2): mantissas are taken between it and sqrt(2).
const SQRT_HALF_BITS: u32 = 0x3F35_04F3;

/// Horner's rule, highest power first.
#[inline(always)]
fn polynomial<V: Floats>(x: V, coefficients: &[V::Scalar]) -> V {
    let mut sum = V::splat(coefficients[0]);
    for &coefficient in &coefficients[1..] {
        sum = sum.fma(x, V::splat(coefficient));
    }
    sum
}

/// Horner's rule, lowest power first.
#[inline(always)]
fn series<V: Floats>(x: V, coefficients: &[V::Scalar]) -> V {
    let mut sum = V::splat(coefficients[coefficients.len() - 1]);
    for &coefficient in coefficients.iter().rev().skip(1) {
        sum = sum.fma(x, V::splat(coefficient));
    }
    sum
}

/// sqrt(-2 ln u) with u = (word + 1/2) / 2^32 rounded to `f32`: the radius of Box-Muller.
///
/// Several vectors go through each step together: one alone waits for its own results.
#[inline(always)]
pub(crate) fn radius<W: Words, const N: usize>(words: [W; N]) -> [W::Floats; N] {
    let splat = W::Floats::splat;
    let (mut f, mut e, mut y) = ([splat(0.0); N], [splat(0.0); N], [splat(LOG[0]); N]);
    for i in 0..N {
        let high = words[i].shift_right::<16>().signed_to_floats();
        let low = words[i].and(W::splat(0xFFFF)).signed_to_floats();
        let u = high.fma(splat(65536.0), low.add(splat(0.5))).mul(splat(1.0 / 4_294_967_296.0));
        let bits = W::from_bits(u);
        let exponent = bits.sub(W::splat(SQRT_HALF_BITS)).shift_right_signed::<23>();
        f[i] = bits.sub(exponent.shift_left::<23>()).to_floats().sub(splat(1.0));
        e[i] = exponent.signed_to_floats();
    }
    for &coefficient in &LOG[1..] {
        for i in 0..N {
            y[i] = y[i].fma(f[i], splat(coefficient));
        }
    }
    for i in 0..N {
        let square = f[i].mul(f[i]);
        let excess = e[i].fma(splat(LOG_LN_2_LOW), y[i].mul(f[i]).mul(square));
        let excess = square.fma(splat(-0.5), excess);
        let logarithm = e[i].fma(splat(LOG_LN_2_HIGH), f[i].add(excess));
        y[i] = logarithm.mul(splat(-2.0)).sqrt();
    }
    y
}

/// cos and sin of 2 pi (word + 1/2) / 2^32: two bits choose the quadrant, thirty the angle in it.
#[inline(always)]
pub(crate) fn circle<W: Words, const N: usize>(words: [W; N]) -> [(W::Floats, W::Floats); N] {
    let splat = W::Floats::splat;
    let mut points = [(splat(0.0), splat(0.0)); N];
    for i in 0..N {
        let turned = words[i].add(W::splat(0x2000_0000));
        let fraction = turned.and(W::splat(0x3FFF_FFFF)).sub(W::splat(0x2000_0000)).signed_to_floats();
        let angle = fraction.add(splat(0.5)).mul(splat(QUARTER_TURN));
        let square = angle.mul(angle);
        let sine = polynomial(square, &SIN).mul(square).fma(angle, angle);
        let cosine = polynomial(square, &COS).mul(square).fma(square, square.fma(splat(-0.5), splat(1.0)));
        let swap = turned.shift_left::<1>();
        let x = swap.select_by_sign(sine, cosine);
        let y = swap.select_by_sign(cosine, sine);
        let sign = W::splat(0x8000_0000);
        let x_sign = turned.add(W::splat(0x4000_0000)).and(sign);
        let y_sign = turned.and(sign);
        points[i] = (W::from_bits(x).xor(x_sign).to_floats(), W::from_bits(y).xor(y_sign).to_floats());
    }
    points
}

/// e^h and what is left of it when its first terms are taken away.
#[derive(Clone, Copy)]
pub(crate) struct Exponential<V> {
    /// e^r - 1 of the reduced argument r = h - n ln 2.
    reduced: V,
    /// The exponent n.
    exponent: V,
    /// e^h.
    pub value: V,
    /// e^h - 1.
    pub growth: V,
    /// e^h - 1 - h.
    pub excess: V,
}

impl<V: Floats> Exponential<V> {
    /// e^h * factor: rounded as one product, also where e^h alone is subnormal.
    #[inline(always)]
    #[must_use]
    pub(crate) fn times(self, factor: V) -> V {
        self.reduced.fma(factor, factor).scale(self.exponent)
    }
}

/// The exponential, each part to the precision of the type for every finite h.
///
/// With e^r = 1 + r + r^2 q(r) on the reduced argument, the parts never come from a difference of near equals.
/// h = -inf gives 0, -1 and +inf, h = +inf gives +inf, +inf and NaN, NaN gives NaN.
#[inline(always)]
pub(crate) fn exponential<V: Floats>(h: V) -> Exponential<V> {
    let splat = V::splat;
    // Beyond these the exponential is 0 or infinite anyway; within them the exponent fits.
    let limited = h
        .at_most(splat(V::Scalar::EXP_SATURATES))
        .at_least(splat(V::Scalar::ZERO - V::Scalar::EXP_SATURATES));
    let magic = splat(V::Scalar::MAGIC);
    let n = limited.fma(splat(V::Scalar::LOG2_E), magic).sub(magic);
    let rest = n.fma(splat(V::Scalar::ZERO - V::Scalar::LN_2_HIGH), limited);
    let low = splat(V::Scalar::ZERO - V::Scalar::LN_2_LOW);
    let r = n.fma(low, rest);
    // What r lost in rounding: a quarter of an ulp of the result.
    let lost = n.fma(low, rest.sub(r));
    let square = r.mul(r);
    let q = series(r, V::Scalar::EXP_EXCESS);
    let p = r.add(square.fma(q, lost));
    let one = splat(V::Scalar::ONE);
    let value = p.add(one).scale(n);
    let scale = n.power_of_two();
    let exact = splat(V::Scalar::EXACT_EXPONENT);
    let growth = n.select_within(exact, p.fma(scale, scale.sub(one)), value.sub(one));
    let excess = n.select_within(splat(V::Scalar::HALF), square.mul(q), growth.sub(h));
    Exponential { reduced: p, exponent: n, value, growth, excess }
}

/// e^-d, to an ulp, for d from minus [`Scalar::EXP_SATURATES`] on, or NaN: the value that [`exponential`] gives, with
/// two thirds of its operations.
#[inline(always)]
pub(crate) fn decay<V: Floats>(d: V) -> V {
    let splat = V::splat;
    let limited = d.at_most(splat(V::Scalar::EXP_SATURATES));
    let magic = splat(V::Scalar::MAGIC);
    let n = magic.sub(limited.fma(splat(V::Scalar::LOG2_E), magic));
    let rest = n.fma(splat(V::Scalar::LN_2_HIGH), limited);
    let r = n.fma(splat(V::Scalar::LN_2_LOW), rest);
    series(r, V::Scalar::DECAY).scale(n)
}

/// log(1 + p) for p >= 0, to an ulp and a half of the result, however small it is.
#[inline(always)]
pub(crate) fn log_1p<V: Floats>(p: V) -> V {
    let splat = V::splat;
    let one = splat(V::Scalar::ONE);
    // 1 + p = 2^n (1 + f). The rounded sum only chooses n: f comes from p itself.
    let n = p.add(one).exponent();
    let scale = splat(V::Scalar::ZERO).sub(n).power_of_two();
    let f = p.fma(scale, scale.sub(one));
    let rest = n.fma(splat(V::Scalar::LN_2_LOW), log_1p_of_unit(f));
    n.fma(splat(V::Scalar::LN_2_HIGH), rest)
}

/// log(1 + e) for e in [0, 1], to an ulp and a half of the result.
///
/// With s = e / (2 + e) it is 2 atanh(s), and 2 s = e - s e: only a small part of the result is rounded more than
/// once.
#[inline(always)]
pub(crate) fn log_1p_of_unit<V: Floats>(e: V) -> V {
    let s = e.div(e.add(V::splat(V::Scalar::TWO)));
    let square = s.mul(s);
    let excess = series(square, V::Scalar::ATANH_EXCESS);
    // log(1 + e) = 2 s + s^3 excess = e + s (s^2 excess - e).
    square.fma(excess, V::splat(V::Scalar::ZERO).sub(e)).fma(s, e)
}

#[cfg(test)]
#[allow(clippy::float_cmp, reason = "what is exact is compared exactly")]
mod tests {
    use super::{decay, log_1p, log_1p_of_unit};
    use crate::lanes::portable::Portable;
    use crate::lanes::{Floats, LANES, Vectors};

    type F32 = <Portable as Vectors>::F32;
    type F64 = <Portable as Vectors>::F64;

    /// How far apart the bit patterns are that are tried; Miri is slow.
    const STEP: usize = if cfg!(miri) { 4_999_999 } else { 4999 };

    fn of_float(function: impl Fn(F32) -> F32, x: f32) -> f32 {
        let mut lanes = [0.0; LANES];
        function(F32::splat(x)).store(&mut lanes);
        lanes[0]
    }

    fn of_double(function: impl Fn(F64) -> F64, x: f64) -> f64 {
        let mut lanes = [0.0; LANES];
        function(F64::splat(x)).store(&mut lanes);
        lanes[0]
    }

    /// The largest error in ulps of the truth, over floats that lie [`STEP`] bit patterns apart.
    fn worst(function: impl Fn(F32) -> F32, truth: impl Fn(f64) -> f64, (from, to): (f32, f32)) -> f64 {
        let mut worst = 0.0_f64;
        for bits in (from.to_bits()..=to.to_bits()).step_by(STEP) {
            let x = f32::from_bits(bits);
            let truth = truth(f64::from(x));
            let ulp = f64::from((truth as f32).abs().next_up()) - f64::from((truth as f32).abs());
            worst = worst.max((f64::from(of_float(&function, x)) - truth).abs() / ulp);
        }
        worst
    }

    #[test]
    fn decay_is_within_an_ulp() {
        let truth = |d: f64| (-d).exp();
        // Down to the subnormal numbers, whose ulp is a step.
        assert!(worst(decay, truth, (0.0, 120.0)) <= 1.0);
        assert!(worst(decay, truth, (-0.0, -88.0)) <= 1.0);
        assert_eq!(of_float(decay, 0.0), 1.0);
        assert_eq!([104.0, 1e5, f32::MAX, f32::INFINITY].map(|d| of_float(decay, d)), [0.0; 4]);
        assert_eq!([-89.0, -110.0].map(|d| of_float(decay, d)), [f32::INFINITY; 2]);
        assert!(of_float(decay, f32::NAN).is_nan());
    }

    #[test]
    fn decay_of_doubles_is_within_two_ulps() {
        for i in (-70_000..=74_000).step_by(STEP / 999) {
            let d = f64::from(i) / 100.0;
            let truth = (-d).exp();
            let error = (of_double(decay, d) - truth).abs();
            assert!(error <= 2.0 * f64::EPSILON * truth + f64::from_bits(1), "{d}");
        }
        assert_eq!(of_double(decay, 0.0), 1.0);
        assert_eq!([746.0, f64::MAX, f64::INFINITY].map(|d| of_double(decay, d)), [0.0; 3]);
        assert!(of_double(decay, f64::NAN).is_nan());
    }

    #[test]
    fn log_1p_is_within_an_ulp_and_a_half() {
        assert!(worst(log_1p_of_unit, f64::ln_1p, (0.0, 1.0)) < 1.5);
        // As far as the products of a Bernoulli likelihood go.
        assert!(worst(log_1p, f64::ln_1p, (0.0, 64.0_f32.exp2())) < 1.5);
        assert_eq!(of_float(log_1p, 0.0), 0.0);
        assert!(of_float(log_1p, f32::NAN).is_nan());
    }

    #[test]
    fn log_1p_of_doubles_is_within_three_ulps() {
        for i in (-240_000..=64_000).step_by(STEP / 999) {
            let p = (f64::from(i) / 1000.0).exp2();
            assert!((of_double(log_1p, p) - p.ln_1p()).abs() <= 3.0 * f64::EPSILON * p.ln_1p(), "{p}");
        }
        for i in (0..=100_000).step_by(STEP / 999) {
            let e = f64::from(i) / 100_000.0;
            assert!(
                (of_double(log_1p_of_unit, e) - e.ln_1p()).abs() <= 2.0 * f64::EPSILON * e.ln_1p(),
                "{e}"
            );
        }
    }
}

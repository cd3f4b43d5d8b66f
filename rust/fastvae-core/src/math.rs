//! The functions behind the kernels, on lanes.
//!
//! Coefficients are minimax fits. Each function is a fixed sequence of correctly rounded operations.

use crate::lanes::{Floats, Scalar, Words};
use crate::philox::Beside;

/// -2 ln(1 + f) / f on [-1/4, 1/2], highest power first.
const LOG: [f32; 9] = [
    -0.10822345316410065,
    0.24153436720371246,
    -0.2998899519443512,
    0.33648642897605896,
    -0.39951813220977783,
    0.49986448884010315,
    -0.6666718125343323,
    1.000001311302185,
    -2.0,
];
/// -2 ln 2.
const LOG_2: f32 = -1.3862943649291992;
/// sin(pi/2 v) / v in powers of v^2 on [0, 1], highest first.
const SIN: [f32; 5] = [
    0.00015148513193707913,
    -0.004673766437917948,
    0.07968967407941818,
    -0.6459637880325317,
    1.5707963705062866,
];
/// cos(pi/2 v), likewise.
const COS: [f32; 6] = [
    -2.3848338969401084e-05,
    0.0009177876054309309,
    -0.020862752571702003,
    0.2536693215370178,
    -1.2337005138397217,
    1.0,
];

/// 2^-31.
const STEP: f32 = 1.0 / 2_147_483_648.0;

/// Horner's rule, lowest power first.
#[inline(always)]
fn series<V: Floats>(x: V, coefficients: &[V::Scalar]) -> V {
    let mut sum = V::splat(coefficients[coefficients.len() - 1]);
    for &coefficient in coefficients.iter().rev().skip(1) {
        sum = sum.fma(x, V::splat(coefficient));
    }
    sum
}

/// sqrt(-2 ln u) with u = (word + 1/2) / 2^32, the word rounded to `f32` and u again: the radius of Box-Muller.
///
/// Several vectors go through each step together, as one alone waits for its own results; and the first eight steps of
/// other work go between.
#[inline(always)]
pub(crate) fn radius<W: Words, const N: usize>(words: [W; N], beside: &mut impl Beside) -> [W::Floats; N] {
    let splat = W::Floats::splat;
    let (mut f, mut e, mut y) = ([splat(0.0); N], [splat(0.0); N], [splat(LOG[0]); N]);
    for i in 0..N {
        let (mantissa, exponent) = words[i].fraction();
        f[i] = mantissa.sub(splat(1.0));
        e[i] = exponent;
    }
    macro_rules! steps {
        ($($step:literal)*) => {$(
            for i in 0..N {
                y[i] = y[i].fma(f[i], splat(LOG[$step + 1])).in_step();
            }
            beside.step::<$step>();
        )*};
    }
    steps!(0 1 2 3 4 5 6 7);
    for i in 0..N {
        y[i] = e[i].fma(splat(LOG_2), y[i].mul(f[i])).sqrt().in_step();
    }
    y
}

/// cos and sin of a quarter turn times v = (k + 1/2) / 2^30, with k the lower 31 bits as a signed number: what the
/// upper bit adds, half a turn, is left to [`half_turn`].
///
/// Steps 10 to 12 of other work go between.
#[inline(always)]
pub(crate) fn half_circle<W: Words, const N: usize>(
    words: [W; N],
    beside: &mut impl Beside,
) -> [(W::Floats, W::Floats); N] {
    let splat = W::Floats::splat;
    let (mut v, mut square) = ([splat(0.0); N], [splat(0.0); N]);
    let (mut sine, mut cosine) = ([splat(SIN[0]); N], [splat(COS[0]); N]);
    for i in 0..N {
        let doubled = words[i].shift_left::<1>().signed_to_floats();
        v[i] = doubled.fma(splat(STEP), splat(STEP));
        square[i] = v[i].mul(v[i]);
    }
    macro_rules! sine {
        ($power:literal) => {
            for i in 0..N {
                sine[i] = sine[i].fma(square[i], splat(SIN[$power])).in_step();
            }
        };
    }
    macro_rules! cosine {
        ($power:literal) => {
            for i in 0..N {
                cosine[i] = cosine[i].fma(square[i], splat(COS[$power])).in_step();
            }
        };
    }
    beside.step::<10>();
    cosine!(1);
    sine!(1);
    cosine!(2);
    beside.step::<11>();
    sine!(2);
    cosine!(3);
    sine!(3);
    beside.step::<12>();
    cosine!(4);
    sine!(4);
    cosine!(5);
    let mut points = [(splat(0.0), splat(0.0)); N];
    for i in 0..N {
        points[i] = (cosine[i], sine[i].mul(v[i]));
    }
    points
}

/// A radius to the side on which the upper bit of the word puts the angle.
#[inline(always)]
pub(crate) fn half_turn<W: Words>(radius: W::Floats, word: W) -> W::Floats {
    W::from_bits(radius).xor(word.and(W::splat(1 << 31))).to_floats()
}

/// The standard deviation sigma = e^(l / 2) of a variance given by its logarithm l, and what is left of it when its
/// first terms are taken away.
///
/// With l = n ln 4 + r, sigma = 2^n e^(r / 2).
#[derive(Clone, Copy)]
pub(crate) struct Deviation<V> {
    logvar: V,
    /// n.
    exponent: V,
    /// 2 e^(r / 2) - 2.
    twice_growth: V,
    /// 2 e^(r / 2) - 2 - r.
    twice_excess: V,
}

impl<V: Floats> Deviation<V> {
    /// sigma.
    #[inline(always)]
    #[must_use]
    pub(crate) fn value(self) -> V {
        self.times(V::splat(V::Scalar::ONE))
    }

    /// sigma times a factor: rounded as one product, also where sigma alone is subnormal.
    #[inline(always)]
    #[must_use]
    pub(crate) fn times(self, factor: V) -> V {
        self.twice_growth.fma(factor, factor.add(factor)).scale(self.exponent.sub(V::splat(V::Scalar::ONE)))
    }

    /// Half of that.
    #[inline(always)]
    #[must_use]
    pub(crate) fn half_times(self, factor: V) -> V {
        self.twice_growth.fma(factor, factor.add(factor)).scale(self.exponent.sub(V::splat(V::Scalar::TWO)))
    }

    /// sigma - 1, without cancellation; infinite from 2^(m + 1/2) on, 2^m the largest power of two of the type.
    #[inline(always)]
    #[must_use]
    pub(crate) fn growth(self) -> V {
        let one = V::splat(V::Scalar::ONE);
        let half_power = self.exponent.sub(one).power_of_two();
        self.twice_growth.fma(half_power, half_power.add(half_power).sub(one))
    }

    /// 2 (sigma - 1 - l / 2), given sigma - 1: without cancellation where sigma is near 1.
    #[inline(always)]
    #[must_use]
    pub(crate) fn twice_excess(self, growth: V) -> V {
        let half = V::splat(V::Scalar::HALF);
        self.exponent.select_within(half, self.twice_excess, growth.add(growth).sub(self.logvar))
    }
}

/// The standard deviation of a variance: each part to the precision of the type for every finite logarithm.
///
/// A logarithm of -inf gives sigma = 0, NaN gives NaN.
#[inline(always)]
pub(crate) fn deviation<V: Floats>(logvar: V) -> Deviation<V> {
    let [deviation] = deviations([logvar]);
    deviation
}

/// The standard deviations of several vectors side by side.
///
/// With 2 e^(r / 2) = 2 + r + r^2 q(r), the parts never come from a difference of near equals.
#[inline(always)]
pub(crate) fn deviations<V: Floats, const N: usize>(logvar: [V; N]) -> [Deviation<V>; N] {
    let splat = V::splat;
    let zero = splat(V::Scalar::ZERO);
    let coefficients = V::Scalar::EXP_EXCESS;
    let (mut r, mut lost) = ([zero; N], [zero; N]);
    let mut q = [splat(coefficients[coefficients.len() - 1]); N];
    let nothing = Deviation { logvar: zero, exponent: zero, twice_growth: zero, twice_excess: zero };
    let mut results = [nothing; N];
    for i in 0..N {
        // Beyond these sigma is 0 or infinite anyway; within them the exponent fits.
        let limited = logvar[i]
            .at_most(splat(V::Scalar::TWO * V::Scalar::EXP_SATURATES))
            .at_least(splat(V::Scalar::ZERO - V::Scalar::TWO * V::Scalar::EXP_SATURATES));
        let magic = splat(V::Scalar::MAGIC);
        let n = limited.fma(splat(V::Scalar::HALF * V::Scalar::LOG2_E), magic).sub(magic);
        let rest = n.fma(splat(V::Scalar::ZERO - V::Scalar::TWO * V::Scalar::LN_2_HIGH), limited);
        let low = splat(V::Scalar::ZERO - V::Scalar::TWO * V::Scalar::LN_2_LOW);
        r[i] = n.fma(low, rest);
        // What r lost in rounding: a quarter of an ulp of sigma.
        lost[i] = n.fma(low, rest.sub(r[i]));
        results[i] = Deviation { logvar: logvar[i], exponent: n, ..nothing };
    }
    for &coefficient in coefficients.iter().rev().skip(1) {
        for i in 0..N {
            q[i] = q[i].fma(r[i], splat(coefficient)).in_step();
        }
    }
    for i in 0..N {
        let twice_excess = r[i].mul(r[i]).mul(q[i]);
        let twice_growth = r[i].add(twice_excess.add(lost[i]));
        results[i] = Deviation { twice_growth, twice_excess, ..results[i] };
    }
    results
}

/// e^-d, to an ulp, for d from minus [`Scalar::EXP_SATURATES`] on, or NaN: with fewer operations than [`deviation`] takes.
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

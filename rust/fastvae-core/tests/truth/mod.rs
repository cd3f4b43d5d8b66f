//! What is true, in `f64`, and how near to it a dtype can come.
//!
//! Nothing here is taken from the kernels: the formulas are those of the papers, the exponential is the standard
//! library's, and Philox is written from `docs/noise.md` a second time.

#![allow(dead_code, reason = "every test file takes what it needs")]
#![allow(clippy::float_cmp, reason = "what is exact is compared exactly")]

use crate::strategies::Dtype;
use half::{bf16, f16};
use std::f64::consts::TAU;

/// The numbers that a dtype has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Format {
    /// Bits of the significand, the hidden one included.
    digits: i32,
    /// Exponent of the smallest normal number.
    lowest: i32,
    /// The largest finite number.
    largest: f64,
}

impl Format {
    /// The format of a dtype.
    pub(crate) fn of<T: Dtype>() -> Self {
        match T::NAME {
            "float64" => Self { digits: 53, lowest: -1022, largest: f64::MAX },
            "float32" => Self { digits: 24, lowest: -126, largest: f64::from(f32::MAX) },
            "bfloat16" => Self { digits: 8, lowest: -126, largest: f64::from(bf16::MAX) },
            "float16" => Self { digits: 11, lowest: -14, largest: f64::from(f16::MAX) },
            other => unreachable!("a dtype named {other}"),
        }
    }

    /// The format of a dtype's arithmetic.
    pub(crate) fn of_math<T: Dtype>() -> Self {
        if T::NAME == "float64" { Self::of::<f64>() } else { Self::of::<f32>() }
    }

    /// The distance of neighbours at a number.
    pub(crate) fn ulp(self, value: f64) -> f64 {
        // The exponent, from the bits: a logarithm is off by one just below a power of two.
        let exponent = ((value.abs().to_bits() >> 52) as i32 - 1023).clamp(self.lowest, 1023);
        power(exponent - self.digits + 1)
    }

    /// The smallest number above 0.
    pub(crate) fn smallest(self) -> f64 {
        power(self.lowest - self.digits + 1)
    }

    /// Relative rounding error.
    pub(crate) fn epsilon(self) -> f64 {
        power(-self.digits)
    }

    /// A number as this format has it where it is out of range: infinite or 0, else unchanged.
    ///
    /// For what a formula names (a standard deviation, a variance): infinity times 0 is NaN in any arithmetic.
    pub(crate) fn limit(self, value: f64) -> f64 {
        if value.abs() > self.largest {
            f64::INFINITY.copysign(value)
        } else if value.abs() <= self.smallest() / 2.0 {
            0.0_f64.copysign(value)
        } else {
            value
        }
    }
}

impl Format {
    /// Whether it depends on the last rounding if a positive number, or what is as large, is 0 in this format.
    fn may_vanish(self, value: f64) -> bool {
        (self.smallest() / 8.0..self.smallest() * 4.0).contains(&value.abs())
    }
}

/// 2^n, subnormal numbers included, without rounding.
fn power(n: i32) -> f64 {
    if n >= -1022 { f64::from_bits(((n + 1023) as u64) << 52) } else { f64::from_bits(1 << (n + 1074)) }
}

/// A true value, and how far from it the arithmetic may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Truth {
    /// The value of the formula.
    pub(crate) value: f64,
    /// The error that is allowed before the result is rounded to its dtype.
    pub(crate) tolerance: f64,
    /// Whether an intermediate may overflow where the result, less than four times smaller, does not.
    pub(crate) early_overflow: bool,
}

impl Truth {
    /// What the arithmetic cannot know: an infinity times a number that is 0 within its error.
    const UNKNOWN: Self = Self { value: 0.0, tolerance: f64::INFINITY, early_overflow: true };

    fn is_unknown(self) -> bool {
        self.value.is_finite() && self.tolerance == f64::INFINITY
    }

    /// Says what is wrong with a result, if anything is.
    ///
    /// `math` is the format that it was computed in, `stored` the one that it was rounded to.
    pub(crate) fn complaint(self, got: f64, math: Format, stored: Format) -> Option<String> {
        let Self { value, tolerance, early_overflow } = self;
        let narrow = stored.digits < math.digits;
        let rounding = if narrow { stored.ulp(value.abs() + tolerance) / 2.0 } else { 0.0 };
        let within = tolerance + rounding;
        let infinite_from = stored.largest + stored.ulp(stored.largest) / 2.0;
        let right = if self.is_unknown() {
            true
        } else if value.is_nan() {
            got.is_nan()
        } else if value.is_infinite() {
            got == value
        } else if got.is_infinite() {
            let early = if early_overflow { (math.largest / 4.0).min(infinite_from) } else { infinite_from };
            let of_either_sign = tolerance > value.abs();
            (of_either_sign || got.signum() == value.signum()) && value.abs() + tolerance >= early
        } else if value.abs() - tolerance >= infinite_from {
            false
        } else {
            (got - value).abs() <= within
        };
        (!right).then(|| format!("got {got:e}, true is {value:e}, off by {:e} of {within:e}", got - value))
    }
}

/// Fails if a result is further from the truth than it may be.
pub(crate) fn check<T: Dtype>(what: &str, got: impl Into<f64>, truth: Truth, stored: Format) {
    if let Some(complaint) = truth.complaint(got.into(), Format::of_math::<T>(), stored) {
        panic!("{} {what}: {complaint}", T::NAME);
    }
}

/// A sum as the kernels make it: eight values at a time in the arithmetic, then in `f64`, and rounded.
pub(crate) fn sum(parts: &[Truth], math: Format) -> Truth {
    sum_rounded(parts.iter().copied(), math, 8)
}

/// A sum in which so many roundings of the arithmetic follow each other; all others are of `f64`.
pub(crate) fn sum_rounded(parts: impl IntoIterator<Item = Truth>, math: Format, roundings: u32) -> Truth {
    let (mut value, mut lost, mut magnitude, mut tolerance) = (0.0_f64, 0.0, 0.0, 0.0);
    let (mut count, mut early_overflow, mut unknown) = (0.0, false, false);
    let (mut below_zero, mut above_zero) = (false, false);
    for part in parts {
        // What an addition rounds away (Neumaier), so that the truth has no error of its own.
        let next = value + part.value;
        lost += if value.abs() >= part.value.abs() {
            (value - next) + part.value
        } else {
            (part.value - next) + value
        };
        value = next;
        if part.value.is_finite() {
            magnitude += part.value.abs();
        }
        tolerance += part.tolerance;
        count += 1.0;
        early_overflow |= part.early_overflow;
        unknown |= part.is_unknown();
        below_zero |= part.value < 0.0;
        above_zero |= part.value > 0.0;
    }
    if value.is_finite() {
        value += lost;
    }
    if unknown {
        return Truth::UNKNOWN;
    }
    let cancels = value.abs() < magnitude / 2.0 || (value.is_infinite() && below_zero && above_zero);
    if cancels && magnitude >= math.largest / 4.0 {
        // Of numbers of either sign, some sum on the way may be out of range where that of all is not.
        return Truth::UNKNOWN;
    }
    let relative = f64::from(roundings) * math.epsilon() + count * f64::EPSILON / 2.0;
    Truth { value, tolerance: tolerance + relative * magnitude, early_overflow }
}

/// e^x * factor, also where e^x alone is out of the range of `f64`.
fn exp_times(x: f64, factor: f64) -> f64 {
    if x.abs() < 700.0 { x.exp() * factor } else { (x / 2.0).exp() * factor * (x / 2.0).exp() }
}

/// (e^x - 1) / 2.
fn half_growth(x: f64) -> f64 {
    if x > 700.0 { exp_times(x, 0.5) - 0.5 } else { x.exp_m1() / 2.0 }
}

/// (e^x - 1 - x) / 2.
fn half_exp_excess(x: f64) -> f64 {
    if x > 700.0 {
        return exp_times(x, 0.5) - 0.5 - x / 2.0;
    }
    if x.abs() > 0.5 {
        return (x.exp_m1() - x) / 2.0;
    }
    // x^2 (1/2! + x/3! + x^2/4! + ...), where the difference above would cancel.
    let mut sum = 0.0;
    for k in (3..20).rev() {
        sum = (sum + 1.0) * x / f64::from(k);
    }
    x * x / 4.0 * (1.0 + sum)
}

/// A posterior and a prior, as they are given.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gaussians {
    pub(crate) mu: f64,
    pub(crate) logvar: f64,
    pub(crate) prior_mu: f64,
    pub(crate) prior_logvar: f64,
}

impl Gaussians {
    /// A posterior and the standard normal.
    pub(crate) fn to_unit(mu: f64, logvar: f64) -> Self {
        Self { mu, logvar, prior_mu: 0.0, prior_logvar: 0.0 }
    }

    /// Logarithm of the ratio of the variances, 1 / sigma of the prior, and (mu - `prior_mu`) / sigma of the prior.
    fn relative(self, math: Format) -> (f64, f64, f64) {
        let inverse = math.limit((-0.5 * self.prior_logvar).exp());
        (self.logvar - self.prior_logvar, inverse, math.limit((self.mu - self.prior_mu) * inverse))
    }

    /// Relative error of what is made of the ratio and the distance, and the error that underflow adds to the distance.
    fn errors(self, math: Format) -> (f64, f64) {
        let of_inputs = [self.logvar, self.prior_logvar].map(|x| if x.is_finite() { x.abs() } else { 0.0 });
        let relative = if math.digits == 24 {
            1e-6
        } else {
            // The kernel's error and that of this reference, whose exponents are rounded like any number.
            math.epsilon() * (16.0 + of_inputs[0] + of_inputs[1])
        };
        let away = (self.mu - self.prior_mu).abs();
        (relative, math.smallest() * if away.is_finite() { away } else { 0.0 })
    }

    /// Whether it depends on the last rounding if 1 / sigma of the prior is 0.
    fn inverse_may_vanish(self, math: Format) -> bool {
        math.may_vanish((-0.5 * self.prior_logvar).exp())
    }

    /// Whether the distance is infinite or NaN, depending on that.
    fn distance_is_unknown(self, math: Format) -> bool {
        (self.mu - self.prior_mu).is_infinite() && self.inverse_may_vanish(math)
    }

    /// KL(q || p) in nats (Kingma and Welling 2014, appendix B).
    pub(crate) fn kl<T: Dtype>(self) -> Truth {
        let math = Format::of_math::<T>();
        if self.distance_is_unknown(math) {
            return Truth::UNKNOWN;
        }
        let (ratio, _, distance) = self.relative(math);
        let (relative, underflow) = self.errors(math);
        let value = 0.5 * distance * distance + half_exp_excess(ratio);
        let tolerance = relative * value + underflow * (distance.abs() + underflow) + 4.0 * math.smallest();
        // Twice the KL is what is computed.
        Truth { value, tolerance, early_overflow: true }
    }

    /// The gradients of `grad * kl` with respect to mu, logvar, `prior_mu` and `prior_logvar`.
    pub(crate) fn kl_gradients<T: Dtype>(self, grad: f64) -> [Truth; 4] {
        let math = Format::of_math::<T>();
        let (ratio, inverse, distance) = self.relative(math);
        let (relative, underflow) = self.errors(math);
        let growth = math.limit(half_growth(ratio));
        let mean = math.limit(grad * distance) * inverse;
        let spread = math.limit(0.5 * distance * distance + growth);
        let lost = underflow * inverse + math.smallest() * (2.0 + inverse + distance.abs());
        let of_mu = relative * mean.abs() + lost * (1.0 + grad.abs());
        let of_logvar = relative * (grad * growth).abs() + 2.0 * math.smallest() * (1.0 + grad.abs());
        let of_spread = of_logvar
            + relative * (grad * distance * distance).abs()
            + underflow * (distance.abs() + underflow) * grad.abs();
        let truth = |value, tolerance| Truth { value, tolerance, early_overflow: true };
        let unknown_distance = self.distance_is_unknown(math);
        let unknown_mean = unknown_distance
            || (math.limit(grad * distance).is_infinite() && self.inverse_may_vanish(math))
            || (grad.is_infinite()
                && math.may_vanish((self.mu - self.prior_mu) * (-0.5 * self.prior_logvar).exp()));
        let unless = |unknown: bool, truth| if unknown { Truth::UNKNOWN } else { truth };
        [
            unless(unknown_mean, truth(mean, of_mu)),
            truth(math.limit(grad * growth), of_logvar),
            unless(unknown_mean, truth(-mean, of_mu)),
            unless(unknown_distance, truth(-math.limit(grad * spread), of_spread)),
        ]
    }
}

/// z = mu + exp(logvar / 2) eps (Kingma and Welling 2014, equation 10): two units in the last place of the larger term.
pub(crate) fn sample<T: Dtype>(mu: f64, logvar: f64, eps: f64) -> Truth {
    let math = Format::of_math::<T>();
    let step = exp_times(0.5 * logvar, eps);
    let larger = mu.abs().max(step.abs());
    // In float64 the reference has an error like the kernel's.
    let ulps = if math.digits == 24 { 2.0 } else { 4.0 };
    let tolerance = if larger.is_finite() { ulps * math.ulp(larger) } else { 0.0 };
    Truth { value: mu + math.limit(step), tolerance, early_overflow: false }
}

/// The gradients of `grad_z * z + grad_kl * KL(q || N(0, 1))` with respect to mu and logvar.
pub(crate) fn latent_gradients<T: Dtype>(
    (mu, logvar, eps): (f64, f64, f64),
    grad_z: Option<f64>,
    grad_kl: Option<f64>,
) -> [Truth; 2] {
    let math = Format::of_math::<T>();
    let (mut of_mu, mut of_logvar, mut magnitude) = (0.0, 0.0, 0.0);
    let mut lost = 0.0;
    if let Some(grad) = grad_kl {
        let growth = math.limit(half_growth(logvar));
        // Rounded once, together with the gradient of z: in float64 too.
        of_mu = grad.mul_add(mu, grad_z.unwrap_or(0.0));
        of_logvar = math.limit(grad * growth);
        magnitude += of_logvar.abs();
        lost += grad.abs();
    }
    if let Some(grad) = grad_z {
        let slope = math.limit(exp_times(0.5 * logvar, 0.5 * eps));
        // Likewise: a product that overflows does not meet an infinity of the other sign.
        of_logvar = grad.mul_add(slope, of_logvar);
        magnitude += (grad * slope).abs();
        lost += grad.abs();
    }
    let relative = if math.digits == 24 {
        1e-6
    } else {
        math.epsilon() * (16.0 + if logvar.is_finite() { logvar.abs() } else { 0.0 })
    };
    let tolerance = relative * magnitude + math.smallest() * (1.0 + lost);
    [
        Truth { value: of_mu, tolerance: math.ulp(of_mu), early_overflow: false },
        Truth { value: math.limit(of_logvar), tolerance, early_overflow: true },
    ]
}

/// The weight of the side that a logit is against, for a value in steps of 1 / max: 1 - x where that is the other one.
fn against(logit: f64, steps: f64, max: f64) -> f64 {
    if logit > 0.0 { (max - steps) / max } else { steps / max }
}

/// The terms of log p of a value, in steps of 1 / max, under a Bernoulli variable of a logit: -|l| w, with w the weight of
/// the side that the logit is against, and -log(1 + e^-|l|). None is positive for values in [0, 1].
pub(crate) fn bernoulli<T: Dtype>(logit: f64, steps: f64, max: f64) -> [Truth; 2] {
    let math = Format::of_math::<T>();
    let against = against(logit, steps, max);
    // Where nothing is against it, an infinite logit costs nothing.
    let distance = if against == 0.0 { 0.0 } else { math.limit(logit.abs() * against) };
    let growth = (-logit.abs()).exp().ln_1p();
    let truth = |value: f64, ulps: f64| Truth {
        value: -value,
        tolerance: ulps * math.epsilon() * value.abs() + 2.0 * math.smallest(),
        early_overflow: false,
    };
    // In float64 the exponential has twice the error, and the reference one of its own.
    [truth(distance, 3.0), truth(growth, if math.digits == 24 { 5.0 } else { 10.0 })]
}

/// The gradient of `grad` * log p with respect to the logit, x - 1 / (1 + e^-l).
pub(crate) fn bernoulli_gradient<T: Dtype>(logit: f64, (steps, max): (f64, f64), grad: f64) -> Truth {
    let math = Format::of_math::<T>();
    let e = (-logit.abs()).exp();
    let s = e / (1.0 + e);
    let against = against(logit, steps, max);
    let slope = math.limit(if logit > 0.0 { s - against } else { against - s });
    // Towards 1 it may cancel: the error is relative to its two terms.
    let relative = math.epsilon() * if math.digits == 24 { 5.0 } else { 10.0 };
    let lost = relative * (s + against.abs()) + math.smallest();
    if grad.is_infinite() && slope.abs() <= lost {
        return Truth::UNKNOWN;
    }
    let tolerance = lost * grad.abs() + math.epsilon() * (grad * slope).abs() + math.smallest();
    Truth { value: grad * slope, tolerance, early_overflow: false }
}

/// A value under a Gaussian variable.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Observation {
    /// The value times what stands for 1: an integer for a pixel.
    pub(crate) steps: f64,
    /// What stands for 1.
    pub(crate) max: f64,
    pub(crate) mean: f64,
    pub(crate) logvar: f64,
}

impl Observation {
    /// One over the standard deviation, the distance from the mean in standard deviations, and the error of that.
    fn scaled(self, math: Format) -> (f64, f64, f64) {
        // Rounded once: a value next to the mean has few digits of its own.
        let distance = (-self.mean).mul_add(self.max, self.steps) / self.max;
        let inverse = math.limit((-0.5 * self.logvar).exp());
        let scaled = math.limit(distance * inverse);
        let underflow = math.smallest() * (1.0 + inverse + distance.abs());
        (inverse, scaled, 8.0 * math.epsilon() * scaled.abs() + underflow)
    }

    /// Whether an infinite distance meets an inverse that may be 0.
    fn is_undecided(self, math: Format) -> bool {
        let infinite = self.mean.is_infinite() || self.steps.is_infinite();
        infinite && math.may_vanish((-0.5 * self.logvar).exp())
    }

    /// The terms of the log-density: those of the variance, of the distance and of the constant.
    pub(crate) fn terms<T: Dtype>(self) -> [Truth; 3] {
        let math = Format::of_math::<T>();
        let (_, scaled, error) = self.scaled(math);
        let square = math.limit(scaled * scaled);
        let constant = TAU.ln();
        let truth = |value: f64, tolerance: f64| Truth {
            value: -0.5 * value,
            tolerance: 0.5 * tolerance + math.smallest(),
            early_overflow: true,
        };
        if self.is_undecided(math) {
            return [Truth::UNKNOWN; 3];
        }
        [
            truth(self.logvar, 0.0),
            truth(square, error * (2.0 * scaled.abs() + error)),
            truth(constant, math.epsilon() * constant),
        ]
    }

    /// The gradients of `grad` * log-density with respect to the mean and the logarithm of the variance.
    pub(crate) fn gradients<T: Dtype>(self, grad: f64) -> [Truth; 2] {
        let math = Format::of_math::<T>();
        let (inverse, scaled, error) = self.scaled(math);
        let (weighted, excess) = (math.limit(grad * scaled), math.limit(scaled.mul_add(scaled, -1.0)));
        let of_mean = 4.0 * math.epsilon() * (weighted * inverse).abs()
            + inverse * (grad.abs() * error + math.smallest())
            + math.smallest() * (1.0 + weighted.abs());
        let of_square = error * (2.0 * scaled.abs() + error) + 2.0 * math.epsilon() * excess.abs();
        let of_logvar =
            0.5 * (grad.abs() * of_square) + math.epsilon() * (grad * excess).abs() + math.smallest();
        if self.is_undecided(math) {
            return [Truth::UNKNOWN; 2];
        }
        let truth = |unknown, value, tolerance| {
            if unknown { Truth::UNKNOWN } else { Truth { value, tolerance, early_overflow: true } }
        };
        let (vanishes, infinite) = (math.may_vanish((-0.5 * self.logvar).exp()), grad.is_infinite());
        let mean_unknown = (infinite && scaled.abs() <= error) || (weighted.is_infinite() && vanishes);
        [
            truth(mean_unknown, weighted * inverse, of_mean),
            truth(infinite && excess.abs() <= of_square, 0.5 * (grad * excess), of_logvar),
        ]
    }
}

/// The log weight of a sample and its gradients.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Weighted {
    pub(crate) mu: f64,
    pub(crate) logvar: f64,
    pub(crate) eps: f64,
}

impl Weighted {
    /// sigma eps, and z.
    fn sample(self, math: Format) -> (f64, f64) {
        let step = math.limit(exp_times(0.5 * self.logvar, self.eps));
        (step, self.mu + step)
    }

    /// The terms of log p(z) - log q(z | x) = (logvar + eps^2 - z^2) / 2: of the variance, and of the squares.
    pub(crate) fn terms<T: Dtype>(self) -> [Truth; 2] {
        let math = Format::of_math::<T>();
        let Self { mu, logvar, eps } = self;
        let (step, z) = self.sample(math);
        let growth = math.limit((0.5 * logvar).exp_m1());
        if mu.is_infinite() && growth.is_finite() && growth >= math.largest / 4.0 {
            // It may overflow early, and an infinity of the other sign makes NaN of that.
            return [Truth::UNKNOWN; 2];
        }
        // (z - eps)(z + eps), both of which may cancel.
        let (difference, sum) = (growth.mul_add(eps, mu), math.limit(eps + z));
        let relative = math.epsilon() * if math.digits == 24 { 6.0 } else { 12.0 };
        let of_difference = relative * ((growth * eps).abs() + mu.abs()) + math.smallest();
        let of_sum = relative * (eps.abs() + mu.abs() + step.abs()) + math.smallest();
        let product = math.limit(math.limit(difference) * sum);
        let tolerance = of_difference * sum.abs()
            + of_sum * difference.abs()
            + of_difference * of_sum
            + 2.0 * math.epsilon() * product.abs();
        let truth = |value: f64, tolerance: f64| Truth {
            value: 0.5 * value,
            tolerance: 0.5 * tolerance + math.smallest(),
            early_overflow: true,
        };
        [truth(logvar, math.epsilon() * logvar.abs()), truth(-product, tolerance)]
    }

    /// The gradients of `grad_z` * z + `grad` * log weight with respect to mu and logvar.
    pub(crate) fn gradients<T: Dtype>(self, grad_z: Option<f64>, grad: Option<f64>) -> [Truth; 2] {
        let math = Format::of_math::<T>();
        let (step, z) = self.sample(math);
        let relative = math.epsilon() * if math.digits == 24 { 6.0 } else { 12.0 };
        let of_z = grad_z.unwrap_or(0.0);
        let value = math.limit(grad.map_or(of_z, |grad| grad.mul_add(-z, of_z)));
        let weight = grad.unwrap_or(0.0);
        let through_weight = grad.map_or(0.0, |grad| (grad * self.mu).abs() + (grad * step).abs());
        // A step below the normal numbers has an error of its own.
        let underflow = math.smallest() * (1.0 + 2.0 * weight.abs());
        let lost = relative * (through_weight + of_z.abs()) + underflow;
        let infinite = |number: f64| number.is_infinite();
        let unknown = (grad.is_some_and(infinite)
            && z.abs() <= relative * (self.mu.abs() + step.abs()) + math.smallest())
            || (infinite(step) && value.abs() <= lost)
            || (infinite(value) && math.may_vanish(step));
        if unknown {
            return [Truth::UNKNOWN; 2];
        }
        let chain = (0.5 * value).mul_add(step, 0.5 * weight);
        let of_logvar = 0.5 * lost * step.abs()
            + relative * ((value * step).abs() + weight.abs())
            + math.smallest() * (1.0 + value.abs() + step.abs());
        let truth = |value, tolerance| Truth { value, tolerance, early_overflow: true };
        [truth(value, lost), truth(math.limit(chain), of_logvar)]
    }
}

/// The words of one block of Philox4x32-10 (Salmon et al., SC'11).
pub(crate) fn philox(counter: [u32; 4], seed: u64) -> [u32; 4] {
    let [mut c0, mut c1, mut c2, mut c3] = counter.map(u64::from);
    let (mut k0, mut k1) = (seed & 0xFFFF_FFFF, seed >> 32);
    for _ in 0..10 {
        let (p0, p1) = (c0 * 0xD251_1F53, c2 * 0xCD9E_8D57);
        (c0, c1, c2, c3) = ((p1 >> 32) ^ c1 ^ k0, p1 & 0xFFFF_FFFF, (p0 >> 32) ^ c3 ^ k1, p0 & 0xFFFF_FFFF);
        (k0, k1) = ((k0 + 0x9E37_79B9) & 0xFFFF_FFFF, (k1 + 0xBB67_AE85) & 0xFFFF_FFFF);
    }
    [c0, c1, c2, c3].map(|word| word as u32)
}

/// The words of the block that a column is in.
fn words(seed: u64, draw: u32, row: u64, column: usize) -> [u32; 4] {
    philox([(column / 4) as u32, draw, row as u32, (row >> 32) as u32], seed)
}

/// The uniform of an element, which is exact.
pub(crate) fn uniform(seed: u64, draw: u32, row: u64, column: usize) -> f64 {
    f64::from(words(seed, draw, row, column)[column % 4] >> 8) / 16_777_216.0
}

/// The normal of an element, by Box and Muller's formula.
pub(crate) fn normal(seed: u64, draw: u32, row: u64, column: usize) -> Truth {
    let words = words(seed, draw, row, column);
    let pair = column % 4 / 2 * 2;
    // The contract rounds this number to float32, twice.
    let u = f64::from(words[pair] as f32 + 0.5) * 2.0_f64.powi(-32);
    let (half_turn, quarters) = (words[pair + 1] >> 31, (words[pair + 1] << 1).cast_signed() / 2);
    let angle = TAU * (f64::from(half_turn) / 2.0 + (f64::from(quarters) + 0.5) * 2.0_f64.powi(-32));
    let radius = (-2.0 * u.ln()).sqrt();
    let value = radius * if column.is_multiple_of(2) { angle.cos() } else { angle.sin() };
    // Four units in the last place of the radius: its own error, that of the angle, and the product's.
    Truth { value, tolerance: 4.0 * Format::of::<f32>().ulp(radius), early_overflow: false }
}

/// The order of the rows by their 63-bit keys.
pub(crate) fn permutation(seed: u64, draw: u32, n: usize) -> Vec<i64> {
    let key = |row: &i64| {
        let [low, high, ..] = words(seed, draw, *row as u64, 0);
        (u64::from(high) << 32 | u64::from(low)) >> 1
    };
    let mut order: Vec<i64> = (0..n as i64).collect();
    order.sort_by_key(key);
    order
}

/// The seed that a seed and a tag give.
pub(crate) fn fold_in(seed: u64, tag: u64) -> u64 {
    let [low, high, ..] = philox([tag as u32, (tag >> 32) as u32, 0x464F_4C44, 0xFFFF_FFFF], seed);
    u64::from(high) << 32 | u64::from(low)
}

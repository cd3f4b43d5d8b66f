//! Sixteen values at a time: the vocabulary the kernel bodies are written in.
//!
//! The lane count is the same at every level, so the shape of every sum is too. Implementations may only use
//! operations that IEEE 754 rounds correctly (add, multiply, fused multiply-add, square root, conversions) and
//! integer operations: that makes all levels agree bit for bit.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
pub(crate) mod portable;

use core::fmt::Debug;
use core::ops::{Add, Div, Mul, Sub};

/// Values in one vector, at every level.
pub(crate) const LANES: usize = 16;

/// Constants that differ between `f32` and `f64` arithmetic.
pub trait Scalar:
    Copy
    + Send
    + Sync
    + PartialOrd
    + From<f32>
    + Into<f64>
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Debug
    + 'static
{
    /// 0.
    const ZERO: Self;
    /// 1/2.
    const HALF: Self;
    /// 1.
    const ONE: Self;
    /// 2.
    const TWO: Self;
    /// The largest finite number.
    const MAX: Self;
    /// log2(e).
    const LOG2_E: Self;
    /// The upper part of ln 2, with so few bits that its multiples by an exponent are exact.
    const LN_2_HIGH: Self;
    /// ln 2 minus its upper part.
    const LN_2_LOW: Self;
    /// 3/2 times 2 to the number of fraction bits: added to a small number, it leaves its rounded value in the
    /// low bits.
    const MAGIC: Self;
    /// exp is 0 below minus this and infinite above it.
    const EXP_SATURATES: Self;
    /// The exponents of the smallest and of the largest power of two among the normal numbers.
    const EXPONENTS: [Self; 2];
    /// (2 e^(r / 2) - 2 - r) / r^2 on [-ln 2, ln 2], lowest power first.
    const EXP_EXCESS: &'static [Self];
    /// e^-r on [-ln 2 / 2, ln 2 / 2], lowest power first.
    const DECAY: &'static [Self];
    /// (2 atanh(s) / s - 2) / s^2 in powers of s^2 on [0, 1/9], lowest power first.
    const ATANH_EXCESS: &'static [Self];

    /// Rounds an `f64` once.
    fn from_f64(value: f64) -> Self;
    /// `self * factor + term`, rounded once.
    fn fma(self, factor: Self, term: Self) -> Self;
    /// Correctly rounded square root.
    fn sqrt(self) -> Self;
    /// `|self|`.
    fn abs(self) -> Self;
    /// 2^n for an integral n in the range of normal numbers; unspecified, but no panic, for any other value.
    fn power_of_two(self) -> Self;
    /// 2^floor(n / 2) and 2^(n - floor(n / 2)), likewise.
    fn power_of_two_halves(self) -> (Self, Self);
    /// floor(log2(self)) for positive normal numbers, likewise.
    fn exponent(self) -> Self;
}

impl Scalar for f32 {
    const ZERO: Self = 0.0;
    const HALF: Self = 0.5;
    const ONE: Self = 1.0;
    const TWO: Self = 2.0;
    const MAX: Self = f32::MAX;
    const LOG2_E: Self = core::f32::consts::LOG2_E;
    const LN_2_HIGH: Self = 0.693359375;
    const LN_2_LOW: Self = -2.12194440e-4;
    const MAGIC: Self = 12_582_912.0;
    const EXP_SATURATES: Self = 110.0;
    const EXPONENTS: [Self; 2] = [-126.0, 127.0];
    const EXP_EXCESS: &'static [Self] = &[
        0.25,
        0.0416666679084301,
        0.0052083078771829605,
        0.0005208319053053856,
        4.35429101344198e-05,
        3.1079812288226094e-06,
    ];
    const DECAY: &'static [Self] = &[
        1.0,
        -1.0,
        0.4999999403953552,
        -0.1666652113199234,
        0.04166838899254799,
        -0.00836874544620514,
        0.0013814540579915047,
    ];
    const ATANH_EXCESS: &'static [Self] =
        &[0.6666666865348816, 0.3999970555305481, 0.285923570394516, 0.2170657515525818, 0.23224329948425293];

    #[inline(always)]
    fn from_f64(value: f64) -> Self {
        value as Self
    }

    #[inline(always)]
    fn fma(self, factor: Self, term: Self) -> Self {
        // Where the baseline has no such instruction it would be a call for each lane.
        if cfg!(any(target_feature = "fma", target_arch = "aarch64")) {
            self.mul_add(factor, term)
        } else {
            fused_in_f64(self, factor, term)
        }
    }

    #[inline(always)]
    fn sqrt(self) -> Self {
        self.sqrt()
    }

    #[inline(always)]
    fn abs(self) -> Self {
        self.abs()
    }

    #[inline(always)]
    fn power_of_two(self) -> Self {
        // The sum with MAGIC holds the integer in its low bits: a saturating cast costs several times this.
        let n = (self + Self::MAGIC).to_bits().wrapping_sub(Self::MAGIC.to_bits());
        Self::from_bits(n.wrapping_add(127) << 23)
    }

    #[inline(always)]
    fn exponent(self) -> Self {
        ((self.to_bits() >> 23) as i32 - 127) as Self
    }

    #[inline(always)]
    fn power_of_two_halves(self) -> (Self, Self) {
        let n = (self + Self::MAGIC).to_bits().wrapping_sub(Self::MAGIC.to_bits());
        let half = (n as i32 >> 1) as u32;
        let rest = n.wrapping_sub(half);
        (Self::from_bits(half.wrapping_add(127) << 23), Self::from_bits(rest.wrapping_add(127) << 23))
    }
}

/// A fused multiply-add by plain operations, which the compiler makes vectors of.
///
/// The product is exact in `f64`, the sum is rounded to odd there: towards zero, with a last bit that says whether
/// anything was lost. What is then rounded to `f32` is right, as `f64` has more than twice the bits and two (Boldo and
/// Melquiond, "Emulation of a FMA and correctly rounded sums: proved algorithms using rounding to odd", 2008).
#[inline(always)]
fn fused_in_f64(a: f32, b: f32, c: f32) -> f32 {
    let (product, term) = (f64::from(a) * f64::from(b), f64::from(c));
    let sum = product + term;
    let of_term = sum - product;
    let lost = (product - (sum - of_term)) + (term - of_term);
    // Of an infinity or NaN `lost` is NaN, and the sum stays.
    let inexact = u64::from(lost.abs() > 0.0);
    let away_from_zero = (lost.to_bits() ^ sum.to_bits()) >> 63;
    f64::from_bits((sum.to_bits() - (away_from_zero & inexact)) | inexact) as f32
}

impl Scalar for f64 {
    const ZERO: Self = 0.0;
    const HALF: Self = 0.5;
    const ONE: Self = 1.0;
    const TWO: Self = 2.0;
    const MAX: Self = f64::MAX;
    const LOG2_E: Self = core::f64::consts::LOG2_E;
    const LN_2_HIGH: Self = 6.93147180369123816490e-01;
    const LN_2_LOW: Self = 1.90821492927058770002e-10;
    const MAGIC: Self = 6_755_399_441_055_744.0;
    const EXP_SATURATES: Self = 760.0;
    const EXPONENTS: [Self; 2] = [-1022.0, 1023.0];
    const EXP_EXCESS: &'static [Self] = &[
        0.25,
        0.041666666666666664,
        0.005208333333333333,
        0.0005208333333333334,
        4.340277777777778e-05,
        3.100198412696628e-06,
        1.9376240079359502e-07,
        1.0764577834579642e-08,
        5.38228891490609e-10,
        2.4464905598343154e-11,
        1.0193715250769062e-12,
        3.9279741557644543e-14,
        1.4025213865214337e-15,
    ];
    const DECAY: &'static [Self] = &[
        1.0,
        -1.0,
        0.5000000000000011,
        -0.1666666666666641,
        0.041666666666529725,
        -0.008333333333494976,
        0.0013888888943759984,
        -0.00019841269505773806,
        2.480149294961707e-05,
        -2.755758680384707e-06,
        2.7630306255647857e-07,
        -2.500001885308334e-08,
    ];
    const ATANH_EXCESS: &'static [Self] = &[
        0.6666666666666666,
        0.40000000000014585,
        0.2857142856710876,
        0.22222222717427864,
        0.18181789436132859,
        0.15385570064958623,
        0.13314144209654935,
        0.12001072809590713,
        0.08800738486144674,
        0.1616404561194353,
    ];

    #[inline(always)]
    fn from_f64(value: f64) -> Self {
        value
    }

    #[inline(always)]
    fn fma(self, factor: Self, term: Self) -> Self {
        self.mul_add(factor, term)
    }

    #[inline(always)]
    fn sqrt(self) -> Self {
        self.sqrt()
    }

    #[inline(always)]
    fn abs(self) -> Self {
        self.abs()
    }

    #[inline(always)]
    fn power_of_two(self) -> Self {
        // The sum with MAGIC holds the integer in its low bits: a saturating cast costs several times this.
        let n = (self + Self::MAGIC).to_bits().wrapping_sub(Self::MAGIC.to_bits());
        Self::from_bits(n.wrapping_add(1023) << 52)
    }

    #[inline(always)]
    fn exponent(self) -> Self {
        ((self.to_bits() >> 52) as i64 - 1023) as Self
    }

    #[inline(always)]
    fn power_of_two_halves(self) -> (Self, Self) {
        let n = (self + Self::MAGIC).to_bits().wrapping_sub(Self::MAGIC.to_bits());
        let half = (n as i64 >> 1) as u64;
        let rest = n.wrapping_sub(half);
        (Self::from_bits(half.wrapping_add(1023) << 52), Self::from_bits(rest.wrapping_add(1023) << 52))
    }
}

/// Sixteen floating-point numbers.
pub trait Floats: Copy {
    /// The type of one lane.
    type Scalar: Scalar;

    /// The same value, which the compiler takes for another one, computed here and now: it keeps vectors in step that
    /// are to be worked on side by side.
    #[inline(always)]
    fn in_step(self) -> Self {
        self
    }
    /// The same value in every lane.
    fn splat(value: Self::Scalar) -> Self;
    /// Reads sixteen neighbours.
    fn load(source: &[Self::Scalar; LANES]) -> Self;
    /// Reads fewer than sixteen neighbours, with zeros in the other lanes.
    fn load_part(source: &[Self::Scalar]) -> Self;
    /// Reads sixteen bytes.
    fn load_u8(source: &[u8; LANES]) -> Self;
    /// Writes sixteen neighbours.
    fn store(self, target: &mut [Self::Scalar; LANES]);
    /// Writes the first lanes to fewer than sixteen neighbours.
    fn store_part(self, target: &mut [Self::Scalar]);
    /// The first lane of each vector, then the second of each, and so on.
    #[inline(always)]
    fn transposed(vectors: [Self; LANES]) -> [Self; LANES] {
        let mut columns = [[Self::Scalar::ZERO; LANES]; LANES];
        for (i, vector) in vectors.into_iter().enumerate() {
            let mut lanes = [Self::Scalar::ZERO; LANES];
            vector.store(&mut lanes);
            for (column, lane) in columns.iter_mut().zip(lanes) {
                column[i] = lane;
            }
        }
        let mut transposed = vectors;
        for (vector, column) in transposed.iter_mut().zip(&columns) {
            *vector = Self::load(column);
        }
        transposed
    }
    /// Adds every lane, widened to `f64`, to its sum.
    fn add_to(self, sums: &mut [f64; LANES]);
    /// `self + other`.
    fn add(self, other: Self) -> Self;
    /// `self - other`.
    fn sub(self, other: Self) -> Self;
    /// `self * other`.
    fn mul(self, other: Self) -> Self;
    /// `self / other`.
    fn div(self, other: Self) -> Self;
    /// `self * factor + term`, rounded once.
    fn fma(self, factor: Self, term: Self) -> Self;
    /// Correctly rounded square root.
    fn sqrt(self) -> Self;
    /// `|self|`.
    fn abs(self) -> Self;
    /// `self` where it is not above `limit`; NaN stays.
    fn at_most(self, limit: Self) -> Self;
    /// `self` where it is not below `limit`; NaN stays.
    fn at_least(self, limit: Self) -> Self;
    /// `yes` where `|self| <= limit`, `no` elsewhere and for NaN.
    fn select_within(self, limit: Self, yes: Self, no: Self) -> Self;
    /// `yes` where `self > other`, `no` elsewhere and for NaN.
    fn select_above(self, other: Self, yes: Self, no: Self) -> Self;
    /// floor(log2(self)) for positive normal lanes.
    fn exponent(self) -> Self;
    /// 2^n for integral lanes; the largest one for a larger n, and below the normal numbers anything as small.
    fn power_of_two(self) -> Self;
    /// `self * 2^n` for integral lanes of `n`, rounded once, also where 2^n itself is no normal number.
    ///
    /// `self` times 2^floor(n / 2) has to be a normal number (or 0, infinite or NaN).
    fn scale(self, n: Self) -> Self;
}

/// What the first two rounds of Philox take from the counter words that the blocks of a row share, and the keys.
#[derive(Clone, Copy, Debug)]
pub struct RowStart {
    /// After the first round word 2 is high(m0 c0) with this, and word 3 low(m0 c0).
    pub first: u32,
    /// After the second round word 0 is high(m1 c2) with this; word 1 is low(m1 c2).
    pub second: u32,
    /// Word 2 is what word 3 was, with this.
    pub third: u32,
    /// Word 3.
    pub fourth: u32,
}

/// What is taken from the bits of a float for its exponent to be 32 less, and to count from 3/4 on.
const BELOW_FRACTION: u32 = (32 << 23) + 0x3F40_0000;

/// Sixteen 32-bit words.
pub trait Words: Copy {
    /// Floats with the same lanes.
    type Floats: Floats<Scalar = f32>;

    /// The same value in every lane.
    fn splat(value: u32) -> Self;
    /// Reads sixteen neighbours.
    fn load(source: &[u32; LANES]) -> Self;
    /// The same four values four times.
    fn repeat(values: [u32; 4]) -> Self;
    /// Reads sixteen bytes.
    fn load_u8(source: &[u8; LANES]) -> Self;
    /// Reads sixteen half words.
    fn load_u16(source: &[u16; LANES]) -> Self;
    /// Writes the lower half words.
    fn store_u16(self, target: &mut [u16; LANES]);
    /// Wrapping sum.
    fn add(self, other: Self) -> Self;
    /// Wrapping difference.
    fn sub(self, other: Self) -> Self;
    /// Bitwise and.
    fn and(self, other: Self) -> Self;
    /// Bitwise exclusive or.
    fn xor(self, other: Self) -> Self;
    /// Logical shift right.
    fn shift_right<const N: u32>(self) -> Self;
    /// Shift left.
    fn shift_left<const N: u32>(self) -> Self;
    /// The low words of the products.
    fn multiply(self, factor: u32) -> Self;
    /// Four vectors of words between the rounds of Philox, in the form that suits the level's multiplication.
    type Rounds: Copy;
    /// Words into that form.
    fn begin_rounds(words: [Self; 4]) -> Self::Rounds;
    /// What the first two rounds make of blocks that share all but their first word.
    fn begin_rounds_of_row(first_words: Self, row: &RowStart) -> Self::Rounds;
    /// One round: (high(m1 c2) ^ c1 ^ k0, low(m1 c2), high(m0 c0) ^ c3 ^ k1, low(m0 c0)).
    fn round(state: Self::Rounds, key: [u32; 2]) -> Self::Rounds;
    /// The last round, and its words in pairs: of the even lanes, then of the odd ones, words 0 and 2 of each
    /// block next to each other, and words 1 and 3.
    fn last_round(state: Self::Rounds, key: [u32; 2]) -> [[Self; 2]; 2];
    /// Whether blocks are best taken through all rounds one after the other, by [`Words::last_rounds`]: a compiler makes
    /// vectors of a loop over blocks, not of rounds written out.
    const BLOCK_BY_BLOCK: bool = false;
    /// Several rounds, of which the last is the [`last_round`](Words::last_round).
    #[inline(always)]
    fn last_rounds(mut state: Self::Rounds, keys: &[[u32; 2]]) -> [[Self; 2]; 2] {
        let (&last, others) = keys.split_last().expect("a last round has a key");
        for &key in others {
            state = Self::round(state, key);
        }
        Self::last_round(state, last)
    }
    /// Puts what became of such a pair next to each other: the four values of a block in word order, those of every
    /// other block of the pair in the first result, the others in the second.
    fn weave(first: Self::Floats, second: Self::Floats) -> [Self::Floats; 2];
    /// The words as signed integers, rounded to `f32`.
    fn signed_to_floats(self) -> Self::Floats;
    /// (m, e) of the words as fractions: (word + 1/2) / 2^32, the word rounded to `f32` and the sum again, is m 2^e, with
    /// m from 3/4 on and below 3/2.
    fn fraction(self) -> (Self::Floats, Self::Floats);
    /// The bit patterns of floats.
    fn from_bits(floats: Self::Floats) -> Self;
    /// Floats from bit patterns.
    fn to_floats(self) -> Self::Floats;
    /// `yes` where `self < other` as signed integers, `no` elsewhere.
    fn select_below(self, other: Self, yes: Self::Floats, no: Self::Floats) -> Self::Floats;
    /// Widens IEEE half-precision numbers, exactly.
    fn load_f16(source: &[u16; LANES]) -> Self::Floats;
    /// Rounds to IEEE half precision, once.
    fn store_f16(floats: Self::Floats, target: &mut [u16; LANES]);
}

/// An instruction-set level: the vectors the kernel bodies are instantiated with.
pub trait Vectors: Copy {
    /// `f32` lanes.
    type F32: Floats<Scalar = f32>;
    /// `f64` lanes.
    type F64: Floats<Scalar = f64>;
    /// Word lanes.
    type U32: Words<Floats = Self::F32>;
    /// Whether its registers hold chains of Philox rounds and polynomials at the same time.
    const ROUNDS_BESIDE: bool;
    /// Whether two groups of slots, of a wide row or of several narrow ones, are taken together, written out: more code,
    /// but no vector that a register holds goes through memory.
    const WRITTEN_OUT: bool;
    /// Whether its registers hold the sums of sixteen vectors and more.
    const MANY_SUMS: bool;

    /// Widens every lane exactly.
    fn widen(lanes: Self::F32) -> Self::F64;

    /// Asks for memory that is read soon, where the level can.
    #[inline(always)]
    fn prefetch<T>(_values: &[T]) {}
}

/// Chooses the vector of a level for a scalar type.
pub trait Arithmetic: Scalar {
    /// The vector with this lane type.
    type Vector<L: Vectors>: Floats<Scalar = Self>;

    /// Widens `f32` lanes exactly.
    fn from_f32<L: Vectors>(lanes: L::F32) -> Self::Vector<L>;
}

impl Arithmetic for f32 {
    type Vector<L: Vectors> = L::F32;

    #[inline(always)]
    fn from_f32<L: Vectors>(lanes: L::F32) -> L::F32 {
        lanes
    }
}

impl Arithmetic for f64 {
    type Vector<L: Vectors> = L::F64;

    #[inline(always)]
    fn from_f32<L: Vectors>(lanes: L::F32) -> L::F64 {
        L::widen(lanes)
    }
}

/// Reads sixteen values from `source[at..]`, with zeros past its end.
#[inline(always)]
pub(crate) fn load<V: Floats>(source: &[V::Scalar], at: usize) -> V {
    let rest = &source[at..];
    if let Some(full) = rest.first_chunk::<LANES>() { V::load(full) } else { V::load_part(rest) }
}

/// Writes the lanes that `target[at..]` has room for.
#[inline(always)]
pub(crate) fn store<V: Floats>(value: V, target: &mut [V::Scalar], at: usize) {
    let rest = &mut target[at..];
    if let Some(full) = rest.first_chunk_mut::<LANES>() {
        value.store(full);
    } else {
        value.store_part(rest);
    }
}

/// The first lanes, with zeros in the others.
#[inline(always)]
pub(crate) fn first<V: Floats>(value: V, count: usize) -> V {
    if count >= LANES {
        return value;
    }
    let mut lanes = [V::Scalar::ZERO; LANES];
    value.store(&mut lanes);
    V::load_part(&lanes[..count])
}

/// Sixteen neighbours from `source[at..]`, with zeros past its end.
#[inline(always)]
pub(crate) fn padded<T: Copy + Default>(source: &[T], at: usize) -> [T; LANES] {
    let rest = &source[at..];
    if let Some(full) = rest.first_chunk::<LANES>() {
        return *full;
    }
    let mut lanes = [T::default(); LANES];
    lanes[..rest.len()].copy_from_slice(rest);
    lanes
}

#[cfg(test)]
mod tests {
    use super::fused_in_f64;
    use proptest::prelude::*;
    use proptest::test_runner::RngSeed;

    /// The same cases in every run, kept nowhere: Miri has no files.
    fn config() -> ProptestConfig {
        ProptestConfig {
            cases: if cfg!(miri) { 100 } else { 200_000 },
            rng_seed: RngSeed::Fixed(0),
            failure_persistence: None,
            ..ProptestConfig::default()
        }
    }

    /// Floats of every size, and such that a sum of a product and a term cancels or is halfway between two floats.
    fn float() -> impl Strategy<Value = f32> {
        prop_oneof![
            any::<u32>().prop_map(f32::from_bits),
            (-4096_i32..4096, -12_i32..12).prop_map(|(n, power)| n as f32 * 2_f32.powi(power)),
            (0_u32..4, -12_i32..12, any::<bool>()).prop_map(|(bits, power, odd)| {
                (1.0 + bits as f32 * f32::EPSILON) * 2_f32.powi(power) * if odd { -1.0 } else { 1.0 }
            }),
            (0_u32..16).prop_map(f32::from_bits),
        ]
    }

    proptest! {
        #![proptest_config(config())]

        #[test]
        fn a_fused_sum_by_plain_operations_has_the_bits_of_the_instruction(a in float(), b in float(), c in float()) {
            for term in [c, -(a * b), (a * b).next_up() - a * b] {
                let (own, exact) = (fused_in_f64(a, b, term), a.mul_add(b, term));
                prop_assert!(
                    own.to_bits() == exact.to_bits() || (own.is_nan() && exact.is_nan()),
                    "{a:e} * {b:e} + {term:e} = {exact:e}, got {own:e}"
                );
            }
        }
    }
}

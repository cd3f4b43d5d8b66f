//! Lanes as plain arrays: every architecture, vectorised by the compiler where it can.

use super::{BELOW_FRACTION, Floats, LANES, RowStart, Scalar, Vectors, Words};
use crate::philox::{MULTIPLIERS, rounds};
use core::array::from_fn;

/// The level that needs no instruction-set extension.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Portable;

impl Vectors for Portable {
    type F32 = Lanes<f32>;
    type F64 = Lanes<f64>;
    type U32 = Lanes<u32>;
    const ROUNDS_BESIDE: bool = false;
    const WRITTEN_OUT: bool = false;
    const MANY_SUMS: bool = false;

    #[inline(always)]
    fn widen(lanes: Lanes<f32>) -> Lanes<f64> {
        lanes.widen()
    }
}

/// Sixteen values in an array.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct Lanes<T>([T; LANES]);

impl Lanes<f32> {
    /// The lanes, to write to.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(crate) fn array_mut(&mut self) -> &mut [f32; LANES] {
        &mut self.0
    }

    /// Widens every lane exactly.
    #[inline(always)]
    pub(crate) fn widen(self) -> Lanes<f64> {
        Lanes(self.0.map(f64::from))
    }
}

impl<T: Scalar> Floats for Lanes<T> {
    type Scalar = T;

    #[inline(always)]
    fn splat(value: T) -> Self {
        Self([value; LANES])
    }

    #[inline(always)]
    fn load(source: &[T; LANES]) -> Self {
        Self(*source)
    }

    #[inline(always)]
    fn load_part(source: &[T]) -> Self {
        let mut lanes = [T::ZERO; LANES];
        lanes[..source.len()].copy_from_slice(source);
        Self(lanes)
    }

    #[inline(always)]
    fn load_u8(source: &[u8; LANES]) -> Self {
        Self(from_fn(|i| T::from(f32::from(source[i]))))
    }

    #[inline(always)]
    fn store(self, target: &mut [T; LANES]) {
        *target = self.0;
    }

    #[inline(always)]
    fn store_part(self, target: &mut [T]) {
        target.copy_from_slice(&self.0[..target.len()]);
    }

    #[inline(always)]
    fn add_to(self, sums: &mut [f64; LANES]) {
        for (sum, lane) in sums.iter_mut().zip(self.0) {
            *sum += lane.into();
        }
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        Self(from_fn(|i| self.0[i] + other.0[i]))
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        Self(from_fn(|i| self.0[i] - other.0[i]))
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        Self(from_fn(|i| self.0[i] * other.0[i]))
    }

    #[inline(always)]
    fn div(self, other: Self) -> Self {
        Self(from_fn(|i| self.0[i] / other.0[i]))
    }

    #[inline(always)]
    fn fma(self, factor: Self, term: Self) -> Self {
        Self(from_fn(|i| self.0[i].fma(factor.0[i], term.0[i])))
    }

    #[inline(always)]
    fn sqrt(self) -> Self {
        Self(from_fn(|i| self.0[i].sqrt()))
    }

    #[inline(always)]
    fn abs(self) -> Self {
        Self(self.0.map(T::abs))
    }

    #[inline(always)]
    fn at_most(self, limit: Self) -> Self {
        Self(from_fn(|i| if limit.0[i] < self.0[i] { limit.0[i] } else { self.0[i] }))
    }

    #[inline(always)]
    fn at_least(self, limit: Self) -> Self {
        Self(from_fn(|i| if limit.0[i] > self.0[i] { limit.0[i] } else { self.0[i] }))
    }

    #[inline(always)]
    fn select_within(self, limit: Self, yes: Self, no: Self) -> Self {
        Self(from_fn(|i| {
            let inside = self.0[i] <= limit.0[i] && self.0[i] >= T::ZERO - limit.0[i];
            if inside { yes.0[i] } else { no.0[i] }
        }))
    }

    #[inline(always)]
    fn select_above(self, other: Self, yes: Self, no: Self) -> Self {
        Self(from_fn(|i| if self.0[i] > other.0[i] { yes.0[i] } else { no.0[i] }))
    }

    #[inline(always)]
    fn exponent(self) -> Self {
        Self(self.0.map(T::exponent))
    }

    #[inline(always)]
    fn power_of_two(self) -> Self {
        let [smallest, largest] = T::EXPONENTS;
        let n = self.at_most(Self::splat(largest)).at_least(Self::splat(smallest));
        Self(n.0.map(T::power_of_two))
    }

    #[inline(always)]
    fn scale(self, n: Self) -> Self {
        Self(from_fn(|i| {
            let (first, second) = n.0[i].power_of_two_halves();
            self.0[i] * first * second
        }))
    }
}

impl Lanes<u32> {
    /// The high and low words of the 64-bit products.
    #[inline(always)]
    fn multiply_wide(self, factor: u32) -> (Self, Self) {
        let product = |i: usize| u64::from(self.0[i]) * u64::from(factor);
        (Self(from_fn(|i| (product(i) >> 32) as u32)), Self(from_fn(|i| self.0[i].wrapping_mul(factor))))
    }

    /// The words of both, next to each other: of the even lanes, and of the odd ones.
    #[inline(always)]
    fn beside(self, other: Self) -> [Self; 2] {
        [0, 1].map(|odd| {
            Self(from_fn(|i| {
                let source = if i % 2 == 0 { &self } else { &other };
                source.0[i / 2 * 2 + odd]
            }))
        })
    }
}

/// The words in pairs, see [`Words::last_round`].
#[inline(always)]
fn pairs([a, b, c, d]: [Lanes<u32>; 4]) -> [[Lanes<u32>; 2]; 2] {
    let ([even_first, odd_first], [even_second, odd_second]) = (a.beside(c), b.beside(d));
    [[even_first, even_second], [odd_first, odd_second]]
}

impl Words for Lanes<u32> {
    type Floats = Lanes<f32>;

    #[inline(always)]
    fn splat(value: u32) -> Self {
        Self([value; LANES])
    }

    #[inline(always)]
    fn load(source: &[u32; LANES]) -> Self {
        Self(*source)
    }

    #[inline(always)]
    fn repeat(values: [u32; 4]) -> Self {
        Self(from_fn(|i| values[i % 4]))
    }

    #[inline(always)]
    fn load_u8(source: &[u8; LANES]) -> Self {
        Self(source.map(u32::from))
    }

    #[inline(always)]
    fn load_u16(source: &[u16; LANES]) -> Self {
        Self(source.map(u32::from))
    }

    #[inline(always)]
    fn store_u16(self, target: &mut [u16; LANES]) {
        *target = self.0.map(|word| word as u16);
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        Self(from_fn(|i| self.0[i].wrapping_add(other.0[i])))
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        Self(from_fn(|i| self.0[i].wrapping_sub(other.0[i])))
    }

    #[inline(always)]
    fn and(self, other: Self) -> Self {
        Self(from_fn(|i| self.0[i] & other.0[i]))
    }

    #[inline(always)]
    fn xor(self, other: Self) -> Self {
        Self(from_fn(|i| self.0[i] ^ other.0[i]))
    }

    #[inline(always)]
    fn shift_right<const N: u32>(self) -> Self {
        Self(from_fn(|i| self.0[i] >> N))
    }

    #[inline(always)]
    fn shift_left<const N: u32>(self) -> Self {
        Self(from_fn(|i| self.0[i] << N))
    }

    #[inline(always)]
    fn multiply(self, factor: u32) -> Self {
        Self(self.0.map(|word| word.wrapping_mul(factor)))
    }

    type Rounds = [Self; 4];

    #[inline(always)]
    fn begin_rounds(words: [Self; 4]) -> [Self; 4] {
        words
    }

    #[inline(always)]
    fn begin_rounds_of_row(first_words: Self, row: &RowStart) -> [Self; 4] {
        let (high0, low0) = first_words.multiply_wide(MULTIPLIERS[0]);
        let (high1, low1) = high0.xor(Self::splat(row.first)).multiply_wide(MULTIPLIERS[1]);
        [high1.xor(Self::splat(row.second)), low1, low0.xor(Self::splat(row.third)), Self::splat(row.fourth)]
    }

    #[inline(always)]
    fn round([c0, c1, c2, c3]: [Self; 4], key: [u32; 2]) -> [Self; 4] {
        let (high0, low0) = c0.multiply_wide(MULTIPLIERS[0]);
        let (high1, low1) = c2.multiply_wide(MULTIPLIERS[1]);
        [high1.xor(c1).xor(Self::splat(key[0])), low1, high0.xor(c3).xor(Self::splat(key[1])), low0]
    }

    #[inline(always)]
    fn last_round(state: [Self; 4], key: [u32; 2]) -> [[Self; 2]; 2] {
        pairs(Self::round(state, key))
    }

    const BLOCK_BY_BLOCK: bool = true;

    #[inline(always)]
    fn last_rounds([mut a, mut b, mut c, mut d]: [Self; 4], keys: &[[u32; 2]]) -> [[Self; 2]; 2] {
        for i in 0..LANES {
            [a.0[i], b.0[i], c.0[i], d.0[i]] = rounds([a.0[i], b.0[i], c.0[i], d.0[i]], keys);
        }
        pairs([a, b, c, d])
    }

    #[inline(always)]
    fn weave(first: Lanes<f32>, second: Lanes<f32>) -> [Lanes<f32>; 2] {
        [0, 2].map(|from| {
            Lanes(from_fn(|i| {
                let source = if i % 2 == 0 { &first } else { &second };
                source.0[i / 4 * 4 + from + i % 4 / 2]
            }))
        })
    }

    #[inline(always)]
    fn signed_to_floats(self) -> Lanes<f32> {
        Lanes(from_fn(|i| self.0[i] as i32 as f32))
    }

    #[inline(always)]
    fn fraction(self) -> (Lanes<f32>, Lanes<f32>) {
        let bits = Self(from_fn(|i| (self.0[i] as f32 + 0.5).to_bits()));
        let exponent = Self(from_fn(|i| (bits.0[i].wrapping_sub(BELOW_FRACTION) as i32 >> 23) as u32));
        let power = exponent.shift_left::<23>().add(Self::splat(32 << 23));
        (bits.sub(power).to_floats(), exponent.signed_to_floats())
    }

    #[inline(always)]
    fn from_bits(floats: Lanes<f32>) -> Self {
        Self(from_fn(|i| floats.0[i].to_bits()))
    }

    #[inline(always)]
    fn to_floats(self) -> Lanes<f32> {
        Lanes(from_fn(|i| f32::from_bits(self.0[i])))
    }

    #[inline(always)]
    fn select_below(self, other: Self, yes: Lanes<f32>, no: Lanes<f32>) -> Lanes<f32> {
        Lanes(from_fn(|i| if (self.0[i] as i32) < other.0[i] as i32 { yes.0[i] } else { no.0[i] }))
    }

    #[inline(always)]
    fn load_f16(source: &[u16; LANES]) -> Lanes<f32> {
        Lanes(source.map(|bits| half::f16::from_bits(bits).to_f32()))
    }

    #[inline(always)]
    fn store_f16(floats: Lanes<f32>, target: &mut [u16; LANES]) {
        *target = floats.0.map(|value| half::f16::from_f32(value).to_bits());
    }
}

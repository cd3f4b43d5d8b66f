//! Lanes as plain arrays: every architecture, vectorised by the compiler where it can.

use super::{Floats, LANES, Scalar, Vectors, Words};
use core::array::from_fn;

/// The level that needs no instruction-set extension.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Portable;

impl Vectors for Portable {
    type F32 = Lanes<f32>;
    type F64 = Lanes<f64>;
    type U32 = Lanes<u32>;
}

/// Sixteen values in an array.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct Lanes<T>([T; LANES]);

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
    fn load_f32(source: &[f32; LANES]) -> Self {
        Self(from_fn(|i| source[i].into()))
    }

    #[inline(always)]
    fn store(self, target: &mut [T; LANES]) {
        *target = self.0;
    }

    #[inline(always)]
    fn to_f64(self) -> [f64; LANES] {
        from_fn(|i| self.0[i].into())
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
    fn fma(self, factor: Self, term: Self) -> Self {
        Self(from_fn(|i| self.0[i].fma(factor.0[i], term.0[i])))
    }

    #[inline(always)]
    fn sqrt(self) -> Self {
        Self(from_fn(|i| self.0[i].sqrt()))
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
    fn power_of_two(self) -> Self {
        Self(from_fn(|i| self.0[i].power_of_two()))
    }

    #[inline(always)]
    fn power_of_two_halves(self) -> (Self, Self) {
        (
            Self(from_fn(|i| self.0[i].power_of_two_halves().0)),
            Self(from_fn(|i| self.0[i].power_of_two_halves().1)),
        )
    }
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
    fn shift_right<const N: i32>(self) -> Self {
        Self(from_fn(|i| self.0[i] >> N))
    }

    #[inline(always)]
    fn shift_right_signed<const N: i32>(self) -> Self {
        Self(from_fn(|i| (self.0[i] as i32 >> N) as u32))
    }

    #[inline(always)]
    fn shift_left<const N: i32>(self) -> Self {
        Self(from_fn(|i| self.0[i] << N))
    }

    #[inline(always)]
    fn multiply_wide(self, factor: u32) -> (Self, Self) {
        let product = |i: usize| u64::from(self.0[i]) * u64::from(factor);
        (Self(from_fn(|i| (product(i) >> 32) as u32)), Self(from_fn(|i| self.0[i].wrapping_mul(factor))))
    }

    #[inline(always)]
    fn signed_to_floats(self) -> Lanes<f32> {
        Lanes(from_fn(|i| self.0[i] as i32 as f32))
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
    fn select_by_sign(self, yes: Lanes<f32>, no: Lanes<f32>) -> Lanes<f32> {
        Lanes(from_fn(|i| if (self.0[i] as i32) < 0 { yes.0[i] } else { no.0[i] }))
    }

    #[inline(always)]
    fn store_interleaved(parts: [Lanes<f32>; 4], target: &mut [f32; 4 * LANES]) {
        for i in 0..LANES {
            for j in 0..4 {
                target[4 * i + j] = parts[j].0[i];
            }
        }
    }
}

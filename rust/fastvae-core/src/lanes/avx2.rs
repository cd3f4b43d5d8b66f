//! Lanes as pairs of 256-bit registers, for x86-64 processors with AVX2 and FMA.
//!
//! Every method is a handful of intrinsics that only compute on registers or on whole arrays behind references;
//! what makes them sound is that the processor has the instructions. [`Avx2`] vectors are only ever used
//! inside [`crate::level::dispatch`], after it has found AVX2 and FMA.

use super::portable::Lanes;
use super::{Floats, LANES, Scalar, Vectors, Words};
#[allow(clippy::wildcard_imports, reason = "the intrinsics are one vocabulary")]
use core::arch::x86_64::*;
use core::array::from_fn;

/// The level with AVX2 and FMA (and F16C, which every such processor has).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx2;

impl Vectors for Avx2 {
    type F32 = F32;
    // Arrays compile to the same vector instructions inside a function that enables them.
    type F64 = Lanes<f64>;
    type U32 = U32;
}

/// Sixteen `f32` in two registers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct F32([__m256; 2]);

/// Sixteen words in two registers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct U32([__m256i; 2]);

/// Applies intrinsics to both halves.
macro_rules! halves {
    ($type:ident, |$i:ident| $body:expr) => {
        // SAFETY: the processor has AVX2 and FMA (module documentation); the intrinsics used are pure register
        // operations.
        unsafe {
            $type([
                {
                    let $i = 0;
                    $body
                },
                {
                    let $i = 1;
                    $body
                },
            ])
        }
    };
}

impl Floats for F32 {
    type Scalar = f32;

    #[inline(always)]
    fn splat(value: f32) -> Self {
        halves!(F32, |_i| _mm256_set1_ps(value))
    }

    #[inline(always)]
    fn load(source: &[f32; LANES]) -> Self {
        // SAFETY: the processor has AVX2 (module documentation); both reads of eight lie within the sixteen.
        unsafe {
            let first = source.as_ptr();
            Self([_mm256_loadu_ps(first), _mm256_loadu_ps(first.add(8))])
        }
    }

    #[inline(always)]
    fn load_f32(source: &[f32; LANES]) -> Self {
        Self::load(source)
    }

    #[inline(always)]
    fn store(self, target: &mut [f32; LANES]) {
        // SAFETY: the processor has AVX2 (module documentation); both writes of eight lie within the sixteen.
        unsafe {
            let first = target.as_mut_ptr();
            _mm256_storeu_ps(first, self.0[0]);
            _mm256_storeu_ps(first.add(8), self.0[1]);
        }
    }

    #[inline(always)]
    fn to_f64(self) -> [f64; LANES] {
        let mut lanes = [0.0; LANES];
        self.store(&mut lanes);
        from_fn(|i| f64::from(lanes[i]))
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        halves!(F32, |i| _mm256_add_ps(self.0[i], other.0[i]))
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        halves!(F32, |i| _mm256_sub_ps(self.0[i], other.0[i]))
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        halves!(F32, |i| _mm256_mul_ps(self.0[i], other.0[i]))
    }

    #[inline(always)]
    fn fma(self, factor: Self, term: Self) -> Self {
        halves!(F32, |i| _mm256_fmadd_ps(self.0[i], factor.0[i], term.0[i]))
    }

    #[inline(always)]
    fn sqrt(self) -> Self {
        halves!(F32, |i| _mm256_sqrt_ps(self.0[i]))
    }

    // The instructions give their second operand when either is NaN.
    #[inline(always)]
    fn at_most(self, limit: Self) -> Self {
        halves!(F32, |i| _mm256_min_ps(limit.0[i], self.0[i]))
    }

    #[inline(always)]
    fn at_least(self, limit: Self) -> Self {
        halves!(F32, |i| _mm256_max_ps(limit.0[i], self.0[i]))
    }

    #[inline(always)]
    fn select_within(self, limit: Self, yes: Self, no: Self) -> Self {
        halves!(F32, |i| {
            let magnitude = _mm256_andnot_ps(_mm256_set1_ps(-0.0), self.0[i]);
            let inside = _mm256_cmp_ps::<_CMP_LE_OQ>(magnitude, limit.0[i]);
            _mm256_blendv_ps(no.0[i], yes.0[i], inside)
        })
    }

    #[inline(always)]
    fn power_of_two(self) -> Self {
        F32([scale(integer(self.0[0])), scale(integer(self.0[1]))])
    }

    #[inline(always)]
    fn power_of_two_halves(self) -> (Self, Self) {
        (
            halves!(F32, |i| scale(_mm256_srai_epi32::<1>(integer(self.0[i])))),
            halves!(F32, |i| {
                let n = integer(self.0[i]);
                scale(_mm256_sub_epi32(n, _mm256_srai_epi32::<1>(n)))
            }),
        )
    }
}

/// The integers in integral lanes.
#[inline(always)]
fn integer(lanes: __m256) -> __m256i {
    // SAFETY: the processor has AVX2 (module documentation).
    unsafe {
        let magic = _mm256_set1_ps(f32::MAGIC);
        _mm256_sub_epi32(_mm256_castps_si256(_mm256_add_ps(lanes, magic)), _mm256_castps_si256(magic))
    }
}

/// 2^n by way of the exponent bits.
#[inline(always)]
fn scale(n: __m256i) -> __m256 {
    // SAFETY: the processor has AVX2 (module documentation).
    unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(n, _mm256_set1_epi32(127)))) }
}

impl Words for U32 {
    type Floats = F32;

    #[inline(always)]
    fn splat(value: u32) -> Self {
        halves!(U32, |_i| _mm256_set1_epi32(value as i32))
    }

    #[inline(always)]
    #[allow(clippy::cast_ptr_alignment, reason = "the unaligned load takes any address")]
    fn load(source: &[u32; LANES]) -> Self {
        // SAFETY: the processor has AVX2 (module documentation); both reads of eight lie within the sixteen.
        unsafe {
            let first = source.as_ptr().cast::<__m256i>();
            Self([_mm256_loadu_si256(first), _mm256_loadu_si256(first.add(1))])
        }
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        halves!(U32, |i| _mm256_add_epi32(self.0[i], other.0[i]))
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        halves!(U32, |i| _mm256_sub_epi32(self.0[i], other.0[i]))
    }

    #[inline(always)]
    fn and(self, other: Self) -> Self {
        halves!(U32, |i| _mm256_and_si256(self.0[i], other.0[i]))
    }

    #[inline(always)]
    fn xor(self, other: Self) -> Self {
        halves!(U32, |i| _mm256_xor_si256(self.0[i], other.0[i]))
    }

    #[inline(always)]
    fn shift_right<const N: i32>(self) -> Self {
        halves!(U32, |i| _mm256_srli_epi32::<N>(self.0[i]))
    }

    #[inline(always)]
    fn shift_right_signed<const N: i32>(self) -> Self {
        halves!(U32, |i| _mm256_srai_epi32::<N>(self.0[i]))
    }

    #[inline(always)]
    fn shift_left<const N: i32>(self) -> Self {
        halves!(U32, |i| _mm256_slli_epi32::<N>(self.0[i]))
    }

    #[inline(always)]
    fn multiply_wide(self, factor: u32) -> (Self, Self) {
        // The instruction multiplies the even lanes; the odd ones are moved there and back.
        let products = |i: usize| {
            // SAFETY: the processor has AVX2 (module documentation).
            unsafe {
                let by = _mm256_set1_epi32(factor as i32);
                let even = _mm256_mul_epu32(self.0[i], by);
                let odd = _mm256_mul_epu32(_mm256_srli_epi64::<32>(self.0[i]), by);
                (
                    _mm256_blend_epi32::<0b1010_1010>(_mm256_srli_epi64::<32>(even), odd),
                    _mm256_blend_epi32::<0b1010_1010>(even, _mm256_slli_epi64::<32>(odd)),
                )
            }
        };
        let (first, second) = (products(0), products(1));
        (Self([first.0, second.0]), Self([first.1, second.1]))
    }

    #[inline(always)]
    fn signed_to_floats(self) -> F32 {
        halves!(F32, |i| _mm256_cvtepi32_ps(self.0[i]))
    }

    #[inline(always)]
    fn from_bits(floats: F32) -> Self {
        halves!(U32, |i| _mm256_castps_si256(floats.0[i]))
    }

    #[inline(always)]
    fn to_floats(self) -> F32 {
        halves!(F32, |i| _mm256_castsi256_ps(self.0[i]))
    }

    #[inline(always)]
    fn select_by_sign(self, yes: F32, no: F32) -> F32 {
        halves!(F32, |i| _mm256_blendv_ps(no.0[i], yes.0[i], _mm256_castsi256_ps(self.0[i])))
    }

    #[inline(always)]
    fn store_interleaved(parts: [F32; 4], target: &mut [f32; 4 * LANES]) {
        let [F32(a), F32(b), F32(c), F32(d)] = parts;
        let (first, second) = target.split_at_mut(2 * LANES);
        for (i, half) in [first, second].into_iter().enumerate() {
            // SAFETY: the processor has AVX2 (module documentation); the four writes of eight lie within the
            // thirty-two elements of `half`.
            unsafe {
                let ab_low = _mm256_castps_pd(_mm256_unpacklo_ps(a[i], b[i]));
                let ab_high = _mm256_castps_pd(_mm256_unpackhi_ps(a[i], b[i]));
                let cd_low = _mm256_castps_pd(_mm256_unpacklo_ps(c[i], d[i]));
                let cd_high = _mm256_castps_pd(_mm256_unpackhi_ps(c[i], d[i]));
                // Blocks 0 | 4, 1 | 5, 2 | 6 and 3 | 7 in the two 128-bit parts.
                let b04 = _mm256_castpd_ps(_mm256_unpacklo_pd(ab_low, cd_low));
                let b15 = _mm256_castpd_ps(_mm256_unpackhi_pd(ab_low, cd_low));
                let b26 = _mm256_castpd_ps(_mm256_unpacklo_pd(ab_high, cd_high));
                let b37 = _mm256_castpd_ps(_mm256_unpackhi_pd(ab_high, cd_high));
                let to = half.as_mut_ptr();
                _mm256_storeu_ps(to, _mm256_permute2f128_ps::<0x20>(b04, b15));
                _mm256_storeu_ps(to.add(8), _mm256_permute2f128_ps::<0x20>(b26, b37));
                _mm256_storeu_ps(to.add(16), _mm256_permute2f128_ps::<0x31>(b04, b15));
                _mm256_storeu_ps(to.add(24), _mm256_permute2f128_ps::<0x31>(b26, b37));
            }
        }
    }
}

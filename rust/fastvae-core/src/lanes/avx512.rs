//! Lanes as one 512-bit register, for x86-64 processors with AVX-512 (F, BW, DQ and VL: Skylake-X and Zen 4 on).
//!
//! Every method is a handful of intrinsics that only compute on registers or on whole arrays behind references;
//! what makes them sound is that the processor has the instructions. [`Avx512`] vectors are only ever used
//! inside [`crate::level::dispatch`], after it has found them.

use super::portable::Lanes;
use super::{Floats, LANES, Vectors, Words};
#[allow(clippy::wildcard_imports, reason = "the intrinsics are one vocabulary")]
use core::arch::x86_64::*;

/// The level with AVX-512.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx512;

impl Vectors for Avx512 {
    type F32 = F32;
    // Arrays compile to the same vector instructions inside a function that enables them.
    type F64 = Lanes<f64>;
    type U32 = U32;
    const CHAINS: usize = 2;
    const WRITTEN_OUT: bool = true;

    #[inline(always)]
    fn widen(lanes: F32) -> Lanes<f64> {
        let mut narrow = Lanes::<f32>::splat(0.0);
        lanes.store(narrow.array_mut());
        narrow.widen()
    }

    #[inline(always)]
    fn prefetch<T>(values: &[T]) {
        super::avx2::prefetch(values);
    }
}

/// Sixteen `f32`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct F32(__m512);

/// Sixteen words.
#[derive(Clone, Copy, Debug)]
pub(crate) struct U32(__m512i);

/// The mask of the first lanes.
#[inline(always)]
fn first(lanes: usize) -> __mmask16 {
    debug_assert!(lanes < LANES);
    (1_u16 << lanes) - 1
}

/// An expression of intrinsics that compute on registers alone.
macro_rules! pure {
    ($body:expr) => {
        // SAFETY: the processor has AVX-512 (module documentation); the intrinsics used are pure register operations.
        unsafe { $body }
    };
}

impl Floats for F32 {
    type Scalar = f32;

    #[inline(always)]
    fn splat(value: f32) -> Self {
        Self(pure!(_mm512_set1_ps(value)))
    }

    #[inline(always)]
    fn load(source: &[f32; LANES]) -> Self {
        // SAFETY: the processor has AVX-512 (module documentation); the read of sixteen is the whole array.
        Self(unsafe { _mm512_loadu_ps(source.as_ptr()) })
    }

    #[inline(always)]
    fn load_part(source: &[f32]) -> Self {
        // SAFETY: the processor has AVX-512 (module documentation); lanes outside the mask are not read, and those
        // inside lie within the slice.
        Self(unsafe { _mm512_maskz_loadu_ps(first(source.len()), source.as_ptr()) })
    }

    #[inline(always)]
    fn load_u8(source: &[u8; LANES]) -> Self {
        U32::load_u8(source).signed_to_floats()
    }

    #[inline(always)]
    fn store(self, target: &mut [f32; LANES]) {
        // SAFETY: the processor has AVX-512 (module documentation); the write of sixteen is the whole array.
        unsafe { _mm512_storeu_ps(target.as_mut_ptr(), self.0) }
    }

    #[inline(always)]
    fn store_part(self, target: &mut [f32]) {
        // SAFETY: the processor has AVX-512 (module documentation); lanes outside the mask are not written, and
        // those inside lie within the slice.
        unsafe { _mm512_mask_storeu_ps(target.as_mut_ptr(), first(target.len()), self.0) }
    }

    #[inline(always)]
    fn add_to(self, sums: &mut [f64; LANES]) {
        // SAFETY: the processor has AVX-512 (module documentation); both halves of eight lie within the sixteen.
        unsafe {
            let (low, high) = (sums.as_mut_ptr(), sums.as_mut_ptr().add(8));
            let upper = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(self.0)));
            let lower = _mm512_castps512_ps256(self.0);
            _mm512_storeu_pd(low, _mm512_add_pd(_mm512_loadu_pd(low), _mm512_cvtps_pd(lower)));
            _mm512_storeu_pd(high, _mm512_add_pd(_mm512_loadu_pd(high), _mm512_cvtps_pd(upper)));
        }
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        Self(pure!(_mm512_add_ps(self.0, other.0)))
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        Self(pure!(_mm512_sub_ps(self.0, other.0)))
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        Self(pure!(_mm512_mul_ps(self.0, other.0)))
    }

    #[inline(always)]
    fn div(self, other: Self) -> Self {
        Self(pure!(_mm512_div_ps(self.0, other.0)))
    }

    #[inline(always)]
    fn fma(self, factor: Self, term: Self) -> Self {
        Self(pure!(_mm512_fmadd_ps(self.0, factor.0, term.0)))
    }

    #[inline(always)]
    fn sqrt(self) -> Self {
        Self(pure!(_mm512_sqrt_ps(self.0)))
    }

    #[inline(always)]
    fn abs(self) -> Self {
        Self(pure!(_mm512_abs_ps(self.0)))
    }

    // The instructions give their second operand when either is NaN.
    #[inline(always)]
    fn at_most(self, limit: Self) -> Self {
        Self(pure!(_mm512_min_ps(limit.0, self.0)))
    }

    #[inline(always)]
    fn at_least(self, limit: Self) -> Self {
        Self(pure!(_mm512_max_ps(limit.0, self.0)))
    }

    #[inline(always)]
    fn select_within(self, limit: Self, yes: Self, no: Self) -> Self {
        Self(pure!({
            let inside = _mm512_cmp_ps_mask::<_CMP_LE_OQ>(_mm512_abs_ps(self.0), limit.0);
            _mm512_mask_blend_ps(inside, no.0, yes.0)
        }))
    }

    #[inline(always)]
    fn select_above(self, other: Self, yes: Self, no: Self) -> Self {
        Self(pure!({
            let above = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(self.0, other.0);
            _mm512_mask_blend_ps(above, no.0, yes.0)
        }))
    }

    #[inline(always)]
    fn exponent(self) -> Self {
        Self(pure!(_mm512_getexp_ps(self.0)))
    }

    #[inline(always)]
    fn power_of_two(self) -> Self {
        Self::splat(1.0).scale(self)
    }

    #[inline(always)]
    fn scale(self, n: Self) -> Self {
        Self(pure!(_mm512_scalef_ps(self.0, n.0)))
    }
}

/// Sixteen words in the lower halves of 64-bit lanes, the even and the odd ones; the upper halves do not count.
///
/// The instruction that multiplies gives 64 bits for each even word. Words that stay apart between rounds cost
/// no instruction to bring together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sparse([__m512i; 2]);

impl Sparse {
    #[inline(always)]
    fn new(words: U32) -> Self {
        Self([words.0, pure!(_mm512_srli_epi64::<32>(words.0))])
    }

    #[inline(always)]
    fn multiply(self, factor: u32) -> Self {
        pure!({
            let by = _mm512_set1_epi32(factor as i32);
            Self([_mm512_mul_epu32(self.0[0], by), _mm512_mul_epu32(self.0[1], by)])
        })
    }

    #[inline(always)]
    fn high(self) -> Self {
        // As a move of floats: on some processors more units can do it than can shift.
        pure!({
            let (even, odd) = (_mm512_castsi512_ps(self.0[0]), _mm512_castsi512_ps(self.0[1]));
            Self([
                _mm512_castps_si512(_mm512_movehdup_ps(even)),
                _mm512_castps_si512(_mm512_movehdup_ps(odd)),
            ])
        })
    }

    /// Exclusive or with other words and a key.
    #[inline(always)]
    fn mix(self, other: Self, key: u32) -> Self {
        const PARITY: i32 = 0b1001_0110;
        pure!({
            let key = _mm512_set1_epi32(key as i32);
            Self([
                _mm512_ternarylogic_epi32::<PARITY>(self.0[0], other.0[0], key),
                _mm512_ternarylogic_epi32::<PARITY>(self.0[1], other.0[1], key),
            ])
        })
    }

    #[inline(always)]
    fn words(self) -> U32 {
        U32(pure!(_mm512_mask_blend_epi32(0xAAAA, self.0[0], _mm512_slli_epi64::<32>(self.0[1]))))
    }
}

impl Words for U32 {
    type Floats = F32;

    #[inline(always)]
    fn splat(value: u32) -> Self {
        Self(pure!(_mm512_set1_epi32(value as i32)))
    }

    #[inline(always)]
    fn load(source: &[u32; LANES]) -> Self {
        // SAFETY: the processor has AVX-512 (module documentation); the read of sixteen is the whole array.
        Self(unsafe { _mm512_loadu_si512(source.as_ptr().cast()) })
    }

    #[inline(always)]
    fn repeat(values: [u32; 4]) -> Self {
        let [a, b, c, d] = values.map(|value| value as i32);
        Self(pure!(_mm512_broadcast_i32x4(_mm_setr_epi32(a, b, c, d))))
    }

    #[inline(always)]
    fn load_u8(source: &[u8; LANES]) -> Self {
        // SAFETY: the processor has AVX-512 (module documentation); the read of sixteen bytes is the whole array.
        Self(unsafe { _mm512_cvtepu8_epi32(_mm_loadu_si128(source.as_ptr().cast())) })
    }

    #[inline(always)]
    fn load_u16(source: &[u16; LANES]) -> Self {
        // SAFETY: the processor has AVX-512 (module documentation); the read of sixteen is the whole array.
        Self(unsafe { _mm512_cvtepu16_epi32(_mm256_loadu_si256(source.as_ptr().cast())) })
    }

    #[inline(always)]
    fn store_u16(self, target: &mut [u16; LANES]) {
        // SAFETY: the processor has AVX-512 (module documentation); the write of sixteen is the whole array.
        unsafe { _mm256_storeu_si256(target.as_mut_ptr().cast(), _mm512_cvtepi32_epi16(self.0)) }
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        Self(pure!(_mm512_add_epi32(self.0, other.0)))
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        Self(pure!(_mm512_sub_epi32(self.0, other.0)))
    }

    #[inline(always)]
    fn and(self, other: Self) -> Self {
        Self(pure!(_mm512_and_si512(self.0, other.0)))
    }

    #[inline(always)]
    fn xor(self, other: Self) -> Self {
        Self(pure!(_mm512_xor_si512(self.0, other.0)))
    }

    #[inline(always)]
    fn shift_right<const N: u32>(self) -> Self {
        Self(pure!(_mm512_srli_epi32::<N>(self.0)))
    }

    #[inline(always)]
    fn shift_right_signed<const N: u32>(self) -> Self {
        Self(pure!(_mm512_srai_epi32::<N>(self.0)))
    }

    #[inline(always)]
    fn shift_left<const N: u32>(self) -> Self {
        Self(pure!(_mm512_slli_epi32::<N>(self.0)))
    }

    #[inline(always)]
    fn multiply(self, factor: u32) -> Self {
        Self(pure!(_mm512_mullo_epi32(self.0, _mm512_set1_epi32(factor as i32))))
    }

    type Rounds = [Sparse; 4];

    #[inline(always)]
    fn begin_rounds([a, b, c, d]: [Self; 4]) -> [Sparse; 4] {
        [Sparse::new(a), Sparse::new(b), Sparse::new(c), Sparse::new(d)]
    }

    #[inline(always)]
    fn round([c0, c1, c2, c3]: [Sparse; 4], multipliers: [u32; 2], key: [u32; 2]) -> [Sparse; 4] {
        let (product0, product1) = (c0.multiply(multipliers[0]), c2.multiply(multipliers[1]));
        [product1.high().mix(c1, key[0]), product1, product0.high().mix(c3, key[1]), product0]
    }

    #[inline(always)]
    fn end_rounds([a, b, c, d]: [Sparse; 4]) -> [Self; 4] {
        [a.words(), b.words(), c.words(), d.words()]
    }

    #[inline(always)]
    fn signed_to_floats(self) -> F32 {
        F32(pure!(_mm512_cvtepi32_ps(self.0)))
    }

    #[inline(always)]
    fn from_bits(floats: F32) -> Self {
        Self(pure!(_mm512_castps_si512(floats.0)))
    }

    #[inline(always)]
    fn to_floats(self) -> F32 {
        F32(pure!(_mm512_castsi512_ps(self.0)))
    }

    #[inline(always)]
    fn select_by_sign(self, yes: F32, no: F32) -> F32 {
        F32(pure!(_mm512_mask_blend_ps(_mm512_movepi32_mask(self.0), no.0, yes.0)))
    }

    #[inline(always)]
    fn select_below(self, other: Self, yes: F32, no: F32) -> F32 {
        F32(pure!(_mm512_mask_blend_ps(_mm512_cmplt_epi32_mask(self.0, other.0), no.0, yes.0)))
    }

    #[inline(always)]
    fn transpose([a, b, c, d]: [F32; 4]) -> [F32; 4] {
        pure!({
            let ab_low = _mm512_castps_pd(_mm512_unpacklo_ps(a.0, b.0));
            let ab_high = _mm512_castps_pd(_mm512_unpackhi_ps(a.0, b.0));
            let cd_low = _mm512_castps_pd(_mm512_unpacklo_ps(c.0, d.0));
            let cd_high = _mm512_castps_pd(_mm512_unpackhi_ps(c.0, d.0));
            [
                F32(_mm512_castpd_ps(_mm512_unpacklo_pd(ab_low, cd_low))),
                F32(_mm512_castpd_ps(_mm512_unpackhi_pd(ab_low, cd_low))),
                F32(_mm512_castpd_ps(_mm512_unpacklo_pd(ab_high, cd_high))),
                F32(_mm512_castpd_ps(_mm512_unpackhi_pd(ab_high, cd_high))),
            ]
        })
    }

    #[inline(always)]
    fn load_f16(source: &[u16; LANES]) -> F32 {
        // SAFETY: the processor has AVX-512 (module documentation); the read of sixteen is the whole array.
        F32(unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(source.as_ptr().cast())) })
    }

    #[inline(always)]
    fn store_f16(floats: F32, target: &mut [u16; LANES]) {
        // SAFETY: the processor has AVX-512 (module documentation); the write of sixteen is the whole array.
        unsafe {
            let rounded = _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(floats.0);
            _mm256_storeu_si256(target.as_mut_ptr().cast(), rounded);
        }
    }
}

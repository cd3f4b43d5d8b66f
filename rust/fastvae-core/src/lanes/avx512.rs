//! Lanes as one 512-bit register, for x86-64 processors with AVX-512 (F, BW, DQ and VL: Skylake-X and Zen 4 on).
//!
//! Every method is a handful of intrinsics that only compute on registers or on whole arrays behind references;
//! what makes them sound is that the processor has the instructions. [`Avx512`] vectors are only ever used
//! inside [`crate::level::dispatch`], after it has found them.

#![allow(unsafe_code)]

use super::portable::Lanes;
use super::{BELOW_FRACTION, Floats, LANES, RowStart, Scalar, Vectors, Words};
use crate::philox::MULTIPLIERS;
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
    const ROUNDS_BESIDE: bool = true;
    const WRITTEN_OUT: bool = true;
    const MANY_SUMS: bool = true;

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

/// The same register, computed where this stands.
#[inline]
#[target_feature(enable = "avx512f")]
fn here(mut register: __m512) -> __m512 {
    // SAFETY: no instruction at all.
    unsafe {
        core::arch::asm!("/* {0} */", inout(zmm_reg) register, options(nomem, nostack, preserves_flags));
    }
    register
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
    fn in_step(self) -> Self {
        Self(pure!(here(self.0)))
    }

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
    fn transposed(vectors: [Self; LANES]) -> [Self; LANES] {
        let mut rows = vectors;
        // Four by four within each quarter of the registers: of vectors 4 i to 4 i + 3, then vector 4 i + j has lanes
        // j, 4 + j, 8 + j and 12 + j of each, a quarter for each.
        let mut i = 0;
        while i < LANES {
            let [a, b, c, d] = [rows[i].0, rows[i + 1].0, rows[i + 2].0, rows[i + 3].0];
            pure!({
                let (ab, cd) = (_mm512_unpacklo_ps(a, b), _mm512_unpacklo_ps(c, d));
                rows[i] = Self(_mm512_shuffle_ps::<0b01_00_01_00>(ab, cd));
                rows[i + 1] = Self(_mm512_shuffle_ps::<0b11_10_11_10>(ab, cd));
                let (ab, cd) = (_mm512_unpackhi_ps(a, b), _mm512_unpackhi_ps(c, d));
                rows[i + 2] = Self(_mm512_shuffle_ps::<0b01_00_01_00>(ab, cd));
                rows[i + 3] = Self(_mm512_shuffle_ps::<0b11_10_11_10>(ab, cd));
            });
            i += 4;
        }
        // Four by four quarters.
        let mut columns = rows;
        let mut j = 0;
        while j < 4 {
            let [a, b, c, d] = [rows[j].0, rows[4 + j].0, rows[8 + j].0, rows[12 + j].0];
            pure!({
                let even = _mm512_shuffle_f32x4::<0b10_00_10_00>(a, b);
                let other = _mm512_shuffle_f32x4::<0b10_00_10_00>(c, d);
                columns[j] = Self(_mm512_shuffle_f32x4::<0b10_00_10_00>(even, other));
                columns[8 + j] = Self(_mm512_shuffle_f32x4::<0b11_01_11_01>(even, other));
                let odd = _mm512_shuffle_f32x4::<0b11_01_11_01>(a, b);
                let other = _mm512_shuffle_f32x4::<0b11_01_11_01>(c, d);
                columns[4 + j] = Self(_mm512_shuffle_f32x4::<0b10_00_10_00>(odd, other));
                columns[12 + j] = Self(_mm512_shuffle_f32x4::<0b11_01_11_01>(odd, other));
            });
            j += 1;
        }
        columns
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
        let [_, largest] = f32::EXPONENTS;
        Self::splat(1.0).scale(self.at_most(Self::splat(largest)))
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

    /// Exclusive or with a word.
    #[inline(always)]
    fn with(self, word: u32) -> Self {
        pure!({
            let word = _mm512_set1_epi32(word as i32);
            Self([_mm512_xor_si512(self.0[0], word), _mm512_xor_si512(self.0[1], word)])
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

    #[inline(always)]
    fn in_step(self) -> Self {
        pure!({
            let [even, odd] = self.0;
            Self([
                _mm512_castps_si512(here(_mm512_castsi512_ps(even))),
                _mm512_castps_si512(here(_mm512_castsi512_ps(odd))),
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

    /// The words of both, next to each other: of the even lanes, and of the odd ones.
    #[inline(always)]
    fn beside(self, other: Self) -> [U32; 2] {
        pure!([U32(lower(self.0[0], other.0[0])), U32(lower(self.0[1], other.0[1]))])
    }

    /// The upper halves of both, likewise.
    #[inline(always)]
    fn high_beside(self, other: Self) -> [U32; 2] {
        pure!([U32(upper(self.0[0], other.0[0])), U32(upper(self.0[1], other.0[1]))])
    }
}

/// The even words of both, in turn: of the intrinsics for it the compiler makes two instructions.
#[inline]
#[target_feature(enable = "avx512f")]
fn lower(mut left: __m512i, right: __m512i) -> __m512i {
    // SAFETY: a move between registers.
    unsafe {
        core::arch::asm!(
            "vmovsldup {left}{{{odd}}}, {right}",
            left = inout(zmm_reg) left, right = in(zmm_reg) right, odd = in(kreg) ODD,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    left
}

/// The odd words of both, likewise.
#[inline]
#[target_feature(enable = "avx512f")]
fn upper(left: __m512i, mut right: __m512i) -> __m512i {
    // SAFETY: a move between registers.
    unsafe {
        core::arch::asm!(
            "vmovshdup {right}{{{even}}}, {left}",
            right = inout(zmm_reg) right, left = in(zmm_reg) left, even = in(kreg) EVEN,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    right
}

/// Every other lane, from the first one on.
const EVEN: __mmask16 = 0x5555;
/// Every other lane, from the second one on.
const ODD: __mmask16 = 0xAAAA;

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
    fn begin_rounds_of_row(first_words: Self, row: &RowStart) -> [Sparse; 4] {
        let product0 = Sparse::new(first_words).multiply(MULTIPLIERS[0]);
        let product1 = product0.high().with(row.first).multiply(MULTIPLIERS[1]);
        let fourth = Self::splat(row.fourth).0;
        [
            product1.high().with(row.second).in_step(),
            product1,
            product0.with(row.third).in_step(),
            Sparse([fourth, fourth]),
        ]
    }

    #[inline(always)]
    fn round([c0, c1, c2, c3]: [Sparse; 4], key: [u32; 2]) -> [Sparse; 4] {
        let (product0, product1) = (c0.multiply(MULTIPLIERS[0]), c2.multiply(MULTIPLIERS[1]));
        [
            product1.high().mix(c1, key[0]).in_step(),
            product1,
            product0.high().mix(c3, key[1]).in_step(),
            product0,
        ]
    }

    #[inline(always)]
    fn last_round([c0, c1, c2, c3]: [Sparse; 4], key: [u32; 2]) -> [[Self; 2]; 2] {
        let (product0, product1) = (c0.multiply(MULTIPLIERS[0]), c2.multiply(MULTIPLIERS[1]));
        let keys = Self(pure!(_mm512_mask_set1_epi32(_mm512_set1_epi32(key[0] as i32), ODD, key[1] as i32)));
        let [even_high, odd_high] = product1.high_beside(product0);
        let [even, odd] = c1.beside(c3);
        let [even_low, odd_low] = product1.beside(product0);
        // Else the last exclusive or is left for where the word is used, and is an instruction more.
        let [even, odd] =
            Sparse([even_high.xor(even).xor(keys).0, odd_high.xor(odd).xor(keys).0]).in_step().0;
        [[Self(even), even_low], [Self(odd), odd_low]]
    }

    #[inline(always)]
    fn weave(first: F32, second: F32) -> [F32; 2] {
        pure!([F32(_mm512_unpacklo_ps(first.0, second.0)), F32(_mm512_unpackhi_ps(first.0, second.0)),])
    }

    #[inline(always)]
    fn signed_to_floats(self) -> F32 {
        F32(pure!(_mm512_cvtepi32_ps(self.0)))
    }

    #[inline(always)]
    fn fraction(self) -> (F32, F32) {
        pure!({
            let number = _mm512_add_ps(_mm512_cvtepu32_ps(self.0), _mm512_set1_ps(0.5));
            let one = _mm512_set1_epi32(1.0_f32.to_bits() as i32);
            let below = _mm512_sub_epi32(one, _mm512_set1_epi32(BELOW_FRACTION as i32));
            let counted = _mm512_add_epi32(_mm512_castps_si512(number), below);
            (
                F32(_mm512_getmant_ps::<_MM_MANT_NORM_P75_1P5, _MM_MANT_SIGN_SRC>(number)),
                F32(_mm512_getexp_ps(_mm512_castsi512_ps(counted))),
            )
        })
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
    fn select_below(self, other: Self, yes: F32, no: F32) -> F32 {
        F32(pure!(_mm512_mask_blend_ps(_mm512_cmplt_epi32_mask(self.0, other.0), no.0, yes.0)))
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

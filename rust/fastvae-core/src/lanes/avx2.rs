//! Lanes as pairs of 256-bit registers, for x86-64 processors with AVX2 and FMA.
//!
//! Every method is a handful of intrinsics that only compute on registers or on whole arrays behind references;
//! what makes them sound is that the processor has the instructions. [`Avx2`] vectors are only ever used
//! inside [`crate::level::dispatch`], after it has found AVX2, FMA and F16C.

#![allow(unsafe_code)]

use super::portable::Lanes;
use super::{BELOW_FRACTION, Floats, LANES, RowStart, Scalar, Vectors, Words};
use crate::philox::MULTIPLIERS;
#[allow(clippy::wildcard_imports, reason = "the intrinsics are one vocabulary")]
use core::arch::x86_64::*;

/// The level with AVX2 and FMA (and F16C, which every such processor has).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx2;

impl Vectors for Avx2 {
    type F32 = F32;
    // Arrays compile to the same vector instructions inside a function that enables them.
    type F64 = Lanes<f64>;
    type U32 = U32;
    // Two registers to a vector: two chains alone fill the sixteen there are.
    const ROUNDS_BESIDE: bool = false;
    const WRITTEN_OUT: bool = true;
    const MANY_SUMS: bool = false;

    #[inline(always)]
    fn widen(lanes: F32) -> Lanes<f64> {
        let mut narrow = Lanes::<f32>::splat(0.0);
        lanes.store(narrow.array_mut());
        narrow.widen()
    }

    #[inline(always)]
    fn prefetch<T>(values: &[T]) {
        prefetch(values);
    }
}

/// Asks for every cache line of a slice.
#[inline(always)]
pub(super) fn prefetch<T>(values: &[T]) {
    let first = values.as_ptr().cast::<i8>();
    for offset in (0..size_of_val(values)).step_by(CACHE_LINE) {
        // SAFETY: the offset lies within the slice, and a prefetch (SSE, which every x86-64 processor has) is a hint
        // that reads nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(first.add(offset)) }
    }
}

/// Bytes that come from memory together.
const CACHE_LINE: usize = 64;

/// Sixteen words, of which the first ones are marked.
#[inline(always)]
fn marks(count: usize) -> &'static [u32; LANES] {
    static MARKS: [u32; 2 * LANES] = {
        let mut words = [0; 2 * LANES];
        let mut i = 0;
        while i < LANES {
            words[i] = u32::MAX;
            i += 1;
        }
        words
    };
    MARKS[LANES - count..].first_chunk().expect("as many words again")
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

/// Eight by eight: the first lane of each register, then the second of each, and so on.
#[inline(always)]
fn transposed(rows: [__m256; 8]) -> [__m256; 8] {
    let mut pairs = rows;
    let mut columns = rows;
    // SAFETY: the processor has AVX (module documentation); the intrinsics used are pure register operations.
    unsafe {
        // Four by four within each half: of registers 4 i to 4 i + 3, then 4 i + j has lanes j and 4 + j of each.
        let mut i = 0;
        while i < 8 {
            let [a, b, c, d] = [rows[i], rows[i + 1], rows[i + 2], rows[i + 3]];
            let (ab, cd) = (_mm256_unpacklo_ps(a, b), _mm256_unpacklo_ps(c, d));
            pairs[i] = _mm256_shuffle_ps::<0b01_00_01_00>(ab, cd);
            pairs[i + 1] = _mm256_shuffle_ps::<0b11_10_11_10>(ab, cd);
            let (ab, cd) = (_mm256_unpackhi_ps(a, b), _mm256_unpackhi_ps(c, d));
            pairs[i + 2] = _mm256_shuffle_ps::<0b01_00_01_00>(ab, cd);
            pairs[i + 3] = _mm256_shuffle_ps::<0b11_10_11_10>(ab, cd);
            i += 4;
        }
        let mut j = 0;
        while j < 4 {
            columns[j] = _mm256_permute2f128_ps::<0x20>(pairs[j], pairs[4 + j]);
            columns[4 + j] = _mm256_permute2f128_ps::<0x31>(pairs[j], pairs[4 + j]);
            j += 1;
        }
    }
    columns
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
    fn load_part(source: &[f32]) -> Self {
        debug_assert!(source.len() < LANES);
        let (marks, from) = (U32::load(marks(source.len())), source.as_ptr());
        // SAFETY: the processor has AVX2 (module documentation); lanes that are not marked are not read, and those that are
        // lie within the slice.
        unsafe {
            Self([_mm256_maskload_ps(from, marks.0[0]), _mm256_maskload_ps(from.wrapping_add(8), marks.0[1])])
        }
    }

    #[inline(always)]
    fn load_u8(source: &[u8; LANES]) -> Self {
        U32::load_u8(source).signed_to_floats()
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
    fn store_part(self, target: &mut [f32]) {
        let mut lanes = [0.0; LANES];
        self.store(&mut lanes);
        target.copy_from_slice(&lanes[..target.len()]);
    }

    #[inline(always)]
    fn transposed(vectors: [Self; LANES]) -> [Self; LANES] {
        let mut columns = vectors;
        let mut half = 0;
        while half < 2 {
            // Of eight vectors the lower lanes, which give the first eight columns, then the upper ones.
            let mut lanes = 0;
            while lanes < 2 {
                let mut rows = [vectors[0].0[0]; 8];
                let mut i = 0;
                while i < 8 {
                    rows[i] = vectors[8 * half + i].0[lanes];
                    i += 1;
                }
                let rows = transposed(rows);
                let mut i = 0;
                while i < 8 {
                    columns[8 * lanes + i].0[half] = rows[i];
                    i += 1;
                }
                lanes += 1;
            }
            half += 1;
        }
        columns
    }

    #[inline(always)]
    fn add_to(self, sums: &mut [f64; LANES]) {
        let (parts, _) = sums.as_chunks_mut::<4>();
        for (i, part) in parts.iter_mut().enumerate() {
            // SAFETY: the processor has AVX (module documentation); `part` is four elements.
            unsafe {
                let half = self.0[i / 2];
                let four =
                    if i % 2 == 0 { _mm256_castps256_ps128(half) } else { _mm256_extractf128_ps::<1>(half) };
                let sum = _mm256_add_pd(_mm256_loadu_pd(part.as_ptr()), _mm256_cvtps_pd(four));
                _mm256_storeu_pd(part.as_mut_ptr(), sum);
            }
        }
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
    fn div(self, other: Self) -> Self {
        halves!(F32, |i| _mm256_div_ps(self.0[i], other.0[i]))
    }

    #[inline(always)]
    fn fma(self, factor: Self, term: Self) -> Self {
        halves!(F32, |i| _mm256_fmadd_ps(self.0[i], factor.0[i], term.0[i]))
    }

    #[inline(always)]
    fn sqrt(self) -> Self {
        halves!(F32, |i| _mm256_sqrt_ps(self.0[i]))
    }

    #[inline(always)]
    fn abs(self) -> Self {
        halves!(F32, |i| _mm256_andnot_ps(_mm256_set1_ps(-0.0), self.0[i]))
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
    fn select_above(self, other: Self, yes: Self, no: Self) -> Self {
        halves!(F32, |i| {
            let above = _mm256_cmp_ps::<_CMP_GT_OQ>(self.0[i], other.0[i]);
            _mm256_blendv_ps(no.0[i], yes.0[i], above)
        })
    }

    #[inline(always)]
    fn exponent(self) -> Self {
        let exponents = U32::from_bits(self).shift_right::<23>().sub(U32::splat(127));
        exponents.signed_to_floats()
    }

    #[inline(always)]
    fn power_of_two(self) -> Self {
        let [smallest, largest] = f32::EXPONENTS;
        let n = self.at_most(Self::splat(largest)).at_least(Self::splat(smallest));
        F32([power(integer(n.0[0])), power(integer(n.0[1]))])
    }

    #[inline(always)]
    fn scale(self, n: Self) -> Self {
        halves!(F32, |i| {
            let n = integer(n.0[i]);
            let first = _mm256_srai_epi32::<1>(n);
            let once = _mm256_mul_ps(self.0[i], power(first));
            _mm256_mul_ps(once, power(_mm256_sub_epi32(n, first)))
        })
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
fn power(n: __m256i) -> __m256 {
    // SAFETY: the processor has AVX2 (module documentation).
    unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(n, _mm256_set1_epi32(127)))) }
}

impl U32 {
    /// The high and low words of the 64-bit products.
    #[inline(always)]
    fn multiply_wide(self, factor: u32) -> (Self, Self) {
        let (high0, low0) = products(self.0[0], factor);
        let (high1, low1) = products(self.0[1], factor);
        (Self([high0, high1]), Self([low0, low1]))
    }

    /// The words, rounded to `f32`.
    #[inline(always)]
    fn to_nearest_floats(self) -> F32 {
        // The upper and the lower half word below the exponents of 2^39 and 2^23, whose difference is exact: the sum
        // is rounded once.
        halves!(F32, |i| {
            let high = _mm256_srli_epi32::<16>(self.0[i]);
            let high = _mm256_blend_epi16::<0b1010_1010>(high, _mm256_set1_epi32(0x5300_0000));
            let low = _mm256_blend_epi16::<0b1010_1010>(self.0[i], _mm256_set1_epi32(0x4B00_0000));
            let both = _mm256_set1_ps(549_755_813_888.0 + 8_388_608.0);
            _mm256_add_ps(_mm256_sub_ps(_mm256_castsi256_ps(high), both), _mm256_castsi256_ps(low))
        })
    }

    /// The words of both, next to each other: of the even lanes, and of the odd ones.
    #[inline(always)]
    fn beside(self, other: Self) -> [Self; 2] {
        [
            halves!(U32, |i| _mm256_blend_epi32::<0b1010_1010>(
                self.0[i],
                _mm256_slli_epi64::<32>(other.0[i])
            )),
            halves!(U32, |i| _mm256_blend_epi32::<0b1010_1010>(
                _mm256_srli_epi64::<32>(self.0[i]),
                other.0[i]
            )),
        ]
    }
}

/// The high and low words of the 64-bit products.
#[inline(always)]
fn products(words: __m256i, factor: u32) -> (__m256i, __m256i) {
    // SAFETY: the processor has AVX2 (module documentation).
    unsafe {
        // The instruction multiplies the even lanes; the odd ones are moved there and back.
        let by = _mm256_set1_epi32(factor as i32);
        let even = _mm256_mul_epu32(words, by);
        let odd = _mm256_mul_epu32(_mm256_srli_epi64::<32>(words), by);
        (
            _mm256_blend_epi32::<0b1010_1010>(_mm256_srli_epi64::<32>(even), odd),
            _mm256_blend_epi32::<0b1010_1010>(even, _mm256_slli_epi64::<32>(odd)),
        )
    }
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
    fn repeat(values: [u32; 4]) -> Self {
        let [a, b, c, d] = values.map(|value| value as i32);
        halves!(U32, |_i| _mm256_setr_epi32(a, b, c, d, a, b, c, d))
    }

    #[inline(always)]
    #[allow(clippy::cast_ptr_alignment, reason = "the unaligned load takes any address")]
    fn load_u8(source: &[u8; LANES]) -> Self {
        // SAFETY: the processor has AVX2 (module documentation); the read of sixteen bytes is the whole array.
        unsafe {
            let bytes = _mm_loadu_si128(source.as_ptr().cast());
            Self([_mm256_cvtepu8_epi32(bytes), _mm256_cvtepu8_epi32(_mm_srli_si128::<8>(bytes))])
        }
    }

    #[inline(always)]
    #[allow(clippy::cast_ptr_alignment, reason = "the unaligned load takes any address")]
    fn load_u16(source: &[u16; LANES]) -> Self {
        // SAFETY: the processor has AVX2 (module documentation); both reads of eight lie within the sixteen.
        unsafe {
            let first = source.as_ptr().cast::<__m128i>();
            let (low, high) = (_mm_loadu_si128(first), _mm_loadu_si128(first.add(1)));
            Self([_mm256_cvtepu16_epi32(low), _mm256_cvtepu16_epi32(high)])
        }
    }

    #[inline(always)]
    #[allow(clippy::cast_ptr_alignment, reason = "the unaligned store takes any address")]
    fn store_u16(self, target: &mut [u16; LANES]) {
        // SAFETY: the processor has AVX2 (module documentation); the write of sixteen is the whole array.
        unsafe {
            let low = _mm256_set1_epi32(0xFFFF);
            let packed =
                _mm256_packus_epi32(_mm256_and_si256(self.0[0], low), _mm256_and_si256(self.0[1], low));
            _mm256_storeu_si256(
                target.as_mut_ptr().cast(),
                _mm256_permute4x64_epi64::<0b11_01_10_00>(packed),
            );
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
    fn shift_right<const N: u32>(self) -> Self {
        halves!(U32, |i| _mm256_srlv_epi32(self.0[i], _mm256_set1_epi32(N as i32)))
    }

    #[inline(always)]
    fn shift_left<const N: u32>(self) -> Self {
        halves!(U32, |i| _mm256_sllv_epi32(self.0[i], _mm256_set1_epi32(N as i32)))
    }

    #[inline(always)]
    fn multiply(self, factor: u32) -> Self {
        halves!(U32, |i| _mm256_mullo_epi32(self.0[i], _mm256_set1_epi32(factor as i32)))
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
        let [a, b, c, d] = Self::round(state, key);
        let ([even_first, odd_first], [even_second, odd_second]) = (a.beside(c), b.beside(d));
        [[even_first, even_second], [odd_first, odd_second]]
    }

    #[inline(always)]
    fn weave(first: F32, second: F32) -> [F32; 2] {
        [
            halves!(F32, |i| _mm256_unpacklo_ps(first.0[i], second.0[i])),
            halves!(F32, |i| _mm256_unpackhi_ps(first.0[i], second.0[i])),
        ]
    }

    #[inline(always)]
    fn signed_to_floats(self) -> F32 {
        halves!(F32, |i| _mm256_cvtepi32_ps(self.0[i]))
    }

    #[inline(always)]
    fn fraction(self) -> (F32, F32) {
        let number = self.to_nearest_floats().add(F32::splat(0.5));
        let exponent = halves!(U32, |i| {
            let below = _mm256_set1_epi32(BELOW_FRACTION as i32);
            _mm256_srai_epi32::<23>(_mm256_sub_epi32(_mm256_castps_si256(number.0[i]), below))
        });
        let power = exponent.shift_left::<23>().add(Self::splat(32 << 23));
        (Self::from_bits(number).sub(power).to_floats(), exponent.signed_to_floats())
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
    fn select_below(self, other: Self, yes: F32, no: F32) -> F32 {
        halves!(F32, |i| {
            let below = _mm256_cmpgt_epi32(other.0[i], self.0[i]);
            _mm256_blendv_ps(no.0[i], yes.0[i], _mm256_castsi256_ps(below))
        })
    }

    #[inline(always)]
    #[allow(clippy::cast_ptr_alignment, reason = "the unaligned load takes any address")]
    fn load_f16(source: &[u16; LANES]) -> F32 {
        // SAFETY: the processor has F16C (module documentation); both reads of eight lie within the sixteen.
        unsafe {
            let first = source.as_ptr().cast::<__m128i>();
            let (low, high) = (_mm_loadu_si128(first), _mm_loadu_si128(first.add(1)));
            F32([_mm256_cvtph_ps(low), _mm256_cvtph_ps(high)])
        }
    }

    #[inline(always)]
    #[allow(clippy::cast_ptr_alignment, reason = "the unaligned store takes any address")]
    fn store_f16(floats: F32, target: &mut [u16; LANES]) {
        // SAFETY: the processor has F16C (module documentation); both writes of eight lie within the sixteen.
        unsafe {
            let first = target.as_mut_ptr().cast::<__m128i>();
            _mm_storeu_si128(first, _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(floats.0[0]));
            _mm_storeu_si128(first.add(1), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(floats.0[1]));
        }
    }
}

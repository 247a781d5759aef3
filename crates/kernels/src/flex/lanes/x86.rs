//! AVX2 and AVX-512.

use std::arch::x86_64::*;

use super::{LEVELS, Lanes, Work, bf16, f16};

pub(in super::super) fn has_avx512() -> bool {
    // The second lets short registers be any of 32, too: without it sums go to memory and back.
    is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vl")
}

pub(in super::super) fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
}

/// # Safety
/// [`has_avx512`].
#[target_feature(enable = "avx512f,avx512vl")]
pub(in super::super) unsafe fn with_avx512(work: impl Work) {
    // SAFETY: the caller's promise.
    unsafe { work.with::<Avx512>() }
}

/// # Safety
/// [`has_avx2`].
#[target_feature(enable = "avx2,fma,f16c")]
pub(in super::super) unsafe fn with_avx2(work: impl Work) {
    // SAFETY: the caller's promise.
    unsafe { work.with::<Avx2>() }
}

/// In each half, four rows of four as four columns.
///
/// # Safety
/// Needs AVX.
#[inline(always)]
unsafe fn turned([a, b, c, d]: [__m256; 4]) -> [__m256; 4] {
    // SAFETY: the caller's promise.
    unsafe {
        let [ab, cd] = [_mm256_unpacklo_ps(a, b), _mm256_unpacklo_ps(c, d)];
        let [ab_high, cd_high] = [_mm256_unpackhi_ps(a, b), _mm256_unpackhi_ps(c, d)];
        [
            _mm256_shuffle_ps::<0x44>(ab, cd),
            _mm256_shuffle_ps::<0xee>(ab, cd),
            _mm256_shuffle_ps::<0x44>(ab_high, cd_high),
            _mm256_shuffle_ps::<0xee>(ab_high, cd_high),
        ]
    }
}

/// Needs AVX2, FMA and F16C.
#[derive(Clone, Copy)]
struct Avx2(__m256);

impl Lanes for Avx2 {
    const COUNT: usize = 8;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller's promise, here and below.
        Self(unsafe { _mm256_setzero_ps() })
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        Self(unsafe { _mm256_loadu_ps(from) })
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> Self {
        let wide = unsafe { _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast())) };
        Self(unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide)) })
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> Self {
        Self(unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) })
    }

    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Self {
        Self(unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast()))) })
    }

    #[inline(always)]
    unsafe fn load_levels(from: *const u8) -> [Self; 2] {
        // The shuffle looks each byte up.
        let levels = |codes: __m128i| unsafe {
            let codes = _mm_and_si128(codes, _mm_set1_epi8(15));
            let levels = _mm_shuffle_epi8(_mm_loadu_si128(LEVELS.as_ptr().cast()), codes);
            Self(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(levels)))
        };
        let bytes = unsafe { _mm_loadl_epi64(from.cast()) };
        [levels(bytes), levels(unsafe { _mm_srli_epi16::<4>(bytes) })]
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Self(unsafe { _mm256_set1_ps(x) })
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        Self(unsafe { _mm256_add_ps(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        Self(unsafe { _mm256_mul_ps(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn mul_add(self, other: Self, more: Self) -> Self {
        Self(unsafe { _mm256_fmadd_ps(self.0, other.0, more.0) })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { _mm256_storeu_ps(to, self.0) }
    }

    #[inline(always)]
    unsafe fn transpose(from: *const f32, rows: usize, to: *mut f32, to_rows: usize) {
        unsafe {
            // Halves of rows side by side, then quarters of four rows turned in each half.
            let load = |row: usize, half: usize| _mm_loadu_ps(from.add(row * rows + half * 4));
            for half in 0..2 {
                let pairs: [__m256; 4] =
                    std::array::from_fn(|row| _mm256_set_m128(load(row + 4, half), load(row, half)));
                for (i, column) in turned(pairs).into_iter().enumerate() {
                    _mm256_storeu_ps(to.add((half * 4 + i) * to_rows), column);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        let mut lanes = [0.0f32; 8];
        unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), self.0) };
        let [a, b, c, d, e, f, g, h] = lanes;
        ((a + e) + (c + g)) + ((b + f) + (d + h))
    }
}

/// [`LEVELS`], for a register.
const FLOAT_LEVELS: [f32; 16] = {
    let mut levels = [0.0; 16];
    let mut i = 0;
    while i < 16 {
        levels[i] = LEVELS[i] as f32;
        i += 1;
    }
    levels
};

/// Needs AVX-512's foundation.
#[derive(Clone, Copy)]
pub(in super::super) struct Avx512(__m512);

impl Lanes for Avx512 {
    const COUNT: usize = 16;

    #[inline(always)]
    unsafe fn zero() -> Self {
        Self(unsafe { _mm512_setzero_ps() })
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        Self(unsafe { _mm512_loadu_ps(from) })
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> Self {
        let wide = unsafe { _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast())) };
        Self(unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide)) })
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> Self {
        Self(unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) })
    }

    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Self {
        Self(unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast()))) })
    }

    #[inline(always)]
    unsafe fn load_levels(from: *const u8) -> [Self; 2] {
        let bytes = unsafe { _mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast())) };
        // A permutation looks at the lowest four bits of each index.
        let levels = unsafe { _mm512_loadu_ps(FLOAT_LEVELS.as_ptr()) };
        let [low, high] = [bytes, unsafe { _mm512_srli_epi32::<4>(bytes) }];
        [low, high].map(|codes| Self(unsafe { _mm512_permutexvar_ps(codes, levels) }))
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Self(unsafe { _mm512_set1_ps(x) })
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        Self(unsafe { _mm512_add_ps(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        Self(unsafe { _mm512_mul_ps(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn mul_add(self, other: Self, more: Self) -> Self {
        Self(unsafe { _mm512_fmadd_ps(self.0, other.0, more.0) })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { _mm512_storeu_ps(to, self.0) }
    }

    #[inline(always)]
    unsafe fn transpose(from: *const f32, rows: usize, to: *mut f32, to_rows: usize) {
        unsafe {
            // Quarters of four rows side by side, then turned in each quarter.
            let load = |row: usize, quarter: usize| _mm_loadu_ps(from.add(row * rows + quarter * 4));
            for quarter in 0..4 {
                let four = |row: usize| {
                    let all = _mm512_castps128_ps512(load(row, quarter));
                    let all = _mm512_insertf32x4::<1>(all, load(row + 4, quarter));
                    let all = _mm512_insertf32x4::<2>(all, load(row + 8, quarter));
                    _mm512_insertf32x4::<3>(all, load(row + 12, quarter))
                };
                let [a, b, c, d] = [four(0), four(1), four(2), four(3)];
                let [ab, cd] = [_mm512_unpacklo_ps(a, b), _mm512_unpacklo_ps(c, d)];
                let [ab_high, cd_high] = [_mm512_unpackhi_ps(a, b), _mm512_unpackhi_ps(c, d)];
                let columns = [
                    _mm512_shuffle_ps::<0x44>(ab, cd),
                    _mm512_shuffle_ps::<0xee>(ab, cd),
                    _mm512_shuffle_ps::<0x44>(ab_high, cd_high),
                    _mm512_shuffle_ps::<0xee>(ab_high, cd_high),
                ];
                for (i, column) in columns.into_iter().enumerate() {
                    _mm512_storeu_ps(to.add((quarter * 4 + i) * to_rows), column);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        unsafe { _mm512_reduce_add_ps(self.0) }
    }

    /// Four at a time, by the steps of one: halves, quarters, pairs.
    #[inline(always)]
    unsafe fn sums<const N: usize>(all: [Self; N]) -> [f32; N] {
        let mut sums = [0.0; N];
        let mut first = 0;
        while first + 4 <= N {
            // SAFETY: the caller's promise; there is room for four.
            let four = unsafe { four_sums([all[first].0, all[first + 1].0, all[first + 2].0, all[first + 3].0]) };
            unsafe { _mm_storeu_ps(sums.as_mut_ptr().add(first), four) };
            first += 4;
        }
        while first < N {
            sums[first] = unsafe { all[first].sum() };
            first += 1;
        }
        sums
    }
}

/// # Safety
/// [`has_avx512`].
#[inline(always)]
unsafe fn four_sums([a, b, c, d]: [__m512; 4]) -> __m128 {
    // SAFETY: the caller's promise.
    unsafe {
        let halves = |a, b| _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0xee>(a, b));
        let (ab, cd) = (halves(a, b), halves(c, d));
        let quarters = _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(ab, cd), _mm512_shuffle_f32x4::<0xdd>(ab, cd));
        let pairs = _mm512_add_ps(quarters, _mm512_permute_ps::<0x4e>(quarters));
        let whole = _mm512_add_ps(pairs, _mm512_permute_ps::<0xb1>(pairs));
        // The first number of each quarter.
        let places = _mm512_setr_epi32(0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12);
        _mm512_castps512_ps128(_mm512_permutexvar_ps(places, whole))
    }
}

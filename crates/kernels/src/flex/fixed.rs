//! Dot products of a quantised weight with one row of inputs in 16-bit integers.
//!
//! With f32 inputs each code becomes a float and is scaled, which takes longer than memory does. Here a block of inputs gets
//! a scale of its own and 16 bits a number (an error of 2e-5 of what the block holds, two hundred times less than that of
//! 8-bit weights), a block's products are sums of integers, exact, and only those become floats.

#![cfg(target_arch = "x86_64")]

use std::arch::x86_64::*;

use burn::tensor::f16;
use flamingo_config::{BLOCK, LEVELS};

use super::filled;
use super::quantised::{Quantised, SCALES, readable};

/// Weights that are worth a task.
const TASK: usize = 1 << 16;

/// [`LEVELS`] twice: a lookup takes five bits, of which the fifth is not the code's.
const WIDE_LEVELS: [i16; 32] = {
    let mut levels = [0; 32];
    let mut i = 0;
    while i < 32 {
        levels[i] = LEVELS[i % 16] as i16;
        i += 1;
    }
    levels
};

/// Whether this processor has what is needed.
pub(super) fn known() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vnni")
}

/// A row of inputs.
struct Inputs {
    /// For 8 bits as they come; for 4 bits the first halves of two blocks, then their second halves.
    numbers: Vec<i16>,
    /// Of each block, over 128; zeros after the last.
    scales: Vec<f32>,
}

impl Inputs {
    fn new<const BITS: usize>(x: &[f32]) -> Self {
        let blocks = x.len() / BLOCK;
        let mut numbers = vec![0; blocks.next_multiple_of(2) * BLOCK];
        let mut scales = vec![0.0; blocks.next_multiple_of(SCALES)];
        for (block, x) in x.chunks_exact(BLOCK).enumerate() {
            let largest = x.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
            let scale = largest / 32767.0;
            // What is no number is not hidden.
            let whole = x.iter().sum::<f32>().is_finite();
            scales[block] = if whole { scale / 128.0 } else { f32::NAN };
            let factor = if scale > 0.0 { 1.0 / scale } else { 0.0 };
            for (i, x) in x.iter().enumerate() {
                let at = match BITS {
                    8 => block * BLOCK + i,
                    _ => (block / 2 * 2 + i / 16) * BLOCK + block % 2 * 16 + i % 16,
                };
                numbers[at] = (x * factor).round() as i16;
            }
        }
        Self { numbers, scales }
    }
}

/// `x Wᵀ + b` for one row: `d_out` numbers.
///
/// # Safety
/// [`known`].
pub(super) unsafe fn one_row<const BITS: usize>(x: &[f32], weight: &Quantised<BITS>, bias: Option<&[f32]>) -> Vec<f32> {
    let (codes, scales, blocks) = weight.parts();
    assert_eq!(x.len(), blocks * BLOCK, "the weight is for inputs of another width");
    let inputs = Inputs::new::<BITS>(x);
    let d_out = scales.len() / blocks;
    let outputs = (TASK / x.len()).clamp(1, d_out);
    filled(d_out, outputs, |task, out| {
        for (i, out) in out.iter_mut().enumerate() {
            let row = task * outputs + i;
            let codes = &codes[row * blocks * BITS * 4..][..blocks * BITS * 4];
            // SAFETY: the caller's promise.
            let dot = unsafe { dot::<BITS>(codes, &scales[row * blocks..][..blocks], &inputs) };
            *out = dot + bias.map_or(0.0, |bias| bias[row]);
        }
    })
}

/// # Safety
/// [`known`].
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn dot<const BITS: usize>(codes: &[u8], scales: &[f16], inputs: &Inputs) -> f32 {
    let bytes = BITS * 4;
    // SAFETY: all places are those of blocks that are there, or of arrays on the stack.
    unsafe {
        let levels = _mm512_loadu_si512(WIDE_LEVELS.as_ptr().cast());
        // The first of two blocks for half a register, the second for the other.
        let two = _mm512_set_epi32(1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0);
        let mut sums = [_mm512_setzero_ps(); 2];
        for (chunk, scales) in scales.chunks(SCALES).enumerate() {
            let mut rest = [f16::ZERO; SCALES];
            let stored = readable(scales, &mut rest);
            let stored = _mm512_cvtph_ps(_mm256_loadu_si256(stored.cast()));
            let factors = _mm512_mul_ps(stored, _mm512_loadu_ps(inputs.scales.as_ptr().add(chunk * SCALES)));
            let first = chunk * SCALES;
            let codes = codes.as_ptr().add(first * bytes);
            let numbers = inputs.numbers.as_ptr().add(first * BLOCK);
            if BITS == 8 {
                let mut each = [0.0f32; SCALES];
                _mm512_storeu_ps(each.as_mut_ptr(), factors);
                for (i, factor) in each[..scales.len()].iter().enumerate() {
                    let weights = _mm512_cvtepi8_epi16(_mm256_loadu_si256(codes.add(i * bytes).cast()));
                    let x = _mm512_loadu_si512(numbers.add(i * BLOCK).cast());
                    let products = _mm512_dpwssd_epi32(_mm512_setzero_si512(), weights, x);
                    let sum = &mut sums[i % 2];
                    *sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(products), _mm512_set1_ps(*factor), *sum);
                }
            } else {
                for pair in 0..scales.len().div_ceil(2) {
                    let at = codes.add(pair * 2 * bytes);
                    let both = if pair * 2 + 1 < scales.len() {
                        _mm256_loadu_si256(at.cast())
                    } else {
                        // Codes of a block that is not there meet inputs of zero.
                        _mm256_zextsi128_si256(_mm_loadu_si128(at.cast()))
                    };
                    let words = _mm512_cvtepu8_epi16(both);
                    let low = _mm512_permutexvar_epi16(words, levels);
                    let high = _mm512_permutexvar_epi16(_mm512_srli_epi16::<4>(words), levels);
                    let x = numbers.add(pair * 2 * BLOCK);
                    let products = _mm512_dpwssd_epi32(_mm512_setzero_si512(), low, _mm512_loadu_si512(x.cast()));
                    let products = _mm512_dpwssd_epi32(products, high, _mm512_loadu_si512(x.add(BLOCK).cast()));
                    let place = _mm512_add_epi32(two, _mm512_set1_epi32(pair as i32 * 2));
                    let factor = _mm512_permutexvar_ps(place, factors);
                    let sum = &mut sums[pair % 2];
                    *sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(products), factor, *sum);
                }
            }
        }
        _mm512_reduce_add_ps(_mm512_add_ps(sums[0], sums[1]))
    }
}

#[cfg(test)]
mod tests {
    use super::super::stored::tests::number;
    use super::*;

    fn dots_are_exact_to_their_inputs<const BITS: usize>() {
        for blocks in [1, 2, 3, 16, 17, 33, 64] {
            let (outputs, d_in) = (5, blocks * BLOCK);
            let codes: Vec<u8> = (0..outputs * blocks * BITS * 4).map(|i| (i * 89) as u8).collect();
            let scales: Vec<f16> = (0..outputs * blocks).map(|i| f16::from_f32(number(i + 5))).collect();
            // Blocks of very different sizes, one of zeros.
            let size = |i: usize| [1.0, 1e-4, 300.0, 0.0][i / BLOCK % 4];
            let x: Vec<f32> = (0..d_in).map(|i| number(i) * size(i)).collect();
            let bias = [0.5, -0.25, 2.0, 0.0, 1.0];
            // SAFETY: the processor was asked.
            let found = unsafe { one_row(&x, &Quantised::<BITS>::new(&codes, &scales, blocks), Some(&bias)) };
            for (row, found) in found.iter().enumerate() {
                let product = |i: usize| {
                    let (block, place) = (row * blocks + i / BLOCK, i % BLOCK);
                    let code = if BITS == 8 {
                        codes[block * 32 + place] as i8
                    } else {
                        LEVELS[usize::from(codes[block * 16 + place % 16] >> (place / 16 * 4) & 15)]
                    };
                    scales[block].to_f64() * f64::from(code) / 128.0 * f64::from(x[i])
                };
                let (sum, magnitude) =
                    (0..d_in).map(product).fold((0.0, 1.0), |(sum, all), x| (sum + x, all + x.abs()));
                let error = (f64::from(*found) - sum - f64::from(bias[row])).abs();
                assert!(error < 3e-5 * magnitude, "{BITS} bits, {blocks} blocks: {found} for {sum}");
            }
        }
    }

    #[test]
    fn one_row_of_inputs() {
        if !known() {
            eprintln!("skipped: this processor has no dot products of 16-bit integers");
            return;
        }
        dots_are_exact_to_their_inputs::<8>();
        dots_are_exact_to_their_inputs::<4>();
    }

    #[test]
    fn what_is_no_number_stays_none() {
        if !known() {
            return;
        }
        for wrong in [f32::NAN, f32::INFINITY] {
            let mut x = [1.0; 2 * BLOCK];
            x[40] = wrong;
            let (codes, scales) = ([3; 2 * BLOCK], [f16::ONE; 2]);
            // SAFETY: the processor was asked.
            let found = unsafe { one_row(&x, &Quantised::<8>::new(&codes, &scales, 2), None) };
            assert!(found[0].is_nan());
        }
    }
}

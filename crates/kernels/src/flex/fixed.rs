//! Dot products of a quantised weight with a few rows of inputs in integers.
//!
//! With f32 inputs each code becomes a float and is scaled, which takes longer than memory does. Here a block of inputs gets
//! a scale of its own and 16 bits a number (an error of 2e-5 of what the block holds, two hundred times less than that of
//! 8-bit weights), products are added up as integers, exact until each lane of a block becomes a float.
//!
//! Instructions multiply bytes, unsigned ones by signed ones. An input is therefore two bytes, `256 high + low`, and a code
//! `w` is taken as `w + 128`, so that 128 times the block's inputs is too much, which [`Inputs`] know beforehand.

#![cfg(target_arch = "x86_64")]

use std::arch::x86_64::*;
use std::ops::Range;

use burn::tensor::f16;
use flamingo_config::{BLOCK, LEVELS};

use super::product::Matrix;
use super::quantised::{Quantised, SCALES, readable};
use super::stored::by_columns;

/// Rows of inputs that are worked on together.
const ROWS: usize = 4;

/// A register.
const BYTES: usize = 64;

/// The largest input: its high byte is 127 after rounding.
const LARGEST: f32 = 32_639.0;

/// [`LEVELS`] as unsigned bytes, for each quarter of a register.
const UNSIGNED_LEVELS: [u8; BYTES] = {
    let mut levels = [0; BYTES];
    let mut i = 0;
    while i < BYTES {
        levels[i] = (LEVELS[i % 16] as i16 + 128) as u8;
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

/// Blocks whose codes fill a register.
const fn blocks_of_register<const BITS: usize>() -> usize {
    BYTES * 8 / BITS / BLOCK
}

/// Registers of bytes for these blocks: 4-bit codes give a first and a second half of each.
const fn registers<const BITS: usize>() -> usize {
    8 / BITS
}

/// Bytes of inputs for a register of codes.
const fn stride<const BITS: usize>() -> usize {
    (2 * registers::<BITS>() + 1) * BYTES
}

/// A row of inputs.
struct Inputs {
    /// For each register of codes the high bytes of inputs, their low bytes, and what is too much, in 32 bits, by blocks.
    numbers: Vec<i8>,
    /// Of each block, over 128; zeros after the last.
    scales: Vec<f32>,
}

impl Inputs {
    /// # Safety
    /// [`known`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    unsafe fn new<const BITS: usize>(x: &[f32]) -> Self {
        let blocks = x.len() / BLOCK;
        let at_once = blocks_of_register::<BITS>();
        let mut numbers = vec![0i8; blocks.div_ceil(at_once) * stride::<BITS>()];
        let mut scales = vec![0.0; blocks.next_multiple_of(SCALES)];
        for (block, x) in x.chunks_exact(BLOCK).enumerate() {
            let to = &mut numbers[block / at_once * stride::<BITS>()..][..stride::<BITS>()];
            let place = block % at_once;
            // SAFETY: `x` is two registers, and what is written lies in `to`, by the sizes above.
            unsafe {
                let halves = [_mm512_loadu_ps(x.as_ptr()), _mm512_loadu_ps(x.as_ptr().add(16))];
                let largest = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(halves[0]), _mm512_abs_ps(halves[1])));
                let scale = largest / LARGEST;
                // What is no number is not hidden; nor what adds up to none.
                if !_mm512_reduce_add_ps(_mm512_add_ps(halves[0], halves[1])).is_finite() {
                    scales[block] = f32::NAN;
                    continue;
                }
                scales[block] = scale / 128.0;
                // As a number's inverse may be none, the smallest become zeros.
                let factor = if scale > f32::MIN_POSITIVE { 1.0 / scale } else { 0.0 };
                let mut total = 0;
                for (half, x) in halves.into_iter().enumerate() {
                    let x = _mm512_cvtps_epi32(_mm512_mul_ps(x, _mm512_set1_ps(factor)));
                    total += _mm512_reduce_add_epi32(x);
                    // Narrowing leaves the low byte, which is negative from 128 on.
                    let high = _mm512_srai_epi32::<8>(_mm512_add_epi32(x, _mm512_set1_epi32(128)));
                    let first = if BITS == 8 { place * BLOCK + half * 16 } else { half * BYTES + place * 16 };
                    let to = to.as_mut_ptr().add(first);
                    _mm_storeu_si128(to.cast(), _mm512_cvtepi32_epi8(high));
                    let low = to.add(registers::<BITS>() * BYTES);
                    _mm_storeu_si128(low.cast(), _mm512_cvtepi32_epi8(x));
                }
                let too_much = to.as_mut_ptr().add(2 * registers::<BITS>() * BYTES).cast::<i32>();
                too_much.add(place * 16 / at_once).write_unaligned(-128 * total);
            }
        }
        Self { numbers, scales }
    }
}

/// `x Wᵀ + b` for `rows` rows: `[rows, d_out]`.
///
/// # Safety
/// [`known`].
pub(super) unsafe fn few_rows<const BITS: usize>(
    x: &[f32],
    weight: &Quantised<BITS>,
    bias: Option<&[f32]>,
    rows: usize,
) -> Vec<f32> {
    let (_, scales, blocks) = weight.parts();
    let d_in = blocks * BLOCK;
    assert_eq!(x.len(), rows * d_in, "the weight is for inputs of another width");
    // SAFETY: the caller's promise.
    let inputs: Vec<Inputs> = x.chunks_exact(d_in).map(|x| unsafe { Inputs::new::<BITS>(x) }).collect();
    let fill = |out: Matrix, columns: Range<usize>| {
        for output in columns {
            for (i, inputs) in inputs.chunks(ROWS).enumerate() {
                let mut all = [0.0; ROWS];
                let dots = &mut all[..inputs.len()];
                // SAFETY: the caller's promise; this column is written here only.
                unsafe {
                    match inputs {
                        [_] => write::<BITS, 1>(weight, output, inputs, dots),
                        [_, _] => write::<BITS, 2>(weight, output, inputs, dots),
                        [_, _, _] => write::<BITS, 3>(weight, output, inputs, dots),
                        _ => write::<BITS, ROWS>(weight, output, inputs, dots),
                    }
                    for (row, dot) in dots.iter().enumerate() {
                        *out.at(i * ROWS + row, output) = bias.map_or(*dot, |bias| dot + bias[output]);
                    }
                }
            }
        }
    };
    // SAFETY: all rows of the columns are written.
    unsafe { by_columns([scales.len() / blocks, d_in], rows, fill) }
}

/// Writes the products of a row of the weight and `X` rows of inputs.
///
/// # Safety
/// [`known`].
#[expect(clippy::needless_range_loop, reason = "indices of what lies in several places")]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn write<const BITS: usize, const X: usize>(
    weight: &Quantised<BITS>,
    output: usize,
    inputs: &[Inputs],
    dots: &mut [f32],
) {
    let inputs: &[Inputs; X] = inputs.try_into().expect("as many rows");
    let (codes, scales, blocks) = weight.parts();
    let (bytes, at_once) = (BITS * 4, blocks_of_register::<BITS>());
    let codes = &codes[output * blocks * bytes..][..blocks * bytes];
    let scales = &scales[output * blocks..][..blocks];
    // SAFETY: all places are those of blocks that are there, or masked, or of arrays on the stack.
    unsafe {
        // Each block's scale for its share of a register.
        let numbers = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
        let shares = if BITS == 8 { _mm512_srli_epi32::<3>(numbers) } else { _mm512_srli_epi32::<2>(numbers) };
        let mut sums = [_mm512_setzero_ps(); X];
        for (chunk, scales) in scales.chunks(SCALES).enumerate() {
            let first = chunk * SCALES;
            let mut rest = [f16::ZERO; SCALES];
            let stored = readable(scales, &mut rest);
            let stored = _mm512_cvtph_ps(_mm256_loadu_si256(stored.cast()));
            let mut factors = [_mm512_setzero_ps(); X];
            for x in 0..X {
                factors[x] = _mm512_mul_ps(stored, _mm512_loadu_ps(inputs[x].scales.as_ptr().add(first)));
            }
            for block in (0..scales.len()).step_by(at_once) {
                // Codes of blocks that are not there meet inputs of zero.
                let there = !0 >> (BYTES - (scales.len() - block).min(at_once) * bytes);
                let codes = _mm512_maskz_loadu_epi8(there, codes.as_ptr().add((first + block) * bytes).cast());
                let unsigned = if BITS == 8 {
                    [_mm512_xor_si512(codes, _mm512_set1_epi8(-128)); 2]
                } else {
                    let (levels, half) = (_mm512_loadu_si512(UNSIGNED_LEVELS.as_ptr().cast()), _mm512_set1_epi8(15));
                    let high = _mm512_and_si512(_mm512_srli_epi16::<4>(codes), half);
                    [_mm512_and_si512(codes, half), high].map(|codes| _mm512_shuffle_epi8(levels, codes))
                };
                let place = _mm512_add_epi32(shares, _mm512_set1_epi32(block as i32));
                for x in 0..X {
                    let from = inputs[x].numbers.as_ptr().add((first + block) / at_once * stride::<BITS>());
                    let load = |register: usize| _mm512_loadu_si512(from.add(register * BYTES).cast());
                    let (mut high, mut low) = (_mm512_setzero_si512(), load(2 * registers::<BITS>()));
                    for register in 0..registers::<BITS>() {
                        high = _mm512_dpbusd_epi32(high, unsigned[register], load(register));
                        low = _mm512_dpbusd_epi32(low, unsigned[register], load(registers::<BITS>() + register));
                    }
                    let products = _mm512_add_epi32(_mm512_slli_epi32::<8>(high), low);
                    let factor = _mm512_permutexvar_ps(place, factors[x]);
                    sums[x] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(products), factor, sums[x]);
                }
            }
        }
        for (dot, sum) in dots.iter_mut().zip(sums) {
            *dot = _mm512_reduce_add_ps(sum);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::stored::tests::number;
    use super::*;

    fn dots_are_exact_to_their_inputs<const BITS: usize>() {
        for (rows, blocks) in
            [1, 2, 3, 16, 17, 33, 64].into_iter().flat_map(|blocks| (1..=6).map(move |rows| (rows, blocks)))
        {
            let (outputs, d_in) = (7, blocks * BLOCK);
            let codes: Vec<u8> = (0..outputs * blocks * BITS * 4).map(|i| (i * 89) as u8).collect();
            let scales: Vec<f16> = (0..outputs * blocks).map(|i| f16::from_f32(number(i + 5))).collect();
            // Blocks of very different sizes, some of zeros or of numbers whose scale has no inverse.
            let size = |i: usize| [1.0, 1e-4, 300.0, 0.0, 1e-39][i / BLOCK % 5];
            let x: Vec<f32> = (0..rows * d_in).map(|i| number(i) * size(i)).collect();
            let bias = [0.5, -0.25, 2.0, 0.0, 1.0, -3.0, 4.0];
            // SAFETY: the processor was asked.
            let found = unsafe { few_rows(&x, &Quantised::<BITS>::new(&codes, &scales, blocks), Some(&bias), rows) };
            for (at, found) in found.iter().enumerate() {
                let (row, output) = (at / outputs, at % outputs);
                let product = |i: usize| {
                    let (block, place) = (output * blocks + i / BLOCK, i % BLOCK);
                    let code = if BITS == 8 {
                        codes[block * 32 + place] as i8
                    } else {
                        LEVELS[usize::from(codes[block * 16 + place % 16] >> (place / 16 * 4) & 15)]
                    };
                    scales[block].to_f64() * f64::from(code) / 128.0 * f64::from(x[row * d_in + i])
                };
                let (sum, magnitude) =
                    (0..d_in).map(product).fold((0.0, 1.0), |(sum, all), x| (sum + x, all + x.abs()));
                let error = (f64::from(*found) - sum - f64::from(bias[output])).abs();
                assert!(error < 3e-5 * magnitude, "{BITS} bits, {rows} rows, {blocks} blocks: {found} for {sum}");
            }
        }
    }

    /// The largest inputs and codes there are, of each sign.
    fn extremes<const BITS: usize>() {
        let scales = [f16::ONE; 4];
        for (code, sign) in [(0u8, 1.0f32), (0, -1.0), (0xff, 1.0), (0xff, -1.0), (0x80, 1.0), (0x7f, -1.0)] {
            let (codes, x) = (vec![code; 4 * BITS * 4], [sign * 3.0; 4 * BLOCK]);
            // SAFETY: the processor was asked.
            let found = unsafe { few_rows(&x, &Quantised::<BITS>::new(&codes, &scales, 4), None, 1) };
            let value = |place: usize| {
                let code = if BITS == 8 { code as i8 } else { LEVELS[usize::from(code >> (place / 16 * 4) & 15)] };
                f64::from(code) / 128.0
            };
            let wanted = 4.0 * (0..BLOCK).map(value).sum::<f64>() * f64::from(sign) * 3.0;
            assert!(
                (f64::from(found[0]) - wanted).abs() < 1e-2,
                "{BITS} bits, {code}, {sign}: {found:?}, not {wanted}"
            );
        }
    }

    #[test]
    fn few_rows_of_inputs() {
        if !known() {
            eprintln!("skipped: this processor has no dot products of bytes");
            return;
        }
        dots_are_exact_to_their_inputs::<8>();
        dots_are_exact_to_their_inputs::<4>();
        extremes::<8>();
        extremes::<4>();
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
            let found = unsafe { few_rows(&x, &Quantised::<8>::new(&codes, &scales, 2), None, 1) };
            assert!(found[0].is_nan());
        }
    }
}

//! Quantising matrices, and back.

use flamingo_config::{BLOCK, LEVELS, Scheme};
use half::f16;
use rayon::prelude::*;

/// Blocks that are worth a task.
const TASK: usize = 1 << 10;

/// Shares of a block's largest number that the first level is tried at. What is largest is not best: clipping it makes the
/// steps finer. Three cost a thousandth of the error of fifteen.
const TRIED: [f32; 3] = [0.88, 0.96, 1.04];

/// Codes, little-endian words, and scales of numbers that are whole blocks. The scale of a block with a number that is too
/// large for f16, or none, is not finite.
///
/// # Panics
/// If they are not.
pub fn quantise(scheme: Scheme, numbers: &[f32]) -> (Vec<u8>, Vec<f16>) {
    assert!(numbers.len().is_multiple_of(BLOCK), "numbers are whole blocks");
    let (bytes, blocks) = (scheme.words() * 4, numbers.len() / BLOCK);
    let (mut codes, mut scales) = (vec![0; blocks * bytes], vec![f16::ZERO; blocks]);
    let nearest = nearest_levels();
    let tasks =
        codes.par_chunks_mut(TASK * bytes).zip(scales.par_chunks_mut(TASK)).zip(numbers.par_chunks(TASK * BLOCK));
    tasks.for_each(|((codes, scales), numbers)| {
        for ((codes, scale), numbers) in codes.chunks_exact_mut(bytes).zip(scales).zip(numbers.chunks_exact(BLOCK)) {
            let numbers = numbers.try_into().expect("a block");
            *scale = match scheme {
                Scheme::Q8 => eight_bits(numbers, codes),
                Scheme::Q4 => four_bits(numbers, codes, &nearest),
            };
        }
    });
    (codes, scales)
}

/// The numbers of codes and scales.
pub(crate) fn dequantise(scheme: Scheme, codes: &[u8], scales: impl Iterator<Item = f16>) -> Vec<f32> {
    let value = |code: i8, scale: f32| f32::from(code) * scale;
    let mut numbers = Vec::with_capacity(codes.len() / scheme.words() / 4 * BLOCK);
    for (codes, scale) in codes.chunks_exact(scheme.words() * 4).zip(scales) {
        let scale = scale.to_f32() / 128.0;
        match scheme {
            Scheme::Q8 => numbers.extend(codes.iter().map(|&code| value(code as i8, scale))),
            Scheme::Q4 => {
                let level = |code: u8| value(LEVELS[usize::from(code)], scale);
                numbers.extend(codes.iter().map(|byte| level(byte & 15)));
                numbers.extend(codes.iter().map(|byte| level(byte >> 4)));
            }
        }
    }
    numbers
}

/// A scale as it is stored, and the factor that takes numbers to 128ths of it.
fn stored(scale: f32) -> (f16, f32) {
    let scale = f16::from_f32(scale);
    let factor = 128.0 / scale.to_f32();
    // Numbers that are too small for a scale are zeros.
    (scale, if factor.is_finite() { factor } else { 0.0 })
}

fn eight_bits(numbers: &[f32; BLOCK], codes: &mut [u8]) -> f16 {
    let largest = numbers.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
    if numbers.iter().any(|x| x.is_nan()) {
        return f16::NAN;
    }
    let (scale, factor) = stored(largest * (128.0 / 127.0));
    for (code, x) in codes.iter_mut().zip(numbers) {
        *code = (x * factor).round().clamp(-127.0, 127.0) as i8 as u8;
    }
    scale
}

fn four_bits(numbers: &[f32; BLOCK], codes: &mut [u8], nearest: &[u8; 256]) -> f16 {
    let largest = numbers.iter().fold(0.0f32, |largest, &x| if x.abs() > largest.abs() { x } else { largest });
    // No finite scale, no codes: what is too large, or no number, is not hidden.
    let mut best = (f32::INFINITY, f16::NAN, [0; BLOCK]);
    for share in TRIED {
        let (_, factor) = stored(largest * share * (128.0 / f32::from(LEVELS[0])));
        let chosen = numbers.map(|x| nearest[((x * factor).round().clamp(-128.0, 127.0) + 128.0) as usize]);
        // The scale that is best for these codes.
        let (mut along, mut square) = (0.0, 0.0);
        for (x, code) in numbers.iter().zip(chosen) {
            let level = f32::from(LEVELS[usize::from(code)]);
            along += x * level;
            square += level * level;
        }
        let (scale, _) = stored(along / square * 128.0);
        let step = scale.to_f32() / 128.0;
        let error = |(x, code): (&f32, u8)| (x - f32::from(LEVELS[usize::from(code)]) * step).powi(2);
        let error = numbers.iter().zip(chosen).map(error).sum();
        if error < best.0 {
            best = (error, scale, chosen);
        }
    }
    let (_, scale, chosen) = best;
    for (i, byte) in codes.iter_mut().enumerate() {
        *byte = chosen[i] | chosen[BLOCK / 2 + i] << 4;
    }
    scale
}

/// The code whose level is nearest to each number from -128 to 127.
fn nearest_levels() -> [u8; 256] {
    std::array::from_fn(|i| {
        let distance = |code: &u8| (i32::from(LEVELS[usize::from(*code)]) - (i as i32 - 128)).abs();
        (0..16).min_by_key(distance).expect("there are levels")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers that look normal: sums of uniform ones.
    fn numbers(count: usize) -> Vec<f32> {
        let mut state = 1u64;
        let mut uniform = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 24) as f32 - 0.5
        };
        (0..count).map(|_| (0..12).map(|_| uniform()).sum::<f32>() * 0.02).collect()
    }

    fn back(scheme: Scheme, numbers: &[f32]) -> Vec<f32> {
        let (codes, scales) = quantise(scheme, numbers);
        dequantise(scheme, &codes, scales.into_iter())
    }

    #[test]
    fn errors_are_as_small_as_claimed() {
        let numbers = numbers(BLOCK * 3000);
        for (scheme, most) in [(Scheme::Q8, 0.006), (Scheme::Q4, 0.077)] {
            let error: f32 = back(scheme, &numbers).iter().zip(&numbers).map(|(a, b)| (a - b).powi(2)).sum();
            let relative = (error / numbers.iter().map(|x| x * x).sum::<f32>()).sqrt();
            assert!(relative < most, "{scheme}: {relative}");
        }
    }

    #[test]
    fn every_number_is_near_its_own() {
        let mut numbers = numbers(BLOCK * 100);
        for (i, x) in [(0, 0.0), (33, 1e-30), (64, -40_000.0), (97, 3e-6), (128, 1e-9)] {
            numbers[i / BLOCK * BLOCK..][..BLOCK].iter_mut().for_each(|y| *y *= x);
            numbers[i] = x;
        }
        for (scheme, share) in [(Scheme::Q8, 0.005), (Scheme::Q4, 0.17)] {
            let back = back(scheme, &numbers);
            for (block, back) in numbers.chunks(BLOCK).zip(back.chunks(BLOCK)) {
                let largest = block.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
                for (x, y) in block.iter().zip(back) {
                    // Scales below f16's normal numbers have fewer digits.
                    assert!((x - y).abs() <= largest * share + 1e-7, "{scheme}: {x} became {y}");
                }
            }
        }
    }

    #[test]
    fn what_is_too_large_or_no_number_is_not_hidden() {
        for wrong in [70_000.0, -1e6, f32::INFINITY, f32::NAN] {
            let mut numbers = numbers(2 * BLOCK);
            numbers[BLOCK + 5] = wrong;
            for scheme in [Scheme::Q8, Scheme::Q4] {
                let (_, scales) = quantise(scheme, &numbers);
                assert!(
                    scales[0].is_finite() && !scales[1].is_finite(),
                    "{scheme}: {wrong} has the scale {}",
                    scales[1]
                );
            }
        }
    }

    #[test]
    fn what_was_quantised_stays_as_it_is() {
        let once = back(Scheme::Q8, &numbers(BLOCK * 10));
        let twice = back(Scheme::Q8, &once);
        for (a, b) in once.iter().zip(twice) {
            assert!((a - b).abs() <= a.abs() * 1e-3, "{a} became {b}");
        }
    }
}

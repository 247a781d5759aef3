//! Weights in blocks of 8 or 4 bits a number ([`flamingo_config::Scheme`]), read as they are.

use std::ops::Range;

use burn::tensor::f16;
use flamingo_config::BLOCK;

use super::lanes::Lanes;
use super::stored::Weight;

/// Blocks whose scales are read together.
pub(super) const SCALES: usize = 16;

/// Where [`SCALES`] scales can be read at once: where they lie, or in `rest`, where there are fewer. A copy of a length that
/// is not known would be a call.
#[inline(always)]
pub(super) fn readable(scales: &[f16], rest: &mut [f16; SCALES]) -> *const f16 {
    if scales.len() == SCALES {
        return scales.as_ptr();
    }
    rest[..scales.len()].copy_from_slice(scales);
    rest.as_ptr()
}

/// A quantised weight, `BITS` bits a code.
pub(super) struct Quantised<'a, const BITS: usize> {
    codes: &'a [u8],
    scales: &'a [f16],
    blocks: usize,
}

impl<'a, const BITS: usize> Quantised<'a, BITS> {
    const BYTES: usize = BLOCK * BITS / 8;

    /// Rows of `blocks` blocks.
    pub(super) fn new(codes: &'a [u8], scales: &'a [f16], blocks: usize) -> Self {
        assert!(matches!(BITS, 8 | 4), "codes of 8 or 4 bits");
        assert_eq!(codes.len(), scales.len() * Self::BYTES, "codes and scales of one matrix");
        Self { codes, scales, blocks }
    }

    /// Codes, scales, and blocks of a row.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn parts(&self) -> (&[u8], &[f16], usize) {
        (self.codes, self.scales, self.blocks)
    }

    /// Calls `with` for some blocks of a row: how many came before, where its codes are, and its scale over 128.
    ///
    /// # Safety
    /// That of [`Lanes`].
    #[inline(always)]
    unsafe fn each_block<L: Lanes>(&self, row: usize, blocks: Range<usize>, mut with: impl FnMut(usize, *const u8, L)) {
        let first = row * self.blocks + blocks.start;
        let scales = &self.scales[first..][..blocks.len()];
        let codes = &self.codes[first * Self::BYTES..][..blocks.len() * Self::BYTES];
        for (chunk, scales) in scales.chunks(SCALES).enumerate() {
            let mut rest = [f16::ZERO; SCALES];
            let stored = readable(scales, &mut rest);
            let mut factors = [0.0; SCALES];
            for at in (0..SCALES).step_by(L::COUNT) {
                // SAFETY: a register's numbers lie in both; the rest is the caller's promise.
                unsafe {
                    let factor = L::load_f16(stored.add(at)).mul(L::splat(1.0 / 128.0));
                    factor.store(factors.as_mut_ptr().add(at));
                }
            }
            for (i, factor) in factors[..scales.len()].iter().enumerate() {
                let block = chunk * SCALES + i;
                // SAFETY: the row has this block; the rest is the caller's promise.
                unsafe { with(block, codes.as_ptr().add(block * Self::BYTES), L::splat(*factor)) };
            }
        }
    }

    /// Values of the codes of a block from number `at` of its first half on, and of those half a block later.
    ///
    /// # Safety
    /// That of [`Lanes`]; the codes are those of a block.
    #[inline(always)]
    unsafe fn halves<L: Lanes>(codes: *const u8, at: usize) -> [L; 2] {
        // SAFETY: the caller's promise.
        unsafe {
            if BITS == 4 {
                L::load_levels(codes.add(at))
            } else {
                [L::load_i8(codes.add(at).cast()), L::load_i8(codes.add(BLOCK / 2 + at).cast())]
            }
        }
    }
}

impl<const BITS: usize> Weight for Quantised<'_, BITS> {
    const COARSE: bool = true;

    fn size(&self) -> [usize; 2] {
        [self.scales.len() / self.blocks, self.blocks * BLOCK]
    }

    #[expect(clippy::needless_range_loop, reason = "indices of what lies in several places")]
    #[inline(always)]
    unsafe fn dots<const OUTPUTS: usize, const ROWS: usize, L: Lanes>(
        &self,
        row: usize,
        x: &[f32],
    ) -> [[L; OUTPUTS]; ROWS] {
        let d_in = self.blocks * BLOCK;
        assert_eq!(x.len(), ROWS * d_in, "inputs of another width");
        // SAFETY: places are within a block of codes and of each row of `x`; the rest is the caller's promise.
        unsafe {
            let mut sums = [[L::zero(); OUTPUTS]; ROWS];
            for output in 0..OUTPUTS {
                let mut lanes = [[L::zero(); 2]; ROWS];
                self.each_block(row + output, 0..self.blocks, |block, codes, scale: L| {
                    for at in (0..BLOCK / 2).step_by(L::COUNT) {
                        let halves = Self::halves::<L>(codes, at).map(|value| value.mul(scale));
                        for row in 0..ROWS {
                            let x = x.as_ptr().add(row * d_in + block * BLOCK + at);
                            lanes[row][0] = halves[0].mul_add(L::load(x), lanes[row][0]);
                            lanes[row][1] = halves[1].mul_add(L::load(x.add(BLOCK / 2)), lanes[row][1]);
                        }
                    }
                });
                for row in 0..ROWS {
                    sums[row][output] = lanes[row][0].add(lanes[row][1]);
                }
            }
            sums
        }
    }

    #[inline(always)]
    unsafe fn unpack<L: Lanes>(&self, row: usize, first: usize, numbers: &mut [f32]) {
        assert!(first.is_multiple_of(BLOCK) && numbers.len().is_multiple_of(BLOCK), "whole blocks");
        let blocks = first / BLOCK..(first + numbers.len()) / BLOCK;
        // SAFETY: places are within a block of codes and of `numbers`; the rest is the caller's promise.
        unsafe {
            self.each_block(row, blocks, |block, codes, scale: L| {
                for at in (0..BLOCK / 2).step_by(L::COUNT) {
                    let [low, high] = Self::halves::<L>(codes, at);
                    let to = numbers.as_mut_ptr().add(block * BLOCK + at);
                    low.mul(scale).store(to);
                    high.mul(scale).store(to.add(BLOCK / 2));
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use flamingo_config::LEVELS;

    use super::super::product::Matrix;
    use super::super::stored::Columns;
    use super::super::stored::tests::{Unpack, number, run_as, ways};
    use super::*;

    /// A number as the layout defines it.
    fn defined<const BITS: usize>(codes: &[u8], scales: &[f16], i: usize) -> f64 {
        let (block, place) = (i / BLOCK, i % BLOCK);
        let code = if BITS == 8 {
            codes[i] as i8
        } else {
            let byte = codes[block * 16 + place % 16];
            LEVELS[usize::from(if place < 16 { byte & 15 } else { byte >> 4 })]
        };
        scales[block].to_f64() * f64::from(code) / 128.0
    }

    fn sums_are_exact<const BITS: usize>() {
        for (rows, blocks) in [(1, 1), (1, 15), (1, 16), (1, 33), (2, 3), (3, 17), (4, 2), (5, 5), (9, 1)] {
            let (outputs, d_in) = (6, blocks * BLOCK);
            // Every code there is.
            let codes: Vec<u8> = (0..outputs * d_in * BITS / 8).map(|i| (i * 89) as u8).collect();
            let mut scales: Vec<f16> = (0..outputs * blocks).map(|i| f16::from_f32(number(i + 5))).collect();
            scales[0] = f16::ZERO;
            let x: Vec<f32> = (0..rows * d_in).map(number).collect();
            let bias = [0.5, -0.25, 2.0, 0.0, 1.0, -3.0];
            let weight = Quantised::<BITS>::new(&codes, &scales, blocks);
            for way in ways() {
                let mut found = vec![f32::NAN; rows * outputs];
                let (out, columns, weight) = (Matrix::of(&mut found, outputs), 0..outputs, &weight);
                // SAFETY: the output is ours and has these columns.
                run_as(way, unsafe { Columns::new(out, columns, weight, &x, Some(&bias[..]), rows) });
                for (i, found) in found.iter().enumerate() {
                    let (output, row) = (i % outputs, i / outputs);
                    let product =
                        |k: usize| defined::<BITS>(&codes, &scales, output * d_in + k) * f64::from(x[row * d_in + k]);
                    let wanted = (0..d_in).map(product).sum::<f64>() + f64::from(bias[output]);
                    let error = (f64::from(*found) - wanted).abs();
                    assert!(error < 5e-4, "{way:?}, {rows} {blocks}: {found}, not {wanted}");
                }
                let first = blocks / 2 * BLOCK;
                let mut numbers = vec![f32::NAN; d_in - first];
                run_as(way, Unpack { weight, row: 1, first, numbers: &mut numbers });
                for (i, found) in numbers.iter().enumerate() {
                    let wanted = defined::<BITS>(&codes, &scales, d_in + first + i);
                    assert!((f64::from(*found) - wanted).abs() < 1e-6, "{way:?}: {found}, not {wanted}");
                }
            }
        }
    }

    #[test]
    fn every_processor_gets_the_same_sums() {
        sums_are_exact::<8>();
        sums_are_exact::<4>();
    }
}

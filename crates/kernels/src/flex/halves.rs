//! [`super::panels`] in bf16, on processors that multiply pairs of it: `x Wᵀ` for weights that are no finer than bf16.
//!
//! Inputs are rounded to bf16, as PyTorch's autocast rounds them; sums are f32. A step of the inner dimension takes a pair
//! of numbers, 32 bits, of each row and column, so that panels are laid out as those of f32 are.

#![cfg(target_arch = "x86_64")]

use std::arch::x86_64::*;
use std::cell::Cell;

use rayon::prelude::*;

use super::lanes::Lanes;
use super::lanes::x86::Avx512;
use super::panels::{INNER, REGISTERS, ROWS, ROWS_AT_ONCE};
use super::product::Matrix;
use super::stored::Weight;

/// Numbers of a register.
const COUNT: usize = 16;

/// Columns of a panel.
const WIDTH: usize = REGISTERS * COUNT;

/// Pairs of a panel's inner dimension.
const PAIRS: usize = INNER / 2;

/// Whether this processor has what [`multiply`] needs.
pub(super) fn known() -> bool {
    is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16")
}

/// `x Wᵀ` added to `out`.
///
/// # Safety
/// [`known`]; `out` is valid for `[rows, d_out]`, nobody else reads or writes it, and `x` is `[rows, d_in]`.
pub(super) unsafe fn multiply(out: Matrix, x: &[f32], weight: &impl Weight, rows: usize, parallel: bool) {
    let [d_out, d_in] = weight.size();
    assert_eq!(x.len(), rows * d_in, "inputs of another size");
    let pairs = d_in.div_ceil(2);
    let mut rounded = vec![0u32; rows * pairs];
    let row = |(to, from): (&mut [u32], &[f32])| {
        // SAFETY: the caller's promise.
        unsafe { round(from, to) };
    };
    let panels = d_out.div_ceil(WIDTH);
    let task = |rounded: &[u32], task: usize| {
        let (first_row, first) = (task / panels * ROWS_AT_ONCE, task % panels * WIDTH);
        let some = ROWS_AT_ONCE.min(rows - first_row);
        let x = &rounded[first_row * pairs..][..some * pairs];
        let count = WIDTH.min(d_out - first);
        // SAFETY: the caller's promise; tasks write to different places.
        unsafe {
            one_panel(out.at(first_row, first), out.row, x, weight, first, count);
        }
    };
    let tasks = panels * rows.div_ceil(ROWS_AT_ONCE);
    if parallel {
        rounded.par_chunks_mut(pairs).zip(x.par_chunks(d_in)).for_each(row);
        (0..tasks).into_par_iter().for_each(|i| task(&rounded, i));
    } else {
        rounded.chunks_mut(pairs).zip(x.chunks(d_in)).for_each(row);
        (0..tasks).for_each(|i| task(&rounded, i));
    }
}

/// Numbers as bf16, two a word; an odd one is beside a zero.
///
/// # Safety
/// [`known`].
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn round(from: &[f32], to: &mut [u32]) {
    assert_eq!(to.len(), from.len().div_ceil(2), "room for every pair");
    let whole = from.len() / 32 * 32;
    for at in (0..whole).step_by(32) {
        // SAFETY: both registers are before `whole`.
        unsafe {
            let (low, high) = (_mm512_loadu_ps(from.as_ptr().add(at)), _mm512_loadu_ps(from.as_ptr().add(at + 16)));
            let both: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(high, low));
            _mm512_storeu_si512(to.as_mut_ptr().add(at / 2).cast(), both);
        }
    }
    if whole < from.len() {
        let mut rest = [0.0f32; 32];
        rest[..from.len() - whole].copy_from_slice(&from[whole..]);
        let mut rounded = [0u32; 16];
        // SAFETY: both arrays are a register or two.
        unsafe {
            let (low, high) = (_mm512_loadu_ps(rest.as_ptr()), _mm512_loadu_ps(rest.as_ptr().add(16)));
            let both: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(high, low));
            _mm512_storeu_si512(rounded.as_mut_ptr().cast(), both);
        }
        let count = to.len() - whole / 2;
        to[whole / 2..].copy_from_slice(&rounded[..count]);
    }
}

thread_local! {
    /// A panel, and rows as f32 and as pairs that it is made from.
    static BUFFERS: Cell<(Vec<u32>, Vec<f32>, Vec<u32>)> = const { Cell::new((Vec::new(), Vec::new(), Vec::new())) };
}

/// Adds rows of pairs times `count` rows of a weight, from `first` on, to `out`.
///
/// # Safety
/// [`known`]; the places of `out` are there and nobody else's.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn one_panel(out: *mut f32, out_row: isize, x: &[u32], weight: &impl Weight, first: usize, count: usize) {
    let [_, d_in] = weight.size();
    let pairs = d_in.div_ceil(2);
    let rows = x.len() / pairs;
    let (mut panel, mut numbers, mut words) = BUFFERS.take();
    panel.resize(PAIRS * WIDTH, 0);
    numbers.resize(INNER, 0.0);
    words.resize(COUNT * PAIRS, 0);
    for start in (0..d_in).step_by(INNER) {
        let depth = INNER.min(d_in - start);
        let steps = depth.div_ceil(2);
        for register in 0..REGISTERS {
            for i in 0..COUNT {
                let column = register * COUNT + i;
                let words = &mut words[i * steps..][..steps];
                if column < count {
                    // SAFETY: the caller's promise; the weight has this row.
                    unsafe {
                        weight.unpack::<Avx512>(first + column, start, &mut numbers[..depth]);
                        round(&numbers[..depth], words);
                    }
                } else {
                    words.fill(0);
                }
            }
            let whole = steps / COUNT * COUNT;
            for at in (0..whole).step_by(COUNT) {
                // SAFETY: sixteen words of sixteen rows are there, and the same in the panel; words are moved as they are.
                unsafe {
                    let to = panel.as_mut_ptr().add(at * WIDTH + register * COUNT);
                    Avx512::transpose(words.as_ptr().add(at).cast(), steps, to.cast(), WIDTH);
                }
            }
            for at in whole..steps {
                for i in 0..COUNT {
                    panel[at * WIDTH + register * COUNT + i] = words[i * steps + at];
                }
            }
        }
        let mut row = 0;
        while row < rows {
            let some = ROWS.min(rows - row);
            // SAFETY: the rows and the panel are there; the rest is the caller's promise.
            unsafe {
                let x = x.as_ptr().add(row * pairs + start / 2);
                let out = out.offset(out_row * row as isize);
                let tile = Tile { x, x_row: pairs, panel: panel.as_ptr(), steps, out, out_row, count };
                match some {
                    1 => tile.add::<1>(),
                    2 => tile.add::<2>(),
                    3 => tile.add::<3>(),
                    4 => tile.add::<4>(),
                    5 => tile.add::<5>(),
                    6 => tile.add::<6>(),
                    7 => tile.add::<7>(),
                    _ => tile.add::<ROWS>(),
                }
            }
            row += some;
        }
    }
    BUFFERS.set((panel, numbers, words));
}

/// Some rows times a panel.
struct Tile {
    x: *const u32,
    x_row: usize,
    panel: *const u32,
    steps: usize,
    out: *mut f32,
    out_row: isize,
    count: usize,
}

impl Tile {
    /// # Safety
    /// [`known`]; the places of `SOME` rows are there.
    #[expect(clippy::needless_range_loop, reason = "indices of what lies in several places")]
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn add<const SOME: usize>(&self) {
        // SAFETY: the caller's promise; both types are 512 bits.
        unsafe {
            let pairs = |words: __m512i| -> __m512bh { std::mem::transmute(words) };
            let mut sums = [[_mm512_setzero_ps(); REGISTERS]; SOME];
            let mut panel = self.panel;
            for step in 0..self.steps {
                let b: [__m512bh; REGISTERS] =
                    std::array::from_fn(|i| pairs(_mm512_loadu_si512(panel.add(i * COUNT).cast())));
                for row in 0..SOME {
                    let a = pairs(_mm512_set1_epi32(*self.x.add(row * self.x_row + step) as i32));
                    for i in 0..REGISTERS {
                        sums[row][i] = _mm512_dpbf16_ps(sums[row][i], b[i], a);
                    }
                }
                panel = panel.add(WIDTH);
            }
            for row in 0..SOME {
                let out = self.out.offset(row as isize * self.out_row);
                for i in 0..REGISTERS {
                    let left = self.count.saturating_sub(i * COUNT).min(COUNT);
                    let mask = ((1u32 << left) - 1) as __mmask16;
                    let out = out.add(i * COUNT);
                    let sum = _mm512_add_ps(sums[row][i], _mm512_maskz_loadu_ps(mask, out));
                    _mm512_mask_storeu_ps(out, mask, sum);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::bf16;

    use super::super::stored::Plain;
    use super::super::stored::tests::number;
    use super::*;

    #[test]
    fn products_of_rounded_numbers_are_exact() {
        if !known() {
            eprintln!("skipped: this processor does not multiply bf16");
            return;
        }
        for [rows, d_out, d_in] in [[1, 1, 1], [3, 48, 32], [8, 49, 33], [9, 100, 515], [400, 20, 64], [13, 97, 1030]] {
            let x: Vec<f32> = (0..rows * d_in).map(number).collect();
            let weight: Vec<f32> = (0..d_out * d_in).map(|i| number(i + 7)).collect();
            let mut out: Vec<f32> = (0..rows * d_out).map(|i| number(i + 3)).collect();
            let before = out.clone();
            // SAFETY: the processor was asked, and sizes are right.
            unsafe { multiply(Matrix::of(&mut out, d_out), &x, &Plain::new(&weight, d_in), rows, rows > 9) };
            let rounded = |x: f32| bf16::from_f32(x).to_f64();
            for (i, found) in out.iter().enumerate() {
                let (row, column) = (i / d_out, i % d_out);
                let product = |k: usize| rounded(x[row * d_in + k]) * rounded(weight[column * d_in + k]);
                let wanted = (0..d_in).map(product).sum::<f64>() + f64::from(before[i]);
                let magnitude = (0..d_in).map(|k| product(k).abs()).sum::<f64>() + 1.0;
                let error = (f64::from(*found) - wanted).abs();
                assert!(error < 1e-6 * magnitude, "{rows} {d_out} {d_in}: {found}, not {wanted}");
            }
        }
    }
}

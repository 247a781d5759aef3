//! Matrix products by panels, for more than a few rows.
//!
//! `out += x B` in the way of Goto and van de Geijn (doi 10.1145/1356052.1356053): a panel of columns of `B`, as many as
//! three registers hold, is laid out for a part of the inner dimension so that each step reads three registers in a row;
//! it stays in the second cache while all rows of `x` go by, eight at a time, read where they lie. Panels are independent,
//! and sums always go through the inner dimension in the same order: results do not depend on threads.
//!
//! `B` is what a linear layer keeps as `[d_out, d_in]`, in any format, so that laying it out is both to unpack and to
//! transpose, which registers do. A general library spent a third of the time of a prompt of 64 tokens on that.

use std::cell::Cell;
use std::ops::Range;

use rayon::prelude::*;

use super::lanes::{Lanes, Work, run};
use super::product::Matrix;

/// Inner dimension of a panel; whole blocks of quantised weights.
pub(super) const INNER: usize = 512;

/// Registers of a panel's row.
pub(super) const REGISTERS: usize = 3;

/// Columns of a task: the widest panel.
const COLUMNS: usize = REGISTERS * 16;

/// Rows that are worked on together: as many as have registers for their sums, of which WebAssembly finds sixteen on most machines.
pub(super) const ROWS: usize = if cfg!(target_arch = "wasm32") { 4 } else { 8 };

/// Rows that are worth laying a panel out again for another thread.
pub(super) const ROWS_AT_ONCE: usize = 384;

/// The right factor of a product, `[k, n]`.
pub(super) trait Factor: Sync {
    /// Numbers of one column, from `first` of the inner dimension on, where columns are what lies together.
    ///
    /// # Safety
    /// That of [`Lanes`]; the column is there.
    unsafe fn column<L: Lanes>(&self, column: usize, first: usize, numbers: &mut [f32]);

    /// Where a row's numbers lie together, those of some columns.
    ///
    /// # Safety
    /// The row and the columns are there.
    unsafe fn row(&self, _row: usize, _columns: Range<usize>) -> Option<*const f32> {
        None
    }
}

impl Factor for Matrix {
    #[inline(always)]
    unsafe fn column<L: Lanes>(&self, column: usize, first: usize, numbers: &mut [f32]) {
        // SAFETY: the caller's promise.
        unsafe {
            let from = self.start.offset(self.column * column as isize);
            for (i, number) in numbers.iter_mut().enumerate() {
                *number = *from.offset(self.row * (first + i) as isize);
            }
        }
    }

    #[inline(always)]
    unsafe fn row(&self, row: usize, columns: Range<usize>) -> Option<*const f32> {
        // SAFETY: the caller's promise.
        let start = || unsafe { self.start.offset(self.row * row as isize).add(columns.start) };
        (self.column == 1).then(|| start().cast_const())
    }
}

/// `out = factor a b`, or `out += factor a b` if it is `added` to; `a` is `[m, k]`, `b` `[k, n]`.
///
/// # Safety
/// As `super::product::product`'s.
pub(super) unsafe fn multiply(
    out: Matrix,
    added: bool,
    a: Matrix,
    b: &impl Factor,
    [m, n, k]: [usize; 3],
    factor: f32,
    parallel: bool,
) {
    assert_eq!(out.column, 1, "rows of the output lie together");
    let panels = n.div_ceil(COLUMNS);
    let task = |task: usize| {
        let (rows, columns) = (task / panels * ROWS_AT_ONCE, task % panels * COLUMNS);
        let rows = rows..(rows + ROWS_AT_ONCE).min(m);
        let columns = columns..(columns + COLUMNS).min(n);
        run(Panels { out, added, a, b, rows, columns, k, factor });
    };
    let tasks = panels * m.div_ceil(ROWS_AT_ONCE);
    if parallel {
        (0..tasks).into_par_iter().for_each(task);
    } else {
        (0..tasks).for_each(task);
    }
}

/// Some rows and columns of a product.
struct Panels<'a, F> {
    out: Matrix,
    added: bool,
    a: Matrix,
    b: &'a F,
    rows: Range<usize>,
    columns: Range<usize>,
    k: usize,
    factor: f32,
}

impl<F: Factor> Work for Panels<'_, F> {
    #[inline(always)]
    unsafe fn with<L: Lanes>(self) {
        let Self { out, added, a, b, rows, columns, k, factor } = self;
        let width = REGISTERS * L::COUNT;
        let [mut panel, mut scratch] = BUFFERS.take();
        panel.resize(INNER * width, 0.0);
        scratch.resize(INNER * L::COUNT.max(ROWS), 0.0);
        for first in columns.clone().step_by(width) {
            let count = width.min(columns.end - first);
            // Once also where there is nothing to add up.
            for start in (0..k.max(1)).step_by(INNER) {
                let depth = INNER.min(k - start);
                // SAFETY: the ranges lie in the matrices, the buffers hold a panel; the rest is the caller's promise.
                unsafe {
                    lay_out::<L>(b, first..first + count, start..start + depth, &mut panel, &mut scratch);
                    let mut row = rows.start;
                    while row < rows.end {
                        let some = ROWS.min(rows.end - row);
                        let x = a.at(row, start).cast_const();
                        let (x, steps) = if a.row == 1 && some == ROWS {
                            // Steps of whole rows would leave the first cache, and a page each.
                            for (i, to) in scratch.chunks_exact_mut(ROWS).take(depth).enumerate() {
                                let from = x.offset(a.column * i as isize);
                                to.copy_from_slice(std::slice::from_raw_parts(from, ROWS));
                            }
                            (scratch.as_ptr(), [1, ROWS as isize])
                        } else {
                            (x, [a.row, a.column])
                        };
                        let tile = Tile {
                            x,
                            steps,
                            panel: panel.as_ptr(),
                            depth,
                            out: out.at(row, first),
                            out_row: out.row,
                            count,
                            added: added || start > 0,
                            factor,
                        };
                        match some {
                            1 => tile.compute::<1, L>(),
                            2 => tile.compute::<2, L>(),
                            3 => tile.compute::<3, L>(),
                            4 => tile.compute::<4, L>(),
                            5 => tile.compute::<5, L>(),
                            6 => tile.compute::<6, L>(),
                            7 => tile.compute::<7, L>(),
                            _ => tile.compute::<ROWS, L>(),
                        }
                        row += some;
                    }
                }
            }
        }
        BUFFERS.set([panel, scratch]);
    }
}

thread_local! {
    /// A panel and what it is made from: a thread's own, so that nobody clears them again.
    static BUFFERS: Cell<[Vec<f32>; 2]> = const { Cell::new([Vec::new(), Vec::new()]) };
}

/// Lays a panel out, `[inner, width]`, zeros after the last column.
///
/// # Safety
/// That of [`Lanes`]; the ranges lie in `b`.
#[inline(always)]
unsafe fn lay_out<L: Lanes>(
    b: &impl Factor,
    columns: Range<usize>,
    inner: Range<usize>,
    panel: &mut [f32],
    scratch: &mut [f32],
) {
    let width = REGISTERS * L::COUNT;
    let depth = inner.len();
    if depth == 0 {
        return;
    }
    // SAFETY: places are within the panel and the scratch, which are long enough; the rest is the caller's promise.
    unsafe {
        if b.row(inner.start, columns.clone()).is_some() {
            for (row, to) in inner.zip(panel.chunks_exact_mut(width)) {
                let from = b.row(row, columns.clone()).expect("rows are alike");
                if columns.len() == width {
                    for at in (0..width).step_by(L::COUNT) {
                        L::load(from.add(at)).store(to.as_mut_ptr().add(at));
                    }
                    continue;
                }
                to[..columns.len()].copy_from_slice(std::slice::from_raw_parts(from, columns.len()));
                to[columns.len()..].fill(0.0);
            }
            return;
        }
        for register in 0..REGISTERS {
            let first = columns.start + register * L::COUNT;
            let scratch = &mut scratch[..L::COUNT * depth];
            for (i, numbers) in scratch.chunks_exact_mut(depth).enumerate() {
                if first + i < columns.end {
                    b.column::<L>(first + i, inner.start, numbers);
                } else {
                    numbers.fill(0.0);
                }
            }
            let whole = depth / L::COUNT * L::COUNT;
            for at in (0..whole).step_by(L::COUNT) {
                let to = panel.as_mut_ptr().add(at * width + register * L::COUNT);
                L::transpose(scratch.as_ptr().add(at), depth, to, width);
            }
            for at in whole..depth {
                for i in 0..L::COUNT {
                    panel[at * width + register * L::COUNT + i] = scratch[i * depth + at];
                }
            }
        }
    }
}

/// Some rows times a panel.
struct Tile {
    x: *const f32,
    /// How far rows and columns of `x` are apart.
    steps: [isize; 2],
    panel: *const f32,
    depth: usize,
    out: *mut f32,
    out_row: isize,
    /// Columns of the output.
    count: usize,
    added: bool,
    factor: f32,
}

impl Tile {
    /// # Safety
    /// That of [`Lanes`]; the places of `depth`, `count` and `SOME` rows are there.
    #[expect(clippy::needless_range_loop, reason = "indices of what lies in several places")]
    #[inline(always)]
    unsafe fn compute<const SOME: usize, L: Lanes>(&self) {
        let width = REGISTERS * L::COUNT;
        // SAFETY: the caller's promise.
        unsafe {
            let mut sums = [[L::zero(); REGISTERS]; SOME];
            let mut panel = self.panel;
            let mut x = self.x;
            for _ in 0..self.depth {
                let b: [L; REGISTERS] = std::array::from_fn(|i| L::load(panel.add(i * L::COUNT)));
                for row in 0..SOME {
                    let a = L::splat(*x.offset(row as isize * self.steps[0]));
                    for i in 0..REGISTERS {
                        sums[row][i] = b[i].mul_add(a, sums[row][i]);
                    }
                }
                panel = panel.add(width);
                x = x.offset(self.steps[1]);
            }
            let factor = L::splat(self.factor);
            for row in 0..SOME {
                let out = self.out.offset(row as isize * self.out_row);
                if self.count == width {
                    for i in 0..REGISTERS {
                        let out = out.add(i * L::COUNT);
                        let sum = sums[row][i];
                        let sum = if self.added { sum.mul_add(factor, L::load(out)) } else { sum.mul(factor) };
                        sum.store(out);
                    }
                } else {
                    let mut whole = [0.0f32; COLUMNS];
                    for i in 0..REGISTERS {
                        sums[row][i].mul(factor).store(whole.as_mut_ptr().add(i * L::COUNT));
                    }
                    for (i, sum) in whole[..self.count].iter().enumerate() {
                        let out = out.add(i);
                        *out = if self.added { *out + sum } else { *sum };
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::stored::tests::{number, run_as, ways};
    use super::*;

    /// Rows that are apart, columns that are, and what is added to, for sizes with and without rests.
    #[test]
    fn every_processor_gets_the_same_products() {
        let sizes = [[1, 1, 1], [3, 48, 16], [8, 49, 17], [9, 100, 33], [17, 12, 513], [5, 97, 1030], [2, 3, 0]];
        for [m, n, k] in sizes {
            let a: Vec<f32> = (0..m * k).map(number).collect();
            let b: Vec<f32> = (0..k * n).map(|i| number(i + 11)).collect();
            let size = |rows, columns| Matrix { start: std::ptr::null_mut(), row: columns, column: rows };
            // Row by row, and column by column.
            let layouts = |rows: usize, columns: usize| [size(1, columns as isize), size(rows as isize, 1)];
            for (a_steps, b_steps) in layouts(m, k).into_iter().flat_map(|a| layouts(k, n).map(|b| (a, b))) {
                let at = |steps: Matrix, row: usize, column: usize| {
                    row * steps.row as usize + column * steps.column as usize
                };
                for added in [false, true] {
                    for way in ways() {
                        let mut out: Vec<f32> = (0..m * n).map(|i| number(i + 3)).collect();
                        let before = out.clone();
                        let work = Panels {
                            out: Matrix::of(&mut out, n),
                            added,
                            a: Matrix { start: a.as_ptr().cast_mut(), ..a_steps },
                            b: &Matrix { start: b.as_ptr().cast_mut(), ..b_steps },
                            rows: 0..m,
                            columns: 0..n,
                            k,
                            factor: 0.5,
                        };
                        run_as(way, work);
                        for (i, found) in out.iter().enumerate() {
                            let (row, column) = (i / n, i % n);
                            let product = |inner: usize| {
                                let (a, b) = (a[at(a_steps, row, inner)], b[at(b_steps, inner, column)]);
                                f64::from(a) * f64::from(b)
                            };
                            let sum = (0..k).map(product).sum::<f64>() * 0.5;
                            let wanted = sum + if added { f64::from(before[i]) } else { 0.0 };
                            let error = (f64::from(*found) - wanted).abs();
                            assert!(error < 1e-3, "{way:?}, {m} {n} {k}, {added}: {found}, not {wanted}");
                        }
                    }
                }
            }
        }
    }
}

//! Matrix products of whatever lies in memory with regular steps.

use gemm::Parallelism;

use super::panels::multiply;

/// A matrix: where it starts and how far rows and columns are apart.
#[derive(Clone, Copy)]
pub(super) struct Matrix {
    pub(super) start: *mut f32,
    pub(super) row: isize,
    pub(super) column: isize,
}

// SAFETY: a place; who reads or writes there promises that nobody else writes.
unsafe impl Send for Matrix {}
// SAFETY: the same.
unsafe impl Sync for Matrix {}

impl Matrix {
    /// A matrix that is written to, with so many columns, row by row.
    pub(super) fn of(values: &mut [f32], columns: usize) -> Self {
        Self { start: values.as_mut_ptr(), row: columns as isize, column: 1 }
    }

    /// A matrix of `[rows, columns]` that is only read, row by row.
    pub(super) fn read(values: &[f32], [rows, columns]: [usize; 2]) -> Self {
        assert_eq!(values.len(), rows * columns, "a matrix of another size");
        Self { start: values.as_ptr().cast_mut(), row: columns as isize, column: 1 }
    }

    /// The place of an element.
    ///
    /// # Safety
    /// It is there.
    pub(super) unsafe fn at(self, row: usize, column: usize) -> *mut f32 {
        // SAFETY: the caller's promise.
        unsafe { self.start.offset(self.row * row as isize + self.column * column as isize) }
    }

    pub(super) fn transposed(self) -> Self {
        Self { row: self.column, column: self.row, ..self }
    }
}

/// Multiplications that are worth a second thread.
const WORTH_THREADS: usize = 192 * 192 * 192;

/// Whether a product of these sizes is worth more than one thread.
pub(super) fn worth_threads([m, n, k]: [usize; 3]) -> bool {
    m * n * k >= WORTH_THREADS
}

/// Rows from which on panels are taken for faster than another library's products.
const ROWS_OF_PANELS: usize = 4;

/// `out = factor a b`, or `out += factor a b` if it is `added` to; `a` is `[m, k]`, `b` `[k, n]`.
///
/// # Safety
/// All three matrices must be valid for their sizes, and nobody else may read or write `out`, which may hold anything if it
/// is not `added` to.
pub(super) unsafe fn product(
    out: Matrix,
    added: bool,
    a: Matrix,
    b: Matrix,
    [m, n, k]: [usize; 3],
    factor: f32,
    parallel: bool,
) {
    if m >= ROWS_OF_PANELS && out.column == 1 {
        // SAFETY: the caller's promise.
        return unsafe { multiply(out, added, a, &b, [m, n, k], factor, parallel) };
    }
    let threads = if parallel { Parallelism::Rayon(0) } else { Parallelism::None };
    // SAFETY: the caller's promise.
    unsafe {
        gemm::gemm(
            m, n, k, out.start, out.column, out.row, added, a.start, a.column, a.row, b.start, b.column, b.row, 1.0,
            factor, false, false, false, threads,
        );
    }
}

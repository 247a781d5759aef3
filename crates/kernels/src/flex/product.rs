//! Matrix products of whatever lies in memory with regular steps.

use gemm::Parallelism;

/// A matrix: where it starts and how far rows and columns are apart.
#[derive(Clone, Copy)]
pub(super) struct Matrix {
    pub(super) start: *mut f32,
    pub(super) row: isize,
    pub(super) column: isize,
}

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

    pub(super) fn transposed(self) -> Self {
        Self { row: self.column, column: self.row, ..self }
    }
}

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
    threads: Parallelism,
) {
    // SAFETY: the caller's promise.
    unsafe {
        gemm::gemm(
            m, n, k, out.start, out.column, out.row, added, a.start, a.column, a.row, b.start, b.column, b.row, 1.0,
            factor, false, false, false, threads,
        );
    }
}

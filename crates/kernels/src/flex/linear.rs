//! Linear layers: products into memory that nobody clears first, with the bias already there.

use burn::tensor::{Shape, TensorMetadata};
use burn_flex::FlexTensor;
use gemm::Parallelism;
use pulp::Arch;
use rayon::prelude::*;

use super::{BLOCK, contiguous, filled, fresh, values};

/// Multiplications that are worth a second thread.
const WORTH_THREADS: usize = 192 * 192 * 192;

/// Where a matrix lies: its first element, and how far rows and columns are apart.
#[derive(Clone, Copy)]
struct Matrix<'a> {
    values: &'a [f32],
    row: isize,
    column: isize,
}

impl<'a> Matrix<'a> {
    /// A contiguous matrix of so many columns.
    fn new(values: &'a [f32], columns: usize) -> Self {
        Self { values, row: columns as isize, column: 1 }
    }

    fn transposed(self) -> Self {
        Self { row: self.column, column: self.row, ..self }
    }
}

/// `out += a b`, where `a` is `[m, k]`, `b` `[k, n]` and `out` a contiguous `[m, n]`; `out = a b` if it is not `added`.
///
/// # Safety
/// The three must be valid for these sizes; `out` may hold anything if it is not `added` to.
unsafe fn product(out: *mut f32, added: bool, a: Matrix, b: Matrix, [m, n, k]: [usize; 3]) {
    let threads = if m * n * k < WORTH_THREADS { Parallelism::None } else { Parallelism::Rayon(0) };
    // SAFETY: the caller's promise.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out,
            1,
            n as isize,
            added,
            a.values.as_ptr(),
            a.column,
            a.row,
            b.values.as_ptr(),
            b.column,
            b.row,
            1.0,
            1.0,
            false,
            false,
            false,
            threads,
        );
    }
}

/// `a b` as a tensor `[m, n]`.
fn product_of(a: Matrix, b: Matrix, [m, n, k]: [usize; 3]) -> FlexTensor {
    if k == 0 {
        return fresh(vec![0.0; m * n], Shape::new([m, n]));
    }
    let mut out: Vec<f32> = Vec::with_capacity(m * n);
    // SAFETY: the callers' matrices have these sizes, and a product whose sums are not empty writes every element.
    unsafe {
        product(out.as_mut_ptr(), false, a, b, [m, n, k]);
        out.set_len(m * n);
    }
    fresh(out, Shape::new([m, n]))
}

/// `[rows, d_in]` times the transposed `[d_out, d_in]`, and the bias.
pub(super) fn forward(x: FlexTensor, weight: FlexTensor, bias: Option<FlexTensor>) -> FlexTensor {
    let ([rows, d_in], [d_out, d_weight]) = (x.shape().dims(), weight.shape().dims());
    assert_eq!(d_in, d_weight, "the weight is for inputs of another width");
    let (x, weight, bias) = (contiguous(x), contiguous(weight), bias.map(contiguous));
    let (a, b) = (Matrix::new(values(&x), d_in), Matrix::new(values(&weight), d_in).transposed());
    let Some(bias) = &bias else { return product_of(a, b, [rows, d_out, d_in]) };
    let bias = values(bias);
    assert_eq!(d_out, bias.len(), "the bias is for outputs of another width");
    let mut out = filled(rows * d_out, (BLOCK / d_out).max(1) * d_out, |_, block| {
        block.chunks_exact_mut(d_out).for_each(|row| row.copy_from_slice(bias));
    });
    // SAFETY: the sizes are those of the tensors.
    unsafe { product(out.as_mut_ptr(), true, a, b, [rows, d_out, d_in]) };
    fresh(out, Shape::new([rows, d_out]))
}

/// The gradient of the input: `[rows, d_out]` times `[d_out, d_in]`.
pub(super) fn input_gradient(weight: FlexTensor, grad: FlexTensor) -> FlexTensor {
    let ([rows, d_out], [d_weight, d_in]) = (grad.shape().dims(), weight.shape().dims());
    assert_eq!(d_out, d_weight, "the weight is for outputs of another width");
    let (weight, grad) = (contiguous(weight), contiguous(grad));
    product_of(Matrix::new(values(&grad), d_out), Matrix::new(values(&weight), d_in), [rows, d_in, d_out])
}

/// The gradient of the weight, `[d_out, d_in]`.
pub(super) fn weight_gradient(x: FlexTensor, grad: FlexTensor) -> FlexTensor {
    let ([rows, d_in], [d_rows, d_out]) = (x.shape().dims(), grad.shape().dims());
    assert_eq!(rows, d_rows, "the gradient is of another number of rows");
    let (x, grad) = (contiguous(x), contiguous(grad));
    let grad = Matrix::new(values(&grad), d_out).transposed();
    product_of(grad, Matrix::new(values(&x), d_in), [d_out, d_in, rows])
}

/// The gradient of the bias, `[d_out]`: sums of columns.
pub(super) fn bias_gradient(grad: FlexTensor) -> FlexTensor {
    let [_, d_out] = grad.shape().dims();
    let grad = contiguous(grad);
    let arch = Arch::new();
    let sums: Vec<Vec<f32>> = values(&grad)
        .par_chunks((BLOCK / d_out).max(1) * d_out)
        .map(|block| {
            let mut sums = vec![0.0f32; d_out];
            arch.dispatch(|| {
                for row in block.chunks_exact(d_out) {
                    sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
                }
            });
            sums
        })
        .collect();
    let mut total = vec![0.0f32; d_out];
    for sums in sums {
        total.iter_mut().zip(sums).for_each(|(total, x)| *total += x);
    }
    fresh(total, Shape::new([d_out]))
}

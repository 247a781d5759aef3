//! Linear layers: one product into memory that nobody clears for it, or where the bias is already.

use burn::tensor::{Shape, TensorMetadata};
use burn_flex::FlexTensor;
use gemm::Parallelism;
use pulp::Arch;
use rayon::prelude::*;

use super::product::{Matrix, product};
use super::{contiguous, filled, fresh, rows_at_once, values};

/// Multiplications that are worth a second thread.
const WORTH_THREADS: usize = 192 * 192 * 192;

fn threads([m, n, k]: [usize; 3]) -> Parallelism {
    if m * n * k < WORTH_THREADS { Parallelism::None } else { Parallelism::Rayon(0) }
}

/// `a b` as a tensor `[m, n]`.
///
/// # Safety
/// `a` must be valid for `[m, k]` and `b` for `[k, n]`.
unsafe fn product_of(a: Matrix, b: Matrix, size: [usize; 3]) -> FlexTensor {
    let [m, n, _] = size;
    let mut out: Vec<f32> = Vec::with_capacity(m * n);
    let to = Matrix { start: out.as_mut_ptr(), row: n as isize, column: 1 };
    // SAFETY: the caller's promise; every element of `out` is written, empty sums as zeros.
    unsafe {
        product(to, false, a, b, size, 1.0, threads(size));
        out.set_len(m * n);
    }
    fresh(out, Shape::new([m, n]))
}

/// `[rows, d_in]` times the transposed `[d_out, d_in]`, and the bias.
pub(super) fn forward(x: FlexTensor, weight: FlexTensor, bias: Option<FlexTensor>) -> FlexTensor {
    let ([rows, d_in], [d_out, d_weight]) = (x.shape().dims(), weight.shape().dims());
    assert_eq!(d_in, d_weight, "the weight is for inputs of another width");
    let (x, weight, bias) = (contiguous(x), contiguous(weight), bias.map(contiguous));
    let a = Matrix::read(values(&x), [rows, d_in]);
    let b = Matrix::read(values(&weight), [d_out, d_in]).transposed();
    let size = [rows, d_out, d_in];
    let Some(bias) = &bias else {
        // SAFETY: both have these sizes.
        return unsafe { product_of(a, b, size) };
    };
    let bias = values(bias);
    assert_eq!(d_out, bias.len(), "the bias is for outputs of another width");
    let mut out = filled(rows * d_out, rows_at_once(d_out) * d_out, |_, block| {
        block.chunks_exact_mut(d_out).for_each(|row| row.copy_from_slice(bias));
    });
    // SAFETY: all three have these sizes.
    unsafe { product(Matrix::of(&mut out, d_out), true, a, b, size, 1.0, threads(size)) };
    fresh(out, Shape::new([rows, d_out]))
}

/// The gradient of the input: `[rows, d_out]` times `[d_out, d_in]`.
pub(super) fn input_gradient(weight: FlexTensor, grad: FlexTensor) -> FlexTensor {
    let ([rows, d_out], [d_weight, d_in]) = (grad.shape().dims(), weight.shape().dims());
    assert_eq!(d_out, d_weight, "the weight is for outputs of another width");
    let (weight, grad) = (contiguous(weight), contiguous(grad));
    let a = Matrix::read(values(&grad), [rows, d_out]);
    let b = Matrix::read(values(&weight), [d_out, d_in]);
    // SAFETY: both have these sizes.
    unsafe { product_of(a, b, [rows, d_in, d_out]) }
}

/// The gradient of the weight, `[d_out, d_in]`.
pub(super) fn weight_gradient(x: FlexTensor, grad: FlexTensor) -> FlexTensor {
    let ([rows, d_in], [d_rows, d_out]) = (x.shape().dims(), grad.shape().dims());
    assert_eq!(rows, d_rows, "the gradient is of another number of rows");
    let (x, grad) = (contiguous(x), contiguous(grad));
    let a = Matrix::read(values(&grad), [rows, d_out]).transposed();
    let b = Matrix::read(values(&x), [rows, d_in]);
    // SAFETY: both have these sizes.
    unsafe { product_of(a, b, [d_out, d_in, rows]) }
}

/// The gradient of the bias, `[d_out]`: sums of columns.
pub(super) fn bias_gradient(grad: FlexTensor) -> FlexTensor {
    let [_, d_out] = grad.shape().dims();
    let grad = contiguous(grad);
    let arch = Arch::new();
    let sums: Vec<Vec<f32>> = values(&grad)
        .par_chunks((rows_at_once(d_out) * d_out).max(1))
        .map(|block| {
            let mut sums = vec![0.0f32; d_out];
            arch.dispatch(|| {
                for row in block.chunks_exact(d_out.max(1)) {
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

//! Linear layers: one product into memory that nobody clears for it, or where the bias is already.

use burn::tensor::{DType, Shape, TensorMetadata, bf16, f16};
use burn_flex::FlexTensor;
use flamingo_config::{BLOCK, Scheme};
use rayon::prelude::*;

#[cfg(target_arch = "x86_64")]
use super::fixed;
use super::formats::{Half, by_rows, halves, narrowed, of_halves, wide, widen_into, widened};
use super::lanes::{Lanes, Work, run};
use super::product::{Matrix, product, worth_threads};
use super::quantised::Quantised;
use super::stored::{Plain, Weight, few_rows, many_rows};
use super::{contiguous, filled, fresh, rows_at_once, values};

/// `a b`, `[m, n]`.
///
/// # Safety
/// `a` must be valid for `[m, k]` and `b` for `[k, n]`.
unsafe fn product_of(a: Matrix, b: Matrix, size: [usize; 3]) -> Vec<f32> {
    let [m, n, _] = size;
    let mut out: Vec<f32> = Vec::with_capacity(m * n);
    let to = Matrix { start: out.as_mut_ptr(), row: n as isize, column: 1 };
    // SAFETY: the caller's promise; every element of `out` is written, empty sums as zeros.
    unsafe {
        product(to, false, a, b, size, 1.0, worth_threads(size));
        out.set_len(m * n);
    }
    out
}

/// Rows of inputs up to which outputs are dot products, in which no row depends on another; more go through panels. (For f32
/// panels would be as fast from 7 rows on.)
pub const FEW: usize = 8;

/// `[rows, d_in]` times the transposed `[d_out, d_in]`, and the bias. The weight may be f32, f16 or bf16, the rest is f32.
pub(super) fn forward(x: FlexTensor, weight: FlexTensor, bias: Option<FlexTensor>) -> FlexTensor {
    let [rows, d_out, _] = sizes(&x, &weight, bias.as_ref());
    let (x, weight, bias) = (contiguous(x), contiguous(weight), bias.map(contiguous));
    let out = of_tensor(values(&x), &weight, bias.as_ref().map(values), rows);
    fresh(out, Shape::new([rows, d_out]))
}

/// [`forward`] of halves, in their format.
pub(super) fn forward_of_halves<H: Half>(x: FlexTensor, weight: FlexTensor, bias: Option<FlexTensor>) -> FlexTensor {
    let [rows, d_out, d_in] = sizes(&x, &weight, bias.as_ref());
    let (x, weight, bias) = (contiguous(x), contiguous(weight), bias.map(|bias| contiguous(widened(bias))));
    let bias = bias.as_ref().map(values);
    let out = by_rows(halves::<H>(&x), [rows, d_out, d_in], |x, rows| of_tensor(x, &weight, bias, rows));
    of_halves(out, Shape::new([rows, d_out]))
}

/// Rows, outputs and inputs of a layer.
fn sizes(x: &FlexTensor, weight: &FlexTensor, bias: Option<&FlexTensor>) -> [usize; 3] {
    let ([rows, d_in], [d_out, d_weight]) = (x.shape().dims(), weight.shape().dims());
    assert_eq!(d_in, d_weight, "the weight is for inputs of another width");
    let fits = |bias: &FlexTensor| bias.shape().dims::<1>() == [d_out];
    assert!(bias.is_none_or(fits), "the bias is for outputs of another width");
    [rows, d_out, d_in]
}

/// Rows of inputs times a contiguous weight, f32, f16 or bf16.
fn of_tensor(x: &[f32], weight: &FlexTensor, bias: Option<&[f32]>, rows: usize) -> Vec<f32> {
    let [d_out, d_in] = weight.shape().dims();
    match weight.dtype() {
        // Nothing to add up.
        _ if rows * d_out * d_in == 0 => biases(bias, [rows, d_out, d_in]),
        DType::F16 => of_rows(x, &Plain::new(halves::<f16>(weight), d_in), bias, rows),
        DType::BF16 => of_rows(x, &Plain::new(halves::<bf16>(weight), d_in), bias, rows),
        _ => of_rows(x, &Plain::new(values(weight), d_in), bias, rows),
    }
}

/// [`forward`] with a quantised weight, in the layout of [`Scheme`]; scales are f16.
pub(super) fn forward_of_quantised(
    x: FlexTensor,
    scheme: Scheme,
    codes: FlexTensor,
    scales: FlexTensor,
    bias: Option<FlexTensor>,
) -> FlexTensor {
    let ([rows, d_in], [d_out, blocks], [_, words]) = (x.shape().dims(), scales.shape().dims(), codes.shape().dims());
    assert_eq!([blocks * BLOCK, scheme.row_words(d_in)], [d_in, words], "the weight is for inputs of another width");
    let (x, codes, scales) = (contiguous(x), contiguous(codes), contiguous(scales));
    let bias = bias.map(contiguous);
    let bias = bias.as_ref().map(values);
    assert!(bias.is_none_or(|bias| bias.len() == d_out), "the bias is for outputs of another width");
    let words = &codes.storage::<i32>()[super::elements(&codes)];
    // Little-endian words, whose bytes lie as the layout says.
    let bytes = bytemuck::cast_slice(words);
    let (x, scales) = (values(&x), halves::<f16>(&scales));
    let out = if rows * d_out * d_in == 0 {
        biases(bias, [rows, d_out, d_in])
    } else {
        match scheme {
            Scheme::Q8 => of_quantised(x, &Quantised::<8>::new(bytes, scales, blocks), bias, rows),
            Scheme::Q4 => of_quantised(x, &Quantised::<4>::new(bytes, scales, blocks), bias, rows),
        }
    };
    fresh(out, Shape::new([rows, d_out]))
}

fn of_quantised<const BITS: usize>(x: &[f32], weight: &Quantised<BITS>, bias: Option<&[f32]>, rows: usize) -> Vec<f32> {
    #[cfg(target_arch = "x86_64")]
    if rows <= FEW && fixed::known() {
        // SAFETY: the processor was asked.
        return unsafe { fixed::few_rows(x, weight, bias, rows) };
    }
    of_rows(x, weight, bias, rows)
}

fn of_rows(x: &[f32], weight: &impl Weight, bias: Option<&[f32]>, rows: usize) -> Vec<f32> {
    if rows <= FEW {
        return few_rows(x, weight, bias, rows);
    }
    let [d_out, d_in] = weight.size();
    let mut out = biases(bias, [rows, d_out, d_in]);
    many_rows(x, weight, &mut out, rows);
    out
}

/// The bias in every row, or zeros.
fn biases(bias: Option<&[f32]>, [rows, d_out, _]: [usize; 3]) -> Vec<f32> {
    filled(rows * d_out, rows_at_once(d_out) * d_out, |_, block| {
        if let Some(bias) = bias {
            block.chunks_exact_mut(d_out).for_each(|row| row.copy_from_slice(bias));
        }
    })
}

/// The gradient of the input: `[rows, d_out]` times `[d_out, d_in]`.
pub(super) fn input_gradient(weight: FlexTensor, grad: FlexTensor) -> FlexTensor {
    let ([rows, d_out], [d_weight, d_in]) = (grad.shape().dims(), weight.shape().dims());
    assert_eq!(d_out, d_weight, "the weight is for outputs of another width");
    let (weight, grad) = (contiguous(weight), contiguous(grad));
    let a = Matrix::read(values(&grad), [rows, d_out]);
    let b = Matrix::read(values(&weight), [d_out, d_in]);
    // SAFETY: both have these sizes.
    let gradient = unsafe { product_of(a, b, [rows, d_in, d_out]) };
    fresh(gradient, Shape::new([rows, d_in]))
}

/// Outputs whose weights and gradients are in f32 at a time.
const OUTPUTS: usize = 1024;

/// [`input_gradient`] of halves, in their format.
pub(super) fn input_gradient_of_halves<H: Half>(weight: FlexTensor, grad: FlexTensor) -> FlexTensor {
    let ([rows, d_out], [d_weight, d_in]) = (grad.shape().dims(), weight.shape().dims());
    assert_eq!(d_out, d_weight, "the weight is for outputs of another width");
    let (weight, grad) = (contiguous(weight), contiguous(grad));
    let mut gradient = vec![0.0; rows * d_in];
    for first in (0..d_out).step_by(OUTPUTS) {
        let count = OUTPUTS.min(d_out - first);
        let b = wide(&halves::<H>(&weight)[first * d_in..][..count * d_in]);
        let row = |row: usize| &halves::<H>(&grad)[row * d_out + first..][..count];
        let a = filled(rows * count, count, |place, to| widen_into(row(place), to));
        let (out, size) = (Matrix::of(&mut gradient, d_in), [rows, d_in, count]);
        let (a, b) = (Matrix::read(&a, [rows, count]), Matrix::read(&b, [count, d_in]));
        // SAFETY: all three have these sizes; the first product writes over zeros.
        unsafe { product(out, first > 0, a, b, size, 1.0, worth_threads(size)) };
    }
    narrowed(fresh(gradient, Shape::new([rows, d_in])), H::DTYPE)
}

/// The gradient of the weight, `[d_out, d_in]`.
pub(super) fn weight_gradient(x: FlexTensor, grad: FlexTensor) -> FlexTensor {
    let ([rows, d_in], [d_rows, d_out]) = (x.shape().dims(), grad.shape().dims());
    assert_eq!(rows, d_rows, "the gradient is of another number of rows");
    let (x, grad) = (contiguous(x), contiguous(grad));
    let a = Matrix::read(values(&grad), [rows, d_out]).transposed();
    let b = Matrix::read(values(&x), [rows, d_in]);
    // SAFETY: both have these sizes.
    let gradient = unsafe { product_of(a, b, [d_out, d_in, rows]) };
    fresh(gradient, Shape::new([d_out, d_in]))
}

/// The gradient of the bias, `[d_out]`: sums of columns.
pub(super) fn bias_gradient(grad: FlexTensor) -> FlexTensor {
    let [_, d_out] = grad.shape().dims();
    let grad = contiguous(grad);
    let sums: Vec<Vec<f32>> = values(&grad)
        .par_chunks((rows_at_once(d_out) * d_out).max(1))
        .map(|block| {
            let mut sums = vec![0.0f32; d_out];
            run(Sums { rows: block, sums: &mut sums });
            sums
        })
        .collect();
    let mut total = vec![0.0f32; d_out];
    for sums in sums {
        total.iter_mut().zip(sums).for_each(|(total, x)| *total += x);
    }
    fresh(total, Shape::new([d_out]))
}

/// Rows, and the sums of their columns.
struct Sums<'a> {
    rows: &'a [f32],
    sums: &'a mut [f32],
}

impl Work for Sums<'_> {
    #[inline(always)]
    unsafe fn with<L: Lanes>(self) {
        for row in self.rows.chunks_exact(self.sums.len().max(1)) {
            for (sum, x) in self.sums.iter_mut().zip(row) {
                *sum += x;
            }
        }
    }
}

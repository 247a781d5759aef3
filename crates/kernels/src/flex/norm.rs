//! Layer norm and its gradients.

use burn::tensor::TensorMetadata;
use burn_flex::FlexTensor;

use rayon::prelude::*;

use super::formats::widened;
use super::lanes::{Lanes, Work, run};
use super::{BLOCK, contiguous, filled, filled_beside, fresh, math, rows_at_once, values};

/// Mean and inverse deviation of a row.
#[inline(always)]
fn statistics(row: &[f32], eps: f32) -> (f32, f32) {
    let count = row.len() as f32;
    let mean = math::sum(row, |x| x) / count;
    let variance = math::sum(row, |x| (x - mean) * (x - mean)) / count;
    (mean, 1.0 / (variance + eps).sqrt())
}

pub(super) fn forward(x: FlexTensor, weight: FlexTensor, bias: Option<FlexTensor>, eps: f64) -> FlexTensor {
    let shape = x.shape();
    let (x, weight, bias) = (contiguous(x), contiguous(weight), bias.map(contiguous));
    let (input, weight) = (values(&x), values(&weight));
    let dim = weight.len();
    assert_eq!(shape[shape.num_dims() - 1], dim, "the norm is for another width");
    let zeros = vec![0.0; if bias.is_some() { 0 } else { dim }];
    let bias = bias.as_ref().map_or(zeros.as_slice(), values);
    let block = rows_at_once(dim) * dim;
    let output = filled(input.len(), block, |place, output| {
        run(Forward { input: &input[place * block..], weight, bias, eps: eps as f32, output });
    });
    fresh(output, shape)
}

/// Some rows.
struct Forward<'a> {
    input: &'a [f32],
    weight: &'a [f32],
    bias: &'a [f32],
    eps: f32,
    output: &'a mut [f32],
}

impl Work for Forward<'_> {
    #[inline(always)]
    unsafe fn with<L: Lanes>(self) {
        let dim = self.weight.len().max(1);
        for (y, x) in self.output.chunks_exact_mut(dim).zip(self.input.chunks_exact(dim)) {
            let (mean, inverse) = statistics(x, self.eps);
            for (((y, x), w), b) in y.iter_mut().zip(x).zip(self.weight).zip(self.bias) {
                *y = (x - mean) * inverse * w + b;
            }
        }
    }
}

/// The sum of the squares of all numbers.
pub(super) fn sum_squares(all: Vec<FlexTensor>) -> FlexTensor {
    let of_one = |x: FlexTensor| {
        let x = contiguous(widened(x));
        let blocks: Vec<f32> = values(&x)
            .par_chunks(BLOCK)
            .map(|block| {
                let mut sum = 0.0;
                run(Squares { block, sum: &mut sum });
                sum
            })
            .collect();
        blocks.into_iter().map(f64::from).sum::<f64>()
    };
    fresh(vec![all.into_iter().map(of_one).sum::<f64>() as f32], [1].into())
}

/// Some numbers, and the sum of their squares.
struct Squares<'a> {
    block: &'a [f32],
    sum: &'a mut f32,
}

impl Work for Squares<'_> {
    #[inline(always)]
    unsafe fn with<L: Lanes>(self) {
        *self.sum = math::sum(self.block, |x| x * x);
    }
}

pub(super) fn backward(
    x: FlexTensor,
    weight: FlexTensor,
    grad: FlexTensor,
    eps: f64,
    trained: bool,
) -> (FlexTensor, Option<[FlexTensor; 2]>) {
    let (shape, weight_shape) = (x.shape(), weight.shape());
    let (x, weight, grad) = (contiguous(x), contiguous(weight), contiguous(grad));
    let (input, weight, grad) = (values(&x), values(&weight), values(&grad));
    let dim = weight.len();
    assert_eq!(shape[shape.num_dims() - 1], dim, "the norm is for another width");
    assert_eq!(input.len(), grad.len(), "the gradient has another size");
    let block = rows_at_once(dim) * dim;
    let (d_x, sums) = filled_beside(input.len(), block, |place, d_x| {
        let (x, grad) = (&input[place * block..], &grad[place * block..]);
        let mut sums = trained.then(|| [vec![0.0f32; dim], vec![0.0f32; dim]]);
        let of_weight = sums.as_mut().map(|[d_weight, d_bias]| [d_weight.as_mut_slice(), d_bias.as_mut_slice()]);
        run(Backward { x, weight, grad, eps: eps as f32, d_x, of_weight });
        sums
    });
    let totals = trained.then(|| {
        let mut totals = [vec![0.0f32; dim], vec![0.0f32; dim]];
        for (total, sum) in sums.into_iter().flatten().flat_map(|sums| [0, 1].into_iter().zip(sums)) {
            totals[total].iter_mut().zip(sum).for_each(|(total, x)| *total += x);
        }
        totals.map(|total| fresh(total, weight_shape.clone()))
    });
    (fresh(d_x, shape), totals)
}

/// Some rows, and the sums over them.
struct Backward<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    grad: &'a [f32],
    eps: f32,
    d_x: &'a mut [f32],
    /// The weight's and the bias's, if they train.
    of_weight: Option<[&'a mut [f32]; 2]>,
}

impl Work for Backward<'_> {
    #[inline(always)]
    unsafe fn with<L: Lanes>(mut self) {
        let dim = self.weight.len().max(1);
        let mut scaled = vec![0.0f32; self.weight.len()];
        let rows = self.d_x.chunks_exact_mut(dim).zip(self.x.chunks_exact(dim)).zip(self.grad.chunks_exact(dim));
        for ((d_x, x), grad) in rows {
            let (mean, inverse) = statistics(x, self.eps);
            match &mut self.of_weight {
                Some([d_weight, d_bias]) => {
                    for ((n, x), (b, g)) in d_x.iter_mut().zip(x).zip(d_bias.iter_mut().zip(grad)) {
                        *n = (x - mean) * inverse;
                        *b += g;
                    }
                    let weights = grad.iter().zip(self.weight);
                    for ((s, (g, w)), (d_w, n)) in
                        scaled.iter_mut().zip(weights).zip(d_weight.iter_mut().zip(d_x.iter()))
                    {
                        *s = g * w;
                        *d_w += g * n;
                    }
                }
                None => {
                    for ((n, x), (s, (g, w))) in
                        d_x.iter_mut().zip(x).zip(scaled.iter_mut().zip(grad.iter().zip(self.weight)))
                    {
                        *n = (x - mean) * inverse;
                        *s = g * w;
                    }
                }
            }
            let level = math::sum(&scaled, |s| s) / dim as f32;
            let along = math::dot(&scaled, d_x) / dim as f32;
            for (n, s) in d_x.iter_mut().zip(&scaled) {
                *n = (s - level - *n * along) * inverse;
            }
        }
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::super::stored::tests::{gain, number, run_as};
    use super::*;

    #[test]
    fn norms_are_vectorised() {
        let (dim, eps) = (512, 1e-5);
        let numbers = |count: usize, salt: usize| (0..count).map(|i| number(i + salt)).collect::<Vec<f32>>();
        let [x, grad] = [0, 7].map(|salt| numbers(8 * dim, salt));
        let [weight, bias] = [3, 5].map(|salt| numbers(dim, salt));
        let (mut output, mut d_weight, mut d_bias) = (vec![0.0; 8 * dim], vec![0.0; dim], vec![0.0; dim]);
        let forward = gain(|way| {
            run_as(way, Forward { input: &x, weight: &weight, bias: &bias, eps, output: &mut output });
        });
        let backward = gain(|way| {
            let (d_x, of_weight) = (&mut output[..], Some([&mut d_weight[..], &mut d_bias[..]]));
            run_as(way, Backward { x: &x, weight: &weight, grad: &grad, eps, d_x, of_weight });
        });
        for gain in [forward, backward].into_iter().flatten() {
            assert!(gain > 1.2, "a norm is {gain:.2} times as fast with registers twice as wide");
        }
    }
}

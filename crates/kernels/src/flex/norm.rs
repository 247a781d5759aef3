//! Layer norm and its gradients.

use burn::tensor::TensorMetadata;
use burn_flex::FlexTensor;
use pulp::Arch;

use super::{contiguous, filled, filled_beside, fresh, math, rows_at_once, values};

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
    let (arch, block) = (Arch::new(), rows_at_once(dim) * dim);
    let output = filled(input.len(), block, |place, output| {
        let input = &input[place * block..];
        arch.dispatch(|| {
            for (y, x) in output.chunks_exact_mut(dim.max(1)).zip(input.chunks_exact(dim.max(1))) {
                let (mean, inverse) = statistics(x, eps as f32);
                for (((y, x), w), b) in y.iter_mut().zip(x).zip(weight).zip(bias) {
                    *y = (x - mean) * inverse * w + b;
                }
            }
        });
    });
    fresh(output, shape)
}

pub(super) fn backward(x: FlexTensor, weight: FlexTensor, grad: FlexTensor, eps: f64) -> [FlexTensor; 3] {
    let (shape, weight_shape) = (x.shape(), weight.shape());
    let (x, weight, grad) = (contiguous(x), contiguous(weight), contiguous(grad));
    let (input, weight, grad) = (values(&x), values(&weight), values(&grad));
    let dim = weight.len();
    assert_eq!(shape[shape.num_dims() - 1], dim, "the norm is for another width");
    assert_eq!(input.len(), grad.len(), "the gradient has another size");
    let (arch, block) = (Arch::new(), rows_at_once(dim) * dim);
    let (d_x, sums) = filled_beside(input.len(), block, |place, d_x| {
        let (x, grad) = (&input[place * block..], &grad[place * block..]);
        let (mut d_weight, mut d_bias, mut scaled) = (vec![0.0f32; dim], vec![0.0f32; dim], vec![0.0f32; dim]);
        arch.dispatch(|| {
            let rows =
                d_x.chunks_exact_mut(dim.max(1)).zip(x.chunks_exact(dim.max(1))).zip(grad.chunks_exact(dim.max(1)));
            for ((d_x, x), grad) in rows {
                let (mean, inverse) = statistics(x, eps as f32);
                for ((n, x), (b, g)) in d_x.iter_mut().zip(x).zip(d_bias.iter_mut().zip(grad)) {
                    *n = (x - mean) * inverse;
                    *b += g;
                }
                for ((s, (g, w)), (d_w, n)) in
                    scaled.iter_mut().zip(grad.iter().zip(weight)).zip(d_weight.iter_mut().zip(d_x.iter()))
                {
                    *s = g * w;
                    *d_w += g * n;
                }
                let level = math::sum(&scaled, |s| s) / dim as f32;
                let along = math::dot(&scaled, d_x) / dim as f32;
                for (n, s) in d_x.iter_mut().zip(&scaled) {
                    *n = (s - level - *n * along) * inverse;
                }
            }
        });
        [d_weight, d_bias]
    });
    let mut totals = [vec![0.0f32; dim], vec![0.0f32; dim]];
    for sums in sums {
        for (total, sum) in totals.iter_mut().zip(sums) {
            total.iter_mut().zip(sum).for_each(|(total, x)| *total += x);
        }
    }
    let [d_weight, d_bias] = totals.map(|total| fresh(total, weight_shape.clone()));
    [fresh(d_x, shape), d_weight, d_bias]
}

//! Mean cross-entropy and its gradient.

use burn::tensor::TensorMetadata;
use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::lanes::{Lanes, Work, run};
use super::{contiguous, filled, fresh, math, values};

pub(super) fn forward(logits: FlexTensor, targets: &[i32]) -> FlexTensor {
    let logits = contiguous(logits);
    let [rows, vocab] = logits.shape().dims();
    assert_eq!(rows, targets.len(), "one target a row");
    let losses: Vec<f32> = values(&logits)
        .par_chunks_exact(vocab.max(1))
        .zip(targets)
        .map(|(row, &target)| {
            let (mut top, mut powers) = (0.0, 0.0);
            run(Powers { row, top: &mut top, sum: &mut powers });
            // The difference first: the loss is small where the logits are large.
            powers.ln() + (top - row[target as usize])
        })
        .collect();
    // In f64: the mean of many losses is read more closely than any of them.
    let total: f64 = losses.iter().map(|&loss| f64::from(loss)).sum();
    fresh(vec![(total / targets.len() as f64) as f32], [1].into())
}

pub(super) fn backward(logits: FlexTensor, targets: &[i32], grad: FlexTensor) -> FlexTensor {
    let shape = logits.shape();
    assert_eq!(shape[0], targets.len(), "one target a row");
    let logits = contiguous(logits);
    let factor = values(&contiguous(grad))[0] / targets.len() as f32;
    let input = values(&logits);
    let vocab = shape[1];
    let output = filled(input.len(), vocab, |row, output| {
        run(Gradient { row: &input[row * vocab..][..vocab], target: targets[row] as usize, factor, output });
    });
    fresh(output, shape)
}

/// The largest number of a row, and the sum of `e^(x - top)`.
struct Powers<'a> {
    row: &'a [f32],
    top: &'a mut f32,
    sum: &'a mut f32,
}

impl Work for Powers<'_> {
    #[inline(always)]
    unsafe fn with<L: Lanes>(self) {
        *self.top = math::max(self.row);
        *self.sum = math::sum_of_powers(self.row, *self.top);
    }
}

/// Of one row's logits.
struct Gradient<'a> {
    row: &'a [f32],
    target: usize,
    factor: f32,
    output: &'a mut [f32],
}

impl Work for Gradient<'_> {
    #[inline(always)]
    unsafe fn with<L: Lanes>(self) {
        self.output.copy_from_slice(self.row);
        math::softmax(self.output);
        self.output[self.target] -= 1.0;
        for x in self.output {
            *x *= self.factor;
        }
    }
}

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

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::super::stored::tests::{gain, number, run_as};
    use super::*;

    /// The gradient is made of a softmax.
    #[test]
    fn losses_are_vectorised() {
        let row: Vec<f32> = (0..4096).map(number).collect();
        let (mut top, mut sum, mut output) = (0.0, 0.0, vec![0.0; 4096]);
        let forward = gain(|way| run_as(way, Powers { row: &row, top: &mut top, sum: &mut sum }));
        let backward = gain(|way| run_as(way, Gradient { row: &row, target: 1, factor: 0.1, output: &mut output }));
        for gain in [forward, backward].into_iter().flatten() {
            assert!(gain > 1.2, "a loss is {gain:.2} times as fast with registers twice as wide");
        }
    }
}

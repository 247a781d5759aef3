//! Mean cross-entropy and its gradient.

use burn::tensor::TensorMetadata;
use burn_flex::FlexTensor;
use pulp::Arch;
use rayon::prelude::*;

use super::{contiguous, filled, fresh, math, values};

pub(super) fn forward(logits: FlexTensor, targets: &[i32]) -> FlexTensor {
    let logits = contiguous(logits);
    let [rows, vocab] = logits.shape().dims();
    assert_eq!(rows, targets.len(), "one target a row");
    let arch = Arch::new();
    let losses: Vec<f32> = values(&logits)
        .par_chunks_exact(vocab.max(1))
        .zip(targets)
        .map(|(row, &target)| {
            arch.dispatch(|| {
                let top = math::max(row);
                // The difference first: the loss is small where the logits are large.
                math::sum(row, |x| math::exp(x - top)).ln() + (top - row[target as usize])
            })
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
    let (arch, vocab) = (Arch::new(), shape[1]);
    let output = filled(input.len(), vocab, |row, output| {
        arch.dispatch(|| {
            output.copy_from_slice(&input[row * vocab..][..vocab]);
            math::softmax(output);
            output[targets[row] as usize] -= 1.0;
            output.iter_mut().for_each(|x| *x *= factor);
        });
    });
    fresh(output, shape)
}

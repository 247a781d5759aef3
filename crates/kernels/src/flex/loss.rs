//! Mean cross-entropy and its gradient.

use burn::tensor::{Element, TensorMetadata};
use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::formats::{Half, halves, narrow_into, of_halves, widen_into, widened};
use super::lanes::{Lanes, Work, run};
use super::{contiguous, elements, filled, fresh, math, values};

/// `[rows, vocab]` in f32 or halves.
pub(super) fn forward<S: Wide>(logits: FlexTensor, targets: &[i32]) -> FlexTensor {
    let logits = contiguous(logits);
    let [rows, vocab] = logits.shape().dims();
    assert_eq!(rows, targets.len(), "one target a row");
    let losses: Vec<f32> = logits.storage::<S>()[elements(&logits)]
        .par_chunks_exact(vocab.max(1))
        .zip(targets)
        .map_init(Vec::new, |room, (row, &target)| {
            let row = S::wide(row, room);
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

/// Numbers that are read as f32.
pub(super) trait Wide: Element + bytemuck::Pod {
    /// A row of them, where they lie or in some room.
    fn wide<'a>(row: &'a [Self], room: &'a mut Vec<f32>) -> &'a [f32];
}

impl Wide for f32 {
    fn wide<'a>(row: &'a [Self], _: &'a mut Vec<f32>) -> &'a [f32] {
        row
    }
}

impl<H: Half> Wide for H {
    fn wide<'a>(row: &'a [Self], room: &'a mut Vec<f32>) -> &'a [f32] {
        room.resize(row.len(), 0.0);
        widen_into(row, room);
        room
    }
}

pub(super) fn backward(logits: FlexTensor, targets: &[i32], grad: FlexTensor) -> FlexTensor {
    let shape = logits.shape();
    let factor = factor(&logits, targets, grad);
    let logits = contiguous(logits);
    let (input, vocab) = (values(&logits), shape[1]);
    let output = filled(input.len(), vocab, |row, output| {
        run(Gradient { row: &input[row * vocab..][..vocab], target: targets[row] as usize, factor, output });
    });
    fresh(output, shape)
}

/// [`backward`] of halves, in their format.
pub(super) fn backward_of_halves<H: Half>(logits: FlexTensor, targets: &[i32], grad: FlexTensor) -> FlexTensor {
    let shape = logits.shape();
    let factor = factor(&logits, targets, grad);
    let logits = contiguous(logits);
    let (input, vocab) = (halves::<H>(&logits), shape[1].max(1));
    let mut output = vec![H::nearest(0.0); input.len()];
    let rows = input.par_chunks_exact(vocab).zip(output.par_chunks_exact_mut(vocab)).zip(targets);
    rows.for_each_init(
        || (Vec::new(), vec![0.0; vocab]),
        |(room, gradient), ((row, output), &target)| {
            run(Gradient { row: H::wide(row, room), target: target as usize, factor, output: gradient });
            narrow_into(gradient, output);
        },
    );
    of_halves(output, shape)
}

/// What a row's gradient is multiplied by.
fn factor(logits: &FlexTensor, targets: &[i32], grad: FlexTensor) -> f32 {
    assert_eq!(logits.shape()[0], targets.len(), "one target a row");
    values(&contiguous(widened(grad)))[0] / targets.len() as f32
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

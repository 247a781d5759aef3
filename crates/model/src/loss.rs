//! The language-modelling loss.

use burn::tensor::{DType, Int, Tensor, activation, backend::Backend};

/// Label of a token that is not predicted.
pub const IGNORE: i64 = -100;

/// Mean cross-entropy of each token given those before it, over labels other than [`IGNORE`].
///
/// `logits` is `[batch, tokens, vocab]`; `labels` is row-major `[batch, tokens]`, not shifted: the logits
/// at token `i` predict label `i + 1`. Computed in f32; NaN when no label counts, as in PyTorch.
pub fn next_token_loss<B: Backend>(logits: Tensor<B, 3>, labels: &[i64]) -> Tensor<B, 1> {
    let [batch, tokens, vocab] = logits.dims();
    let device = logits.device();
    let (mut rows, mut targets) = (Vec::new(), Vec::new());
    for b in 0..batch {
        for t in 1..tokens {
            let label = labels[b * tokens + t];
            if label != IGNORE {
                rows.push((b * tokens + t - 1) as i32);
                targets.push(label as i32);
            }
        }
    }
    let count = rows.len();
    if count == 0 {
        return Tensor::from_floats([f32::NAN], &device);
    }
    let rows = Tensor::<B, 1, Int>::from_ints(rows.as_slice(), &device);
    let targets = Tensor::<B, 1, Int>::from_ints(targets.as_slice(), &device).reshape([count, 1]);
    let picked = logits.reshape([batch * tokens, vocab]).select(0, rows).cast(DType::F32);
    let log_probs = activation::log_softmax(picked, 1).gather(1, targets);
    log_probs.sum().neg() / count as f64
}

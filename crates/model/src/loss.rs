//! The language-modelling loss.

use burn::tensor::{Int, Tensor, backend::Backend};
use flamingo_kernels::{Kernels, cross_entropy};

use crate::decoder::Decoder;

/// Label of a token that is not predicted.
pub const IGNORE: i64 = -100;

/// Mean cross-entropy of each token given those before it, over labels other than [`IGNORE`].
///
/// `logits` is `[batch, tokens, vocab]`; `labels` is row-major `[batch, tokens]`, not shifted: the logits
/// at token `i` predict label `i + 1`. Computed in f32; NaN when no label counts, as in PyTorch.
pub fn next_token_loss<B: Kernels>(logits: Tensor<B, 3>, labels: &[i64]) -> Tensor<B, 1> {
    let [batch, tokens, _] = logits.dims();
    let (rows, targets) = predicted(labels, batch, tokens);
    if rows.is_empty() {
        return Tensor::from_floats([f32::NAN], &logits.device());
    }
    cross_entropy(select(logits, rows), &targets)
}

/// [`next_token_loss`] of hidden states `[batch, tokens, d_model]`: the head, the largest matrix of all, works on
/// the positions that predict something and on no others.
pub fn next_token_loss_of_hidden<B: Kernels>(
    decoder: &Decoder<B>,
    hidden: Tensor<B, 3>,
    labels: &[i64],
) -> Tensor<B, 1> {
    let [batch, tokens, _] = hidden.dims();
    let (rows, targets) = predicted(labels, batch, tokens);
    if rows.is_empty() {
        return Tensor::from_floats([f32::NAN], &hidden.device());
    }
    let logits = decoder.logits(select(hidden, rows).unsqueeze());
    cross_entropy(logits.squeeze_dim::<2>(0), &targets)
}

/// Places (row-major) whose next token is predicted, and those tokens.
fn predicted(labels: &[i64], batch: usize, tokens: usize) -> (Vec<i32>, Vec<i32>) {
    let places = (0..batch * tokens).filter(|place| place % tokens + 1 < tokens && labels[place + 1] != IGNORE);
    places.map(|place| (place as i32, labels[place + 1] as i32)).unzip()
}

/// Some rows of `[batch, tokens, dim]`: `[rows, dim]`.
fn select<B: Backend>(x: Tensor<B, 3>, rows: Vec<i32>) -> Tensor<B, 2> {
    let [batch, tokens, dim] = x.dims();
    let rows = Tensor::<B, 1, Int>::from_ints(rows.as_slice(), &x.device());
    x.reshape([batch * tokens, dim]).select(0, rows)
}

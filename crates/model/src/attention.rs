//! The split into heads, shared by every attention of the model, and attention made visible.

use burn::tensor::activation::softmax;
use burn::tensor::{Bool, Tensor, backend::Backend};
use flamingo_kernels::{Kernels, columns, product};

/// `[batch, tokens, heads * dim]` to `[batch, heads, tokens, dim]`.
pub(crate) fn split_heads<B: Backend>(x: Tensor<B, 3>, heads: usize) -> Tensor<B, 4> {
    let [batch, tokens, width] = x.dims();
    x.reshape([batch, tokens, heads, width / heads]).swap_dims(1, 2)
}

/// `[batch, heads, tokens, dim]` to `[batch, tokens, heads * dim]`.
pub(crate) fn merge_heads<B: Backend>(x: Tensor<B, 4>) -> Tensor<B, 3> {
    let [batch, heads, tokens, dim] = x.dims();
    x.swap_dims(1, 2).reshape([batch, tokens, heads * dim])
}

/// Splits the last dimension into `N` equal parts.
pub(crate) fn split_last<B: Kernels, const N: usize>(x: Tensor<B, 3>) -> [Tensor<B, 3>; N] {
    let width = x.dims()[2] / N;
    std::array::from_fn(|i| columns(x.clone(), i * width, width))
}

/// Attention weights in f32, the mean of all heads: `[batch, queries, keys]` of `[batch, heads, queries or keys, dim]`. Only for
/// looking at: [`flamingo_kernels::attend`] never has them all in memory.
pub(crate) fn attention_weights<B: Kernels>(
    q: Tensor<B, 4>,
    k: Tensor<B, 4>,
    scale: f64,
    hidden: Option<Tensor<B, 4, Bool>>,
) -> Tensor<B, 3> {
    let scores = product(q, k.swap_dims(2, 3)).cast(burn::tensor::DType::F32) * scale;
    let scores = match hidden {
        Some(hidden) => {
            let shape = scores.dims();
            scores.mask_fill(hidden.expand(shape), f32::NEG_INFINITY)
        }
        None => scores,
    };
    softmax(scores, 3).mean_dim(1).squeeze_dim(1)
}

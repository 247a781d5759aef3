//! The split into heads, shared by every attention of the model.

use burn::tensor::{Tensor, backend::Backend};
use flamingo_kernels::{Kernels, columns};

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

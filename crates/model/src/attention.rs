//! Scaled dot-product attention and the split into heads, shared by every attention of the model.

use burn::tensor::{Bool, Tensor, activation, backend::Backend, module, ops::AttentionModuleOptions};

/// Queries up to which the scores are computed by plain matrix products. Those read keys and values where
/// they lie (slices of a cache); the fused kernels copy them first, which is most of the work when one
/// token looks at a thousand.
const FEW_QUERIES: usize = 8;

/// `softmax(scale q kᵀ + bias, hidden = -inf) v`.
///
/// `q` is `[batch, heads, queries, dim]`, `k` and `v` `[batch, heads, keys, dim]`; `hidden` (true = not
/// seen) and `bias` broadcast to `[batch, heads, queries, keys]`. Every query must see at least one key:
/// a row without one is zero on some backends and NaN on others.
pub(crate) fn attend<B: Backend>(
    q: Tensor<B, 4>,
    k: Tensor<B, 4>,
    v: Tensor<B, 4>,
    scale: f64,
    hidden: Option<Tensor<B, 4, Bool>>,
    bias: Option<Tensor<B, 4>>,
) -> Tensor<B, 4> {
    let [batch, heads, queries, dim] = q.dims();
    let keys = k.dims()[2];
    // Fused kernels take the default scale only: what remains of ours goes into the queries.
    let default_scale = 1.0 / (dim as f64).sqrt();
    if queries > FEW_QUERIES {
        let q = if (scale / default_scale - 1.0).abs() < 1e-12 { q } else { q * (scale / default_scale) };
        let full = [batch, heads, queries, keys];
        let options = AttentionModuleOptions { scale: None, softcap: None, is_causal: false };
        return module::attention(q, k, v, hidden.map(|h| h.expand(full)), bias.map(|b| b.expand(full)), options);
    }
    let mut scores = (q * scale).matmul(k.transpose());
    if let Some(bias) = bias {
        scores = scores + bias;
    }
    if let Some(hidden) = hidden {
        scores = scores.mask_fill(hidden.expand([batch, heads, queries, keys]), f32::NEG_INFINITY);
    }
    activation::softmax(scores, 3).matmul(v)
}

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
pub(crate) fn split_last<B: Backend, const N: usize>(x: Tensor<B, 3>) -> [Tensor<B, 3>; N] {
    let width = x.dims()[2] / N;
    std::array::from_fn(|i| x.clone().narrow(2, i * width, width))
}

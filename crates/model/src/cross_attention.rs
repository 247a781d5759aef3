//! Gated cross-attention from text to images.
//!
//! Source: upstream `src/helpers.py`, `MaskedCrossAttention` and `GatedCrossAttentionBlock`.

use burn::module::{Initializer, Module, Param};
use burn::tensor::{Tensor, backend::Backend};
use flamingo_config::CrossAttentionConfig;
use flamingo_kernels::{Kernels, attend, gated_sum};

use crate::attention::{merge_heads, split_heads, split_last};
use crate::linear::{FeedForward, Linear};
use crate::media::Sight;
use crate::norm::Norm;
use crate::weight::Init;

/// Attention of text tokens to image latents.
#[derive(Module, Debug)]
pub struct MaskedCrossAttention<B: Backend> {
    /// Norm of the text.
    pub norm: Norm<B>,
    /// `[heads * dim_head, d_model]`.
    pub to_q: Linear<B>,
    /// `[2 * heads * dim_head, vision_width]`: keys, values.
    pub to_kv: Linear<B>,
    /// `[d_model, heads * dim_head]`.
    pub to_out: Linear<B>,
    heads: usize,
    dim_head: usize,
}

/// A cross-attention block: `x += tanh(gate) attention(x, media)`, `x += tanh(gate) feed_forward(x)`.
///
/// Both gates start at 0, so an untrained block leaves the language model as it is.
#[derive(Module, Debug)]
pub struct GatedCrossAttention<B: Backend> {
    /// The attention.
    pub attention: MaskedCrossAttention<B>,
    /// `[1]`.
    pub attention_gate: Param<Tensor<B, 1>>,
    /// The feed-forward network.
    pub feed_forward: FeedForward<B>,
    /// `[1]`.
    pub feed_forward_gate: Param<Tensor<B, 1>>,
}

impl<B: Kernels> GatedCrossAttention<B> {
    /// A block between a decoder of width `d_model` and images of width `vision_width`.
    pub fn new(config: &CrossAttentionConfig, d_model: usize, vision_width: usize, init: &Init<B>) -> Self {
        let inner = config.heads * config.dim_head;
        Self {
            attention: MaskedCrossAttention {
                norm: Norm::layer(d_model, true, 1e-5, &init.device),
                to_q: Linear::new(d_model, inner, false, init),
                to_kv: Linear::new(vision_width, 2 * inner, false, init),
                to_out: Linear::new(inner, d_model, false, init),
                heads: config.heads,
                dim_head: config.dim_head,
            },
            attention_gate: Initializer::Zeros.init([1], &init.device),
            feed_forward: FeedForward::new(d_model, config.ff_mult, init),
            feed_forward_gate: Initializer::Zeros.init([1], &init.device),
        }
    }

    /// Keys and values of the images: `[rows, images * num_latents, vision_width]` to twice
    /// `[rows, heads, images * num_latents, dim_head]`.
    pub fn keys_values(&self, latents: Tensor<B, 3>) -> [Tensor<B, 4>; 2] {
        split_last(self.attention.to_kv.forward(latents)).map(|part| split_heads(part, self.attention.heads))
    }

    /// `x` is `[rows, tokens, d_model]`, `media` what [`Self::keys_values`] gave, or `None` for text without
    /// any image, which skips the attention and keeps the feed-forward network.
    pub fn forward(&self, x: Tensor<B, 3>, media: Option<(&[Tensor<B, 4>; 2], &Sight<B>)>) -> Tensor<B, 3> {
        let x = match media {
            Some(([k, v], sight)) => self.attention.gated(x, k.clone(), v.clone(), sight, self.attention_gate.val()),
            None => x,
        };
        self.feed_forward.gated(x, self.feed_forward_gate.val())
    }
}

impl<B: Kernels> MaskedCrossAttention<B> {
    /// `x + tanh(gate) attention(x)`.
    fn gated(
        &self,
        x: Tensor<B, 3>,
        k: Tensor<B, 4>,
        v: Tensor<B, 4>,
        sight: &Sight<B>,
        gate: Tensor<B, 1>,
    ) -> Tensor<B, 3> {
        let mut q = split_heads(self.to_q.forward(self.norm.forward(x.clone())), self.heads);
        if let Some(sharp) = &sight.sharp {
            q = q * sharp.clone();
        }
        let scale = 1.0 / (self.dim_head as f64).sqrt();
        let seen = merge_heads(attend(q, k, v, scale, sight.hidden.clone(), None));
        match &sight.sees {
            Some(sees) => gated_sum(x, self.to_out.forward(seen) * sees.clone(), gate),
            None => self.to_out.gated(seen, x, gate),
        }
    }
}

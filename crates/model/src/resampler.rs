//! The Perceiver resampler: any number of patch tokens in, a fixed number of latents out.
//!
//! Source: upstream `src/helpers.py`, `PerceiverResampler`; paper section 2.1. Upstream feeds one frame an
//! image; here an image may have any number of frames (a video clip), each with its own embedding where
//! the model has them.

use burn::module::{Initializer, Module, Param};
use burn::tensor::{Tensor, backend::Backend};
use flamingo_config::ResamplerConfig;
use flamingo_kernels::{Kernels, attend};

use crate::attention::{merge_heads, split_heads, split_last};
use crate::linear::{FeedForward, Linear};
use crate::norm::Norm;
use crate::weight::Init;

/// The resampler. Its width is the vision encoder's.
#[derive(Module, Debug)]
pub struct Resampler<B: Backend> {
    /// `[num_latents, width]`.
    pub latents: Param<Tensor<B, 2>>,
    /// `[max_num_frames, width]`.
    pub frame_embeddings: Option<Param<Tensor<B, 2>>>,
    /// `[max_num_media, width]`.
    pub media_time_embeddings: Option<Param<Tensor<B, 2>>>,
    /// The layers.
    pub layers: Vec<ResamplerLayer<B>>,
    /// Norm of the result.
    pub norm: Norm<B>,
}

/// Attention of the latents to the image, then a feed-forward network.
#[derive(Module, Debug)]
pub struct ResamplerLayer<B: Backend> {
    /// The attention.
    pub attention: PerceiverAttention<B>,
    /// The feed-forward network.
    pub feed_forward: FeedForward<B>,
}

/// Latents look at the image's tokens and at themselves.
#[derive(Module, Debug)]
pub struct PerceiverAttention<B: Backend> {
    /// Norm of the image's tokens.
    pub norm_media: Norm<B>,
    /// Norm of the latents.
    pub norm_latents: Norm<B>,
    /// `[heads * dim_head, width]`.
    pub to_q: Linear<B>,
    /// `[2 * heads * dim_head, width]`: keys, values.
    pub to_kv: Linear<B>,
    /// `[width, heads * dim_head]`.
    pub to_out: Linear<B>,
    heads: usize,
    dim_head: usize,
}

impl<B: Kernels> Resampler<B> {
    /// A resampler of the given width with random weights.
    pub fn new(config: &ResamplerConfig, width: usize, init: &Init<B>) -> Self {
        let normal = Initializer::Normal { mean: 0.0, std: 1.0 };
        let inner = config.heads * config.dim_head;
        let layer = |_| ResamplerLayer {
            attention: PerceiverAttention {
                norm_media: Norm::layer(width, true, 1e-5, &init.device),
                norm_latents: Norm::layer(width, true, 1e-5, &init.device),
                to_q: Linear::new(width, inner, false, init),
                to_kv: Linear::new(width, 2 * inner, false, init),
                to_out: Linear::new(inner, width, false, init),
                heads: config.heads,
                dim_head: config.dim_head,
            },
            feed_forward: FeedForward::new(width, config.ff_mult, init),
        };
        Self {
            latents: normal.init([config.num_latents, width], &init.device),
            frame_embeddings: config.max_num_frames.map(|rows| normal.init([rows, width], &init.device)),
            media_time_embeddings: config.max_num_media.map(|rows| normal.init([rows, width], &init.device)),
            layers: (0..config.depth).map(layer).collect(),
            norm: Norm::layer(width, true, 1e-5, &init.device),
        }
    }

    /// `[batch, images, frames, tokens, width]` to `[batch, images, num_latents, width]`. Images do not see
    /// each other; `first` is the place of the first of them in its row.
    ///
    /// # Panics
    /// If there are more frames or images than the model has embeddings for.
    pub fn forward(&self, x: Tensor<B, 5>, first: usize) -> Tensor<B, 4> {
        let [batch, images, frames, tokens, width] = x.dims();
        let dtype = x.dtype();
        let x = match &self.frame_embeddings {
            Some(table) => x + table.val().cast(dtype).narrow(0, 0, frames).reshape([1, 1, frames, 1, width]),
            None => x,
        };
        let x = match &self.media_time_embeddings {
            Some(table) => x + table.val().cast(dtype).narrow(0, first, images).reshape([1, images, 1, 1, width]),
            None => x,
        };
        let x = x.reshape([batch * images, frames * tokens, width]);
        let latents = self.latents.val().cast(dtype);
        let count = latents.dims()[0];
        let mut latents = latents.unsqueeze::<3>().expand([batch * images, count, width]);
        for layer in &self.layers {
            latents = layer.feed_forward.added(layer.attention.added(x.clone(), latents));
        }
        self.norm.forward(latents).reshape([batch, images, count, width])
    }
}

impl<B: Kernels> PerceiverAttention<B> {
    /// Latents and what they see: `x` is `[images, tokens, width]`, `latents` `[images, num_latents, width]`, as is the
    /// result.
    fn added(&self, x: Tensor<B, 3>, before: Tensor<B, 3>) -> Tensor<B, 3> {
        let x = self.norm_media.forward(x);
        let latents = self.norm_latents.forward(before.clone());
        let q = split_heads(self.to_q.forward(latents.clone()), self.heads);
        let [k, v] = split_last(self.to_kv.forward(Tensor::cat(vec![x, latents], 1)));
        let scale = 1.0 / (self.dim_head as f64).sqrt();
        let out = attend(q, split_heads(k, self.heads), split_heads(v, self.heads), scale, None, None);
        self.to_out.added(merge_heads(out), before)
    }
}

//! The Perceiver resampler: any number of patch tokens in, a fixed number of latents out.
//!
//! Source: upstream `src/helpers.py`, `PerceiverResampler`; paper section 2.1. Upstream feeds one frame an
//! image; here an image may have any number of frames (a video clip), each with its own embedding where
//! the model has them.

use burn::module::{Initializer, Module, Param};
use burn::tensor::{Tensor, backend::Backend};
use flamingo_config::ResamplerConfig;
use flamingo_kernels::{Kernels, attend, product};

use crate::attention::{attention_weights, merge_heads, split_heads, split_last};
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
        let [batch, images, ..] = x.dims();
        let (x, mut latents) = self.begin(x, first);
        for layer in &self.layers {
            latents = layer.feed_forward.added(layer.attention.added(x.clone(), latents));
        }
        let [_, count, width] = latents.dims();
        self.norm.forward(latents).reshape([batch, images, count, width])
    }

    /// What each latent is made of, `[images, num_latents, tokens]`, each row adding up to 1, of tokens
    /// `[1, images, 1, tokens, width]`: attention rollout (arXiv 2005.00928), in which a layer's latent is half its attention
    /// and half what it was. What was learned, before any image, is left out of the sum.
    ///
    /// # Panics
    /// As [`Resampler::forward`].
    pub(crate) fn rollout(&self, x: Tensor<B, 5>) -> Tensor<B, 3> {
        let (x, mut latents) = self.begin(x, 0);
        let [images, tokens, _] = x.dims();
        let count = latents.dims()[1];
        let mut made_of = Tensor::<B, 3>::zeros([images, count, tokens], &x.device());
        for layer in &self.layers {
            let weights = layer.attention.weights(x.clone(), latents.clone());
            let (of_image, of_latents) = (weights.clone().narrow(2, 0, tokens), weights.narrow(2, tokens, count));
            made_of = (of_image + product(of_latents, made_of.clone()) + made_of) * 0.5;
            latents = layer.feed_forward.added(layer.attention.added(x.clone(), latents));
        }
        made_of.clone() / made_of.sum_dim(2).clamp_min(f32::MIN_POSITIVE)
    }

    /// The image's tokens, embeddings of frames and places added, and the latents as they were learned:
    /// `[batch * images, frames * tokens, width]` and `[batch * images, num_latents, width]`.
    fn begin(&self, x: Tensor<B, 5>, first: usize) -> (Tensor<B, 3>, Tensor<B, 3>) {
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
        (x, latents.unsqueeze::<3>().expand([batch * images, count, width]))
    }
}

impl<B: Kernels> PerceiverAttention<B> {
    /// Latents and what they see: `x` is `[images, tokens, width]`, `latents` `[images, num_latents, width]`, as is the
    /// result.
    fn added(&self, x: Tensor<B, 3>, before: Tensor<B, 3>) -> Tensor<B, 3> {
        let [q, k, v] = self.queries_keys_values(x, before.clone());
        self.to_out.added(merge_heads(attend(q, k, v, self.scale(), None, None)), before)
    }

    /// Who looks at what, the mean of all heads: `[images, num_latents, tokens + num_latents]`.
    fn weights(&self, x: Tensor<B, 3>, before: Tensor<B, 3>) -> Tensor<B, 3> {
        let [q, k, _] = self.queries_keys_values(x, before);
        attention_weights(q, k, self.scale(), None)
    }

    fn scale(&self) -> f64 {
        1.0 / (self.dim_head as f64).sqrt()
    }

    /// `[images, heads, num_latents, dim_head]`, and twice `[images, heads, tokens + num_latents, dim_head]`.
    fn queries_keys_values(&self, x: Tensor<B, 3>, latents: Tensor<B, 3>) -> [Tensor<B, 4>; 3] {
        let (x, latents) = (self.norm_media.forward(x), self.norm_latents.forward(latents));
        let q = self.to_q.forward(latents.clone());
        let [k, v] = split_last(self.to_kv.forward(Tensor::cat(vec![x, latents], 1)));
        [q, k, v].map(|x| split_heads(x, self.heads))
    }
}

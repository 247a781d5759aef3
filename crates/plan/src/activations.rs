//! What a backward pass needs: tensors that the graph keeps, layer by layer, and what a layer needs while it is gone through.
//!
//! Counted in numbers (of the run's format) from the code: a linear layer keeps its input if its weight trains
//! (`flamingo-kernels/autodiff.rs`), a norm and an activation keep their input, attention keeps queries, keys and values, a
//! gated sum what is gated. A frozen layer below everything that trains keeps nothing. With `n` = rows × tokens,
//! `d` the decoder's width, `f` that of its feed-forward network, `i` the heads of an attention to pictures:
//!
//! | layer | kept |
//! |---|---|
//! | decoder block | `n (5 d + f)`: inputs of both norms, queries, keys, values, input of the activation |
//! | gated cross-attention | `n (6 d + 2 · 4 d + 2 i)`: inputs of both norms and what they make of them, both sums, input and output of the activation, queries, what they see |
//! | its keys and values | `2 i` a latent of a place |
//! | resampler | for each picture `(patches + latents) (width + 2 i)` and `latents (4 width + 2 · 4 width + 2 i)` |

use flamingo_config::{Architecture, ModelConfig, NormPlacement, Residual};

use crate::{Precision, Stream};

/// Bytes that a layer takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Layer {
    /// Kept from the forward pass until the backward pass has gone through it.
    pub kept: u64,
    /// Needed while the backward pass goes through it: gradients of what is inside.
    pub working: u64,
    /// Numbers of its parameters that train.
    pub trained: u64,
}

/// A batch of one kind on one device, in bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Graph {
    /// Hidden states between two layers.
    pub hidden: u64,
    /// Patch tokens of the pictures, which the resampler keeps.
    pub patches: u64,
    /// Latents of all places.
    pub latents: u64,
    /// Masks and positions.
    pub masks: u64,
    /// All logits. Their gradients, in the same format, are there at once with them.
    pub logits: u64,
    /// Logits, their gradients, and the hidden states that they are made of.
    pub loss: u64,
    /// Each layer of the resampler.
    pub resampler: Vec<Layer>,
    /// Of each layer of the decoder the cross-attention before it, where there is one.
    pub cross_attention: Vec<Option<Layer>>,
    /// Keys and values of one cross-attention.
    pub keys_values: u64,
    /// Any block of the decoder.
    pub block: Layer,
    /// The first layer of the decoder that gradients reach, without checkpointing.
    pub first: usize,
}

impl Graph {
    /// Of a batch.
    pub fn new(config: &ModelConfig, precision: Precision, freeze_lm_embeddings: bool, stream: &Stream) -> Self {
        let a = config.decoder.architecture();
        let sizes = Sizes::new(config, &a, precision, stream);
        let has_block = |layer: &usize| config.cross_attention.has_block(*layer);
        let cross_attention = sizes.cross_attention(config.cross_attention.ff_mult as u64);
        // Texts are taken to be predicted from their second token on; of some that is less.
        let predicted = stream.rows * (stream.tokens - 1);
        let Sizes { e, n, d, .. } = sizes;
        let logits = predicted * config.tokens.vocab_size as u64 * e;
        Self {
            hidden: n * d * e,
            patches: sizes.pictures * sizes.patches * sizes.width * e,
            latents: sizes.places * sizes.latents * sizes.width * e,
            masks: sizes.masks(&a),
            logits,
            loss: 2 * logits + predicted * 2 * a.embed_dim as u64 * e,
            resampler: vec![sizes.resampler(config.resampler.ff_mult as u64); config.resampler.depth],
            cross_attention: (0..a.n_layers).map(|layer| has_block(&layer).then_some(cross_attention)).collect(),
            keys_values: 2 * sizes.places * sizes.latents * sizes.inner * e,
            block: sizes.block(&a),
            first: match freeze_lm_embeddings {
                true => (0..a.n_layers).find(has_block).unwrap_or(a.n_layers),
                false => 0,
            },
        }
    }

    /// Everything that is kept at once without checkpointing.
    pub fn all(&self) -> u64 {
        let cross_attention: u64 = self.cross_attention.iter().flatten().map(|x| x.kept + self.keys_values).sum();
        let resampler: u64 = self.resampler.iter().map(|layer| layer.kept).sum();
        let blocks = (self.cross_attention.len() - self.first) as u64 * self.block.kept;
        self.patches + resampler + self.latents + cross_attention + blocks + self.masks
    }
}

/// Sizes that the layers share.
struct Sizes {
    /// Bytes of a number.
    e: u64,
    /// Tokens of the batch.
    n: u64,
    /// Width of the decoder.
    d: u64,
    rows: u64,
    tokens: u64,
    /// Different pictures.
    pictures: u64,
    /// Places for pictures, those of blank ones included.
    places: u64,
    /// Patches and latents of a picture, their width.
    patches: u64,
    latents: u64,
    width: u64,
    /// Heads of the resampler's attention, and of the cross-attention, side by side.
    resampler_inner: u64,
    inner: u64,
    /// Bytes of a weight's copy in the format of activations, where that is not its own.
    copy: u64,
}

impl Sizes {
    fn new(config: &ModelConfig, a: &Architecture, precision: Precision, stream: &Stream) -> Self {
        let (r, x) = (&config.resampler, &config.cross_attention);
        Self {
            e: precision.bytes(),
            n: stream.rows * stream.tokens,
            d: a.d_model as u64,
            rows: stream.rows,
            tokens: stream.tokens,
            pictures: stream.distinct(),
            places: stream.rows * stream.most_images,
            patches: config.vision.patches() as u64,
            latents: r.num_latents as u64,
            width: config.vision.width as u64,
            resampler_inner: (r.heads * r.dim_head) as u64,
            inner: (x.heads * x.dim_head) as u64,
            copy: if precision == Precision::Fp32 { 0 } else { precision.bytes() },
        }
    }

    fn block(&self, a: &Architecture) -> Layer {
        let (d, f) = (self.d, a.d_ff as u64);
        let norms = match (a.norm_placement, a.residual) {
            (NormPlacement::Pre, Residual::Parallel | Residual::ParallelSharedNorm) => d,
            _ => 2 * d,
        };
        // Before their norms, too.
        let attention = if a.qk_norm { 5 * d } else { 3 * d };
        // An activated gate is multiplied: both factors are kept.
        let mlp = if a.gated_mlp { 3 * f } else { f };
        Layer {
            kept: self.n * (norms + attention + mlp) * self.e,
            // The gradient that goes around the network, those of its activation's output and input.
            working: self.n * (d + 2 * f) * self.e,
            trained: 0,
        }
    }

    fn cross_attention(&self, mult: u64) -> Layer {
        let (d, i) = (self.d, self.inner);
        let linear = d * i + 2 * self.width * i + i * d + 2 * mult * d * d;
        Layer {
            kept: self.n * (6 * d + 2 * mult * d + 2 * i) * self.e + linear * self.copy,
            working: self.n * (d + 2 * mult * d) * self.e,
            // Two norms with biases, two gates.
            trained: linear + 4 * d + 2,
        }
    }

    fn resampler(&self, mult: u64) -> Layer {
        let (w, i, seen) = (self.width, self.resampler_inner, self.patches + self.latents);
        let linear = 4 * w * i + 2 * mult * w * w;
        let kept = seen * (w + 2 * i) + self.latents * (4 * w + 2 * mult * w + 2 * i);
        let working = (self.latents * (w + 2 * mult * w)).max(seen * (2 * w).max(5 * i));
        Layer {
            kept: self.pictures * kept * self.e + linear * self.copy,
            working: self.pictures * working * self.e,
            // Three norms with biases.
            trained: linear + 6 * w,
        }
    }

    /// Who does not see whom, a byte each, and ALiBi.
    fn masks(&self, a: &Architecture) -> u64 {
        let alibi = matches!(a.position, flamingo_config::Position::Alibi { .. });
        let bias = if alibi { a.n_heads as u64 * self.tokens * self.tokens * self.e } else { 0 };
        self.rows * self.tokens * self.tokens + self.n * self.places / self.rows.max(1) * self.latents + bias
    }
}

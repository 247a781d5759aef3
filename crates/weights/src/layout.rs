//! Every tensor of a model folder, from the config alone.
//!
//! The names are the module paths of `flamingo-model`, which this crate does not know; an integration test
//! holds the two together.

use flamingo_config::{Architecture, BLOCK, ModelConfig, Norm, Position, Residual, Scheme};

use crate::{Dtype, Format};

/// Name and shape of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name in the model folder.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
}

impl TensorSpec {
    /// How this is quantised in a model that is quantised by `scheme`; none for what stays numbers.
    pub fn quantised_by(&self, scheme: Scheme) -> Option<Scheme> {
        let matrix = self.name.ends_with(".weight") || self.name == "decoder.embedding.base";
        match self.shape[..] {
            [_, columns] if matrix && columns.is_multiple_of(BLOCK) => scheme.of(&self.name),
            _ => None,
        }
    }

    pub(crate) fn scheme(&self, format: Format) -> Option<Scheme> {
        self.quantised_by(format.scheme?)
    }

    /// Bytes of its numbers, or codes, and of its scales.
    pub(crate) fn sizes(&self, format: Format) -> (u64, u64) {
        let numbers = self.shape.iter().product::<usize>();
        let (own, scales) = match self.scheme(format) {
            Some(scheme) => (numbers / BLOCK * scheme.words() * 4, numbers / BLOCK * Dtype::F16.size()),
            None => (numbers * format.dtype.size(), 0),
        };
        (own as u64, scales as u64)
    }

    /// Bytes that it takes in a folder of a format.
    pub fn bytes(&self, format: Format) -> u64 {
        let (own, scales) = self.sizes(format);
        own + scales
    }
}

/// All tensors of a model, in the order of its file.
pub fn layout(config: &ModelConfig) -> Vec<TensorSpec> {
    let mut l = Layout(Vec::new());
    vision(&mut l, config);
    resampler(&mut l, config);
    cross_attention(&mut l, config);
    decoder(&mut l, config);
    l.0
}

struct Layout(Vec<TensorSpec>);

impl Layout {
    fn tensor(&mut self, name: impl Into<String>, shape: &[usize]) {
        self.0.push(TensorSpec { name: name.into(), shape: shape.to_vec() });
    }

    /// `[d_out, d_in]`, and `[d_out]` with a bias.
    fn linear(&mut self, module: &str, d_in: usize, d_out: usize, bias: bool) {
        self.tensor(format!("{module}.weight"), &[d_out, d_in]);
        if bias {
            self.tensor(format!("{module}.bias"), &[d_out]);
        }
    }

    fn norm(&mut self, module: &str, dim: usize, bias: bool) {
        self.tensor(format!("{module}.weight"), &[dim]);
        if bias {
            self.tensor(format!("{module}.bias"), &[dim]);
        }
    }

    fn feed_forward(&mut self, module: &str, dim: usize, mult: usize) {
        self.norm(&format!("{module}.norm"), dim, true);
        self.linear(&format!("{module}.up"), dim, dim * mult, false);
        self.linear(&format!("{module}.down"), dim * mult, dim, false);
    }
}

fn vision(l: &mut Layout, config: &ModelConfig) {
    let v = &config.vision;
    let width = v.width;
    l.tensor("vision.class_embedding", &[width]);
    l.tensor("vision.position_embedding", &[v.patches() + 1, width]);
    l.linear("vision.patch_embedding", 3 * v.patch_size * v.patch_size, width, false);
    l.norm("vision.norm_pre", width, true);
    for i in 0..v.layers {
        let block = format!("vision.blocks.{i}");
        l.norm(&format!("{block}.norm_1"), width, true);
        l.linear(&format!("{block}.attention.qkv"), width, 3 * width, true);
        l.linear(&format!("{block}.attention.out"), width, width, true);
        l.norm(&format!("{block}.norm_2"), width, true);
        l.linear(&format!("{block}.mlp.up"), width, v.mlp_width, true);
        l.linear(&format!("{block}.mlp.down"), v.mlp_width, width, true);
    }
    l.norm("vision.norm_post", width, true);
    l.linear("vision.proj", width, v.output_dim, false);
}

fn resampler(l: &mut Layout, config: &ModelConfig) {
    let r = &config.resampler;
    let width = config.vision.width;
    let inner = r.heads * r.dim_head;
    l.tensor("resampler.latents", &[r.num_latents, width]);
    if let Some(frames) = r.max_num_frames {
        l.tensor("resampler.frame_embeddings", &[frames, width]);
    }
    if let Some(media) = r.max_num_media {
        l.tensor("resampler.media_time_embeddings", &[media, width]);
    }
    for i in 0..r.depth {
        let attention = format!("resampler.layers.{i}.attention");
        l.norm(&format!("{attention}.norm_media"), width, true);
        l.norm(&format!("{attention}.norm_latents"), width, true);
        l.linear(&format!("{attention}.to_q"), width, inner, false);
        l.linear(&format!("{attention}.to_kv"), width, 2 * inner, false);
        l.linear(&format!("{attention}.to_out"), inner, width, false);
        l.feed_forward(&format!("resampler.layers.{i}.feed_forward"), width, r.ff_mult);
    }
    l.norm("resampler.norm", width, true);
}

fn cross_attention(l: &mut Layout, config: &ModelConfig) {
    let x = &config.cross_attention;
    let a = config.decoder.architecture();
    let inner = x.heads * x.dim_head;
    for layer in (0..a.n_layers).filter(|&layer| x.has_block(layer)) {
        let block = format!("cross_attention.{layer}");
        l.norm(&format!("{block}.attention.norm"), a.d_model, true);
        l.linear(&format!("{block}.attention.to_q"), a.d_model, inner, false);
        l.linear(&format!("{block}.attention.to_kv"), config.vision.width, 2 * inner, false);
        l.linear(&format!("{block}.attention.to_out"), inner, a.d_model, false);
        l.tensor(format!("{block}.attention_gate"), &[1]);
        l.feed_forward(&format!("{block}.feed_forward"), a.d_model, x.ff_mult);
        l.tensor(format!("{block}.feed_forward_gate"), &[1]);
    }
}

fn decoder(l: &mut Layout, config: &ModelConfig) {
    let a: Architecture = config.decoder.architecture();
    let t = &config.tokens;
    let norm_bias = a.norm == Norm::Layer { bias: true };
    l.tensor("decoder.embedding.base", &[t.base_rows(), a.embed_dim]);
    l.tensor("decoder.embedding.added", &[t.added_rows(), a.embed_dim]);
    if let Position::Learned { rows, .. } = a.position {
        l.tensor("decoder.position_embedding", &[rows, a.d_model]);
    }
    let bridged = a.embed_dim != a.d_model;
    if bridged {
        l.linear("decoder.project_in", a.embed_dim, a.d_model, false);
    }
    for i in 0..a.n_layers {
        let block = format!("decoder.blocks.{i}");
        l.norm(&format!("{block}.norm_1"), a.d_model, norm_bias);
        l.linear(&format!("{block}.attention.qkv"), a.d_model, 3 * a.d_model, a.biases.qkv);
        if a.qk_norm {
            l.norm(&format!("{block}.attention.q_norm"), a.d_model, false);
            l.norm(&format!("{block}.attention.k_norm"), a.d_model, false);
        }
        l.linear(&format!("{block}.attention.out"), a.d_model, a.d_model, a.biases.out);
        if a.residual != Residual::ParallelSharedNorm {
            l.norm(&format!("{block}.norm_2"), a.d_model, norm_bias);
        }
        l.linear(&format!("{block}.mlp.up"), a.d_model, a.d_ff, a.biases.mlp);
        if a.gated_mlp {
            l.linear(&format!("{block}.mlp.gate"), a.d_model, a.d_ff, a.biases.mlp);
        }
        l.linear(&format!("{block}.mlp.down"), a.d_ff, a.d_model, a.biases.mlp);
    }
    if a.final_norm {
        l.norm("decoder.norm", a.d_model, norm_bias);
    }
    if bridged {
        l.linear("decoder.project_out", a.d_model, a.embed_dim, false);
    }
    if !a.tied_head {
        l.linear("decoder.head", a.embed_dim, t.vocab_size, a.biases.head);
    }
}

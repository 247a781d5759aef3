//! The decoder families, each with its own few numbers, and the one description that all share.
//!
//! A family is a struct of the numbers that its published configs vary, and a function that says what
//! they mean in terms of [`Architecture`]. The decoder itself (`flamingo-model`) knows no family, only the
//! architecture: adding a family is a struct, an arm in [`DecoderConfig::architecture`], a name table in
//! `flamingo-weights` and a golden case.

use serde::{Deserialize, Serialize};

use crate::{ConfigError, within};

/// A language model, by family.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "family", rename_all = "snake_case")]
pub enum DecoderConfig {
    /// MPT-1B in its April 2023 code ("MosaicGPT"): ALiBi, layer norm of whole queries and keys.
    MosaicGpt(MptConfig),
    /// MPT-7B: ALiBi.
    Mpt(MptConfig),
    /// GPT-NeoX: RedPajama-INCITE (sequential residual) and Pythia (parallel residual).
    GptNeox(GptNeoxConfig),
    /// OPT: learned positions, ReLU, pre- or post-norm.
    Opt(OptConfig),
    /// LLaMA, first generation.
    Llama(LlamaConfig),
    /// GPT-J: parallel residual with one norm, rotary embedding of neighbouring pairs.
    GptJ(GptJConfig),
    /// GPT-Neo: learned positions, unscaled attention, every other layer local.
    GptNeo(GptNeoConfig),
}

/// Numbers of an MPT, of either generation. No bias anywhere, tied head, exact GELU.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MptConfig {
    /// Width.
    pub d_model: usize,
    /// Attention heads.
    pub n_heads: usize,
    /// Blocks.
    pub n_layers: usize,
    /// Width of the feed-forward network's hidden layer.
    pub d_ff: usize,
    /// Longest sequence that the model was trained for.
    pub max_positions: usize,
    /// The steepest ALiBi slope is `2^(-alibi_bias_max / n_heads)`, the flattest `2^-alibi_bias_max`.
    pub alibi_bias_max: f64,
    /// Layer norm of queries and keys over the whole width, before the split into heads.
    pub qk_norm: bool,
    /// Clamp of queries, keys and values to `±clip_qkv`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip_qkv: Option<f64>,
    /// Factor of the attention scores, where it is not `1/sqrt(d_model / n_heads)`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub softmax_scale: Option<f64>,
    /// Epsilon of the layer norms.
    pub norm_eps: f64,
}

/// Numbers of a GPT-NeoX.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GptNeoxConfig {
    /// Width.
    pub d_model: usize,
    /// Attention heads.
    pub n_heads: usize,
    /// Blocks.
    pub n_layers: usize,
    /// Width of the feed-forward network's hidden layer.
    pub d_ff: usize,
    /// Longest sequence that the model was trained for.
    pub max_positions: usize,
    /// Share of each head's width that is rotated.
    pub rotary_pct: f64,
    /// Base of the rotary frequencies.
    pub rotary_base: f64,
    /// `x + attention(norm_1 x) + mlp(norm_2 x)` where true (Pythia), one after the other where false.
    pub parallel_residual: bool,
    /// Feed-forward activation.
    pub activation: Activation,
    /// Whether the output head is the embedding table.
    #[serde(default)]
    pub tied_head: bool,
    /// Epsilon of the layer norms.
    pub norm_eps: f64,
}

/// Numbers of an OPT.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptConfig {
    /// Width.
    pub d_model: usize,
    /// Width of the embedding table; where it differs from `d_model` two projections bridge them.
    pub word_embed_proj_dim: usize,
    /// Attention heads.
    pub n_heads: usize,
    /// Blocks.
    pub n_layers: usize,
    /// Width of the feed-forward network's hidden layer.
    pub d_ff: usize,
    /// Longest sequence; the position table has two rows more.
    pub max_positions: usize,
    /// Norm before each sub-layer (all but OPT-350M) or after it.
    pub pre_norm: bool,
    /// Whether a pre-norm model ends with a norm.
    pub final_norm: bool,
    /// Feed-forward activation.
    pub activation: Activation,
    /// Epsilon of the layer norms.
    pub norm_eps: f64,
}

/// Numbers of a LLaMA.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LlamaConfig {
    /// Width.
    pub d_model: usize,
    /// Attention heads.
    pub n_heads: usize,
    /// Blocks.
    pub n_layers: usize,
    /// Width of the feed-forward network's hidden layer.
    pub d_ff: usize,
    /// Longest sequence that the model was trained for.
    pub max_positions: usize,
    /// Base of the rotary frequencies.
    pub rotary_base: f64,
    /// Whether the output head is the embedding table.
    #[serde(default)]
    pub tied_head: bool,
    /// Epsilon of the RMS norms.
    pub norm_eps: f64,
}

/// Numbers of a GPT-J.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GptJConfig {
    /// Width.
    pub d_model: usize,
    /// Attention heads.
    pub n_heads: usize,
    /// Blocks.
    pub n_layers: usize,
    /// Width of the feed-forward network's hidden layer.
    pub d_ff: usize,
    /// Longest sequence that the model was trained for.
    pub max_positions: usize,
    /// Dimensions of each head that are rotated.
    pub rotary_dim: usize,
    /// Feed-forward activation.
    pub activation: Activation,
    /// Epsilon of the layer norms.
    pub norm_eps: f64,
}

/// Numbers of a GPT-Neo.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GptNeoConfig {
    /// Width.
    pub d_model: usize,
    /// Attention heads.
    pub n_heads: usize,
    /// Blocks.
    pub n_layers: usize,
    /// Width of the feed-forward network's hidden layer.
    pub d_ff: usize,
    /// Rows of the position table.
    pub max_positions: usize,
    /// For each block, whether it sees only the last `window_size` positions.
    pub local_layers: Vec<bool>,
    /// Positions that a local block sees, the token's own included.
    pub window_size: usize,
    /// Feed-forward activation.
    pub activation: Activation,
    /// Epsilon of the layer norms.
    pub norm_eps: f64,
}

/// Feed-forward activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x Φ(x)` with the exact error function.
    Gelu,
    /// GELU's tanh approximation (`gelu_new`).
    GeluTanh,
    /// `x sigmoid(1.702 x)`: OpenAI's CLIP.
    QuickGelu,
    /// `max(x, 0)`.
    Relu,
    /// `x sigmoid(x)`.
    Silu,
}

/// What a norm computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Norm {
    /// Layer norm, with or without a bias.
    Layer {
        /// Whether it has a bias.
        bias: bool,
    },
    /// Root mean square norm: no mean, no bias.
    Rms,
}

/// Where a block normalises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormPlacement {
    /// Before each sub-layer.
    Pre,
    /// After each residual sum (OPT-350M).
    Post,
}

/// How a block adds its two sub-layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residual {
    /// `x += attention(norm_1 x)`, then `x += mlp(norm_2 x)`.
    Sequential,
    /// `x + attention(norm_1 x) + mlp(norm_2 x)`.
    Parallel,
    /// `x + attention(norm_1 x) + mlp(norm_1 x)`: there is no second norm.
    ParallelSharedNorm,
}

/// How two coordinates of a head form a rotated pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pairing {
    /// Coordinate `i` with `i + dims / 2` (GPT-NeoX, Hugging Face's LLaMA).
    Halves,
    /// Coordinate `2i` with `2i + 1` (GPT-J).
    Neighbours,
}

/// Slopes of ALiBi for head counts that are no power of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alibi {
    /// `2^(-max k / n)` for `k = 1..=n`, whatever `n` (MosaicGPT).
    Plain,
    /// The slopes of the next power of two, every second one first (llm-foundry's MPT).
    Interleaved,
}

/// How the model knows where a token stands.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Position {
    /// A penalty on distance, added to the attention scores.
    Alibi {
        /// Exponent of the flattest slope.
        bias_max: f64,
        /// Rule for head counts that are no power of two.
        slopes: Alibi,
    },
    /// Rotation of queries and keys.
    Rotary {
        /// Rotated dimensions of a head.
        dims: usize,
        /// Base of the frequencies.
        base: f64,
        /// Which coordinates form a pair.
        pairing: Pairing,
    },
    /// A table added to the embeddings.
    Learned {
        /// Added to a position before the table is read (OPT: 2).
        offset: usize,
        /// Rows of the table, offset included.
        rows: usize,
    },
}

/// What transformers' attention computes for padding that sees no text (before the first token of a
/// left-padded row). All scores there are masked to nearly the same number, so the weights come out equal over
/// some of the keys; over which, depends on how a family adds up its masks. Only a loss over left-padded text
/// can tell: the last padded place predicts the first token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blind {
    /// All keys.
    All,
    /// The padding that the causal mask shows, and all text.
    SeenAndText,
    /// All text.
    Text,
}

/// Which linear layers of the decoder have a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Biases {
    /// Queries, keys and values.
    pub qkv: bool,
    /// Attention output.
    pub out: bool,
    /// Both layers of the feed-forward network.
    pub mlp: bool,
    /// The output head.
    pub head: bool,
}

/// A decoder-only transformer, whatever its family: what `flamingo-model` builds.
#[derive(Clone, Debug, PartialEq)]
pub struct Architecture {
    /// Width.
    pub d_model: usize,
    /// Width of the embedding table; projections bridge it to `d_model` where they differ.
    pub embed_dim: usize,
    /// Attention heads.
    pub n_heads: usize,
    /// Blocks.
    pub n_layers: usize,
    /// Width of the feed-forward network's hidden layer.
    pub d_ff: usize,
    /// Longest sequence that the model was trained for.
    pub max_positions: usize,
    /// What a norm computes.
    pub norm: Norm,
    /// Epsilon of the norms.
    pub norm_eps: f64,
    /// Where a block normalises.
    pub norm_placement: NormPlacement,
    /// Whether a norm stands before the head.
    pub final_norm: bool,
    /// How a block adds its two sub-layers.
    pub residual: Residual,
    /// Feed-forward activation.
    pub activation: Activation,
    /// Whether the feed-forward network is `down(act(gate x) * up x)` rather than `down(act(up x))`.
    pub gated_mlp: bool,
    /// How the model knows where a token stands.
    pub position: Position,
    /// Factor of the attention scores.
    pub attention_scale: f64,
    /// Norm of queries and keys over the whole width (weight only).
    pub qk_norm: bool,
    /// Clamp of queries, keys and values.
    pub clip_qkv: Option<f64>,
    /// For each block, how many positions it sees at most; `None` for all.
    pub windows: Vec<Option<usize>>,
    /// Which linear layers have a bias.
    pub biases: Biases,
    /// Whether the output head is the embedding table.
    pub tied_head: bool,
    /// What padding that sees no text attends to in upstream.
    pub blind: Blind,
}

impl Architecture {
    /// Width of one attention head.
    pub fn head_dim(&self) -> usize {
        self.d_model / self.n_heads
    }
}

impl DecoderConfig {
    /// What the family's numbers mean.
    pub fn architecture(&self) -> Architecture {
        match self {
            Self::MosaicGpt(c) => mpt(c, Alibi::Plain),
            Self::Mpt(c) => mpt(c, Alibi::Interleaved),
            Self::GptNeox(c) => gpt_neox(c),
            Self::Opt(c) => opt(c),
            Self::Llama(c) => llama(c),
            Self::GptJ(c) => gpt_j(c),
            Self::GptNeo(c) => gpt_neo(c),
        }
    }

    /// The family's name, as in `model.toml`.
    pub fn family(&self) -> &'static str {
        match self {
            Self::MosaicGpt(_) => "mosaic_gpt",
            Self::Mpt(_) => "mpt",
            Self::GptNeox(_) => "gpt_neox",
            Self::Opt(_) => "opt",
            Self::Llama(_) => "llama",
            Self::GptJ(_) => "gpt_j",
            Self::GptNeo(_) => "gpt_neo",
        }
    }

    /// Whether a model can be made of it.
    ///
    /// # Errors
    /// [`ConfigError`] for sizes that are out of range or do not fit each other.
    pub fn check(&self) -> Result<(), ConfigError> {
        let (d_model, n_heads, n_layers) = match self {
            Self::MosaicGpt(c) | Self::Mpt(c) => (c.d_model, c.n_heads, c.n_layers),
            Self::GptNeox(c) => (c.d_model, c.n_heads, c.n_layers),
            Self::Opt(c) => (c.d_model, c.n_heads, c.n_layers),
            Self::Llama(c) => (c.d_model, c.n_heads, c.n_layers),
            Self::GptJ(c) => (c.d_model, c.n_heads, c.n_layers),
            Self::GptNeo(c) => (c.d_model, c.n_heads, c.n_layers),
        };
        let (width, rows) = (1 << 17, 1 << 24);
        within("decoder.d_model", d_model, width)?;
        within("decoder.n_heads", n_heads, width)?;
        within("decoder.n_layers", n_layers, 1 << 10)?;
        if !d_model.is_multiple_of(n_heads) {
            return Err(ConfigError::Inconsistent(format!(
                "decoder.d_model {d_model} is not a multiple of decoder.n_heads {n_heads}"
            )));
        }
        if let Self::GptNeo(c) = self
            && c.local_layers.len() != n_layers
        {
            return Err(ConfigError::Inconsistent(format!(
                "decoder.local_layers has {} entries for decoder.n_layers {n_layers}",
                c.local_layers.len()
            )));
        }
        let a = self.architecture();
        within("decoder.word_embed_proj_dim", a.embed_dim, width)?;
        within("decoder.d_ff", a.d_ff, 8 * width)?;
        within("decoder.max_positions", a.max_positions, rows)?;
        for window in a.windows.iter().flatten() {
            within("decoder.window_size", *window, rows)?;
        }
        let base = match a.position {
            Position::Alibi { bias_max, .. } => bias_max,
            Position::Rotary { base, .. } => base,
            Position::Learned { .. } => 1.0,
        };
        for (name, number) in [
            ("norm_eps", a.norm_eps),
            ("alibi_bias_max or rotary_base", base),
            ("softmax_scale", a.attention_scale),
            ("clip_qkv", a.clip_qkv.unwrap_or(1.0)),
        ] {
            if !(number > 0.0 && number.is_finite()) {
                return Err(ConfigError::Inconsistent(format!("decoder.{name} = {number} is no positive number")));
            }
        }
        if let Position::Rotary { dims, .. } = a.position
            && (dims == 0 || dims > a.head_dim() || !dims.is_multiple_of(2))
        {
            return Err(ConfigError::Inconsistent(format!(
                "{dims} rotated dimensions do not fit a head of width {}",
                a.head_dim()
            )));
        }
        Ok(())
    }
}

/// The most common decoder: pre-norm, sequential, exact GELU, everything with a bias, tied head.
/// Each family below states where it differs.
fn common(d_model: usize, n_heads: usize, n_layers: usize, d_ff: usize, max_positions: usize) -> Architecture {
    Architecture {
        d_model,
        embed_dim: d_model,
        n_heads,
        n_layers,
        d_ff,
        max_positions,
        norm: Norm::Layer { bias: true },
        norm_eps: 1e-5,
        norm_placement: NormPlacement::Pre,
        final_norm: true,
        residual: Residual::Sequential,
        activation: Activation::Gelu,
        gated_mlp: false,
        position: Position::Learned { offset: 0, rows: max_positions },
        attention_scale: 1.0 / ((d_model / n_heads) as f64).sqrt(),
        qk_norm: false,
        clip_qkv: None,
        windows: vec![None; n_layers],
        biases: Biases { qkv: true, out: true, mlp: true, head: false },
        tied_head: true,
        blind: Blind::All,
    }
}

fn mpt(c: &MptConfig, slopes: Alibi) -> Architecture {
    let base = common(c.d_model, c.n_heads, c.n_layers, c.d_ff, c.max_positions);
    Architecture {
        norm: Norm::Layer { bias: false },
        norm_eps: c.norm_eps,
        position: Position::Alibi { bias_max: c.alibi_bias_max, slopes },
        attention_scale: c.softmax_scale.unwrap_or(base.attention_scale),
        qk_norm: c.qk_norm,
        clip_qkv: c.clip_qkv,
        biases: Biases { qkv: false, out: false, mlp: false, head: false },
        ..base
    }
}

fn gpt_neox(c: &GptNeoxConfig) -> Architecture {
    let base = common(c.d_model, c.n_heads, c.n_layers, c.d_ff, c.max_positions);
    let dims = (base.head_dim() as f64 * c.rotary_pct) as usize;
    Architecture {
        norm_eps: c.norm_eps,
        residual: if c.parallel_residual { Residual::Parallel } else { Residual::Sequential },
        activation: c.activation,
        position: Position::Rotary { dims, base: c.rotary_base, pairing: Pairing::Halves },
        tied_head: c.tied_head,
        blind: Blind::SeenAndText,
        ..base
    }
}

fn opt(c: &OptConfig) -> Architecture {
    let base = common(c.d_model, c.n_heads, c.n_layers, c.d_ff, c.max_positions);
    Architecture {
        embed_dim: c.word_embed_proj_dim,
        norm_eps: c.norm_eps,
        norm_placement: if c.pre_norm { NormPlacement::Pre } else { NormPlacement::Post },
        final_norm: c.final_norm,
        activation: c.activation,
        position: Position::Learned { offset: 2, rows: c.max_positions + 2 },
        ..base
    }
}

fn llama(c: &LlamaConfig) -> Architecture {
    let base = common(c.d_model, c.n_heads, c.n_layers, c.d_ff, c.max_positions);
    Architecture {
        norm: Norm::Rms,
        norm_eps: c.norm_eps,
        activation: Activation::Silu,
        gated_mlp: true,
        position: Position::Rotary { dims: base.head_dim(), base: c.rotary_base, pairing: Pairing::Halves },
        biases: Biases { qkv: false, out: false, mlp: false, head: false },
        tied_head: c.tied_head,
        blind: Blind::SeenAndText,
        ..base
    }
}

fn gpt_j(c: &GptJConfig) -> Architecture {
    Architecture {
        norm_eps: c.norm_eps,
        residual: Residual::ParallelSharedNorm,
        activation: c.activation,
        position: Position::Rotary { dims: c.rotary_dim, base: 10_000.0, pairing: Pairing::Neighbours },
        biases: Biases { qkv: false, out: false, mlp: true, head: true },
        tied_head: false,
        blind: Blind::Text,
        ..common(c.d_model, c.n_heads, c.n_layers, c.d_ff, c.max_positions)
    }
}

fn gpt_neo(c: &GptNeoConfig) -> Architecture {
    Architecture {
        norm_eps: c.norm_eps,
        activation: c.activation,
        attention_scale: 1.0,
        windows: c.local_layers.iter().map(|local| local.then_some(c.window_size)).collect(),
        biases: Biases { qkv: false, out: true, mlp: true, head: false },
        blind: Blind::SeenAndText,
        ..common(c.d_model, c.n_heads, c.n_layers, c.d_ff, c.max_positions)
    }
}

//! What a Flamingo is made of, as data.
//!
//! [`ModelConfig`] holds every number of a model. It is read from a `model.toml` (one in each folder of
//! `models/`, and one in every converted model folder) or put together from upstream's own files
//! ([`hf`]). Nothing here computes: the mathematics is in `flamingo-model`, the names of the tensors in
//! `flamingo-weights`; both read this crate and neither reads the other.

mod decoder;
pub mod hf;
mod quantised;

pub use decoder::{
    Activation, Alibi, Architecture, Biases, Blind, DecoderConfig, GptJConfig, GptNeoConfig, GptNeoxConfig,
    LlamaConfig, MptConfig, Norm, NormPlacement, OptConfig, Pairing, Position, Residual,
};
pub use quantised::{BLOCK, LEVELS, Scheme};

use serde::{Deserialize, Serialize};

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The text is not TOML, or a field is missing, unknown or of the wrong type.
    #[error("line {line}: {message}")]
    Toml {
        /// Where, counted from 1.
        line: usize,
        /// What is wrong.
        message: String,
    },
    /// Two numbers that must agree do not.
    #[error("{0}")]
    Inconsistent(String),
    /// A setting that upstream's code knows and this project does not.
    #[error("{0} is not supported")]
    Unsupported(String),
    /// A Hugging Face or open_clip config lacks a field.
    #[error("the {file} config has no usable field `{field}`")]
    MissingField {
        /// Which file was read: "language model" or "CLIP".
        file: &'static str,
        /// The field's name.
        field: String,
    },
}

/// A whole OpenFlamingo: vision encoder, resampler, cross-attention and decoder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// The model's name in the zoo, for example `openflamingo-3b`.
    pub name: String,
    /// Where the parts of a released model are published.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
    /// The text between a picture and its caption that the model was trained with.
    #[serde(default = "output", skip_serializing_if = "is_output")]
    pub caption_prompt: String,
    /// The vocabulary and its special tokens.
    pub tokens: TokenConfig,
    /// The CLIP vision transformer.
    pub vision: VisionConfig,
    /// The Perceiver resampler.
    pub resampler: ResamplerConfig,
    /// The gated cross-attention blocks.
    pub cross_attention: CrossAttentionConfig,
    /// The language model.
    pub decoder: DecoderConfig,
}

/// Upstream's text between a picture and its caption (`eval_model.get_caption_prompt`).
pub const CAPTION_PROMPT: &str = "Output:";

fn output() -> String {
    CAPTION_PROMPT.into()
}

fn is_output(prompt: &String) -> bool {
    prompt == CAPTION_PROMPT
}

/// Names of a released model's parts on the Hugging Face hub.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Repository and file of the CLIP weights.
    pub clip: HubFile,
    /// Repository of the language model.
    pub language_model: String,
    /// Repository and file of the OpenFlamingo checkpoint.
    pub checkpoint: HubFile,
}

/// One file of a hub repository.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HubFile {
    /// `owner/name`.
    pub repo: String,
    /// Path of the file in the repository.
    pub file: String,
}

/// The vocabulary after upstream's special tokens were added (`src/factory.py`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenConfig {
    /// Rows of the embedding table, added tokens included.
    pub vocab_size: usize,
    /// Id of `<|endofchunk|>`: the length of the tokenizer before anything was added.
    pub endofchunk: u32,
    /// Id of `<image>`.
    pub image: u32,
    /// Id of the padding token: `<PAD>` where the tokenizer had none.
    pub pad: u32,
    /// Id that fills a finished sequence in a batch; upstream's generation uses the language model's
    /// `pad_token_id` where its config has one and `<|endofchunk|>` otherwise.
    pub generation_pad: u32,
}

impl TokenConfig {
    /// Rows of the frozen part of the embedding table: the tokenizer before upstream's additions.
    pub fn base_rows(&self) -> usize {
        self.endofchunk as usize
    }

    /// Rows that upstream added and trains (`<|endofchunk|>`, `<image>`, and `<PAD>` where needed).
    pub fn added_rows(&self) -> usize {
        self.vocab_size - self.base_rows()
    }
}

/// The text tower of contrastive pre-training: a small language model that shares the model's tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextTowerConfig {
    /// Its transformer. A head of its own would go unused: let it be tied.
    pub decoder: DecoderConfig,
}

/// CLIP's vision transformer (open_clip `VisionTransformer`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VisionConfig {
    /// Side of the square input in pixels.
    pub image_size: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Width of the tokens.
    pub width: usize,
    /// Number of transformer blocks.
    pub layers: usize,
    /// Number of attention heads.
    pub heads: usize,
    /// Width of the hidden layer of the feed-forward network.
    pub mlp_width: usize,
    /// `quick_gelu` for OpenAI's weights, `gelu` for most of open_clip's own.
    pub activation: Activation,
    /// Width of the joint image-text space (RICES compares images there).
    pub output_dim: usize,
}

impl VisionConfig {
    /// Patches along one side of the picture.
    pub fn grid(&self) -> usize {
        self.image_size / self.patch_size
    }

    /// Patch tokens of one picture, the class token not counted.
    pub fn patches(&self) -> usize {
        self.grid() * self.grid()
    }
}

/// The Perceiver resampler (`src/helpers.py`, `PerceiverResampler`). Its width is the vision width.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResamplerConfig {
    /// Number of layers.
    pub depth: usize,
    /// Width of one attention head.
    pub dim_head: usize,
    /// Number of attention heads.
    pub heads: usize,
    /// Latents an image is summarised into.
    pub num_latents: usize,
    /// Width of the feed-forward network's hidden layer, in multiples of the width.
    pub ff_mult: usize,
    /// Rows of the frame embedding (video); absent in every released model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_num_frames: Option<usize>,
    /// Rows of the media-time embedding; absent in every released model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_num_media: Option<usize>,
}

/// The gated cross-attention blocks (`src/helpers.py`, `GatedCrossAttentionBlock`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CrossAttentionConfig {
    /// A block stands before decoder layer `i` where `(i + 1) % every_n_layers == 0`.
    pub every_n_layers: usize,
    /// Width of one attention head.
    pub dim_head: usize,
    /// Number of attention heads.
    pub heads: usize,
    /// Width of the feed-forward network's hidden layer, in multiples of the decoder's width.
    pub ff_mult: usize,
    /// Whether text looks at the latest image only (every released model), or at all images before it.
    pub only_attend_immediate_media: bool,
}

impl CrossAttentionConfig {
    /// Whether a block stands before decoder layer `layer` (counted from 0).
    pub fn has_block(&self, layer: usize) -> bool {
        (layer + 1).is_multiple_of(self.every_n_layers)
    }
}

impl ModelConfig {
    /// Tokens of a text that the decoder was trained for.
    pub fn max_tokens(&self) -> usize {
        self.most_tokens().unwrap_or_else(|| self.decoder.architecture().max_positions)
    }

    /// Tokens of a text that the decoder can read at all, where its positions are a table.
    pub fn most_tokens(&self) -> Option<usize> {
        match self.decoder.architecture().position {
            Position::Learned { offset, rows } => Some(rows.saturating_sub(offset)),
            _ => None,
        }
    }

    /// Reads and checks the text of a `model.toml`.
    ///
    /// # Errors
    /// [`ConfigError::Toml`] for text that does not parse, [`ConfigError::Inconsistent`] and
    /// [`ConfigError::Unsupported`] for numbers that cannot be a model.
    pub fn from_toml(text: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|e| ConfigError::Toml {
            line: e.span().map_or(1, |span| 1 + text.get(..span.start).unwrap_or(text).matches('\n').count()),
            message: e.message().replace('\n', " "),
        })?;
        config.check()?;
        Ok(config)
    }

    /// The text of a `model.toml`.
    pub fn to_toml(&self) -> String {
        toml::to_string_pretty(self).expect("a config has string keys and no unit values")
    }

    /// Checks what the types cannot: divisibility, ranges of ids, limits against absurd sizes.
    ///
    /// # Errors
    /// [`ConfigError::Inconsistent`] with the two numbers that disagree.
    pub fn check(&self) -> Result<(), ConfigError> {
        let wrong = |what: String| Err(ConfigError::Inconsistent(what));
        let v = &self.vision;
        let r = &self.resampler;
        let x = &self.cross_attention;
        let t = &self.tokens;
        // Far beyond any model that exists, and small enough that no product of them overflows.
        let (width, count, rows) = (1 << 17, 1 << 10, 1 << 24);
        for (name, size, limit) in [
            ("vision.image_size", v.image_size, 1 << 13),
            ("vision.patch_size", v.patch_size, 1 << 13),
            ("vision.width", v.width, width),
            ("vision.layers", v.layers, count),
            ("vision.heads", v.heads, width),
            ("vision.mlp_width", v.mlp_width, 8 * width),
            ("vision.output_dim", v.output_dim, width),
            ("resampler.depth", r.depth, count),
            ("resampler.dim_head", r.dim_head, width),
            ("resampler.heads", r.heads, count),
            ("resampler.num_latents", r.num_latents, width),
            ("resampler.ff_mult", r.ff_mult, count),
            ("resampler.max_num_frames", r.max_num_frames.unwrap_or(1), rows),
            ("resampler.max_num_media", r.max_num_media.unwrap_or(1), rows),
            ("cross_attention.every_n_layers", x.every_n_layers, rows),
            ("cross_attention.dim_head", x.dim_head, width),
            ("cross_attention.heads", x.heads, count),
            ("cross_attention.ff_mult", x.ff_mult, count),
            ("tokens.vocab_size", t.vocab_size, rows),
        ] {
            within(name, size, limit)?;
        }
        if !v.image_size.is_multiple_of(v.patch_size) {
            return wrong(format!(
                "vision.image_size {} is not a multiple of vision.patch_size {}",
                v.image_size, v.patch_size
            ));
        }
        if !v.width.is_multiple_of(v.heads) {
            return wrong(format!("vision.width {} is not a multiple of vision.heads {}", v.width, v.heads));
        }
        let ids =
            [("endofchunk", t.endofchunk), ("image", t.image), ("pad", t.pad), ("generation_pad", t.generation_pad)];
        for (name, id) in ids {
            if id as usize >= t.vocab_size {
                return wrong(format!("tokens.{name} = {id} is outside tokens.vocab_size {}", t.vocab_size));
            }
        }
        if t.image <= t.endofchunk || t.endofchunk == 0 {
            return wrong(format!(
                "tokens.image {} must follow tokens.endofchunk {}: upstream adds them in this order",
                t.image, t.endofchunk
            ));
        }
        self.decoder.check()
    }
}

/// Checks that a size is one, and not absurd.
pub(crate) fn within(name: &str, size: usize, limit: usize) -> Result<(), ConfigError> {
    if (1..=limit).contains(&size) {
        return Ok(());
    }
    Err(ConfigError::Inconsistent(format!("{name} = {size} is not between 1 and {limit}")))
}

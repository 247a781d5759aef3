//! Which parameters train: one list, one place.

use serde::{Deserialize, Serialize};

/// A part of the model that trains or is frozen as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// The Perceiver resampler.
    Resampler,
    /// The gated cross-attention blocks.
    CrossAttention,
    /// The embeddings of `<image>` and `<|endofchunk|>`.
    AddedEmbeddings,
    /// CLIP's vision tower.
    Vision,
    /// The language model, its whole embedding table included.
    Decoder,
}

impl Part {
    /// What upstream trains.
    pub const UPSTREAM: [Self; 3] = [Self::Resampler, Self::CrossAttention, Self::AddedEmbeddings];

    /// The part that a parameter belongs to, by its module path.
    pub(crate) fn of(path: &str) -> Self {
        match path.split('.').next() {
            Some("resampler") => Self::Resampler,
            Some("cross_attention") => Self::CrossAttention,
            Some("vision") => Self::Vision,
            _ if path == ADDED => Self::AddedEmbeddings,
            _ => Self::Decoder,
        }
    }

    /// Whether a parameter trains when these parts do.
    pub fn trains(parts: &[Self], path: &str) -> bool {
        let part = Self::of(path);
        parts.contains(&part) || part == Self::AddedEmbeddings && parts.contains(&Self::Decoder)
    }

    /// Whether weight decay applies to a parameter: upstream decays everything in the cross-attention blocks,
    /// norms, biases and gates included, and nothing else (`train.py`, `get_grouped_params`).
    pub(crate) fn decays(path: &str) -> bool {
        Self::of(path) == Self::CrossAttention
    }
}

/// The added rows of the embedding table.
pub(crate) const ADDED: &str = "decoder.embedding.added";

//! What the paper (arXiv 2308.01390) says of its runs.

use crate::{Precision, Stream};

/// A run of the paper: its Table 3 and sections 3.1 and 3.3.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Published {
    /// The device's name among those of [`crate::Device`].
    pub device: &'static str,
    /// Number formats.
    pub precision: Precision,
    /// Whether the embeddings of `<image>` and `<|endofchunk|>` were frozen.
    pub freeze_lm_embeddings: bool,
    /// Whether it was sharded by FSDP.
    pub sharded: bool,
}

impl Published {
    /// The run that made a model of the zoo.
    pub fn of(name: &str) -> Option<Self> {
        let (device, precision) = match name {
            "openflamingo-3b" => ("a100-80gb", Precision::Fp32),
            "openflamingo-3b-instruct" | "openflamingo-4b" | "openflamingo-4b-instruct" => {
                ("a100-40gb", Precision::Fp32)
            }
            "openflamingo-9b" => ("a100-80gb", Precision::AmpBf16),
            _ => return None,
        };
        // Frozen because it was sharded.
        let sharded = name.starts_with("openflamingo-4b");
        Some(Self { device, precision, freeze_lm_embeddings: sharded, sharded })
    }
}

/// Captioned pictures: samples and tokens are the paper's (3.2, 3.3), rows upstream's (`scripts/run_train.sh`).
pub const PAIRS: Stream = Stream { rows: 64, tokens: 32, images: 1.0, most_images: 1, samples: 120_000_000 };

/// Interleaved documents: samples, tokens and most pictures are the paper's (3.2, 3.3), rows upstream's. The paper gives the
/// median of pictures, 2, and their range, 1 to 6; the mean is taken to be 3.
pub const DOCUMENTS: Stream = Stream { rows: 32, tokens: 256, images: 3.0, most_images: 6, samples: 60_000_000 };

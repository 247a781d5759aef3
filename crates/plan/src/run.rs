//! What is planned.

use std::fmt;
use std::str::FromStr;

use flamingo_config::ModelConfig;
use serde::Serialize;

use crate::{Bytes, Device, Interconnect, PlanError};

/// The format of what is frozen and of activations, as a recipe names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// f32 throughout.
    Fp32,
    /// bf16, but for what trains, its gradients, the optimizer's state and the loss.
    AmpBf16,
}

impl Precision {
    /// Bytes of a number.
    pub fn bytes(self) -> u64 {
        match self {
            Self::Fp32 => 4,
            Self::AmpBf16 => 2,
        }
    }
}

impl FromStr for Precision {
    type Err = PlanError;

    fn from_str(text: &str) -> Result<Self, PlanError> {
        match text {
            "fp32" => Ok(Self::Fp32),
            "amp_bf16" => Ok(Self::AmpBf16),
            _ => Err(PlanError::Value { given: text.to_string(), what: "precision", fix: "fp32 or amp_bf16" }),
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fp32 => "fp32",
            Self::AmpBf16 => "amp_bf16",
        })
    }
}

/// Rows of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Stream {
    /// Rows of a device's batch; 0 for none.
    pub rows: u64,
    /// Tokens of a row, padding included.
    pub tokens: u64,
    /// Pictures of a row on average.
    pub images: f64,
    /// Pictures that the row with most of them has; others are filled with blank ones, which are one picture.
    pub most_images: u64,
    /// Rows of the whole run.
    pub samples: u64,
}

impl Stream {
    /// Pictures of a batch that differ from each other.
    pub fn distinct(&self) -> u64 {
        let own = (self.rows as f64 * self.images).ceil() as u64;
        own + u64::from(self.images < self.most_images as f64)
    }
}

/// Far beyond any run, and small enough that bytes of it can be counted.
pub(crate) const MOST: u64 = 1 << 16;

/// A run that may be begun.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// What trains.
    pub config: ModelConfig,
    /// The format of what is frozen and of activations.
    pub precision: Precision,
    /// Whether the embeddings of `<image>` and `<|endofchunk|>` stay as they are.
    pub freeze_lm_embeddings: bool,
    /// Devices, each with a model of its own.
    pub devices: u64,
    /// Devices of a node.
    pub devices_per_node: u64,
    /// How fast each computes.
    pub device: Device,
    /// Its memory.
    pub memory: Bytes,
    /// The share of its peak that a device reaches; without it what was measured.
    pub efficiency: Option<f64>,
    /// What joins the nodes.
    pub interconnect: Interconnect,
    /// Whether gradients are rounded to bf16 on their way.
    pub bf16_gradients: bool,
    /// Memory for what the vision tower made of pictures.
    pub vision_cache: u64,
    /// Captioned pictures.
    pub pairs: Stream,
    /// Interleaved documents.
    pub documents: Stream,
    /// Dollars that a device costs an hour.
    pub price: f64,
}

impl Run {
    /// The streams that there are.
    pub fn streams(&self) -> impl Iterator<Item = (&'static str, &Stream)> {
        [("pairs", &self.pairs), ("documents", &self.documents)].into_iter().filter(|(_, stream)| stream.rows > 0)
    }

    /// Checks that this can be a run.
    ///
    /// # Errors
    /// [`PlanError`] with the option that must change.
    pub fn check(&self) -> Result<(), PlanError> {
        let range = |option, range| Err(PlanError::Range { option, range });
        if self.streams().next().is_none() {
            return Err(PlanError::Nothing);
        }
        if !(1..=MOST).contains(&self.devices) || !(1..=MOST).contains(&self.devices_per_node) {
            return range("--devices and --devices-per-node", "1 to 65536");
        }
        if self.vision_cache > 1 << 50 {
            return range("--vision-cache-mib", "at most 1073741824");
        }
        if self.efficiency.is_some_and(|share| !(share > 0.0 && share <= 1.0)) {
            return range("--efficiency", "above 0 and at most 1");
        }
        if !(self.price >= 0.0 && self.price.is_finite()) {
            return range("--price", "a number that is not negative");
        }
        let options = [(&self.pairs, "--max-tokens-laion"), (&self.documents, "--max-tokens-mmc4")];
        let most = self.config.most_tokens().unwrap_or(MOST as usize);
        for (stream, option) in options {
            if stream.rows > MOST {
                return range("--batch-size-laion and --batch-size-mmc4", "at most 65536");
            }
            if stream.rows > 0 && stream.samples < self.devices * stream.rows {
                return range("--samples-laion and --samples-mmc4", "a batch of all devices at least");
            }
            // The first token is predicted by nothing.
            if !(2..=MOST).contains(&stream.tokens) {
                return range(option, "2 to 65536");
            }
            if stream.tokens > most as u64 {
                return Err(PlanError::TooLong { tokens: stream.tokens, most, option });
            }
            if !(stream.images > 0.0 && stream.images <= stream.most_images as f64 && stream.most_images <= 1 << 10) {
                return range("--images-mmc4", "above 0 and at most --mmc4-max-num-images, which is at most 1024");
            }
        }
        Ok(())
    }
}

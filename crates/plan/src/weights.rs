//! How many numbers a model has, and who owns them.

use flamingo_config::ModelConfig;
use flamingo_weights::layout;

/// The parameters of a model, in numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Weights {
    /// What stays as it is.
    pub frozen: u64,
    /// Each parameter that trains, the largest first.
    pub trained: Vec<u64>,
}

impl Weights {
    /// Of a model of which trains what upstream trains: resampler, cross-attention and, unless they are frozen, the added
    /// rows of the embeddings.
    pub fn new(config: &ModelConfig, freeze_lm_embeddings: bool) -> Self {
        let trains = |name: &str| {
            name.starts_with("resampler.")
                || name.starts_with("cross_attention.")
                || name == "decoder.embedding.added" && !freeze_lm_embeddings
        };
        let mut weights = Self { frozen: 0, trained: Vec::new() };
        for tensor in layout(config) {
            let size = tensor.shape.iter().map(|&n| n as u64).product();
            if trains(&tensor.name) {
                weights.trained.push(size);
            } else {
                weights.frozen += size;
            }
        }
        weights.trained.sort_unstable_by(|a, b| b.cmp(a));
        weights
    }

    /// All that trains.
    pub fn trained(&self) -> u64 {
        self.trained.iter().sum()
    }

    /// The largest parameter that trains.
    pub fn largest(&self) -> u64 {
        self.trained.first().copied().unwrap_or(0)
    }

    /// What the owner of most owns: parameters are given out whole, the largest first, each to who has least.
    pub fn largest_share(&self, devices: u64) -> u64 {
        // More owners than parameters own nothing.
        let mut shares = vec![0u64; self.trained.len().min(usize::try_from(devices).unwrap_or(usize::MAX))];
        for size in &self.trained {
            if let Some(least) = shares.iter_mut().min() {
                *least += size;
            }
        }
        shares.into_iter().max().unwrap_or(0)
    }
}

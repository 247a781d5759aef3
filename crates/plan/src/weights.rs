//! How many numbers a model has, and who owns them.

use flamingo_config::ModelConfig;
use flamingo_weights::layout;

/// The parameters of a model, in numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Weights {
    /// What stays as it is.
    pub frozen: u64,
    /// Each parameter of it that is larger than a million numbers.
    pub frozen_matrices: Vec<u64>,
    /// Each parameter that trains, the largest first.
    pub trained: Vec<u64>,
    /// What of it has its gradient at the very end of a backward pass: all but cross-attention.
    pub trained_last: u64,
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
        let mut weights = Self { frozen: 0, frozen_matrices: Vec::new(), trained: Vec::new(), trained_last: 0 };
        for tensor in layout(config) {
            let size = tensor.shape.iter().map(|&n| n as u64).product();
            if trains(&tensor.name) {
                weights.trained.push(size);
                weights.trained_last += if tensor.name.starts_with("cross_attention.") { 0 } else { size };
            } else {
                weights.frozen += size;
                weights.frozen_matrices.extend((size > 1_000_000).then_some(size));
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

    /// What each device updates: all numbers that train are one row, cut into equal parts.
    pub fn share(&self, devices: u64) -> u64 {
        self.trained().div_ceil(devices)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `flamingo inspect` counts modules; of the decoder two rows of embeddings train, and that of padding beside them.
    #[test]
    fn the_zoo_is_counted() {
        for (name, resampler, cross_attention, total, added) in [
            ("openflamingo-3b", 63_019_008, 881_000_496, 2_559_117_360, 3 * 2048),
            ("openflamingo-4b", 63_019_008, 897_744_928, 4_039_816_224, 3 * 2560),
            ("openflamingo-9b", 63_019_008, 1_115_815_952, 8_131_465_232, 3 * 4096),
        ] {
            let path = format!("{}/../../models/{name}/model.toml", env!("CARGO_MANIFEST_DIR"));
            let text = std::fs::read_to_string(path).expect("a model of the zoo");
            let config = ModelConfig::from_toml(&text).expect("a config");
            for (freeze, trained) in [(true, resampler + cross_attention), (false, resampler + cross_attention + added)]
            {
                let weights = Weights::new(&config, freeze);
                assert_eq!((weights.trained(), weights.frozen), (trained, total - trained), "{name}");
            }
        }
    }
}

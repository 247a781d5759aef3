//! How large the parts of a model are.

use flamingo_config::ModelConfig;
use flamingo_weights::layout;

/// One part of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// `vision`, `resampler`, `cross_attention` or `decoder`.
    pub name: &'static str,
    /// Number of parameters.
    pub parameters: u64,
}

/// The four parts of a model with their sizes, from its config alone.
pub fn parts(config: &ModelConfig) -> Vec<Part> {
    let tensors = layout(config);
    ["vision", "resampler", "cross_attention", "decoder"]
        .into_iter()
        .map(|name| {
            let own = tensors.iter().filter(|t| t.name.split('.').next() == Some(name));
            Part { name, parameters: own.map(|t| t.shape.iter().map(|&n| n as u64).product::<u64>()).sum() }
        })
        .collect()
}

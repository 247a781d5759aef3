//! What was trained, as a model folder and as upstream's checkpoint.

use std::collections::BTreeMap;
use std::path::Path;

use flamingo_engine::Array;
use flamingo_weights::{Dtype, ModelFolder, NewFolder, TensorSpec, WeightsError, save_checkpoint};

/// Writes the model folder `out` with these weights and those of `base` for what did not train, and beside its tensors
/// `checkpoint` under upstream's names where a path is given.
///
/// # Errors
/// [`WeightsError`] for weights that are not finite or do not fit the format, and where writing fails.
pub fn export(
    base: &ModelFolder,
    tokenizer: &Path,
    weights: Vec<(String, Array)>,
    dtype: Dtype,
    card: &str,
    out: &Path,
    checkpoint: Option<&Path>,
) -> Result<(), WeightsError> {
    let weights: BTreeMap<String, Array> = weights.into_iter().collect();
    let mut numbers = |spec: &TensorSpec| match weights.get(&spec.name) {
        Some(array) => Some(array.data.clone()),
        None => base.tensor_f32(&spec.name),
    };
    NewFolder { config: base.config(), dtype, tokenizer, card, replace: true }.write(out, &mut numbers)?;
    match checkpoint {
        Some(path) => save_checkpoint(base.config(), path, &mut numbers),
        None => Ok(()),
    }
}

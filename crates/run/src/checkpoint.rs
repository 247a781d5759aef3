//! Checkpoints: everything that decides the next step, in one file that is there whole or not at all.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use flamingo_data::Position;
use flamingo_engine::Array;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};

use crate::{Recipe, RunError};

/// What a checkpoint holds beside tensors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Progress {
    /// Updates that were done, those skipped for their loss included.
    pub(crate) step: usize,
    /// Updates that changed the weights; they decide the learning rate.
    pub(crate) updates: usize,
    /// Where each stream stands.
    pub(crate) streams: BTreeMap<String, Position>,
    /// Steps in a row, up to this one, whose loss was no number.
    pub(crate) lost: usize,
    /// What was seen since the last line of metrics.
    pub(crate) window: Window,
    /// Seconds of training so far.
    pub(crate) seconds: f64,
    /// Tokens and pictures so far.
    pub(crate) tokens: u64,
    pub(crate) pictures: u64,
    /// The settings.
    #[serde(with = "as_toml")]
    pub(crate) recipe: Recipe,
    /// Tells the model that the run began with from others.
    pub(crate) model: String,
}

/// What was seen since the last line of metrics.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Window {
    /// Sum and number of each stream's losses.
    pub(crate) losses: BTreeMap<String, (f64, usize)>,
    pub(crate) norms: (f64, usize),
    pub(crate) tokens: u64,
    pub(crate) pictures: u64,
    pub(crate) seconds: f64,
    /// Seconds that each worker computed.
    pub(crate) computing: Vec<f64>,
    /// Bytes that this process had sent and fetched before.
    #[serde(skip)]
    pub(crate) wire_bytes: u64,
}

/// Settings may be infinite, for which JSON has no number.
mod as_toml {
    use serde::{Deserialize, Deserializer, Serializer, de::Error as _, ser::Error as _};

    use crate::Recipe;

    pub(super) fn serialize<S: Serializer>(recipe: &Recipe, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&toml::to_string(recipe).map_err(S::Error::custom)?)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Recipe, D::Error> {
        toml::from_str(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// The tensors of a checkpoint, by name.
pub(crate) type State = Vec<(String, Array)>;

const KEY: &str = "flamingo-run";

/// Writes a checkpoint and removes all but the latest `keep`.
pub(crate) fn save(
    folder: &Path,
    progress: &Progress,
    tensors: &[(String, Array)],
    keep: usize,
) -> Result<PathBuf, RunError> {
    fs::create_dir_all(folder).map_err(RunError::io("write", folder))?;
    let path = folder.join(format!("step-{:08}.safetensors", progress.step));
    let bytes: Vec<Vec<u8>> =
        tensors.iter().map(|(_, array)| array.data.iter().flat_map(|x| x.to_le_bytes()).collect()).collect();
    let wrong = |e: &dyn std::fmt::Display| RunError::checkpoint(&path, format!("cannot be written: {e}"));
    let views = tensors
        .iter()
        .zip(&bytes)
        .map(|((name, array), bytes)| Ok((name.as_str(), TensorView::new(Dtype::F32, array.shape.clone(), bytes)?)));
    let views = views.collect::<Result<Vec<_>, safetensors::SafeTensorError>>().map_err(|e| wrong(&e))?;
    let metadata = serde_json::to_string(progress).map_err(|e| wrong(&e))?;
    let content = safetensors::serialize(views, Some([(KEY.to_string(), metadata)].into())).map_err(|e| wrong(&e))?;
    // On the disk, name and all, before old ones go.
    flamingo_data::write_whole(&path, &content).map_err(RunError::io("write", &path))?;
    let all = list(folder)?;
    for old in &all[..all.len().saturating_sub(keep.max(1))] {
        fs::remove_file(old).map_err(RunError::io("remove", old))?;
    }
    Ok(path)
}

/// Checkpoints of a folder, oldest first. What a killed process left half-written is removed.
fn list(folder: &Path) -> Result<Vec<PathBuf>, RunError> {
    let Ok(entries) = fs::read_dir(folder) else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for entry in entries.flatten() {
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(".step-") {
            fs::remove_file(&path).ok();
        } else if name.starts_with("step-") && name.ends_with(".safetensors") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// The latest checkpoint of a folder, if there is one.
pub(crate) fn latest(folder: &Path) -> Result<Option<(Progress, State)>, RunError> {
    let Some(path) = list(folder)?.pop() else { return Ok(None) };
    let bytes = fs::read(&path).map_err(RunError::io("read", &path))?;
    let damaged = |e: &dyn std::fmt::Display| {
        RunError::checkpoint(
            &path,
            format!("is damaged, or of another version ({e}): move it away to go on from the one before"),
        )
    };
    let (_, metadata) = SafeTensors::read_metadata(&bytes).map_err(|e| damaged(&e))?;
    let progress = metadata.metadata().as_ref().and_then(|metadata| metadata.get(KEY));
    let progress = progress.ok_or_else(|| damaged(&"it says nothing about its run"))?;
    let progress: Progress = serde_json::from_str(progress).map_err(|e| damaged(&e))?;
    let tensors = SafeTensors::deserialize(&bytes).map_err(|e| damaged(&e))?;
    let array = |view: TensorView| {
        let data = view.data().chunks_exact(4).map(|x| f32::from_le_bytes([x[0], x[1], x[2], x[3]])).collect();
        Array { shape: view.shape().to_vec(), data }
    };
    let tensors = tensors.tensors().into_iter().map(|(name, view)| (name, array(view))).collect();
    Ok(Some((progress, tensors)))
}

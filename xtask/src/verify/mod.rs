//! `cargo xtask verify`: recorded outputs of upstream's PyTorch code against ours.
//!
//! A case is converted with the very code of `convert-weights`, run, and compared quantity by quantity.
//! Values are computed from the recording's *inputs* alone; expected values are read only to compare.

mod case;
mod clip;
mod compare;
mod dump;
mod eval;
mod labels;
mod preprocess;
mod recording;
mod train;

pub use compare::{Outcome, Row, Summary};
pub use dump::{Value, Values};

use std::path::Path;

use anyhow::{Context, bail};
use flamingo_engine::Device;

/// Runs everything recorded in a folder. `case.json` makes it a model, `clip.json` a vision tower,
/// `preprocess.json` a set of pictures, `train_labels.json` the text of training, `vqa.json` with `prompts.json` evaluation.
///
/// # Errors
/// If the folder is none of these, or the case cannot be converted or run.
pub fn compute(folder: &Path, device: Device) -> anyhow::Result<Values> {
    if !folder.is_dir() {
        bail!("{} is not a folder", folder.display());
    }
    if folder.join("case.json").is_file() {
        case::compute(folder, device)
    } else if folder.join("clip.json").is_file() {
        clip::compute(folder, device)
    } else if folder.join("preprocess.json").is_file() {
        preprocess::compute(folder)
    } else if folder.join("train_labels.json").is_file() {
        labels::compute(folder)
    } else if eval::is_here(folder) {
        eval::compute(folder, device)
    } else {
        bail!(
            "{} holds no recording that this version verifies: it has no case.json, clip.json, preprocess.json, \
             train_labels.json or vqa.json",
            folder.display()
        )
    }
}

/// Compares computed values with a folder's recording, one row a quantity.
///
/// # Errors
/// If the recording cannot be read.
pub fn check(folder: &Path, values: &Values, device: Device) -> anyhow::Result<Summary> {
    let summary = if folder.join("preprocess.json").is_file() {
        preprocess::check(folder, values)
    } else if folder.join("train_labels.json").is_file() {
        labels::check(folder, values)
    } else if eval::is_here(folder) {
        eval::check(folder, values)
    } else {
        compare::check(folder, values, device)
    };
    summary.with_context(|| format!("cannot compare with the recording in {}", folder.display()))
}

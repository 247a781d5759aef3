//! `cargo xtask convert-weights`.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use flamingo_config::ModelConfig;
use flamingo_data::Tokenizer;
use flamingo_weights::{Format, Inputs, Report};
use indicatif::{ProgressBar, ProgressStyle};

use crate::hub::Hub;

/// A config by the name of a folder in `models/`, or by the path of a `model.toml`.
///
/// # Errors
/// If there is none, or it is unusable.
pub fn config(name: &str) -> anyhow::Result<ModelConfig> {
    // A binary that was built elsewhere finds the zoo where it is run.
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models");
    let zoo = if built.is_dir() { built } else { PathBuf::from("models") };
    let by_name = zoo.join(name).join("model.toml");
    let path = if Path::new(name).is_file() { PathBuf::from(name) } else { by_name };
    if !path.is_file() {
        let mut names: Vec<String> = std::fs::read_dir(&zoo)
            .into_iter()
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
            .collect();
        names.sort();
        bail!("no config {name}: give the path of a model.toml, or one of {}", names.join(", "));
    }
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    ModelConfig::from_toml(&text).with_context(|| format!("cannot use {}", path.display()))
}

/// Converts with a progress bar on stderr.
///
/// # Errors
/// Whatever keeps the files from being converted.
pub fn run(inputs: &Inputs, config: &ModelConfig, format: Format, out: &Path, force: bool) -> anyhow::Result<Report> {
    // Before the hours of work, not after them.
    let tokenizer = tokenizer(&inputs.language_model, config)?;
    let files = [("tokenizer.json", tokenizer.to_json()?), ("special_tokens_map.json", tokenizer.special_tokens_map())];
    let bar = bytes_bar();
    let report = flamingo_weights::convert(inputs, config, format, out, force, &files, &mut |progress| {
        bar.set_length(progress.total);
        bar.set_position(progress.written);
        bar.set_message(progress.tensor.to_string());
    });
    bar.finish_and_clear();
    Ok(report?)
}

/// A language model's tokenizer with upstream's tokens, which must get the ids that the config says.
fn tokenizer(language_model: &Path, config: &ModelConfig) -> anyhow::Result<Tokenizer> {
    let mut tokenizer = Tokenizer::open(language_model)?;
    let special = tokenizer.add_flamingo_tokens()?;
    let t = &config.tokens;
    let (found, expected) = ([special.endofchunk, special.image, special.pad], [t.endofchunk, t.image, t.pad]);
    if found != expected {
        bail!(
            "the tokenizer in {} gives <|endofchunk|>, <image> and padding the ids {found:?}, the config says \
             {expected:?}: they belong to different models",
            language_model.display()
        );
    }
    Ok(tokenizer)
}

/// Fetches a released model's parts into `folder`, with a progress bar on stderr.
///
/// # Errors
/// If the config names no parts, or one does not arrive.
pub fn fetch(config: &ModelConfig, folder: &Path) -> anyhow::Result<Inputs> {
    let Some(source) = &config.source else {
        bail!("{} was never released: its config names no parts on the hub", config.name);
    };
    let endpoint = std::env::var("HF_ENDPOINT").unwrap_or_else(|_| "https://huggingface.co".into());
    let bar = bytes_bar();
    let inputs = Hub::new(&endpoint, std::env::var("HF_TOKEN").ok()).fetch(source, folder, &mut |file, have, size| {
        bar.set_length(size.unwrap_or(have));
        bar.set_position(have);
        bar.set_message(file.to_string());
    });
    bar.finish_and_clear();
    inputs
}

fn bytes_bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta} {msg}");
    ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

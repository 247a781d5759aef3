//! Recorded cases as inputs of the converter.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use flamingo_config::ModelConfig;
use flamingo_weights::{Dtype, Inputs, ModelFolder};
use serde_json::Value;

/// A recorded model: its files and what `case.json` says of it.
pub struct Case {
    folder: PathBuf,
    json: Value,
}

impl Case {
    /// Reads `case.json`.
    ///
    /// # Errors
    /// If it is absent or no JSON.
    pub fn open(folder: &Path) -> anyhow::Result<Self> {
        Ok(Self { folder: folder.to_path_buf(), json: read_json(&folder.join("case.json"))? })
    }

    /// All of `case.json`.
    pub fn json(&self) -> &Value {
        &self.json
    }

    /// The recorded generations.
    pub fn generations(&self) -> &[Value] {
        self.json["generation"].as_array().map_or(&[], Vec::as_slice)
    }

    /// The vision tower's folder.
    pub fn clip(&self) -> PathBuf {
        self.folder.join(self.json["clip"].as_str().unwrap_or("../_clip"))
    }

    /// What the model is made of: upstream's dimensions from `case.json`, the language model's and the tower's
    /// from their own configs.
    ///
    /// # Errors
    /// If one of the configs is absent or lacks a field.
    pub fn config(&self) -> anyhow::Result<ModelConfig> {
        let name = self.json["case"].as_str().unwrap_or("case");
        let language_model = read_json(&self.folder.join("lm/config.json"))?;
        let clip = read_json(&self.clip().join("clip.json"))?;
        flamingo_weights::config_from_parts(name, &clip["config"], &language_model, &self.json["flamingo"])
            .with_context(|| format!("cannot make a config of {}", self.folder.display()))
    }

    /// The case's files in their first layout.
    pub fn inputs(&self) -> Inputs {
        Inputs {
            clip: self.clip().join("open_clip_pytorch_model.pt"),
            language_model: self.folder.join("lm"),
            checkpoint: self.folder.join("checkpoint.pt"),
        }
    }

    /// Converts the case with the code of `convert-weights` and opens the result.
    ///
    /// # Errors
    /// Whatever keeps it from being converted.
    pub fn convert(&self, out: &Path) -> anyhow::Result<Arc<ModelFolder>> {
        flamingo_weights::convert(&self.inputs(), &self.config()?, Dtype::F32, out, false, &[], &mut |_| {})?;
        Ok(Arc::new(ModelFolder::open(out)?))
    }
}

/// Reads a JSON file.
///
/// # Errors
/// If it is absent or no JSON.
pub fn read_json(path: &Path) -> anyhow::Result<Value> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is not JSON", path.display()))
}

/// Converts the tower of a recorded CLIP folder inside a model whose other parts are small and random.
///
/// # Errors
/// If the tower cannot be converted.
pub fn convert_clip(folder: &Path, work: &Path) -> anyhow::Result<Arc<ModelFolder>> {
    let clip = read_json(&folder.join("clip.json"))?;
    let vision = flamingo_config::hf::vision(&clip["config"])
        .with_context(|| format!("cannot use {}", folder.join("clip.json").display()))?;
    let mut config = ModelConfig::from_toml(include_str!("small.toml")).context("small.toml is broken")?;
    config.vision = vision;
    let parts = work.join("parts");
    crate::random::write(&config, Dtype::F32, 0, &parts)?;
    let inputs = Inputs { clip: folder.join("open_clip_pytorch_model.pt"), ..crate::random::inputs(&parts) };
    let out = work.join("model");
    flamingo_weights::convert(&inputs, &config, Dtype::F32, &out, false, &[], &mut |_| {})?;
    Ok(Arc::new(ModelFolder::open(&out)?))
}

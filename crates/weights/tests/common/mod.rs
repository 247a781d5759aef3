//! A small model's files, as a test wants them.

use std::fs;
use std::path::{Path, PathBuf};

use flamingo_config::ModelConfig;
use flamingo_weights::{Dtype, Inputs, TensorSpec, WeightsError, convert, upstream_tensors};
use tempfile::TempDir;

/// A model small enough to make in a test.
pub fn config() -> ModelConfig {
    ModelConfig::from_toml(include_str!("../../../../xtask/src/small.toml")).expect("a config")
}

/// A safetensors file with the given tensors.
pub fn safetensors(path: &Path, specs: &[TensorSpec], value: impl Fn(&str, usize) -> f32) {
    let mut header = serde_json::Map::new();
    let mut data = Vec::new();
    for spec in specs {
        let start = data.len();
        for i in 0..spec.shape.iter().product() {
            data.extend(value(&spec.name, i).to_le_bytes());
        }
        let info = serde_json::json!({"dtype": "F32", "shape": spec.shape, "data_offsets": [start, data.len()]});
        header.insert(spec.name.clone(), info);
    }
    let header = serde_json::Value::Object(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend(data);
    fs::write(path, file).expect("a file");
}

/// Files of the small model, and a place for its folder.
pub struct Files {
    pub work: TempDir,
    pub inputs: Inputs,
}

impl Files {
    pub fn new(change: impl Fn(&mut Vec<TensorSpec>), value: impl Fn(&str, usize) -> f32) -> Self {
        let work = tempfile::tempdir().expect("a temporary folder");
        let mut tensors = upstream_tensors(&config());
        for specs in [&mut tensors.clip, &mut tensors.language_model, &mut tensors.checkpoint] {
            change(specs);
        }
        let inputs = Inputs {
            clip: work.path().join("clip.safetensors"),
            language_model: work.path().join("lm"),
            checkpoint: work.path().join("checkpoint.safetensors"),
        };
        fs::create_dir(&inputs.language_model).expect("a folder");
        let lm_config = flamingo_config::hf::language_model(&config().decoder);
        fs::write(inputs.language_model.join("config.json"), lm_config.to_string()).expect("a file");
        safetensors(&inputs.clip, &tensors.clip, &value);
        safetensors(&inputs.language_model.join("model.safetensors"), &tensors.language_model, &value);
        safetensors(&inputs.checkpoint, &tensors.checkpoint, &value);
        Self { work, inputs }
    }

    pub fn good() -> Self {
        Self::new(|_| {}, number)
    }

    pub fn out(&self) -> PathBuf {
        self.work.path().join("model")
    }

    pub fn convert(&self, dtype: Dtype) -> Result<(), WeightsError> {
        convert(&self.inputs, &config(), dtype, &self.out(), false, &[], &mut |_| {}).map(|_| ())
    }

    /// The error, after which nothing of the folder is there.
    pub fn fails(&self) -> WeightsError {
        let error = self.convert(Dtype::F16).expect_err("an error");
        self.nothing_written();
        error
    }

    pub fn nothing_written(&self) {
        let left = fs::read_dir(self.work.path()).expect("a folder").flatten().map(|e| e.file_name());
        let left: Vec<_> = left.filter(|name| name.to_string_lossy().contains("model")).collect();
        assert!(left.is_empty(), "{left:?} is left");
    }
}

/// A number that depends on a tensor's name and place.
pub fn number(name: &str, i: usize) -> f32 {
    ((name.len() * 31 + i * 7) % 100) as f32 / 100.0 - 0.5
}

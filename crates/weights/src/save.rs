//! Writing what was trained: a model folder, and upstream's checkpoint.

use std::io::Write;
use std::path::Path;

use flamingo_config::ModelConfig;
use safetensors::tensor::TensorView as View;
use serde_json::json;

use crate::convert::{config_json, preprocessor, pretty};
use crate::layout::{TensorSpec, layout};
use crate::upstream::{checkpoint_names, embedding_name};
use crate::write::{REPORT, Staging, TOKENIZER};
use crate::{Dtype, WeightsError};

/// A model folder to be written from numbers in memory.
pub struct NewFolder<'a> {
    /// What the model is made of.
    pub config: &'a ModelConfig,
    /// The format of its numbers.
    pub dtype: Dtype,
    /// A folder whose tokenizer the model uses.
    pub tokenizer: &'a Path,
    /// Its card.
    pub card: &'a str,
    /// Whether a folder that this project wrote may be replaced.
    pub replace: bool,
}

impl NewFolder<'_> {
    /// Writes the folder; it appears under its name when it is whole. `numbers` gives each tensor of [`layout()`].
    ///
    /// # Errors
    /// Any [`WeightsError`]: numbers that are missing, too many, not finite or too large for the format, an output
    /// folder that exists.
    pub fn write(
        &self,
        out: &Path,
        numbers: &mut dyn FnMut(&TensorSpec) -> Option<Vec<f32>>,
    ) -> Result<(), WeightsError> {
        let staging = Staging::begin(out, self.replace)?;
        let mut tensors = Vec::new();
        for spec in layout(self.config) {
            let numbers = taken(&spec, numbers)?;
            tensors.push((spec.name.clone(), spec.shape.clone(), encoded(&spec.name, &numbers, self.dtype)?));
        }
        write_safetensors(&staging.path("model.safetensors"), &tensors, self.dtype)?;
        for file in TOKENIZER {
            let source = self.tokenizer.join(file);
            if source.is_file() {
                staging.copy(&source, file)?;
            }
        }
        staging.write("model.toml", &self.config.to_toml())?;
        staging.write("config.json", &pretty(&config_json(self.config, self.dtype)))?;
        staging.write("preprocessor_config.json", &pretty(&preprocessor(self.config)))?;
        staging.write(REPORT, &pretty(&json!({"dtype": self.dtype.to_string(), "made_by": "training"})))?;
        staging.write("README.md", self.card)?;
        staging.finish()
    }
}

/// Writes resampler, cross-attention and the embedding table under the names of upstream's `checkpoint.pt`, in f32:
/// `torch.load` becomes `safetensors.torch.load_file`, and `load_state_dict(…, strict=False)` takes it.
///
/// # Errors
/// As [`NewFolder::write`].
pub fn save_checkpoint(
    config: &ModelConfig,
    path: &Path,
    numbers: &mut dyn FnMut(&TensorSpec) -> Option<Vec<f32>>,
) -> Result<(), WeightsError> {
    let mut tensors = Vec::new();
    for (spec, name) in checkpoint_names(config) {
        let numbers = taken(&spec, numbers)?;
        tensors.push((name, spec.shape.clone(), encoded(&spec.name, &numbers, Dtype::F32)?));
    }
    // Upstream keeps one table: the added rows follow the language model's.
    let parts: Vec<TensorSpec> =
        layout(config).into_iter().filter(|spec| spec.name.starts_with("decoder.embedding.")).collect();
    let (mut rows, mut table) = (0, Vec::new());
    for spec in &parts {
        rows += spec.shape[0];
        table.extend(encoded(&spec.name, &taken(spec, numbers)?, Dtype::F32)?);
    }
    let width = parts.first().map_or(0, |spec| spec.shape[1]);
    tensors.push((embedding_name(config), vec![rows, width], table));

    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let work = tempfile::tempdir_in(folder).map_err(WeightsError::io("write", folder))?;
    let partial = work.path().join("partial");
    write_safetensors(&partial, &tensors, Dtype::F32)?;
    std::fs::rename(&partial, path).map_err(WeightsError::io("write", path))
}

fn taken(
    spec: &TensorSpec,
    numbers: &mut dyn FnMut(&TensorSpec) -> Option<Vec<f32>>,
) -> Result<Vec<f32>, WeightsError> {
    let name = &spec.name;
    let numbers = numbers(spec).ok_or_else(|| WeightsError::Mismatch(format!("there are no numbers for `{name}`")))?;
    let count: usize = spec.shape.iter().product();
    if numbers.len() != count {
        return Err(WeightsError::Mismatch(format!("{} numbers for the {count} of `{name}`", numbers.len())));
    }
    match numbers.iter().find(|x| !x.is_finite()) {
        Some(&value) => Err(WeightsError::NotFinite { name: name.clone(), value }),
        None => Ok(numbers),
    }
}

fn encoded(name: &str, numbers: &[f32], dtype: Dtype) -> Result<Vec<u8>, WeightsError> {
    let mut bytes = Vec::with_capacity(numbers.len() * dtype.size());
    dtype.encode(numbers, &mut bytes).map_err(|value| WeightsError::Overflow { name: name.to_string(), value })?;
    Ok(bytes)
}

fn write_safetensors(path: &Path, tensors: &[(String, Vec<usize>, Vec<u8>)], dtype: Dtype) -> Result<(), WeightsError> {
    let dtype = match dtype {
        Dtype::F32 => safetensors::Dtype::F32,
        Dtype::F16 => safetensors::Dtype::F16,
        Dtype::Bf16 => safetensors::Dtype::BF16,
    };
    let wrong = |e: safetensors::SafeTensorError| WeightsError::format(path, format!("cannot be written: {e}"));
    let views = tensors.iter().map(|(name, shape, bytes)| Ok((name, View::new(dtype, shape.clone(), bytes)?)));
    let views = views.collect::<Result<Vec<_>, _>>().map_err(wrong)?;
    let metadata = [("format".to_string(), "pt".to_string())].into();
    let bytes = safetensors::serialize(views, Some(metadata)).map_err(wrong)?;
    let mut file = std::fs::File::create(path).map_err(WeightsError::io("write", path))?;
    file.write_all(&bytes).and_then(|()| file.sync_all()).map_err(WeightsError::io("write", path))
}

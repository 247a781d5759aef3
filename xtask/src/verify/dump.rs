//! Computed values by name, and their file.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use flamingo_engine::Array;
use safetensors::{Dtype, tensor::TensorView};

/// One computed quantity.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Numbers to compare within a tolerance.
    Floats(Array),
    /// Numbers to compare exactly: token ids, pixels.
    Integers {
        /// Dimensions.
        shape: Vec<usize>,
        /// Values.
        data: Vec<i32>,
    },
}

/// Computed quantities under the recording's names.
#[derive(Clone, Debug, Default)]
pub struct Values {
    /// Arrays by their names in the recording.
    pub arrays: BTreeMap<String, Value>,
    /// Parts of recordings that are JSON files, by the names of the files.
    pub files: serde_json::Map<String, serde_json::Value>,
}

impl Values {
    /// Adds an array of floats.
    pub fn floats(&mut self, name: impl Into<String>, array: Array) {
        self.arrays.insert(name.into(), Value::Floats(array));
    }

    /// Adds rows of integers, all of one length.
    pub fn rows(&mut self, name: impl Into<String>, rows: &[Vec<u32>]) {
        let width = rows.first().map_or(0, Vec::len);
        let data = rows.iter().flatten().map(|&id| id as i32).collect();
        self.arrays.insert(name.into(), Value::Integers { shape: vec![rows.len(), width], data });
    }

    /// Writes all values in the recording's form, completely or not at all: a safetensors file, the one JSON file, or an
    /// object of several JSON files by their names.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        if !self.files.is_empty() {
            let mut files = self.files.values();
            let text = match (files.next(), files.next()) {
                (Some(only), None) => serde_json::to_string_pretty(only)?,
                _ => serde_json::to_string_pretty(&self.files)?,
            } + "\n";
            return flamingo_data::write_whole(path, text.as_bytes())
                .with_context(|| format!("cannot write {}", path.display()));
        }
        let bytes: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = self
            .arrays
            .iter()
            .map(|(name, value)| match value {
                Value::Floats(array) => {
                    let bytes = array.data.iter().flat_map(|x| x.to_le_bytes()).collect();
                    (name.clone(), Dtype::F32, array.shape.clone(), bytes)
                }
                Value::Integers { shape, data } => {
                    let bytes = data.iter().flat_map(|x| x.to_le_bytes()).collect();
                    (name.clone(), Dtype::I32, shape.clone(), bytes)
                }
            })
            .collect();
        let mut views = Vec::with_capacity(bytes.len());
        for (name, dtype, shape, data) in &bytes {
            views.push((name.as_str(), TensorView::new(*dtype, shape.clone(), data)?));
        }
        let partial = path.with_extension(format!("partial-{}", std::process::id()));
        safetensors::serialize_to_file(views, None, &partial)
            .with_context(|| format!("cannot write {}", partial.display()))?;
        std::fs::rename(&partial, path).with_context(|| format!("cannot write {}", path.display()))
    }
}

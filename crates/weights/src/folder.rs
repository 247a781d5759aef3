//! Opening a model folder.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;

use flamingo_config::ModelConfig;
use memmap2::Mmap;
use safetensors::SafeTensors;

use crate::{Dtype, SourceDtype, WeightsError, layout};

/// A model folder: its config, and its tensors mapped from disk.
#[derive(Debug)]
pub struct ModelFolder {
    config: ModelConfig,
    files: Vec<Mmap>,
    tensors: BTreeMap<String, Place>,
}

/// Where a tensor lies.
#[derive(Debug)]
struct Place {
    file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    start: usize,
    end: usize,
}

/// A tensor of a folder.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    /// Its number format.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: &'a [usize],
    /// Its little-endian numbers.
    pub bytes: &'a [u8],
}

impl ModelFolder {
    /// Opens a folder. Its tensors must be exactly those of [`layout()`].
    ///
    /// # Errors
    /// [`WeightsError`] for a file that is missing, truncated or damaged, an unusable config, or a tensor that is
    /// missing, unknown or of the wrong shape.
    pub fn open(folder: &Path) -> Result<Self, WeightsError> {
        let path = folder.join("model.toml");
        let text = fs::read_to_string(&path).map_err(WeightsError::io("read", &path))?;
        let config = ModelConfig::from_toml(&text).map_err(|reason| WeightsError::Config { path, reason })?;
        let mut opened = Self { config, files: Vec::new(), tensors: BTreeMap::new() };
        let index = folder.join("model.safetensors.index.json");
        if index.is_file() {
            let text = fs::read_to_string(&index).map_err(WeightsError::io("read", &index))?;
            let json: serde_json::Value =
                serde_json::from_str(&text).map_err(|e| WeightsError::format(&index, format!("is not JSON: {e}")))?;
            let map = json["weight_map"].as_object();
            let map = map.ok_or_else(|| WeightsError::format(&index, "has no `weight_map`"))?;
            let files: std::collections::BTreeSet<&str> = map.values().filter_map(|file| file.as_str()).collect();
            for file in files {
                if Path::new(file).file_name() != Some(file.as_ref()) {
                    return Err(WeightsError::format(&index, format!("names a file `{file}` outside of its folder")));
                }
                opened.add(&folder.join(file))?;
            }
        } else {
            opened.add(&folder.join("model.safetensors"))?;
        }
        opened.check(folder)?;
        Ok(opened)
    }

    /// What the model is made of.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// A tensor by name.
    pub fn tensor(&self, name: &str) -> Option<TensorView<'_>> {
        let place = self.tensors.get(name)?;
        let bytes = &self.files[place.file][place.start..place.end];
        Some(TensorView { dtype: place.dtype, shape: &place.shape, bytes })
    }

    /// A tensor's numbers by name, in row-major order.
    pub fn tensor_f32(&self, name: &str) -> Option<Vec<f32>> {
        let view = self.tensor(name)?;
        let mut numbers = Vec::with_capacity(view.bytes.len() / view.dtype.size());
        SourceDtype::from(view.dtype).decode(view.bytes, &mut numbers);
        Some(numbers)
    }

    /// Gives a tensor's memory back to the system, which reads the file again if it is needed again. Without this a
    /// loaded model would count twice: once where it was copied to, once as pages of its file.
    pub fn release(&self, name: &str) {
        #[cfg(unix)]
        if let Some(place) = self.tensors.get(name) {
            let (map, length) = (&self.files[place.file], place.end - place.start);
            // SAFETY: the mapping is of a file and is never written to, so its pages come back as they were.
            let advised =
                unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, place.start, length) };
            // Only a hint.
            advised.ok();
        }
        #[cfg(not(unix))]
        let _ = name;
    }

    fn add(&mut self, path: &Path) -> Result<(), WeightsError> {
        let file = File::open(path).map_err(WeightsError::io("read", path))?;
        // SAFETY: a model folder is written once and renamed into place; a program that overwrote it while it is
        // mapped could change the numbers that are read, and truncating it would end this process.
        let map = unsafe { Mmap::map(&file) }.map_err(WeightsError::io("read", path))?;
        let damaged = |e: safetensors::SafeTensorError| {
            WeightsError::format(path, format!("is truncated or no safetensors file: {e}"))
        };
        // This also checks that the header's places lie in the file.
        let tensors = SafeTensors::deserialize(&map).map_err(damaged)?;
        let base = map.as_ptr() as usize;
        for (name, view) in tensors.tensors() {
            let dtype = match view.dtype() {
                safetensors::Dtype::F32 => Dtype::F32,
                safetensors::Dtype::F16 => Dtype::F16,
                safetensors::Dtype::BF16 => Dtype::Bf16,
                other => {
                    return Err(WeightsError::format(
                        path,
                        format!("tensor `{name}` has the unsupported type {other:?}"),
                    ));
                }
            };
            let start = view.data().as_ptr() as usize - base;
            let end = start + view.data().len();
            let place = Place { file: self.files.len(), dtype, shape: view.shape().to_vec(), start, end };
            self.tensors.insert(name, place);
        }
        self.files.push(map);
        Ok(())
    }

    fn check(&self, folder: &Path) -> Result<(), WeightsError> {
        let specs = layout(&self.config);
        for spec in &specs {
            let missing = || WeightsError::format(folder, format!("has no tensor `{}`", spec.name));
            let place = self.tensors.get(&spec.name).ok_or_else(missing)?;
            if place.shape != spec.shape {
                return Err(WeightsError::Shape {
                    name: spec.name.clone(),
                    target: spec.name.clone(),
                    found: place.shape.clone(),
                    expected: spec.shape.clone(),
                });
            }
        }
        if self.tensors.len() > specs.len() {
            let known: std::collections::BTreeSet<&str> = specs.iter().map(|s| s.name.as_str()).collect();
            let names = self.tensors.keys().filter(|name| !known.contains(name.as_str())).cloned().collect();
            return Err(WeightsError::Unexpected { path: folder.to_path_buf(), names });
        }
        Ok(())
    }
}

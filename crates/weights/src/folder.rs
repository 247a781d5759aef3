//! Opening a model folder.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;

use flamingo_config::{BLOCK, ModelConfig, Scheme};
use half::f16;
use memmap2::Mmap;
use safetensors::SafeTensors;

use crate::quantise::dequantise;
use crate::{Dtype, Precision, SourceDtype, WeightsError, layout};

/// A model folder: its config, and its tensors mapped from disk.
#[derive(Debug)]
pub struct ModelFolder {
    config: ModelConfig,
    files: Vec<Arc<Content>>,
    tensors: BTreeMap<String, Place>,
}

/// What a file holds.
#[derive(Debug)]
enum Content {
    /// Pages of the file itself.
    Mapped(Mmap),
    /// Bytes that came from elsewhere.
    Memory(Vec<u8>),
}

impl Deref for Content {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Memory(bytes) => bytes,
        }
    }
}

/// Where a tensor lies.
#[derive(Debug)]
struct Place {
    file: usize,
    stored: Stored,
    shape: Vec<usize>,
    start: usize,
    end: usize,
}

/// What a tensor of a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stored {
    Numbers(Dtype),
    /// Codes of a quantised matrix.
    Codes,
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

/// A quantised matrix of a folder.
#[derive(Clone, Copy, Debug)]
pub struct QuantisedView<'a> {
    /// How.
    pub scheme: Scheme,
    /// Rows and columns.
    pub shape: [usize; 2],
    /// Little-endian words, `[rows, columns / BLOCK · words]`.
    pub codes: &'a [u8],
    /// Little-endian f16, `[rows, columns / BLOCK]`.
    pub scales: &'a [u8],
}

/// Bytes of a folder that keep its file mapped.
#[derive(Clone, Debug)]
pub struct Mapped {
    file: Arc<Content>,
    start: usize,
    end: usize,
}

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        &self.file[self.start..self.end]
    }
}

impl ModelFolder {
    /// Opens a folder. Its tensors must be exactly those of [`layout()`], each as numbers, or its codes and scales.
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
            let files: BTreeSet<&str> = map.values().filter_map(|file| file.as_str()).collect();
            for file in files {
                if Path::new(file).file_name() != Some(file.as_ref()) {
                    return Err(WeightsError::format(&index, format!("names a file `{file}` outside of its folder")));
                }
                opened.map(&folder.join(file))?;
            }
        } else {
            opened.map(&folder.join("model.safetensors"))?;
        }
        opened.check(folder)?;
        Ok(opened)
    }

    /// What [`ModelFolder::open`] makes of a folder, from what its files hold: the text of `model.toml` and the bytes of
    /// `model.safetensors`.
    ///
    /// # Errors
    /// As [`ModelFolder::open`].
    pub fn from_memory(config: &str, tensors: Vec<u8>) -> Result<Self, WeightsError> {
        let config = ModelConfig::from_toml(config)
            .map_err(|reason| WeightsError::Config { path: "model.toml".into(), reason })?;
        let mut opened = Self { config, files: Vec::new(), tensors: BTreeMap::new() };
        let path = Path::new("model.safetensors");
        opened.add(path, Content::Memory(tensors))?;
        opened.check(path)?;
        Ok(opened)
    }

    /// What the model is made of.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// A tensor of numbers by name.
    pub fn tensor(&self, name: &str) -> Option<TensorView<'_>> {
        let place = self.tensors.get(name)?;
        match place.stored {
            Stored::Numbers(dtype) => Some(TensorView { dtype, shape: &place.shape, bytes: self.bytes(place) }),
            Stored::Codes => None,
        }
    }

    /// A quantised matrix by name.
    pub fn quantised(&self, name: &str) -> Option<QuantisedView<'_>> {
        let (codes, scales) = (self.tensors.get(&codes_of(name))?, self.tensors.get(&scales_of(name))?);
        let scheme = scheme_of(codes, scales)?;
        let shape = [scales.shape[0], scales.shape[1] * BLOCK];
        Some(QuantisedView { scheme, shape, codes: self.bytes(codes), scales: self.bytes(scales) })
    }

    /// Where a tensor lies, `weight.codes` and `weight.scales` of a quantised one; for who keeps it without a copy.
    pub fn mapped(&self, name: &str) -> Option<Mapped> {
        let place = self.tensors.get(name)?;
        Some(Mapped { file: self.files[place.file].clone(), start: place.start, end: place.end })
    }

    /// What the folder's tensors are stored as: the coarsest scheme where some are quantised, f32 where formats differ.
    pub fn precision(&self) -> Precision {
        let specs = layout(&self.config);
        let schemes = specs.iter().filter_map(|spec| Some(self.quantised(&spec.name)?.scheme));
        if let Some(scheme) = schemes.min_by_key(|scheme| scheme.words()) {
            return Precision::Quantised(scheme);
        }
        Precision::Plain(self.dtype())
    }

    /// The format of the folder's numbers beside quantised matrices; f32 where there are several.
    pub fn dtype(&self) -> Dtype {
        let specs = layout(&self.config);
        let mut formats = specs.iter().filter_map(|spec| Some(self.tensor(&spec.name)?.dtype));
        let first = formats.next().unwrap_or_default();
        if formats.all(|format| format == first) { first } else { Dtype::F32 }
    }

    /// A tensor's numbers by name, in row-major order, whatever they are stored as.
    pub fn tensor_f32(&self, name: &str) -> Option<Vec<f32>> {
        if let Some(view) = self.quantised(name) {
            let scales = view.scales.chunks_exact(2).map(|bytes| f16::from_le_bytes([bytes[0], bytes[1]]));
            return Some(dequantise(view.scheme, view.codes, scales));
        }
        let view = self.tensor(name)?;
        let mut numbers = Vec::with_capacity(view.bytes.len() / view.dtype.size());
        SourceDtype::from(view.dtype).decode(view.bytes, &mut numbers);
        Some(numbers)
    }

    /// Gives a tensor's memory back to the system, which reads the file again if it is needed again. Without this a
    /// loaded model would count twice: once where it was copied to, once as pages of its file.
    pub fn release(&self, name: &str) {
        #[cfg(unix)]
        for place in [name, &codes_of(name), &scales_of(name)].iter().filter_map(|name| self.tensors.get(*name)) {
            let (Content::Mapped(map), length) = (&*self.files[place.file], place.end - place.start) else { continue };
            // SAFETY: the mapping is of a file and is never written to, so its pages come back as they were.
            let advised =
                unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, place.start, length) };
            // Only a hint.
            advised.ok();
        }
        #[cfg(not(unix))]
        let _ = name;
    }

    fn bytes(&self, place: &Place) -> &[u8] {
        &self.files[place.file][place.start..place.end]
    }

    fn map(&mut self, path: &Path) -> Result<(), WeightsError> {
        let file = File::open(path).map_err(WeightsError::io("read", path))?;
        // SAFETY: a model folder is written once and renamed into place; a program that overwrote it while it is
        // mapped could change the numbers that are read, and truncating it would end this process.
        let map = unsafe { Mmap::map(&file) }.map_err(WeightsError::io("read", path))?;
        self.add(path, Content::Mapped(map))
    }

    /// Adds the tensors of a file; `path` is for messages.
    fn add(&mut self, path: &Path, content: Content) -> Result<(), WeightsError> {
        let damaged = |e: safetensors::SafeTensorError| {
            WeightsError::format(path, format!("is truncated or no safetensors file: {e}"))
        };
        // This also checks that the header's places lie in the file.
        let tensors = SafeTensors::deserialize(&content).map_err(damaged)?;
        let base = content.as_ptr() as usize;
        for (name, view) in tensors.tensors() {
            let stored = match view.dtype() {
                safetensors::Dtype::F32 => Stored::Numbers(Dtype::F32),
                safetensors::Dtype::F16 => Stored::Numbers(Dtype::F16),
                safetensors::Dtype::BF16 => Stored::Numbers(Dtype::Bf16),
                safetensors::Dtype::I32 if name.ends_with(CODES) => Stored::Codes,
                other => {
                    return Err(WeightsError::format(
                        path,
                        format!("tensor `{name}` has the unsupported type {other:?}"),
                    ));
                }
            };
            let start = view.data().as_ptr() as usize - base;
            let end = start + view.data().len();
            let place = Place { file: self.files.len(), stored, shape: view.shape().to_vec(), start, end };
            self.tensors.insert(name, place);
        }
        self.files.push(Arc::new(content));
        Ok(())
    }

    fn check(&self, folder: &Path) -> Result<(), WeightsError> {
        let specs = layout(&self.config);
        let mut known = BTreeSet::new();
        for spec in &specs {
            let [codes, scales] = [codes_of(&spec.name), scales_of(&spec.name)];
            let found = match (self.tensors.get(&codes), self.tensors.get(&scales)) {
                (Some(codes), Some(scales)) => {
                    let scheme = scheme_of(codes, scales).ok_or_else(|| {
                        WeightsError::format(folder, format!("codes and scales of `{}` do not fit", spec.name))
                    })?;
                    if spec.quantised_by(scheme).is_none() {
                        let what = format!("holds `{}` quantised, which stays numbers in every model", spec.name);
                        return Err(WeightsError::format(folder, what));
                    }
                    vec![scales.shape[0], scales.shape[1].saturating_mul(BLOCK)]
                }
                _ => match self.tensors.get(&spec.name) {
                    Some(Place { stored: Stored::Numbers(_), shape, .. }) => shape.clone(),
                    _ => return Err(WeightsError::format(folder, format!("has no tensor `{}`", spec.name))),
                },
            };
            if found != spec.shape {
                return Err(WeightsError::Shape {
                    name: spec.name.clone(),
                    target: spec.name.clone(),
                    found,
                    expected: spec.shape.clone(),
                });
            }
            if self.tensors.contains_key(&spec.name) {
                known.insert(spec.name.clone());
            } else {
                known.extend([codes, scales]);
            }
        }
        let unknown: Vec<String> = self.tensors.keys().filter(|name| !known.contains(*name)).cloned().collect();
        if !unknown.is_empty() {
            return Err(WeightsError::Unexpected { path: folder.to_path_buf(), names: unknown });
        }
        Ok(())
    }
}

/// Ends the name of the codes of a matrix.
const CODES: &str = ".codes";

fn codes_of(name: &str) -> String {
    format!("{name}{CODES}")
}

fn scales_of(name: &str) -> String {
    format!("{name}.scales")
}

/// The scheme that codes and scales are of, by their shapes.
fn scheme_of(codes: &Place, scales: &Place) -> Option<Scheme> {
    let (&[rows, words], &[scale_rows, blocks]) = (&codes.shape[..], &scales.shape[..]) else { return None };
    let right = rows == scale_rows && (codes.stored, scales.stored) == (Stored::Codes, Stored::Numbers(Dtype::F16));
    let schemes = [Scheme::Q8, Scheme::Q4].into_iter().filter(|_| right);
    schemes.into_iter().find(|scheme| Some(words) == blocks.checked_mul(scheme.words()))
}

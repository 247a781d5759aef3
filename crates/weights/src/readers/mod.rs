//! Checkpoints as named tensors, whatever their file format.
//!
//! A file is recognised by its content, not its name. Nothing is loaded when a file is opened: a
//! [`SourceTensor`] knows where its numbers lie and reads ranges of them.

mod allowed;
mod legacy;
mod pickle;
mod safetensors;
mod torch;
mod walk;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::{SourceDtype, WeightsError};

/// Most elements of one tensor: 64 times those of a 9B model.
const MAX_ELEMENTS: u64 = 1 << 40;

/// Elements of a view that are read together although others lie between them.
const GAP: usize = 1024;

/// Elements of a view that are gathered at a time: 4 MiB of f32.
const GATHER: usize = 1 << 20;

/// A named tensor in a file.
#[derive(Clone, Debug)]
pub struct SourceTensor {
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its number format.
    pub dtype: SourceDtype,
    file: Arc<SourceFile>,
    /// Where its storage begins in the file, in bytes.
    storage: u64,
    /// Its first element within the storage, in elements.
    first: usize,
    /// Elements from one index to the next, for each dimension.
    strides: Vec<usize>,
}

/// Tensors by name.
pub type Tensors = BTreeMap<String, SourceTensor>;

/// An open file.
#[derive(Debug)]
struct SourceFile {
    path: PathBuf,
    file: File,
}

impl SourceFile {
    fn open(path: &Path) -> Result<Arc<Self>, WeightsError> {
        let file = File::open(path).map_err(WeightsError::io("read", path))?;
        Ok(Arc::new(Self { path: path.to_path_buf(), file }))
    }

    /// Fills `bytes` from a place in the file.
    fn read_at(&self, bytes: &mut [u8], at: u64) -> Result<(), WeightsError> {
        #[cfg(unix)]
        let read = std::os::unix::fs::FileExt::read_exact_at(&self.file, bytes, at);
        #[cfg(not(unix))]
        let read = {
            use std::io::{Read, Seek, SeekFrom};
            self.file.try_clone().and_then(|mut file| {
                file.seek(SeekFrom::Start(at))?;
                file.read_exact(bytes)
            })
        };
        read.map_err(WeightsError::io("read", &self.path))
    }

    fn len(&self) -> Result<u64, WeightsError> {
        Ok(self.file.metadata().map_err(WeightsError::io("read", &self.path))?.len())
    }
}

impl SourceTensor {
    /// A view of `storage_len` bytes of the file. Fails if it reaches beyond them.
    fn new(
        file: &Arc<SourceFile>,
        dtype: SourceDtype,
        shape: Vec<usize>,
        storage: u64,
        first: usize,
        strides: Vec<usize>,
        storage_len: u64,
    ) -> Result<Self, String> {
        if shape.len() != strides.len() {
            return Err(format!("shape {shape:?} with strides {strides:?}"));
        }
        // Strides of zero make any shape fit, so elements are counted on their own.
        let elements = shape.iter().try_fold(1usize, |product, &n| product.checked_mul(n.max(1)));
        if elements.is_none_or(|elements| elements as u64 > MAX_ELEMENTS) {
            return Err(format!("shape {shape:?} has more elements than any tensor"));
        }
        // The last element must lie in the storage; every step of the sum is checked against overflow.
        let empty = shape.contains(&0);
        let last = shape
            .iter()
            .zip(&strides)
            .try_fold(first, |last, (&n, &stride)| last.checked_add(n.saturating_sub(1).checked_mul(stride)?));
        let bytes = last.and_then(|last| last.checked_add(1)?.checked_mul(dtype.size()));
        match bytes {
            Some(bytes) if empty || bytes as u64 <= storage_len => {
                Ok(Self { shape, dtype, file: file.clone(), storage, first, strides })
            }
            _ => Err(format!("shape {shape:?} reaches beyond its {storage_len} bytes of storage")),
        }
    }

    /// Elements of one row (an index of the first dimension); 1 for a scalar.
    pub fn row_len(&self) -> usize {
        self.shape.iter().skip(1).product()
    }

    /// Whether rows lie one after the other in the file.
    fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        self.shape.iter().zip(&self.strides).rev().all(|(&n, &stride)| {
            let fits = n == 1 || stride == expected;
            expected *= n;
            fits
        })
    }

    /// Reads `count` elements from element `start` (in row-major order) as f32, appending to `out`.
    ///
    /// # Errors
    /// If the file cannot be read or ends early.
    pub fn read(&self, start: usize, count: usize, out: &mut Vec<f32>) -> Result<(), WeightsError> {
        if self.is_contiguous() {
            return self.read_run(self.first + start, count, out);
        }
        for first in (start..start + count).step_by(GATHER) {
            self.gather(first, GATHER.min(start + count - first), out)?;
        }
        Ok(())
    }

    /// Reads elements of a view, near ones together and in the order of the file.
    fn gather(&self, start: usize, count: usize, out: &mut Vec<f32>) -> Result<(), WeightsError> {
        let place = |i: usize| {
            let dims = self.shape.iter().zip(&self.strides).rev();
            dims.fold((i, self.first), |(rest, at), (&n, &stride)| (rest / n, at + rest % n * stride)).1
        };
        let mut places: Vec<(usize, usize)> = (0..count).map(|i| (place(start + i), i)).collect();
        places.sort_unstable();
        let base = out.len();
        out.resize(base + count, 0.0);
        let mut run = Vec::new();
        let mut rest = &places[..];
        while let Some(&(from, _)) = rest.first() {
            let near = |pair: &[(usize, usize)]| pair[1].0 - pair[0].0 <= GAP && pair[1].0 - from < GATHER;
            let len = 1 + rest.windows(2).take_while(|pair| near(pair)).count();
            run.clear();
            self.read_run(from, rest[len - 1].0 - from + 1, &mut run)?;
            for &(at, i) in &rest[..len] {
                out[base + i] = run[at - from];
            }
            rest = &rest[len..];
        }
        Ok(())
    }

    fn read_run(&self, first: usize, count: usize, out: &mut Vec<f32>) -> Result<(), WeightsError> {
        let size = self.dtype.size();
        let mut bytes = vec![0; count * size];
        let at = self.storage + (first * size) as u64;
        self.file.read_at(&mut bytes, at)?;
        self.dtype.decode(&bytes, out);
        Ok(())
    }
}

/// Opens a checkpoint: a file, or a folder with `model.safetensors`, `pytorch_model.bin` or an index of
/// shards.
///
/// # Errors
/// [`WeightsError::Format`] for anything that is no checkpoint, [`WeightsError::Refused`] for a pickle that
/// would call something.
pub fn open(path: &Path) -> Result<Tensors, WeightsError> {
    if path.is_dir() {
        return open_folder(path);
    }
    let file = SourceFile::open(path)?;
    let mut magic = [0; 10];
    let read = (&file.file).read(&mut magic).map_err(WeightsError::io("read", path))?;
    let magic = &magic[..read];
    // First, because the length of a safetensors header may look like the first bytes of a pickle. No pickle or
    // archive looks like a header: its eight bytes make too large a number.
    if safetensors::is_header(magic) {
        safetensors::open(&file)
    } else if magic.starts_with(b"PK\x03\x04") {
        torch::open(&file)
    } else if magic.starts_with(&[0x80]) && magic.get(1).is_some_and(|&v| (2..=5).contains(&v)) {
        legacy::open(&file)
    } else if magic.starts_with(b"version https://git-lfs") || magic.starts_with(b"version ht") {
        Err(WeightsError::format(path, "is a git-lfs pointer, not the file itself: run `git lfs pull`"))
    } else {
        Err(WeightsError::format(path, "is no checkpoint: neither safetensors nor a PyTorch file (or it is damaged)"))
    }
}

fn open_folder(folder: &Path) -> Result<Tensors, WeightsError> {
    for single in ["model.safetensors", "pytorch_model.bin"] {
        let index = folder.join(format!("{single}.index.json"));
        if folder.join(single).is_file() {
            return open(&folder.join(single));
        }
        if index.is_file() {
            return open_shards(folder, &index);
        }
    }
    Err(WeightsError::format(folder, "has no model.safetensors, pytorch_model.bin or index of shards"))
}

/// Gathers the shards that an index names, and holds them to it.
fn open_shards(folder: &Path, index: &Path) -> Result<Tensors, WeightsError> {
    let text = std::fs::read_to_string(index).map_err(WeightsError::io("read", index))?;
    let json: serde_json::Value =
        serde_json::from_str(&text).map_err(|e| WeightsError::format(index, format!("is not JSON: {e}")))?;
    let map = json["weight_map"].as_object().ok_or_else(|| WeightsError::format(index, "has no `weight_map`"))?;
    let mut shards: BTreeMap<&str, Tensors> = BTreeMap::new();
    let mut all = Tensors::new();
    for (name, shard) in map {
        let file = shard.as_str().ok_or_else(|| WeightsError::format(index, format!("has no file for `{name}`")))?;
        if Path::new(file).file_name() != Some(file.as_ref()) {
            return Err(WeightsError::format(index, format!("names a file `{file}` outside of its folder")));
        }
        if !shards.contains_key(file) {
            shards.insert(file, open(&folder.join(file))?);
        }
        let tensor = shards[file].get(name).ok_or_else(|| {
            WeightsError::format(&folder.join(file), format!("lacks tensor `{name}`, which the index places there"))
        })?;
        all.insert(name.clone(), tensor.clone());
    }
    for (file, tensors) in &shards {
        let names: Vec<String> = tensors.keys().filter(|name| !map.contains_key(*name)).cloned().collect();
        if !names.is_empty() {
            return Err(WeightsError::Unexpected { path: folder.join(file), names });
        }
    }
    Ok(all)
}

//! PyTorch's zip archives: what `torch.save` writes since version 1.6, and TorchScript.

use std::collections::HashMap;
use std::io::Read;
use std::sync::Arc;

use zip::{CompressionMethod, ZipArchive};

use super::pickle::{self, PickleError};
use super::{SourceFile, SourceTensor, Tensors, walk};
use crate::WeightsError;

/// Largest pickle that is read. It holds names and shapes, not weights: real ones have a few megabytes.
const MAX_PICKLE: u64 = 1 << 27;

pub(super) fn open(file: &Arc<SourceFile>) -> Result<Tensors, WeightsError> {
    let path = &file.path;
    let wrong = |what: String| WeightsError::format(path, what);
    let zip = |e: zip::result::ZipError| wrong(format!("is truncated or damaged: {e}"));
    let reader = file.file.try_clone().map_err(WeightsError::io("read", path))?;
    let mut archive = ZipArchive::new(std::io::BufReader::new(reader)).map_err(zip)?;

    // Every archive has one folder at its top, named after whatever the file was called.
    let pickle = archive
        .file_names()
        .filter(|name| name.split('/').count() <= 2 && name.rsplit('/').next() == Some("data.pkl"))
        .min()
        .map(str::to_string)
        .ok_or_else(|| wrong("is a zip archive without data.pkl: no PyTorch file".into()))?;
    let top = pickle.strip_suffix("data.pkl").unwrap_or_default().to_string();
    let mut order = Vec::new();
    if let Ok(entry) = archive.by_name(&format!("{top}byteorder")) {
        entry.take(16).read_to_end(&mut order).map_err(WeightsError::io("read", path))?;
    }
    if order.starts_with(b"big") {
        return Err(wrong("was written on a big-endian machine, which is not supported".into()));
    }

    let mut storages = HashMap::new();
    for i in 0..archive.len() {
        let entry = archive.by_index_raw(i).map_err(zip)?;
        if let Some(key) = entry.name().strip_prefix(&top).and_then(|name| name.strip_prefix("data/")) {
            if entry.compression() != CompressionMethod::Stored {
                return Err(wrong(format!("storage {key} is compressed, which PyTorch never does")));
            }
            let Some(start) = entry.data_start() else { return Err(wrong(format!("storage {key} has no place"))) };
            storages.insert(key.to_string(), (start, entry.size()));
        }
    }
    let entry = archive.by_name(&pickle).map_err(zip)?;
    if entry.size() > MAX_PICKLE {
        return Err(wrong(format!("its pickle has {} bytes, more than any checkpoint needs", entry.size())));
    }
    let mut bytes = Vec::with_capacity(entry.size() as usize);
    entry.take(MAX_PICKLE).read_to_end(&mut bytes).map_err(|e| wrong(format!("is truncated or damaged: {e}")))?;

    let len = file.len()?;
    let parsed = pickle::parse(&bytes).map_err(|e| error(file, e))?;
    let mut tensors = Tensors::new();
    for (name, tensor) in walk::tensors(&parsed).map_err(|e| error(file, e))? {
        let storage = &tensor.storage;
        let Some(&(start, size)) = storages.get(&storage.key) else {
            return Err(wrong(format!("is truncated: the storage of tensor `{name}` is not in it")));
        };
        if start.saturating_add(size) > len {
            return Err(wrong(format!("is truncated: the storage of tensor `{name}` ends beyond the file")));
        }
        let view = SourceTensor::new(
            file,
            storage.dtype,
            tensor.shape.clone(),
            start,
            tensor.first,
            tensor.strides.clone(),
            size,
        );
        tensors.insert(name.clone(), view.map_err(|e| wrong(format!("tensor `{name}`: {e}")))?);
    }
    if tensors.is_empty() {
        return Err(wrong("holds no tensor".into()));
    }
    Ok(tensors)
}

/// A pickle's error as one of this crate.
pub(super) fn error(file: &SourceFile, error: PickleError) -> WeightsError {
    match error {
        PickleError::Damaged(what) => WeightsError::format(&file.path, format!("is truncated or damaged: {what}")),
        PickleError::Refused { opcode, callable } => {
            WeightsError::Refused { path: file.path.clone(), opcode, callable }
        }
    }
}

//! What `torch.save` wrote before version 1.6: pickles one after the other, then raw storages.
//!
//! ```text
//! magic number · protocol · system info · the object · list of storage keys · for each key: u64 count, bytes
//! ```

use std::collections::HashMap;
use std::sync::Arc;

use super::pickle::{self, Node, Pickle};
use super::torch::error;
use super::{SourceFile, SourceTensor, Tensors, walk};
use crate::WeightsError;

/// Most bytes that the five pickles may take; the storages behind them are not read.
const MAX_PICKLES: u64 = 1 << 27;

pub(super) fn open(file: &Arc<SourceFile>) -> Result<Tensors, WeightsError> {
    let path = &file.path;
    let wrong = |what: &str| WeightsError::format(path, what);
    let len = file.len()?;
    let mut bytes = vec![0; len.min(MAX_PICKLES) as usize];
    file.read_at(&mut bytes, 0)?;

    let mut at = 0;
    let mut next = || -> Result<Pickle, WeightsError> {
        let pickle = pickle::parse(&bytes[at..]).map_err(|e| error(file, e))?;
        at += pickle.len;
        Ok(pickle)
    };
    let magic = next()?;
    // 0x1950a86a20f9469cfc6c has ten bytes: it is no 64-bit number. A bare pickled dictionary has no magic.
    if !matches!(magic.nodes[magic.root as usize], Node::Other) {
        return Err(wrong("is a pickle, and not one that torch.save wrote"));
    }
    next()?;
    next()?;
    let object = next()?;
    let keys = next()?;
    let Node::List(keys_list) = &keys.nodes[keys.root as usize] else {
        return Err(wrong("is truncated or damaged: it lists no storages"));
    };

    // What the storages hold is said where tensors use them.
    let mut sizes = HashMap::new();
    for node in &object.nodes {
        if let Node::Storage(storage) = node {
            sizes.insert(storage.key.as_str(), storage.dtype.size() as u64);
        }
    }
    let mut storages = HashMap::new();
    let mut place = at as u64;
    for &key in keys_list {
        let Node::Str(key) = &keys.nodes[key as usize] else {
            return Err(wrong("is truncated or damaged: a storage has no name"));
        };
        let mut count = [0; 8];
        file.read_at(&mut count, place).map_err(|_| wrong("is truncated: storages are missing"))?;
        let element = sizes.get(key.as_str()).copied().ok_or_else(|| wrong("holds a storage that nothing uses"))?;
        let size = u64::from_le_bytes(count).saturating_mul(element);
        let end = place.saturating_add(8).saturating_add(size);
        if end > len {
            return Err(wrong("is truncated: storages are missing"));
        }
        storages.insert(key.as_str(), (place + 8, size));
        place = end;
    }

    let mut tensors = Tensors::new();
    for (name, tensor) in walk::tensors(&object).map_err(|e| error(file, e))? {
        let storage = &tensor.storage;
        let Some(&(start, size)) = storages.get(storage.key.as_str()) else {
            return Err(wrong("is truncated or damaged: a tensor has no storage"));
        };
        let (shape, strides) = (tensor.shape.clone(), tensor.strides.clone());
        let view = SourceTensor::new(file, storage.dtype, shape, start, tensor.first, strides, size);
        tensors.insert(name.clone(), view.map_err(|e| wrong(&format!("tensor `{name}`: {e}")))?);
    }
    if tensors.is_empty() {
        return Err(wrong("holds no tensor"));
    }
    Ok(tensors)
}

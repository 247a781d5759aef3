//! Safetensors files.

use std::sync::Arc;

use safetensors::{Dtype, SafeTensors};

use super::{SourceFile, SourceTensor, Tensors};
use crate::{SourceDtype, WeightsError};

/// Largest header that is read; the format's own limit.
const MAX_HEADER: u64 = 100_000_000;

/// Whether a file that begins so can be one.
pub(super) fn is_header(magic: &[u8]) -> bool {
    magic.first_chunk().is_some_and(|&size| u64::from_le_bytes(size) <= MAX_HEADER) && magic.get(8) == Some(&b'{')
}

pub(super) fn open(file: &Arc<SourceFile>) -> Result<Tensors, WeightsError> {
    let path = &file.path;
    let wrong = |what: String| WeightsError::format(path, what);
    let len = file.len()?;
    let mut size = [0; 8];
    file.read_at(&mut size, 0)?;
    let header = u64::from_le_bytes(size);
    if header > MAX_HEADER || header.saturating_add(8) > len {
        return Err(wrong(format!("is truncated or damaged: its header should have {header} bytes")));
    }
    // SAFETY: only the header is read through this map, and it is dropped with this function; a program that
    // changed the file meanwhile could at worst make the header unreadable.
    let map = unsafe { memmap2::Mmap::map(&file.file) }.map_err(WeightsError::io("read", path))?;
    let (_, metadata) = SafeTensors::read_metadata(&map).map_err(|e| wrong(format!("is truncated or damaged: {e}")))?;
    let data = header + 8;
    let mut tensors = Tensors::new();
    for (name, info) in metadata.tensors() {
        let dtype = match info.dtype {
            Dtype::F64 => SourceDtype::F64,
            Dtype::F32 => SourceDtype::F32,
            Dtype::F16 => SourceDtype::F16,
            Dtype::BF16 => SourceDtype::Bf16,
            Dtype::I64 => SourceDtype::I64,
            Dtype::I32 => SourceDtype::I32,
            Dtype::I16 => SourceDtype::I16,
            Dtype::I8 => SourceDtype::I8,
            Dtype::U8 => SourceDtype::U8,
            Dtype::BOOL => SourceDtype::Bool,
            other => return Err(wrong(format!("tensor `{name}` has the unsupported type {other:?}"))),
        };
        let (start, end) = info.data_offsets;
        if data + end as u64 > len {
            return Err(wrong(format!("is truncated: tensor `{name}` ends beyond the file's {len} bytes")));
        }
        let tensor = SourceTensor::new(
            file,
            dtype,
            info.shape.clone(),
            data + start as u64,
            0,
            contiguous(&info.shape),
            (end - start) as u64,
        );
        let tensor = tensor.map_err(|e| wrong(format!("tensor `{name}`: {e}")))?;
        tensors.insert(name, tensor);
    }
    Ok(tensors)
}

/// Strides of a row-major tensor.
fn contiguous(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1usize; shape.len()];
    for i in (1..shape.len()).rev() {
        strides[i - 1] = strides[i].saturating_mul(shape[i]);
    }
    strides
}

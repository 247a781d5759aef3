//! Reading a recording: a safetensors file of f32, f16, i32 and u8 tensors.

use std::path::Path;

use anyhow::{Context, bail};
use half::f16;
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};

/// One recorded tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Recorded {
    /// Its dimensions.
    pub shape: Vec<usize>,
    /// Its values; integers are exact in f64.
    pub data: Vec<f64>,
}

impl Recorded {
    /// The values as f32.
    pub fn f32(&self) -> Vec<f32> {
        self.data.iter().map(|&x| x as f32).collect()
    }

    /// The values as token ids.
    pub fn ids(&self) -> Vec<u32> {
        self.data.iter().map(|&x| x as u32).collect()
    }
}

/// A recording on disk.
pub struct Recording {
    map: Mmap,
}

impl Recording {
    /// Opens `golden.safetensors` in a folder.
    ///
    /// # Errors
    /// If the file is absent or no safetensors file.
    pub fn open(folder: &Path) -> anyhow::Result<Self> {
        let path = folder.join("golden.safetensors");
        let file = std::fs::File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        // SAFETY: a recording is not modified while it is verified; a concurrent writer could change values that
        // are read here, nothing more.
        let map = unsafe { Mmap::map(&file) }.with_context(|| format!("cannot map {}", path.display()))?;
        SafeTensors::deserialize(&map).with_context(|| format!("{} is not a safetensors file", path.display()))?;
        Ok(Self { map })
    }

    fn tensors(&self) -> anyhow::Result<SafeTensors<'_>> {
        Ok(SafeTensors::deserialize(&self.map)?)
    }

    /// Names of all tensors, sorted.
    ///
    /// # Errors
    /// If the header became unreadable.
    pub fn names(&self) -> anyhow::Result<Vec<String>> {
        let mut names: Vec<String> = self.tensors()?.names().into_iter().map(str::to_string).collect();
        names.sort();
        Ok(names)
    }

    /// A tensor by name, or `None`.
    ///
    /// # Errors
    /// If its type is not one that recordings use.
    pub fn get(&self, name: &str) -> anyhow::Result<Option<Recorded>> {
        let tensors = self.tensors()?;
        let Ok(view) = tensors.tensor(name) else { return Ok(None) };
        let bytes = view.data();
        let data = match view.dtype() {
            Dtype::F32 => numbers(bytes, |b: [u8; 4]| f64::from(f32::from_le_bytes(b))),
            Dtype::F16 => numbers(bytes, |b: [u8; 2]| f64::from(f16::from_le_bytes(b))),
            Dtype::I32 => numbers(bytes, |b: [u8; 4]| f64::from(i32::from_le_bytes(b))),
            Dtype::I64 => numbers(bytes, |b: [u8; 8]| i64::from_le_bytes(b) as f64),
            Dtype::U8 => bytes.iter().map(|&b| f64::from(b)).collect(),
            other => bail!("recorded tensor `{name}` has type {other:?}"),
        };
        Ok(Some(Recorded { shape: view.shape().to_vec(), data }))
    }

    /// A tensor that must be there.
    ///
    /// # Errors
    /// If it is not.
    pub fn need(&self, name: &str) -> anyhow::Result<Recorded> {
        self.get(name)?.with_context(|| format!("the recording has no `{name}`"))
    }
}

fn numbers<const N: usize>(bytes: &[u8], number: impl Fn([u8; N]) -> f64) -> Vec<f64> {
    bytes.chunks_exact(N).map(|chunk| number(chunk.try_into().expect("chunks of N bytes"))).collect()
}

//! Number formats of checkpoints and model folders.

use std::fmt;
use std::str::FromStr;

use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use half::{bf16, f16};

/// A format that model folders store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Dtype {
    /// 32-bit floats.
    #[default]
    F32,
    /// 16-bit floats.
    F16,
    /// 16-bit floats with the range of 32-bit ones.
    Bf16,
}

impl Dtype {
    /// Bytes of one number.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// Its name in a safetensors header.
    pub(crate) fn safetensors(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
        }
    }

    /// Appends numbers, rounded to nearest even. The error is the first number that is out of range.
    pub(crate) fn encode(self, values: &[f32], out: &mut Vec<u8>) -> Result<(), f32> {
        match self {
            Self::F32 => out.extend(values.iter().flat_map(|x| x.to_le_bytes())),
            Self::Bf16 => {
                for &x in values {
                    let y = bf16::from_f32(x);
                    if y.is_infinite() {
                        return Err(x);
                    }
                    out.extend(y.to_le_bytes());
                }
            }
            Self::F16 => {
                for &x in values {
                    let y = f16::from_f32(x);
                    if y.is_infinite() {
                        return Err(x);
                    }
                    out.extend(y.to_le_bytes());
                }
            }
        }
        Ok(())
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        })
    }
}

impl FromStr for Dtype {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "f32" => Ok(Self::F32),
            "f16" => Ok(Self::F16),
            "bf16" => Ok(Self::Bf16),
            other => Err(format!("unknown dtype `{other}`: f32, f16 or bf16")),
        }
    }
}

/// A format that checkpoints use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceDtype {
    /// 64-bit floats.
    F64,
    /// 32-bit floats.
    F32,
    /// 16-bit floats.
    F16,
    /// 16-bit floats with the range of 32-bit ones.
    Bf16,
    /// 64-bit integers.
    I64,
    /// 32-bit integers.
    I32,
    /// 16-bit integers.
    I16,
    /// 8-bit integers.
    I8,
    /// Bytes.
    U8,
    /// Truth values.
    Bool,
}

impl From<Dtype> for SourceDtype {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::F32,
            Dtype::F16 => Self::F16,
            Dtype::Bf16 => Self::Bf16,
        }
    }
}

impl SourceDtype {
    /// Bytes of one number.
    pub fn size(self) -> usize {
        match self {
            Self::F64 | Self::I64 => 8,
            Self::F32 | Self::I32 => 4,
            Self::F16 | Self::Bf16 | Self::I16 => 2,
            Self::I8 | Self::U8 | Self::Bool => 1,
        }
    }

    /// Appends little-endian numbers as f32.
    pub(crate) fn decode(self, bytes: &[u8], out: &mut Vec<f32>) {
        fn each<const N: usize>(bytes: &[u8], out: &mut Vec<f32>, number: impl Fn([u8; N]) -> f32) {
            out.extend(bytes.chunks_exact(N).map(|chunk| number(chunk.try_into().expect("chunks of N bytes"))));
        }
        // In blocks, which `half` converts with the processor's vector instructions.
        fn halves(bytes: &[u8], out: &mut Vec<f32>, convert: impl Fn(&[u16], &mut [f32])) {
            let mut block = [0; 1024];
            for bytes in bytes.chunks(2 * block.len()) {
                let count = bytes.len() / 2;
                for (x, pair) in block.iter_mut().zip(bytes.chunks_exact(2)) {
                    *x = u16::from_le_bytes([pair[0], pair[1]]);
                }
                let start = out.len();
                out.resize(start + count, 0.0);
                convert(&block[..count], &mut out[start..]);
            }
        }
        match self {
            Self::F64 => each(bytes, out, |b| f64::from_le_bytes(b) as f32),
            Self::F32 => each(bytes, out, f32::from_le_bytes),
            Self::F16 => halves(bytes, out, |x, y| x.reinterpret_cast::<f16>().convert_to_f32_slice(y)),
            Self::Bf16 => halves(bytes, out, |x, y| x.reinterpret_cast::<bf16>().convert_to_f32_slice(y)),
            Self::I64 => each(bytes, out, |b| i64::from_le_bytes(b) as f32),
            Self::I32 => each(bytes, out, |b| i32::from_le_bytes(b) as f32),
            Self::I16 => each(bytes, out, |b| f32::from(i16::from_le_bytes(b))),
            Self::I8 => each(bytes, out, |b| f32::from(i8::from_le_bytes(b))),
            Self::U8 | Self::Bool => each(bytes, out, |b: [u8; 1]| f32::from(b[0])),
        }
    }
}

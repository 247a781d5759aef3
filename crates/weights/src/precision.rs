//! What the weights of a model are stored as.

use std::fmt;
use std::str::FromStr;

use flamingo_config::Scheme;

use crate::Dtype;

/// What a model's weights are stored as: numbers of one format, or matrices in few bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// Numbers.
    Plain(Dtype),
    /// Matrices quantised where [`Scheme::of`] says so, and numbers.
    Quantised(Scheme),
}

impl Precision {
    /// 32-bit floats.
    pub const F32: Self = Self::Plain(Dtype::F32);
    /// 16-bit floats.
    pub const F16: Self = Self::Plain(Dtype::F16);
    /// 16-bit floats with the range of 32-bit ones.
    pub const BF16: Self = Self::Plain(Dtype::Bf16);

    /// How matrices are quantised, if they are.
    pub fn scheme(self) -> Option<Scheme> {
        match self {
            Self::Plain(_) => None,
            Self::Quantised(scheme) => Some(scheme),
        }
    }
}

impl Default for Precision {
    fn default() -> Self {
        Self::F32
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain(dtype) => dtype.fmt(f),
            Self::Quantised(scheme) => scheme.fmt(f),
        }
    }
}

impl FromStr for Precision {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let plain = text.parse().map(Self::Plain);
        let quantised = || text.parse().map(Self::Quantised);
        plain
            .or_else(|_: String| quantised())
            .map_err(|_: String| format!("unknown precision `{text}`: f32, f16, bf16, q8 or q4"))
    }
}

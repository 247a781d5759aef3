//! How a quantised matrix is laid out: what weights, kernels and modules agree on.
//!
//! Each row is cut into blocks of [`BLOCK`] numbers. A block has a scale and a code for each number, and
//! `number = scale · value(code)`. Codes are packed into 32-bit words, little-endian, which every backend can hold:
//! `codes` is `[rows, columns / BLOCK · words]` and `scales` `[rows, columns / BLOCK]`, f16 in files.

use std::fmt;
use std::str::FromStr;

/// Numbers that share a scale.
pub const BLOCK: usize = 32;

/// Values of the 4-bit codes in 128ths: what Lloyd's algorithm finds for normal numbers in blocks of which the largest by
/// magnitude is the first value. On such numbers, and on trained weights, the error is a tenth less than with even steps.
pub const LEVELS: [i8; 16] = [-124, -97, -77, -61, -46, -33, -21, -9, 3, 15, 27, 40, 54, 69, 88, 111];

/// A way to quantise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// 8 bits a code, its value a 128th of it: -127 to 127. Byte `i` of a block is number `i`.
    Q8,
    /// 4 bits a code, which chooses of [`LEVELS`]. The lower half of byte `i` of a block is number `i`, the upper half
    /// number `16 + i`.
    Q4,
}

impl Scheme {
    /// How the matrix of this name in a model is quantised by this, if it is one of whole blocks. The vision tower, the
    /// embedding table and the head take 8 bits always, as they are a small part of a large model and all else depends on
    /// them; what 4 would cost there was not measured. The resampler stays as it is.
    pub fn of(self, name: &str) -> Option<Self> {
        match name {
            _ if name.starts_with("resampler") => None,
            _ if ["vision", "decoder.embedding", "decoder.head"].iter().any(|part| name.starts_with(part)) => {
                Some(Self::Q8)
            }
            _ => Some(self),
        }
    }

    /// Words of a block's codes.
    pub fn words(self) -> usize {
        match self {
            Self::Q8 => BLOCK / 4,
            Self::Q4 => BLOCK / 8,
        }
    }

    /// Words of the codes of a row.
    pub fn row_words(self, columns: usize) -> usize {
        columns / BLOCK * self.words()
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Q8 => "q8",
            Self::Q4 => "q4",
        })
    }
}

impl FromStr for Scheme {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "q8" => Ok(Self::Q8),
            "q4" => Ok(Self::Q4),
            other => Err(format!("unknown scheme `{other}`: q8 or q4")),
        }
    }
}

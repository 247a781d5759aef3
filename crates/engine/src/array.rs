//! Host data that crosses the boundary.

use burn::tensor::{DType, Tensor, backend::Backend};

use crate::EngineError;

/// A row-major f32 array.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    /// Its dimensions.
    pub shape: Vec<usize>,
    /// As many values as the product of the dimensions.
    pub data: Vec<f32>,
}

impl Array {
    /// Copies a tensor from its device.
    pub(crate) fn from_tensor<B: Backend, const D: usize>(tensor: &Tensor<B, D>) -> Result<Self, EngineError> {
        let data = tensor.clone().cast(DType::F32).into_data();
        let shape = tensor.dims().to_vec();
        let data =
            data.into_vec::<f32>().map_err(|e| EngineError::Device(format!("cannot read a tensor back: {e:?}")))?;
        Ok(Self { shape, data })
    }
}

/// Normalised pixels of the images of a batch, `[rows, images, frames, 3, side, side]`, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Pixels {
    /// Rows of the batch.
    pub rows: usize,
    /// Images in each row.
    pub images: usize,
    /// Frames of each image: 1, or more for video.
    pub frames: usize,
    /// Width and height in pixels.
    pub side: usize,
    /// The values.
    pub data: Vec<f32>,
}

impl Pixels {
    /// Checks that the values are as many as the dimensions say, and the side what the model takes.
    pub(crate) fn check(&self, side: usize) -> Result<(), EngineError> {
        let expected = self.rows * self.images * self.frames * 3 * self.side * self.side;
        if self.side != side {
            return Err(EngineError::Input(format!(
                "images of {} pixels a side for a model that takes {side}",
                self.side
            )));
        }
        if self.data.len() != expected || expected == 0 {
            return Err(EngineError::Input(format!(
                "{} pixel values where {expected} were announced",
                self.data.len()
            )));
        }
        Ok(())
    }
}

//! Cross-entropy: a cube for each row of logits, sums in f32.

use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Int, Tensor};
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeRuntime, cubecl};

use super::reduce::{UNITS, of_cube};
use super::softmax::LOWEST;
use super::{Rows, empty, has_planes, spread};
use crate::{generic, tensor};

/// The largest of a row and the sum of `exp(number - largest)`, for all units of the cube.
#[cube]
fn normaliser<T: Float>(
    logits: &Array<T>,
    start: usize,
    width: u32,
    shared: &mut SharedMemory<f32>,
    #[comptime] planes: bool,
) -> (f32, f32) {
    let mut largest = f32::new(LOWEST);
    let mut i = UNIT_POS;
    while i < width {
        largest = max(largest, f32::cast_from(logits[start + i as usize]));
        i += UNITS;
    }
    let largest = of_cube(largest, shared, true, planes);
    let mut sum = 0f32;
    let mut i = UNIT_POS;
    while i < width {
        sum += (f32::cast_from(logits[start + i as usize]) - largest).exp();
        i += UNITS;
    }
    (largest, of_cube(sum, shared, false, planes))
}

#[cube(launch_unchecked)]
fn forward<T: Float>(
    logits: &Array<T>,
    targets: &Array<i32>,
    losses: &mut Array<f32>,
    width: u32,
    stride: u32,
    #[comptime] planes: bool,
    #[define(T)] _dtype: StorageType,
) {
    let row = CUBE_POS;
    if row >= losses.len() {
        terminate!();
    }
    let mut shared = SharedMemory::<f32>::new(comptime!(UNITS as usize));
    let start = row * stride as usize;
    let (largest, sum) = normaliser::<T>(logits, start, width, &mut shared, planes);
    if UNIT_POS == 0 {
        losses[row] = sum.ln() - (f32::cast_from(logits[start + targets[row] as usize]) - largest);
    }
}

#[cube(launch_unchecked)]
fn backward<T: Float>(
    logits: &Array<T>,
    targets: &Array<i32>,
    grad: &Array<f32>,
    d_logits: &mut Array<T>,
    width: u32,
    stride: u32,
    rows: u32,
    #[comptime] planes: bool,
    #[define(T)] _dtype: StorageType,
) {
    let row = CUBE_POS;
    if row >= rows as usize {
        terminate!();
    }
    let mut shared = SharedMemory::<f32>::new(comptime!(UNITS as usize));
    let start = row * stride as usize;
    let (largest, sum) = normaliser::<T>(logits, start, width, &mut shared, planes);
    let factor = grad[0] / f32::cast_from(rows);
    let target = targets[row] as u32;
    let mut i = UNIT_POS;
    while i < width {
        let share = (f32::cast_from(logits[start + i as usize]) - largest).exp() / sum;
        d_logits[row * width as usize + i as usize] = T::cast_from((share - select(i == target, 1f32, 0f32)) * factor);
        i += UNITS;
    }
}

fn targets_of<B: Backend>(targets: &[i32], device: &B::Device) -> B::IntTensorPrimitive {
    Tensor::<B, 1, Int>::from_ints(targets, device).into_primitive()
}

/// [`crate::Kernels::cross_entropy`].
pub(super) fn cross_entropy<R, B>(logits: FloatTensor<B>, targets: &[i32]) -> FloatTensor<B>
where
    R: CubeRuntime,
    B: Backend<FloatTensorPrimitive = CubeTensor<R>, IntTensorPrimitive = CubeTensor<R>, Device = R::Device>,
{
    let Rows { x: logits, width, stride, .. } = Rows::of(logits);
    let (dtype, planes) = (logits.dtype, has_planes(&logits));
    let losses = empty(&logits, [targets.len()], DType::F32);
    let targets_there = targets_of::<B>(targets, &logits.device);
    // SAFETY: units stay within rows, cubes within their number, and targets within the width.
    unsafe {
        forward::launch_unchecked::<R>(
            &losses.client,
            spread(targets.len()),
            CubeDim::new_1d(UNITS),
            logits.into_array_arg(),
            targets_there.into_array_arg(),
            losses.clone().into_array_arg(),
            width as u32,
            stride as u32,
            planes,
            dtype.into(),
        );
    }
    crate::primitive(tensor::<B, 1>(losses).sum() / targets.len() as f64)
}

/// [`crate::Gradients::cross_entropy_backward`].
pub(super) fn cross_entropy_backward<R, B>(
    logits: FloatTensor<B>,
    targets: &[i32],
    grad: FloatTensor<B>,
) -> FloatTensor<B>
where
    R: CubeRuntime,
    B: Backend<FloatTensorPrimitive = CubeTensor<R>, IntTensorPrimitive = CubeTensor<R>, Device = R::Device>,
{
    let Rows { x: logits, width, stride, .. } = Rows::of(logits);
    let (dtype, planes) = (logits.dtype, has_planes(&logits));
    let d_logits = empty(&logits, logits.meta.shape().clone(), dtype);
    let targets_there = targets_of::<B>(targets, &logits.device);
    // SAFETY: units stay within rows, cubes within their number.
    unsafe {
        backward::launch_unchecked::<R>(
            &d_logits.client,
            spread(targets.len()),
            CubeDim::new_1d(UNITS),
            logits.into_array_arg(),
            targets_there.into_array_arg(),
            into_contiguous(generic::cast::<B>(grad, DType::F32)).into_array_arg(),
            d_logits.clone().into_array_arg(),
            width as u32,
            stride as u32,
            targets.len() as u32,
            planes,
            dtype.into(),
        );
    }
    d_logits
}

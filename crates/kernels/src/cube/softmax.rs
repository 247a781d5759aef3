//! Attention weights: a cube for each row of scores, sums in f32.

use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeRuntime, cubecl};

use super::reduce::{UNITS, of_cube};
use super::{Rows, empty, has_planes, spread};

/// Stands for minus infinity, which some shading languages cannot write.
pub(super) const LOWEST: f32 = -3e38;

/// What is known of the scores of an attention beside them: whom nobody sees, and what is added. Both of the scores' shape,
/// as views.
pub(super) struct Masks<R: CubeRuntime> {
    pub(super) hidden: Option<CubeTensor<R>>,
    pub(super) bias: Option<CubeTensor<R>>,
}

impl<R: CubeRuntime> Clone for Masks<R> {
    fn clone(&self) -> Self {
        Self { hidden: self.hidden.clone(), bias: self.bias.clone() }
    }
}

#[cube]
fn score<T: Float, H: Numeric>(
    scores: &Array<T>,
    hidden: &Tensor<H>,
    bias: &Tensor<T>,
    at: usize,
    hidden_at: usize,
    bias_at: usize,
    scale: f32,
    #[comptime] has_hidden: bool,
    #[comptime] has_bias: bool,
) -> f32 {
    let mut score = f32::cast_from(scores[at]) * scale;
    if has_bias {
        score += f32::cast_from(bias[bias_at]);
    }
    if has_hidden {
        score = select(u32::cast_from(hidden[hidden_at]) != 0, LOWEST, score);
    }
    score
}

/// `softmax(scale scores + bias, hidden = -inf)` over the last of four dimensions.
#[cube(launch_unchecked)]
fn softmax_kernel<T: Float, H: Numeric>(
    scores: &Array<T>,
    hidden: &Tensor<H>,
    bias: &Tensor<T>,
    weights: &mut Array<T>,
    heads: u32,
    queries: u32,
    keys: u32,
    stride: u32,
    rows: u32,
    scale: f32,
    #[comptime] has_hidden: bool,
    #[comptime] has_bias: bool,
    #[comptime] planes: bool,
    #[define(T, H)] _dtypes: [StorageType; 2],
) {
    let row = CUBE_POS;
    if row >= rows as usize {
        terminate!();
    }
    let mut shared = SharedMemory::<f32>::new(comptime!(UNITS as usize));
    let query = row % queries as usize;
    let head = row / queries as usize % heads as usize;
    let batch = row / (queries as usize * heads as usize);
    let start = row * stride as usize;
    let to = row * keys as usize;
    let mut hidden_start = 0usize;
    let mut hidden_step = 0usize;
    if has_hidden {
        hidden_start = batch * hidden.stride(0) + head * hidden.stride(1) + query * hidden.stride(2);
        hidden_step = hidden.stride(3);
    }
    let mut bias_start = 0usize;
    let mut bias_step = 0usize;
    if has_bias {
        bias_start = batch * bias.stride(0) + head * bias.stride(1) + query * bias.stride(2);
        bias_step = bias.stride(3);
    }
    let mut largest = f32::new(LOWEST);
    let mut i = UNIT_POS;
    while i < keys {
        let key = i as usize;
        let (h, b) = (hidden_start + key * hidden_step, bias_start + key * bias_step);
        let score = score::<T, H>(scores, hidden, bias, start + key, h, b, scale, has_hidden, has_bias);
        largest = max(largest, score);
        i += UNITS;
    }
    let largest = of_cube(largest, &mut shared, true, planes);
    let mut sum = 0f32;
    let mut i = UNIT_POS;
    while i < keys {
        let key = i as usize;
        let (h, b) = (hidden_start + key * hidden_step, bias_start + key * bias_step);
        let score = score::<T, H>(scores, hidden, bias, start + key, h, b, scale, has_hidden, has_bias);
        sum += (score - largest).exp();
        i += UNITS;
    }
    let share = 1f32 / of_cube(sum, &mut shared, false, planes);
    let mut i = UNIT_POS;
    while i < keys {
        let key = i as usize;
        let (h, b) = (hidden_start + key * hidden_step, bias_start + key * bias_step);
        let score = score::<T, H>(scores, hidden, bias, start + key, h, b, scale, has_hidden, has_bias);
        weights[to + key] = T::cast_from((score - largest).exp() * share);
        i += UNITS;
    }
}

/// The gradient of the scores before their scale, from the weights and their gradient.
#[cube(launch_unchecked)]
fn softmax_backward_kernel<T: Float>(
    weights: &Array<T>,
    grad: &Array<T>,
    d_scores: &mut Array<T>,
    keys: u32,
    stride: u32,
    rows: u32,
    scale: f32,
    #[comptime] planes: bool,
    #[define(T)] _dtype: StorageType,
) {
    let row = CUBE_POS;
    if row >= rows as usize {
        terminate!();
    }
    let mut shared = SharedMemory::<f32>::new(comptime!(UNITS as usize));
    let start = row * keys as usize;
    let grad_start = row * stride as usize;
    let mut along = 0f32;
    let mut i = UNIT_POS;
    while i < keys {
        let slope = f32::cast_from(grad[grad_start + i as usize]);
        along += f32::cast_from(weights[start + i as usize]) * slope;
        i += UNITS;
    }
    let along = of_cube(along, &mut shared, false, planes);
    let mut i = UNIT_POS;
    while i < keys {
        let at = start + i as usize;
        let slope = f32::cast_from(grad[grad_start + i as usize]) - along;
        let slope = slope * f32::cast_from(weights[at]) * scale;
        d_scores[at] = T::cast_from(slope);
        i += UNITS;
    }
}

/// `softmax(scale scores + bias, hidden = -inf)` of `[batch, heads, queries, keys]`.
pub(super) fn softmax<R: CubeRuntime>(scores: CubeTensor<R>, scale: f64, masks: Masks<R>) -> CubeTensor<R> {
    let shape = scores.meta.shape().clone();
    let [batch, heads, queries, keys] = shape.dims();
    let Rows { x: scores, stride, .. } = Rows::of(scores);
    let weights = empty(&scores, shape, scores.dtype);
    let rows = batch * heads * queries;
    let planes = has_planes(&scores);
    let Masks { hidden, bias } = masks;
    let (has_hidden, has_bias) = (hidden.is_some(), bias.is_some());
    // What is not there is not read.
    let hidden = hidden.unwrap_or_else(|| scores.clone());
    let bias = bias.unwrap_or_else(|| scores.clone());
    let dtypes = [scores.dtype.into(), hidden.dtype.into()];
    // SAFETY: units stay within rows, cubes within their number, and masks have the scores' shape.
    unsafe {
        softmax_kernel::launch_unchecked::<R>(
            &weights.client,
            spread(rows),
            CubeDim::new_1d(UNITS),
            scores.into_array_arg(),
            hidden.into_tensor_arg(),
            bias.into_tensor_arg(),
            weights.clone().into_array_arg(),
            heads as u32,
            queries as u32,
            keys as u32,
            stride as u32,
            rows as u32,
            scale as f32,
            has_hidden,
            has_bias,
            planes,
            dtypes,
        );
    }
    weights
}

/// The gradient of the products of queries and keys, before their scale.
pub(super) fn softmax_backward<R: CubeRuntime>(
    weights: CubeTensor<R>,
    grad: CubeTensor<R>,
    scale: f64,
) -> CubeTensor<R> {
    let shape = weights.meta.shape().clone();
    let [batch, heads, queries, keys] = shape.dims();
    let rows = batch * heads * queries;
    let weights = into_contiguous(weights);
    let Rows { x: grad, stride, .. } = Rows::of(grad);
    let d_scores = empty(&weights, shape, weights.dtype);
    let (planes, dtype) = (has_planes(&weights), weights.dtype.into());
    // SAFETY: units stay within rows, and cubes within their number.
    unsafe {
        softmax_backward_kernel::launch_unchecked::<R>(
            &d_scores.client,
            spread(rows),
            CubeDim::new_1d(UNITS),
            weights.into_array_arg(),
            grad.into_array_arg(),
            d_scores.clone().into_array_arg(),
            keys as u32,
            stride as u32,
            rows as u32,
            scale as f32,
            planes,
            dtype,
        );
    }
    d_scores
}

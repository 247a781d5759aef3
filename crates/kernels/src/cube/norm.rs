//! Layer norm: a cube for each row, sums in f32.

use burn::tensor::DType;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::kernel::{cast, into_contiguous};
use burn_cubecl::ops::reshape;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeRuntime, cubecl};

use super::reduce::{UNITS, of_cube, of_vector, sum_rows};
use super::{Rows, empty, has_planes, spread, vector_size};

/// Mean and reciprocal deviation of a row, for all units of the cube.
#[cube]
fn statistics<T: Float, N: Size>(
    x: &Array<Vector<T, N>>,
    start: usize,
    width: u32,
    eps: f32,
    shared: &mut SharedMemory<f32>,
    #[comptime] planes: bool,
) -> (f32, f32) {
    let lanes = N::value();
    let count = f32::cast_from(width) * comptime!(lanes as f32);
    let mut sum = Vector::<f32, N>::new(0f32);
    let mut i = UNIT_POS;
    while i < width {
        sum += Vector::cast_from(x[start + i as usize]);
        i += UNITS;
    }
    let mean = of_cube(of_vector::<N>(sum), shared, false, planes) / count;
    let mut squares = Vector::<f32, N>::new(0f32);
    let mut i = UNIT_POS;
    while i < width {
        let centred = Vector::<f32, N>::cast_from(x[start + i as usize]) - Vector::new(mean);
        squares += centred * centred;
        i += UNITS;
    }
    let variance = of_cube(of_vector::<N>(squares), shared, false, planes) / count;
    (mean, 1f32 / (variance + eps).sqrt())
}

/// Lengths and strides count vectors.
#[cube(launch_unchecked)]
fn forward<T: Float, W: Float, V: Float, N: Size>(
    x: &Array<Vector<T, N>>,
    weight: &Array<Vector<W, N>>,
    bias: &Array<Vector<V, N>>,
    y: &mut Array<Vector<T, N>>,
    count: u32,
    width: u32,
    stride: u32,
    eps: f32,
    #[comptime] has_bias: bool,
    #[comptime] planes: bool,
    #[define(T, W, V)] _dtypes: [StorageType; 3],
) {
    let row = CUBE_POS;
    if row >= count as usize {
        terminate!();
    }
    let mut shared = SharedMemory::<f32>::new(comptime!(UNITS as usize));
    let start = row * stride as usize;
    let (mean, scale) = statistics::<T, N>(x, start, width, eps, &mut shared, planes);
    let mut i = UNIT_POS;
    while i < width {
        let centred = Vector::<f32, N>::cast_from(x[start + i as usize]) - Vector::new(mean);
        let mut normal = centred * Vector::new(scale) * Vector::cast_from(weight[i as usize]);
        if has_bias {
            normal += Vector::cast_from(bias[i as usize]);
        }
        y[row * width as usize + i as usize] = Vector::cast_from(normal);
        i += UNITS;
    }
}

/// The gradient of the input; where the weight is `trained`, the terms of its gradient, to be added up over the rows.
#[cube(launch_unchecked)]
fn backward<T: Float, W: Float, N: Size>(
    x: &Array<Vector<T, N>>,
    weight: &Array<Vector<W, N>>,
    grad: &Array<Vector<T, N>>,
    d_x: &mut Array<Vector<T, N>>,
    terms: &mut Array<Vector<f32, N>>,
    count: u32,
    width: u32,
    eps: f32,
    #[comptime] trained: bool,
    #[comptime] planes: bool,
    #[define(T, W)] _dtypes: [StorageType; 2],
) {
    let row = CUBE_POS;
    if row >= count as usize {
        terminate!();
    }
    let mut shared = SharedMemory::<f32>::new(comptime!(UNITS as usize));
    let start = row * width as usize;
    let (mean, scale) = statistics::<T, N>(x, start, width, eps, &mut shared, planes);
    let mut sum = Vector::<f32, N>::new(0f32);
    let mut along = Vector::<f32, N>::new(0f32);
    let mut i = UNIT_POS;
    while i < width {
        let at = start + i as usize;
        let normal = (Vector::<f32, N>::cast_from(x[at]) - Vector::new(mean)) * Vector::new(scale);
        let grad = Vector::<f32, N>::cast_from(grad[at]);
        if comptime!(trained) {
            terms[at] = grad * normal;
        }
        let scaled = grad * Vector::cast_from(weight[i as usize]);
        sum += scaled;
        along += scaled * normal;
        i += UNITS;
    }
    let lanes = N::value();
    let numbers = f32::cast_from(width) * comptime!(lanes as f32);
    let sum = of_cube(of_vector::<N>(sum), &mut shared, false, planes) / numbers;
    let along = of_cube(of_vector::<N>(along), &mut shared, false, planes) / numbers;
    let mut i = UNIT_POS;
    while i < width {
        let at = start + i as usize;
        let normal = (Vector::<f32, N>::cast_from(x[at]) - Vector::new(mean)) * Vector::new(scale);
        let scaled = Vector::<f32, N>::cast_from(grad[at]) * Vector::cast_from(weight[i as usize]);
        let slope = (scaled - Vector::new(sum) - normal * Vector::new(along)) * Vector::new(scale);
        d_x[at] = Vector::cast_from(slope);
        i += UNITS;
    }
}

/// [`crate::Kernels::norm`].
pub(super) fn norm<R: CubeRuntime>(
    x: CubeTensor<R>,
    weight: CubeTensor<R>,
    bias: Option<CubeTensor<R>>,
    eps: f64,
) -> CubeTensor<R> {
    let shape = x.meta.shape().clone();
    let rows = Rows::of(x);
    let y = empty(&rows.x, shape, rows.x.dtype);
    let size = vector_size(&rows.x, &[rows.width, rows.stride]).min(vector_size(&weight, &[rows.width]));
    let (count, width, stride) = (rows.count, (rows.width / size) as u32, (rows.stride / size) as u32);
    let planes = has_planes(&rows.x);
    let has_bias = bias.is_some();
    let bias = bias.unwrap_or_else(|| weight.clone());
    let dtypes = [rows.x.dtype.into(), weight.dtype.into(), bias.dtype.into()];
    // SAFETY: units stay within rows, and cubes within their number.
    unsafe {
        forward::launch_unchecked::<R>(
            &y.client,
            spread(count),
            CubeDim::new_1d(UNITS),
            size,
            rows.x.into_array_arg(),
            weight.into_array_arg(),
            bias.into_array_arg(),
            y.clone().into_array_arg(),
            count as u32,
            width,
            stride,
            eps as f32,
            has_bias,
            planes,
            dtypes,
        );
    }
    y
}

/// [`crate::Gradients::norm_backward`].
pub(super) fn norm_backward<R: CubeRuntime>(
    x: CubeTensor<R>,
    weight: CubeTensor<R>,
    grad: CubeTensor<R>,
    eps: f64,
    trained: bool,
) -> (CubeTensor<R>, Option<[CubeTensor<R>; 2]>) {
    let shape = x.meta.shape().clone();
    let [x, grad] = [x, grad].map(into_contiguous);
    let rows = Rows::of(x);
    let d_x = empty(&grad, shape, grad.dtype);
    // Nothing is written where nothing trains.
    let terms = empty(&grad, [if trained { rows.count } else { 1 }, rows.width], DType::F32);
    let size = vector_size(&terms, &[rows.width]);
    let dtypes = [rows.x.dtype.into(), weight.dtype.into()];
    let dtype: DType = weight.dtype;
    let planes = has_planes(&rows.x);
    // SAFETY: units stay within rows, and cubes within their number.
    unsafe {
        backward::launch_unchecked::<R>(
            &d_x.client,
            spread(rows.count),
            CubeDim::new_1d(UNITS),
            size,
            rows.x.into_array_arg(),
            weight.into_array_arg(),
            grad.clone().into_array_arg(),
            d_x.clone().into_array_arg(),
            terms.clone().into_array_arg(),
            rows.count as u32,
            (rows.width / size) as u32,
            eps as f32,
            trained,
            planes,
            dtypes,
        );
    }
    let sums = trained.then(|| {
        let grad = reshape(grad, [rows.count, rows.width].into());
        [terms, grad].map(|terms| cast(sum_rows(terms), dtype))
    });
    (d_x, sums)
}

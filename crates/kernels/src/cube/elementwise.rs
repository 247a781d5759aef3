//! Number by number: a unit for each vector of them, in f32.

use burn::tensor::DType;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::kernel::{cast, into_contiguous};
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeRuntime, cubecl};
use flamingo_config::{Activation, Pairing};

use super::reduce::{PARTS, UNITS, of_cube, of_vector, sum_rows};
use super::{cubes, empty, has_planes, vector_size};
use crate::AdamWStep;

/// `sqrt(2 / π)`, of the tanh approximation.
const TANH_SCALE: f32 = 0.797_884_6;
const TANH_CUBE: f32 = 0.044_715;

#[cube]
fn sigmoid<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    Vector::new(1f32) / (Vector::new(1f32) + (Vector::new(0f32) - x).exp())
}

#[cube]
fn tanh_inner<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    (x + x * x * x * Vector::new(TANH_CUBE)) * Vector::new(TANH_SCALE)
}

/// An activation.
#[cube]
pub(super) fn activated<N: Size>(x: Vector<f32, N>, #[comptime] kind: Activation) -> Vector<f32, N> {
    match kind {
        Activation::Gelu => {
            let erf = (x * Vector::new(std::f32::consts::FRAC_1_SQRT_2)).erf();
            x * Vector::new(0.5f32) * (erf + Vector::new(1f32))
        }
        Activation::GeluTanh => x * Vector::new(0.5f32) * (tanh_inner::<N>(x).tanh() + Vector::new(1f32)),
        Activation::QuickGelu => x * sigmoid::<N>(x * Vector::new(1.702f32)),
        Activation::Relu => max(x, Vector::new(0f32)),
        Activation::Silu => x * sigmoid::<N>(x),
    }
}

/// The derivative of `x sigmoid(a x)`.
#[cube]
fn sigmoid_slope<N: Size>(x: Vector<f32, N>, #[comptime] a: f32) -> Vector<f32, N> {
    let share = sigmoid::<N>(x * Vector::new(a));
    share + x * Vector::new(a) * share * (Vector::new(1f32) - share)
}

#[cube]
fn slope<N: Size>(x: Vector<f32, N>, #[comptime] kind: Activation) -> Vector<f32, N> {
    let one = Vector::<f32, N>::new(1f32);
    let half = Vector::<f32, N>::new(0.5f32);
    match kind {
        Activation::Gelu => {
            let share = ((x * Vector::new(std::f32::consts::FRAC_1_SQRT_2)).erf() + one) * half;
            share + x * (x * x * Vector::new(-0.5f32)).exp() * Vector::new(comptime!(TANH_SCALE * 0.5))
        }
        Activation::GeluTanh => {
            let tanh = tanh_inner::<N>(x).tanh();
            let inner = (x * x * Vector::new(comptime!(3.0 * TANH_CUBE)) + one) * Vector::new(TANH_SCALE);
            (tanh + one) * half + x * half * (one - tanh * tanh) * inner
        }
        Activation::QuickGelu => sigmoid_slope::<N>(x, 1.702f32),
        Activation::Relu => {
            let mut slope = Vector::<f32, N>::new(0f32);
            #[unroll]
            for lane in 0..N::value() {
                slope[lane] = select(x[lane] > 0f32, 1f32, 0f32);
            }
            slope
        }
        Activation::Silu => sigmoid_slope::<N>(x, 1f32),
    }
}

#[cube(launch_unchecked)]
fn activate_kernel<T: Float, N: Size>(
    x: &Array<Vector<T, N>>,
    y: &mut Array<Vector<T, N>>,
    #[comptime] kind: Activation,
    #[define(T)] _dtype: StorageType,
) {
    if ABSOLUTE_POS < y.len() {
        y[ABSOLUTE_POS] = Vector::cast_from(activated::<N>(Vector::cast_from(x[ABSOLUTE_POS]), kind));
    }
}

#[cube(launch_unchecked)]
fn activate_backward_kernel<T: Float, N: Size>(
    x: &Array<Vector<T, N>>,
    grad: &Array<Vector<T, N>>,
    d_x: &mut Array<Vector<T, N>>,
    #[comptime] kind: Activation,
    #[define(T)] _dtype: StorageType,
) {
    if ABSOLUTE_POS < d_x.len() {
        let slope = slope::<N>(Vector::cast_from(x[ABSOLUTE_POS]), kind);
        d_x[ABSOLUTE_POS] = Vector::cast_from(slope * Vector::cast_from(grad[ABSOLUTE_POS]));
    }
}

#[cube(launch_unchecked)]
fn gated_sum_kernel<T: Float, G: Float, N: Size>(
    x: &Array<Vector<T, N>>,
    more: &Array<Vector<T, N>>,
    gate: &Array<G>,
    y: &mut Array<Vector<T, N>>,
    #[define(T, G)] _dtypes: [StorageType; 2],
) {
    if ABSOLUTE_POS < y.len() {
        let open = Vector::<f32, N>::new(f32::cast_from(gate[0]).tanh());
        let sum = Vector::<f32, N>::cast_from(x[ABSOLUTE_POS]) + Vector::cast_from(more[ABSOLUTE_POS]) * open;
        y[ABSOLUTE_POS] = Vector::cast_from(sum);
    }
}

/// The gradient of `more`; and of the gate, what each cube found of it.
#[cube(launch_unchecked)]
fn gated_sum_backward_kernel<T: Float, G: Float, N: Size>(
    more: &Array<Vector<T, N>>,
    gate: &Array<G>,
    grad: &Array<Vector<T, N>>,
    d_more: &mut Array<Vector<T, N>>,
    d_gates: &mut Array<f32>,
    #[comptime] planes: bool,
    #[define(T, G)] _dtypes: [StorageType; 2],
) {
    let mut shared = SharedMemory::<f32>::new(comptime!(UNITS as usize));
    let open = f32::cast_from(gate[0]).tanh();
    let mut along = Vector::<f32, N>::new(0f32);
    let mut i = ABSOLUTE_POS;
    while i < d_more.len() {
        let slope = Vector::<f32, N>::cast_from(grad[i]);
        along += slope * Vector::cast_from(more[i]);
        d_more[i] = Vector::cast_from(slope * Vector::new(open));
        i += comptime!(PARTS * UNITS as usize);
    }
    let along = of_cube(of_vector::<N>(along), &mut shared, false, planes);
    if UNIT_POS == 0 {
        d_gates[CUBE_POS] = along * (1f32 - open * open);
    }
}

/// A unit for each number of `[batch, heads, tokens, dim]`.
#[cube(launch_unchecked)]
fn rotate_kernel<T: Float>(
    x: &Tensor<T>,
    cos: &Array<T>,
    sin: &Array<T>,
    y: &mut Array<T>,
    dims: u32,
    #[comptime] pairing: Pairing,
    #[define(T)] _dtype: StorageType,
) {
    if ABSOLUTE_POS >= y.len() {
        terminate!();
    }
    let d = ABSOLUTE_POS % x.shape(3);
    let token = ABSOLUTE_POS / x.shape(3) % x.shape(2);
    let head = ABSOLUTE_POS / (x.shape(3) * x.shape(2)) % x.shape(1);
    let batch = ABSOLUTE_POS / (x.shape(3) * x.shape(2) * x.shape(1));
    let start = batch * x.stride(0) + head * x.stride(1) + token * x.stride(2);
    let dims = dims as usize;
    let mut value = f32::cast_from(x[start + d * x.stride(3)]);
    if d < dims {
        let (first, other) = match pairing {
            Pairing::Halves => (d < dims / 2, (d + dims / 2) % dims),
            Pairing::Neighbours => (d % 2 == 0, d + 1 - d % 2 * 2),
        };
        let other = f32::cast_from(x[start + other * x.stride(3)]) * select(first, -1f32, 1f32);
        let at = token * dims + d;
        value = value * f32::cast_from(cos[at]) + other * f32::cast_from(sin[at]);
    }
    y[ABSOLUTE_POS] = T::cast_from(value);
}

#[cube(launch_unchecked)]
fn columns_backward_kernel<T: Float>(
    grad: &Array<T>,
    d_x: &mut Array<T>,
    first: u32,
    count: u32,
    width: u32,
    #[define(T)] _dtype: StorageType,
) {
    if ABSOLUTE_POS >= d_x.len() {
        terminate!();
    }
    let column = ABSOLUTE_POS % width as usize;
    let (first, count) = (first as usize, count as usize);
    if column >= first && column < first + count {
        d_x[ABSOLUTE_POS] = grad[ABSOLUTE_POS / width as usize * count + column - first];
    } else {
        d_x[ABSOLUTE_POS] = T::cast_from(0f32);
    }
}

#[cube(launch_unchecked)]
fn adamw_kernel<T: Float, N: Size>(
    weight: &mut Array<Vector<T, N>>,
    gradient: &Array<Vector<T, N>>,
    first: &mut Array<Vector<T, N>>,
    second: &mut Array<Vector<T, N>>,
    beta_1: f32,
    beta_2: f32,
    rest_1: f32,
    rest_2: f32,
    eps: f32,
    keep: f32,
    rate: f32,
    root_bias_2: f32,
    #[define(T)] _dtype: StorageType,
) {
    if ABSOLUTE_POS < weight.len() {
        let slope = Vector::<f32, N>::cast_from(gradient[ABSOLUTE_POS]);
        let one = Vector::<f32, N>::cast_from(first[ABSOLUTE_POS]) * Vector::new(beta_1) + slope * Vector::new(rest_1);
        let two = Vector::<f32, N>::cast_from(second[ABSOLUTE_POS]) * Vector::new(beta_2)
            + slope * slope * Vector::new(rest_2);
        let scale = two.sqrt() / Vector::new(root_bias_2) + Vector::new(eps);
        let old = Vector::<f32, N>::cast_from(weight[ABSOLUTE_POS]);
        weight[ABSOLUTE_POS] = Vector::cast_from(old * Vector::new(keep) - one / scale * Vector::new(rate));
        first[ABSOLUTE_POS] = Vector::cast_from(one);
        second[ABSOLUTE_POS] = Vector::cast_from(two);
    }
}

/// [`crate::Kernels::activate`].
pub(super) fn activate<R: CubeRuntime>(kind: Activation, x: CubeTensor<R>) -> CubeTensor<R> {
    let x = into_contiguous(x);
    let count = x.meta.num_elements();
    let y = empty(&x, x.meta.shape().clone(), x.dtype);
    let size = vector_size(&x, &[count]);
    let dtype = x.dtype.into();
    // SAFETY: units beyond the last number do nothing.
    unsafe {
        activate_kernel::launch_unchecked::<R>(
            &y.client,
            cubes(count / size, UNITS),
            CubeDim::new_1d(UNITS),
            size,
            x.into_array_arg(),
            y.clone().into_array_arg(),
            kind,
            dtype,
        );
    }
    y
}

/// [`crate::Gradients::activate_backward`].
pub(super) fn activate_backward<R: CubeRuntime>(
    kind: Activation,
    x: CubeTensor<R>,
    grad: CubeTensor<R>,
) -> CubeTensor<R> {
    let [x, grad] = [x, grad].map(into_contiguous);
    let count = x.meta.num_elements();
    let d_x = empty(&x, x.meta.shape().clone(), x.dtype);
    let size = vector_size(&x, &[count]);
    let dtype = x.dtype.into();
    // SAFETY: units beyond the last number do nothing.
    unsafe {
        activate_backward_kernel::launch_unchecked::<R>(
            &d_x.client,
            cubes(count / size, UNITS),
            CubeDim::new_1d(UNITS),
            size,
            x.into_array_arg(),
            grad.into_array_arg(),
            d_x.clone().into_array_arg(),
            kind,
            dtype,
        );
    }
    d_x
}

/// [`crate::Kernels::gated_sum`].
pub(super) fn gated_sum<R: CubeRuntime>(x: CubeTensor<R>, more: CubeTensor<R>, gate: CubeTensor<R>) -> CubeTensor<R> {
    let [x, more] = [x, more].map(into_contiguous);
    let count = x.meta.num_elements();
    let y = empty(&x, x.meta.shape().clone(), x.dtype);
    let size = vector_size(&x, &[count]);
    let dtypes = [x.dtype.into(), gate.dtype.into()];
    // SAFETY: units beyond the last number do nothing.
    unsafe {
        gated_sum_kernel::launch_unchecked::<R>(
            &y.client,
            cubes(count / size, UNITS),
            CubeDim::new_1d(UNITS),
            size,
            x.into_array_arg(),
            more.into_array_arg(),
            gate.into_array_arg(),
            y.clone().into_array_arg(),
            dtypes,
        );
    }
    y
}

/// [`crate::Gradients::gated_sum_backward`].
pub(super) fn gated_sum_backward<R: CubeRuntime>(
    more: CubeTensor<R>,
    gate: CubeTensor<R>,
    grad: CubeTensor<R>,
) -> [CubeTensor<R>; 2] {
    let [more, grad] = [more, grad].map(into_contiguous);
    let d_more = empty(&more, more.meta.shape().clone(), more.dtype);
    let d_gates = empty(&more, [PARTS, 1], DType::F32);
    let size = vector_size(&more, &[more.meta.num_elements()]);
    let (of_gate, planes, dtypes) = (gate.dtype, has_planes(&more), [more.dtype.into(), gate.dtype.into()]);
    // SAFETY: units stay within the numbers.
    unsafe {
        gated_sum_backward_kernel::launch_unchecked::<R>(
            &d_more.client,
            CubeCount::Static(PARTS as u32, 1, 1),
            CubeDim::new_1d(UNITS),
            size,
            more.into_array_arg(),
            gate.into_array_arg(),
            grad.into_array_arg(),
            d_more.clone().into_array_arg(),
            d_gates.clone().into_array_arg(),
            planes,
            dtypes,
        );
    }
    [d_more, cast(sum_rows(d_gates), of_gate)]
}

/// [`crate::Kernels::rotate`].
pub(super) fn rotate<R: CubeRuntime>(
    x: CubeTensor<R>,
    cos: CubeTensor<R>,
    sin: CubeTensor<R>,
    pairing: Pairing,
) -> CubeTensor<R> {
    let dims = cos.meta.shape()[3] as u32;
    let [cos, sin] = [cos, sin].map(into_contiguous);
    let y = empty(&x, x.meta.shape().clone(), x.dtype);
    let dtype = x.dtype.into();
    // SAFETY: units beyond the last number do nothing; the others stay within a head's coordinates.
    unsafe {
        rotate_kernel::launch_unchecked::<R>(
            &y.client,
            cubes(y.meta.num_elements(), UNITS),
            CubeDim::new_1d(UNITS),
            x.into_tensor_arg(),
            cos.into_array_arg(),
            sin.into_array_arg(),
            y.clone().into_array_arg(),
            dims,
            pairing,
            dtype,
        );
    }
    y
}

/// [`crate::Gradients::columns_backward`].
pub(super) fn columns_backward<R: CubeRuntime>(grad: CubeTensor<R>, first: usize, width: usize) -> CubeTensor<R> {
    let grad = into_contiguous(grad);
    let mut shape = grad.meta.shape().clone();
    let last = shape.num_dims() - 1;
    let count = std::mem::replace(&mut shape[last], width);
    let d_x = empty(&grad, shape, grad.dtype);
    let dtype = grad.dtype.into();
    // SAFETY: units beyond the last number do nothing.
    unsafe {
        columns_backward_kernel::launch_unchecked::<R>(
            &d_x.client,
            cubes(d_x.meta.num_elements(), UNITS),
            CubeDim::new_1d(UNITS),
            grad.into_array_arg(),
            d_x.clone().into_array_arg(),
            first as u32,
            count as u32,
            width as u32,
            dtype,
        );
    }
    d_x
}

/// [`crate::Gradients::adamw`]. What nobody else holds is written where it is.
pub(super) fn adamw<R: CubeRuntime>(
    weight: CubeTensor<R>,
    gradient: CubeTensor<R>,
    first: CubeTensor<R>,
    second: CubeTensor<R>,
    step: AdamWStep,
) -> [CubeTensor<R>; 3] {
    let own = |x: CubeTensor<R>| if x.can_mut() && x.is_contiguous() { x } else { x.copy() };
    let [weight, first, second] = [weight, first, second].map(own);
    let gradient = into_contiguous(gradient);
    let count = weight.meta.num_elements();
    let size = vector_size(&weight, &[count]);
    // SAFETY: units beyond the last number do nothing.
    unsafe {
        adamw_kernel::launch_unchecked::<R>(
            &weight.client,
            cubes(count / size, UNITS),
            CubeDim::new_1d(UNITS),
            size,
            weight.clone().into_array_arg(),
            gradient.into_array_arg(),
            first.clone().into_array_arg(),
            second.clone().into_array_arg(),
            step.beta_1 as f32,
            step.beta_2 as f32,
            (1.0 - step.beta_1) as f32,
            (1.0 - step.beta_2) as f32,
            step.eps as f32,
            step.keep as f32,
            step.rate as f32,
            step.root_bias_2 as f32,
            weight.dtype.into(),
        );
    }
    [weight, first, second]
}

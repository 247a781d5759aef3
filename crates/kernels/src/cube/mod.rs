//! Kernels for GPUs, written once in CubeCL for CUDA and for everything that wgpu reaches.
//!
//! A token of a decoder is a few hundred small operations, and a GPU spends more time between two kernels than in one of them:
//! so what Burn composes of five to ten kernels is one here.

// CubeCL does not know `is_multiple_of`.
#![allow(clippy::manual_is_multiple_of)]

mod attention;
mod elementwise;
mod linear;
mod loss;
mod norm;
mod product;
mod reduce;
mod softmax;

use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Shape};
use burn_cubecl::cubecl::{self, prelude::*};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime};
use flamingo_config::{Activation, Pairing};

use crate::{AdamWStep, Attention, Finish, Gradients, Kernels, Matrix, Quantised, generic};

/// Units of a plane where planes are used: those of NVIDIA's warps.
const PLANE: u32 = 32;

impl<R: CubeRuntime, B: BoolElement> Kernels for CubeBackend<R, f32, i32, B> {
    const ROWS_ALIKE: usize = linear::SEVERAL;

    fn product(lhs: FloatTensor<Self>, rhs: FloatTensor<Self>) -> FloatTensor<Self> {
        product::product(lhs, rhs)
    }

    fn activate(kind: Activation, x: FloatTensor<Self>) -> FloatTensor<Self> {
        elementwise::activate(kind, x)
    }

    fn norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
        eps: f64,
    ) -> FloatTensor<Self> {
        norm::norm(x, weight, bias, eps)
    }

    fn attend(attention: Attention<Self>) -> FloatTensor<Self> {
        attention::attend(attention)
    }

    fn linear_layer(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
    ) -> FloatTensor<Self> {
        linear::linear::<R, B>(x, weight, bias)
    }

    fn linear_layer_of_stored(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
    ) -> FloatTensor<Self> {
        linear::linear::<R, B>(x, weight, bias)
    }

    fn linear_layer_of_quantised(
        x: FloatTensor<Self>,
        weight: Quantised<Self>,
        bias: Option<FloatTensor<Self>>,
    ) -> FloatTensor<Self> {
        linear::linear_of_quantised(x, weight, bias)
    }

    fn layer(
        x: FloatTensor<Self>,
        weight: Matrix<Self>,
        bias: Option<FloatTensor<Self>>,
        finish: Finish<Self>,
    ) -> FloatTensor<Self> {
        linear::layer(x, weight, bias, finish)
    }

    fn dequantise(weight: Quantised<Self>, dtype: DType) -> FloatTensor<Self> {
        linear::dequantise(weight, dtype)
    }

    fn gated_sum(x: FloatTensor<Self>, more: FloatTensor<Self>, gate: FloatTensor<Self>) -> FloatTensor<Self> {
        elementwise::gated_sum(x, more, gate)
    }

    fn columns(x: FloatTensor<Self>, first: usize, count: usize) -> FloatTensor<Self> {
        let mut part = generic::columns::<Self>(x, first, count);
        // One row is contiguous, which Burn sees by its strides.
        let mut size = 1;
        for dim in (0..part.meta.shape.len()).rev() {
            if part.meta.shape[dim] != 1 && part.meta.strides[dim] != size {
                break;
            }
            part.meta.strides[dim] = size;
            size *= part.meta.shape[dim];
        }
        part
    }

    /// A view: Burn copies where the rest is no whole number of the device's memory units.
    fn first(mut x: FloatTensor<Self>, dim: usize, count: usize) -> FloatTensor<Self> {
        x.meta.shape[dim] = count;
        x
    }

    fn rotate(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        pairing: Pairing,
    ) -> FloatTensor<Self> {
        elementwise::rotate(x, cos, sin, pairing)
    }

    fn cross_entropy(logits: FloatTensor<Self>, targets: &[i32]) -> FloatTensor<Self> {
        loss::cross_entropy::<R, Self>(logits, targets)
    }
}

impl<R: CubeRuntime, B: BoolElement> Gradients for CubeBackend<R, f32, i32, B> {
    fn activate_backward(kind: Activation, x: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self> {
        elementwise::activate_backward(kind, x, grad)
    }

    fn norm_backward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        eps: f64,
        trained: bool,
    ) -> (FloatTensor<Self>, Option<[FloatTensor<Self>; 2]>) {
        norm::norm_backward(x, weight, grad, eps, trained)
    }

    fn attend_backward(attention: Attention<Self>, grad: FloatTensor<Self>) -> [FloatTensor<Self>; 3] {
        attention::attend_backward(attention, grad)
    }

    fn gated_sum_backward(
        more: FloatTensor<Self>,
        gate: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> [FloatTensor<Self>; 2] {
        elementwise::gated_sum_backward(more, gate, grad)
    }

    fn sum_squares(all: Vec<FloatTensor<Self>>) -> FloatTensor<Self> {
        reduce::sum_squares(all)
    }

    fn linear_bias_gradient(grad: FloatTensor<Self>) -> FloatTensor<Self> {
        reduce::sum_rows(grad)
    }

    fn columns_backward(grad: FloatTensor<Self>, first: usize, width: usize) -> FloatTensor<Self> {
        elementwise::columns_backward(grad, first, width)
    }

    fn cross_entropy_backward(
        logits: FloatTensor<Self>,
        targets: &[i32],
        grad: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        loss::cross_entropy_backward::<R, Self>(logits, targets, grad)
    }

    fn adamw(
        weight: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        first: FloatTensor<Self>,
        second: FloatTensor<Self>,
        step: AdamWStep,
    ) -> [FloatTensor<Self>; 3] {
        elementwise::adamw(weight, gradient, first, second, step)
    }
}

/// Keeps what CUDA's compiler makes of kernels under a folder, so that the next process does not wait for it; what each
/// version of these kernels becomes lies apart. A `cubecl.toml` that names another place is followed. To be called before
/// anything runs on a device, with a folder that can be written and of one kind of device and compiler.
#[cfg(feature = "cuda")]
pub fn keep_compiled(folder: &std::path::Path) {
    use std::hash::{DefaultHasher, Hash, Hasher};
    use std::sync::Arc;

    use cubecl::config::cache::CacheConfig;
    use cubecl::config::{CubeClRuntimeConfig, RuntimeConfig};
    use flamingo_config::{BLOCK, LEVELS};

    // CubeCL knows a kernel by its name and by what it is compiled for, which it knows by number.
    let activations =
        [Activation::Gelu, Activation::GeluTanh, Activation::QuickGelu, Activation::Relu, Activation::Silu];
    let pairings = [Pairing::Halves, Pairing::Neighbours];
    let sources = [
        include_str!("mod.rs"),
        include_str!("attention.rs"),
        include_str!("elementwise.rs"),
        include_str!("linear.rs"),
        include_str!("loss.rs"),
        include_str!("norm.rs"),
        include_str!("reduce.rs"),
        include_str!("softmax.rs"),
    ];
    let mut hasher = DefaultHasher::new();
    sources.hash(&mut hasher);
    (BLOCK, LEVELS).hash(&mut hasher);
    activations.map(|kind| (kind as u8, format!("{kind:?}"))).hash(&mut hasher);
    pairings.map(|kind| (kind as u8, format!("{kind:?}"))).hash(&mut hasher);
    let mut config = CubeClRuntimeConfig::from_current_dir().override_from_env();
    config.compilation.cache.get_or_insert(CacheConfig::File(folder.join(format!("{:016x}", hasher.finish()))));
    CubeClRuntimeConfig::storage().lock().get_or_insert(Arc::new(config));
}

/// A tensor to be written, where `like` is.
fn empty<R: CubeRuntime>(like: &CubeTensor<R>, shape: impl Into<Shape>, dtype: DType) -> CubeTensor<R> {
    empty_device_contiguous_dtype(like.client.clone(), like.device.clone(), shape.into(), dtype)
}

/// The numbers that a unit reads at once: as many as the device can, of which all of `counts` are multiples.
fn vector_size<R: CubeRuntime>(x: &CubeTensor<R>, counts: &[usize]) -> usize {
    let divides = |size: &usize| counts.iter().all(|count| count.is_multiple_of(*size));
    x.client.io_optimized_vector_sizes(x.dtype.size()).find(divides).unwrap_or(1)
}

/// Whether planes are what [`PLANE`] says.
fn has_planes<R: CubeRuntime>(x: &CubeTensor<R>) -> bool {
    let properties = x.client.properties();
    let sizes = [properties.hardware.plane_size_min, properties.hardware.plane_size_max];
    sizes == [PLANE; 2] && x.client.features().plane.contains(cubecl::features::Plane::Ops)
}

/// Rows of equal length that lie a fixed number of numbers apart.
struct Rows<R: CubeRuntime> {
    x: CubeTensor<R>,
    count: usize,
    width: usize,
    stride: usize,
}

impl<R: CubeRuntime> Rows<R> {
    /// All but the last dimension as rows; copied if they lie otherwise.
    fn of(x: CubeTensor<R>) -> Self {
        let (shape, strides) = (x.meta.shape(), x.meta.strides());
        let last = shape.num_dims() - 1;
        let width = shape[last];
        let count = shape.num_elements() / width.max(1);
        // The last dimension of more than one row decides how far they are apart; those before it must follow from it.
        let mut stride = width;
        let (mut rows, mut even) = (1, strides[last] == 1 || width == 1);
        for dim in (0..last).rev().filter(|&dim| shape[dim] > 1) {
            if rows == 1 {
                stride = strides[dim];
            }
            even &= strides[dim] == stride * rows;
            rows *= shape[dim];
        }
        if even && stride >= width {
            return Self { count, width, stride, x };
        }
        Self { count, width, stride: width, x: into_contiguous(x) }
    }
}

/// Two dimensions exchanged, as a view.
fn swapped<R: CubeRuntime>(mut x: CubeTensor<R>, one: usize, other: usize) -> CubeTensor<R> {
    x.meta.swap(one, other);
    x
}

/// Repeated to a shape, as a view.
fn broadcast<R: CubeRuntime, const D: usize>(mut x: CubeTensor<R>, shape: [usize; D]) -> CubeTensor<R> {
    for (dim, size) in shape.into_iter().enumerate() {
        if x.meta.shape[dim] != size {
            x.meta.shape[dim] = size;
            x.meta.strides[dim] = 0;
        }
    }
    x
}

/// Cubes for so many units of work, a unit for each.
fn cubes(work: usize, units: u32) -> CubeCount {
    spread(work.div_ceil(units as usize))
}

/// So many cubes, in two dimensions where one does not hold them. There may be some more.
fn spread(count: usize) -> CubeCount {
    const MOST: usize = 65_535;
    // CUDA takes no launch of none.
    match count.max(1) {
        count @ 1..=MOST => CubeCount::Static(count as u32, 1, 1),
        count => CubeCount::Static(MOST as u32, count.div_ceil(MOST) as u32, 1),
    }
}

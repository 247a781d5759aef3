//! Activations and their gradients.

use burn::tensor::TensorMetadata;
use burn_flex::FlexTensor;
use flamingo_config::Activation;

use super::lanes::{Lanes, Work, run};
use super::{BLOCK, contiguous, filled, fresh, math, values};

const TANH_SCALE: f32 = 0.797_884_6;
const TANH_CUBE: f32 = 0.044_715;

/// An activation. Its functions are inlined into loops whatever their length, or else those would not be vectorised.
trait Curve: Copy + Sync {
    fn at(self, x: f32) -> f32;

    /// The gradient at `x`, times `grad`.
    fn gradient(self, x: f32, grad: f32) -> f32;
}

#[derive(Clone, Copy)]
struct Gelu;

impl Curve for Gelu {
    #[inline(always)]
    fn at(self, x: f32) -> f32 {
        x * math::normal(x).0
    }

    #[inline(always)]
    fn gradient(self, x: f32, grad: f32) -> f32 {
        let (share, density) = math::normal(x);
        grad * (share + x * density)
    }
}

#[derive(Clone, Copy)]
struct GeluTanh;

impl Curve for GeluTanh {
    #[inline(always)]
    fn at(self, x: f32) -> f32 {
        x * 0.5 * (1.0 + math::tanh(tanh_inner(x)))
    }

    #[inline(always)]
    fn gradient(self, x: f32, grad: f32) -> f32 {
        let tanh = math::tanh(tanh_inner(x));
        let inner = TANH_SCALE * (1.0 + 3.0 * TANH_CUBE * x * x);
        grad * (0.5 * (1.0 + tanh) + 0.5 * x * (1.0 - tanh * tanh) * inner)
    }
}

#[inline(always)]
fn tanh_inner(x: f32) -> f32 {
    TANH_SCALE * (x + TANH_CUBE * x * x * x)
}

/// `x sigmoid(a x)`.
#[derive(Clone, Copy)]
struct Sigmoid {
    a: f32,
}

impl Curve for Sigmoid {
    #[inline(always)]
    fn at(self, x: f32) -> f32 {
        x * math::sigmoid(self.a * x)
    }

    #[inline(always)]
    fn gradient(self, x: f32, grad: f32) -> f32 {
        let share = math::sigmoid(self.a * x);
        grad * (share + self.a * x * share * (1.0 - share))
    }
}

#[derive(Clone, Copy)]
struct Relu;

impl Curve for Relu {
    #[inline(always)]
    fn at(self, x: f32) -> f32 {
        // In this order NaN stays NaN.
        if x <= 0.0 { 0.0 } else { x }
    }

    #[inline(always)]
    fn gradient(self, x: f32, grad: f32) -> f32 {
        if x > 0.0 { grad } else { 0.0 }
    }
}

const QUICK_GELU: Sigmoid = Sigmoid { a: 1.702 };
const SILU: Sigmoid = Sigmoid { a: 1.0 };

pub(super) fn activate(kind: Activation, x: FlexTensor) -> FlexTensor {
    match kind {
        Activation::Gelu => map(x, Gelu),
        Activation::GeluTanh => map(x, GeluTanh),
        Activation::QuickGelu => map(x, QUICK_GELU),
        Activation::Relu => map(x, Relu),
        Activation::Silu => map(x, SILU),
    }
}

pub(super) fn activate_backward(kind: Activation, x: FlexTensor, grad: FlexTensor) -> FlexTensor {
    match kind {
        Activation::Gelu => zip(x, grad, Gelu),
        Activation::GeluTanh => zip(x, grad, GeluTanh),
        Activation::QuickGelu => zip(x, grad, QUICK_GELU),
        Activation::Relu => zip(x, grad, Relu),
        Activation::Silu => zip(x, grad, SILU),
    }
}

/// `x + tanh(gate) more`.
pub(super) fn gated_sum(x: FlexTensor, more: FlexTensor, gate: f32) -> FlexTensor {
    let shape = x.shape();
    let (x, more) = (contiguous(x), contiguous(more));
    let (input, more) = (values(&x), values(&more));
    assert_eq!(input.len(), more.len(), "what is added has another size");
    let open = gate.tanh();
    let output = filled(input.len(), BLOCK, |place, output| {
        run(Sum { input: &input[place * BLOCK..], more: &more[place * BLOCK..], open, output });
    });
    fresh(output, shape)
}

struct Sum<'a> {
    input: &'a [f32],
    more: &'a [f32],
    open: f32,
    output: &'a mut [f32],
}

impl Work for Sum<'_> {
    #[inline(always)]
    unsafe fn with<L: Lanes>(self) {
        for (y, (x, more)) in self.output.iter_mut().zip(self.input.iter().zip(self.more)) {
            *y = x + more * self.open;
        }
    }
}

fn map(x: FlexTensor, curve: impl Curve) -> FlexTensor {
    let shape = x.shape();
    let x = contiguous(x);
    let input = values(&x);
    let output = filled(input.len(), BLOCK, |place, output| run(Map { input: &input[place * BLOCK..], output, curve }));
    fresh(output, shape)
}

fn zip(x: FlexTensor, grad: FlexTensor, curve: impl Curve) -> FlexTensor {
    let shape = x.shape();
    let (x, grad) = (contiguous(x), contiguous(grad));
    let (input, grad) = (values(&x), values(&grad));
    assert_eq!(input.len(), grad.len(), "the gradient has another size");
    let output = filled(input.len(), BLOCK, |place, output| {
        let (input, grad) = (&input[place * BLOCK..], &grad[place * BLOCK..]);
        run(Zip { input, grad, output, curve });
    });
    fresh(output, shape)
}

struct Map<'a, C> {
    input: &'a [f32],
    output: &'a mut [f32],
    curve: C,
}

impl<C: Curve> Work for Map<'_, C> {
    #[inline(always)]
    unsafe fn with<L: Lanes>(self) {
        for (y, &x) in self.output.iter_mut().zip(self.input) {
            *y = self.curve.at(x);
        }
    }
}

struct Zip<'a, C> {
    input: &'a [f32],
    grad: &'a [f32],
    output: &'a mut [f32],
    curve: C,
}

impl<C: Curve> Work for Zip<'_, C> {
    #[inline(always)]
    unsafe fn with<L: Lanes>(self) {
        for (y, (&x, &grad)) in self.output.iter_mut().zip(self.input.iter().zip(self.grad)) {
            *y = self.curve.gradient(x, grad);
        }
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::super::stored::tests::{gain, number, run_as};
    use super::*;

    fn is_vectorised(name: &str, curve: impl Curve) {
        let (input, grad): (Vec<f32>, Vec<f32>) = (0..4096).map(|i| (number(i), number(i + 99))).unzip();
        let mut output = vec![0.0; 4096];
        let forward = gain(|way| run_as(way, Map { input: &input, output: &mut output, curve }));
        let backward = gain(|way| run_as(way, Zip { input: &input, grad: &grad, output: &mut output, curve }));
        for gain in [forward, backward].into_iter().flatten() {
            assert!(gain > 1.3, "{name} is {gain:.2} times as fast with registers twice as wide");
        }
    }

    #[test]
    fn activations_are_vectorised() {
        is_vectorised("GELU", Gelu);
        is_vectorised("QuickGELU", QUICK_GELU);
        is_vectorised("the GELU of tanh", GeluTanh);
    }
}

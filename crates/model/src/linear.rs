//! Linear layers with PyTorch's weight layout, and the feed-forward network of upstream's helpers.

use burn::module::{Initializer, Module, Param};
use burn::tensor::{Tensor, backend::Backend};
use flamingo_config::Activation;
use flamingo_kernels::{Finish, Kernels, primitive};

use crate::norm::Norm;
use crate::weight::{Init, Weight};

/// `y = x Wᵀ + b`.
///
/// The weight is `[d_out, d_in]`, as in PyTorch: checkpoints are copied without a transposition, and a
/// row of the weight is contiguous for the dot product that a single decoded token needs.
#[derive(Module, Debug)]
pub struct Linear<B: Backend> {
    /// `[d_out, d_in]`.
    pub weight: Weight<B>,
    /// `[d_out]`.
    pub bias: Option<Param<Tensor<B, 1>>>,
}

impl<B: Backend> Linear<B> {
    /// A layer initialised as PyTorch initialises `nn.Linear`: uniform in `±1/sqrt(d_in)`.
    pub fn new(d_in: usize, d_out: usize, bias: bool, init: &Init<B>) -> Self {
        let uniform = Initializer::KaimingUniform { gain: 1.0 / 3f64.sqrt(), fan_out_only: false };
        let plain = |size: [usize; 2], device: &B::Device| uniform.init_with(size, Some(d_in), Some(d_out), device);
        Self {
            weight: Weight::new([d_out, d_in], init, plain),
            bias: bias.then(|| uniform.init_with([d_out], Some(d_in), Some(d_out), &init.device)),
        }
    }
}

impl<B: Kernels> Linear<B> {
    /// `[..., d_in]` to `[..., d_out]`, in the dtype of `x`.
    pub fn forward<const D: usize>(&self, x: Tensor<B, D>) -> Tensor<B, D> {
        self.finished(x, Finish::Plain)
    }

    /// An activation of the outputs.
    pub(crate) fn activated<const D: usize>(&self, x: Tensor<B, D>, kind: Activation) -> Tensor<B, D> {
        self.finished(x, Finish::Activated(kind))
    }

    /// The outputs, added to `to`, `[..., d_out]`.
    pub(crate) fn added<const D: usize>(&self, x: Tensor<B, D>, to: Tensor<B, D>) -> Tensor<B, D> {
        self.finished(x, Finish::Added(primitive(rows(to))))
    }

    /// The outputs times `tanh(gate)`, added to `to`.
    pub(crate) fn gated<const D: usize>(&self, x: Tensor<B, D>, to: Tensor<B, D>, gate: Tensor<B, 1>) -> Tensor<B, D> {
        self.finished(x, Finish::Gated { x: primitive(rows(to)), gate: primitive(gate) })
    }

    fn finished<const D: usize>(&self, x: Tensor<B, D>, finish: Finish<B>) -> Tensor<B, D> {
        let mut dims = x.dims();
        let bias = self.bias.as_ref().map(Param::val);
        let y = self.weight.linear(rows(x), bias, finish);
        dims[D - 1] = y.dims()[1];
        y.reshape(dims)
    }
}

/// All but the last dimension as rows. One matrix product whatever the rank: backends split batched products by their
/// leading dimensions, which is slower than one tall product.
fn rows<B: Backend, const D: usize>(x: Tensor<B, D>) -> Tensor<B, 2> {
    let dims = x.dims();
    let width = dims[D - 1];
    x.reshape([dims.iter().product::<usize>() / width.max(1), width])
}

/// Layer norm, linear, exact GELU, linear, without biases (`src/helpers.py`, `FeedForward`).
#[derive(Module, Debug)]
pub struct FeedForward<B: Backend> {
    /// Norm of the input.
    pub norm: Norm<B>,
    /// `[dim * mult, dim]`.
    pub up: Linear<B>,
    /// `[dim, dim * mult]`.
    pub down: Linear<B>,
}

impl<B: Kernels> FeedForward<B> {
    /// A network of width `dim` with a hidden layer of `dim * mult`.
    pub fn new(dim: usize, mult: usize, init: &Init<B>) -> Self {
        Self {
            norm: Norm::layer(dim, true, 1e-5, &init.device),
            up: Linear::new(dim, dim * mult, false, init),
            down: Linear::new(dim * mult, dim, false, init),
        }
    }

    /// `x` and what the network makes of it, `[batch, tokens, dim]`.
    pub fn added(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        self.down.added(self.hidden(x.clone()), x)
    }

    /// The same with the network's part times `tanh(gate)`.
    pub fn gated(&self, x: Tensor<B, 3>, gate: Tensor<B, 1>) -> Tensor<B, 3> {
        self.down.gated(self.hidden(x.clone()), x, gate)
    }

    fn hidden(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        self.up.activated(self.norm.forward(x), Activation::Gelu)
    }
}

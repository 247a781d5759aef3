//! Linear layers with PyTorch's weight layout, and the feed-forward network of upstream's helpers.

use burn::module::{Initializer, Module, Param};
use burn::tensor::{Tensor, backend::Backend};
use flamingo_config::Activation;
use flamingo_kernels::{Kernels, activate};

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
        let plain = |device: &B::Device| uniform.init_with([d_out, d_in], Some(d_in), Some(d_out), device);
        Self {
            weight: Weight::new([d_out, d_in], init, plain),
            bias: bias.then(|| uniform.init_with([d_out], Some(d_in), Some(d_out), &init.device)),
        }
    }
}

impl<B: Kernels> Linear<B> {
    /// `[..., d_in]` to `[..., d_out]`, in the dtype of `x`.
    pub fn forward<const D: usize>(&self, x: Tensor<B, D>) -> Tensor<B, D> {
        // One matrix product whatever the rank: backends split batched products by their leading
        // dimensions, which is slower than one tall product.
        let mut dims = x.dims();
        let d_in = dims[D - 1];
        let rows = dims.iter().product::<usize>() / d_in.max(1);
        let bias = self.bias.as_ref().map(Param::val);
        let y = self.weight.linear(x.reshape([rows, d_in]), bias);
        dims[D - 1] = y.dims()[1];
        y.reshape(dims)
    }
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

    /// `[batch, tokens, dim]` to the same shape; the residual is the caller's.
    pub fn forward(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        let hidden = activate(Activation::Gelu, self.up.forward(self.norm.forward(x)));
        self.down.forward(hidden)
    }
}

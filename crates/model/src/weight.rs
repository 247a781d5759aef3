//! A matrix of weights, plain or quantised.

use burn::module::{Initializer, Module, Param, ParamId};
use burn::tensor::{DType, Distribution, Int, IntDType, Tensor, backend::Backend};
use flamingo_config::{BLOCK, Scheme};
use flamingo_kernels::{Finish, Kernels, Matrix, Quantised, dequantise, layer, primitive};

/// Where a module's weights are made, and in what.
#[derive(Clone, Debug)]
pub struct Init<B: Backend> {
    /// The device.
    pub device: B::Device,
    /// How matrices are quantised, if they are.
    pub scheme: Option<Scheme>,
}

impl<B: Backend> Init<B> {
    /// Plain numbers.
    pub fn plain(device: &B::Device) -> Self {
        Self { device: device.clone(), scheme: None }
    }
}

/// A matrix `[rows, columns]`. Which it is does not show in the names of parameters but for what is behind them:
/// `weight`, or `weight.codes` and `weight.scales`.
#[derive(Module, Debug)]
pub enum Weight<B: Backend> {
    /// Numbers.
    Plain(Param<Tensor<B, 2>>),
    /// Codes and scales.
    Quantised(QuantisedWeight<B>),
}

/// A matrix in the layout of [`Scheme`].
#[derive(Module, Debug)]
pub struct QuantisedWeight<B: Backend> {
    /// `[rows, columns / BLOCK · words]`, 32 bits each.
    pub codes: Param<Tensor<B, 2, Int>>,
    /// `[rows, columns / BLOCK]`.
    pub scales: Param<Tensor<B, 2>>,
}

impl<B: Backend> QuantisedWeight<B> {
    /// Random codes under scales that make numbers of about 0.02.
    fn new([rows, columns]: [usize; 2], scheme: Scheme, device: &B::Device) -> Self {
        let shape = [rows, scheme.row_words(columns)];
        let codes = move |device: &B::Device, _| {
            let any = Distribution::Uniform(f64::from(i32::MIN), f64::from(i32::MAX));
            Tensor::<B, 2, Int>::random(shape, any, device).cast(IntDType::I32)
        };
        Self {
            codes: Param::uninitialized(ParamId::new(), codes, device.clone(), false, shape.into()),
            scales: Initializer::Constant { value: 0.04 }.init([rows, columns / BLOCK], device),
        }
    }

    fn scheme(&self) -> Scheme {
        let ([_, words], [_, blocks]) = (self.codes.lazy_shape().dims(), self.scales.lazy_shape().dims());
        if words == blocks * Scheme::Q4.words() { Scheme::Q4 } else { Scheme::Q8 }
    }
}

impl<B: Backend> Weight<B> {
    /// Random numbers; quantised if `init` says so and rows are whole blocks.
    pub(crate) fn new(size: [usize; 2], init: &Init<B>, plain: impl FnOnce(&B::Device) -> Param<Tensor<B, 2>>) -> Self {
        match init.scheme {
            Some(scheme) if size[1].is_multiple_of(BLOCK) => {
                Self::Quantised(QuantisedWeight::new(size, scheme, &init.device))
            }
            _ => Self::Plain(plain(&init.device)),
        }
    }

    /// Rows and columns.
    pub fn dims(&self) -> [usize; 2] {
        match self {
            Self::Plain(weight) => weight.lazy_shape().dims(),
            Self::Quantised(weight) => {
                let [rows, blocks] = weight.scales.lazy_shape().dims();
                [rows, blocks * BLOCK]
            }
        }
    }
}

impl<B: Kernels> Weight<B> {
    /// Rows by their numbers, `[index.len(), columns]`: in the format of a plain weight, in f32 of a quantised one.
    pub fn rows(&self, index: &[i32]) -> Tensor<B, 2> {
        match self {
            Self::Plain(weight) => {
                let weight = weight.val();
                let index = Tensor::from_ints(index, &weight.device());
                weight.select(0, index)
            }
            Self::Quantised(weight) => {
                let (codes, scales) = (weight.codes.val(), weight.scales.val());
                let index = Tensor::<B, 1, Int>::from_ints(index, &scales.device());
                let (codes, scales) = (codes.select(0, index.clone()), scales.select(0, index));
                dequantise(weight.scheme(), codes, scales, DType::F32)
            }
        }
    }

    /// `x Wᵀ + b` and what becomes of it: `[n, columns]` to `[n, rows]`, in the format of `x`.
    pub fn linear(&self, x: Tensor<B, 2>, bias: Option<Tensor<B, 1>>, finish: Finish<B>) -> Tensor<B, 2> {
        let matrix = match self {
            Self::Plain(weight) => Matrix::Plain(primitive(weight.val())),
            Self::Quantised(weight) => Matrix::Quantised(Quantised {
                scheme: weight.scheme(),
                codes: weight.codes.val().into_primitive(),
                scales: primitive(weight.scales.val()),
            }),
        };
        layer(x, matrix, bias, finish)
    }
}

/// The name of the parameter that a visitor of a module is at.
#[derive(Clone, Debug, Default)]
pub struct Path(Vec<String>);

impl Path {
    /// To be called from `enter_module`. The variant of an enum is no part of a name.
    pub fn enter(&mut self, name: &str, container: &str) {
        if !container.starts_with("Enum:") {
            self.0.push(name.to_string());
        }
    }

    /// To be called from `exit_module`.
    pub fn exit(&mut self, container: &str) {
        if !container.starts_with("Enum:") {
            self.0.pop();
        }
    }

    /// The name, `decoder.blocks.0.attention.qkv.weight`.
    pub fn name(&self) -> String {
        self.0.join(".")
    }
}

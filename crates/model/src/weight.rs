//! A matrix of weights, plain or quantised.

use burn::module::{Initializer, Module, Param, ParamId};
use burn::tensor::{DType, Distribution, Int, IntDType, Tensor, backend::Backend};
use flamingo_config::{BLOCK, Scheme};
use flamingo_kernels::{Finish, Kernels, Matrix, Quantised, dequantise, finished, layer, primitive};

/// Where a module's weights are made, and in what.
#[derive(Clone, Debug)]
pub struct Init<B: Backend> {
    /// The device.
    pub device: B::Device,
    /// How matrices are quantised, if they are.
    pub scheme: Option<Scheme>,
    /// Words of 32 bits that a buffer of the device holds at most; a matrix of more is split by its rows.
    pub words: usize,
}

impl<B: Backend> Init<B> {
    /// Plain numbers, in buffers of any size.
    pub fn plain(device: &B::Device) -> Self {
        Self { device: device.clone(), scheme: None, words: usize::MAX }
    }

    /// For a part of a model, by its name.
    pub(crate) fn of(&self, part: &str) -> Self {
        Self { scheme: self.scheme.and_then(|scheme| scheme.of(part)), ..self.clone() }
    }
}

/// A matrix `[rows, columns]`. How it is kept does not show in the names of parameters but for what is behind them:
/// `weight`, or `weight.codes` and `weight.scales`, of a split one `weight.0` and so on.
#[cfg_attr(target_pointer_width = "64", expect(clippy::large_enum_variant, reason = "almost all are whole"))]
#[derive(Module, Debug)]
pub enum Weight<B: Backend> {
    /// In one piece.
    Whole(Piece<B>),
    /// By its rows, as no buffer of the device holds all of it.
    Split(Vec<Piece<B>>),
}

/// Some rows of a matrix, plain or quantised.
#[derive(Module, Debug)]
pub enum Piece<B: Backend> {
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
    pub(crate) fn new(
        [rows, columns]: [usize; 2],
        init: &Init<B>,
        plain: impl Fn([usize; 2], &B::Device) -> Param<Tensor<B, 2>>,
    ) -> Self {
        let scheme = init.scheme.filter(|_| columns.is_multiple_of(BLOCK));
        let piece = |rows: usize| match scheme {
            Some(scheme) => Piece::Quantised(QuantisedWeight::new([rows, columns], scheme, &init.device)),
            None => Piece::Plain(plain([rows, columns], &init.device)),
        };
        // Quantised ones, too, by their numbers: for many rows of inputs backends unpack them into a buffer of f32.
        let pieces = rows.div_ceil((init.words / columns.max(1)).max(1));
        if pieces <= 1 {
            return Self::Whole(piece(rows));
        }
        let each = rows.div_ceil(pieces);
        Self::Split((0..rows).step_by(each).map(|first| piece(each.min(rows - first))).collect())
    }

    /// Rows and columns.
    pub fn dims(&self) -> [usize; 2] {
        match self {
            Self::Whole(piece) => piece.dims(),
            Self::Split(pieces) => {
                let columns = pieces.first().map_or(0, |piece| piece.dims()[1]);
                [pieces.iter().map(|piece| piece.dims()[0]).sum(), columns]
            }
        }
    }
}

impl<B: Kernels> Weight<B> {
    /// Rows by their numbers, `[index.len(), columns]`: in the format of a plain weight, in f32 of a quantised one.
    pub fn rows(&self, index: &[i32]) -> Tensor<B, 2> {
        let pieces = match self {
            Self::Whole(piece) => return piece.rows(index),
            Self::Split(pieces) => pieces,
        };
        // Those of each piece, then all in the order that was asked for.
        let (mut found, mut places, mut count, mut first) = (Vec::new(), vec![0; index.len()], 0, 0);
        for piece in pieces {
            let end = first + piece.dims()[0] as i32;
            let here: Vec<usize> = (0..index.len()).filter(|&i| (first..end).contains(&index[i])).collect();
            if !here.is_empty() {
                found.push(piece.rows(&here.iter().map(|&i| index[i] - first).collect::<Vec<_>>()));
            }
            for i in here {
                places[i] = count;
                count += 1;
            }
            first = end;
        }
        assert_eq!(count, index.len() as i32, "a row outside the matrix");
        match found.first() {
            None => pieces[0].rows(&[]),
            Some(rows) => {
                let places = Tensor::from_ints(places.as_slice(), &rows.device());
                Tensor::cat(found, 0).select(0, places)
            }
        }
    }

    /// `x Wᵀ + b` and what becomes of it: `[n, columns]` to `[n, rows]`, in the format of `x`.
    pub fn linear(&self, x: Tensor<B, 2>, bias: Option<Tensor<B, 1>>, finish: Finish<B>) -> Tensor<B, 2> {
        let pieces = match self {
            Self::Whole(piece) => return piece.linear(x, bias, finish),
            Self::Split(pieces) => pieces,
        };
        let mut first = 0;
        let outputs = pieces.iter().map(|piece| {
            let rows = piece.dims()[0];
            let bias = bias.clone().map(|bias| bias.narrow(0, first, rows));
            first += rows;
            piece.linear(x.clone(), bias, Finish::Plain)
        });
        finished(Tensor::cat(outputs.collect(), 1), finish)
    }
}

impl<B: Backend> Piece<B> {
    fn dims(&self) -> [usize; 2] {
        match self {
            Self::Plain(weight) => weight.lazy_shape().dims(),
            Self::Quantised(weight) => {
                let [rows, blocks] = weight.scales.lazy_shape().dims();
                [rows, blocks * BLOCK]
            }
        }
    }
}

impl<B: Kernels> Piece<B> {
    fn rows(&self, index: &[i32]) -> Tensor<B, 2> {
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

    fn linear(&self, x: Tensor<B, 2>, bias: Option<Tensor<B, 1>>, finish: Finish<B>) -> Tensor<B, 2> {
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

#[cfg(test)]
mod tests {
    use burn::tensor::TensorData;
    use burn_flex::{Flex, FlexDevice};
    use flamingo_config::Activation;

    use super::*;

    const ROWS: usize = 10;
    const COLUMNS: usize = 2 * BLOCK;

    /// The same numbers, each its own, in buffers of some size.
    fn weight(scheme: Option<Scheme>, words: usize) -> Weight<Flex> {
        let init = Init { device: FlexDevice, scheme, words };
        let mut first = 0;
        let weight = Weight::new([ROWS, COLUMNS], &init, |size, device| Initializer::Zeros.init(size, device));
        let mut filled = |piece: Piece<Flex>| {
            let [rows, _] = piece.dims();
            let numbers = |count: usize| (first * count..(first + rows) * count).map(|i| (i * 7919 % 2003) as i32);
            let piece = match piece {
                Piece::Plain(_) => {
                    let data: Vec<f32> = numbers(COLUMNS).map(|i| i as f32 / 2003.0).collect();
                    Piece::Plain(Param::from_data(TensorData::new(data, [rows, COLUMNS]), &FlexDevice))
                }
                Piece::Quantised(weight) => {
                    let words = weight.codes.lazy_shape().dims::<2>()[1];
                    let codes: Vec<i32> = numbers(words).map(|i| i * 1_000_003).collect();
                    let scales: Vec<f32> = numbers(2).map(|i| i as f32 / 2003.0).collect();
                    let codes = Tensor::from_data(TensorData::new(codes, [rows, words]), &FlexDevice);
                    let scales = Tensor::from_data(TensorData::new(scales, [rows, 2]), (&FlexDevice, DType::F16));
                    Piece::Quantised(QuantisedWeight {
                        codes: Param::initialized(ParamId::new(), codes),
                        scales: Param::initialized(ParamId::new(), scales),
                    })
                }
            };
            first += rows;
            piece
        };
        match weight {
            Weight::Whole(piece) => Weight::Whole(filled(piece)),
            Weight::Split(pieces) => Weight::Split(pieces.into_iter().map(filled).collect()),
        }
    }

    fn numbers<const D: usize>(x: Tensor<Flex, D>) -> Vec<f32> {
        x.into_data().to_vec().expect("f32")
    }

    #[test]
    fn pieces_are_no_larger_than_a_buffer() {
        for (words, wanted) in [(640, vec![10]), (639, vec![5, 5]), (4 * 64, vec![4, 4, 2]), (1, vec![1; 10])] {
            let found: Vec<usize> = match weight(None, words) {
                Weight::Whole(piece) => vec![piece.dims()[0]],
                Weight::Split(pieces) => pieces.iter().map(|piece| piece.dims()[0]).collect(),
            };
            assert_eq!(found, wanted, "{words} words");
        }
    }

    #[test]
    fn a_split_matrix_is_the_whole_one() {
        for scheme in [None, Some(Scheme::Q8), Some(Scheme::Q4)] {
            let whole = weight(scheme, usize::MAX);
            let split = weight(scheme, 4 * COLUMNS);
            assert!(matches!(&split, Weight::Split(pieces) if pieces.len() == 3));
            assert_eq!(split.dims(), [ROWS, COLUMNS]);
            for index in [&[9, 0, 3, 4, 4, 8][..], &[5], &[]] {
                assert_eq!(numbers(split.rows(index)), numbers(whole.rows(index)), "{index:?}");
            }
            let x = weight(None, usize::MAX).rows(&[1, 7, 2]);
            let bias = Tensor::from_floats([0.5, -1.0, 2.0, 0.0, 1.0, 3.0, -2.0, 0.25, 4.0, 5.0], &FlexDevice);
            let (to, gate) = (x.clone().narrow(1, 0, ROWS), Tensor::<Flex, 1>::from_floats([0.7], &FlexDevice));
            let finish = |which: usize| match which {
                0 => Finish::Plain,
                1 => Finish::Activated(Activation::Gelu),
                2 => Finish::Added(primitive(to.clone())),
                _ => Finish::Gated { x: primitive(to.clone()), gate: primitive(gate.clone()) },
            };
            for which in 0..4 {
                let outputs =
                    |weight: &Weight<Flex>| numbers(weight.linear(x.clone(), Some(bias.clone()), finish(which)));
                assert_eq!(outputs(&split), outputs(&whole), "finish {which}");
            }
        }
    }
}

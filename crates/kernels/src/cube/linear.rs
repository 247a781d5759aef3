//! Linear layers. Few rows are bound by how fast weights are read, in whatever format they are: they are unpacked in
//! registers. Many rows are a product, before which what is packed is unpacked.

use burn::tensor::{DType, TensorMetadata};
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::kernel::{cast, into_contiguous};
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, cubecl};
use flamingo_config::{Activation, BLOCK, LEVELS, Scheme};

use super::elementwise::activated;
use super::product::product;
use super::reduce::of_vector;
use super::{PLANE, Rows, cubes, empty, has_planes, spread, swapped, vector_size};
use crate::{Finish, Matrix, Quantised, generic};

/// Rows up to which the weights are read once for all of them.
const FEW: usize = 16;

/// More rows than these leave a unit no registers for the longest vectors of all. Up to them a row is added up alike.
pub(super) const SEVERAL: usize = 8;

/// Outputs of a cube: one for each of its planes.
const OUTPUTS: u32 = 8;

/// Numbers of the input that are read at once beside packed weights.
const LANES: usize = 4;

/// Adds up over the units with the same y; their first has the sum. `shared` has a place for each unit.
#[cube]
fn of_plane(value: f32, shared: &mut SharedMemory<f32>, #[comptime] planes: bool) -> f32 {
    if planes {
        plane_sum(value)
    } else {
        let unit = UNIT_POS as usize;
        sync_cube();
        shared[unit] = value;
        sync_cube();
        #[unroll]
        for step in 0..comptime!(PLANE.trailing_zeros()) {
            let half = comptime!(PLANE >> (step + 1));
            if UNIT_POS_X < half {
                shared[unit] += shared[unit + comptime!(half as usize)];
            }
            sync_cube();
        }
        shared[unit]
    }
}

/// [`Finish`], its tensors aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Last {
    Plain,
    Activated(Activation),
    Added,
    Gated,
}

/// Writes an output of all rows: the sum, the bias added to it, finished.
#[cube]
fn finish<X: Float, G: Float>(
    sums: &Array<f32>,
    bias: &Array<X>,
    to: &Array<X>,
    gate: &Array<G>,
    y: &mut Array<X>,
    output: u32,
    outputs: u32,
    #[comptime] rows: u32,
    #[comptime] has_bias: bool,
    #[comptime] last: Last,
    #[comptime] planes: bool,
) {
    let mut shared = SharedMemory::<f32>::new(comptime!((PLANE * OUTPUTS) as usize));
    #[unroll]
    for row in 0..rows {
        let mut sum = of_plane(sums[row as usize], &mut shared, planes);
        if UNIT_POS_X == 0 && output < outputs {
            let at = row as usize * outputs as usize + output as usize;
            if has_bias {
                sum += f32::cast_from(bias[output as usize]);
            }
            match last {
                Last::Plain => {}
                Last::Activated(kind) => {
                    let size!(One) = 1usize;
                    sum = activated::<One>(Vector::<f32, One>::new(sum), kind)[0];
                }
                Last::Added => {
                    sum += f32::cast_from(to[at]);
                }
                Last::Gated => {
                    sum = f32::cast_from(to[at]) + f32::cast_from(gate[0]).tanh() * sum;
                }
            }
            y[at] = X::cast_from(sum);
        }
    }
}

/// A plane for each output; lengths count vectors.
#[cube(launch_unchecked)]
fn few_kernel<X: Float, W: Float, G: Float, N: Size>(
    x: &Array<Vector<X, N>>,
    weight: &Array<Vector<W, N>>,
    bias: &Array<X>,
    to: &Array<X>,
    gate: &Array<G>,
    y: &mut Array<X>,
    width: u32,
    stride: u32,
    outputs: u32,
    #[comptime] rows: u32,
    #[comptime] has_bias: bool,
    #[comptime] last: Last,
    #[comptime] planes: bool,
    #[define(X, W, G)] _dtypes: [StorageType; 3],
) {
    let output = CUBE_POS as u32 * OUTPUTS + UNIT_POS_Y;
    let mut sums = Array::<f32>::new(comptime!(rows as usize));
    #[unroll]
    for row in 0..rows {
        sums[row as usize] = 0f32;
    }
    if output < outputs {
        let mut terms = Array::<Vector<f32, N>>::new(comptime!(rows as usize));
        #[unroll]
        for row in 0..rows {
            terms[row as usize] = Vector::new(0f32);
        }
        let start = output as usize * stride as usize;
        let mut i = UNIT_POS_X;
        while i < width {
            let numbers = Vector::<f32, N>::cast_from(weight[start + i as usize]);
            #[unroll]
            for row in 0..rows {
                let input = Vector::<f32, N>::cast_from(x[row as usize * width as usize + i as usize]);
                terms[row as usize] += numbers * input;
            }
            i += PLANE;
        }
        #[unroll]
        for row in 0..rows {
            sums[row as usize] = of_vector::<N>(terms[row as usize]);
        }
    }
    finish::<X, G>(&sums, bias, to, gate, y, output, outputs, rows, has_bias, last, planes);
}

/// The value in 128ths of byte `i` of a word.
#[cube]
fn byte(word: i32, #[comptime] i: u32) -> f32 {
    f32::cast_from((word << comptime!((24 - 8 * i) as i32)) >> 24)
}

/// The place in [`LEVELS`] of half a byte of a word.
#[cube]
fn nibble(word: i32, #[comptime] i: u32) -> usize {
    ((word >> comptime!((4 * i) as i32)) & 15) as usize
}

/// [`LEVELS`] where a lookup costs little.
#[cube]
fn levels() -> SharedMemory<f32> {
    let mut table = SharedMemory::<f32>::new(16usize);
    #[unroll]
    for i in 0..16u32 {
        if UNIT_POS == i {
            table[i as usize] = comptime!(f32::from(LEVELS[i as usize])).runtime();
        }
    }
    sync_cube();
    table
}

/// A plane for each output, a unit for each four words: half a block of eight bits, a block of four.
#[cube(launch_unchecked)]
fn few_packed_kernel<X: Float, S: Float, G: Float, N: Size>(
    x: &Array<Vector<X, N>>,
    codes: &Array<Vector<i32, N>>,
    scales: &Array<S>,
    bias: &Array<X>,
    to: &Array<X>,
    gate: &Array<G>,
    y: &mut Array<X>,
    blocks: u32,
    codes_stride: u32,
    scales_stride: u32,
    outputs: u32,
    #[comptime] rows: u32,
    #[comptime] four_bits: bool,
    #[comptime] has_bias: bool,
    #[comptime] last: Last,
    #[comptime] planes: bool,
    #[define(X, S, G)] _dtypes: [StorageType; 3],
) {
    let output = CUBE_POS as u32 * OUTPUTS + UNIT_POS_Y;
    let table = levels();
    let mut sums = Array::<f32>::new(comptime!(rows as usize));
    #[unroll]
    for row in 0..rows {
        sums[row as usize] = 0f32;
    }
    let blocks = blocks as usize;
    // Vectors of codes and of numbers in a block.
    let parts = comptime!(if four_bits { 1usize } else { 2usize });
    let of_block = comptime!(BLOCK / LANES);
    if output < outputs {
        let start = output as usize * codes_stride as usize;
        let scales_start = output as usize * scales_stride as usize;
        let mut i = UNIT_POS_X as usize;
        while i < blocks * parts {
            let words = codes[start + i];
            let scale = f32::cast_from(scales[scales_start + i / parts]) * comptime!(1f32 / 128f32);
            let first = i * comptime!(of_block / parts);
            #[unroll]
            for row in 0..rows {
                let at = row as usize * blocks * of_block + first;
                let mut terms = Vector::<f32, N>::new(0f32);
                #[unroll]
                for word in 0..4usize {
                    let code = words[word];
                    let low = Vector::<f32, N>::cast_from(x[at + word]);
                    if four_bits {
                        let high = Vector::<f32, N>::cast_from(x[at + comptime!(word + 4)]);
                        #[unroll]
                        for lane in 0..4usize {
                            terms[lane] += low[lane] * table[nibble(code, comptime!(2 * lane as u32))]
                                + high[lane] * table[nibble(code, comptime!(2 * lane as u32 + 1))];
                        }
                    } else {
                        #[unroll]
                        for lane in 0..4usize {
                            terms[lane] += low[lane] * byte(code, comptime!(lane as u32));
                        }
                    }
                }
                sums[row as usize] += of_vector::<N>(terms) * scale;
            }
            i += comptime!(PLANE as usize);
        }
    }
    finish::<X, G>(&sums, bias, to, gate, y, output, outputs, rows, has_bias, last, planes);
}

/// A unit for each word.
#[cube(launch_unchecked)]
fn unpack_kernel<X: Float, S: Float, N: Size>(
    codes: &Array<i32>,
    scales: &Array<S>,
    numbers: &mut Array<Vector<X, N>>,
    words: u32,
    row_words: u32,
    codes_stride: u32,
    scales_stride: u32,
    #[comptime] four_bits: bool,
    #[define(X, S)] _dtypes: [StorageType; 2],
) {
    let table = levels();
    if ABSOLUTE_POS >= words as usize {
        terminate!();
    }
    let of_block = comptime!(if four_bits { 4usize } else { 8usize });
    let block = ABSOLUTE_POS / of_block;
    let row = ABSOLUTE_POS / row_words as usize;
    let column = ABSOLUTE_POS % row_words as usize;
    let scale = f32::cast_from(scales[row * scales_stride as usize + column / of_block]) * comptime!(1f32 / 128f32);
    let code = codes[row * codes_stride as usize + column];
    let at = block * comptime!(BLOCK / LANES) + ABSOLUTE_POS % of_block;
    let mut low = Vector::<f32, N>::new(0f32);
    let mut high = Vector::<f32, N>::new(0f32);
    #[unroll]
    for lane in 0..4usize {
        if four_bits {
            low[lane] = table[nibble(code, comptime!(2 * lane as u32))] * scale;
            high[lane] = table[nibble(code, comptime!(2 * lane as u32 + 1))] * scale;
        } else {
            low[lane] = byte(code, comptime!(lane as u32)) * scale;
        }
    }
    numbers[at] = Vector::cast_from(low);
    if four_bits {
        numbers[at + 4] = Vector::cast_from(high);
    }
}

/// What a kernel of few rows needs to finish an output; what is not there is not read.
struct Ending<R: CubeRuntime> {
    bias: CubeTensor<R>,
    to: CubeTensor<R>,
    gate: CubeTensor<R>,
    has_bias: bool,
    last: Last,
}

impl<R: CubeRuntime> Ending<R> {
    fn new<B: BoolElement>(
        x: &CubeTensor<R>,
        bias: Option<CubeTensor<R>>,
        finish: Finish<CubeBackend<R, f32, i32, B>>,
    ) -> Self {
        let has_bias = bias.is_some();
        let none = || x.clone();
        let alike =
            |other: &CubeTensor<R>| assert_eq!(other.dtype, x.dtype, "one format for inputs, biases and residuals");
        bias.iter().for_each(alike);
        if let Finish::Added(to) | Finish::Gated { x: to, .. } = &finish {
            alike(to);
        }
        let (to, gate, last) = match finish {
            Finish::Plain => (none(), none(), Last::Plain),
            Finish::Activated(kind) => (none(), none(), Last::Activated(kind)),
            Finish::Added(to) => (into_contiguous(to), none(), Last::Added),
            Finish::Gated { x, gate } => (into_contiguous(x), gate, Last::Gated),
        };
        Self { bias: bias.unwrap_or_else(none), to, gate, has_bias, last }
    }
}

fn few<R: CubeRuntime, B: BoolElement>(
    x: CubeTensor<R>,
    weight: CubeTensor<R>,
    bias: Option<CubeTensor<R>>,
    finish: Finish<CubeBackend<R, f32, i32, B>>,
) -> CubeTensor<R> {
    let [rows, width] = x.meta.shape().dims();
    // CUDA pads rows of most widths.
    let (x, Rows { x: weight, count: outputs, stride, .. }) = (into_contiguous(x), Rows::of(weight));
    let y = empty(&x, [rows, outputs], x.dtype);
    if rows * outputs == 0 {
        return y;
    }
    let mut size = vector_size(&x, &[width]).min(vector_size(&weight, &[width, stride]));
    if rows > SEVERAL {
        size = size.min(LANES);
    }
    let Ending { bias, to, gate, has_bias, last } = Ending::new(&x, bias, finish);
    let (planes, dtypes) = (has_planes(&x), [x.dtype.into(), weight.dtype.into(), gate.dtype.into()]);
    // SAFETY: units stay within rows; planes beyond the outputs read and write nothing.
    unsafe {
        few_kernel::launch_unchecked::<R>(
            &y.client,
            spread(outputs.div_ceil(OUTPUTS as usize)),
            CubeDim::new_2d(PLANE, OUTPUTS),
            size,
            x.into_array_arg(),
            weight.into_array_arg(),
            bias.into_array_arg(),
            to.into_array_arg(),
            gate.into_array_arg(),
            y.clone().into_array_arg(),
            (width / size) as u32,
            (stride / size) as u32,
            outputs as u32,
            rows as u32,
            has_bias,
            last,
            planes,
            dtypes,
        );
    }
    y
}

fn few_packed<R: CubeRuntime, B: BoolElement>(
    x: CubeTensor<R>,
    weight: Quantised<CubeBackend<R, f32, i32, B>>,
    bias: Option<CubeTensor<R>>,
    finish: Finish<CubeBackend<R, f32, i32, B>>,
) -> CubeTensor<R> {
    let Quantised { scheme, codes, scales } = weight;
    let rows = x.meta.shape()[0];
    let Rows { x: scales, count: outputs, width: blocks, stride: scales_stride } = Rows::of(scales);
    let (x, (codes, codes_stride)) = (into_contiguous(x), codes_of(codes));
    let y = empty(&x, [rows, outputs], x.dtype);
    if rows * outputs == 0 {
        return y;
    }
    let Ending { bias, to, gate, has_bias, last } = Ending::new(&x, bias, finish);
    let (planes, dtypes) = (has_planes(&x), [x.dtype.into(), scales.dtype.into(), gate.dtype.into()]);
    // SAFETY: units stay within rows; planes beyond the outputs read and write nothing.
    unsafe {
        few_packed_kernel::launch_unchecked::<R>(
            &y.client,
            spread(outputs.div_ceil(OUTPUTS as usize)),
            CubeDim::new_2d(PLANE, OUTPUTS),
            LANES,
            x.into_array_arg(),
            codes.into_array_arg(),
            scales.into_array_arg(),
            bias.into_array_arg(),
            to.into_array_arg(),
            gate.into_array_arg(),
            y.clone().into_array_arg(),
            blocks as u32,
            (codes_stride / LANES) as u32,
            scales_stride as u32,
            outputs as u32,
            rows as u32,
            scheme == Scheme::Q4,
            has_bias,
            last,
            planes,
            dtypes,
        );
    }
    y
}

/// [`crate::Kernels::layer`]: in one kernel where there are few rows.
pub(super) fn layer<R: CubeRuntime, B: BoolElement>(
    x: CubeTensor<R>,
    weight: Matrix<CubeBackend<R, f32, i32, B>>,
    bias: Option<CubeTensor<R>>,
    finish: Finish<CubeBackend<R, f32, i32, B>>,
) -> CubeTensor<R> {
    match weight {
        _ if x.meta.shape()[0] > FEW => generic::layer::<CubeBackend<R, f32, i32, B>>(x, weight, bias, finish),
        Matrix::Plain(weight) => few(x, weight, bias, finish),
        Matrix::Quantised(weight) => few_packed(x, weight, bias, finish),
    }
}

/// [`crate::Kernels::linear_layer`], with a weight of any format.
pub(super) fn linear<R: CubeRuntime, B: BoolElement>(
    x: CubeTensor<R>,
    weight: CubeTensor<R>,
    bias: Option<CubeTensor<R>>,
) -> CubeTensor<R> {
    if x.meta.shape()[0] <= FEW {
        return few::<R, B>(x, weight, bias, Finish::Plain);
    }
    let weight = if weight.dtype == x.dtype { weight } else { cast(weight, x.dtype) };
    let y = product(x, swapped(weight, 0, 1));
    match bias {
        Some(bias) => {
            let outputs = bias.shape()[0];
            burn_cubecl::ops::numeric::add(y, burn_cubecl::ops::reshape(bias, [1, outputs].into()))
        }
        None => y,
    }
}

/// Rows of codes that can be read by vectors of [`LANES`] words, and how far they are apart.
fn codes_of<R: CubeRuntime>(codes: CubeTensor<R>) -> (CubeTensor<R>, usize) {
    let Rows { x, width, stride, .. } = Rows::of(codes);
    if stride.is_multiple_of(LANES) { (x, stride) } else { (into_contiguous(x), width) }
}

/// [`crate::Kernels::dequantise`].
pub(super) fn dequantise<R: CubeRuntime, B: BoolElement>(
    weight: Quantised<CubeBackend<R, f32, i32, B>>,
    dtype: DType,
) -> CubeTensor<R> {
    let Quantised { scheme, codes, scales } = weight;
    let Rows { x: scales, count: rows, width: blocks, stride: scales_stride } = Rows::of(scales);
    let (codes, codes_stride) = codes_of(codes);
    let numbers = empty(&codes, [rows, blocks * BLOCK], dtype);
    let row_words = scheme.row_words(blocks * BLOCK);
    let words = rows * row_words;
    let dtypes = [dtype.into(), scales.dtype.into()];
    // SAFETY: units beyond the last word do nothing.
    unsafe {
        unpack_kernel::launch_unchecked::<R>(
            &numbers.client,
            cubes(words, 256),
            CubeDim::new_1d(256),
            LANES,
            codes.into_array_arg(),
            scales.into_array_arg(),
            numbers.clone().into_array_arg(),
            words as u32,
            row_words as u32,
            codes_stride as u32,
            scales_stride as u32,
            scheme == Scheme::Q4,
            dtypes,
        );
    }
    numbers
}

/// [`crate::Kernels::linear_layer_of_quantised`].
pub(super) fn linear_of_quantised<R: CubeRuntime, B: BoolElement>(
    x: CubeTensor<R>,
    weight: Quantised<CubeBackend<R, f32, i32, B>>,
    bias: Option<CubeTensor<R>>,
) -> CubeTensor<R> {
    if x.meta.shape()[0] <= FEW {
        return few_packed(x, weight, bias, Finish::Plain);
    }
    let dtype = x.dtype;
    linear::<R, B>(x, dequantise(weight, dtype), bias)
}

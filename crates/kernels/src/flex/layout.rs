//! Columns among zeros, tokens in buffers, and rotary embeddings: work on views that Burn would copy element by element.

use std::ops::Range;

use burn::tensor::{Bytes, DType, TensorMetadata};
use burn_flex::{FlexTensor, Layout};
use flamingo_config::Pairing;

use super::lanes::{Lanes, Work, run};
use super::{contiguous, filled, fresh, rows_at_once, values};

/// `count` columns of a contiguous tensor from `first` on. A copy: a view would keep the whole alive in a graph, and be copied
/// element by element where its heads are split.
pub(super) fn columns(x: FlexTensor, first: usize, count: usize) -> FlexTensor {
    let mut shape = x.shape();
    let last = shape.num_dims() - 1;
    let width = shape[last];
    shape[last] = count;
    let input = values(&x);
    let rows = rows_at_once(count);
    let output = filled(shape.num_elements(), rows * count, |place, output| {
        let input = input[place * rows * width..].chunks_exact(width);
        for (output, input) in output.chunks_exact_mut(count.max(1)).zip(input) {
            output.copy_from_slice(&input[first..first + count]);
        }
    });
    fresh(output, shape)
}

/// The columns of `grad` from `first` on in a tensor of zeros with `width` columns.
pub(super) fn among_zeros(grad: FlexTensor, first: usize, width: usize) -> FlexTensor {
    let mut shape = grad.shape();
    let last = shape.num_dims() - 1;
    let count = shape[last];
    shape[last] = width;
    let grad = contiguous(grad);
    let input = values(&grad);
    let rows = rows_at_once(width);
    let output = filled(shape.num_elements(), rows * width, |place, output| {
        let input = input[place * rows * count..].chunks_exact(count.max(1));
        for (output, input) in output.chunks_exact_mut(width).zip(input) {
            output[first..first + count].copy_from_slice(input);
        }
    });
    fresh(output, shape)
}

/// Whether a tensor is all of its memory, in row-major order.
pub(super) fn is_whole(x: &FlexTensor) -> bool {
    x.is_contiguous()
        && x.layout().start_offset() == 0
        && x.bytes().len() == x.layout().num_elements() * size_of::<f32>()
}

/// Writes some tokens of `x` into a whole buffer. Burn's assignment holds the buffer a second time while it writes, and so copies
/// all of it for each token.
pub(super) fn put(mut buffer: FlexTensor, x: FlexTensor, tokens: Range<usize>, start: usize) -> FlexTensor {
    let ([batch, heads, capacity, dim], [rows, of_x, all, width]) = (buffer.shape().dims(), x.shape().dims());
    let count = tokens.len();
    assert!(
        [rows, of_x, width] == [batch, heads, dim] && start + count <= capacity && tokens.end <= all,
        "tokens that fit into their buffer"
    );
    let [by_batch, by_head, by_token, by_column]: [isize; 4] = std::array::from_fn(|i| x.layout().strides()[i]);
    let (input, first) = (x.storage::<f32>(), x.layout().start_offset() as isize);
    let output = buffer.storage_mut::<f32>();
    for place in 0..batch * heads * count {
        let (row, head, token) = (place / (heads * count), place / count % heads, place % count);
        let of_x = (tokens.start + token) as isize;
        let from = first + row as isize * by_batch + head as isize * by_head + of_x * by_token;
        let to = &mut output[((row * heads + head) * capacity + start + token) * dim..][..dim];
        match by_column {
            1 => to.copy_from_slice(&input[from as usize..][..dim]),
            _ => to.iter_mut().enumerate().for_each(|(i, to)| *to = input[(from + i as isize * by_column) as usize]),
        }
    }
    buffer
}

/// `[batch, heads, tokens, dim]` turned; the result lies as `[batch, tokens, heads, dim]`, as attention reads it best.
pub(super) fn rotate(x: FlexTensor, cos: FlexTensor, sin: FlexTensor, pairing: Pairing) -> FlexTensor {
    let [batch, heads, tokens, dim] = x.shape().dims();
    let dims = cos.shape()[3];
    assert!(dims.is_multiple_of(2) && dims <= dim, "angles of pairs of a head's numbers");
    let x = if x.layout().strides()[3] == 1 && x.layout().strides()[1] >= 0 { x } else { x.to_contiguous() };
    let (cos, sin) = (contiguous(cos), contiguous(sin));
    let (cos, sin) = (values(&cos), values(&sin));
    let [by_batch, by_head, by_token, _]: [isize; 4] = std::array::from_fn(|i| x.layout().strides()[i]);
    let (storage, start) = (x.storage::<f32>(), x.layout().start_offset() as isize);
    let (width, at_once) = (heads * dim, rows_at_once(heads * dim));
    let output = filled(batch * tokens * width, at_once * width, |place, output| {
        for (i, output) in output.chunks_exact_mut(width).enumerate() {
            let (row, token) = ((place * at_once + i) / tokens, (place * at_once + i) % tokens);
            let at = (start + row as isize * by_batch + token as isize * by_token) as usize;
            let (cos, sin) = (&cos[token * dims..][..dims], &sin[token * dims..][..dims]);
            run(Turned { input: &storage[at..], by_head: by_head as usize, cos, sin, pairing, dim, output });
        }
    });
    let strides = [tokens * width, dim, width, 1].map(|stride| stride as isize);
    let layout = Layout::new([batch, heads, tokens, dim].into(), strides.to_vec(), 0);
    FlexTensor::new(Bytes::from_elems(output), layout, DType::F32)
}

/// The heads of a token, turned.
struct Turned<'a> {
    input: &'a [f32],
    /// How far heads are apart.
    by_head: usize,
    cos: &'a [f32],
    sin: &'a [f32],
    pairing: Pairing,
    dim: usize,
    output: &'a mut [f32],
}

impl Work for Turned<'_> {
    #[inline(always)]
    unsafe fn with<L: Lanes>(self) {
        let Self { input, by_head, cos, sin, pairing, dim, output } = self;
        let dims = cos.len();
        for (head, output) in output.chunks_exact_mut(dim).enumerate() {
            let input = &input[head * by_head..][..dim];
            let (turned, kept) = output.split_at_mut(dims);
            kept.copy_from_slice(&input[dims..]);
            let input = &input[..dims];
            match pairing {
                Pairing::Halves => {
                    let half = dims / 2;
                    let (a, b) = input.split_at(half);
                    let (cos, sin) = (cos.split_at(half), sin.split_at(half));
                    let (first, second) = turned.split_at_mut(half);
                    for i in 0..half {
                        first[i] = a[i] * cos.0[i] - b[i] * sin.0[i];
                        second[i] = b[i] * cos.1[i] + a[i] * sin.1[i];
                    }
                }
                Pairing::Neighbours => {
                    let angles = cos.as_chunks::<2>().0.iter().zip(sin.as_chunks::<2>().0);
                    let pairs = turned.as_chunks_mut::<2>().0.iter_mut().zip(input.as_chunks::<2>().0);
                    for ((to, [a, b]), (cos, sin)) in pairs.zip(angles) {
                        *to = [a * cos[0] - b * sin[0], b * cos[1] + a * sin[1]];
                    }
                }
            }
        }
    }
}

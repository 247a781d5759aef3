//! Columns among zeros, tokens in buffers, and rotary embeddings: work on views that Burn would copy element by element.

use burn::tensor::{Bytes, DType, TensorMetadata};
use burn_flex::{FlexTensor, Layout};
use flamingo_config::Pairing;

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

/// Writes tokens into a whole buffer. Burn's assignment holds the buffer a second time while it writes, and so copies all of it
/// for each token.
pub(super) fn put(mut buffer: FlexTensor, x: FlexTensor, start: usize) -> FlexTensor {
    let ([batch, heads, capacity, dim], [rows, of_x, tokens, width]) = (buffer.shape().dims(), x.shape().dims());
    assert!(
        [rows, of_x, width] == [batch, heads, dim] && start + tokens <= capacity,
        "tokens that fit into their buffer"
    );
    let [by_batch, by_head, by_token, by_column]: [isize; 4] = std::array::from_fn(|i| x.layout().strides()[i]);
    let (input, first) = (x.storage::<f32>(), x.layout().start_offset() as isize);
    let output = buffer.storage_mut::<f32>();
    for place in 0..batch * heads * tokens {
        let (row, head, token) = (place / (heads * tokens), place / tokens % heads, place % tokens);
        let from = first + row as isize * by_batch + head as isize * by_head + token as isize * by_token;
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
    let (cos, sin) = (contiguous(cos), contiguous(sin));
    let (cos, sin) = (values(&cos), values(&sin));
    let [by_batch, by_head, by_token, by_column]: [isize; 4] = std::array::from_fn(|i| x.layout().strides()[i]);
    let (storage, start) = (x.storage::<f32>(), x.layout().start_offset() as isize);
    let output = filled(batch * tokens * heads * dim, heads * dim, |place, output| {
        let (row, token) = (place / tokens, place % tokens);
        let (cos, sin) = (&cos[token * dims..][..dims], &sin[token * dims..][..dims]);
        for (head, output) in output.chunks_exact_mut(dim).enumerate() {
            let at = start + row as isize * by_batch + head as isize * by_head + token as isize * by_token;
            let input = |column: usize| storage[(at + column as isize * by_column) as usize];
            for (i, y) in output.iter_mut().enumerate() {
                *y = match pairing {
                    _ if i >= dims => input(i),
                    Pairing::Halves if i < dims / 2 => input(i) * cos[i] - input(i + dims / 2) * sin[i],
                    Pairing::Halves => input(i) * cos[i] + input(i - dims / 2) * sin[i],
                    Pairing::Neighbours if i % 2 == 0 => input(i) * cos[i] - input(i + 1) * sin[i],
                    Pairing::Neighbours => input(i) * cos[i] + input(i - 1) * sin[i],
                };
            }
        }
    });
    let strides = [tokens * heads * dim, dim, heads * dim, 1].map(|stride| stride as isize);
    let layout = Layout::new([batch, heads, tokens, dim].into(), strides.to_vec(), 0);
    FlexTensor::new(Bytes::from_elems(output), layout, DType::F32)
}

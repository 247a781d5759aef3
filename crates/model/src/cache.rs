//! The decoder's key-value cache. The caller owns it: the model stays a value.

use std::ops::Range;

use burn::tensor::{Int, Tensor, backend::Backend};
use flamingo_kernels::{Kernels, put};

use crate::media::KeysValues;

/// Keys and values of all tokens so far, for each layer.
///
/// Buffers are `[rows, heads, capacity, head_dim]`; they are written in place while nobody else holds
/// them, and grow by doubling.
#[derive(Clone, Debug)]
pub struct Cache<B: Backend> {
    layers: Vec<Option<KeysValues<B>>>,
    len: usize,
    /// For each row, which of the cached tokens are text rather than padding.
    keep: Vec<Vec<bool>>,
    reserve: usize,
}

impl<B: Kernels> Cache<B> {
    /// An empty cache of `layers` layers and `rows` rows. `reserve` tokens fit without growing.
    pub fn new(layers: usize, rows: usize, reserve: usize) -> Self {
        Self { layers: vec![None; layers], len: 0, keep: vec![Vec::with_capacity(reserve); rows], reserve }
    }

    /// Tokens cached, padding included.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Memory that its buffers take.
    pub fn bytes(&self) -> usize {
        bytes(&self.layers)
    }

    /// Whether nothing is cached yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Number of sequences.
    pub fn rows(&self) -> usize {
        self.keep.len()
    }

    /// For each row, the number of cached tokens that are not padding.
    pub fn kept(&self) -> Vec<usize> {
        self.keep.iter().map(|row| row.iter().filter(|&&k| k).count()).collect()
    }

    /// For each row, which cached tokens are not padding.
    pub(crate) fn keep(&self) -> &[Vec<bool>] {
        &self.keep
    }

    /// Counts padding as text from now on.
    pub fn reveal_padding(&mut self) {
        for row in &mut self.keep {
            row.fill(true);
        }
    }

    /// Notes the tokens that the layers are about to append.
    pub(crate) fn announce(&mut self, keep: &[bool], width: usize) {
        for (row, kept) in self.keep.iter_mut().zip(keep.chunks(width)) {
            row.extend_from_slice(kept);
        }
        self.len += width;
    }

    /// Appends the announced tokens' keys and values, some of each, `[rows, heads, tokens, dim]`, to one layer. Returns the buffers
    /// with all of that layer's, of which the first [`Cache::len`] are in use.
    pub(crate) fn append(&mut self, layer: usize, [k, v]: &KeysValues<B>, tokens: Range<usize>) -> KeysValues<B> {
        let end = self.len;
        let start = end - tokens.len();
        let buffers = match self.layers[layer].take() {
            Some(buffers) if buffers[0].dims()[2] >= end => buffers,
            Some(buffers) => buffers.map(|buffer| grown(buffer, start, (2 * start).max(end))),
            None => {
                let capacity = end.max(self.reserve);
                [k, v].map(|x| {
                    let [rows, heads, _, dim] = x.dims();
                    Tensor::zeros([rows, heads, capacity, dim], (&x.device(), x.dtype()))
                })
            }
        };
        // Buffers are moved through, not cloned: a backend can then write into them.
        let [of_k, of_v] = buffers;
        let buffers = [put(of_k, k.clone(), tokens.clone(), start), put(of_v, v.clone(), tokens, start)];
        self.layers[layer] = Some(buffers.clone());
        buffers
    }

    /// Row `i` becomes a copy of what was row `rows[i]`; the number of rows may change. Beam search
    /// expands, reorders and shrinks its batch this way.
    pub fn select(&mut self, rows: &[usize]) {
        self.keep = rows.iter().map(|&row| self.keep[row].clone()).collect();
        select_rows(self.layers.iter_mut(), rows);
    }
}

/// Rows of each layer's tensors by index, in the given order; nothing is copied where that is all rows as they are.
pub(crate) fn select_rows<'a, B: Backend>(
    layers: impl Iterator<Item = &'a mut Option<[Tensor<B, 4>; 2]>>,
    rows: &[usize],
) {
    let mut index = None;
    for layer in layers {
        let Some([x, _]) = layer else { continue };
        if rows.len() == x.dims()[0] && rows.iter().enumerate().all(|(i, &row)| i == row) {
            continue;
        }
        // One for all layers: it has to get to the device.
        let index: &Tensor<B, 1, Int> = index.get_or_insert_with(|| {
            let index: Vec<i32> = rows.iter().map(|&row| row as i32).collect();
            Tensor::from_ints(index.as_slice(), &x.device())
        });
        *layer = layer.take().map(|buffers| buffers.map(|buffer| buffer.select(0, index.clone())));
    }
}

/// Memory that keys and values of some layers take.
pub(crate) fn bytes<B: Backend>(layers: &[Option<[Tensor<B, 4>; 2]>]) -> usize {
    layers.iter().flatten().flatten().map(|x| x.shape().num_elements() * x.dtype().size()).sum()
}

fn grown<B: Kernels>(buffer: Tensor<B, 4>, used: usize, capacity: usize) -> Tensor<B, 4> {
    let [rows, heads, _, dim] = buffer.dims();
    let bigger = Tensor::zeros([rows, heads, capacity, dim], (&buffer.device(), buffer.dtype()));
    put(bigger, buffer, 0..used, 0)
}

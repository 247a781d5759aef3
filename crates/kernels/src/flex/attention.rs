//! Attention that reads queries, keys and values where they lie and keeps scores of a few queries only.

use std::ops::Range;

use burn::tensor::{Bytes, DType, Shape, Tensor, TensorMetadata};
use burn_flex::{Flex, FlexTensor, Layout};
use rayon::prelude::*;

use super::lanes::{self, Lanes, run};
use super::product::{Matrix, product};
use super::{BLOCK, filled, math};
use crate::{Attention, Past, primitive};

/// Queries whose scores are in memory together.
const QUERIES: usize = 32;

/// Work, in multiplications, that is worth a thread.
const WORTH_A_THREAD: usize = 1 << 15;

/// A tensor `[batch, heads, rows, columns]` of any strides, 0 where it broadcasts.
struct Heads<'a, T> {
    values: &'a [T],
    strides: [isize; 4],
    start: usize,
}

impl<'a, T> Heads<'a, T> {
    fn new(values: &'a [T], layout: &Layout, full: [usize; 4]) -> Self {
        let (dims, strides) = (layout.shape(), layout.strides());
        // A dimension of 1 stands for any size.
        let fits = |i: usize| dims[i] == full[i] || dims[i] == 1;
        assert!((0..4).all(fits), "{dims:?} does not broadcast to {full:?}");
        let strides = std::array::from_fn(|i| if dims[i] == full[i] { strides[i] } else { 0 });
        Self { values, strides, start: layout.start_offset() }
    }

    fn at(&self, batch: usize, head: usize, row: usize) -> usize {
        let [b, h, r, _] = self.strides;
        (self.start as isize + batch as isize * b + head as isize * h + row as isize * r) as usize
    }
}

impl<'a> Heads<'a, f32> {
    /// The first rows of a tensor that else has this shape.
    fn first(x: &'a FlexTensor, shape: [usize; 4]) -> Self {
        let [batch, heads, rows, columns] = x.shape().dims();
        let fits = [batch, heads, columns] == [shape[0], shape[1], shape[3]] && rows >= shape[2];
        assert!(fits, "a tensor of an attention has another shape than the others ask for");
        let strides = std::array::from_fn(|i| x.layout().strides()[i]);
        Self { values: x.storage(), strides, start: x.layout().start_offset() }
    }

    /// A tensor that has this very shape.
    fn whole(x: &'a FlexTensor, shape: [usize; 4]) -> Self {
        assert_eq!(x.shape().dims(), shape, "a tensor of an attention has another shape than the others ask for");
        Self::new(x.storage(), x.layout(), shape)
    }

    fn matrix(&self, batch: usize, head: usize, row: usize) -> Matrix {
        // Never written through.
        let start = self.values[self.at(batch, head, row)..].as_ptr().cast_mut();
        Matrix { start, row: self.strides[2], column: self.strides[3] }
    }
}

/// What a call works on.
struct Work<'a> {
    q: Heads<'a, f32>,
    k: Heads<'a, f32>,
    v: Heads<'a, f32>,
    hidden: Option<Heads<'a, u8>>,
    bias: Option<Heads<'a, f32>>,
    scale: f32,
    batch: usize,
    heads: usize,
    queries: usize,
    keys: usize,
    dim: usize,
}

impl<'a> Work<'a> {
    fn new(a: &'a Attention<Flex>) -> Self {
        let ([batch, heads, queries, dim], keys) = (a.q.shape().dims(), a.k.shape()[2]);
        let q = Heads::whole(&a.q, [batch, heads, queries, dim]);
        Self::of(a, q, [batch, heads, queries, keys], dim)
    }

    fn of(a: &'a Attention<Flex>, q: Heads<'a, f32>, full: [usize; 4], dim: usize) -> Self {
        let [batch, heads, queries, keys] = full;
        assert_eq!(a.k.shape(), a.v.shape(), "a tensor of an attention has another shape than the others ask for");
        Self {
            q,
            k: Heads::first(&a.k, [batch, heads, keys, dim]),
            v: Heads::first(&a.v, [batch, heads, keys, dim]),
            hidden: a.hidden.as_ref().map(|x| Heads::new(x.storage::<u8>(), x.layout(), full)),
            bias: a.bias.as_ref().map(|x| Heads::new(x.storage::<f32>(), x.layout(), full)),
            scale: a.scale as f32,
            batch,
            heads,
            queries,
            keys,
            dim,
        }
    }

    /// What some queries of one of several texts look at: so many keys. `q` is all of theirs, `[1, heads, queries, dim]`.
    fn of_text(a: &'a Attention<Flex>, queries: Range<usize>, keys: usize) -> Self {
        let [_, heads, _, dim] = a.q.shape().dims();
        let mut q = Heads::new(a.q.storage(), a.q.layout(), a.q.shape().dims());
        q.start = q.at(0, 0, queries.start);
        Self::of(a, q, [1, heads, queries.len(), keys], dim)
    }

    /// The keys that any of `count` queries from `first` on sees: from the first to after the last. Text looks back only,
    /// and at one picture of many, so this is often a small part.
    fn seen(&self, batch: usize, head: usize, first: usize, count: usize) -> Range<usize> {
        let Some(hidden) = &self.hidden else { return 0..self.keys };
        let step = hidden.strides[3] as usize;
        let mut seen = self.keys..0;
        for query in first..first + count {
            let at = hidden.at(batch, head, query);
            let sees = |key: &usize| hidden.values[at + key * step] == 0;
            // What is seen already need not be looked at again.
            if let Some(key) = (0..seen.start).find(sees) {
                seen.start = key;
            }
            if let Some(key) = (seen.end.max(seen.start)..self.keys).rev().find(sees) {
                seen.end = key + 1;
            }
        }
        if seen.start < seen.end { seen } else { 0..0 }
    }

    /// Attention weights of `count` queries from `first` on for some keys, `[count, keys.len()]`.
    fn weights(&self, batch: usize, head: usize, first: usize, count: usize, keys: &Range<usize>, weights: &mut [f32]) {
        let width = keys.len();
        let (q, k) = (self.q.matrix(batch, head, first), self.k.matrix(batch, head, keys.start));
        let out = Matrix::of(weights, width);
        // SAFETY: `weights` is ours and has `count * width` numbers; the views lie inside their tensors.
        unsafe { product(out, false, q, k.transposed(), [count, width, self.dim], self.scale, false) };
        run(Weights { work: self, batch, head, query: first, key: keys.start, width, weights });
    }

    /// Adds the bias to a query's scores for keys from `first` on, and hides what it does not see.
    #[inline(always)]
    fn mask(&self, batch: usize, head: usize, query: usize, first: usize, scores: &mut [f32]) {
        if let Some(bias) = &self.bias {
            let step = bias.strides[3] as usize;
            let at = bias.at(batch, head, query) + first * step;
            match step {
                1 => scores.iter_mut().zip(&bias.values[at..]).for_each(|(x, b)| *x += b),
                _ => scores.iter_mut().enumerate().for_each(|(j, x)| *x += bias.values[at + j * step]),
            }
        }
        if let Some(hidden) = &self.hidden {
            let step = hidden.strides[3] as usize;
            let at = hidden.at(batch, head, query) + first * step;
            let hide = |x: &mut f32, hidden: u8| *x = if hidden != 0 { f32::NEG_INFINITY } else { *x };
            match step {
                1 => scores.iter_mut().zip(&hidden.values[at..]).for_each(|(x, &h)| hide(x, h)),
                _ => scores.iter_mut().enumerate().for_each(|(j, x)| hide(x, hidden.values[at + j * step])),
            }
        }
    }

    /// Runs `work` for each head, on several threads where that pays.
    fn each_head(&self, work: impl Fn(usize, usize) + Sync + Send) {
        let effort = self.queries * self.keys * self.dim;
        each_unit(self.batch * self.heads, effort, |i| work(i / self.heads, i % self.heads));
    }
}

/// A result `[batch, heads, rows, dim]`, laid out as `[batch, rows, heads, dim]`: heads merge without a copy.
struct Output {
    values: Vec<f32>,
    shape: [usize; 4],
}

/// Where the heads of an [`Output`] are, to be written by several threads.
struct Places {
    start: *mut f32,
    strides: [usize; 3],
}

// SAFETY: each row of a head is written by one thread, and the values outlive the loop.
unsafe impl Send for Places {}
// SAFETY: as above.
unsafe impl Sync for Places {}

impl Output {
    fn new(shape: [usize; 4]) -> Self {
        Self { values: filled(shape.iter().product(), BLOCK, |_, _| ()), shape }
    }

    fn places(&mut self) -> Places {
        let [_, heads, rows, dim] = self.shape;
        Places { start: self.values.as_mut_ptr(), strides: [rows * heads * dim, dim, heads * dim] }
    }

    fn finished(self) -> FlexTensor {
        let [_, heads, rows, dim] = self.shape;
        let strides = [rows * heads * dim, dim, heads * dim, 1].map(|stride| stride as isize);
        let layout = Layout::new(Shape::from(self.shape), strides.to_vec(), 0);
        FlexTensor::new(Bytes::from_elems(self.values), layout, DType::F32)
    }
}

impl Places {
    /// A row of a head.
    ///
    /// # Safety
    /// Nobody else reads or writes it while it is held.
    #[allow(clippy::mut_from_ref)]
    unsafe fn row(&self, batch: usize, head: usize, row: usize, dim: usize) -> &mut [f32] {
        // SAFETY: batch, head and row are those of the shape, whose values are initialised; the rest is the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.matrix(batch, head, row).start, dim) }
    }

    fn matrix(&self, batch: usize, head: usize, row: usize) -> Matrix {
        let [b, h, r] = self.strides;
        // Stays inside: batch, head and row are those of the shape.
        let start = self.start.wrapping_add(batch * b + head * h + row * r);
        Matrix { start, row: r as isize, column: 1 }
    }
}

pub(super) fn forward(a: Attention<Flex>) -> FlexTensor {
    // What decoding asks for, where handing a product over takes longer than the product.
    let one_query = a.q.shape()[2] == 1;
    let a = if one_query { in_rows(a) } else { a };
    let work = Work::new(&a);
    let Work { batch, heads, queries, keys, dim, .. } = work;
    let mut out = Output::new([batch, heads, queries, dim]);
    if out.values.is_empty() || keys == 0 {
        return out.finished();
    }
    let places = out.places();
    if one_query {
        // SAFETY: each head writes a row of its own.
        work.each_head(|batch, head| see(&work, batch, head, 0, unsafe { places.row(batch, head, 0, dim) }));
        return out.finished();
    }
    work.each_head(|batch, head| {
        let mut weights = vec![0.0f32; queries.min(QUERIES) * keys];
        for first in (0..queries).step_by(QUERIES) {
            let count = QUERIES.min(queries - first);
            let seen = work.seen(batch, head, first, count);
            if seen.is_empty() {
                continue;
            }
            let weights = &mut weights[..count * seen.len()];
            work.weights(batch, head, first, count, &seen, weights);
            let (out, v) = (places.matrix(batch, head, first), work.v.matrix(batch, head, seen.start));
            // SAFETY: each head writes rows of its own; nobody reads them before the loop ends.
            unsafe { product(out, false, Matrix::of(weights, seen.len()), v, [count, dim, seen.len()], 1.0, false) };
        }
    });
    out.finished()
}

/// What a few queries of each of several texts see, `[1, heads, queries, dim]`.
pub(super) fn forward_each(q: FlexTensor, pasts: Vec<Past<Flex>>, scale: f64) -> FlexTensor {
    let [batch, heads, queries, dim] = q.shape().dims();
    assert_eq!(
        [batch, queries],
        [1, pasts.iter().map(|past| past.queries).sum()],
        "queries of one row, as many as look"
    );
    let mut first = 0;
    let attention = |Past { queries, k, v, keys, hidden, bias }: Past<Flex>| {
        let own = first..first + queries;
        first = own.end;
        let [k, v] = [k, v].map(primitive);
        let hidden = hidden.map(Tensor::into_primitive);
        (own, keys, in_rows(Attention { q: q.clone(), k, v, scale, hidden, bias: bias.map(primitive) }))
    };
    let attentions: Vec<(Range<usize>, usize, Attention<Flex>)> = pasts.into_iter().map(attention).collect();
    let works: Vec<Work> = attentions.iter().map(|(own, keys, a)| Work::of_text(a, own.clone(), *keys)).collect();
    // Whose query each is, and which of its text's.
    let owners: Vec<(usize, usize)> =
        works.iter().enumerate().flat_map(|(text, work)| (0..work.queries).map(move |query| (text, query))).collect();
    let mut out = Output::new([1, heads, queries, dim]);
    let places = out.places();
    let effort = works.iter().map(|work| work.queries * work.keys * dim).sum::<usize>() / queries.max(1);
    each_unit(queries * heads, effort, |i| {
        let (row, head) = (i / heads, i % heads);
        let (text, query) = owners[row];
        // SAFETY: each head of each query writes a row of its own.
        see(&works[text], 0, head, query, unsafe { places.row(0, head, row, dim) });
    });
    out.finished()
}

/// The same attention; rows of queries, keys and values lie together, as [`OneRow`] reads them.
fn in_rows(a: Attention<Flex>) -> Attention<Flex> {
    let [q, k, v] = [a.q, a.k, a.v].map(|x| if x.layout().strides()[3] == 1 { x } else { x.to_contiguous() });
    Attention { q, k, v, ..a }
}

/// What one query of a head sees, `[dim]`, into zeros.
fn see(work: &Work, batch: usize, head: usize, query: usize, out: &mut [f32]) {
    let seen = work.seen(batch, head, query, 1);
    if seen.is_empty() {
        return;
    }
    let mut weights = vec![0.0f32; seen.len()];
    run(OneRow { work, batch, head, query, first: seen.start, weights: &mut weights, out });
}

/// Scores of some queries, from `query` on, for some keys, from `key` on, that become weights.
struct Weights<'a> {
    work: &'a Work<'a>,
    batch: usize,
    head: usize,
    query: usize,
    key: usize,
    /// How many keys.
    width: usize,
    weights: &'a mut [f32],
}

impl lanes::Work for Weights<'_> {
    #[inline(always)]
    unsafe fn with<L: Lanes>(self) {
        for (i, row) in self.weights.chunks_exact_mut(self.width).enumerate() {
            self.work.mask(self.batch, self.head, self.query + i, self.key, row);
            math::softmax(row);
        }
    }
}

/// Gradients of weights that become gradients of scores.
struct Scores<'a> {
    d_weights: &'a mut [f32],
    weights: &'a [f32],
    /// How many keys.
    width: usize,
}

impl lanes::Work for Scores<'_> {
    #[inline(always)]
    unsafe fn with<L: Lanes>(self) {
        for (d, p) in self.d_weights.chunks_exact_mut(self.width).zip(self.weights.chunks_exact(self.width)) {
            let along = math::dot(d, p);
            for (d, p) in d.iter_mut().zip(p) {
                *d = (*d - along) * p;
            }
        }
    }
}

/// A query and the keys that it sees, one after the other.
struct OneRow<'a> {
    work: &'a Work<'a>,
    batch: usize,
    head: usize,
    query: usize,
    /// The first key.
    first: usize,
    /// One for each key.
    weights: &'a mut [f32],
    out: &'a mut [f32],
}

impl lanes::Work for OneRow<'_> {
    #[inline(always)]
    unsafe fn with<L: Lanes>(self) {
        let Self { work, batch, head, query, first, weights, out } = self;
        let [q, k, v] =
            [(&work.q, query), (&work.k, first), (&work.v, first)].map(|(x, row)| x.matrix(batch, head, row));
        // SAFETY: queries, keys and values have rows of `dim` numbers that lie together, and so has `out`; there is a key and a
        // value for each weight.
        unsafe {
            let mut fours = weights.chunks_exact_mut(4);
            let mut key = 0;
            for scores in &mut fours {
                let dots = dots::<4, L>(q.start, k.at(key, 0), k.row, work.dim);
                scores.iter_mut().zip(dots).for_each(|(score, dot)| *score = dot * work.scale);
                key += 4;
            }
            for score in fours.into_remainder() {
                *score = dots::<1, L>(q.start, k.at(key, 0), k.row, work.dim)[0] * work.scale;
                key += 1;
            }
            work.mask(batch, head, query, first, weights);
            math::softmax(weights);
            let mut column = 0;
            while column + 2 * L::COUNT <= work.dim {
                mix::<2, L>(weights, v.at(0, column), v.row, &mut out[column..]);
                column += 2 * L::COUNT;
            }
            if column + L::COUNT <= work.dim {
                mix::<1, L>(weights, v.at(0, column), v.row, &mut out[column..]);
                column += L::COUNT;
            }
            for (column, out) in out.iter_mut().enumerate().skip(column) {
                *out = weights.iter().enumerate().map(|(row, weight)| weight * *v.at(row, column)).sum();
            }
        }
    }
}

/// Dot products of a row with some rows that are `stride` apart.
///
/// # Safety
/// That of [`Lanes`]; all rows have `count` numbers.
#[expect(clippy::needless_range_loop, reason = "indices of what lies in several places")]
#[inline(always)]
unsafe fn dots<const ROWS: usize, L: Lanes>(
    x: *const f32,
    rows: *const f32,
    stride: isize,
    count: usize,
) -> [f32; ROWS] {
    let whole = count / L::COUNT * L::COUNT;
    // SAFETY: the caller's promise.
    unsafe {
        let mut lanes = [L::zero(); ROWS];
        for at in (0..whole).step_by(L::COUNT) {
            let x = L::load(x.add(at));
            for row in 0..ROWS {
                lanes[row] = L::load(rows.offset(row as isize * stride).add(at)).mul_add(x, lanes[row]);
            }
        }
        let mut sums = L::sums(lanes);
        for row in 0..ROWS {
            let rest = (whole..count).map(|at| *x.add(at) * *rows.offset(row as isize * stride).add(at));
            sums[row] += rest.sum::<f32>();
        }
        sums
    }
}

/// Writes the weighted sum of rows that are `stride` apart, `REGISTERS` registers of each.
///
/// # Safety
/// That of [`Lanes`]; there is a row for each weight, and room.
#[expect(clippy::needless_range_loop, reason = "indices of what lies in several places")]
#[inline(always)]
unsafe fn mix<const REGISTERS: usize, L: Lanes>(weights: &[f32], rows: *const f32, stride: isize, out: &mut [f32]) {
    assert!(out.len() >= REGISTERS * L::COUNT, "room for the sum");
    // SAFETY: the caller's promise.
    unsafe {
        // Two sums on their way for each register.
        let mut sums = [[L::zero(); REGISTERS]; 2];
        let mut pairs = weights.chunks_exact(2);
        let mut from = rows;
        for pair in &mut pairs {
            for half in 0..2 {
                let weight = L::splat(pair[half]);
                for register in 0..REGISTERS {
                    let numbers = L::load(from.add(register * L::COUNT));
                    sums[half][register] = numbers.mul_add(weight, sums[half][register]);
                }
                from = from.wrapping_offset(stride);
            }
        }
        if let [last] = pairs.remainder() {
            for register in 0..REGISTERS {
                let numbers = L::load(from.add(register * L::COUNT));
                sums[0][register] = numbers.mul_add(L::splat(*last), sums[0][register]);
            }
        }
        for register in 0..REGISTERS {
            sums[0][register].add(sums[1][register]).store(out.as_mut_ptr().add(register * L::COUNT));
        }
    }
}

/// Runs `work` for each of so many units, whose effort is in multiplications, on several threads where that pays.
fn each_unit(units: usize, effort: usize, work: impl Fn(usize) + Sync + Send) {
    let at_once = (WORTH_A_THREAD / effort.max(1)).clamp(1, units.max(1));
    (0..units).into_par_iter().with_min_len(at_once).for_each(work);
}

pub(super) fn backward(a: Attention<Flex>, grad: FlexTensor) -> [FlexTensor; 3] {
    let work = Work::new(&a);
    let Work { batch, heads, queries, keys, dim, .. } = work;
    let mut outs = [queries, keys, keys].map(|rows| Output::new([batch, heads, rows, dim]));
    if grad.shape().num_elements() == 0 || keys == 0 {
        return outs.map(Output::finished);
    }
    let [d_q, d_k, d_v] = outs.each_mut().map(Output::places);
    let grad = Heads::whole(&grad, [batch, heads, queries, dim]);
    work.each_head(|batch, head| {
        let mut weights = vec![0.0f32; queries.min(QUERIES) * keys];
        let mut d_weights = weights.clone();
        for first in (0..queries).step_by(QUERIES) {
            let count = QUERIES.min(queries - first);
            let seen = work.seen(batch, head, first, count);
            if seen.is_empty() {
                continue;
            }
            let width = seen.len();
            let (weights, d_weights) = (&mut weights[..count * width], &mut d_weights[..count * width]);
            work.weights(batch, head, first, count, &seen, weights);
            let (g, q) = (grad.matrix(batch, head, first), work.q.matrix(batch, head, first));
            let (k, v) = (work.k.matrix(batch, head, seen.start), work.v.matrix(batch, head, seen.start));
            let p = Matrix::of(weights, width).transposed();
            // SAFETY: the weights are this task's own, and each head writes rows of its own in the gradients, which
            // begin as zeros.
            unsafe {
                product(d_v.matrix(batch, head, seen.start), true, p, g, [width, dim, count], 1.0, false);
                product(Matrix::of(d_weights, width), false, g, v.transposed(), [count, width, dim], 1.0, false);
            }
            run(Scores { d_weights, weights, width });
            let d = Matrix::of(d_weights, width);
            // SAFETY: as above.
            unsafe {
                product(d_q.matrix(batch, head, first), false, d, k, [count, dim, width], work.scale, false);
                product(
                    d_k.matrix(batch, head, seen.start),
                    true,
                    d.transposed(),
                    q,
                    [width, dim, count],
                    work.scale,
                    false,
                );
            }
        }
    });
    outs.map(Output::finished)
}

#[cfg(test)]
mod tests {
    use burn_flex::FlexDevice;

    use super::super::stored::tests::{number, run_as, ways};
    use super::*;

    type T = Tensor<Flex, 4>;

    /// Rows that are shorter than a register, as long, some registers long, with and without a rest; as they are in a cache that
    /// holds more, and side by side with those of other heads.
    #[test]
    fn every_processor_sees_the_same_with_one_query() {
        let (heads, keys, first) = (2, 9, 2);
        for dim in [1, 4, 10, 16, 24, 32, 40, 64, 80, 128] {
            let numbers = |count: usize, salt: usize| (0..count).map(|i| number(i * 31 + salt)).collect::<Vec<f32>>();
            let tensor = |shape: [usize; 4], salt| -> T {
                T::from_data(burn::tensor::TensorData::new(numbers(shape.iter().product(), salt), shape), &FlexDevice)
            };
            let q = tensor([1, heads, 1, dim], 1);
            let k = tensor([1, heads, keys + 3, dim], 2).narrow(2, 0, keys);
            let v = tensor([1, keys, heads, dim], 3).swap_dims(1, 2);
            let bias = tensor([1, heads, 1, keys], 4);
            let values = |x: &T| x.to_data().to_vec::<f32>().expect("f32");
            let [all_q, all_k, all_v, all_bias] = [&q, &k, &v, &bias].map(values);
            let [q, k, v, bias] = [q, k, v, bias].map(primitive);
            let a = Attention { q, k, v, scale: 0.1, hidden: None, bias: Some(bias) };
            let work = Work::new(&a);
            for head in 0..heads {
                let row = |all: &[f32], row: usize| -> Vec<f64> {
                    all[(head * keys + row) * dim..][..dim].iter().map(|&x| f64::from(x)).collect()
                };
                let q: Vec<f64> = all_q[head * dim..][..dim].iter().map(|&x| f64::from(x)).collect();
                let score = |key: usize| {
                    let dot: f64 = row(&all_k, key).iter().zip(&q).map(|(k, q)| k * q).sum();
                    (0.1 * dot + f64::from(all_bias[head * keys + key])).exp()
                };
                let scores: Vec<f64> = (first..keys).map(score).collect();
                let total: f64 = scores.iter().sum();
                for way in ways() {
                    let (mut weights, mut out) = (vec![0.0; keys - first], vec![0.0; dim]);
                    run_as(
                        way,
                        OneRow { work: &work, batch: 0, head, query: 0, first, weights: &mut weights, out: &mut out },
                    );
                    for (column, found) in out.iter().enumerate() {
                        let values = (first..keys).map(|key| row(&all_v, key)[column]);
                        let wanted: f64 = scores.iter().zip(values).map(|(score, value)| score / total * value).sum();
                        assert!((f64::from(*found) - wanted).abs() < 2e-5, "{way:?}, {dim}: {found}, not {wanted}");
                    }
                }
            }
        }
    }
}

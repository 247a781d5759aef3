//! Attention: one kernel where few queries look at a cache, two products and a softmax else.

use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, cubecl};

use super::product::product;
use super::reduce::{UNITS, of_cube};
use super::softmax::{LOWEST, Masks, softmax, softmax_backward};
use super::{broadcast, empty, has_planes, spread, swapped};
use crate::Attention;

/// Queries up to which each has a cube of its own, which holds no score in memory.
const FEW_QUERIES: usize = 8;

/// A cube for each query of each head: keys in chunks, one a unit, then values, a unit for each coordinate; the softmax is
/// corrected as larger scores are met (arXiv 1805.02867). The output is `[batch, queries, heads, dim]`.
#[cube(launch_unchecked)]
fn few_kernel<T: Float, H: Numeric, N: Size>(
    q: &Tensor<T>,
    k: &Tensor<Vector<T, N>>,
    v: &Tensor<T>,
    hidden: &Tensor<H>,
    bias: &Tensor<T>,
    out: &mut Array<T>,
    heads: u32,
    queries: u32,
    keys: u32,
    count: u32,
    scale: f32,
    #[comptime] dim: u32,
    #[comptime] has_hidden: bool,
    #[comptime] has_bias: bool,
    #[comptime] planes: bool,
    #[define(T, H)] _dtypes: [StorageType; 2],
) {
    let place = CUBE_POS;
    if place >= count as usize {
        terminate!();
    }
    let head = place % heads as usize;
    let query = place / heads as usize % queries as usize;
    let batch = place / (heads as usize * queries as usize);
    let unit = UNIT_POS as usize;
    let dim = comptime!(dim as usize);
    let groups = comptime!(UNITS as usize / dim);
    let lanes = N::value();

    let mut shared = SharedMemory::<f32>::new(comptime!(UNITS as usize));
    let mut own = SharedMemory::<f32>::new(dim);
    let mut shares = SharedMemory::<f32>::new(comptime!(UNITS as usize));
    if unit < dim {
        let at = batch * q.stride(0) + head * q.stride(1) + query * q.stride(2) + unit * q.stride(3);
        own[unit] = f32::cast_from(q[at]) * scale;
    }
    sync_cube();

    let k_start = batch * k.stride(0) + head * k.stride(1);
    let v_start = batch * v.stride(0) + head * v.stride(1);
    let coordinate = unit % dim;
    let group = unit / dim;
    let mut largest = f32::new(LOWEST);
    let mut sum = 0f32;
    let mut mean = 0f32;
    let mut chunk = 0u32;
    while chunk < keys {
        let key = chunk + UNIT_POS;
        let mut seen = key < keys;
        let mut score = f32::new(LOWEST);
        if seen {
            let key = key as usize;
            if has_hidden {
                let at = batch * hidden.stride(0)
                    + head * hidden.stride(1)
                    + query * hidden.stride(2)
                    + key * hidden.stride(3);
                seen = u32::cast_from(hidden[at]) == 0;
            }
            let start = (k_start + key * k.stride(2)) / lanes;
            let mut terms = Vector::<f32, N>::new(0f32);
            for i in 0..comptime!(dim / lanes) {
                let numbers = Vector::<f32, N>::cast_from(k[start + i]);
                let mut of_query = Vector::<f32, N>::new(0f32);
                #[unroll]
                for lane in 0..N::value() {
                    of_query[lane] = own[i * lanes + lane];
                }
                terms += numbers * of_query;
            }
            let mut all = terms[0];
            #[unroll]
            for lane in 1..N::value() {
                all += terms[lane];
            }
            if has_bias {
                let at = batch * bias.stride(0) + head * bias.stride(1) + query * bias.stride(2) + key * bias.stride(3);
                all += f32::cast_from(bias[at]);
            }
            if seen {
                score = all;
            }
        }
        let of_chunk = of_cube(score, &mut shared, true, planes);
        let before = largest;
        largest = max(largest, of_chunk);
        let share = select(seen, (score - largest).exp(), 0f32);
        let correction = (before - largest).exp();
        shares[unit] = share;
        sum = sum * correction + of_cube(share, &mut shared, false, planes);
        // All shares are there: of_cube has waited for them.
        if group < groups {
            mean *= correction;
            let end = min(UNITS, keys - chunk) as usize;
            let mut i = group;
            while i < end {
                let at = v_start + (chunk as usize + i) * v.stride(2) + coordinate * v.stride(3);
                mean += shares[i] * f32::cast_from(v[at]);
                i += groups;
            }
        }
        chunk += UNITS;
        sync_cube();
    }
    shares[unit] = mean;
    sync_cube();
    if unit < dim {
        let mut all = shares[unit];
        #[unroll]
        for other in 1..groups {
            all += shares[unit + other * dim];
        }
        out[place * dim + unit] = T::cast_from(all / sum);
    }
}

fn few<R: CubeRuntime>(
    q: CubeTensor<R>,
    k: CubeTensor<R>,
    v: CubeTensor<R>,
    scale: f64,
    masks: Masks<R>,
) -> CubeTensor<R> {
    let [batch, heads, queries, dim] = q.meta.shape().dims();
    let keys = k.meta.shape()[2];
    let out = empty(&q, [batch, queries, heads, dim], q.dtype);
    let Masks { hidden, bias } = masks;
    let (has_hidden, has_bias) = (hidden.is_some(), bias.is_some());
    // What is not there is not read.
    let hidden = hidden.unwrap_or_else(|| q.clone());
    let bias = bias.unwrap_or_else(|| q.clone());
    let strides = k.meta.strides();
    let size = if strides[3] == 1 { super::vector_size(&k, &[dim, strides[0], strides[1], strides[2]]) } else { 1 };
    let k = if strides[3] == 1 { k } else { burn_cubecl::kernel::into_contiguous(k) };
    let planes = has_planes(&q);
    let (dtypes, count) = ([q.dtype.into(), hidden.dtype.into()], batch * queries * heads);
    // SAFETY: units stay within keys and coordinates, cubes within their number, and masks have the scores' shape.
    unsafe {
        few_kernel::launch_unchecked::<R>(
            &out.client,
            spread(count),
            CubeDim::new_1d(UNITS),
            size,
            q.into_tensor_arg(),
            k.into_tensor_arg(),
            v.into_tensor_arg(),
            hidden.into_tensor_arg(),
            bias.into_tensor_arg(),
            out.clone().into_array_arg(),
            heads as u32,
            queries as u32,
            keys as u32,
            count as u32,
            scale as f32,
            dim as u32,
            has_hidden,
            has_bias,
            planes,
            dtypes,
        );
    }
    swapped(out, 1, 2)
}

fn masks<R: CubeRuntime, B: BoolElement>(a: &Attention<CubeBackend<R, f32, i32, B>>) -> Masks<R> {
    let ([batch, heads, queries, _], keys) = (a.q.meta.shape().dims(), a.k.meta.shape()[2]);
    let full = |x: &CubeTensor<R>| broadcast(x.clone(), [batch, heads, queries, keys]);
    Masks { hidden: a.hidden.as_ref().map(full), bias: a.bias.as_ref().map(full) }
}

/// [`crate::Kernels::attend`].
pub(super) fn attend<R: CubeRuntime, B: BoolElement>(a: Attention<CubeBackend<R, f32, i32, B>>) -> CubeTensor<R> {
    let alike = a.bias.iter().chain([&a.k, &a.v]).all(|x| x.dtype == a.q.dtype);
    assert!(alike, "one format for queries, keys, values and bias");
    let masks = masks(&a);
    let [_, _, queries, dim] = a.q.meta.shape().dims();
    if queries <= FEW_QUERIES && dim <= UNITS as usize {
        return few(a.q, a.k, a.v, a.scale, masks);
    }
    product(softmax(product(a.q, swapped(a.k, 2, 3)), a.scale, masks), a.v)
}

/// [`crate::Gradients::attend_backward`].
pub(super) fn attend_backward<R: CubeRuntime, B: BoolElement>(
    a: Attention<CubeBackend<R, f32, i32, B>>,
    grad: CubeTensor<R>,
) -> [CubeTensor<R>; 3] {
    let masks = masks(&a);
    let weights = softmax(product(a.q.clone(), swapped(a.k.clone(), 2, 3)), a.scale, masks);
    let d_v = product(swapped(weights.clone(), 2, 3), grad.clone());
    let d_scores = softmax_backward(weights, product(grad, swapped(a.v, 2, 3)), a.scale);
    let d_q = product(d_scores.clone(), a.k);
    let d_k = product(swapped(d_scores, 2, 3), a.q);
    [d_q, d_k, d_v]
}

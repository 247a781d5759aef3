//! The kernels for GPUs against the same operations composed by Burn in f64 on the CPU, values and gradients.
#![cfg(all(feature = "flex", any(feature = "wgpu", feature = "cuda")))]

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

use burn::tensor::ops::FloatTensor;
use burn::tensor::{Bool, DType, Int, Tensor, TensorData, TensorPrimitive};
use burn_flex::Flex;
use flamingo_config::{Activation, BLOCK, Pairing, Scheme};
use flamingo_kernels::{
    AdamWStep, Attention, Finish, Gradients, Kernels, Matrix, Quantised, activate, adamw, attend, columns,
    cross_entropy, dequantise, first, gated_sum, layer, layer_norm, linear, product, rotate,
};

thread_local!(static STATE: Cell<u64> = const { Cell::new(1) });

fn next() -> u64 {
    STATE.set(STATE.get().wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407));
    STATE.get() >> 32
}

/// Numbers that look random and are the same in each run: sums of three uniform ones.
fn random(shape: &[usize], spread: f64) -> TensorData {
    let uniform = || next() as f64 / (1u64 << 31) as f64 - 1.0;
    let values: Vec<f32> =
        (0..shape.iter().product()).map(|_| ((uniform() + uniform() + uniform()) * spread) as f32).collect();
    TensorData::new(values, shape.to_vec())
}

fn codes(shape: [usize; 2]) -> TensorData {
    TensorData::new((0..shape[0] * shape[1]).map(|_| next() as i32).collect::<Vec<_>>(), shape.to_vec())
}

/// What a case is computed of, on any backend.
struct Inputs<'a> {
    data: &'a [TensorData],
    dtype: DType,
    /// Whether gradients and updates are wanted, too.
    training: bool,
}

impl Inputs<'_> {
    fn get<B: Kernels, const D: usize>(&self, i: usize) -> Tensor<B, D> {
        let values: Vec<f32> = self.data[i].to_vec().expect("f32");
        Tensor::from_data(TensorData::new(values, self.data[i].shape.clone()), (&Default::default(), self.dtype))
    }

    fn raw<B: Kernels, const D: usize>(&self, i: usize) -> FloatTensor<B> {
        self.get::<B, D>(i).into_primitive().tensor()
    }
}

fn numbers<B: Kernels, const D: usize>(x: Tensor<B, D>) -> Vec<f64> {
    x.into_data().convert::<f64>().to_vec().expect("f64")
}

fn of<B: Kernels, const D: usize>(x: FloatTensor<B>) -> Vec<f64> {
    numbers::<B, D>(Tensor::from_primitive(TensorPrimitive::Float(x)))
}

/// Results of inference, and of training where that is wanted.
fn results(inputs: &Inputs, mut inference: Vec<Vec<f64>>, training: impl FnOnce() -> Vec<Vec<f64>>) -> Vec<Vec<f64>> {
    if inputs.training {
        inference.extend(training());
    }
    inference
}

type Case<'a> = &'a dyn Fn(&Inputs) -> Vec<Vec<f64>>;

/// The same in f32 (or `dtype`) on the GPU and in f64 by Burn; `tolerance` is of the largest number of each result.
fn alike(name: &str, data: &[TensorData], (dtype, training): (DType, bool), gpu: Case, cpu: Case, tolerance: f64) {
    let found = gpu(&Inputs { data, dtype, training });
    let wanted = cpu(&Inputs { data, dtype: DType::F64, training });
    for (i, (found, wanted)) in found.iter().zip(&wanted).enumerate() {
        assert_eq!(found.len(), wanted.len(), "{name}, result {i}");
        let largest = wanted.iter().fold(1e-6f64, |most, x| most.max(x.abs()));
        for (at, (f, w)) in found.iter().zip(wanted).enumerate() {
            assert!((f - w).abs() <= tolerance * largest, "{name}, result {i} at {at}: {f}, wanted {w} (of {largest})");
        }
    }
}

fn activations<B: Gradients>(kind: Activation) -> impl Fn(&Inputs) -> Vec<Vec<f64>> {
    move |inputs| {
        let x = inputs.get::<B, 2>(0);
        results(inputs, vec![numbers(activate(kind, x))], || {
            vec![of::<B, 2>(B::activate_backward(kind, inputs.raw::<B, 2>(0), inputs.raw::<B, 2>(1)))]
        })
    }
}

fn norms<B: Gradients>(inputs: &Inputs) -> Vec<Vec<f64>> {
    let [weight, bias] = [1, 2].map(|i| inputs.get::<B, 1>(i));
    let x = inputs.get::<B, 3>(0);
    let width = x.dims()[2];
    // Part of wider rows, as queries are.
    let part = columns(x.clone(), width / 2, width / 2);
    let half = weight.clone().narrow(0, 0, width / 2);
    let inference = vec![
        numbers(layer_norm(x.clone(), weight.clone(), Some(bias), 1e-5)),
        numbers(layer_norm(x, weight, None, 1e-5)),
        numbers(layer_norm(part, half, None, 1e-5)),
    ];
    results(inputs, inference, || {
        let (x, weight, grad) = (inputs.raw::<B, 3>(0), inputs.raw::<B, 1>(1), inputs.raw::<B, 3>(3));
        let squares = B::sum_squares(vec![x.clone(), weight.clone()]);
        let (frozen, none) = B::norm_backward(x.clone(), weight.clone(), grad.clone(), 1e-5, false);
        let (d_x, sums) = B::norm_backward(x, weight, grad, 1e-5, true);
        let (frozen, d_x) = (of::<B, 3>(frozen), of::<B, 3>(d_x));
        assert!(none.is_none() && frozen == d_x, "what trains changes the input's gradient");
        let sums = sums.into_iter().flatten().map(of::<B, 1>);
        [d_x].into_iter().chain(sums).chain([of::<B, 1>(squares)]).collect()
    })
}

/// Heads between tokens and their values, as models have them.
fn heads<B: Kernels>(x: Tensor<B, 4>) -> Tensor<B, 4> {
    x.swap_dims(1, 2)
}

fn attention<B: Gradients>(masked: bool) -> impl Fn(&Inputs) -> Vec<Vec<f64>> {
    move |inputs| {
        let [q, k, v] = [0, 1, 2].map(|i| heads(inputs.get::<B, 4>(i)));
        // As caches have them: the first of more.
        let spare = |x: Tensor<B, 4>| {
            let count = x.dims()[2];
            first(Tensor::cat(vec![x.clone(), x.narrow(2, 0, 1)], 2), 2, count)
        };
        let (k, v) = (spare(k), spare(v));
        let ([batch, _, queries, _], keys) = (q.dims(), k.dims()[2]);
        let hidden: Vec<bool> = (0..batch * queries * keys).map(|i| i % 3 == 1 && i % keys != 0).collect();
        let hidden = masked.then(|| {
            Tensor::<B, 4, Bool>::from_bool(TensorData::new(hidden, [batch, 1, queries, keys]), &Default::default())
        });
        let bias = masked.then(|| inputs.get::<B, 4>(3));
        let raw = |x: &Tensor<B, 4>| x.clone().into_primitive().tensor();
        let a = Attention::<B> {
            q: raw(&q),
            k: raw(&k),
            v: raw(&v),
            scale: 0.3,
            hidden: hidden.clone().map(Tensor::into_primitive),
            bias: bias.as_ref().map(raw),
        };
        let grad = raw(&heads(inputs.get::<B, 4>(4)));
        let out = attend(q, k, v, 0.3, hidden, bias);
        results(inputs, vec![numbers(out)], || B::attend_backward(a, grad).map(of::<B, 4>).to_vec())
    }
}

fn layers<B: Gradients>(inputs: &Inputs) -> Vec<Vec<f64>> {
    let (x, weight, bias) = (inputs.get::<B, 2>(0), inputs.get::<B, 2>(1), inputs.get::<B, 1>(2));
    let grad = || inputs.raw::<B, 2>(3);
    let inference = vec![numbers(linear(x.clone(), weight.clone(), Some(bias))), numbers(linear(x, weight, None))];
    results(inputs, inference, || {
        vec![
            of::<B, 2>(B::linear_input_gradient(inputs.raw::<B, 2>(1), grad())),
            of::<B, 2>(B::linear_weight_gradient(inputs.raw::<B, 2>(0), grad())),
            of::<B, 1>(B::linear_bias_gradient(grad())),
        ]
    })
}

/// The same as part of wider rows, as what a device pads is.
fn part_of_wider<B: Kernels>(x: Tensor<B, 2>) -> Tensor<B, 2> {
    let width = x.dims()[1];
    columns(Tensor::cat(vec![x.clone() * 2.0, x], 1), width, width)
}

/// A layer with each of its finishes.
fn finished<B: Kernels>(inputs: &Inputs) -> Vec<Vec<f64>> {
    let bias = || Some(inputs.get::<B, 1>(2));
    let (to, gate) = (|| inputs.raw::<B, 2>(3), || inputs.raw::<B, 1>(4));
    let finishes = [
        Finish::Plain,
        Finish::Activated(Activation::Gelu),
        Finish::Added(to()),
        Finish::Gated { x: to(), gate: gate() },
    ];
    let weight = || Matrix::Plain(part_of_wider(inputs.get::<B, 2>(1)).into_primitive().tensor());
    finishes.map(|finish| numbers(layer(inputs.get::<B, 2>(0), weight(), bias(), finish))).to_vec()
}

fn packed<B: Kernels>(scheme: Scheme) -> impl Fn(&Inputs) -> Vec<Vec<f64>> {
    move |inputs| {
        let codes: Vec<i32> = inputs.data[1].to_vec().expect("i32");
        let codes = TensorData::new(codes, inputs.data[1].shape.clone());
        let codes = Tensor::<B, 2, Int>::from_data(codes, (&Default::default(), DType::I32));
        let (scales, bias) = (inputs.get::<B, 2>(2), inputs.get::<B, 1>(3));
        let weight = || {
            let words = codes.dims()[1];
            let wider = Tensor::cat(vec![codes.clone(), codes.clone()], 1).narrow(1, words, words);
            let scales = part_of_wider(scales.clone()).into_primitive().tensor();
            Matrix::Quantised(Quantised { scheme, codes: wider.into_primitive(), scales })
        };
        let finish = Finish::Gated { x: inputs.raw::<B, 2>(4), gate: inputs.raw::<B, 1>(5) };
        vec![
            numbers(layer(inputs.get::<B, 2>(0), weight(), None, finish)),
            numbers(layer(inputs.get::<B, 2>(0), weight(), Some(bias), Finish::Plain)),
            numbers(dequantise(scheme, codes, scales, inputs.dtype)),
        ]
    }
}

fn small<B: Gradients>(inputs: &Inputs) -> Vec<Vec<f64>> {
    let x = inputs.get::<B, 4>(0);
    let [batch, heads, tokens, dim] = x.dims();
    let dims = inputs.data[1].shape[3];
    let turn = |pairing| numbers(rotate(x.clone(), inputs.get::<B, 4>(1), inputs.get::<B, 4>(2), pairing));
    let flat = x.clone().reshape([batch * heads * tokens, dim]);
    let gate = inputs.get::<B, 1>(3);
    let inference = vec![
        turn(Pairing::Halves),
        turn(Pairing::Neighbours),
        numbers(gated_sum(flat.clone(), flat.clone() * 0.5, gate)),
    ];
    results(inputs, inference, || {
        let raw = |x: Tensor<B, 4>| x.into_primitive().tensor();
        let [d_more, d_gate] = B::gated_sum_backward(raw(x.clone()), inputs.raw::<B, 1>(3), raw(x.clone() * 0.5 + 0.1));
        let step = AdamWStep { beta_1: 0.9, beta_2: 0.99, eps: 1e-8, keep: 0.99, rate: 1e-2, root_bias_2: 0.3 };
        let count = batch * heads * tokens * dim;
        let [one, two] = [x.clone(), x.clone() * x.clone()].map(|x| x.reshape([count]));
        let updated = adamw(one.clone(), one.clone() * 0.5, one.clone(), two, step).map(numbers);
        let d_x = B::columns_backward(raw(x.clone()), 3, dims + dim);
        // What is held elsewhere is left as it was: `one`.
        let mut all = vec![of::<B, 4>(d_more), of::<B, 1>(d_gate), of::<B, 4>(d_x), numbers(one)];
        all.extend(updated);
        all
    })
}

fn losses<B: Gradients>(inputs: &Inputs) -> Vec<Vec<f64>> {
    let logits = part_of_wider(inputs.get::<B, 2>(0));
    let [rows, vocab] = logits.dims();
    let targets: Vec<i32> = (0..rows).map(|row| (row * 7 % vocab) as i32).collect();
    results(inputs, vec![numbers(cross_entropy(logits, &targets))], || {
        let logits = part_of_wider(inputs.get::<B, 2>(0)).into_primitive().tensor();
        let grad = inputs.raw::<B, 1>(1);
        vec![of::<B, 2>(B::cross_entropy_backward(logits, &targets, grad))]
    })
}

fn products<B: Kernels>(inputs: &Inputs) -> Vec<Vec<f64>> {
    vec![numbers(product(inputs.get::<B, 3>(0), inputs.get::<B, 3>(1)))]
}

/// Everything on a backend; `rounding` is what a number of `dtype` may be off by. All that fails is named.
fn everything<B: Gradients>(dtype: DType, training: bool, rounding: f64) {
    let failed = Cell::new(0);
    let alike = |name: &str, data: &[TensorData], gpu: Case, cpu: Case| {
        let work = || alike(&format!("{name}, {dtype:?}"), data, (dtype, training), gpu, cpu, 8.0 * rounding);
        failed.set(failed.get() + usize::from(catch_unwind(AssertUnwindSafe(work)).is_err()));
    };
    for kind in [Activation::Gelu, Activation::GeluTanh, Activation::QuickGelu, Activation::Relu, Activation::Silu] {
        for shape in [[1, 5], [7, 33], [64, 256]] {
            let data = [random(&shape, 3.0), random(&shape, 1.0)];
            alike(&format!("{kind:?}"), &data, &activations::<B>(kind), &activations::<Flex>(kind));
        }
    }
    for [batch, tokens, width] in [[1, 1, 6], [2, 3, 34], [1, 5, 2048], [3, 400, 64]] {
        let data = [
            random(&[batch, tokens, width], 2.0),
            random(&[width], 1.0),
            random(&[width], 1.0),
            random(&[batch, tokens, width], 1.0),
        ];
        alike(&format!("norm {batch} {tokens} {width}"), &data, &norms::<B>, &norms::<Flex>);
    }
    for [batch, heads, queries, keys, dim] in [
        [1, 1, 1, 1, 8],
        [2, 3, 1, 300, 64],
        [1, 4, 8, 17, 80],
        [2, 2, 9, 65, 32],
        [1, 2, 40, 600, 16],
        [1, 2, 2, 5, 256],
    ] {
        let data = [
            random(&[batch, queries, heads, dim], 1.0),
            random(&[batch, keys, heads, dim], 1.0),
            random(&[batch, keys, heads, dim], 1.0),
            random(&[1, heads, 1, keys], 1.0),
            random(&[batch, queries, heads, dim], 1.0),
        ];
        for masked in [false, true] {
            let name = format!("attention {batch} {heads} {queries} {keys} {dim} {masked}");
            alike(&name, &data, &attention::<B>(masked), &attention::<Flex>(masked));
        }
    }
    for [rows, d_in, d_out] in
        [[1, 1, 1], [1, 64, 200], [3, 96, 7], [8, 2048, 65], [9, 33, 31], [16, 72, 40], [300, 64, 96]]
    {
        let data = [
            random(&[rows, d_in], 1.0),
            random(&[d_out, d_in], 1.0),
            random(&[d_out], 1.0),
            random(&[rows, d_out], 1.0),
        ];
        alike(&format!("linear {rows} {d_in} {d_out}"), &data, &layers::<B>, &layers::<Flex>);
        let data = [&data[..], &[random(&[1], 1.0)]].concat();
        alike(&format!("layer {rows} {d_in} {d_out}"), &data, &finished::<B>, &finished::<Flex>);
    }
    for scheme in [Scheme::Q8, Scheme::Q4] {
        for [rows, blocks, d_out] in [[1, 1, 1], [1, 70, 30], [5, 3, 17], [2, 64, 9], [12, 4, 40], [40, 64, 9]] {
            let data = [
                random(&[rows, blocks * BLOCK], 1.0),
                codes([d_out, scheme.row_words(blocks * BLOCK)]),
                random(&[d_out, blocks], 1.0),
                random(&[d_out], 1.0),
                random(&[rows, d_out], 1.0),
                random(&[1], 1.0),
            ];
            alike(&format!("{scheme} {rows} {blocks} {d_out}"), &data, &packed::<B>(scheme), &packed::<Flex>(scheme));
        }
    }
    for [batch, heads, tokens, dim, dims] in [[1, 1, 1, 4, 4], [2, 3, 5, 24, 8], [1, 2, 33, 64, 64]] {
        let data = [
            random(&[batch, heads, tokens, dim], 1.0),
            random(&[1, 1, tokens, dims], 0.5),
            random(&[1, 1, tokens, dims], 0.5),
            random(&[1], 1.0),
        ];
        alike(&format!("small {batch} {heads} {tokens} {dim} {dims}"), &data, &small::<B>, &small::<Flex>);
    }
    for [rows, vocab] in [[1, 7], [5, 33], [4, 256], [17, 3000]] {
        let data = [random(&[rows, vocab], 4.0), random(&[1], 1.0)];
        alike(&format!("loss {rows} {vocab}"), &data, &losses::<B>, &losses::<Flex>);
    }
    for [batch, m, k, n] in [[1, 1, 64, 96], [2, 5, 7, 3], [1, 130, 257, 65], [6, 33, 32, 33], [1, 1, 1, 1]] {
        let data = [random(&[batch, m, k], 1.0), random(&[batch, k, n], 1.0)];
        alike(&format!("product {batch} {m} {k} {n}"), &data, &products::<B>, &products::<Flex>);
    }
    assert_eq!(failed.get(), 0, "cases that failed");
}

#[cfg(feature = "wgpu")]
#[test]
#[ignore = "needs a Vulkan adapter: cargo test --workspace --test gpu -- --ignored"]
fn everything_on_wgpu() {
    everything::<burn_wgpu::Wgpu>(DType::F32, true, 1e-6);
}

#[cfg(feature = "cuda")]
#[test]
#[ignore = "needs an NVIDIA GPU: cargo test -p flamingo-kernels --features flex,cuda --test gpu -- --ignored"]
fn everything_on_cuda() {
    everything::<burn_cuda::Cuda>(DType::F32, true, 1e-6);
    everything::<burn_cuda::Cuda>(DType::BF16, true, 8e-3);
    // Nothing is trained in f16, which is too narrow for squares of gradients.
    everything::<burn_cuda::Cuda>(DType::F16, false, 1e-3);
}

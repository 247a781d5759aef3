//! The kernels for burn-flex against the same operations composed by Burn in f64, values and gradients.
#![cfg(feature = "flex")]

use std::cell::Cell;

use burn::tensor::ops::FloatTensor;
use burn::tensor::{
    Bool, DType, Int, Tensor, TensorData, TensorMetadata, TensorPrimitive, activation, bf16, f16, module,
};
use burn_autodiff::Autodiff;
use burn_flex::{Flex, FlexDevice};
use flamingo_config::{Activation, Pairing};
use flamingo_kernels::flex::math;
use flamingo_kernels::{
    AdamWStep, Attention, Gradients, Kernels, Past, activate, attend, attend_each, columns, cross_entropy, flex,
    layer_norm, linear, product, put, rotate,
};

type T<const D: usize> = Tensor<Flex, D>;

thread_local!(static STATE: Cell<u64> = const { Cell::new(1) });

/// Numbers that look random and are the same in each run: sums of three uniform ones.
fn random<const D: usize>(shape: [usize; D], spread: f64) -> T<D> {
    let uniform = || {
        let next = STATE.get().wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        STATE.set(next);
        (next >> 40) as f64 / (1u64 << 23) as f64 - 1.0
    };
    let values = (0..shape.iter().product()).map(|_| ((uniform() + uniform() + uniform()) * spread) as f32).collect();
    T::from_data(TensorData::new(values, shape), &FlexDevice)
}

fn raw<const D: usize>(x: &T<D>) -> FloatTensor<Flex> {
    x.clone().into_primitive().tensor()
}

/// The nearest numbers of bf16, even ones where two are as near: Burn's cast takes others there.
fn rounded(x: &T<2>) -> T<2> {
    let [rows, columns] = x.dims();
    let numbers: Vec<f32> = x.to_data().to_vec().expect("f32");
    let rounded: Vec<f32> = numbers.into_iter().map(|x| bf16::from_f32(x).to_f32()).collect();
    T::from_data(TensorData::new(rounded, [rows, columns]), &FlexDevice)
}

/// The same in f64, for which the kernels leave the work to Burn.
fn exact<const D: usize>(x: &T<D>) -> FloatTensor<Flex> {
    raw(&x.clone().cast(DType::F64))
}

fn numbers(x: FloatTensor<Flex>) -> Vec<f64> {
    let count = x.shape().num_elements();
    if count == 0 {
        return Vec::new();
    }
    let x: T<1> = Tensor::<Flex, 4>::from_primitive(TensorPrimitive::Float(as_4d(x))).reshape([count]);
    x.into_data().convert::<f64>().to_vec().expect("f64")
}

fn as_4d(x: FloatTensor<Flex>) -> FloatTensor<Flex> {
    if x.shape().num_dims() == 4 {
        return x;
    }
    let count = x.shape().num_elements();
    x.to_contiguous().reshape([1, 1, 1, count].into())
}

#[track_caller]
fn close(found: FloatTensor<Flex>, wanted: FloatTensor<Flex>, tolerance: f64) {
    let (found, wanted) = (numbers(found), numbers(wanted));
    assert_eq!(found.len(), wanted.len());
    let size = wanted.iter().fold(1e-3f64, |size, x| size.max(x.abs()));
    for (i, (a, b)) in found.iter().zip(&wanted).enumerate() {
        assert!((a - b).abs() <= tolerance * size, "{i}: {a} for {b}, largest {size}");
    }
}

#[test]
fn elementary_functions_are_exact_to_half_a_millionth() {
    let relative = |found: f32, wanted: f64| ((f64::from(found) - wanted) / wanted).abs();
    for i in -8700..8800 {
        let x = i as f32 / 100.0;
        assert!(relative(math::exp(x), f64::from(x).exp()) < 3e-7, "exp {x}");
        if x.abs() < 20.0 && i != 0 {
            assert!(relative(math::tanh(x), f64::from(x).tanh()) < 5e-7, "tanh {x}");
            assert!(relative(math::sigmoid(x), 1.0 / (1.0 + f64::from(-x).exp())) < 5e-7, "sigmoid {x}");
        }
    }
    assert_eq!((math::exp(-200.0), math::exp(f32::NEG_INFINITY), math::exp(0.0)), (0.0, 0.0, 1.0));
    assert!(math::exp(f32::NAN).is_nan() && math::normal(f32::NAN).0.is_nan() && math::tanh(f32::NAN).is_nan());
    // Known values of the normal distribution, its far tail included.
    for (x, share) in [
        (0.0, 0.5),
        (1.0, 0.841_344_746_068_542_9),
        (-1.0, 0.158_655_253_931_457_05),
        (-3.0, 0.001_349_898_031_630_094_5),
        (-6.0, 9.865_876_450_376_98e-10),
        (4.0, 0.999_968_328_758_166_9),
    ] {
        assert!(relative(math::normal(x).0, share) < 1e-6, "normal {x}: {}", math::normal(x).0);
        let density = (-0.5 * f64::from(x) * f64::from(x)).exp() * 0.398_942_280_401_432_7;
        assert!(relative(math::normal(x).1, density) < 5e-7, "density {x}");
    }
    // Where x² rounds, what is left of it counts in full.
    for (x, share) in [
        (-3.3, 4.834_242_245_222_712_6e-4),
        (-5.7, 5.990_378_103_404_622e-9),
        (-9.1, 4.516_575_627_666_838e-20),
        (-12.7, 2.956_492_570_319_857_7e-37),
    ] {
        assert!(relative(math::normal(x).0, share) < 4e-6, "normal {x}: {}", math::normal(x).0);
    }
}

#[test]
fn activations_and_their_gradients() {
    let kinds = [Activation::Gelu, Activation::GeluTanh, Activation::QuickGelu, Activation::Relu, Activation::Silu];
    for kind in kinds {
        // Not contiguous, more than one block, and values far out.
        let x = random([150, 131], 3.0).swap_dims(0, 1);
        let grad = random([131, 150], 1.0);
        close(Flex::activate(kind, raw(&x)), Flex::activate(kind, exact(&x)), 1e-6);
        let found = Flex::activate_backward(kind, raw(&x), raw(&grad));
        close(found, Flex::activate_backward(kind, exact(&x), exact(&grad)), 1e-6);
        // Burn's exact gradient is checked by a difference quotient.
        let step = 1e-5;
        let (more, less) = (x.clone().cast(DType::F64) + step, x.clone().cast(DType::F64) - step);
        let slope: T<2> = Tensor::from_primitive(TensorPrimitive::Float(Flex::activate(kind, raw(&more))))
            - Tensor::from_primitive(TensorPrimitive::Float(Flex::activate(kind, raw(&less))));
        let slope = slope / (2.0 * step) * grad.clone().cast(DType::F64);
        close(Flex::activate_backward(kind, raw(&x), raw(&grad)), raw(&slope), 1e-5);
    }
}

#[test]
fn norms_and_their_gradients() {
    for (rows, dim) in [(3, 5), (300, 96), (7, 2050)] {
        let x = random([rows, dim], 2.0) + 3.0;
        let (weight, bias, grad) = (random([dim], 1.0), random([dim], 1.0), random([rows, dim], 1.0));
        let found = Flex::norm(raw(&x), raw(&weight), Some(raw(&bias)), 1e-5);
        close(found, Flex::norm(exact(&x), exact(&weight), Some(exact(&bias)), 1e-5), 2e-6);
        close(Flex::norm(raw(&x), raw(&weight), None, 1e-5), Flex::norm(exact(&x), exact(&weight), None, 1e-5), 2e-6);
        for trained in [true, false] {
            let (found, sums) = Flex::norm_backward(raw(&x), raw(&weight), raw(&grad), 1e-5, trained);
            let (wanted, exact_sums) = Flex::norm_backward(exact(&x), exact(&weight), exact(&grad), 1e-5, trained);
            close(found, wanted, 2e-6);
            assert!(sums.is_some() == trained && exact_sums.is_some() == trained);
            let sums = sums.into_iter().flatten().zip(exact_sums.into_iter().flatten());
            sums.for_each(|(found, wanted)| close(found, wanted, 2e-6));
        }
    }
}

/// An attention over slices of wider tensors, as the model makes them.
fn attention(
    rows: usize,
    queries: usize,
    keys: usize,
    masked: bool,
) -> ([T<4>; 3], Option<T<4>>, Option<Tensor<Flex, 4, Bool>>) {
    let (heads, dim) = (3, 10);
    let split = |tokens: usize, part: usize| {
        let wide = random([rows, tokens, 3 * heads * dim], 1.0).narrow(2, part * heads * dim, heads * dim);
        wide.reshape([rows, tokens, heads, dim]).swap_dims(1, 2)
    };
    let hidden = masked.then(|| {
        let hidden = random([rows, 1, queries, keys], 1.0).greater_elem(0.3);
        // Every query sees the first key.
        let first = Tensor::<Flex, 4, Bool>::full([rows, 1, queries, 1], false, &FlexDevice);
        hidden.slice_assign([0..rows, 0..1, 0..queries, 0..1], first)
    });
    let bias = masked.then(|| random([1, heads, 1, keys], 1.0));
    ([split(queries, 0), split(keys, 1), split(keys, 2)], bias, hidden)
}

#[test]
fn attention_and_its_gradients() {
    for (rows, queries, keys) in [(1, 1, 1), (2, 1, 90), (2, 70, 33), (3, 130, 130)] {
        for masked in [false, true] {
            let ([q, k, v], bias, hidden) = attention(rows, queries, keys, masked);
            let hidden = hidden.map(Tensor::into_primitive);
            let make = |raw: fn(&T<4>) -> FloatTensor<Flex>| Attention::<Flex> {
                q: raw(&q),
                k: raw(&k),
                v: raw(&v),
                scale: 0.4,
                hidden: hidden.clone(),
                bias: bias.as_ref().map(raw),
            };
            close(Flex::attend(make(raw)), Flex::attend(make(exact)), 2e-6);
            let grad = random([rows, queries, 3, 10], 1.0).swap_dims(1, 2);
            let found = Flex::attend_backward(make(raw), raw(&grad));
            let wanted = Flex::attend_backward(make(exact), exact(&grad));
            found.into_iter().zip(wanted).for_each(|(found, wanted)| close(found, wanted, 1e-5));
        }
    }
}

/// The same numbers behind other strides: columns lie apart.
fn columns_apart(x: T<4>) -> T<4> {
    let [batch, heads, rows, dim] = x.dims();
    let apart = T::zeros([batch, heads, dim, rows], &FlexDevice).slice_assign([0..batch, 0..heads], x.swap_dims(2, 3));
    apart.swap_dims(2, 3)
}

#[test]
fn queries_of_each_text_see_what_they_see_alone() {
    let texts = [(1, 1, false), (3, 90, true), (1, 33, true), (2, 5, false), (1, 700, true)];
    let pasts: Vec<Past<Flex>> = texts
        .into_iter()
        .map(|(queries, keys, masked)| {
            let ([_, k, v], bias, hidden) = attention(1, queries, keys, masked);
            // Behind them buffers may hold anything.
            let more = T::full([1, 3, queries, 10], f32::NAN, &FlexDevice);
            let [k, v] = [k, v].map(|x| T::cat(vec![x, more.clone()], 2));
            Past { queries, k, v, keys, bias, hidden }
        })
        .collect();
    let ([q, ..], ..) = attention(1, 8, 1, false);
    let together = attend_each(q.clone(), pasts.clone(), 0.4);
    assert_eq!(together.dims(), [1, 3, 8, 10]);
    let apart = |past: &Past<Flex>| Past { v: columns_apart(past.v.clone()), ..past.clone() };
    let mut first = 0;
    for (text, past) in pasts.iter().enumerate() {
        let of_text = |x: &T<4>| x.clone().narrow(2, first, past.queries);
        let (own, found) = (of_text(&q), numbers(raw(&of_text(&together))));
        let alone = attend_each(own.clone(), vec![past.clone()], 0.4);
        assert_eq!(found, numbers(raw(&alone)), "text {text}");
        let Past { k, v, keys, hidden, bias, .. } = apart(past);
        let [k, v] = [k, v].map(|x| x.narrow(2, 0, keys));
        let attended = attend(columns_apart(own), k, v, 0.4, hidden, bias);
        match past.queries {
            // One query goes one way, whoever asks and wherever its columns lie.
            1 => assert_eq!(found, numbers(raw(&attended)), "text {text} by itself"),
            _ => close(raw(&alone), exact(&attended), 2e-6),
        }
        first += past.queries;
    }
    // Columns that do not lie together, of queries or of values.
    let found = attend_each(columns_apart(q.clone()), pasts.iter().map(apart).collect(), 0.4);
    assert_eq!(numbers(raw(&found)), numbers(raw(&together)));
}

#[test]
fn attention_that_looks_back_or_at_one_picture() {
    let (queries, keys) = (75, 75);
    let looks_back = |query: usize, key: usize| key > query;
    // Twenty-five keys a picture, the first fifteen tokens without one.
    let one_picture = |query: usize, key: usize| query < 15 || key / 25 != query / 30;
    let own_picture = |query: usize, key: usize| key / 25 != query / 25;
    for hides in [looks_back as fn(usize, usize) -> bool, one_picture, own_picture] {
        let hidden: Vec<bool> = (0..queries * keys).map(|i| hides(i / keys, i % keys)).collect();
        let hidden = Tensor::<Flex, 4, Bool>::from_data(TensorData::new(hidden, [1, 1, queries, keys]), &FlexDevice);
        let hidden = hidden.into_primitive();
        let ([q, k, v], _, _) = attention(2, queries, keys, false);
        let make = |raw: fn(&T<4>) -> FloatTensor<Flex>| Attention::<Flex> {
            q: raw(&q),
            k: raw(&k),
            v: raw(&v),
            scale: 0.4,
            hidden: Some(hidden.clone()),
            bias: None,
        };
        // Burn gives NaN where nothing is seen, in values and in all gradients: those rows get no part in it.
        let sees = |query: usize| (0..keys).any(|key| !hides(query, key));
        let known: Vec<usize> = (0..queries).filter(|&query| sees(query)).collect();
        let rows = |x: FloatTensor<Flex>| -> FloatTensor<Flex> {
            let x: T<4> = Tensor::from_primitive(TensorPrimitive::Float(x));
            let picked = known.iter().map(|&query| x.clone().narrow(2, query, 1)).collect();
            Tensor::cat(picked, 2).into_primitive().tensor()
        };
        close(rows(Flex::attend(make(raw))), rows(Flex::attend(make(exact))), 2e-6);
        let grad = random([2, queries, 3, 10], 1.0).swap_dims(1, 2);
        let [d_q, d_k, d_v] = Flex::attend_backward(make(raw), raw(&grad));
        let pick = |x: &T<4>| -> T<4> { Tensor::from_primitive(TensorPrimitive::Float(rows(raw(x)))) };
        let seen: Vec<bool> = known.iter().flat_map(|&query| (0..keys).map(move |key| hides(query, key))).collect();
        let seen = Tensor::<Flex, 4, Bool>::from_data(TensorData::new(seen, [1, 1, known.len(), keys]), &FlexDevice);
        let wanted = Attention::<Flex> {
            q: exact(&pick(&q)),
            k: exact(&k),
            v: exact(&v),
            scale: 0.4,
            hidden: Some(seen.into_primitive()),
            bias: None,
        };
        let [wanted_q, wanted_k, wanted_v] = Flex::attend_backward(wanted, exact(&pick(&grad)));
        close(d_k, wanted_k, 1e-5);
        close(d_v, wanted_v, 1e-5);
        close(rows(d_q.clone()), wanted_q, 1e-5);
        // What sees nothing learns nothing.
        let d_q: T<4> = Tensor::from_primitive(TensorPrimitive::Float(d_q));
        for query in (0..queries).filter(|&query| !sees(query)) {
            assert!(numbers(raw(&d_q.clone().narrow(2, query, 1))).iter().all(|&x| x == 0.0));
        }
    }
}

#[test]
fn linear_layers_and_their_gradients() {
    // Few rows are dot products; products of the others run on one thread or on several.
    for (rows, d_in, d_out) in [
        (1, 900, 300),
        (2, 64, 31),
        (3, 7, 5),
        (4, 1000, 90),
        (6, 50, 50),
        (7, 50, 50),
        (8, 50, 50),
        (9, 50, 50),
        (17, 1, 9),
        (90, 33, 20),
        (700, 130, 257),
    ] {
        // Neither the input nor the gradient lies row by row.
        let (x, grad) = (random([d_in, rows], 1.0).swap_dims(0, 1), random([d_out, rows], 1.0).swap_dims(0, 1));
        let (weight, bias) = (random([d_out, d_in], 1.0), random([d_out], 1.0));
        let found = Flex::linear_layer(raw(&x), raw(&weight), Some(raw(&bias)));
        close(found, Flex::linear_layer(exact(&x), exact(&weight), Some(exact(&bias))), 1e-6);
        let found = Flex::linear_layer(raw(&x), raw(&weight), None);
        close(found, Flex::linear_layer(exact(&x), exact(&weight), None), 1e-6);
        let found = Flex::linear_input_gradient(raw(&weight), raw(&grad));
        close(found, Flex::linear_input_gradient(exact(&weight), exact(&grad)), 1e-6);
        let found = Flex::linear_weight_gradient(raw(&x), raw(&grad));
        close(found, Flex::linear_weight_gradient(exact(&x), exact(&grad)), 1e-6);
        close(Flex::linear_bias_gradient(raw(&grad)), Flex::linear_bias_gradient(exact(&grad)), 1e-6);
    }
}

#[test]
fn linear_layers_of_weights_in_sixteen_bits() {
    let mut sizes: Vec<[usize; 3]> = (1..10).map(|rows| [rows, 130 + rows, 37 * rows]).collect();
    sizes.extend([[1, 700, 2048], [3, 70, 1025], [40, 257, 100], [9, 33, 70_000], [5, 3, 0], [0, 3, 5]]);
    for dtype in [DType::F16, DType::BF16] {
        for [rows, d_out, d_in] in sizes.iter().copied() {
            let x = random([d_in, rows], 1.0).swap_dims(0, 1);
            let weight = random([d_out + 1, d_in], 1.0).narrow(0, 1, d_out).cast(dtype);
            let bias = random([d_out], 1.0);
            let found = Flex::linear_layer_of_stored(raw(&x), raw(&weight), Some(raw(&bias)));
            let rounds = dtype == DType::BF16 && rows > flex::FEW && flex::multiplies_bf16();
            let seen = if rounds { rounded(&x) } else { x.clone() };
            let exactly = |bias| Flex::linear_layer(exact(&seen), exact(&weight), bias);
            if d_in > 0 {
                close(found, exactly(Some(exact(&bias))), 1e-6);
                close(Flex::linear_layer_of_stored(raw(&x), raw(&weight), None), exactly(None), 1e-6);
            } else {
                assert_eq!(numbers(found), numbers(raw(&bias)).repeat(rows));
            }
        }
    }
}

/// Each number that a format has, by itself.
#[test]
fn every_number_of_sixteen_bits_is_read_exactly() {
    let one = T::<2>::ones([1, 1], &FlexDevice);
    let read = |weight: T<2>, wanted: Vec<f32>| {
        let found = Flex::linear_layer_of_stored(raw(&one), raw(&weight), None);
        let found = numbers(found);
        for (found, wanted) in found.into_iter().zip(wanted) {
            let wanted = f64::from(wanted);
            assert!(found == wanted || (found.is_nan() && wanted.is_nan()), "{found} is not {wanted}");
        }
    };
    let all = || 0..=u16::MAX;
    let halves: Vec<f16> = all().map(f16::from_bits).collect();
    let wanted = halves.iter().map(|x| x.to_f32()).collect();
    read(T::from_data(TensorData::new(halves, [1 << 16, 1]), (&FlexDevice, DType::F16)), wanted);
    let brains: Vec<bf16> = all().map(bf16::from_bits).collect();
    let wanted = brains.iter().map(|x| x.to_f32()).collect();
    read(T::from_data(TensorData::new(brains, [1 << 16, 1]), (&FlexDevice, DType::BF16)), wanted);
}

type A = Autodiff<Flex>;

/// Gradients of the squares' sum of what `f` makes of leaves, of which those in the bits of `tracked` want one.
fn gradients<const N: usize, const D: usize>(
    leaves: &[T<4>; N],
    tracked: usize,
    f: impl Fn([Tensor<A, 4>; N]) -> Tensor<A, D>,
) -> [Option<T<4>>; N] {
    let wants = |i: usize| tracked >> i & 1 == 1;
    let leaves: [_; N] =
        std::array::from_fn(|i| Tensor::<A, 4>::from_inner(leaves[i].clone()).set_require_grad(wants(i)));
    let y = f(leaves.clone());
    let found = (y.clone() * y).sum().backward();
    leaves.map(|leaf| leaf.grad(&found))
}

/// Under `Autodiff` an operation has the gradients that Burn finds for the same composed, whichever inputs want one.
#[track_caller]
fn differentiated_alike<const N: usize, const D: usize>(
    leaves: [T<4>; N],
    ours: impl Fn([Tensor<A, 4>; N]) -> Tensor<A, D>,
    burns: impl Fn([Tensor<A, 4>; N]) -> Tensor<A, D>,
) {
    for tracked in 1..1 << N {
        let (found, wanted) = (gradients(&leaves, tracked, &ours), gradients(&leaves, tracked, &burns));
        for (i, (found, wanted)) in found.into_iter().zip(wanted).enumerate() {
            assert_eq!(found.is_some(), tracked >> i & 1 == 1, "input {i} of {tracked:b}");
            if let (Some(found), Some(wanted)) = (found, wanted) {
                close(raw(&found), raw(&wanted), 2e-6);
            }
        }
    }
}

#[test]
fn nodes_have_burns_gradients() {
    let flat = |x: Tensor<A, 4>| -> Tensor<A, 2> { x.flatten(0, 2) };
    let row = |x: Tensor<A, 4>| -> Tensor<A, 1> { x.flatten(0, 3) };
    let (x, weight, bias) = (random([2, 4, 5, 6], 1.0), random([1, 1, 9, 6], 1.0), random([1, 1, 1, 9], 1.0));
    differentiated_alike(
        [x.clone(), weight.clone(), bias],
        |[x, weight, bias]| linear(flat(x), flat(weight), Some(row(bias))),
        |[x, weight, bias]| module::linear(flat(x), flat(weight).transpose(), Some(row(bias))),
    );
    differentiated_alike(
        [x.clone(), weight],
        |[x, weight]| linear(flat(x), flat(weight), None),
        |[x, weight]| module::linear(flat(x), flat(weight).transpose(), None),
    );
    differentiated_alike([x.clone(), random([2, 4, 6, 7], 1.0)], |[a, b]| product(a, b), |[a, b]| a.matmul(b));
    let normal = |x: Tensor<A, 4>| {
        let centred = x.clone() - x.mean_dim(3);
        centred.clone() / ((centred.clone() * centred).mean_dim(3) + 1e-5).sqrt()
    };
    let (scale, shift) = (random([1, 1, 1, 6], 1.0), random([1, 1, 1, 6], 1.0));
    differentiated_alike(
        [x.clone(), scale.clone(), shift],
        |[x, scale, shift]| layer_norm(x, row(scale), Some(row(shift)), 1e-5),
        |[x, scale, shift]| normal(x) * scale + shift,
    );
    differentiated_alike(
        [x.clone(), scale],
        |[x, scale]| layer_norm(x, row(scale), None, 1e-5),
        |[x, scale]| normal(x) * scale,
    );
    differentiated_alike([x.clone()], |[x]| columns(x, 2, 3), |[x]| x.narrow(3, 2, 3));
    differentiated_alike(
        [x.clone(), random([2, 4, 7, 6], 1.0), random([2, 4, 7, 6], 1.0)],
        |[q, k, v]| attend(q, k, v, 0.4, None, None),
        |[q, k, v]| activation::softmax(q.matmul(k.transpose()) * 0.4, 3).matmul(v),
    );
    let (angles, targets) = (random([1, 1, 5, 2], 1.0), [3, 0, 5]);
    let angles = Tensor::<A, 4>::from_inner(Tensor::cat(vec![angles.clone(), angles], 3));
    let (cos, sin) = (angles.clone().cos(), angles.sin());
    differentiated_alike(
        [x.clone()],
        |[x]| rotate(x, cos.clone(), sin.clone(), Pairing::Halves),
        |[x]| {
            let [first, second, rest] = [(0, 2), (2, 2), (4, 2)].map(|(at, count)| x.clone().narrow(3, at, count));
            let turned = Tensor::cat(vec![second.clone().neg(), first.clone()], 3);
            Tensor::cat(vec![Tensor::cat(vec![first, second], 3) * cos.clone() + turned * sin.clone(), rest], 3)
        },
    );
    differentiated_alike(
        [random([1, 1, 3, 6], 2.0)],
        |[logits]| cross_entropy(flat(logits), &targets),
        |[logits]| {
            let column = Tensor::<A, 1, Int>::from_ints(targets, &FlexDevice).reshape([3, 1]);
            activation::log_softmax(flat(logits), 1).gather(1, column).mean().neg()
        },
    );
    differentiated_alike(
        [x],
        |[x]| activate(Activation::QuickGelu, x),
        |[x]| x.clone() * activation::sigmoid(x * 1.702),
    );
}

/// Bit for bit, whatever part of a larger tensor the input is.
#[test]
fn results_do_not_depend_on_threads() {
    let work = || {
        let x = random([2100, 96], 1.0).narrow(0, 700, 1300);
        let (weight, bias, grad) = (random([200, 96], 1.0), random([200], 1.0), random([1300, 200], 1.0));
        let scale = random([96], 1.0);
        let split = |x: &T<2>| x.clone().reshape([2, 650, 6, 16]).swap_dims(1, 2);
        let heads = split(&x);
        let a = || Attention { q: raw(&heads), k: raw(&heads), v: raw(&heads), scale: 0.3, hidden: None, bias: None };
        let mut found = vec![
            Flex::linear_layer(raw(&x), raw(&weight), Some(raw(&bias))),
            Flex::linear_input_gradient(raw(&weight), raw(&grad)),
            Flex::linear_weight_gradient(raw(&x), raw(&grad)),
            Flex::linear_bias_gradient(raw(&grad)),
            Flex::activate(Activation::Gelu, raw(&x)),
            Flex::columns(raw(&x), 3, 50),
            Flex::attend(a()),
        ];
        let (of_x, sums) = Flex::norm_backward(raw(&x), raw(&scale), raw(&x), 1e-5, true);
        found.push(of_x);
        found.extend(sums.into_iter().flatten());
        found.extend(Flex::attend_backward(a(), raw(&heads)));
        found.into_iter().map(numbers).collect::<Vec<_>>()
    };
    let with = |threads: usize| {
        STATE.set(1);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
        pool.install(|| {
            STATE.set(1);
            work()
        })
    };
    let one = with(1);
    assert_eq!(one, with(3));
    // The input did not start where its tensor does.
    STATE.set(1);
    let x = random([2100, 96], 1.0).narrow(0, 700, 1300);
    let copy = T::<2>::from_data(x.to_data(), &FlexDevice);
    assert_eq!(one[5], numbers(Flex::columns(raw(&copy), 3, 50)));
    assert_eq!(one[4], numbers(Flex::activate(Activation::Gelu, raw(&copy))));
}

#[test]
fn what_is_empty_stays_empty() {
    let none = |shape: [usize; 2]| raw(&T::<2>::zeros(shape, &FlexDevice));
    let flat = |count: usize| raw(&T::<1>::zeros([count], &FlexDevice));
    assert_eq!(numbers(Flex::linear_layer(none([0, 3]), none([2, 3]), Some(flat(2)))).len(), 0);
    assert_eq!(numbers(Flex::linear_layer(none([4, 0]), none([2, 0]), None)), [0.0; 8]);
    assert_eq!(numbers(Flex::linear_weight_gradient(none([0, 3]), none([0, 2]))), [0.0; 6]);
    assert_eq!(numbers(Flex::linear_bias_gradient(none([0, 2]))), [0.0; 2]);
    assert_eq!(numbers(Flex::norm(none([3, 0]), flat(0), None, 1e-5)).len(), 0);
    assert_eq!(numbers(Flex::columns_backward(none([3, 0]), 0, 2)), [0.0; 6]);
}

#[test]
#[should_panic(expected = "another shape")]
fn an_attention_needs_a_value_for_each_key() {
    let [q, k, v] = [5, 4, 3].map(|tokens| random([1, 2, tokens, 4], 1.0));
    Flex::attend(Attention { q: raw(&q), k: raw(&k), v: raw(&v), scale: 1.0, hidden: None, bias: None });
}

#[test]
fn columns_and_rotations() {
    let x = random([40, 21, 30], 1.0);
    for first in [0, 7, 20] {
        close(Flex::columns(raw(&x), first, 10), Flex::columns(exact(&x), first, 10), 0.0);
        close(Flex::columns_backward(raw(&x), first, 55), Flex::columns_backward(exact(&x), first, 55), 0.0);
    }
    for pairing in [Pairing::Halves, Pairing::Neighbours] {
        // The last are more than a block.
        for (dims, tokens) in [(4, 5), (10, 5), (10, 400)] {
            let ([q, _, _], _, _) = attention(3, tokens, 5, false);
            let (cos, sin) = (random([1, 1, tokens, dims], 1.0), random([1, 1, tokens, dims], 1.0));
            let found = Flex::rotate(raw(&q), raw(&cos), raw(&sin), pairing);
            close(found, Flex::rotate(exact(&q), exact(&cos), exact(&sin), pairing), 1e-6);
        }
    }
}

#[test]
fn a_query_that_sees_nothing_gets_zeros() {
    for queries in [1, 2] {
        let ([q, k, v], _, _) = attention(1, queries, 4, false);
        let hidden = Tensor::<Flex, 4, Bool>::full([1, 1, 1, 4], true, &FlexDevice).into_primitive();
        let a = Attention { q: raw(&q), k: raw(&k), v: raw(&v), scale: 1.0, hidden: Some(hidden), bias: None };
        assert!(numbers(Flex::attend(a)).iter().all(|&x| x == 0.0));
    }
}

#[test]
fn losses_and_their_gradients() {
    for (rows, vocab) in [(1, 2), (40, 301)] {
        let logits = random([rows, vocab], 4.0);
        let targets: Vec<i32> = (0..rows).map(|i| (i * 7 % vocab) as i32).collect();
        let grad = T::<1>::from_floats([0.7], &FlexDevice);
        let found = numbers(Flex::cross_entropy(raw(&logits), &targets))[0];
        let wanted = numbers(Flex::cross_entropy(exact(&logits), &targets))[0];
        assert!((found - wanted).abs() < 2e-6, "{found} for {wanted}");
        let found = Flex::cross_entropy_backward(raw(&logits), &targets, raw(&grad));
        close(found, Flex::cross_entropy_backward(exact(&logits), &targets, exact(&grad)), 1e-6);
    }
}

/// Logits in sixteen bits stay so: the loss is that of the same numbers in f32, the gradient its rounding.
#[test]
fn losses_of_logits_in_sixteen_bits() {
    let logits = random([5, 300], 4.0).cast(DType::BF16);
    let (targets, grad) = ([7, 0, 299, 4, 4], T::<1>::from_floats([0.7], &FlexDevice));
    let wide = logits.clone().cast(DType::F32);
    let found = cross_entropy(logits.clone(), &targets);
    assert_eq!(found.dtype(), DType::F32);
    assert_eq!(numbers(raw(&found)), numbers(Flex::cross_entropy(raw(&wide), &targets)));
    let found: T<2> = Tensor::from_primitive(TensorPrimitive::Float(Flex::cross_entropy_backward(
        raw(&logits),
        &targets,
        raw(&grad),
    )));
    assert_eq!(found.dtype(), DType::BF16);
    let wanted = Flex::cross_entropy_backward(raw(&wide), &targets, raw(&grad));
    let wanted: T<2> = Tensor::from_primitive(TensorPrimitive::Float(wanted));
    assert_eq!(numbers(raw(&found.cast(DType::F32))), numbers(raw(&wanted.cast(DType::BF16).cast(DType::F32))));
}

/// Sixteen bits are computed with in f32, and rounded once.
#[test]
fn sixteen_bits_are_computed_in_f32() {
    for dtype in [DType::BF16, DType::F16] {
        // What a kernel finds is the rounding of what it finds of the same numbers in f32.
        let same = |found: Vec<FloatTensor<Flex>>, wide: Vec<FloatTensor<Flex>>| {
            for (found, wide) in found.into_iter().zip(wide) {
                assert_eq!(found.dtype(), dtype);
                assert_eq!(
                    numbers(Flex::cast(found, DType::F32)),
                    numbers(Flex::cast(Flex::cast(wide, dtype), DType::F32))
                );
            }
        };
        let both = |x: FloatTensor<Flex>| {
            let half = Flex::cast(x, dtype);
            (half.clone(), Flex::cast(half, DType::F32))
        };
        // Columns first, and part of a larger tensor.
        let (x, x_wide) = both(raw(&random([300, 301], 2.0).swap_dims(0, 1).narrow(0, 1, 299)));
        let (grad, grad_wide) = both(raw(&random([299, 300], 2.0)));
        same(vec![Flex::activate(Activation::Gelu, x.clone())], vec![Flex::activate(Activation::Gelu, x_wide.clone())]);
        same(
            vec![Flex::activate_backward(Activation::Silu, x.clone(), grad.clone())],
            vec![Flex::activate_backward(Activation::Silu, x_wide.clone(), grad_wide.clone())],
        );

        // More rows than are in f32 at a time.
        let (weight, weight_wide) = both(raw(&random([7, 300], 1.0)));
        let (bias, bias_wide) = both(raw(&random([7], 1.0)));
        let found = Flex::linear_layer(x.clone(), weight.clone(), Some(bias.clone()));
        let wide = Flex::linear_layer(x_wide.clone(), weight_wide.clone(), Some(bias_wide));
        assert_eq!(found.dtype(), dtype);
        close(Flex::cast(found, DType::F32), wide, if dtype == DType::BF16 { 4e-3 } else { 5e-4 });
        // More outputs than are in f32 at a time.
        let (many, many_wide) = both(raw(&random([1100, 5], 1.0)));
        let (out, out_wide) = both(raw(&random([3, 1100], 1.0)));
        let found = Flex::linear_input_gradient(many, out);
        assert_eq!(found.dtype(), dtype);
        let wide = Flex::linear_input_gradient(many_wide, out_wide);
        close(Flex::cast(found, DType::F32), wide, if dtype == DType::BF16 { 4e-3 } else { 5e-4 });
        let (out, out_wide) = both(raw(&random([299, 7], 1.0)));
        let found = Flex::linear_input_gradient(weight, out.clone());
        assert_eq!(found.dtype(), dtype);
        let wide = Flex::linear_input_gradient(weight_wide.clone(), out_wide.clone());
        close(Flex::cast(found, DType::F32), wide, if dtype == DType::BF16 { 4e-3 } else { 5e-4 });
        same(
            vec![Flex::linear_weight_gradient(x, out.clone()), Flex::linear_bias_gradient(out)],
            vec![Flex::linear_weight_gradient(x_wide, out_wide.clone()), Flex::linear_bias_gradient(out_wide)],
        );
        let (none, empty) = (random([3, 0], 1.0), random([7, 0], 1.0));
        let found =
            Flex::linear_layer(Flex::cast(raw(&none), dtype), Flex::cast(raw(&empty), dtype), Some(bias.clone()));
        same(
            vec![found],
            vec![raw(&Tensor::<Flex, 1>::from_primitive(TensorPrimitive::Float(Flex::cast(bias, DType::F32)))
                .repeat_dim(0, 3))],
        );

        let heads = || both(raw(&random([2, 9, 3, 8], 1.0).swap_dims(1, 2)));
        let ([q, k, v, grad], [q_wide, k_wide, v_wide, grad_wide]) = {
            let all = [heads(), heads(), heads(), heads()];
            (all.clone().map(|(half, _)| half), all.map(|(_, wide)| wide))
        };
        let attention = |q, k, v| Attention { q, k, v, scale: 0.3, hidden: None, bias: None };
        same(
            vec![Flex::attend(attention(q.clone(), k.clone(), v.clone()))],
            vec![Flex::attend(attention(q_wide.clone(), k_wide.clone(), v_wide.clone()))],
        );
        same(
            Flex::attend_backward(attention(q.clone(), k, v), grad).into(),
            Flex::attend_backward(attention(q_wide.clone(), k_wide, v_wide), grad_wide).into(),
        );
        let (cos, cos_wide) = both(raw(&random([1, 1, 9, 4], 1.0)));
        same(
            vec![Flex::rotate(q, cos.clone(), cos, Pairing::Halves)],
            vec![Flex::rotate(q_wide, cos_wide.clone(), cos_wide, Pairing::Halves)],
        );

        let (logits, logits_wide) = both(raw(&random([5, 300], 4.0)));
        let one = raw(&T::<1>::from_floats([0.7], &FlexDevice));
        same(
            vec![Flex::cross_entropy_backward(logits.clone(), &[7, 0, 299, 4, 4], one.clone())],
            vec![Flex::cross_entropy_backward(logits_wide.clone(), &[7, 0, 299, 4, 4], one)],
        );
        let loss = |logits| numbers(Flex::cross_entropy(logits, &[7, 0, 299, 4, 4]));
        assert_eq!(loss(logits), loss(logits_wide));
    }
}

/// Of several tensors, more than one block of numbers, some of which do not lie together.
#[test]
fn squares_are_added_up() {
    for dtype in [DType::F32, DType::BF16] {
        let all = [random([150, 131], 3.0).swap_dims(0, 1), random([1, 7], 1e-3), random([0, 3], 1.0)];
        let all = all.map(|x| flamingo_kernels::cast(x, dtype));
        let wanted: f64 = all.iter().flat_map(|x| numbers(exact(x))).map(|x| x * x).sum();
        let found = numbers(Flex::sum_squares(all.iter().map(raw).collect()))[0];
        assert!((found / wanted - 1.0).abs() < 1e-6, "{found}, not {wanted}");
    }
}

/// The gradient of what was cast comes in the format that it was cast from.
#[test]
fn casts_have_gradients() {
    let x: Tensor<Autodiff<Flex>, 2> = Tensor::from_inner(random([3, 4], 1.0)).require_grad();
    let y = flamingo_kernels::cast(x.clone(), DType::BF16);
    assert_eq!(y.dtype(), DType::BF16);
    let slope = x.grad(&(y * 2.0).sum().backward()).expect("a gradient");
    assert_eq!(slope.dtype(), DType::F32);
    close(raw(&slope), raw(&T::<2>::full([3, 4], 2.0, &FlexDevice)), 0.0);
}

/// Contrastive training multiplies similarities by a hundred.
#[test]
fn a_small_loss_of_large_logits_is_exact() {
    let logits = T::<2>::from_floats([[100.0, 93.0, 91.5], [-3.0, 97.0, 90.0]], &FlexDevice);
    let found = numbers(Flex::cross_entropy(raw(&logits), &[0, 1]))[0];
    let wanted = numbers(Flex::cross_entropy(exact(&logits), &[0, 1]))[0];
    assert!((found / wanted - 1.0).abs() < 1e-4, "{found} for {wanted}");
}

#[test]
fn numbers_that_are_none_are_not_hidden() {
    let row = |values: [f32; 3]| raw(&T::<2>::from_floats([values], &FlexDevice));
    let slope = Flex::cross_entropy_backward(row([f32::NAN, 0.0, 0.0]), &[1], raw(&T::<1>::ones([1], &FlexDevice)));
    assert!(numbers(slope).iter().all(|x| x.is_nan()));
    let relu = numbers(Flex::activate(Activation::Relu, row([f32::NEG_INFINITY, f32::NAN, 2.0])));
    assert!(relu[0] == 0.0 && relu[1].is_nan() && relu[2] == 2.0, "{relu:?}");
}

#[test]
fn updates_leave_shared_tensors_alone() {
    let [weight, gradient, first] = [(); 3].map(|()| random([40_000], 1.0));
    let second = random([40_000], 1.0).abs();
    let step = AdamWStep { beta_1: 0.9, beta_2: 0.999, eps: 1e-8, keep: 0.99, rate: 0.1, root_bias_2: 0.5 };
    let before = numbers(raw(&weight));
    let found = Flex::adamw(raw(&weight), raw(&gradient), raw(&first), raw(&second), step);
    let wanted = Flex::adamw(exact(&weight), exact(&gradient), exact(&first), exact(&second), step);
    found.into_iter().zip(wanted).for_each(|(found, wanted)| close(found, wanted, 1e-6));
    assert_eq!(numbers(raw(&weight)), before);
}

/// Tokens of any layout land where they belong, in place where nobody else holds the buffer, and nowhere else where somebody does.
#[test]
fn tokens_are_put_into_buffers() {
    let buffer: T<4> = random([2, 3, 9, 5], 1.0);
    for (start, tokens) in [(0, 0..1), (3, 0..2), (3, 1..4), (8, 2..3), (0, 0..9), (4, 0..0), (4, 1..1)] {
        let all = tokens.end + 1;
        let split: T<4> = random([2, all, 3, 5], 1.0).swap_dims(1, 2);
        let columns = random([2, 3, 5, all], 1.0).swap_dims(2, 3);
        for x in [split, columns] {
            let own = x.clone().slice([0..2, 0..3, tokens.clone(), 0..5]);
            let wanted = buffer.clone().slice_assign([0..2, 0..3, start..start + tokens.len(), 0..5], own);
            let kept = buffer.to_data();
            let found = put(buffer.clone(), x.clone(), tokens.clone(), start);
            assert_eq!(found.to_data(), wanted.to_data(), "{tokens:?} at {start}");
            assert_eq!(buffer.to_data(), kept, "the buffer of somebody else was written to");
            let own: T<4> = T::from_data(buffer.to_data(), &FlexDevice);
            let place = raw(&own).bytes().as_ptr();
            let written = put(own, x, tokens.clone(), start);
            assert_eq!(raw(&written).bytes().as_ptr(), place, "a buffer that nobody else holds was copied");
            assert_eq!(written.to_data(), wanted.to_data());
        }
    }
}

#[test]
fn sums_behind_a_gate() {
    for (rows, gate) in [(3, 0.4), (900, -3.0), (5, 0.0)] {
        let [x, more] = [(); 2].map(|()| random::<3>([rows, 2, 20], 1.0).swap_dims(0, 1));
        let gate = T::<1>::from_floats([gate], &FlexDevice);
        let found = Flex::gated_sum(raw(&x), raw(&more), raw(&gate));
        close(found, Flex::gated_sum(exact(&x), exact(&more), exact(&gate)), 1e-6);
    }
}

//! The kernels for burn-flex against the same operations composed by Burn in f64, values and gradients.
#![cfg(feature = "flex")]

use std::cell::Cell;

use burn::tensor::ops::FloatTensor;
use burn::tensor::{Bool, DType, Tensor, TensorData, TensorPrimitive};
use burn_flex::{Flex, FlexDevice};
use flamingo_config::{Activation, Pairing};
use flamingo_kernels::flex::math;
use flamingo_kernels::{AdamWStep, Attention, Gradients, Kernels};

type T<const D: usize> = Tensor<Flex, D>;

/// Numbers that look random and are the same in each run: sums of three uniform ones.
fn random<const D: usize>(shape: [usize; D], spread: f64) -> T<D> {
    thread_local!(static STATE: Cell<u64> = const { Cell::new(1) });
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

/// The same in f64, for which the kernels leave the work to Burn.
fn exact<const D: usize>(x: &T<D>) -> FloatTensor<Flex> {
    raw(&x.clone().cast(DType::F64))
}

fn numbers(x: FloatTensor<Flex>) -> Vec<f64> {
    use burn::tensor::TensorMetadata;
    let count = x.shape().num_elements();
    let x: T<1> = Tensor::<Flex, 4>::from_primitive(TensorPrimitive::Float(as_4d(x))).reshape([count]);
    x.into_data().convert::<f64>().to_vec().expect("f64")
}

fn as_4d(x: FloatTensor<Flex>) -> FloatTensor<Flex> {
    use burn::tensor::TensorMetadata;
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
        let found = Flex::norm_backward(raw(&x), raw(&weight), raw(&grad), 1e-5);
        let wanted = Flex::norm_backward(exact(&x), exact(&weight), exact(&grad), 1e-5);
        found.into_iter().zip(wanted).for_each(|(found, wanted)| close(found, wanted, 2e-6));
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
        if known.len() == queries {
            let grad = random([2, queries, 3, 10], 1.0).swap_dims(1, 2);
            let found = Flex::attend_backward(make(raw), raw(&grad));
            let wanted = Flex::attend_backward(make(exact), exact(&grad));
            found.into_iter().zip(wanted).for_each(|(found, wanted)| close(found, wanted, 1e-5));
        }
    }
}

#[test]
fn linear_layers_and_their_gradients() {
    // Few rows are left to Burn; products of the others run on one thread or on several.
    for (rows, d_in, d_out) in [(3, 7, 5), (17, 1, 9), (90, 33, 20), (700, 130, 257)] {
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

/// What `Autodiff` makes of a linear layer is what Burn makes of its own, whichever of its inputs want a gradient.
#[test]
fn linear_layers_are_differentiated_as_burns() {
    type A = burn_autodiff::Autodiff<Flex>;
    let (x, weight, bias) = (random([40, 6], 1.0), random([9, 6], 1.0), random([9], 1.0));
    for tracked in 1..8 {
        let wants = |i: usize| tracked >> i & 1 == 1;
        let gradients = |ours: bool| {
            let leaf = |i, x: &T<2>| Tensor::<A, 2>::from_inner(x.clone()).set_require_grad(wants(i));
            let (x, weight) = (leaf(0, &x), leaf(1, &weight));
            let bias = Tensor::<A, 1>::from_inner(bias.clone()).set_require_grad(wants(2));
            let y = if ours {
                flamingo_kernels::linear(x.clone(), weight.clone(), Some(bias.clone()))
            } else {
                burn::tensor::module::linear(x.clone(), weight.clone().transpose(), Some(bias.clone()))
            };
            let found = (y.clone() * y).sum().backward();
            [x.grad(&found), weight.grad(&found), bias.grad(&found).map(Tensor::unsqueeze)]
        };
        for (i, (found, wanted)) in gradients(true).into_iter().zip(gradients(false)).enumerate() {
            assert_eq!((found.is_some(), wanted.is_some()), (wants(i), wants(i)));
            if let (Some(found), Some(wanted)) = (found, wanted) {
                close(raw(&found), raw(&wanted), 1e-6);
            }
        }
    }
}

#[test]
fn columns_and_rotations() {
    let x = random([40, 21, 30], 1.0);
    for first in [0, 7, 20] {
        close(Flex::columns(raw(&x), first, 10), Flex::columns(exact(&x), first, 10), 0.0);
        close(Flex::columns_backward(raw(&x), first, 55), Flex::columns_backward(exact(&x), first, 55), 0.0);
    }
    for pairing in [Pairing::Halves, Pairing::Neighbours] {
        for dims in [4, 10] {
            let ([q, _, _], _, _) = attention(3, 5, 5, false);
            let (cos, sin) = (random([1, 1, 5, dims], 1.0), random([1, 1, 5, dims], 1.0));
            let found = Flex::rotate(raw(&q), raw(&cos), raw(&sin), pairing);
            close(found, Flex::rotate(exact(&q), exact(&cos), exact(&sin), pairing), 1e-6);
        }
    }
}

#[test]
fn a_query_that_sees_nothing_gets_zeros() {
    let ([q, k, v], _, _) = attention(1, 2, 4, false);
    let hidden = Tensor::<Flex, 4, Bool>::full([1, 1, 1, 4], true, &FlexDevice).into_primitive();
    let a = Attention { q: raw(&q), k: raw(&k), v: raw(&v), scale: 1.0, hidden: Some(hidden), bias: None };
    assert!(numbers(Flex::attend(a)).iter().all(|&x| x == 0.0));
}

#[test]
fn losses_and_their_gradients() {
    for (rows, vocab) in [(1, 2), (40, 301)] {
        let logits = random([rows, vocab], 4.0);
        let targets: Vec<i32> = (0..rows).map(|i| (i * 7 % vocab) as i32).collect();
        let grad = T::<1>::from_floats([0.7], &FlexDevice);
        let found = numbers(Flex::cross_entropy(raw(&logits), &targets))[0];
        let wanted = numbers(Flex::cross_entropy(exact(&logits), &targets))[0];
        // A loss is a difference of numbers of the logits' size.
        assert!((found - wanted).abs() < 2e-6, "{found} for {wanted}");
        let found = Flex::cross_entropy_backward(raw(&logits), &targets, raw(&grad));
        close(found, Flex::cross_entropy_backward(exact(&logits), &targets, exact(&grad)), 1e-6);
    }
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

//! The operations as nodes of Burn's autodiff graph. What a gradient needs beside inputs is computed again.

use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, TensorMetadata};
use burn_autodiff::Autodiff;
use burn_autodiff::NodeId;
use burn_autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn_autodiff::grads;
use burn_autodiff::ops::{Backward, Ops, OpsKind};
use flamingo_config::{Activation, Pairing};

use crate::{Attention, Gradients, Kernels};

/// Hands a gradient to a parent that wants one.
fn register<B: Backend>(grads: &mut grads::Gradients, parent: Option<NodeId>, grad: FloatTensor<B>) {
    if let Some(parent) = parent {
        grads.register::<B>(parent, grad);
    }
}

/// Of each factor only what the other's gradient needs is kept.
#[derive(Debug)]
struct Product;

impl<B: Gradients> Backward<B, 2> for Product {
    type State = [Option<FloatTensor<B>>; 2];

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut grads::Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let [lhs, rhs] = ops.state;
        let [left, right] = ops.parents.map(|node| node.map(|node| node.id));
        if let (Some(left), Some(rhs)) = (left, rhs) {
            grads.register::<B>(left, B::product(grad.clone(), B::float_transpose(rhs)));
        }
        if let (Some(right), Some(lhs)) = (right, lhs) {
            grads.register::<B>(right, B::product(B::float_transpose(lhs), grad));
        }
    }
}

/// From this format.
#[derive(Debug)]
struct Cast(DType);

impl<B: Gradients> Backward<B, 1> for Cast {
    type State = ();

    fn backward(self, ops: Ops<(), 1>, grads: &mut grads::Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let [parent] = ops.parents.map(|node| node.map(|node| node.id));
        register::<B>(grads, parent, B::cast(grad, self.0));
    }
}

#[derive(Debug)]
struct Activate(Activation);

impl<B: Gradients> Backward<B, 1> for Activate {
    type State = FloatTensor<B>;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut grads::Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let [parent] = ops.parents.map(|node| node.map(|node| node.id));
        register::<B>(grads, parent, B::activate_backward(self.0, ops.state, grad));
    }
}

#[derive(Debug)]
struct LayerNorm<const N: usize>(f64);

/// `x`, `weight` and, if there is one, the bias.
impl<B: Gradients, const N: usize> Backward<B, N> for LayerNorm<N> {
    type State = [FloatTensor<B>; 2];

    fn backward(self, ops: Ops<Self::State, N>, grads: &mut grads::Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let [x, weight] = ops.state;
        let trained = ops.parents[1..].iter().any(Option::is_some);
        let (of_x, sums) = B::norm_backward(x, weight, grad, self.0, trained);
        for (parent, gradient) in ops.parents.into_iter().zip([of_x].into_iter().chain(sums.into_iter().flatten())) {
            register::<B>(grads, parent.map(|node| node.id), gradient);
        }
    }
}

#[derive(Debug)]
struct Attend;

impl<B: Gradients> Backward<B, 3> for Attend {
    type State = Attention<B>;

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut grads::Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let gradients = B::attend_backward(ops.state, grad);
        for (parent, gradient) in ops.parents.into_iter().zip(gradients) {
            register::<B>(grads, parent.map(|node| node.id), gradient);
        }
    }
}

/// `x`, `weight` and, if there is one, the bias. Of the first two only what a gradient needs is kept: the input of a frozen
/// weight is not.
#[derive(Debug)]
struct Linear;

impl<B: Gradients, const N: usize> Backward<B, N> for Linear {
    type State = [Option<FloatTensor<B>>; 2];

    fn backward(self, ops: Ops<Self::State, N>, grads: &mut grads::Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let [x, weight] = ops.state;
        let parent = |i: usize| ops.parents.get(i).and_then(|node| node.as_ref()).map(|node| node.id);
        if let (Some(parent), Some(weight)) = (parent(0), weight) {
            grads.register::<B>(parent, B::linear_input_gradient(weight, grad.clone()));
        }
        if let (Some(parent), Some(x)) = (parent(1), x) {
            grads.register::<B>(parent, B::linear_weight_gradient(x, grad.clone()));
        }
        if let Some(parent) = parent(2) {
            grads.register::<B>(parent, B::linear_bias_gradient(grad));
        }
    }
}

/// `x`, `more` and the gate.
#[derive(Debug)]
struct GatedSum;

impl<B: Gradients> Backward<B, 3> for GatedSum {
    type State = [FloatTensor<B>; 2];

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut grads::Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let [x, of_more, of_gate] = ops.parents.map(|node| node.map(|node| node.id));
        let [more, gate] = ops.state;
        register::<B>(grads, x, grad.clone());
        let [d_more, d_gate] = B::gated_sum_backward(more, gate, grad);
        register::<B>(grads, of_more, d_more);
        register::<B>(grads, of_gate, d_gate);
    }
}

#[derive(Debug)]
struct Columns {
    first: usize,
    width: usize,
}

impl<B: Gradients> Backward<B, 1> for Columns {
    type State = ();

    fn backward(self, ops: Ops<(), 1>, grads: &mut grads::Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let [parent] = ops.parents.map(|node| node.map(|node| node.id));
        register::<B>(grads, parent, B::columns_backward(grad, self.first, self.width));
    }
}

#[derive(Debug)]
struct Rotate(Pairing);

impl<B: Gradients> Backward<B, 1> for Rotate {
    type State = [FloatTensor<B>; 2];

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut grads::Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let [parent] = ops.parents.map(|node| node.map(|node| node.id));
        let [cos, sin] = ops.state;
        register::<B>(grads, parent, B::rotate(grad, cos, B::float_neg(sin), self.0));
    }
}

#[derive(Debug)]
struct CrossEntropy;

impl<B: Gradients> Backward<B, 1> for CrossEntropy {
    type State = (FloatTensor<B>, Vec<i32>);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut grads::Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let [parent] = ops.parents.map(|node| node.map(|node| node.id));
        let (logits, targets) = ops.state;
        register::<B>(grads, parent, B::cross_entropy_backward(logits, &targets, grad));
    }
}

impl<B: Gradients, C: CheckpointStrategy> Kernels for Autodiff<B, C> {
    fn product(lhs: FloatTensor<Self>, rhs: FloatTensor<Self>) -> FloatTensor<Self> {
        let (left, right) = (lhs.primitive.shape(), rhs.primitive.shape());
        let leading = left.num_dims().saturating_sub(2);
        assert_eq!(left[..leading], right[..leading], "factors have the same leading dimensions");
        let state = [rhs.is_tracked().then(|| lhs.primitive.clone()), lhs.is_tracked().then(|| rhs.primitive.clone())];
        let output = B::product(lhs.primitive, rhs.primitive);
        match Product.prepare::<C>([lhs.node, rhs.node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(state, output),
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
    }

    fn cast(x: FloatTensor<Self>, dtype: DType) -> FloatTensor<Self> {
        let step = Cast(x.primitive.dtype());
        let output = B::cast(x.primitive, dtype);
        step.prepare::<C>([x.node]).compute_bound().stateless(output)
    }

    fn activate(kind: Activation, x: FloatTensor<Self>) -> FloatTensor<Self> {
        match Activate(kind).prepare::<C>([x.node.clone()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(x.primitive.clone(), B::activate(kind, x.primitive)),
            OpsKind::UnTracked(prep) => prep.finish(B::activate(kind, x.primitive)),
        }
    }

    fn norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
        eps: f64,
    ) -> FloatTensor<Self> {
        let state = [x.primitive.clone(), weight.primitive.clone()];
        match bias {
            Some(bias) => {
                let nodes = [x.node.clone(), weight.node.clone(), bias.node.clone()];
                let output = B::norm(x.primitive, weight.primitive, Some(bias.primitive), eps);
                match LayerNorm::<3>(eps).prepare::<C>(nodes).compute_bound().stateful() {
                    OpsKind::Tracked(prep) => prep.finish(state, output),
                    OpsKind::UnTracked(prep) => prep.finish(output),
                }
            }
            None => {
                let nodes = [x.node.clone(), weight.node.clone()];
                let output = B::norm(x.primitive, weight.primitive, None, eps);
                match LayerNorm::<2>(eps).prepare::<C>(nodes).compute_bound().stateful() {
                    OpsKind::Tracked(prep) => prep.finish(state, output),
                    OpsKind::UnTracked(prep) => prep.finish(output),
                }
            }
        }
    }

    fn attend(a: Attention<Self>) -> FloatTensor<Self> {
        let nodes = [a.q.node.clone(), a.k.node.clone(), a.v.node.clone()];
        let inner = Attention {
            q: a.q.primitive,
            k: a.k.primitive,
            v: a.v.primitive,
            scale: a.scale,
            hidden: a.hidden,
            bias: a.bias.map(|bias| bias.primitive),
        };
        match Attend.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(inner.clone(), B::attend(inner)),
            OpsKind::UnTracked(prep) => prep.finish(B::attend(inner)),
        }
    }

    fn linear_layer(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
    ) -> FloatTensor<Self> {
        let state =
            [weight.is_tracked().then(|| x.primitive.clone()), x.is_tracked().then(|| weight.primitive.clone())];
        let (x, x_node, weight, weight_node) = (x.primitive, x.node, weight.primitive, weight.node);
        match bias {
            Some(bias) => {
                let output = B::linear_layer(x, weight, Some(bias.primitive));
                match Linear.prepare::<C>([x_node, weight_node, bias.node]).compute_bound().stateful() {
                    OpsKind::Tracked(prep) => prep.finish(state, output),
                    OpsKind::UnTracked(prep) => prep.finish(output),
                }
            }
            None => {
                let output = B::linear_layer(x, weight, None);
                match Linear.prepare::<C>([x_node, weight_node]).compute_bound().stateful() {
                    OpsKind::Tracked(prep) => prep.finish(state, output),
                    OpsKind::UnTracked(prep) => prep.finish(output),
                }
            }
        }
    }

    fn gated_sum(x: FloatTensor<Self>, more: FloatTensor<Self>, gate: FloatTensor<Self>) -> FloatTensor<Self> {
        let state = [more.primitive.clone(), gate.primitive.clone()];
        let output = B::gated_sum(x.primitive, more.primitive, gate.primitive);
        match GatedSum.prepare::<C>([x.node, more.node, gate.node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(state, output),
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
    }

    fn columns(x: FloatTensor<Self>, first: usize, count: usize) -> FloatTensor<Self> {
        let shape = x.primitive.shape();
        let step = Columns { first, width: shape[shape.num_dims() - 1] };
        let output = B::columns(x.primitive, first, count);
        step.prepare::<C>([x.node]).compute_bound().stateless(output)
    }

    fn rotate(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        pairing: Pairing,
    ) -> FloatTensor<Self> {
        let (cos, sin) = (cos.primitive, sin.primitive);
        let output = B::rotate(x.primitive, cos.clone(), sin.clone(), pairing);
        match Rotate(pairing).prepare::<C>([x.node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish([cos, sin], output),
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
    }

    fn cross_entropy(logits: FloatTensor<Self>, targets: &[i32]) -> FloatTensor<Self> {
        match CrossEntropy.prepare::<C>([logits.node.clone()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let state = (logits.primitive.clone(), targets.to_vec());
                prep.finish(state, B::cross_entropy(logits.primitive, targets))
            }
            OpsKind::UnTracked(prep) => prep.finish(B::cross_entropy(logits.primitive, targets)),
        }
    }
}

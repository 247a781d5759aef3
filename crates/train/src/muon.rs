//! Muon: momentum whose matrices are made orthogonal.

use std::collections::BTreeMap;

use burn::tensor::{Tensor, backend::Backend};

/// Momentum, orthogonalised by Newton-Schulz iterations, for the matrices inside of transformer blocks (K. Jordan et al.,
/// "Muon: an optimizer for hidden layers in neural networks", 2024). Models made from nothing learn in a fraction of
/// AdamW's steps with it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Muon {
    /// Its learning rate, in those of AdamW.
    pub factor: f64,
    /// Decay of the momentum.
    pub momentum: f64,
    /// Share of a weight that is lost at each step, times the learning rate.
    pub weight_decay: f64,
}

/// Newton-Schulz iterations, and the polynomial's coefficients.
const ITERATIONS: usize = 5;
const COEFFICIENTS: [f64; 3] = [3.4445, -4.7750, 2.0315];

/// Numbers of matrices that are worked on together, unless one has more: it takes a few copies of them.
const AT_ONCE: usize = 1 << 20;

impl Muon {
    /// Into how many matrices of like height a parameter is cut, by its module path; 0 for what AdamW updates: embeddings,
    /// patches, heads, projections into other spaces, latents, norms and biases.
    pub(crate) fn matrices(path: &str, shape: &[usize]) -> usize {
        let block = path.split('.').any(|part| ["blocks", "layers", "cross_attention"].contains(&part));
        if shape.len() != 2 || !block || !path.ends_with(".weight") {
            return 0;
        }
        // Fused projections are matrices of their own.
        let fused = [(".qkv.weight", 3), (".to_kv.weight", 2)];
        fused.iter().find(|(end, _)| path.ends_with(end)).map_or(1, |(_, parts)| *parts)
    }

    /// The momentum after a gradient, and what is to be made orthogonal: it looks one step ahead (Nesterov).
    pub(crate) fn advance<B: Backend>(
        &self,
        gradient: Tensor<B, 1>,
        momentum: Option<Tensor<B, 1>>,
    ) -> [Tensor<B, 1>; 2] {
        let momentum = match momentum {
            Some(momentum) => momentum * self.momentum + gradient.clone(),
            None => gradient.clone(),
        };
        let ahead = gradient + momentum.clone() * self.momentum;
        [momentum, ahead]
    }

    /// A weight after one update; all tensors flat.
    pub(crate) fn step<B: Backend>(
        &self,
        weight: Tensor<B, 1>,
        direction: Tensor<B, 1>,
        learning_rate: f64,
        decays: bool,
    ) -> Tensor<B, 1> {
        let rate = learning_rate * self.factor;
        let keep = if decays { 1.0 - rate * self.weight_decay } else { 1.0 };
        weight * keep - direction * rate
    }
}

/// Matrices of `[count, rows, columns]`, flat, as directions: orthogonal, and longer where they are tall, so that outputs
/// change as much. Those of like shape are worked on together: a GPU would wait for many small products.
pub(crate) fn directions<B: Backend>(parameters: Vec<(Tensor<B, 1>, [usize; 3])>) -> Vec<Tensor<B, 1>> {
    let mut groups: BTreeMap<[usize; 2], Vec<usize>> = BTreeMap::new();
    for (i, (_, [_, rows, columns])) in parameters.iter().enumerate() {
        groups.entry([*rows.min(columns), *rows.max(columns)]).or_default().push(i);
    }
    let shapes: Vec<[usize; 3]> = parameters.iter().map(|(_, shape)| *shape).collect();
    let mut flat: Vec<Tensor<B, 1>> = parameters.into_iter().map(|(values, _)| values).collect();
    for members in groups.into_values() {
        let mut rest = members.as_slice();
        while !rest.is_empty() {
            let mut numbers = 0;
            let fits = |&&i: &&usize| {
                numbers += shapes[i].iter().product::<usize>();
                numbers <= AT_ONCE
            };
            let (some, left) = rest.split_at(rest.iter().take_while(fits).count().max(1));
            rest = left;
            let wide = |&i: &usize| {
                let matrices = flat[i].clone().reshape(shapes[i]);
                if shapes[i][1] > shapes[i][2] { matrices.swap_dims(1, 2) } else { matrices }
            };
            let found = orthogonal(Tensor::cat(some.iter().map(wide).collect(), 0));
            let counts = some.iter().map(|&i| shapes[i][0]).collect();
            for (&i, found) in some.iter().zip(found.split_with_sizes(counts, 0)) {
                let [count, rows, columns] = shapes[i];
                let stretch = (rows as f64 / columns as f64).sqrt();
                let found = if rows > columns { found.swap_dims(1, 2) * stretch } else { found };
                flat[i] = found.reshape([count * rows * columns]);
            }
        }
    }
    flat
}

/// Roughly the nearest matrices whose singular values are all one, of wide ones. TF32, which CUDA takes here, is enough.
fn orthogonal<B: Backend>(x: Tensor<B, 3>) -> Tensor<B, 3> {
    let norm = (x.clone() * x.clone()).sum_dim(2).sum_dim(1).sqrt() + 1e-7;
    let mut x = x / norm;
    let [a, b, c] = COEFFICIENTS;
    for _ in 0..ITERATIONS {
        let square = x.clone().matmul(x.clone().transpose());
        let mix = square.clone() * b + square.clone().matmul(square) * c;
        x = x.clone() * a + mix.matmul(x);
    }
    x
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Distribution, Tensor};
    use burn_flex::Flex;

    use super::*;

    /// Singular values near one, or longer for tall matrices, whatever stands beside them; in the order given.
    #[test]
    fn matrices_become_orthogonal() {
        let shapes = [[1, 24, 40], [3, 40, 24], [1, 32, 32], [2, 24, 40], [1, 2048, 600]];
        let random = |shape: [usize; 3]| {
            let count: usize = shape.iter().product();
            Tensor::<Flex, 1>::random([count], Distribution::Normal(0.0, 3.0), &Default::default())
        };
        let found = directions(shapes.map(|shape| (random(shape), shape)).to_vec());
        assert_eq!(found.len(), shapes.len());
        for (direction, [count, rows, columns]) in found.into_iter().zip(shapes) {
            let scale = (rows as f64 / columns as f64).max(1.0).sqrt();
            for y in (direction / scale).reshape([count, rows, columns]).iter_dim(0) {
                let y: Tensor<Flex, 2> = y.squeeze_dim(0);
                let y = if rows > columns { y.transpose() } else { y };
                let n = y.dims()[0];
                let square = y.clone().matmul(y.transpose()).into_data();
                let values: Vec<f32> = square.iter().collect();
                for i in 0..n {
                    let diagonal = values[i * n + i];
                    assert!((0.3..1.7).contains(&diagonal), "{rows}x{columns}: {diagonal}");
                }
                let outside: f32 = (0..n * n).filter(|i| i % (n + 1) != 0).map(|i| values[i].powi(2)).sum();
                assert!((outside / n as f32).sqrt() < 0.5, "{rows}x{columns}: {outside}");
            }
        }
    }

    /// Each direction is that of its own matrix: the same as when it is alone.
    #[test]
    fn directions_keep_their_places() {
        let shapes = [[2, 6, 8], [1, 8, 6], [1, 6, 8], [3, 6, 6]];
        let parameter = |(i, shape): (usize, [usize; 3])| {
            let count: usize = shape.iter().product();
            let values: Vec<f32> = (0..count).map(|j| ((i * 31 + j * j * 7) % 17) as f32 - 8.0).collect();
            (Tensor::<Flex, 1>::from_floats(values.as_slice(), &Default::default()), shape)
        };
        let parameters: Vec<_> = shapes.into_iter().enumerate().map(parameter).collect();
        let together = directions(parameters.clone());
        for (parameter, together) in parameters.into_iter().zip(together) {
            let alone = directions(vec![parameter]).remove(0);
            let furthest: f32 = (alone - together).abs().max().into_scalar();
            assert!(furthest < 1e-4, "{furthest}");
        }
    }

    #[test]
    fn matrices_of_blocks_are_taken_and_nothing_else() {
        for (path, shape, matrices) in [
            ("vision.blocks.0.attention.qkv.weight", vec![384, 128], 3),
            ("vision.blocks.0.mlp.up.weight", vec![512, 128], 1),
            ("resampler.layers.0.attention.to_kv.weight", vec![256, 128], 2),
            ("cross_attention.0.attention.to_q.weight", vec![128, 128], 1),
            ("vision.blocks.0.norm_1.weight", vec![128], 0),
            ("vision.blocks.0.mlp.up.bias", vec![512], 0),
            ("vision.patch_embedding.weight", vec![128, 192], 0),
            ("decoder.embedding.base", vec![1500, 128], 0),
            ("decoder.head.weight", vec![1500, 128], 0),
        ] {
            assert_eq!(Muon::matrices(path, &shape), matrices, "{path}");
        }
    }
}

//! Numbers that training from nothing starts with.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use sha2::Digest;

/// The first numbers of a tensor, by its module path and shape: norms are the identity, gates closed, biases zero,
/// latents and embeddings normal as upstream, CLIP and transformers draw them, matrices uniform as in PyTorch.
///
/// They depend on the path and the seed alone, so that a part can be drawn without the others.
pub fn initial(name: &str, shape: &[usize], seed: u64) -> Vec<f32> {
    let count = shape.iter().product();
    let width = shape.last().copied().unwrap_or(1).max(1) as f64;
    let last = name.rsplit('.').next().unwrap_or(name);
    let norm = name.rsplit('.').nth(1).is_some_and(|module| module.contains("norm"));
    match last {
        "bias" | "attention_gate" | "feed_forward_gate" => vec![0.0; count],
        "weight" if norm => vec![1.0; count],
        "logit_scale" => vec![(1.0f32 / 0.07).ln(); count],
        "latents" | "frame_embeddings" | "media_time_embeddings" => normal(name, seed, count, 1.0),
        "class_embedding" => normal(name, seed, count, width.powf(-0.5)),
        "position_embedding" if name.starts_with("vision.") => normal(name, seed, count, width.powf(-0.5)),
        "weight" => uniform(name, seed, count, width.powf(-0.5)),
        // Tables of tokens and positions.
        _ => normal(name, seed, count, 0.02),
    }
}

fn generator(name: &str, seed: u64) -> impl FnMut() -> f64 {
    let digest = sha2::Sha256::new_with_prefix(name).chain_update(seed.to_le_bytes()).finalize();
    let mut rng = ChaCha8Rng::from_seed(digest.into());
    // In (0, 1): logarithms are taken of it.
    move || (f64::from(rng.next_u32()) + 0.5) / 4_294_967_296.0
}

fn uniform(name: &str, seed: u64, count: usize, bound: f64) -> Vec<f32> {
    let mut next = generator(name, seed);
    (0..count).map(|_| ((2.0 * next() - 1.0) * bound) as f32).collect()
}

/// Box and Muller's way.
fn normal(name: &str, seed: u64, count: usize, deviation: f64) -> Vec<f32> {
    let mut next = generator(name, seed);
    let draw = |_| (deviation * (-2.0 * next().ln()).sqrt() * (std::f64::consts::TAU * next()).cos()) as f32;
    (0..count).map(draw).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_the_spread_that_they_should() {
        let spread = |numbers: &[f32]| {
            let mean = numbers.iter().sum::<f32>() / numbers.len() as f32;
            (numbers.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / numbers.len() as f32).sqrt()
        };
        let close = |a: f32, b: f32| (a / b - 1.0).abs() < 0.05;
        assert!(close(spread(&initial("resampler.latents", &[64, 100], 0)), 1.0));
        assert!(close(spread(&initial("vision.position_embedding", &[50, 100], 0)), 0.1));
        assert!(close(spread(&initial("decoder.embedding.base", &[50, 100], 0)), 0.02));
        let linear = initial("decoder.blocks.0.mlp.up.weight", &[64, 100], 0);
        assert!(close(spread(&linear), 0.1 / 3f32.sqrt()) && linear.iter().all(|x| x.abs() <= 0.1));
        assert_eq!(initial("vision.blocks.0.norm_1.weight", &[3], 0), [1.0; 3]);
        assert_eq!(initial("decoder.blocks.0.attention.q_norm.weight", &[3], 0), [1.0; 3]);
        assert_eq!(initial("cross_attention.1.attention_gate", &[1], 0), [0.0]);
        assert_eq!(initial("vision.blocks.0.norm_1.bias", &[3], 0), [0.0; 3]);
    }

    #[test]
    fn equal_seeds_give_equal_numbers_and_others_do_not() {
        let numbers = |name: &str, seed| initial(name, &[4, 4], seed);
        assert_eq!(numbers("a.weight", 1), numbers("a.weight", 1));
        assert_ne!(numbers("a.weight", 1), numbers("a.weight", 2));
        assert_ne!(numbers("a.weight", 1), numbers("b.weight", 1));
    }
}

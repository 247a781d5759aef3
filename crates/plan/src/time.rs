//! How long a step takes: operations over what a device does of its peak, bytes over bandwidths.

use flamingo_config::ModelConfig;
use flamingo_weights::layout;
use serde::Serialize;

use crate::{NVLINK, Precision, Run, Stream, Weights};

/// Bytes of f32.
const F32: u64 = 4;

/// The share of its peak that a device reaches in bf16 while it computes, as operations are counted here. With [`LAUNCHING`] fitted to ten
/// kinds of steps of 3B, 4B and 9B on an H100 of 989 TFLOP/s (`benches/plan.md`).
pub(crate) const MEASURED: f64 = 0.203;

/// Seconds that launching kernels takes for each block of a batch, forwards and backwards, and for each that is computed again.
pub(crate) const LAUNCHING: [f64; 2] = [1.55e-3, 0.65e-3];

/// The share that products of f32 are taken to reach: nothing was measured.
pub(crate) const ASSUMED_F32: f64 = 0.3;

/// Seconds of a step, and what is sent.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Step {
    /// Operations of a device, those that checkpointing repeats included.
    pub operations: f64,
    /// Seconds of the forward pass.
    pub forward: f64,
    /// Seconds of the backward pass.
    pub backward: f64,
    /// Seconds of computing again what was not kept.
    pub recomputation: f64,
    /// Seconds in which a GPU waits for kernels to be launched.
    pub launching: f64,
    /// Seconds of layers' gradients to their owners, as far as they take longer than the backward pass beside them, of the other
    /// gradients, and of weights back.
    pub communication: f64,
    /// Seconds of clipping and AdamW.
    pub optimizer: f64,
    /// Seconds of all, one after the other.
    pub total: f64,
}

impl Run {
    /// The share of its peak that a device is taken to reach while it computes.
    pub fn share_of_peak(&self) -> f64 {
        self.efficiency.unwrap_or(match self.precision {
            Precision::Fp32 => ASSUMED_F32,
            Precision::AmpBf16 => MEASURED,
        })
    }

    /// Seconds of launching for all batches of a step; a share of the peak that is given counts it in.
    fn launching(&self, checkpointing: bool) -> f64 {
        let config = &self.config;
        let layers = config.decoder.architecture().n_layers;
        let cross = (0..layers).filter(|&layer| config.cross_attention.has_block(layer)).count();
        let (all, again) = (config.vision.layers + config.resampler.depth + layers + cross, layers + cross);
        let batches = self.streams().filter(|(_, stream)| stream.rows > 0).count();
        match self.efficiency {
            Some(_) => 0.0,
            None => {
                let [each, once_more] = LAUNCHING;
                let again = if checkpointing { again as f64 * once_more } else { 0.0 };
                batches as f64 * (all as f64 * each + again)
            }
        }
    }

    /// Bytes that a device sends in a step; it receives as many. Gradients go to their owners, weights come back: of each
    /// all but what is its own.
    pub fn wire_bytes(&self, weights: &Weights) -> u64 {
        weights.trained() * (self.gradient_bytes() + F32) * (self.devices - 1) / self.devices
    }

    /// Bytes of a number of a gradient on its way.
    fn gradient_bytes(&self) -> u64 {
        if self.bf16_gradients { 2 } else { F32 }
    }
}

impl Step {
    /// Of a run.
    pub fn new(run: &Run, weights: &Weights, checkpointing: bool) -> Self {
        let (mut operations, mut last) = (Operations::default(), Operations::default());
        for (_, stream) in run.streams() {
            last = Operations::default();
            last.add(&run.config, run.freeze_lm_embeddings, stream);
            operations.forward += last.forward;
            operations.backward += last.backward;
            operations.again += last.again;
        }
        let rate = run.device.rate(run.precision) * run.share_of_peak();
        let again = if checkpointing { operations.again } else { 0.0 };
        let [forward, backward, recomputation] = [operations.forward, operations.backward, again].map(|o| o / rate);
        // Gradients of layers go out while the last stream's are computed.
        let beside = (last.backward + if checkpointing { last.again } else { 0.0 }) / rate;
        let of = |numbers: u64, bytes: u64| exchange(run, numbers * bytes);
        let [layers, rest] = [weights.trained() - weights.trained_last, weights.trained_last]
            .map(|numbers| of(numbers, run.gradient_bytes()));
        let communication = (layers - beside).max(0.0) + rest + of(weights.trained(), F32);
        let launching = run.launching(checkpointing);
        // Clipping reads the gradients; AdamW reads gradient, weight and two means, and writes all but the first.
        let bytes = F32 * (weights.trained() + 7 * weights.share(run.devices));
        let optimizer = bytes as f64 / run.device.bandwidth;
        Self {
            operations: operations.forward + operations.backward + again,
            forward,
            backward,
            recomputation,
            launching,
            communication,
            optimizer,
            total: forward + backward + recomputation + launching + communication + optimizer,
        }
    }
}

/// Seconds of an exchange in which a device has so many bytes, its own part included: what stays in a node and what leaves it go
/// at the same time.
fn exchange(run: &Run, bytes: u64) -> f64 {
    let in_node = run.devices_per_node.min(run.devices);
    let all = (bytes * (run.devices - 1) / run.devices) as f64;
    let others = (run.devices - 1).max(1) as f64;
    let within = all * (in_node - 1) as f64 / others / NVLINK.bandwidth.max(run.interconnect.bandwidth);
    let sharing = if run.interconnect.shared { in_node as f64 } else { 1.0 };
    let between = all * (run.devices - in_node) as f64 / others / (run.interconnect.bandwidth / sharing);
    within.max(between)
}

/// Operations of the streams of a step: two for each multiplication.
#[derive(Default)]
struct Operations {
    forward: f64,
    backward: f64,
    /// Of layers that checkpointing computes twice.
    again: f64,
}

impl Operations {
    /// Those of a batch. Each linear layer costs 2 operations a number of its weight and row, as many again backwards for its input
    /// and, if it trains, for its weight; attention twice as many backwards as forwards.
    fn add(&mut self, config: &ModelConfig, freeze_lm_embeddings: bool, stream: &Stream) {
        let a = config.decoder.architecture();
        let (v, r, x) = (&config.vision, &config.resampler, &config.cross_attention);
        let n = (stream.rows * stream.tokens) as f64;
        let predicted = (stream.rows * (stream.tokens - 1)) as f64;
        let pictures = stream.distinct() as f64;
        let latents = r.num_latents as f64;
        let places = (stream.rows * stream.most_images) as f64 * latents;
        let patches = v.patches() as f64;
        // Gradients do not reach blocks below everything that trains.
        let first = if freeze_lm_embeddings { (0..a.n_layers).find(|&layer| x.has_block(layer)) } else { Some(0) };
        let below = |name: &str| {
            let layer = name.strip_prefix("decoder.blocks.").and_then(|rest| rest.split('.').next()?.parse().ok());
            layer.is_some_and(|layer: usize| first.is_none_or(|first| layer < first))
        };
        for tensor in layout(config) {
            let [rows, columns] = tensor.shape[..] else { continue };
            let name = tensor.name.as_str();
            let of = |part: &str| name.starts_with(part);
            // Rows of inputs; 0 where the matrix is looked up.
            let inputs = match name {
                _ if of("vision.blocks.") => pictures * (patches + 1.0),
                "vision.patch_embedding.weight" => pictures * patches,
                _ if of("resampler.layers.") && name.ends_with("to_kv.weight") => pictures * (patches + latents),
                _ if of("resampler.layers.") => pictures * latents,
                _ if of("cross_attention.") && name.ends_with("to_kv.weight") => places,
                _ if of("cross_attention.") || of("decoder.blocks.") || of("decoder.project_in.") => n,
                _ if of("decoder.head.") || of("decoder.project_out.") => predicted,
                _ if of("decoder.embedding.") && a.tied_head => predicted,
                _ => 0.0,
            };
            let forward = 2.0 * (rows * columns) as f64 * inputs;
            let trains = of("resampler.") || of("cross_attention.");
            let backward = match name {
                _ if of("vision.") || below(name) => 0.0,
                _ if trains => 2.0 * forward,
                _ => forward,
            };
            let again = if of("decoder.") && !of("decoder.blocks.") { 0.0 } else { forward };
            self.count(forward, backward, again);
        }
        // Scores and what they weigh.
        let attention = |queries: f64, keys: f64, width: usize| 4.0 * queries * keys * width as f64;
        let tower = v.layers as f64 * attention(pictures * (patches + 1.0), patches + 1.0, v.width);
        self.count(tower, 0.0, tower);
        let resampler = r.depth as f64 * attention(pictures * latents, patches + latents, r.heads * r.dim_head);
        self.count(resampler, 2.0 * resampler, resampler);
        let blocks = (0..a.n_layers).filter(|&layer| x.has_block(layer)).count() as f64;
        let cross = blocks * attention(n, places / stream.rows as f64, x.heads * x.dim_head);
        self.count(cross, 2.0 * cross, cross);
        let own = a.n_layers as f64 * attention(n, stream.tokens as f64, a.d_model);
        self.count(own, 2.0 * own, own);
    }

    fn count(&mut self, forward: f64, backward: f64, again: f64) {
        self.forward += forward;
        self.backward += backward;
        self.again += again;
    }
}

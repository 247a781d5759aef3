//! What is in memory, and when it is fullest.
//!
//! A step is gone through in order; at each moment it is known what is there: the graph shrinks from its last layer to its
//! first while gradients come. What is in use at the fullest moment is what a program needs whose allocator gives back what is
//! freed, as on a CPU. On a GPU CubeCL's keeps it for tensors of like size: there gradients and activations are counted
//! each at their own fullest, which ten measurements agree with within 10 % ([`RUNTIME`]). Tensors larger than a 256th of the device's memory lie
//! in pages of a 16th of it, larger than a 32nd in pages of a quarter (cubecl-runtime 0.10, `memory_manage.rs`), of which what stays
//! empty is counted, too.

use std::ops::RangeInclusive;

use serde::Serialize;

use crate::activations::Graph;
use crate::{Precision, Run, Weights};

/// Bytes of CUDA's own and of what CubeCL's allocator holds beside: what NVIDIA's driver counted in ten kinds of training steps on an
/// H100 beyond everything that is counted here, 1.8 to 2.9 GB in nine, and in the tenth 1.2 GB less than what is counted without it (`benches/plan.md`).
pub const RUNTIME: u64 = 2_000_000_000;

/// Bytes of f32.
const F32: u64 = 4;

/// What a device needs memory for, in bytes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Memory {
    /// Weights that stay as they are, in the run's format.
    pub frozen_weights: u64,
    /// Weights that train, f32.
    pub trained_weights: u64,
    /// Gradients at their fullest, f32; those of a second stream are beside those of the first.
    pub gradients: u64,
    /// Two means for each number that a device updates, f32.
    pub optimizer: u64,
    /// What the backward pass needs, at its fullest; copies of trained weights in the run's format are among it.
    pub activations: u64,
    /// Outputs of the vision tower that are remembered.
    pub vision_cache: u64,
    /// What the device's own software takes, and what its allocator leaves empty.
    pub runtime: u64,
    /// All of it.
    pub total: u64,
    /// What tensors take at the fullest moment.
    pub in_use: u64,
    /// When that is.
    pub moment: String,
}

/// What comes and goes.
struct Moment {
    gradients: u64,
    activations: u64,
    name: String,
}

impl Memory {
    /// Of a run, with or without gradient checkpointing.
    pub fn new(run: &Run, weights: &Weights, checkpointing: bool) -> Self {
        let trained = weights.trained() * F32;
        let mut moments = Vec::new();
        // Gradients that earlier streams left.
        let mut before = 0;
        let mut logits = 0;
        for (name, stream) in run.streams() {
            let graph = Graph::new(&run.config, run.precision, run.freeze_lm_embeddings, stream);
            logits = graph.logits.max(logits);
            let mut add = |moment: String, gradients: u64, activations: u64| {
                moments.push(Moment { gradients, activations, name: format!("{name}: {moment}") });
            };
            if checkpointing {
                checkpointed(&graph, run.precision, before, trained, &mut add);
            } else {
                whole(&graph, run.precision, before, &mut add);
                // All of a backward pass, before they are added to what is there.
                add("gradients".into(), before + trained, 0);
            }
            before = trained;
        }
        // Weights move where they lie; where a device updates a part of one, both are there for a moment.
        moments.push(Moment { gradients: trained + weights.largest() * F32, activations: 0, name: "update".into() });
        let most = |of: fn(&Moment) -> u64| moments.iter().map(of).max().unwrap_or(0);
        let (gradients, activations) = (most(|moment| moment.gradients), most(|moment| moment.activations));
        let fullest = moments.iter().max_by_key(|moment| moment.gradients + moment.activations);
        let fullest = fullest.expect("an update at least");
        let frozen_weights = weights.frozen * run.precision.bytes();
        let optimizer = 2 * weights.share(run.devices) * F32;
        let runtime = RUNTIME + empty(run, weights, logits);
        let always = frozen_weights + trained + optimizer + run.vision_cache;
        Self {
            frozen_weights,
            trained_weights: trained,
            gradients,
            optimizer,
            activations,
            vision_cache: run.vision_cache,
            runtime,
            total: always + gradients + activations + runtime,
            in_use: always + fullest.gradients + fullest.activations,
            moment: fullest.name.clone(),
        }
    }
}

/// What stays empty of the allocator's large pages. Activations and trained tensors that are so large are not counted: no measurement had
/// any.
fn empty(run: &Run, weights: &Weights, logits: u64) -> u64 {
    let memory = run.memory.0;
    let frozen = weights.frozen_matrices.iter().map(|numbers| numbers * run.precision.bytes());
    let tensors: Vec<u64> = frozen.chain([logits; 2]).collect();
    let of_pages = |page: u64, sizes: RangeInclusive<u64>| {
        let held: u64 = tensors.iter().filter(|bytes| sizes.contains(bytes)).sum();
        held.next_multiple_of(page.max(1)) - held
    };
    of_pages(memory / 16, memory / 256 + 1..=memory / 32) + of_pages(memory / 4, memory / 32 + 1..=u64::MAX)
}

/// Moments of a backward pass through a graph of everything, beside gradients that are there.
fn whole(graph: &Graph, precision: Precision, mut gradients: u64, add: &mut impl FnMut(String, u64, u64)) {
    let mut kept = graph.all();
    add("loss".into(), gradients, kept + graph.loss);
    for (layer, cross_attention) in graph.cross_attention.iter().enumerate().rev() {
        if layer >= graph.first {
            add(format!("decoder layer {layer}"), gradients, kept + graph.block.working);
            kept -= graph.block.kept;
        }
        if let Some(block) = cross_attention {
            add(format!("cross-attention {layer}"), gradients, kept + block.working);
            kept -= block.kept;
            // Those of a weight's copy stay in the copy's format until the pass is through.
            gradients += block.trained * precision.bytes();
            add(format!("cross-attention {layer}, its gradients"), gradients, kept + graph.hidden);
        }
    }
    // Their gradients have taken the place of keys and values, and become those of both side by side.
    let keys_values = graph.cross_attention.iter().flatten().count() as u64 * graph.keys_values;
    add("keys and values".into(), gradients, kept + keys_values / 2);
    kept -= keys_values;
    for (layer, block) in graph.resampler.iter().enumerate().rev() {
        add(format!("resampler layer {layer}"), gradients, kept + block.working);
        kept -= block.kept;
        gradients += block.trained * precision.bytes();
    }
}

/// Moments of a pass that keeps inputs of layers and computes each layer again. Gradients of a layer are added at once to those
/// that are there, which are `all` at most.
fn checkpointed(
    graph: &Graph,
    precision: Precision,
    mut gradients: u64,
    all: u64,
    add: &mut impl FnMut(String, u64, u64),
) {
    let mut inputs = (graph.cross_attention.len() as u64 + 1) * graph.hidden;
    let latents = graph.latents + graph.masks;
    add("loss".into(), gradients, inputs + latents + graph.loss);
    for (layer, cross_attention) in graph.cross_attention.iter().enumerate().rev() {
        inputs -= graph.hidden;
        // Beside inputs the gradient of the layer's output, and that of the latents.
        let around = inputs + graph.hidden + latents + graph.latents;
        let (cross, keys_values) = cross_attention.map_or_else(Default::default, |x| (x, graph.keys_values));
        let kept = around + cross.kept + keys_values;
        add(format!("decoder layer {layer}"), gradients, kept + graph.block.kept + graph.block.working);
        if cross_attention.is_some() {
            add(format!("cross-attention {layer}"), gradients, kept + cross.working);
            add(
                format!("cross-attention {layer}, its gradients"),
                gradients + cross.trained * F32,
                around + keys_values,
            );
            gradients = all.min(gradients + cross.trained * F32);
        }
    }
    let mut kept = graph.patches + 2 * graph.latents + graph.resampler.iter().map(|layer| layer.kept).sum::<u64>();
    let mut own = 0;
    for (layer, block) in graph.resampler.iter().enumerate().rev() {
        add(format!("resampler layer {layer}"), gradients + own, kept + block.working);
        kept -= block.kept;
        own += block.trained * precision.bytes();
    }
}

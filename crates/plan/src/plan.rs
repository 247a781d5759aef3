//! The plan: numbers, and what they stand on.

use serde::Serialize;

use crate::assumptions::assumptions;
use crate::run::MOST;
use crate::{Assumption, Device, Interconnect, Memory, PlanError, Precision, Run, Step, Stream, Weights};

/// One way to train: with gradient checkpointing or without.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Way {
    /// Whether inputs of layers alone are kept, and the rest computed again.
    pub gradient_checkpointing: bool,
    /// Memory of a device.
    pub memory: Memory,
    /// Whether a device has as much.
    pub fits: bool,
    /// Rows of pairs and documents that would fit, in the same proportion; nothing where not even one row does.
    pub largest_batch: Option<[u64; 2]>,
    /// A step.
    pub step: Step,
    /// Tokens a second of all devices, padding included.
    pub tokens_per_second: f64,
    /// Pictures a second of all devices.
    pub images_per_second: f64,
    /// Days of the whole run.
    pub days: f64,
    /// Dollars that the devices cost for so long.
    pub cost: f64,
}

/// What a run will take.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plan {
    /// The model's name.
    pub model: String,
    /// Devices.
    pub devices: u64,
    /// Devices of a node.
    pub devices_per_node: u64,
    /// Memory of each.
    pub device_memory: u64,
    /// What each is.
    pub device: Device,
    /// The share of its peak that it is taken to reach.
    pub efficiency: f64,
    /// What joins the nodes.
    pub interconnect: Interconnect,
    /// Number formats.
    pub precision: Precision,
    /// Parameters.
    pub parameters: u64,
    /// Parameters that train.
    pub trained_parameters: u64,
    /// Captioned pictures.
    pub pairs: Stream,
    /// Interleaved documents.
    pub documents: Stream,
    /// Updates of the whole run.
    pub steps: u64,
    /// Bytes that a device sends in a step; it receives as many.
    pub wire_bytes: u64,
    /// Everything kept, and checkpointed.
    pub ways: [Way; 2],
    /// What all this stands on.
    pub assumptions: Vec<Assumption>,
}

/// Plans a run.
///
/// # Errors
/// [`PlanError`] for what cannot be a run.
pub fn plan(run: &Run) -> Result<Plan, PlanError> {
    run.check()?;
    let weights = Weights::new(&run.config, run.freeze_lm_embeddings);
    let batches = |stream: &Stream| stream.samples / (run.devices * stream.rows);
    let steps = run.streams().map(|(_, stream)| batches(stream)).min().unwrap_or(0);
    let way = |gradient_checkpointing| {
        let memory = Memory::new(run, &weights, gradient_checkpointing);
        let step = Step::new(run, &weights, gradient_checkpointing);
        let rate = |of: &dyn Fn(&Stream) -> f64| {
            run.devices as f64 * run.streams().map(|(_, stream)| stream.rows as f64 * of(stream)).sum::<f64>()
                / step.total
        };
        let days = steps as f64 * step.total / 86_400.0;
        Way {
            gradient_checkpointing,
            fits: memory.total <= run.memory.0,
            largest_batch: largest_batch(run, &weights, gradient_checkpointing),
            tokens_per_second: rate(&|stream| stream.tokens as f64),
            images_per_second: rate(&|stream| stream.images),
            days,
            cost: days * 24.0 * run.devices as f64 * run.price,
            memory,
            step,
        }
    };
    Ok(Plan {
        model: run.config.name.clone(),
        devices: run.devices,
        devices_per_node: run.devices_per_node,
        device_memory: run.memory.0,
        device: run.device,
        efficiency: run.share_of_peak(),
        interconnect: run.interconnect,
        precision: run.precision,
        parameters: weights.frozen + weights.trained(),
        trained_parameters: weights.trained(),
        pairs: run.pairs,
        documents: run.documents,
        steps,
        wire_bytes: run.wire_bytes(&weights),
        ways: [way(false), way(true)],
        assumptions: assumptions(run),
    })
}

/// The most rows that fit, in the proportion of the run's.
fn largest_batch(run: &Run, weights: &Weights, checkpointing: bool) -> Option<[u64; 2]> {
    let [pairs, documents] = [run.pairs.rows, run.documents.rows];
    let (most, least) = (pairs.max(documents), pairs.min(documents));
    let rows = |n: u64| {
        let other = n * least / most;
        if pairs >= documents { [n, other] } else { [other, n] }
    };
    let fits = |n: u64| {
        let mut larger = run.clone();
        [larger.pairs.rows, larger.documents.rows] = rows(n);
        Memory::new(&larger, weights, checkpointing).total <= run.memory.0
    };
    // More rows take more, but for what stays empty of a page: what is found fits, and it may not be the most.
    let (mut fit, mut too_many) = (0u64, MOST + 1);
    while too_many - fit > 1 {
        let middle = fit.midpoint(too_many);
        if fits(middle) { fit = middle } else { too_many = middle }
    }
    // One of each that there is, at least.
    let found = rows(fit);
    let complete = found[0] >= pairs.min(1) && found[1] >= documents.min(1);
    complete.then_some(found)
}

#[cfg(test)]
mod tests {
    use flamingo_config::ModelConfig;

    use super::*;
    use crate::{DOCUMENTS, PAIRS};

    fn run() -> Run {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/openflamingo-9b/model.toml");
        let text = std::fs::read_to_string(path).expect("a model of the zoo");
        Run {
            config: ModelConfig::from_toml(&text).expect("a config"),
            precision: Precision::AmpBf16,
            freeze_lm_embeddings: false,
            devices: 64,
            devices_per_node: 8,
            device: "a100-80gb".parse().expect("a device"),
            memory: "80GB".parse().expect("a size"),
            efficiency: None,
            interconnect: "infiniband-200g".parse().expect("an interconnect"),
            bf16_gradients: false,
            vision_cache: 0,
            pairs: PAIRS,
            documents: DOCUMENTS,
            price: 2.0,
        }
    }

    /// All gradients but its own go out and all weights but its own come back.
    #[test]
    fn what_is_sent_is_counted() {
        let trained = 1_178_847_248;
        let wire = |change: &dyn Fn(&mut Run)| {
            let mut run = run();
            change(&mut run);
            plan(&run).expect("a plan").wire_bytes
        };
        assert_eq!(wire(&|run| run.devices = 1), 0);
        assert_eq!(wire(&|run| run.devices = 2), 8 * trained / 2);
        assert_eq!(wire(&|_| ()), 8 * trained * 63 / 64);
        assert_eq!(wire(&|run| run.bf16_gradients = true), 6 * trained * 63 / 64);
    }

    /// Each change makes a step longer, or larger.
    #[test]
    fn more_takes_more() {
        let base = plan(&run()).expect("a plan");
        let memory: [&dyn Fn(&mut Run); 7] = [
            &|run| run.pairs.rows *= 8,
            &|run| run.documents.rows += 1,
            &|run| run.documents.tokens += 1,
            &|run| run.documents.images += 1.0,
            &|run| run.precision = Precision::Fp32,
            &|run| run.vision_cache = 1 << 30,
            &|run| run.devices = 8,
        ];
        let time: [&dyn Fn(&mut Run); 5] = [
            &|run| run.pairs.rows += 1,
            &|run| run.documents.tokens += 1,
            &|run| run.documents.images += 1.0,
            &|run| run.efficiency = Some(0.01),
            &|run| run.interconnect.bandwidth /= 2.0,
        ];
        let changed = |change: &dyn Fn(&mut Run)| {
            let mut run = run();
            change(&mut run);
            plan(&run).expect("a plan")
        };
        for (i, change) in memory.iter().enumerate() {
            let [whole, checkpointed] = changed(change).ways.map(|way| way.memory.total);
            assert!(whole > base.ways[0].memory.total, "change {i}");
            // There another moment may stay the fullest.
            assert!(checkpointed >= base.ways[1].memory.total, "change {i}, checkpointed");
        }
        for (i, change) in time.iter().enumerate() {
            for (way, before) in changed(change).ways.iter().zip(&base.ways) {
                assert!(way.step.total > before.step.total, "change {i}");
            }
        }
    }

    /// What halved gradients save: of a fast network only those that come last are waited for, of a slow one all.
    #[test]
    fn gradients_of_layers_hide_behind_the_backward_pass() {
        let saved = |bandwidth: f64| {
            let seconds = |bf16_gradients: bool| {
                let mut run = Run { bf16_gradients, devices: 8, devices_per_node: 1, ..run() };
                run.interconnect.bandwidth = bandwidth;
                plan(&run).expect("a plan").ways[0].step.communication
            };
            (seconds(false) - seconds(true)) * bandwidth
        };
        let weights = Weights::new(&run().config, run().freeze_lm_embeddings);
        let half = |numbers: u64| (numbers * 2 * 7 / 8) as f64;
        let (fast, slow) = (saved(1e12), saved(1e6));
        assert!((fast / half(weights.trained_last) - 1.0).abs() < 1e-3, "{fast}");
        assert!((slow / half(weights.trained()) - 1.0).abs() < 1e-3, "{slow}");
    }

    /// Frozen layers below everything that trains keep nothing and have no backward pass.
    #[test]
    fn frozen_embeddings_spare_the_first_layers() {
        let mut run = run();
        let whole = |run: &Run| plan(run).expect("a plan").ways[0].clone();
        let trained = whole(&run);
        run.freeze_lm_embeddings = true;
        let frozen = whole(&run);
        // Cross-attention begins at the fourth of 32 layers: three blocks of n (5 d + 4 d) numbers in bf16.
        let spared = 3 * 32 * 256 * 9 * 4096 * 2;
        assert!(trained.memory.activations - frozen.memory.activations >= spared);
        assert!(frozen.step.backward < trained.step.backward);
    }

    #[test]
    fn the_largest_batch_fits_and_no_larger_one() {
        let mut run = run();
        let [pairs, documents] = plan(&run).expect("a plan").ways[1].largest_batch.expect("one fits");
        for (more, fits) in [(0, true), (1, false)] {
            (run.pairs.rows, run.documents.rows) = (pairs + 2 * more, documents + more);
            assert_eq!(plan(&run).expect("a plan").ways[1].fits, fits);
        }
        run.memory = "10GB".parse().expect("a size");
        assert_eq!(plan(&run).expect("a plan").ways[1].largest_batch, None);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let refused = |change: &dyn Fn(&mut Run)| {
            let mut run = run();
            change(&mut run);
            plan(&run).expect_err("an error").to_string()
        };
        assert!(refused(&|run| (run.pairs.rows, run.documents.rows) = (0, 0)).contains("nothing to train on"));
        assert!(refused(&|run| run.devices = 0).contains("--devices"));
        assert!(refused(&|run| run.efficiency = Some(f64::NAN)).contains("--efficiency"));
        assert!(refused(&|run| run.price = f64::INFINITY).contains("--price"));
        assert!(refused(&|run| run.documents.tokens = 1).contains("--max-tokens-mmc4"));
        assert!(refused(&|run| run.documents.samples = 64 * 32 - 1).contains("--samples-mmc4"));
        assert!(refused(&|run| run.documents.images = 7.0).contains("--images-mmc4"));
    }
}

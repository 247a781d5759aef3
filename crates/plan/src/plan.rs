//! The plan: numbers, and what they stand on.

use serde::Serialize;

use crate::run::MOST;
use crate::time::{ASSUMED_F32, LARGE, MEASURED};
use crate::{
    DOCUMENTS, Device, Interconnect, Memory, NVLINK, PAIRS, PlanError, Precision, Published, Run, Step, Stream, Weights,
};

/// Where an assumption is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// The paper, arXiv 2308.01390.
    Paper,
    /// Upstream's code.
    Upstream,
    /// The device's data sheet.
    DataSheet,
    /// A measurement.
    Measured,
    /// Nothing: it is taken for granted.
    Assumed,
    /// Whoever asks.
    Given,
}

/// Something that the numbers stand on.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Assumption {
    /// Where it is from.
    pub source: Source,
    /// What it is.
    pub what: String,
}

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
    /// What the devices cost for so long.
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
    let batches = |stream: &Stream| stream.samples.div_ceil(run.devices * stream.rows);
    let steps = run.streams().map(|(_, stream)| batches(stream)).max().unwrap_or(0);
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
        efficiency: run.share_of_peak(&weights),
        interconnect: run.interconnect,
        precision: run.precision,
        parameters: weights.frozen + weights.trained(),
        trained_parameters: weights.trained(),
        pairs: run.pairs,
        documents: run.documents,
        steps,
        wire_bytes: run.wire_bytes(&weights),
        ways: [way(false), way(true)],
        assumptions: assumptions(run, &weights),
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
    // More rows never take less.
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

fn assumptions(run: &Run, weights: &Weights) -> Vec<Assumption> {
    let mut all = Vec::new();
    let mut add = |source, what: String| all.push(Assumption { source, what });
    let published = Published::of(&run.config.name);
    let or_given = |same: bool, source| if same { source } else { Source::Given };

    let embeddings = if run.freeze_lm_embeddings { "frozen" } else { "trained" };
    let precision = run.precision;
    let same =
        published.is_some_and(|p| p.precision == run.precision && p.freeze_lm_embeddings == run.freeze_lm_embeddings);
    add(or_given(same, Source::Paper), format!("{precision}, embeddings of <image> and <|endofchunk|> {embeddings}"));
    if published.is_some() {
        add(
            Source::Paper,
            "64 GPUs on 8 nodes, an A100 each (Table 3); the 4B models sharded by FSDP, which is not planned here"
                .into(),
        );
    }
    let budget = |stream: &Stream, paper: &Stream| {
        or_given(stream.samples == paper.samples && stream.tokens == paper.tokens, Source::Paper)
    };
    if run.pairs.rows > 0 {
        let Stream { rows, tokens, samples, .. } = run.pairs;
        add(
            budget(&run.pairs, &PAIRS),
            format!("{samples} pairs, cut off after {tokens} tokens; all are counted as long"),
        );
        add(or_given(rows == PAIRS.rows, Source::Upstream), format!("{rows} pairs a device and step"));
    }
    if run.documents.rows > 0 {
        let Stream { rows, tokens, images, most_images, samples } = run.documents;
        add(
            budget(&run.documents, &DOCUMENTS),
            format!(
                "{samples} documents of {tokens} tokens and at most {most_images} pictures; a batch is padded to that many"
            ),
        );
        add(or_given(rows == DOCUMENTS.rows, Source::Upstream), format!("{rows} documents a device and step"));
        add(
            or_given(images == DOCUMENTS.images, Source::Assumed),
            format!("{images} pictures a document on average (the paper has the median, 2)"),
        );
    }
    add(Source::Assumed, "every token but a text's first is predicted".into());

    let Device { name, bandwidth, .. } = run.device;
    let (tera, giga) = (run.device.rate(run.precision) / 1e12, bandwidth / 1e9);
    match run.device.memory {
        Some(_) => add(Source::DataSheet, format!("{name}: {tera} TFLOP/s in this precision, {giga} GB/s of memory")),
        None => {
            add(Source::Given, format!("{tera} TFLOP/s"));
            add(Source::Assumed, format!("{giga} GB/s of memory"));
        }
    }
    let share = 100.0 * run.share_of_peak(weights);
    match (run.efficiency, run.precision) {
        (Some(_), _) => add(Source::Given, format!("{share:.1} % of that is reached")),
        (None, Precision::Fp32) => {
            add(Source::Assumed, format!("{:.0} % of that is reached: f32 was not timed on a GPU", 100.0 * ASSUMED_F32))
        }
        (None, Precision::AmpBf16) => {
            let [small, large] = MEASURED.map(|share| 100.0 * share);
            let size = LARGE / 1_000_000_000;
            add(
                Source::Measured,
                format!(
                    "{share:.1} % of that is reached, as in this program's steps on an H200 (below {size} B parameters {small:.1} %, else {large:.1} %; benches/gpu-check.md)"
                ),
            );
            add(Source::Assumed, "other devices reach the same share, and steps of more rows too".into());
        }
    }
    let Interconnect { name, bandwidth, shared } = run.interconnect;
    let whose = if shared { "a node" } else { "a device" };
    add(Source::Assumed, format!("{name} between nodes: {} GB/s {whose} and direction, all of it", bandwidth / 1e9));
    if run.devices_per_node > 1 {
        add(Source::Assumed, format!("NVLink within a node: {} GB/s a device and direction", NVLINK.bandwidth / 1e9));
    }
    add(Source::Assumed, "nothing is sent while anything is computed; shards are read and decoded in time".into());
    add(Source::Assumed, "a model on each device, the optimizer's state of a parameter on its owner; an exchange needs no memory of its own".into());
    let cache = run.vision_cache >> 20;
    add(Source::Assumed, format!("{cache} MiB of remembered pictures; none of them comes again"));
    add(
        Source::Measured,
        "0.5 GB for CUDA's own (benches/README.md); what an allocator keeps beside is not in it".into(),
    );
    add(Source::Assumed, format!("{} an hour and device", run.price));
    all
}

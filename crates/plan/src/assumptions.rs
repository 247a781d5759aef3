//! What the numbers stand on, and where that is from.

use serde::Serialize;

use crate::memory::RUNTIME;
use crate::time::{ASSUMED_F32, LAUNCHING};
use crate::{DOCUMENTS, Device, Interconnect, NVLINK, PAIRS, Precision, Published, Run, Stream};

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

/// Those of a plan.
pub(crate) fn assumptions(run: &Run) -> Vec<Assumption> {
    let mut all = Vec::new();
    let mut add = |source, what: String| all.push(Assumption { source, what });
    let published = Published::of(&run.config.name);
    let or_given = |same: bool, source| if same { source } else { Source::Given };

    let embeddings = if run.freeze_lm_embeddings { "frozen" } else { "trained" };
    let precision = run.precision;
    let source = match published {
        Some(p) => {
            or_given((p.precision, p.freeze_lm_embeddings) == (precision, run.freeze_lm_embeddings), Source::Paper)
        }
        None => Source::Assumed,
    };
    add(source, format!("{precision}, embeddings of <image> and <|endofchunk|> {embeddings}"));
    if let Some(published) = published {
        let sharded = if published.sharded { "; sharded by FSDP, which is not planned here" } else { "" };
        add(Source::Paper, format!("64 GPUs on 8 nodes{sharded}"));
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
    let share = 100.0 * run.share_of_peak();
    let launching = LAUNCHING.map(|seconds| 1e3 * seconds);
    match (run.efficiency, run.precision) {
        (Some(_), _) => add(Source::Given, format!("{share:.1} % of that is reached")),
        (None, Precision::Fp32) => {
            add(
                Source::Assumed,
                format!("{:.0} % of that is reached: f32 was not timed on a GPU", 100.0 * ASSUMED_F32),
            );
            add(Source::Assumed, "kernels are launched as fast as in bf16".into());
        }
        (None, Precision::AmpBf16) => {
            add(
                Source::Measured,
                format!(
                    "{share:.1} % of that is reached in computing, and launching kernels takes {} ms a block and batch, {} more where it is \
                     computed again: fitted to ten kinds of steps of 3B, 4B and 9B on an H100 (benches/plan.md)",
                    launching[0], launching[1]
                ),
            );
            add(Source::Assumed, "other devices reach the same share, and larger batches too".into());
        }
    }
    let Interconnect { name, bandwidth, shared } = run.interconnect;
    let whose = if shared { "a node" } else { "a device" };
    add(Source::Assumed, format!("{name} between nodes: {} GB/s {whose} and direction, all of it", bandwidth / 1e9));
    if run.devices_per_node > 1 {
        add(Source::Assumed, format!("NVLink within a node: {} GB/s a device and direction", NVLINK.bandwidth / 1e9));
    }
    add(Source::Assumed, "gradients of cross-attention are sent while the backward pass of the last stream computes (measured on CPUs alone), the rest and \
         weights that come back while nothing does; shards are read and decoded in time"
            .into());
    add(
        Source::Assumed,
        "a model on each device; each owns an equal part of what trains, with its optimizer state, and exchanges it with all others".into(),
    );
    if run.devices > 1 {
        add(
            Source::Assumed,
            "the exchange is as fast as these links, as NCCL would have it: this program still goes through the memory of hosts and TCP, \
             which was not measured at this size"
                .into(),
        );
    }
    add(Source::Assumed, "an exchange needs no memory of its own".into());
    let cache = run.vision_cache >> 20;
    add(Source::Assumed, format!("{cache} MiB of remembered pictures; none of them comes again"));
    let runtime = RUNTIME as f64 / 1e9;
    add(
        Source::Measured,
        format!(
            "{runtime} GB for CUDA and what its allocator holds, as nine of ten kinds of steps took on an H100 (benches/plan.md); beside them, \
             tensors larger than a 256th of the device's memory lie in pages of a 16th of it, larger than a 32nd in pages of a quarter"
        ),
    );
    add(
        Source::Measured,
        "freed activations make no room for gradients: each has its fullest moment (the same runs)".into(),
    );
    add(Source::Assumed, format!("{} dollars an hour and device", run.price));
    all
}

//! `flamingo plan`: what a training run will take.

use std::io::Write;
use std::path::Path;

use anyhow::{Context, bail};
use flamingo_config::ModelConfig;
use flamingo_data::printable;
use flamingo_plan::{Assumption, Memory, PAIRS, Plan, Precision, Published, Run, Source, Step, Stream, Way, plan};

use crate::args::PlanArgs;
use crate::models::count;

pub fn run(args: &PlanArgs) -> anyhow::Result<()> {
    let plan = plan(&wanted(args)?)?;
    let mut stdout = std::io::stdout().lock();
    if args.json {
        return Ok(writeln!(stdout, "{}", serde_json::to_string(&plan)?)?);
    }
    Ok(write!(stdout, "{}", page(&plan))?)
}

/// The run that was asked for: as the paper has it, where nothing else is said.
fn wanted(args: &PlanArgs) -> anyhow::Result<Run> {
    let config = config(args)?;
    let paper = Published::of(&config.name);
    let device = match args.device_flops {
        Some(device) => device,
        None => paper.map_or("a100-80gb", |paper| paper.device).parse()?,
    };
    let memory = args.device_memory.or(device.memory);
    let memory =
        memory.context("TFLOP/s do not say how large the device's memory is: add --device-memory 80GB, say")?;
    let interconnect = match args.interconnect {
        Some(interconnect) => interconnect,
        None => "infiniband-200g".parse()?,
    };
    let pairs =
        Stream { rows: args.batch_size_laion, tokens: args.max_tokens_laion, samples: args.samples_laion, ..PAIRS };
    let documents = Stream {
        rows: args.batch_size_mmc4,
        tokens: args.max_tokens_mmc4,
        images: args.images_mmc4,
        most_images: args.mmc4_max_num_images,
        samples: args.samples_mmc4,
    };
    Ok(Run {
        precision: args.precision.or(paper.map(|paper| paper.precision)).unwrap_or(Precision::AmpBf16),
        freeze_lm_embeddings: args.freeze_lm_embeddings || paper.is_some_and(|paper| paper.freeze_lm_embeddings),
        devices: args.devices,
        devices_per_node: args.devices_per_node,
        device,
        memory,
        efficiency: args.efficiency,
        interconnect,
        bf16_gradients: args.bf16_gradients,
        vision_cache: args.vision_cache_mib.saturating_mul(1 << 20),
        pairs,
        documents,
        price: args.price,
        config,
    })
}

/// The config of a model: of weights nothing is needed.
fn config(args: &PlanArgs) -> anyhow::Result<ModelConfig> {
    let (given, zoo) = (Path::new(&args.model), args.zoo.folder());
    let files = [given.to_path_buf(), given.join("model.toml"), zoo.join(given).join("model.toml")];
    let Some(file) = files.into_iter().find(|file| file.is_file()) else {
        // The zoo knows what to say.
        args.zoo.find(&args.model)?;
        bail!("{} has no model.toml", args.model);
    };
    let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    ModelConfig::from_toml(&text).with_context(|| format!("cannot use {}", file.display()))
}

/// What a row of a table says of one way to train.
type Cell<'a> = &'a dyn Fn(&Way) -> String;

/// The plan, to be read.
fn page(plan: &Plan) -> String {
    let mut lines = Vec::new();
    let memory = gb(plan.device_memory);
    lines.push(format!(
        "{}: {} parameters, of which {} train",
        printable(&plan.model),
        count(plan.parameters),
        count(plan.trained_parameters)
    ));
    lines.push(format!("{} devices of {memory} GB, {} a node", plan.devices, plan.devices_per_node.min(plan.devices)));
    lines.push(format!(
        "a step: {} pairs and {} documents a device; the whole run: {} steps",
        plan.pairs.rows, plan.documents.rows, plan.steps
    ));

    let mut row = |name: &str, cell: Cell| {
        let [whole, checkpointed] = &plan.ways;
        lines.push(format!("  {name:<36} {:>15} {:>15}", cell(whole), cell(checkpointed)));
    };
    let mut table = |title: &str, rows: &[(&str, Cell)]| {
        row("", &|_| String::new());
        row(title, &|way| if way.gradient_checkpointing { "checkpointed".into() } else { "all kept".into() });
        rows.iter().for_each(|(name, cell)| row(name, cell));
    };
    let bytes = |of: fn(&Memory) -> u64| move |way: &Way| gb(of(&way.memory));
    let seconds = |of: fn(&Step) -> f64| move |way: &Way| digits(of(&way.step));
    table(
        "memory of a device, GB",
        &[
            ("weights, frozen", &bytes(|m| m.frozen_weights)),
            ("weights that train", &bytes(|m| m.trained_weights)),
            ("gradients", &bytes(|m| m.gradients)),
            ("optimizer, an equal share", &bytes(|m| m.optimizer)),
            ("activations", &bytes(|m| m.activations)),
            ("remembered pictures", &bytes(|m| m.vision_cache)),
            ("CUDA and its allocator", &bytes(|m| m.runtime)),
            ("all", &bytes(|m| m.total)),
            (&format!("fits into {memory}"), &|way| if way.fits { "yes".into() } else { "no".into() }),
            ("largest batch, pairs + documents", &|way| {
                way.largest_batch.map_or("none".into(), |[pairs, documents]| format!("{pairs} + {documents}"))
            }),
        ],
    );
    table(
        "time of a step, seconds",
        &[
            ("forward", &seconds(|s| s.forward)),
            ("backward", &seconds(|s| s.backward)),
            ("computed again", &seconds(|s| s.recomputation)),
            ("launching kernels", &seconds(|s| s.launching)),
            ("communication", &seconds(|s| s.communication)),
            ("optimizer", &seconds(|s| s.optimizer)),
            ("all", &seconds(|s| s.total)),
        ],
    );
    table(
        "the whole run",
        &[
            ("tokens/s", &|way| format!("{:.0}", way.tokens_per_second)),
            ("pictures/s", &|way| format!("{:.0}", way.images_per_second)),
            ("days", &|way| digits(way.days)),
            ("dollars", &|way| format!("{:.0}", way.cost)),
        ],
    );
    lines.push(String::new());
    for way in &plan.ways {
        let which = if way.gradient_checkpointing { "checkpointed" } else { "all kept" };
        let Memory { in_use, moment, .. } = &way.memory;
        lines.push(format!("  in use at once, {which}: {} GB at most ({moment})", gb(*in_use)));
    }
    lines.push(format!("  sent by a device in a step, and as much received: {} GB", gb(plan.wire_bytes)));
    lines.push(String::new());
    lines.push("Assumptions".into());
    for Assumption { source, what } in &plan.assumptions {
        let source = match source {
            Source::Paper => "paper",
            Source::Upstream => "upstream",
            Source::DataSheet => "data sheet",
            Source::Measured => "measured",
            Source::Assumed => "assumed",
            Source::Given => "given",
        };
        lines.push(format!("  {source:<10} {what}"));
    }
    lines.iter().map(|line| format!("{}\n", line.trim_end())).collect()
}

/// Gigabytes.
fn gb(bytes: u64) -> String {
    digits(bytes as f64 / 1e9)
}

/// A number in about three digits.
fn digits(number: f64) -> String {
    match number {
        n if n >= 100.0 => format!("{n:.0}"),
        n if n >= 10.0 => format!("{n:.1}"),
        n if n >= 0.095 || n == 0.0 => format!("{n:.2}"),
        n => format!("{n:.4}"),
    }
}

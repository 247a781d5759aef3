//! Recorded training: gradients of one loss, and a few steps of upstream's loop.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, bail};
use flamingo_engine::{AdamW, Array, Device, Part, Schedule, TrainingOptions, open_training};
use flamingo_weights::{ModelFolder, checkpoint_names, embedding_name};
use serde_json::Value;

use super::Values;
use super::case::Run;

/// Gradients of the recorded loss of `right`, and the recorded steps.
pub(super) fn compute(
    run: &Run,
    case: &Value,
    folder: &Arc<ModelFolder>,
    device: Device,
    values: &mut Values,
) -> anyhow::Result<()> {
    // Upstream's gradient of the embedding table covers all of its rows.
    let parts = vec![Part::Resampler, Part::CrossAttention, Part::Decoder];
    let whole_table = TrainingOptions { parts, ..TrainingOptions::default() };
    if let Some((text, pixels, Some(labels))) = run.batch("right")? {
        let mut training = open_training(folder, device, &whole_table)?;
        training.backward(&text, Some(&pixels), &labels, 1.0)?;
        for (name, array) in renamed(folder, training.gradients()?, || None) {
            values.floats(format!("grad.{name}"), array);
        }
    }
    if !case["train"].is_null()
        && let Err(reason) = steps(run, case, folder, device, values)
    {
        // The forward passes are verified all the same; what is missing fails.
        tracing::warn!("the recorded training steps cannot be taken: {reason:#}");
    }
    Ok(())
}

/// Upstream's loop (`train/train_utils.py`): pairs, documents, mask, clip; the optimizer at the last micro-step.
fn steps(
    run: &Run,
    case: &Value,
    folder: &Arc<ModelFolder>,
    device: Device,
    values: &mut Values,
) -> anyhow::Result<()> {
    let recipe = &case["train"];
    let number = |name: &str| recipe[name].as_f64().with_context(|| format!("train.{name} is not recorded"));
    let count = |name: &str| recipe[name].as_u64().map(|n| n as usize).with_context(|| format!("no train.{name}"));
    let (steps, accumulation) = (count("steps")?, count("gradient_accumulation_steps")?);
    let schedule = match recipe["schedule"].as_str() {
        Some("constant_with_warmup") | None => Schedule::Constant,
        Some("linear") => Schedule::Linear,
        Some("cosine") => Schedule::Cosine,
        Some(other) => bail!("the recorded schedule `{other}` is not known"),
    };
    let mut parts = vec![Part::Resampler, Part::CrossAttention];
    let table = embedding_name(folder.config());
    if case["trainable"].as_array().is_some_and(|names| names.iter().any(|name| name == table.as_str())) {
        parts.push(Part::AddedEmbeddings);
    }
    let optimizer = AdamW { weight_decay: number("weight_decay")?, ..AdamW::default() }.into();
    let mut training =
        open_training(folder, device, &TrainingOptions { parts, optimizer, ..TrainingOptions::default() })?;

    let mut series: BTreeMap<&str, Vec<f32>> = BTreeMap::new();
    for step in 0..steps {
        let rate = number("lr")? * schedule.factor(step, count("warmup_steps")?, steps);
        for micro in 0..accumulation {
            for (stream, multiplier) in [("laion", "loss_multiplier_laion"), ("mmc4", "loss_multiplier_mmc4")] {
                let Some((text, pixels, Some(labels))) = run.batch(&format!("train.{stream}"))? else {
                    bail!("train.{stream} is not recorded");
                };
                let weight = number(multiplier)? / accumulation as f64;
                let loss = training.backward(&text, Some(&pixels), &labels, weight)?;
                series.entry(if stream == "laion" { "losses_laion" } else { "losses_mmc4" }).or_default().push(loss);
            }
            if step == 0 && micro == 0 {
                for (name, array) in renamed(folder, training.gradients()?, || None) {
                    values.floats(format!("train.grad0.{name}"), array);
                }
            }
            series.entry("grad_norms").or_default().push(training.clip(number("clip_grad_norm")?)? as f32);
            series.entry("lrs").or_default().push(rate as f32);
        }
        training.update(rate)?;
    }
    for (name, array) in renamed(folder, training.weights()?, || folder.tensor_f32("decoder.embedding.base")) {
        values.floats(format!("train.final.{name}"), array);
    }
    for (name, data) in series {
        values.floats(format!("train.{name}"), Array { shape: vec![data.len()], data });
    }
    Ok(())
}

/// Arrays under upstream's names, the two parts of the embedding table put together.
///
/// `base` stands for base rows that do not train.
fn renamed(
    folder: &ModelFolder,
    arrays: Vec<(String, Array)>,
    base: impl FnOnce() -> Option<Vec<f32>>,
) -> Vec<(String, Array)> {
    let mut arrays: BTreeMap<String, Array> = arrays.into_iter().collect();
    let mut all: Vec<(String, Array)> = checkpoint_names(folder.config())
        .into_iter()
        .filter_map(|(spec, name)| arrays.remove(&spec.name).map(|array| (name, array)))
        .collect();
    if let Some(added) = arrays.remove("decoder.embedding.added") {
        let (rows, width) = (folder.config().tokens.base_rows(), added.shape[1]);
        let base = arrays.remove("decoder.embedding.base").map(|base| base.data).or_else(base);
        let mut data = base.unwrap_or_else(|| vec![0.0; rows * width]);
        data.extend(added.data);
        all.push((embedding_name(folder.config()), Array { shape: vec![rows + added.shape[0], width], data }));
    }
    all
}

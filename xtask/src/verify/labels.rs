//! Recorded text of the training streams: token ids of captions, labels of both streams, learning rates.

use std::path::Path;

use anyhow::{Context, bail};
use flamingo_data::{PaddingSide, SpecialTokens, Stream, Tokenizer, pad_batch, pair_ids};
use flamingo_engine::{Array, Schedule};
use serde_json::Value;

use super::Values;
use super::compare::{Outcome, Row, Summary};
use super::dump;
use crate::golden::read_json;

/// What this version does not compute.
const LATER: [&str; 3] = ["laion_text_opt", "mmc4", "gpt_interleaved"];

pub(super) fn compute(folder: &Path) -> anyhow::Result<Values> {
    let recorded = read_json(&folder.join("train_labels.json"))?;
    let mut values = Values::default();
    captions(folder, &recorded["laion_text_neox"], &mut values)?;

    let labels = &recorded["labels"];
    let tokens = special(labels)?;
    for (name, stream) in [("laion", Stream::Pairs), ("mmc4", Stream::Documents)] {
        for (i, ids) in rows(&labels["input_ids"])?.iter().enumerate() {
            let ids: Vec<u32> = ids.iter().map(|&id| id as u32).collect();
            let data = stream.labels(&ids, &tokens).into_iter().map(|label| label as i32).collect();
            values.0.insert(format!("labels.{name}.{i}"), dump::Value::Integers { shape: vec![ids.len()], data });
        }
    }

    for (i, recorded) in recorded["lr_schedules"].as_array().into_iter().flatten().enumerate() {
        let schedule = match recorded["kind"].as_str() {
            Some("constant") => Schedule::Constant,
            Some("linear") => Schedule::Linear,
            Some("cosine") => Schedule::Cosine,
            other => bail!("the recorded schedule {other:?} is not known"),
        };
        let count = |name: &str| recorded[name].as_u64().map(|n| n as usize).context("an incomplete schedule");
        let (warmup, total) = (count("warmup_steps")?, count("total_steps")?);
        let base = recorded["base_lr"].as_f64().context("a schedule without base_lr")?;
        let steps = recorded["lrs"].as_array().map_or(0, Vec::len);
        let data = (0..steps).map(|step| (base * schedule.factor(step, warmup, total)) as f32).collect();
        values.floats(format!("lr_schedules.{i}.lrs"), Array { shape: vec![steps], data });
    }
    Ok(values)
}

/// Captions through the recording's own tokenizer.
fn captions(folder: &Path, recorded: &Value, values: &mut Values) -> anyhow::Result<()> {
    let work = tempfile::tempdir().context("cannot make a temporary folder")?;
    std::fs::copy(folder.join("tokenizer_with_specials.json"), work.path().join("tokenizer.json"))
        .context("cannot copy tokenizer_with_specials.json")?;
    let mut tokenizer = Tokenizer::open(work.path())?;
    let pad = tokenizer.add_flamingo_tokens()?.pad;
    for name in recorded.as_object().into_iter().flatten().map(|(name, _)| name) {
        let Some(max_tokens) = name.strip_prefix("max_tokens_") else { continue };
        let max_tokens = max_tokens.parse().with_context(|| format!("`{name}` names no number of tokens"))?;
        let captions = recorded["captions"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let ids = captions.map(|caption| pair_ids(&tokenizer, caption, max_tokens)).collect::<Result<Vec<_>, _>>()?;
        let batch = pad_batch(&ids, pad, PaddingSide::Right);
        let mask: Vec<u32> = batch.mask.iter().map(|&kept| u32::from(kept)).collect();
        for (kind, data) in [("input_ids", &batch.ids), ("attention_mask", &mask)] {
            for (i, row) in data.chunks(batch.width).enumerate() {
                values.rows(format!("laion_text_neox.{name}.{kind}.{i}"), &[row.to_vec()]);
            }
        }
    }
    Ok(())
}

fn special(recorded: &Value) -> anyhow::Result<SpecialTokens> {
    let id = |name: &str| recorded[name].as_u64().map(|id| id as u32).with_context(|| format!("no id of {name}"));
    Ok(SpecialTokens { endofchunk: id("eoc")?, image: id("image")?, pad: id("pad")?, bos: None, eos: id("eos").ok() })
}

fn rows(recorded: &Value) -> anyhow::Result<Vec<Vec<i64>>> {
    let row = |row: &Value| row.as_array()?.iter().map(Value::as_i64).collect::<Option<Vec<i64>>>();
    let rows = recorded.as_array().and_then(|rows| rows.iter().map(row).collect::<Option<Vec<_>>>());
    rows.context("rows of integers are missing in train_labels.json")
}

/// Ids and labels must be equal, learning rates to the last digits of f32.
pub(super) fn check(folder: &Path, values: &Values) -> anyhow::Result<Summary> {
    let recorded = read_json(&folder.join("train_labels.json"))?;
    let mut summary = Summary::default();
    for (name, value) in &values.0 {
        let place = name.split('.').try_fold(&recorded, |at, key| match key.parse::<usize>() {
            Ok(index) => at.get(index),
            Err(_) => at.get(key),
        });
        let expected: Option<Vec<f64>> =
            place.and_then(Value::as_array).and_then(|a| a.iter().map(Value::as_f64).collect());
        let (ours, tolerance): (Vec<f64>, f64) = match value {
            dump::Value::Integers { data, .. } => (data.iter().map(|&x| f64::from(x)).collect(), 0.0),
            dump::Value::Floats(array) => (array.data.iter().map(|&x| f64::from(x)).collect(), 1e-10),
        };
        let expected = expected.with_context(|| format!("`{name}` is not recorded"))?;
        let same = ours.len() == expected.len();
        let diff = ours.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        summary.rows.push(Row {
            name: name.clone(),
            outcome: if same && diff <= tolerance { Outcome::Pass } else { Outcome::Fail },
            max_abs_diff: Some(diff),
            tolerance: Some(tolerance),
            note: (!same).then(|| format!("{} values, recorded {}", ours.len(), expected.len())),
        });
    }
    for name in LATER.into_iter().filter(|name| recorded.get(name).is_some()) {
        let outcome = Outcome::NotYetComputed;
        summary.rows.push(Row { name: name.to_string(), outcome, max_abs_diff: None, tolerance: None, note: None });
    }
    Ok(summary)
}

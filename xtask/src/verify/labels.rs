//! Recorded text of the training streams: token ids of captions, labels of both streams, learning rates.

use std::path::Path;

use anyhow::{Context, bail};
use flamingo_data::{DocumentRules, PaddingSide, Rejected, SpecialTokens, Stream, Tokenizer, pad_batch, pair_ids};
use flamingo_engine::{Array, Schedule};
use serde_json::Value;

use super::Values;
use super::compare::{Outcome, Row, Summary};
use super::dump;
use crate::golden::read_json;

/// How upstream says why it rejects a document, in the order of our numbers for it.
const UPSTREAM: [&str; 4] =
    ["No images in sample", "Fewer than", "Only one image in sample", "Only one image at the end of sample"];

/// The folder of the second tokenizer, where the models are recorded beside this.
const OPT: &str = "../opt/lm";

pub(super) fn compute(folder: &Path) -> anyhow::Result<Values> {
    let recorded = read_json(&folder.join("train_labels.json"))?;
    let mut values = Values::default();
    let (tokenizer, special_tokens) = tokenizer(folder)?;
    captions("laion_text_neox", &tokenizer, special_tokens.pad, &recorded, &mut values)?;
    // The other tokenizer lies with its model.
    let opt = folder.join(OPT);
    if opt.is_dir() {
        let mut tokenizer = Tokenizer::open(&opt)?;
        let pad = tokenizer.add_flamingo_tokens()?.pad;
        captions("laion_text_opt", &tokenizer, pad, &recorded, &mut values)?;
    }
    let pool = &recorded["mmc4"]["image_pool"];
    for (group, list, file) in
        [("mmc4.docs", &recorded["mmc4"]["docs"], "sample"), ("gpt_interleaved", &recorded["gpt_interleaved"], "info")]
    {
        for (i, recorded) in list.as_array().into_iter().flatten().enumerate() {
            document(
                &format!("{group}.{i}"),
                recorded,
                &recorded[file],
                pool,
                (&tokenizer, &special_tokens),
                &mut values,
            )?;
        }
    }

    let labels = &recorded["labels"];
    let tokens = special(labels)?;
    for (name, stream) in [("laion", Stream::Pairs), ("mmc4", Stream::Documents)] {
        for (i, ids) in rows(&labels["input_ids"])?.iter().enumerate() {
            let ids: Vec<u32> = ids.iter().map(|&id| id as u32).collect();
            let data = stream.labels(&ids, &tokens).into_iter().map(|label| label as i32).collect();
            values.arrays.insert(format!("labels.{name}.{i}"), dump::Value::Integers { shape: vec![ids.len()], data });
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

/// The recording's own tokenizer.
fn tokenizer(folder: &Path) -> anyhow::Result<(Tokenizer, SpecialTokens)> {
    let work = tempfile::tempdir().context("cannot make a temporary folder")?;
    std::fs::copy(folder.join("tokenizer_with_specials.json"), work.path().join("tokenizer.json"))
        .context("cannot copy tokenizer_with_specials.json")?;
    let mut tokenizer = Tokenizer::open(work.path())?;
    let tokens = tokenizer.add_flamingo_tokens()?;
    Ok((tokenizer, tokens))
}

/// An interleaved document: its tokens and the widths of its pictures, or that it is rejected.
fn document(
    name: &str,
    recorded: &Value,
    file: &Value,
    pool: &Value,
    (tokenizer, tokens): (&Tokenizer, &SpecialTokens),
    values: &mut Values,
) -> anyhow::Result<()> {
    let mut file = file.clone();
    // Pictures that several documents share are recorded once.
    for info in file.get_mut("image_info").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(shared) = info["image_base64"].as_str().and_then(|name| name.strip_prefix('@')) {
            info["image_base64"] = pool[shared].clone();
        }
    }
    let options = &recorded["kwargs"];
    let count = |name: &str| options[name].as_u64().map(|n| n as usize).with_context(|| format!("no {name}"));
    let defaults = DocumentRules::default();
    let rules = DocumentRules {
        textsim_threshold: options["sim_threshold"].as_f64().unwrap_or(defaults.textsim_threshold),
        min_num_images: count("min_num_images")?,
        max_num_images: count("max_num_images")?,
        max_tokens: count("max_tokens")?,
        upstream_compat: true,
        ..defaults
    };
    let draw = recorded["first_random_draw"].as_f64().unwrap_or(1.0);
    let document = match rules.apply(file.to_string().as_bytes(), tokenizer, tokens, draw) {
        Ok(document) => document,
        Err(reason) => {
            tracing::debug!("{name} is rejected: {reason}");
            let reason = match reason {
                Rejected::NoPicture => 0,
                Rejected::TooFew(_) => 1,
                Rejected::Single => 2,
                Rejected::Empty => 3,
                Rejected::Form(_) | Rejected::Data(_) | Rejected::Missing(_) => -1,
            };
            values
                .arrays
                .insert(format!("{name}.rejected"), dump::Value::Integers { shape: vec![1], data: vec![reason] });
            return Ok(());
        }
    };
    let mut ids = document.ids;
    let mut mask = vec![1; ids.len()];
    ids.resize(rules.max_tokens, tokens.pad);
    mask.resize(rules.max_tokens, 0);
    let mut widths: Vec<u32> = document.pictures.iter().map(|picture| picture.width()).collect();
    widths.resize(rules.max_num_images, 0);
    for (kind, row) in [("input_ids", ids), ("attention_mask", mask), ("image_tags", widths)] {
        values.rows(format!("{name}.ok.{kind}"), &[row]);
    }
    Ok(())
}

fn captions(group: &str, tokenizer: &Tokenizer, pad: u32, recorded: &Value, values: &mut Values) -> anyhow::Result<()> {
    let recorded = &recorded[group];
    for name in recorded.as_object().into_iter().flatten().map(|(name, _)| name) {
        let Some(max_tokens) = name.strip_prefix("max_tokens_") else { continue };
        let max_tokens = max_tokens.parse().with_context(|| format!("`{name}` names no number of tokens"))?;
        let captions = recorded["captions"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let ids = captions.map(|caption| pair_ids(tokenizer, caption, max_tokens)).collect::<Result<Vec<_>, _>>()?;
        let batch = pad_batch(&ids, pad, PaddingSide::Right);
        let mask: Vec<u32> = batch.mask.iter().map(|&kept| u32::from(kept)).collect();
        for (kind, data) in [("input_ids", &batch.ids), ("attention_mask", &mask)] {
            for (i, row) in data.chunks(batch.width).enumerate() {
                values.rows(format!("{group}.{name}.{kind}.{i}"), &[row.to_vec()]);
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

/// The part of a JSON document that a dotted name means.
fn place<'a>(json: &'a Value, name: &str) -> Option<&'a Value> {
    name.split('.').try_fold(json, |at, key| match key.parse::<usize>() {
        Ok(index) => at.get(index),
        Err(_) => at.get(key),
    })
}

/// Ids and labels must be equal, learning rates to the last digits of f32.
pub(super) fn check(folder: &Path, values: &Values) -> anyhow::Result<Summary> {
    let recorded = read_json(&folder.join("train_labels.json"))?;
    let mut summary = Summary::default();
    for (name, value) in &values.arrays {
        if let Some(document) = name.strip_suffix(".rejected") {
            let reason = place(&recorded, document).and_then(|document| document["error"].as_str());
            let number = reason.and_then(|reason| UPSTREAM.iter().position(|known| reason.starts_with(known)));
            let same = matches!(value, dump::Value::Integers { data, .. } if Some(data[0]) == number.map(|n| n as i32));
            let outcome = if same { Outcome::Pass } else { Outcome::Fail };
            summary.rows.push(Row { name: name.clone(), outcome, max_abs_diff: None, tolerance: None, note: None });
            continue;
        }
        let place = place(&recorded, name);
        let expected: Option<Vec<f64>> =
            place.and_then(Value::as_array).and_then(|a| a.iter().map(Value::as_f64).collect());
        let (ours, tolerance): (Vec<f64>, f64) = match value {
            dump::Value::Integers { data, .. } => (data.iter().map(|&x| f64::from(x)).collect(), 0.0),
            dump::Value::Floats(array) => (array.data.iter().map(|&x| f64::from(x)).collect(), 1e-10),
        };
        let Some(expected) = expected else {
            let note = Some("upstream rejects it".to_string());
            let outcome = Outcome::Fail;
            summary.rows.push(Row { name: name.clone(), outcome, max_abs_diff: None, tolerance: None, note });
            continue;
        };
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
    if recorded.get("laion_text_opt").is_some() && !folder.join(OPT).is_dir() {
        let (name, outcome) = ("laion_text_opt".to_string(), Outcome::NotYetComputed);
        let note = Some(format!("its tokenizer is not in {OPT}"));
        summary.rows.push(Row { name, outcome, max_abs_diff: None, tolerance: None, note });
    }
    Ok(summary)
}

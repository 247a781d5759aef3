//! Recorded text of the training streams: token ids of captions, labels of both streams, learning rates.
//!
//! Values have the places that they have in `train_labels.json`, of which they are computed from the rest.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use flamingo_data::{
    Batch, DocumentRules, PaddingSide, Rejected, SpecialTokens, Stream, Tokenizer, pad_batch, pair_ids,
};
use flamingo_engine::Schedule;
use serde_json::{Value, json};

use super::Values;
use super::compare::{Row, Summary, rates};
use crate::golden::read_json;

/// The recording's file without its ending.
const FILE: &str = "train_labels";

/// The captions of the second tokenizer.
const OPT: &str = "laion_text_opt";

/// Where the second tokenizer lies with a model of its family that is recorded beside this.
const OPT_MODELS: [&str; 2] = ["../opt/lm", "../opt350/lm"];

/// What is recorded beside outputs: inputs, notes for readers, and the shape of the small pictures that stood for the
/// real ones.
const GIVEN: [&str; 16] = [
    "base_lr",
    "captions",
    "first_random_draw",
    "ignore_index",
    "image_pool",
    "images_shape",
    "info",
    "kind",
    "kwargs",
    "name",
    "note",
    "sample",
    "texts",
    "tokenizer",
    "total_steps",
    "warmup_steps",
];

pub(super) fn compute(folder: &Path) -> anyhow::Result<Values> {
    let recorded = read_json(&folder.join(FILE).with_extension("json"))?;
    let (tokenizer, tokens) = tokenizer(folder)?;
    let mut ours = json!({
        "laion_text_neox": captions(&recorded["laion_text_neox"], &tokenizer, &tokens)?,
        "mmc4": special(&tokens),
        "labels": labels(&recorded["labels"], &tokenizer, &tokens)?,
        "lr_schedules": list(&recorded["lr_schedules"]).iter().map(schedule).collect::<anyhow::Result<Value>>()?,
    });
    if let Some(opt) = opt(folder) {
        let mut tokenizer = Tokenizer::open(&opt)?;
        let tokens = tokenizer.add_flamingo_tokens()?;
        ours[OPT] = captions(&recorded[OPT], &tokenizer, &tokens)?;
    }
    let documents = |recorded_documents: &Value, file: &str| -> anyhow::Result<Value> {
        let pool = &recorded["mmc4"]["image_pool"];
        let documents = list(recorded_documents).iter();
        documents.map(|recorded| document(recorded, &recorded[file], pool, (&tokenizer, &tokens))).collect()
    };
    ours["mmc4"]["docs"] = documents(&recorded["mmc4"]["docs"], "sample")?;
    ours["gpt_interleaved"] = documents(&recorded["gpt_interleaved"], "info")?;

    let mut values = Values::default();
    values.files.insert(FILE.into(), ours);
    Ok(values)
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
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

fn opt(folder: &Path) -> Option<PathBuf> {
    OPT_MODELS.iter().map(|model| folder.join(model)).find(|model| model.is_dir())
}

fn special(tokens: &SpecialTokens) -> Value {
    json!({"eoc": tokens.endofchunk, "image": tokens.image, "pad": tokens.pad, "eos": tokens.eos})
}

/// An interleaved document: its tokens and the widths of its pictures, or why upstream rejects it, in its words.
fn document(
    recorded: &Value,
    file: &Value,
    pool: &Value,
    (tokenizer, tokens): (&Tokenizer, &SpecialTokens),
) -> anyhow::Result<Value> {
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
            let error = match reason {
                Rejected::NoPicture => "No images in sample".to_string(),
                Rejected::TooFew(wanted) => format!("Fewer than {wanted} images in sample"),
                Rejected::Single => "Only one image in sample".to_string(),
                Rejected::Empty => "Only one image at the end of sample".to_string(),
                // Nothing recorded is broken.
                Rejected::Form(_) | Rejected::Data(_) | Rejected::Missing(_) => reason.to_string(),
            };
            return Ok(json!({"error": error}));
        }
    };
    let mut ids = document.ids;
    let mut mask = vec![1; ids.len()];
    ids.resize(rules.max_tokens, tokens.pad);
    mask.resize(rules.max_tokens, 0);
    let mut widths: Vec<u32> = document.pictures.iter().map(|picture| picture.width()).collect();
    widths.resize(rules.max_num_images, 0);
    Ok(json!({"ok": {"input_ids": ids, "attention_mask": mask, "image_tags": widths}}))
}

/// Captions at each recorded length.
fn captions(recorded: &Value, tokenizer: &Tokenizer, tokens: &SpecialTokens) -> anyhow::Result<Value> {
    let mut values = special(tokens);
    for name in recorded.as_object().into_iter().flatten().map(|(name, _)| name) {
        let Some(max_tokens) = name.strip_prefix("max_tokens_") else { continue };
        let max_tokens = max_tokens.parse().with_context(|| format!("`{name}` names no number of tokens"))?;
        let captions = list(&recorded["captions"]).iter().filter_map(Value::as_str);
        let ids = captions.map(|caption| pair_ids(tokenizer, caption, max_tokens)).collect::<Result<Vec<_>, _>>()?;
        let batch = pad_batch(&ids, tokens.pad, PaddingSide::Right);
        let (input_ids, attention_mask) = rows(&batch);
        values[name] = json!({"input_ids": input_ids, "attention_mask": attention_mask});
    }
    Ok(values)
}

/// Ids and mask, row by row.
fn rows(batch: &Batch) -> (Vec<&[u32]>, Vec<Vec<u32>>) {
    let width = batch.width.max(1);
    let mask = batch.mask.chunks(width).map(|row| row.iter().map(|&kept| u32::from(kept)).collect());
    (batch.ids.chunks(width).collect(), mask.collect())
}

/// Generated sequences, and which of their tokens each stream predicts.
fn labels(recorded: &Value, tokenizer: &Tokenizer, tokens: &SpecialTokens) -> anyhow::Result<Value> {
    let texts = list(&recorded["texts"]).iter().filter_map(Value::as_str);
    let ids = texts.map(|text| tokenizer.encode(text)).collect::<Result<Vec<_>, _>>()?;
    let batch = pad_batch(&ids, tokens.pad, PaddingSide::Right);
    let (input_ids, attention_mask) = rows(&batch);
    let of = |stream: Stream| -> Vec<Vec<i64>> { input_ids.iter().map(|row| stream.labels(row, tokens)).collect() };
    let mut values = special(tokens);
    values["laion"] = json!(of(Stream::Pairs));
    values["mmc4"] = json!(of(Stream::Documents));
    values["input_ids"] = json!(input_ids);
    values["attention_mask"] = json!(attention_mask);
    Ok(values)
}

/// As many learning rates as are recorded.
fn schedule(recorded: &Value) -> anyhow::Result<Value> {
    let schedule = match recorded["kind"].as_str() {
        Some("constant") => Schedule::Constant,
        Some("linear") => Schedule::Linear,
        Some("cosine") => Schedule::Cosine,
        other => bail!("the recorded schedule {other:?} is not known"),
    };
    let count = |name: &str| recorded[name].as_u64().map(|n| n as usize).context("an incomplete schedule");
    let (warmup, total) = (count("warmup_steps")?, count("total_steps")?);
    let base = recorded["base_lr"].as_f64().context("a schedule without base_lr")?;
    let steps = 0..list(&recorded["lrs"]).len();
    Ok(json!({"lrs": steps.map(|step| base * schedule.factor(step, warmup, total)).collect::<Vec<f64>>()}))
}

/// Everything that is recorded must be computed, and everything that we computed must be recorded.
pub(super) fn check(folder: &Path, values: &Values) -> anyhow::Result<Summary> {
    let mut recorded = read_json(&folder.join(FILE).with_extension("json"))?;
    let ours = values.files.get(FILE).context("we computed nothing")?;
    let mut summary = Summary::default();
    if opt(folder).is_none()
        && let Some(groups) = recorded.as_object_mut()
        && groups.remove(OPT).is_some()
    {
        let note = format!("its tokenizer is not in {}", OPT_MODELS.join(" or "));
        summary.rows.push(Row::left_out(OPT.into(), note));
    }
    compare("", Some(ours), Some(&recorded), &mut summary.rows);
    Ok(summary)
}

/// Rows for what lies at one place of both, down to lists of numbers.
fn compare(at: &str, ours: Option<&Value>, recorded: Option<&Value>, rows: &mut Vec<Row>) {
    let below = |key: &str| if at.is_empty() { key.to_string() } else { format!("{at}.{key}") };
    match (ours, recorded) {
        (Some(Value::Object(ours)), Some(Value::Object(recorded))) => {
            let unrecorded = ours.keys().filter(|key| !recorded.contains_key(*key));
            for key in recorded.keys().filter(|key| !GIVEN.contains(&key.as_str())).chain(unrecorded) {
                compare(&below(key), ours.get(key), recorded.get(key), rows);
            }
        }
        (Some(Value::Array(ours)), Some(Value::Array(recorded))) if recorded.iter().any(|item| !item.is_number()) => {
            for i in 0..ours.len().max(recorded.len()) {
                compare(&below(&i.to_string()), ours.get(i), recorded.get(i), rows);
            }
        }
        (Some(ours), Some(recorded)) => rows.push(leaf(at.to_string(), ours, recorded)),
        (None, _) => rows.push(Row::missing(at.to_string())),
        (_, None) => rows.push(Row::failed(at.to_string(), "computed, and nothing such is recorded")),
    }
}

/// Ids, labels and texts must be equal, learning rates to their last digits.
fn leaf(name: String, ours: &Value, recorded: &Value) -> Row {
    let numbers = |value: &Value| match value {
        Value::Array(items) => items.iter().map(Value::as_f64).collect(),
        _ => value.as_f64().map(|number| vec![number]),
    };
    match (numbers(ours), numbers(recorded)) {
        (Some(a), Some(b)) if name.ends_with(".lrs") => rates(name, &a, &b),
        (Some(a), Some(b)) if a.len() == b.len() => {
            Row::compared(name, a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max), 0.0)
        }
        _ if ours == recorded => Row::compared(name, 0.0, 0.0),
        _ => Row::failed(name, format!("{ours} where {recorded} is recorded")),
    }
}

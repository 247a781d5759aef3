//! Recorded evaluation: metrics, prompts, demonstrations, and upstream's evaluation calls on recorded models.
//!
//! Values are parts of the recorded JSON files, computed from their other parts.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use flamingo_data::{Interleaved, Picture};
use flamingo_engine::{Device, Precision};
use flamingo_eval::{Answer, Features, Generate, Numpy, Postprocess, Python, Sample, Task, effective_shots};
use flamingo_generate::{EarlyStopping, Strategy};
use flamingo_metrics::{auc, caption, vqa};
use flamingo_zoo::{Latents, Model};
use serde_json::{Map, Value, json};

use super::Values;
use super::compare::{Outcome, Row, Summary};
use crate::golden::{self, read_json};

/// Metrics and everything else that is recorded as JSON.
const TOLERANCE: f64 = 1e-6;
/// Log-probabilities, and likenesses of features: what models compute.
const MODEL_TOLERANCE: f64 = 1e-3;

/// Whether a folder is one of these recordings.
pub(super) fn is_here(folder: &Path) -> bool {
    folder.join("vqa.json").is_file() && folder.join("prompts.json").is_file()
}

pub(super) fn compute(folder: &Path, device: Device) -> anyhow::Result<Values> {
    let mut values = Values::default();
    let mut put = |name: &str, value: Value| drop(values.files.insert(name.to_string(), value));
    for (file, part) in [
        ("vqa", vqa_values as fn(&Value) -> Value),
        ("ok_vqa", ok_vqa_values),
        ("cider", cider_values),
        ("roc_auc", roc_auc_values),
        ("sampling", sampling_values),
        ("prompts", prompt_values),
    ] {
        let path = folder.join(format!("{file}.json"));
        if path.is_file() {
            put(file, part(&read_json(&path)?));
        }
    }
    if folder.join("rices/rices.json").is_file() {
        put("rices", rices_values(&folder.join("rices"), device)?);
    }
    for case in end_to_end(folder)? {
        let recorded = read_json(&case)?;
        let name = recorded["case"].as_str().context("a recording without the name of its case")?;
        // Its model may not be among the recordings at hand.
        let model = folder.join("..").join(name);
        if model.join("case.json").is_file() {
            put(&format!("e2e/{name}"), model_values(&model, &case, &recorded, device)?);
        }
    }
    Ok(values)
}

fn end_to_end(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let folder = folder.join("e2e");
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let entries = std::fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    files.sort();
    Ok(files)
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn count(value: &Value) -> usize {
    value.as_u64().unwrap_or(0) as usize
}

/// A list made of a recorded list.
fn each(recorded: &Value, make: impl Fn(&Value) -> Value) -> Value {
    list(recorded).iter().map(make).collect()
}

fn vqa_values(recorded: &Value) -> Value {
    let questions: Vec<vqa::accuracy::Question<Value>> = list(&recorded["annotations"])
        .iter()
        .map(|annotation| vqa::accuracy::Question {
            id: count(&annotation["question_id"]) as u64,
            question_type: text(&annotation["question_type"]).to_string(),
            answer_type: annotation["answer_type"].as_str().map(str::to_string),
            answers: list(&annotation["answers"])
                .iter()
                .map(|answer| {
                    let mut details = answer.clone();
                    details.as_object_mut().map(|fields| fields.remove("answer"));
                    vqa::accuracy::Answer { text: text(&answer["answer"]).to_string(), details }
                })
                .collect(),
        })
        .collect();
    let predictions: Vec<vqa::accuracy::Prediction> = list(&recorded["predictions"])
        .iter()
        .map(|prediction| vqa::accuracy::Prediction {
            question_id: count(&prediction["question_id"]) as u64,
            answer: text(&prediction["answer"]).to_string(),
        })
        .collect();
    let normalisation = each(&recorded["normalization"], |item| {
        let line = vqa::normalise::one_line(text(&item["input"]));
        json!({
            "after_punctuation": vqa::normalise::strip_punctuation(&line),
            "normalized": vqa::normalise::normalise(&line),
        })
    });
    let processed = |group: &str, postprocess: Postprocess| {
        each(&recorded[group], |item| json!({"output": postprocess.apply(text(&item["input"]))}))
    };
    let mut values = json!({
        "normalization": normalisation,
        "postprocess_vqa_generation": processed("postprocess_vqa_generation", Postprocess::Vqa),
        "postprocess_captioning_generation": processed("postprocess_captioning_generation", Postprocess::Caption),
    });
    if let Ok(accuracy) = vqa::accuracy::accuracy(&questions, &predictions) {
        values["overall"] = accuracy.overall.into();
        values["per_question"] = json!(accuracy.per_question);
        values["accuracy"] = json!({
            "overall": accuracy.overall,
            "perQuestionType": accuracy.per_question_type,
            "perAnswerType": accuracy.per_answer_type,
        });
    }
    values
}

fn ok_vqa_values(recorded: &Value) -> Value {
    json!({"items": each(&recorded["items"], |item| json!({"output": Postprocess::OkVqa.apply(text(&item["input"]))}))})
}

fn cider_values(recorded: &Value) -> Value {
    let empty = Map::new();
    let references = recorded["references"].as_object().unwrap_or(&empty);
    let images: Vec<(&str, Vec<&str>)> = references
        .iter()
        .map(|(image, references)| (text(&recorded["hypotheses"][image]), list(references).iter().map(text).collect()))
        .collect();
    let score = |images: &[(&str, Vec<&str>)]| caption::cider(images);
    let (all, first) = (score(&images), score(&images[..images.len().min(10)]));
    // What stands at the end of a caption is read with the next: all are tokenised together.
    let tokens = |texts: &[&str]| caption::ptb::tokenize(texts);
    let mut words = tokens(&images.iter().flat_map(|(_, references)| references.iter().copied()).collect::<Vec<_>>());
    let mut words = words.drain(..);
    let of_references: Map<String, Value> =
        references.iter().map(|(image, own)| (image.clone(), words.by_ref().take(list(own).len()).collect())).collect();
    let examples: Vec<&str> = list(&recorded["ptb_examples"]).iter().map(|item| text(&item["input"])).collect();
    let examples: Value = tokens(&examples).into_iter().map(|output| json!({"output": output})).collect();
    let hypotheses: Vec<&str> = images.iter().map(|(hypothesis, _)| *hypothesis).collect();
    let of_hypotheses: Map<String, Value> =
        references.keys().cloned().zip(tokens(&hypotheses).into_iter().map(Value::from)).collect();
    json!({
        "ptb_examples": examples,
        "tokenized_references": of_references,
        "tokenized_hypotheses": of_hypotheses,
        "cider": all.mean,
        "cider_x100": 100.0 * all.mean,
        "per_image": all.per_image,
        "subset_first_10": {"cider": first.mean, "per_image": first.per_image},
    })
}

fn roc_auc_values(recorded: &Value) -> Value {
    each(recorded, |case| {
        let pair = |pair: &Value| [0, 1].map(|i| pair[i].as_f64().unwrap_or(f64::NAN));
        let scores: Vec<f64> =
            list(&case["logprobs"]).iter().map(|item| auc::probability_of_second(pair(item))).collect();
        let positive: Vec<bool> = list(&case["gt"]).iter().map(|label| text(label) == "yes").collect();
        json!({"yes_scores": scores, "roc_auc": auc::roc_auc(&positive, &scores)})
    })
}

fn sampling_values(recorded: &Value) -> Value {
    let runs = each(&recorded["runs"], |run| {
        let (n, seed) = (count(&run["n"]), count(&run["seed"]) as u32);
        let mut numpy = Numpy::new(seed);
        let samples = numpy.choice(n, count(&run["num_samples"]));
        let query_set = numpy.choice(n, count(&run["query_set_size"]));
        let mut python = Python::new(seed);
        let drawn = list(&run["demo_positions"]).iter();
        let positions: Vec<_> = drawn.map(|drawn| python.sample(query_set.len(), list(drawn).len())).collect();
        json!({"sample_indices": samples, "query_set": query_set, "demo_positions": positions})
    });
    json!({"runs": runs})
}

fn prompt_values(recorded: &Value) -> Value {
    let mut values = Map::new();
    for (group, task, answer) in [
        ("vqa", "vqav2", "answer"),
        ("caption", "coco", "caption"),
        ("imagenet", "imagenet", "label"),
        ("hateful_memes", "hateful_memes", "label"),
    ] {
        let Ok(task) = Task::open(task) else { continue };
        values.insert(
            group.into(),
            each(&recorded[group], |case| {
                let sample = Sample {
                    file: Path::new("").into(),
                    id: Value::Null,
                    image: PathBuf::new(),
                    fields: case.as_object().cloned().unwrap_or_default(),
                    answer: text(&case[answer]).to_string(),
                    references: Vec::new(),
                };
                let prompt = match case[answer].is_null() {
                    true => task.query(&sample),
                    // Upstream puts the separator between prompts, not into them.
                    false => task.demonstration(&sample).map(|shot| match shot.strip_suffix(&task.separator) {
                        Some(shot) => shot.to_string(),
                        None => shot,
                    }),
                };
                json!({"prompt": prompt.unwrap_or_default()})
            }),
        );
    }
    let settings = |task: &str| match Task::open(task).map(|task| task.answer) {
        Ok(Answer::Generate(Generate { max_new_tokens, min_new_tokens, num_beams, length_penalty, .. })) => json!({
            "max_new_tokens": max_new_tokens,
            "min_new_tokens": min_new_tokens,
            "num_beams": num_beams,
            "length_penalty": length_penalty,
        }),
        _ => Value::Null,
    };
    values.insert(
        "generation".into(),
        json!({"captioning": settings("coco"), "vqa": settings("vqav2"), "textvqa": settings("textvqa")}),
    );
    let shots = recorded["effective_num_shots"].as_object().into_iter().flatten().map(|(shots, _)| shots);
    let effective: Map<String, Value> =
        shots.map(|shots| (shots.clone(), effective_shots(shots.parse().unwrap_or(0)).into())).collect();
    values.insert("effective_num_shots".into(), effective.into());
    if let Ok(Answer::Classify(memes)) = Task::open("hateful_memes").map(|task| task.answer) {
        values.insert("class_names".into(), json!({"hateful_memes": memes.classes.names()}));
    }
    values.into()
}

fn rices_values(folder: &Path, device: Device) -> anyhow::Result<Value> {
    let recorded = read_json(&folder.join("rices.json"))?;
    let work = tempfile::tempdir().context("cannot make a temporary folder")?;
    let clip = folder.join(text(&recorded["clip"]));
    golden::convert_clip(&clip, work.path())?;
    let model = Model::open(&work.path().join("model"), device, Precision::F32)?;
    let features = |names: &Value| -> anyhow::Result<Vec<Vec<f32>>> {
        let pictures = list(names).iter().map(|name| Picture::open(&folder.join(text(name))));
        let pictures: Vec<Picture> = pictures.collect::<Result<_, _>>()?;
        Ok(model.features(&pictures.iter().collect::<Vec<_>>())?)
    };
    let (database, queries) = (features(&recorded["database"])?, features(&recorded["queries"])?);
    let database = Features { of: (0..database.len()).collect(), distinct: database };
    let wanted = count(&recorded["num_examples"]);
    let found: Vec<Vec<usize>> = queries.iter().map(|query| database.most_similar(query, wanted, None)).collect();
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    let similarity: Vec<Vec<f32>> =
        queries.iter().map(|query| database.distinct.iter().map(|picture| dot(query, picture)).collect()).collect();
    Ok(json!({"found": found, "similarity": similarity}))
}

/// Upstream's `get_outputs` and `get_rank_classifications` on a recorded model.
fn model_values(model: &Path, case: &Path, recorded: &Value, device: Device) -> anyhow::Result<Value> {
    let work = tempfile::tempdir().context("cannot make a temporary folder")?;
    let folder = work.path().join("model");
    golden::Case::open(model)?.convert(&folder)?;
    let model = Model::open(&folder, device, Precision::F32)?;
    let pictures = list(&recorded["images"]).iter().map(|name| Picture::open(&case.with_file_name(text(name))));
    let pictures: Vec<Picture> = pictures.collect::<Result<_, _>>()?;
    let seen = model.latents(&pictures.iter().collect::<Vec<_>>(), 0)?;

    let mut outputs = Vec::new();
    for call in list(&recorded["outputs"]) {
        let options = &call["kwargs"];
        let mut settings = model.settings(count(&options["max_generation_length"]));
        settings.min_new_tokens = count(&options["min_generation_length"]);
        let num_beams = count(&options["num_beams"]);
        if num_beams > 1 {
            let length_penalty = options["length_penalty"].as_f64().context("no length_penalty")?;
            settings.strategy = Strategy::Beam { num_beams, length_penalty, early_stopping: EarlyStopping::False };
        }
        let prompts = prompts(call, &seen)?;
        let said = |upstream_compat: bool| -> anyhow::Result<Vec<String>> {
            let go_on = &mut |_, _: &str| ControlFlow::Continue(());
            let answers = model.generate_seen(&prompts, &settings, upstream_compat, go_on)?;
            Ok(answers.into_iter().map(|mut answers| answers.swap_remove(0).text).collect())
        };
        let (ours, compat) = (said(false)?, said(true)?);
        // Nothing recorded depends on a mark that the model wrote itself: both ways must say the same.
        outputs.push(json!({"outputs": if ours == compat { json!(ours) } else { json!([ours, compat]) }}));
    }
    let mut rank = Vec::new();
    for call in list(&recorded["rank"]) {
        let names = list(&call["class_names"]).iter().map(|name| model.tokenizer().encode_plain(text(name)));
        let names: Vec<Vec<u32>> = names.collect::<Result<_, _>>()?;
        let prompts = prompts(call, &seen)?;
        let scores = match call["use_cache"].as_bool() {
            Some(true) => model.score_seen_as_upstream(&prompts, &names)?,
            Some(false) => model.score_seen(&prompts, &names)?,
            None => bail!("a ranking without use_cache"),
        };
        let normalised = call["normalize_length"].as_bool().context("a ranking without normalize_length")?;
        let log_probs: Vec<Vec<f64>> = scores
            .iter()
            .map(|row| row.iter().map(|score| if normalised { score.mean } else { score.total }).collect())
            .collect();
        rank.push(json!({"logprobs": log_probs}));
    }
    Ok(json!({"outputs": outputs, "rank": rank}))
}

fn prompts(call: &Value, seen: &[Latents]) -> anyhow::Result<Vec<Interleaved<Latents>>> {
    let prompt = |(prompt, images): (&Value, &Value)| {
        let images = list(images).iter().map(|image| seen.get(count(image)).cloned()).collect::<Option<_>>();
        Ok(Interleaved { text: text(prompt).to_string(), images: images.context("a picture that is not recorded")? })
    };
    list(&call["batch_text"]).iter().zip(list(&call["batch_images"])).map(prompt).collect()
}

/// What is recorded of each file beside the inputs: to compute none of it is to fail.
const RECORDED: [(&str, &[&str]); 6] = [
    (
        "vqa",
        &[
            "normalization",
            "overall",
            "per_question",
            "accuracy",
            "postprocess_vqa_generation",
            "postprocess_captioning_generation",
        ],
    ),
    ("ok_vqa", &["items"]),
    (
        "cider",
        &[
            "ptb_examples",
            "tokenized_references",
            "tokenized_hypotheses",
            "cider",
            "cider_x100",
            "per_image",
            "subset_first_10",
        ],
    ),
    ("sampling", &["runs"]),
    ("prompts", &["vqa", "caption", "imagenet", "hateful_memes", "generation", "effective_num_shots", "class_names"]),
    ("rices", &["found", "similarity"]),
];

/// Everything that we computed must be recorded, and be the same; everything that is recorded must be computed.
pub(super) fn check(folder: &Path, values: &Values) -> anyhow::Result<Summary> {
    let mut summary = Summary::default();
    for (file, value) in &values.files {
        let path = if file == "rices" { "rices/rices.json".to_string() } else { format!("{file}.json") };
        let recorded = read_json(&folder.join(path))?;
        let tolerance = if file == "rices" || file.starts_with("e2e/") { MODEL_TOLERANCE } else { TOLERANCE };
        // A row for each part of a file, and each item of a file that is a list.
        let parts: Vec<(String, &Value)> = match value {
            Value::Object(parts) => parts.iter().map(|(key, part)| (key.clone(), part)).collect(),
            Value::Array(parts) => parts.iter().enumerate().map(|(i, part)| (i.to_string(), part)).collect(),
            _ => Vec::new(),
        };
        for (key, part) in parts {
            let expected = recorded.get(&key).or_else(|| recorded.get(key.parse::<usize>().ok()?));
            let mut comparison = Comparison { tolerance, largest: 0.0, wrong: None };
            comparison.compare("", part, expected.unwrap_or(&Value::Null));
            summary.rows.push(Row {
                name: format!("{file}.{key}"),
                outcome: if comparison.wrong.is_none() { Outcome::Pass } else { Outcome::Fail },
                max_abs_diff: Some(comparison.largest),
                tolerance: Some(tolerance),
                note: comparison.wrong,
            });
        }
    }
    for (file, parts) in RECORDED {
        let path = if file == "rices" { "rices/rices.json".to_string() } else { format!("{file}.json") };
        let there = folder.join(path).is_file();
        for part in parts.iter().filter(|part| there && values.files.get(file).is_none_or(|v| v.get(part).is_none())) {
            let note = Some("recorded, and we computed no such value".to_string());
            let (name, outcome) = (format!("{file}.{part}"), Outcome::Fail);
            summary.rows.push(Row { name, outcome, max_abs_diff: None, tolerance: None, note });
        }
    }
    for case in end_to_end(folder)? {
        let name = format!("e2e/{}", case.file_stem().unwrap_or_default().display());
        if !values.files.contains_key(&name) {
            let (outcome, note) = (Outcome::NotYetComputed, Some("its model is not beside the recording".into()));
            summary.rows.push(Row { name, outcome, max_abs_diff: None, tolerance: None, note });
        }
    }
    Ok(summary)
}

struct Comparison {
    tolerance: f64,
    largest: f64,
    /// The first difference.
    wrong: Option<String>,
}

impl Comparison {
    /// Compares what we computed with what is recorded, which may say more.
    fn compare(&mut self, at: &str, ours: &Value, recorded: &Value) {
        match (ours, recorded) {
            (Value::Object(parts), Value::Object(_)) => {
                for (key, part) in parts {
                    self.compare(&format!("{at}.{key}"), part, &recorded[key]);
                }
            }
            (Value::Array(parts), Value::Array(expected)) if parts.len() == expected.len() => {
                for (i, (part, expected)) in parts.iter().zip(expected).enumerate() {
                    self.compare(&format!("{at}.{i}"), part, expected);
                }
            }
            (Value::Number(a), Value::Number(b)) => {
                let difference = (a.as_f64().unwrap_or(f64::NAN) - b.as_f64().unwrap_or(f64::NAN)).abs();
                self.largest = self.largest.max(difference);
                if difference.is_nan() || difference > self.tolerance {
                    self.differ(at, ours, recorded);
                }
            }
            _ if ours == recorded => {}
            _ => self.differ(at, ours, recorded),
        }
    }

    fn differ(&mut self, at: &str, ours: &Value, recorded: &Value) {
        self.wrong.get_or_insert_with(|| format!("at {at}: {ours} where {recorded} is recorded"));
    }
}

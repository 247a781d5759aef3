//! Evaluations with the real binary, on small files in every published format.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::cli::{fails, flamingo, stdout};

/// Samples of each split.
const SAMPLES: u64 = 6;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Puts a file; a photograph where no content is given.
fn put(path: PathBuf, content: Option<Value>) {
    fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
    match content {
        Some(content) => drop(fs::write(path, content.to_string())),
        None => {
            let photos = ["astronaut", "chelsea", "coffee", "rocket"];
            let photo = photos[path.as_os_str().len() % photos.len()];
            drop(fs::copy(root().join(format!("tests/fixtures/photos/{photo}.jpg")), path));
        }
    }
}

fn captions(folder: &Path, name: &str, image: impl Fn(&str, u64) -> (PathBuf, Value)) {
    let mut images = Vec::new();
    for (split, first) in [("train", 0), ("test", 100)] {
        for i in first..first + SAMPLES {
            let (path, mut entry) = image(split, i);
            put(folder.join(path), None);
            entry["split"] = split.into();
            entry["sentences"] = json!([{"raw": format!("A picture, number {i}.")}, {"raw": "It's a picture"}]);
            images.push(entry);
        }
    }
    put(folder.join(name), Some(json!({"images": images})));
}

/// Questions of a split, their answers, and their pictures.
fn vqa(folder: &Path, questions: &str, annotations: Option<&str>, first: u64, id: impl Fn(u64) -> (Value, PathBuf)) {
    let (mut asked, mut answered) = (Vec::new(), Vec::new());
    for i in first..first + SAMPLES {
        let (image, path) = id(i);
        put(folder.join(path), None);
        asked.push(json!({"question_id": i, "image_id": image, "question": format!("what is {i}?")}));
        let answers: Vec<Value> =
            (1..=10).map(|a| json!({"answer": format!("the {}", i + a / 4), "answer_id": a})).collect();
        let kinds = ["number", "other"][i as usize % 2];
        answered.push(json!({"question_id": i, "question_type": "what", "answer_type": kinds, "answers": answers}));
    }
    answered.reverse();
    put(folder.join(questions), Some(json!({"questions": asked})));
    if let Some(annotations) = annotations {
        put(folder.join(annotations), Some(json!({"annotations": answered})));
    }
}

/// The data of all shipped tasks.
fn benchmarks() -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |task: &str| folder.path().join(task);
    captions(&at("coco"), "dataset_coco.json", |split, i| {
        let (path, name) = (if split == "train" { "train2014" } else { "val2014" }, format!("COCO_{i}.jpg"));
        (Path::new(path).join(&name), json!({"filepath": path, "filename": name, "cocoid": i}))
    });
    captions(&at("flickr30"), "dataset_flickr30k.json", |_, i| {
        let name = format!("{i}.jpg");
        (Path::new("flickr30k-images").join(&name), json!({"filename": name, "imgid": i}))
    });
    let coco =
        |folder: &'static str| move |i: u64| (json!(i), PathBuf::from(format!("{folder}/COCO_{folder}_{i:012}.jpg")));
    for (task, prefix, names) in [("vqav2", "v2_", "v2_"), ("ok_vqa", "", "")] {
        for (split, first) in [("train2014", 0), ("val2014", 100)] {
            let questions = format!("{prefix}OpenEnded_mscoco_{split}_questions.json");
            let annotations = format!("{names}mscoco_{split}_annotations.json");
            vqa(&at(task), &questions, Some(&annotations), first, coco(split));
        }
    }
    let train = ("v2_OpenEnded_mscoco_train2014_questions.json", "v2_mscoco_train2014_annotations.json");
    vqa(&at("vqav2_testdev"), train.0, Some(train.1), 0, coco("train2014"));
    vqa(&at("vqav2_testdev"), "v2_OpenEnded_mscoco_test2015_questions.json", None, 95, coco("test2015"));
    vqa(&at("vqav2_testdev"), "v2_OpenEnded_mscoco_test-dev2015_questions.json", None, 100, coco("test2015"));
    let named = |folder: &'static str| {
        move |i: u64| (json!(format!("VizWiz_{i}.jpg")), PathBuf::from(format!("{folder}/VizWiz_{i}.jpg")))
    };
    for task in ["vizwiz", "vizwiz_test"] {
        let (questions, annotations) = ("train_questions_vqa_format.json", "train_annotations_vqa_format.json");
        vqa(&at(task), questions, Some(annotations), 0, named("train"));
    }
    let (questions, annotations) = ("val_questions_vqa_format.json", "val_annotations_vqa_format.json");
    vqa(&at("vizwiz"), questions, Some(annotations), 100, named("val"));
    vqa(&at("vizwiz_test"), "test_questions_vqa_format.json", None, 100, named("test"));
    for (split, first) in [("train", 0), ("val", 100)] {
        let id = |i: u64| (json!(format!("{i:x}")), PathBuf::from(format!("train_images/{i:x}.jpg")));
        let file = |what: &str| format!("{split}_{what}_vqa_format.json");
        vqa(&at("textvqa"), &file("questions"), Some(&file("annotations")), first, id);
    }
    for (name, first) in [("train", 0), ("dev", 100)] {
        let mut lines = String::new();
        for i in first..first + SAMPLES {
            let image = format!("img/{i:05}.png");
            put(at("hateful_memes").join(&image), None);
            lines += &format!("{}\n", json!({"id": i, "img": image, "label": i % 2, "text": format!("it's {i}")}));
        }
        fs::write(at("hateful_memes").join(format!("{name}.jsonl")), lines).expect("lines");
    }
    for split in ["train", "val"] {
        for class in 0..1000 {
            let folder = at("imagenet").join(format!("{split}/n{class:08}"));
            fs::create_dir_all(&folder).expect("a folder");
            let picture = root().join("tests/fixtures/golden/eval/rices/00.png");
            fs::copy(picture, folder.join("a.png")).expect("a picture");
        }
    }
    folder
}

const MODEL: [&str; 5] = ["eval", "--model", "golden-tiny", "--device", "flex"];

pub fn text_of(path: &Path) -> String {
    path.display().to_string()
}

fn lines(path: &Path) -> Vec<Value> {
    let content = fs::read_to_string(path).expect("predictions");
    content.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("a folder").flatten();
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into()).collect();
    names.sort();
    names
}

#[test]
fn every_shipped_task_runs_on_files_in_its_published_form() {
    let data = benchmarks();
    let work = tempfile::tempdir().expect("a folder");
    let out = work.path().join("run");
    let tasks = "coco,flickr30,vqav2,ok_vqa,vizwiz,textvqa,hateful_memes,imagenet,vqav2_testdev,vizwiz_test";
    let (data, folder) = (text_of(data.path()), text_of(&out));
    let options = ["--data", &data, "--shots", "0,2", "--num-samples", "3", "--query-set-size", "4", "--out", &folder];
    let run = |more: &[&str]| -> BTreeMap<String, Vec<Value>> {
        let output = flamingo(&[&MODEL[..], &["--task", tasks, "--json"], &options, more].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_str(&stdout(&output)).expect("JSON")
    };
    let results = run(&[]);
    assert_eq!(results.keys().map(String::as_str).collect::<Vec<_>>().len(), 10);
    for (task, entries) in &results {
        let on_a_server = task.ends_with("test") || task.ends_with("testdev");
        assert_eq!(entries.iter().map(|entry| entry["shots"].as_u64()).collect::<Vec<_>>(), [Some(0), Some(2)]);
        for entry in entries {
            assert_eq!(entry["samples"], 3);
            assert_eq!(entry["trials"].as_array().map(Vec::len), Some(1));
            assert_eq!(entry["mean"].is_null(), on_a_server);
            assert_eq!(entry["interval"].is_null(), on_a_server);
            let kinds = entry["by_answer_type"].as_object().map_or(0, |kinds| kinds.len());
            assert_eq!(kinds > 0, matches!(task.as_str(), "vqav2" | "ok_vqa" | "vizwiz" | "textvqa"), "{entry}");
            let seed = format!("{task}-random-{}-42.jsonl", entry["shots"]);
            let answers = lines(&out.join("predictions").join(&seed));
            assert_eq!(answers.len(), 3);
            for answer in &answers {
                let shown = answer["demonstration_images"].as_array().expect("a list").len();
                let marks = answer["prompt"].as_str().expect("a prompt").matches("<image>").count();
                assert_eq!(answer["demonstrations"].as_array().expect("a list").len(), 2);
                assert_eq!((shown, marks), if entry["shots"] == 0 { (0, 1) } else { (2, 3) });
                let classes = match task.as_str() {
                    "hateful_memes" => 2,
                    "imagenet" => 5,
                    _ => 0,
                };
                assert_eq!(answer["classes"].as_array().map_or(0, Vec::len), classes);
            }
        }
    }
    let written: Value =
        serde_json::from_str(&fs::read_to_string(out.join("results.json")).expect("results")).expect("JSON");
    assert_eq!(written, json!(results));

    // Files for the servers: an answer to every question, asked or not.
    let submission = |name: &str| -> Vec<Value> {
        let path = out.join(format!("submission-{name}-random-2-42.json"));
        serde_json::from_str(&fs::read_to_string(path).expect("a submission")).expect("a list")
    };
    let mut ids: Vec<u64> =
        submission("vqav2_testdev").iter().map(|a| a["question_id"].as_u64().expect("an id")).collect();
    ids.sort_unstable();
    // 95 to 100 are the whole test; of 100 to 105 three were asked.
    assert!(ids.starts_with(&[95, 96, 97, 98, 99, 100]) && ids.windows(2).all(|pair| pair[0] != pair[1]), "{ids:?}");
    let images: Vec<Value> = submission("vizwiz_test").iter().map(|answer| answer["image"].clone()).collect();
    assert_eq!(images, (100..106).map(|i| json!(format!("VizWiz_{i}.jpg"))).collect::<Vec<_>>());

    // The page stands alone, and is made again of several runs.
    let page = fs::read_to_string(out.join("report.html")).expect("a page");
    assert!(page.contains("<svg") && page.contains("data:image/jpeg;base64,") && !page.contains("src=\"/"));
    assert_eq!(page.matches("kind of answer").count(), 4, "of the four tasks whose files tell it");
    assert!(results["vqav2"][0]["by_answer_type"].as_object().expect("kinds").keys().all(|kind| page.contains(kind)));
    let both = flamingo(&["report", &folder, &folder]);
    assert!(both.status.success() && stdout(&both).matches("<h2>").count() == 10);
    let shown = out.join("predictions/coco-random-2-42.jsonl");
    fs::rename(&shown, shown.with_extension("away")).expect("a file");
    let error = fails(&["report", &folder]);
    assert!(error.contains("coco-random-2-42.jsonl"), "{error}");
    fs::rename(shown.with_extension("away"), &shown).expect("a file");

    // A trial that was broken off twice, each time in the middle of a line, comes out the same.
    let whole = out.join("predictions/coco-random-2-42.jsonl");
    let content = fs::read_to_string(&whole).expect("predictions");
    let rows: Vec<&str> = content.split_inclusive('\n').collect();
    let broken_off = |rows: &[&str]| {
        fs::write(whole.with_extension("jsonl.partial"), rows.concat()).expect("a partial file");
        fs::remove_file(&whole).expect("no whole one");
        assert_eq!(run(&[])["coco"], results["coco"]);
        assert_eq!(fs::read_to_string(&whole).expect("predictions"), content);
    };
    broken_off(&[rows[2], &rows[0][..20]]);
    broken_off(&[rows[2], rows[0], &rows[1][..rows[1].len() - 1]]);
    assert!(names(&out.join("predictions")).iter().all(|name| name.ends_with(".jsonl")));

    // Another task in the same folder joins what is there.
    let alone = flamingo(&[&MODEL[..], &["--task", "coco", "--json"], &options].concat());
    assert_eq!(serde_json::from_str::<Value>(&stdout(&alone)).expect("JSON"), json!({"coco": results["coco"]}));
    let after: Value =
        serde_json::from_str(&fs::read_to_string(out.join("results.json")).expect("results")).expect("JSON");
    assert_eq!(after, written);

    // What was answered under other settings is not mixed in.
    let error = fails(&[&MODEL[..], &["--task", "coco", "--batch-size", "3"], &options].concat());
    assert!(error.contains("holds an evaluation with other settings: give another --out"), "{error}");
}

/// A task of one's own: colours of plain squares.
pub fn own() -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let mut lines = String::new();
    for i in 0..8u64 {
        put(folder.path().join(format!("{}.jpg", "x".repeat(i as usize + 1))), None);
        let image = format!("{}.jpg", "x".repeat(i as usize + 1));
        let answer = if i % 2 == 0 { "cat" } else { "cup" };
        lines += &format!("{}\n", json!({"id": i, "image": image, "answer": answer}));
    }
    fs::write(folder.path().join("mine.jsonl"), lines).expect("lines");
    let task = "name = \"mine\"\ntitle = \"Mine\"\nprompt = \"<image>This is a\"\nmetric = \"accuracy\"\n\
                [answer.classify]\nclasses = [\"cat\", \"cup\"]\nprompt_ensembling = true\n\
                [test]\nformat = \"jsonl\"\nfile = \"mine.jsonl\"\n";
    fs::write(folder.path().join("mine.toml"), task).expect("a task");
    folder
}

#[test]
fn a_task_of_ones_own_is_one_file_beside_its_data() {
    let folder = own();
    let (task, out) = (text_of(&folder.path().join("mine.toml")), folder.path().join("run"));
    // A tower that was trained tells photographs apart.
    const MODEL: [&str; 5] = ["eval", "--model", "flamingo-tiny-neox", "--device", "flex"];
    let arguments = ["--task", &task, "--shots", "3", "--demonstrations", "random,rices", "--trial-seeds", "1,2"];
    let output = flamingo(&[&MODEL[..], &arguments, &["--out", &text_of(&out), "--json"]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let results: Value = serde_json::from_str(&stdout(&output)).expect("JSON");
    let entries = results["mine"].as_array().expect("entries");
    assert_eq!(entries.iter().map(|entry| entry["demonstrations"].clone()).collect::<Vec<_>>(), ["random", "rices"]);
    for entry in entries {
        let trials: Vec<f64> =
            entry["trials"].as_array().expect("trials").iter().map(|t| t.as_f64().expect("a score")).collect();
        assert_eq!(trials.len(), 2);
        let mean = (trials[0] + trials[1]) / 2.0;
        assert!((entry["mean"].as_f64().expect("a mean") - mean).abs() < 1e-12);
        assert!((entry["stddev"].as_f64().expect("a deviation") - (trials[0] - mean).abs()).abs() < 1e-12);
    }
    // Similar pictures demonstrate, the most similar last (without an ensemble, which shuffles them): another copy of
    // the same photograph.
    let plain = fs::read_to_string(&task).expect("a task").replace("prompt_ensembling = true\n", "");
    let task = text_of(&folder.path().join("plain.toml"));
    fs::write(&task, plain.replace("\"mine\"", "\"plain\"")).expect("a task");
    let similar = ["--task", &task, "--shots", "3", "--demonstrations", "rices", "--trial-seeds", "1"];
    assert!(flamingo(&[&MODEL[..], &similar, &["--out", &text_of(&out)]].concat()).status.success());
    let photo = |path: &Value| fs::read(path.as_str().expect("a path")).expect("a photograph");
    for answer in lines(&out.join("predictions/plain-rices-3-1.jsonl")) {
        let shown = answer["demonstration_images"].as_array().expect("a list");
        assert_eq!(shown.len(), 3);
        let copies = (0..8).map(|i| json!(folder.path().join(format!("{}.jpg", "x".repeat(i + 1)))));
        let copies = copies.filter(|path| photo(path) == photo(&answer["image"])).count();
        let alike: Vec<bool> = shown.iter().map(|path| photo(path) == photo(&answer["image"])).collect();
        let expected = (copies - 1).min(3);
        assert!(alike.iter().rev().take(expected).all(|&alike| alike), "{alike:?} of {copies}");
    }
    // Features are made once: the file stays as it is while more is asked by them.
    let features = || {
        let mut names = names(&out).into_iter().filter(|name| name.starts_with("features-"));
        let path = out.join(names.next().expect("a file of features"));
        assert_eq!(names.next(), None);
        fs::metadata(path).expect("a file").modified().expect("a time")
    };
    let before = features();
    let more = ["--task", &task, "--shots", "2", "--demonstrations", "rices", "--trial-seeds", "1"];
    assert!(flamingo(&[&MODEL[..], &more, &["--out", &text_of(&out)]].concat()).status.success());
    assert_eq!(features(), before);
    assert_eq!(lines(&out.join("predictions/plain-rices-2-1.jsonl")).len(), 8);
}

#[test]
fn what_is_asked_ends_up_in_the_page_as_text() {
    let folder = own();
    let task = text_of(&folder.path().join("mine.toml"));
    let file = folder.path().join("mine.jsonl");
    let content = fs::read_to_string(&file).expect("lines").replace("\"id\":0", "\"id\":\"<script>alert(1)</script>\"");
    fs::write(&file, content).expect("lines");
    let renamed = fs::read_to_string(&task).expect("a task").replace("\"Mine\"", "\"<b>Mine</b>\"");
    fs::write(&task, renamed).expect("a task");
    let out = folder.path().join("run");
    let run = ["--task", &task, "--shots", "1", "--out", &text_of(&out)];
    let output = flamingo(&[&MODEL[..], &run].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(stdout(&output).lines().count() == 2 && stdout(&output).contains("random"));
    let page = fs::read_to_string(out.join("report.html")).expect("a page");
    assert!(!page.contains("<script") && !page.contains("<b>Mine"), "markup of the data");
    assert!(page.contains("&lt;b&gt;Mine"));
    // A question that brings a mark of its own has no picture for it.
    let asks = prompt_with_a_mark(&folder);
    let error = fails(&[&MODEL[..], &["--task", &asks, "--shots", "1", "--out", &text_of(&out.join("b"))]].concat());
    assert!(error.contains("marks <image> for 2 pictures") && error.contains("mine.jsonl"), "{error}");
}

/// The task with a prompt that names a field in which a mark stands.
fn prompt_with_a_mark(folder: &TempDir) -> String {
    let file = folder.path().join("mine.jsonl");
    let content = fs::read_to_string(&file).expect("lines").replace("\"answer\"", "\"q\":\"an <image>?\",\"answer\"");
    fs::write(&file, content).expect("lines");
    let task = fs::read_to_string(folder.path().join("mine.toml")).expect("a task");
    let path = folder.path().join("marks.toml");
    fs::write(&path, task.replace("This is a", "{q}").replace("\"mine\"", "\"marks\"")).expect("a task");
    text_of(&path)
}

#[test]
fn demonstrations_that_all_share_are_read_once_and_change_nothing() {
    let folder = own();
    let task = fs::read_to_string(folder.path().join("mine.toml")).expect("a task");
    let written = "[answer.generate]\nmax_new_tokens = 6\nnum_beams = 3\nlength_penalty = 0.0\n[test]";
    let (classes, test) = (task.find("[answer").expect("an answer"), task.find("[test]").expect("a test"));
    let generate = format!("{}{written}{}", &task[..classes], &task[test + "[test]".len()..]);
    let classify = task.replace("prompt_ensembling = true\n", "");
    for (name, text) in [("written", generate), ("chosen", classify)] {
        let path = folder.path().join(format!("{name}.toml"));
        fs::write(&path, text).expect("a task");
        let run = |out: &Path, more: &[&str]| {
            let fixed =
                ["--task", &text_of(&path), "--shots", "0,3", "--demonstrations", "fixed", "--out", &text_of(out)];
            let output = flamingo(&[&MODEL[..], &fixed, more].concat());
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        };
        let [shared, whole] = ["shared", "whole"].map(|how| folder.path().join(format!("{name}-{how}")));
        run(&shared, &["--batch-size", "4"]);
        // Upstream's way reads every prompt whole; without padding it computes the same.
        run(&whole, &["--upstream-compat"]);
        for (shots, asked) in [(0, 6), (3, 5)] {
            // Upstream's zero-shot classification looks at the wrong picture.
            if (name, shots) == ("chosen", 0) {
                continue;
            }
            let [shared, whole] =
                [&shared, &whole].map(|out| lines(&out.join(format!("predictions/mine-fixed-{shots}-42.jsonl"))));
            assert_eq!((shared.len(), whole.len()), (asked, asked));
            for (a, b) in shared.iter().zip(&whole) {
                assert_eq!(
                    (&a["prompt"], &a["answer"], &a["generated"]),
                    (&b["prompt"], &b["answer"], &b["generated"])
                );
                let classes = |x: &Value| x["classes"].as_array().cloned().unwrap_or_default();
                for (a, b) in classes(a).iter().zip(classes(b)) {
                    assert_eq!(a[0], b[0]);
                    assert!((a[1].as_f64().expect("a number") - b[1].as_f64().expect("a number")).abs() < 1e-4);
                }
            }
        }
    }
}

/// A trained model to which embeddings of three places are added.
fn model_of_places(folder: &Path) -> String {
    let (from, to) = (root().join("models/flamingo-tiny-neox"), folder.join("places"));
    fs::create_dir(&to).expect("a folder");
    for file in fs::read_dir(&from).expect("a model") {
        let file = file.expect("a file").path();
        fs::copy(&file, to.join(file.file_name().expect("a name"))).expect("a copy");
    }
    let shape = fs::read_to_string(from.join("model.toml")).expect("a shape");
    let width: usize = 128;
    assert!(shape.contains(&format!("width = {width}")), "the tower's width has changed");
    fs::write(to.join("model.toml"), shape.replace("[resampler]", "[resampler]\nmax_num_media = 3")).expect("a shape");
    let bytes = fs::read(from.join("model.safetensors")).expect("weights");
    let stored = safetensors::SafeTensors::deserialize(&bytes).expect("tensors");
    let like = stored.tensor("resampler.latents").expect("latents").dtype();
    assert_eq!(like, safetensors::Dtype::F16);
    // From -0.25 to 0.25, another number in each place: f16 has its sign on top, and 0x3400 is 0.25.
    let numbers =
        (0..3 * width).flat_map(|i| (0x3400u16 | if i % 7 < 3 { 0x8000 } else { 0 } | (i as u16 % 5)).to_le_bytes());
    let numbers: Vec<u8> = numbers.collect();
    let places = safetensors::tensor::TensorView::new(like, vec![3, width], &numbers).expect("a tensor");
    let all = stored.tensors().into_iter().chain([("resampler.media_time_embeddings".to_string(), places)]);
    fs::write(to.join("model.safetensors"), safetensors::serialize(all, None).expect("bytes")).expect("weights");
    text_of(&to)
}

#[test]
fn pictures_whose_places_a_model_tells_are_seen_once_for_each_place() {
    let folder = own();
    let model = model_of_places(folder.path());
    let task = fs::read_to_string(folder.path().join("mine.toml")).expect("a task");
    let written = "[answer.generate]\nmax_new_tokens = 6\nnum_beams = 1\nlength_penalty = 0.0\n[test]";
    let (classes, test) = (task.find("[answer").expect("an answer"), task.find("[test]").expect("a test"));
    let path = folder.path().join("written.toml");
    fs::write(&path, format!("{}{written}{}", &task[..classes], &task[test + "[test]".len()..])).expect("a task");
    let out = folder.path().join("run");
    let asks = |shots: &str| -> Vec<String> {
        let task =
            ["--task", &text_of(&path), "--demonstrations", "random,fixed", "--trial-seeds", "1"].map(String::from);
        let model = ["eval", "--model", &model, "--device", "flex", "--shots", shots, "--out", &text_of(&out)]
            .map(String::from);
        [&model[..], &task].concat()
    };
    let run = |args: &[String]| flamingo(&args.iter().map(String::as_str).collect::<Vec<_>>());
    let output = run(&asks("2"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for choice in ["random", "fixed"] {
        for answer in lines(&out.join(format!("predictions/mine-{choice}-2-1.jsonl"))).iter().take(3) {
            // The same prompt, whole, in a process that keeps nothing of pictures.
            let mut images: Vec<&Value> = answer["demonstration_images"].as_array().expect("a list").iter().collect();
            images.push(&answer["image"]);
            let texts: Vec<&str> = answer["prompt"].as_str().expect("a prompt").split("<image>").collect();
            assert_eq!(texts.len(), images.len() + 1);
            let mut parts = vec![json!(texts[0])];
            parts.extend(
                images.iter().zip(&texts[1..]).flat_map(|(image, text)| [json!({"image": image}), json!(text)]),
            );
            let file = folder.path().join("prompt.json");
            fs::write(&file, Value::from(parts).to_string()).expect("a prompt");
            let whole = ["generate", "--model", &model, "--device", "flex", "--max-new-tokens", "6", "--json"];
            let whole = flamingo(&[&whole[..], &["--interleaved", &text_of(&file)]].concat());
            let whole: Value = serde_json::from_str(&stdout(&whole)).expect("JSON");
            assert_eq!(whole["prompt"], answer["prompt"]);
            assert_eq!(whole["sequences"][0]["text"], answer["generated"]);
        }
    }
    let args = asks("3");
    let error = fails(&args.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(error.contains("4 pictures, and the model has places for 3"), "{error}");
}

#[test]
fn broken_data_are_one_clear_sentence() {
    let folder = own();
    let task = text_of(&folder.path().join("mine.toml"));
    let out = text_of(&folder.path().join("run"));
    let run = |more: &[&str]| fails(&[&MODEL[..], &["--task", &task, "--out", &out], more].concat());
    assert!(run(&["--shots", "8"]).contains("8 shots want 8 demonstrations, and there are 7 to choose from"));
    let error = fails(&[&MODEL[..], &["--task", &task, "--shots", "2", "--out", &task]].concat());
    assert!(error.contains("mine.toml is no folder: give another --out"), "{error}");
    fs::remove_file(folder.path().join("xxx.jpg")).expect("a file");
    let error = run(&["--shots", "2"]);
    assert!(error.contains("mine.jsonl: the picture of sample 2 is not there") && error.contains("xxx.jpg"), "{error}");
    fs::write(folder.path().join("xxx.jpg"), "no picture").expect("a file");
    assert!(run(&["--shots", "2"]).contains("xxx.jpg: "));
    fs::write(folder.path().join("mine.jsonl"), "{").expect("a file");
    assert!(run(&["--shots", "2"]).contains("mine.jsonl: line 1: "));
    assert!(fails(&[&MODEL[..], &["--task", "cocoa"]].concat()).contains("give one of coco, flickr30"));
    let error = fails(&["report", &text_of(folder.path())]);
    assert!(error.contains("run.json") && error.matches("No such file").count() == 1, "{error}");
}

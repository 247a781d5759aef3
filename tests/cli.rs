//! The real binary, as a person or a script uses it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn photo(name: &str) -> String {
    root().join("tests/fixtures/photos").join(name).display().to_string()
}

pub fn flamingo(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_flamingo"))
        .args(args)
        .current_dir(root())
        .env_remove("FLAMINGO_MODELS")
        .env("NO_COLOR", "1")
        // Vulkan drivers complain on stderr where it is not set.
        .env("XDG_RUNTIME_DIR", std::env::temp_dir())
        .output()
        .expect("the binary runs")
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("text")
}

/// Runs and fails with one clear sentence on stderr.
pub fn fails(args: &[&str]) -> String {
    let output = flamingo(args);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{args:?} succeeded");
    assert!(output.stdout.is_empty(), "{args:?} printed {}", stdout(&output));
    assert_eq!(error.lines().count(), 1, "{args:?}: {error}");
    assert!(error.starts_with("error: ") && !error.contains("panicked"), "{error}");
    error
}

fn few_shot<'a>(photos: &'a [String; 4], more: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec!["generate", "--model", "golden-tiny", "--device", "flex"];
    for (photo, text) in photos[..3].iter().zip(["An astronaut.", "A cup of coffee.", "A rocket."]) {
        args.extend(["--shot", photo, text]);
    }
    args.extend(["--image", &photos[3], "--prompt", "A"]);
    args.extend(more);
    args
}

fn photos() -> [String; 4] {
    ["astronaut.jpg", "coffee.jpg", "rocket.jpg", "chelsea.jpg"].map(photo)
}

#[test]
fn a_three_shot_prompt_of_photographs_is_continued() {
    let photos = photos();
    let output = flamingo(&few_shot(&photos, &["--json", "--max-new-tokens", "8", "--min-new-tokens", "8"]));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let json: Value = serde_json::from_str(&stdout(&output)).expect("JSON");
    assert_eq!(
        json["prompt"],
        "<image>An astronaut.<|endofchunk|><image>A cup of coffee.<|endofchunk|><image>A rocket.<|endofchunk|><image>A"
    );
    assert_eq!(json["sequences"][0]["ids"].as_array().expect("ids").len(), 8);
    let text = json["sequences"][0]["text"].as_str().expect("a text");

    // The same as plain text, streamed; and the same again.
    let output = flamingo(&few_shot(&photos, &["--max-new-tokens", "8", "--min-new-tokens", "8"]));
    assert_eq!(stdout(&output), format!("{text}\n"));
}

#[test]
fn pictures_are_captioned_one_by_one() {
    let photos = photos();
    let lines = |images: &[&str], more: &[&str]| {
        let fixed = ["caption", "--model", "golden-tiny", "--device", "flex", "--max-new-tokens", "6"];
        let output = flamingo(&[&fixed[..], more, images].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        stdout(&output).lines().map(str::to_string).collect::<Vec<_>>()
    };
    let images: Vec<&str> = photos[1..].iter().map(String::as_str).collect();
    for more in [vec!["--prompt", "A picture of"], vec!["--shot", &photos[0], "An astronaut."]] {
        let together = lines(&images, &more);
        let alone: Vec<String> = images.iter().flat_map(|image| lines(&[image], &more)).collect();
        assert_eq!(together, alone);
        assert!(together.iter().zip(&images).all(|(line, image)| line.starts_with(&format!("{image}: "))));
    }
    // The same prompt typed by hand.
    let captions = lines(&images[..1], &["--json"]);
    let caption: Value = serde_json::from_str(&captions[0]).expect("JSON");
    let fixed = ["generate", "--model", "golden-tiny", "--device", "flex", "--max-new-tokens", "6"];
    let output = flamingo(&[&fixed[..], &["--image", images[0], "--prompt", "Output:"]].concat());
    assert_eq!(caption["caption"], stdout(&output).trim());
    assert_eq!(caption["image"], images[0]);
}

#[test]
fn the_pictures_matter() {
    let photos = photos();
    let args = ["--candidate", "A cat.", "--candidate", "A dog.", "--json"];
    let scores = |image: &str| {
        let mut command = vec!["score", "--model", "golden-tiny", "--image", image];
        command.extend(args);
        let json: Value = serde_json::from_str(&stdout(&flamingo(&command))).expect("JSON");
        let numbers = json["candidates"].as_array().expect("candidates").iter();
        numbers.map(|c| c["log_likelihood"].as_f64().expect("a number")).collect::<Vec<f64>>()
    };
    let (cat, rocket) = (scores(&photos[3]), scores(&photos[2]));
    assert!(cat.iter().all(|&x| x < 0.0) && cat[0] != cat[1]);
    assert!((cat[0] - rocket[0]).abs() > 1e-4, "{cat:?} {rocket:?}");
}

#[test]
fn searches_and_samples_are_asked_for_by_flags() {
    let photos = photos();
    let run = |more: &[&str]| {
        let mut args = few_shot(&photos, more);
        args.push("--json");
        let output = flamingo(&args);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_str::<Value>(&stdout(&output)).expect("JSON")["sequences"].clone()
    };
    let beams = run(&["--num-beams", "3", "--num-return-sequences", "2", "--length-penalty", "-2.0"]);
    let score = |i: usize| beams[i]["score"].as_f64().expect("a score");
    assert!(score(0) >= score(1));
    let sample = |seed: &str| run(&["--sample", "--temperature", "1.5", "--top-p", "0.95", "--seed", seed]);
    assert_eq!(sample("1"), sample("1"));
    assert_ne!(sample("1"), sample("2"));
}

#[test]
fn parts_are_interleaved_freely_from_a_file() {
    let work = tempfile::tempdir().expect("a temporary folder");
    std::fs::copy(photo("coffee.jpg"), work.path().join("cup.jpg")).expect("a copy");
    let file = work.path().join("prompt.json");
    std::fs::write(&file, r#"["Look: ", {"image": "cup.jpg"}, {"text": "A cup. And "}]"#).expect("a file");
    let file = file.display().to_string();
    let output = flamingo(&["generate", "--model", "golden-tiny", "--interleaved", &file, "--json"]);
    let json: Value = serde_json::from_str(&stdout(&output)).expect("JSON");
    assert_eq!(json["prompt"], "Look: <image>A cup. And ");
    for bad in ["", "{}", "[1]", r#"[{"image": "missing.jpg"}]"#, r#"[{"picture": "cup.jpg"}]"#] {
        std::fs::write(&file, bad).expect("a file");
        fails(&["generate", "--model", "golden-tiny", "--interleaved", &file]);
    }
    // A picture that is named a thousand times is decoded once, and one that never ends not at all.
    let parts = vec![serde_json::json!({"image": "cup.jpg"}); 1000];
    std::fs::write(&file, serde_json::Value::from(parts).to_string()).expect("a file");
    assert!(fails(&["generate", "--model", "nothing", "--interleaved", &file]).contains("nothing"));
    std::fs::write(&file, r#"[{"image": "/dev/zero"}]"#).expect("a file");
    assert!(fails(&["generate", "--model", "golden-tiny", "--interleaved", &file]).contains("regular file"));
}

#[test]
fn the_zoo_is_listed_and_inspected() {
    let table = stdout(&flamingo(&["models"]));
    assert!(table.contains("openflamingo-3b ") && table.contains("golden-tiny"), "{table}");
    let list: Value = serde_json::from_str(&stdout(&flamingo(&["models", "--json"]))).expect("JSON");
    let tiny = list.as_array().expect("a list").iter().find(|m| m["name"] == "golden-tiny").expect("the tiny model");
    assert_eq!(tiny["weights"], true);
    let inspected: Value =
        serde_json::from_str(&stdout(&flamingo(&["inspect", "openflamingo-9b", "--json"]))).expect("JSON");
    assert!(inspected["total_parameters"].as_u64().expect("a number") > 8_000_000_000);
    assert!(stdout(&flamingo(&["inspect", "golden-tiny"])).contains("stored as"));
}

#[test]
fn bad_input_gets_one_sentence() {
    let photo = photo("chelsea.jpg");
    let tiny = ["generate", "--model", "golden-tiny"];
    let with = |more: &[&str]| fails(&[&tiny[..], more].concat());
    assert!(with(&["--image", "missing.jpg"]).contains("missing.jpg"));
    assert!(with(&["--image", "Cargo.toml"]).contains("not a usable picture"));
    assert!(with(&[]).contains("nothing to continue"));
    assert!(with(&["--image", &photo, "--prompt", "<image>two"]).contains("2 <image> mark(s)"));
    assert!(with(&["--image", &photo, "--max-new-tokens", "0"]).contains("max_new_tokens"));
    assert!(with(&["--image", &photo, "--num-beams", "2", "--num-return-sequences", "3"]).contains("num_beams"));
    assert!(fails(&["generate", "--model", "nothing", "--prompt", "A"]).contains("nothing"));
    assert!(fails(&["generate", "--model", "openflamingo-3b", "--prompt", "A"]).contains("convert-weights"));
    assert!(fails(&["caption", "--model", "golden-tiny", "missing.jpg"]).contains("missing.jpg"));
    assert!(fails(&["inspect", "nothing"]).contains("nothing"));
    assert!(fails(&["models", "--models", "nowhere"]).contains("nowhere"));
    // Wrong usage is clap's: its own message, exit code 2.
    assert_eq!(flamingo(&["generate", "--device", "tpu"]).status.code(), Some(2));
}

#[test]
fn devices_that_are_not_there_are_named() {
    let args = |device| ["generate", "--model", "golden-tiny", "--prompt", "A", "--device", device];
    for device in ["cuda", "wgpu:99"] {
        let error = fails(&args(device));
        let backend = device.split(':').next().expect("a name");
        assert!(error.contains(backend) || error.contains("CUDA"), "{error}");
    }
}

#[test]
fn damaged_model_folders_are_errors() {
    let work = tempfile::tempdir().expect("a temporary folder");
    let tiny = root().join("models/golden-tiny");
    let copy = |to: &Path| {
        std::fs::create_dir(to).expect("a folder");
        for entry in std::fs::read_dir(&tiny).expect("a folder").flatten() {
            std::fs::copy(entry.path(), to.join(entry.file_name())).expect("a copy");
        }
    };
    let run = |folder: &PathBuf| fails(&["generate", "--model", &folder.display().to_string(), "--prompt", "A"]);
    let folder = work.path().join("truncated");
    copy(&folder);
    let weights = folder.join("model.safetensors");
    let bytes = std::fs::read(&weights).expect("weights");
    std::fs::write(&weights, &bytes[..bytes.len() / 2]).expect("a file");
    assert!(run(&folder).contains("truncated"));
    let folder = work.path().join("no_tokenizer");
    copy(&folder);
    std::fs::remove_file(folder.join("tokenizer.json")).expect("a file");
    assert!(run(&folder).contains("tokenizer"));
    let folder = work.path().join("bad_config");
    copy(&folder);
    std::fs::write(folder.join("model.toml"), "name = 3").expect("a file");
    assert!(run(&folder).contains("model.toml"));
    // A tokenizer that parses and makes its library panic.
    let folder = work.path().join("hostile_tokenizer");
    copy(&folder);
    let path = folder.join("tokenizer.json");
    let mut tokenizer: Value = serde_json::from_slice(&std::fs::read(&path).expect("a file")).expect("JSON");
    tokenizer["model"]["continuing_subword_prefix"] = "#".repeat(1000).into();
    std::fs::write(&path, tokenizer.to_string()).expect("a file");
    assert!(run(&folder).contains("tokenizer"));
}

#[test]
fn names_from_files_do_not_command_the_terminal() {
    let work = tempfile::tempdir().expect("a temporary folder");
    let text = std::fs::read_to_string(root().join("models/openflamingo-3b/model.toml")).expect("a config");
    let text = text.replace("name = \"openflamingo-3b\"", "name = \"a\\u001b]0;pwned\\u0007b\"");
    std::fs::write(work.path().join("model.toml"), text).expect("a file");
    let shown = stdout(&flamingo(&["inspect", &work.path().display().to_string()]));
    assert!(shown.starts_with("a\u{fffd}]0;pwned\u{fffd}b\n"), "{shown}");
    assert!(!shown.contains('\u{1b}'));
}

#[test]
fn what_a_user_waits_for_is_measured() {
    let work = tempfile::tempdir().expect("a temporary folder");
    let out = work.path().join("bench.md");
    let small = ["--images", "1", "--tokens", "9", "--new-tokens", "2", "--shots", "2", "--runs", "1"];
    let args = ["bench", "--json", "--device", "flex", "--precision", "f32", "--precision", "q4", "--out"];
    let args = [&args[..], &[out.to_str().expect("a path")], &small[..]].concat();
    let json: serde_json::Value = serde_json::from_str(&stdout(&flamingo(&args))).expect("JSON");
    let measured = json["measured"].as_array().expect("what was measured");
    let precisions: Vec<_> = measured.iter().map(|m| m["precision"].as_str().expect("a precision")).collect();
    assert_eq!(precisions, ["f32", "q4"]);
    for m in measured {
        for stage in ["load", "vision", "resampler", "prefill", "decode", "generate", "second_query"] {
            assert!(m[stage].as_f64().is_some_and(|seconds| seconds > 0.0), "{stage} of {m}");
        }
    }
    assert!(json["machine"]["read_bytes_per_second"].as_f64().is_some_and(|rate| rate > 1e8));
    let page = std::fs::read_to_string(out).expect("a page");
    assert!(page.contains("| decode, tokens/s | "), "{page}");

    // A shape alone, and one that is nowhere.
    let shape = root().join("tests/quantised.toml");
    let shape = shape.to_str().expect("a path");
    let page = stdout(&flamingo(&[&["bench", "--model", shape, "--device", "flex"], &small[..]].concat()));
    assert!(page.contains("| load, s | - |"), "{page}");
    assert!(fails(&["bench", "--model", "no-such-model"]).contains("no-such-model"));
    let error = fails(&["bench", "--device", "flex", "--images", "3", "--tokens", "2"]);
    assert!(error.contains("--tokens must leave room"), "{error}");
}

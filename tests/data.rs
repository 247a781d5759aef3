//! Training data made, looked at and drawn with the real binary.

use std::fs;
use std::path::{Path, PathBuf};

use roxmltree::Document;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::cli::{fails, flamingo, stdout};
use crate::recordings::recorded;

fn work() -> TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

fn photos() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/photos")
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn put(path: PathBuf, content: impl AsRef<[u8]>) -> String {
    fs::write(&path, content).expect("a file");
    text(&path)
}

/// Runs and gives what is on stdout, as JSON.
fn json(args: &[&str]) -> Value {
    let output = flamingo(args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_str(&stdout(&output)).expect("JSON")
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).expect("a folder").flatten().map(|e| e.file_name().to_string_lossy().into()).collect();
    names.sort();
    names
}

/// Points of each curve of a figure, legends left out.
fn curves(svg: &str) -> Vec<usize> {
    let document = Document::parse(svg).expect("an SVG");
    let thick = document
        .descendants()
        .filter(|node| node.has_tag_name("polyline") && node.attribute("stroke-width") == Some("2"));
    let points = thick.map(|node| node.attribute("points").unwrap_or_default().split_whitespace().count());
    points.filter(|&count| count > 2).collect()
}

/// Documents of three sentences with two pictures each, of which every second is there.
fn mmc4(folder: &Path, documents: usize) -> (String, String) {
    let images = folder.join("images");
    fs::create_dir_all(images.join("0")).expect("a folder");
    let mut lines = String::new();
    for i in 0..documents {
        fs::copy(photos().join("coffee.jpg"), images.join(format!("0/{i}-a.jpg"))).expect("a copy");
        let similarity = 0.21 + 0.02 * i as f64;
        let document = json!({
            "url": "http://example.com",
            "text_list": ["A table.", "A cup on it.", "The end."],
            "image_info": [{"image_name": format!("{i}-a.jpg")}, {"image_name": format!("{i}-b.jpg")}],
            "similarity_matrix": [[0.1, similarity, 0.1], [0.3, 0.35, 0.2]],
        });
        lines += &format!("{document}\n");
    }
    (put(folder.join("documents.jsonl"), lines), text(&images))
}

#[test]
fn documents_become_shards_and_thresholds_are_compared() {
    let work = work();
    let (documents, images) = mmc4(work.path(), 10);
    let shards = work.path().join("shards");
    let convert = ["data", "convert-mmc4", "--image-dir", &images, "--output", &text(&shards)];
    let done = json(&[&convert[..], &["--samples-per-shard", "4", "--json", &documents]].concat());
    assert_eq!((&done["documents"], &done["pictures"], &done["shards"]), (&json!(10), &json!(10), &json!(3)));
    assert_eq!(done["pictures_left_out"], json!({"not found": 10}));
    assert_eq!(names(&shards), ["000000000.tar", "000000001.tar", "000000002.tar"]);
    assert!(fails(&[&convert[..], &[&documents]].concat()).contains("is there already"));

    let plot = work.path().join("plot.svg");
    let pattern = text(&shards.join("00000000{0..2}.tar"));
    let found = json(&["data", "inspect", &pattern, "--json", "--plot", &text(&plot)]);
    assert_eq!(found["samples"], json!({"pairs": 0, "documents": 10, "generated": 0, "unknown": 0}));
    assert_eq!(found["formats"], json!({"jpg": 10}));
    assert_eq!(found["pictures_per_document"]["p50"], 2);
    for (i, kept) in found["thresholds"].as_array().expect("thresholds").iter().enumerate() {
        // Similarities are 0.21, 0.23, …, 0.39 and thresholds 0.20, 0.22, …, 0.40.
        let documents = 10 - i;
        assert_eq!((&kept["documents"], &kept["pictures"]), (&json!(documents), &json!(documents)), "{kept}");
    }
    let svg = fs::read_to_string(&plot).expect("a figure");
    assert_eq!(curves(&svg), [11, 11]);
    assert!(svg.contains("What a threshold keeps"));
    assert_eq!(names(work.path()), ["documents.jsonl", "images", "plot.svg", "shards"]);

    // No picture is too small, or each is.
    let kept_of =
        |bytes: &str| json(&["data", "inspect", &pattern, "--json", "--min-bytes", bytes])["thresholds"].clone();
    assert_eq!(kept_of("0"), found["thresholds"]);
    assert!(kept_of("1000000000").as_array().expect("thresholds").iter().all(|kept| kept["pictures"] == 0));

    // The same as tables, of the folder; and of the documents as they were, whose pictures are all taken for there.
    let table = stdout(&flamingo(&["data", "inspect", &text(&shards)]));
    assert!(table.contains("documents 10") && table.contains("0.32               4   40.0"), "{table}");
    let raw = json(&["data", "inspect", &documents, "--json"]);
    // Second pictures suit the second sentence best, and give way to first ones: 0.30 instead of 0.35.
    let kept = |i: usize| (raw["thresholds"][i]["documents"].clone(), raw["thresholds"][i]["pictures"].clone());
    assert_eq!((kept(5), kept(6)), ((json!(10), json!(15)), (json!(4), json!(4))), "{raw}");
}

#[test]
fn real_documents_are_converted_and_inspected() {
    let Some(sample) = recorded("../data/mmc4_sample.jsonl") else { return };
    let documents = fs::read_to_string(&sample).expect("documents");
    let work = work();
    let mut there = 0;
    for line in documents.lines().step_by(5) {
        let document: Value = serde_json::from_str(line).expect("JSON");
        let name = document["image_info"][0]["image_name"].as_str().expect("a name");
        fs::copy(photos().join("rocket.jpg"), work.path().join(name)).expect("a copy");
        there += 1;
    }
    let shards = text(&work.path().join("shards"));
    let (sample, images) = (text(&sample), text(work.path()));
    let done = json(&["data", "convert-mmc4", "--image_dir", &images, "--output_dir", &shards, &sample, "--json"]);
    assert_eq!((&done["documents"], &done["pictures"]), (&json!(107), &json!(there)));
    assert_eq!(done["pictures_left_out"]["not found"], 417 - there);
    let found = json(&["data", "inspect", &shards, "--tokenizer", "models/golden-tiny", "--json"]);
    assert_eq!((&found["samples"]["documents"], &found["formats"]["jpg"]), (&json!(107), &json!(there)));
    assert_eq!(found["texts"]["tokens"]["count"], 107);
    let assigned: u64 = found["similarity"]["counts"].as_array().expect("bars").iter().filter_map(Value::as_u64).sum();
    assert_eq!(assigned, there, "pictures that are not there have no place");
    assert!(found["thresholds"][0]["documents"].as_u64() > found["thresholds"][6]["documents"].as_u64());
}

#[test]
fn a_folder_becomes_shards_of_pairs() {
    let work = work();
    let (folder, shards) = (work.path().join("in"), work.path().join("out"));
    fs::create_dir(&folder).expect("a folder");
    for name in ["chelsea", "coffee", "rocket"] {
        fs::copy(photos().join(format!("{name}.jpg")), folder.join(format!("{name}.jpg"))).expect("a copy");
        put(folder.join(format!("{name}.txt")), format!("A {name}."));
    }
    put(folder.join("alone.png"), "no text");
    let (input, output) = (text(&folder), text(&shards));
    let printed =
        flamingo(&["data", "pack", &input, "--output", &output, "--samples-per-shard", "2", "--resize", "100"]);
    assert!(printed.status.success());
    assert!(stdout(&printed).contains("3 pairs in 2 shard(s)"), "{}", stdout(&printed));
    assert_eq!(String::from_utf8_lossy(&printed.stderr), "pairs left out, without a text: 1\n");
    let found = json(&["data", "inspect", &output, "--tokenizer", "models/golden-tiny/tokenizer.json", "--json"]);
    assert_eq!(found["samples"]["pairs"], 3);
    assert_eq!((&found["members"]["jpg"]["count"], &found["members"]["txt"]["bytes"]), (&json!(3), &json!(28)));
    let (width, height) = (&found["width"]["min"], &found["height"]["min"]);
    assert!(*width == 100 || *height == 100, "{width} {height}");
    assert!(found["captions"]["tokens"]["min"].as_u64() > Some(0));
    let plot = text(&work.path().join("a.svg"));
    assert!(fails(&["data", "inspect", &output, "--plot", &plot]).contains("nothing to draw"));
    assert!(!Path::new(&plot).exists());
}

#[test]
fn unusable_data_gets_one_sentence() {
    let work = work();
    let out = text(&work.path().join("out"));
    let empty = work.path().join("empty");
    fs::create_dir(&empty).expect("a folder");
    let empty = text(&empty);
    let garbage = put(work.path().join("garbage"), (0..9000u32).map(|i| ((i * i) >> 3) as u8).collect::<Vec<u8>>());
    let nothing = put(work.path().join("nothing.tar"), "");
    assert!(fails(&["data", "inspect", &empty]).contains("no shards"));
    assert!(fails(&["data", "inspect", &garbage]).contains("no sample"));
    assert!(fails(&["data", "inspect", &nothing, &garbage]).contains("none of the files"));
    assert!(fails(&["data", "inspect", "missing.tar"]).contains("missing.tar"));
    assert!(fails(&["data", "inspect", &nothing, "--tokenizer", &garbage]).contains("garbage"));
    assert!(fails(&["data", "pack", &empty, "--output", &out]).contains("no pictures"));
    assert!(fails(&["data", "pack", &garbage, "--output", &out]).contains("unreadable line"));
    assert!(fails(&["data", "pack", "missing", "--output", &out]).contains("missing"));
    let convert = ["data", "convert-mmc4", "--image-dir", &empty, "--output", &out];
    assert!(fails(&[&convert[..], &[&garbage]].concat()).contains("no document is usable"));
    let (documents, _) = mmc4(work.path(), 1);
    assert!(fails(&[&convert[..], &[&documents]].concat()).contains("2 not found"));
    assert!(!Path::new(&out).exists(), "nothing stays behind");
    // A file stands where the folder belongs.
    let images = text(&work.path().join("images"));
    let convert = ["data", "convert-mmc4", "--image-dir", &images, "--output", &garbage, &documents];
    assert!(fails(&convert).contains("garbage"));
    for args in [
        &["data", "pack", "a", "--output", "b", "--samples-per-shard", "-1"][..],
        &["data", "pack", "a", "--output", "b", "--samples-per-shard", "0"],
        &["data", "pack", "a", "--output", "b", "--resize", "99999999999999"],
        &["data", "inspect"],
        &["plot", "a", "--smooth", "1"],
        &["plot", "a", "--smooth", "-0.5"],
        &["plot", "a", "--smooth", "nan"],
        &["plot", "a", "--x", "epoch"],
    ] {
        assert_eq!(flamingo(args).status.code(), Some(2), "{args:?}");
    }
}

/// A run of that many steps.
fn metrics(steps: usize) -> String {
    let line = |i: usize| {
        let loss = if i == 5 { json!(null) } else { json!(3.0 / i as f64) };
        json!({"step": i, "loss_mmc4": loss, "lr": 1e-4, "samples": 8 * i, "seconds": 0.5 * i as f64, "note": "x"})
    };
    (1..=steps).map(|i| format!("{}\n", line(i))).collect()
}

#[test]
fn runs_are_drawn_over_each_other() {
    let work = work();
    let run = |name: &str, content: &str| {
        fs::create_dir(work.path().join(name)).expect("a folder");
        put(work.path().join(name).join("metrics.jsonl"), content);
        text(&work.path().join(name))
    };
    let first = run("first", &(metrics(12) + "{\"step\": 13, \"lo"));
    // Resumed after step 8: the later lines count.
    let second = run("second<&>", &(metrics(10) + metrics(20).split_once("{\"step\":9,").map_or("", |(_, rest)| rest)));
    let file = work.path().join("both.svg");
    let drawn = flamingo(&["plot", &first, &second, "--output", &text(&file)]);
    assert!(drawn.status.success() && drawn.stdout.is_empty(), "{}", String::from_utf8_lossy(&drawn.stderr));
    let svg = fs::read_to_string(&file).expect("a figure");
    // A gap at step 5 of the losses; two panels, loss_laion being nowhere.
    assert_eq!(curves(&svg), [4, 7, 4, 15, 12, 20]);
    assert!(svg.contains("second&lt;&amp;&gt;") && svg.contains("loss_mmc4"));
    assert_eq!(names(work.path()), ["both.svg", "first", "second<&>"]);

    let with = |more: &[&str]| {
        let output = flamingo(&[&["plot", &first, &second][..], more].concat());
        assert!(output.status.success(), "{more:?}: {}", String::from_utf8_lossy(&output.stderr));
        stdout(&output)
    };
    assert_eq!(with(&[]).trim_end(), svg.trim_end(), "the same again, on stdout");
    let smooth = with(&["--keys", "loss_mmc4", "--smooth", "0.9", "--x", "time", "--log"]);
    assert_eq!(curves(&smooth), [4, 7, 4, 15]);
    assert!(smooth.contains("seconds of training"));
    assert_ne!(smooth, with(&["--keys", "loss_mmc4", "--x", "samples", "--log"]));

    let file = text(&file);
    assert!(fails(&["plot", &first, "--keys", "loss"]).contains("`loss`: there are loss_mmc4, lr"));
    assert!(fails(&["plot", "missing"]).contains("missing"));
    assert!(fails(&["plot", &file]).contains("no line of metrics"));
    assert!(fails(&["plot", &first, "--output", "/nowhere/a.svg"]).contains("/nowhere/a.svg"));
    let other = run("other", "{\"step\": 1, \"x\": -1}\n");
    assert!(fails(&["plot", &other]).contains("--keys"));
    assert!(fails(&["plot", &other, "--keys", "x", "--log"]).contains("positive"));
    assert!(fails(&["plot", &other, "--keys", "x", "--x", "time"]).contains("seconds"));
}

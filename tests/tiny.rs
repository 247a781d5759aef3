//! The trained models that the repository carries, on drawings of a set that they were never trained on.

use std::path::PathBuf;

use crate::cli::{flamingo, stdout};

/// Drawings of [the fixtures](fixtures/emoji/README.md), each named like its file.
fn drawings() -> Vec<String> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/emoji");
    let files = std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("a file").path());
    let mut files: Vec<String> = files
        .filter(|path| path.extension().is_some_and(|extension| extension == "png"))
        .map(|path| path.display().to_string())
        .collect();
    files.sort();
    files
}

fn said(args: &[&str]) -> String {
    let output = flamingo(args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    stdout(&output).trim().to_string()
}

/// How many drawings are named right, of how many, and what was said.
fn named(options: &[&str]) -> (usize, usize, String) {
    let drawings = drawings();
    let mut args = [&["caption", "--device", "flex"], options].concat();
    args.extend(drawings.iter().map(String::as_str));
    let captions = said(&args);
    let right = captions.lines().filter(|line| {
        let (file, caption) = line.split_once(": ").expect("a file and its caption");
        let name = PathBuf::from(file).file_stem().expect("a name").to_string_lossy().replace('-', " ");
        caption == name || caption == format!("a {name}") || caption == format!("an {name}")
    });
    (right.count(), drawings.len(), captions)
}

/// The README's first command.
#[test]
fn most_drawings_are_named() {
    let (right, all, captions) = named(&[]);
    assert!(all >= 10 && right * 10 >= all * 8, "{right} of {all}:\n{captions}");
}

/// The drawings were picked for the model of the README; the other families name more than half of them.
#[test]
fn every_family_names_drawings() {
    for model in ["flamingo-tiny-mpt", "flamingo-tiny-opt"] {
        let (right, all, captions) = named(&["--model", model]);
        assert!(2 * right > all, "{model}: {right} of {all}:\n{captions}");
    }
}

/// The same three drawings; what to say about the last is said by the first two alone.
#[test]
fn demonstrations_decide_the_task() {
    let drawing = |name: &str| drawings().into_iter().find(|file| file.ends_with(name)).expect("a drawing");
    let [crab, bulb, carrot] = ["crab.png", "light-bulb.png", "carrot.png"].map(drawing);
    for model in ["flamingo-tiny-neox", "flamingo-tiny-mpt", "flamingo-tiny-opt"] {
        for [of_crab, of_bulb, of_carrot] in [["red", "yellow", "orange"], ["nature", "object", "food"]] {
            let shots = [of_crab, of_bulb].map(|answer| format!("Output:{answer}"));
            let mut args = vec!["generate", "--model", model, "--device", "flex"];
            args.extend([
                "--shot", &crab, &shots[0], "--shot", &bulb, &shots[1], "--image", &carrot, "--prompt", "Output:",
            ]);
            assert_eq!(said(&args), of_carrot, "{model}");
        }
    }
}

/// Weights that are stored in 16 bits are the same numbers in memory as in 32, and a CPU computes in 32.
#[test]
fn sixteen_bits_in_memory_change_nothing_but_the_order_of_sums() {
    let drawing = drawings().remove(0);
    for model in ["flamingo-tiny-neox", "flamingo-tiny-mpt", "flamingo-tiny-opt"] {
        let scores = |precision: &str| -> Vec<f64> {
            let args = ["score", "--json", "--device", "flex", "--model", model, "--precision", precision];
            let question =
                ["--image", &drawing, "--prompt", "A picture of", "--candidate", " a cat", "--candidate", " an egg"];
            let answer: serde_json::Value =
                serde_json::from_str(&said(&[&args[..], &question].concat())).expect("JSON");
            let scores = answer["candidates"].as_array().expect("candidates");
            scores.iter().map(|score| score["log_likelihood"].as_f64().expect("a number")).collect()
        };
        let (whole, half) = (scores("f32"), scores("f16"));
        assert_eq!(whole.len(), 2);
        for (whole, half) in whole.iter().zip(&half) {
            assert!((whole - half).abs() < 1e-4, "{model}: {whole} and {half}");
        }
    }
}

/// Matrices in 8 bits give the words that whole numbers give.
#[test]
fn eight_bits_say_the_same_words() {
    for drawing in drawings() {
        let said = |precision: &str| said(&["caption", "--device", "flex", "--precision", precision, &drawing]);
        assert_eq!(said("q8"), said("f32"), "{drawing}");
    }
}

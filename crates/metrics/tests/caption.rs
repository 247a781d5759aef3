//! Captions against recordings of pycocoevalcap.

use std::path::Path;

use flamingo_metrics::caption::{Cider, cider, cider_tokenized, postprocess, ptb};
use serde_json::Value;

fn read(path: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).expect("JSON")
}

fn recording(name: &str) -> Value {
    read(&format!("../../tests/fixtures/golden/eval/{name}"))
}

fn strings(list: &Value) -> Vec<String> {
    list.as_array().expect("a list").iter().map(|text| text.as_str().expect("a string").to_owned()).collect()
}

/// Generated captions and their references in the order of their numbers.
fn images(recording: &Value, hypotheses: &str, references: &str) -> Vec<(String, Vec<String>)> {
    let image = |number: usize| {
        let key = number.to_string();
        let caption = recording[hypotheses][&key].as_str().expect("a caption").to_owned();
        (caption, strings(&recording[references][&key]))
    };
    (0..recording["n_images"].as_u64().expect("a number") as usize).map(image).collect()
}

fn assert_close(found: f64, expected: &Value, what: &str) {
    let expected = expected.as_f64().expect("a number");
    assert!((found - expected).abs() <= 1e-9, "{what}: {found} instead of {expected}");
}

fn assert_scores(found: &Cider, mean: &Value, per_image: &Value) {
    let per_image = per_image.as_array().expect("a list");
    assert_eq!(found.per_image.len(), per_image.len());
    for (number, (&found, expected)) in found.per_image.iter().zip(per_image).enumerate() {
        assert_close(found, expected, &format!("image {number}"));
    }
    assert_close(found.mean, mean, "mean");
}

fn assert_tokens(captions: &[String], expected: &[String]) {
    let found = ptb::tokenize(captions);
    assert_eq!(found.len(), expected.len());
    for ((caption, found), expected) in captions.iter().zip(&found).zip(expected) {
        assert_eq!(found, expected, "of {caption:?}");
    }
}

#[test]
fn tokens_are_those_of_the_recordings() {
    let recording = recording("cider.json");
    for example in recording["ptb_examples"].as_array().expect("a list") {
        let input = example["input"].as_str().expect("a string");
        assert_eq!(ptb::tokenize_one(input), example["output"].as_str().expect("a string"), "of {input:?}");
    }
    let written = images(&recording, "hypotheses", "references");
    let tokenized = images(&recording, "tokenized_hypotheses", "tokenized_references");
    let (captions, references): (Vec<_>, Vec<_>) = written.into_iter().unzip();
    let (expected, expected_references): (Vec<_>, Vec<_>) = tokenized.into_iter().unzip();
    assert_tokens(&captions, &expected);
    assert_tokens(&references.concat(), &expected_references.concat());
}

#[test]
fn tokens_are_those_of_corenlp() {
    let recording = read("tests/fixtures/ptb.json");
    assert_tokens(&strings(&recording["captions"]), &strings(&recording["tokenized"]));
}

#[test]
fn scores_are_those_of_the_recording() {
    let recording = recording("cider.json");
    let written = images(&recording, "hypotheses", "references");
    assert_scores(&cider(&written), &recording["cider"], &recording["per_image"]);
    let subset = &recording["subset_first_10"];
    assert_scores(&cider(&written[..10]), &subset["cider"], &subset["per_image"]);
    let tokenized = images(&recording, "tokenized_hypotheses", "tokenized_references");
    assert_eq!(cider_tokenized(&tokenized), cider(&written));
}

#[test]
fn generated_text_is_cut_as_recorded() {
    for example in recording("vqa.json")["postprocess_captioning_generation"].as_array().expect("a list") {
        let input = example["input"].as_str().expect("a string");
        assert_eq!(postprocess(input), example["output"].as_str().expect("a string"), "of {input:?}");
    }
    assert_eq!(postprocess(""), "");
    assert_eq!(postprocess("output \"Output\" Output"), "output ");
}

#[test]
fn scores_are_numbers_where_there_is_little_to_score() {
    let none: [(&str, Vec<&str>); 0] = [];
    assert_eq!(cider(&none), Cider { mean: 0.0, per_image: vec![] });
    assert_eq!(cider(&[("a dog", Vec::<&str>::new())]).per_image, [0.0]);
    // Of a single image every n-gram is in all references, and worth nothing.
    assert_eq!(cider(&[("a dog", vec!["a dog"])]).per_image, [0.0]);
    let empty = cider(&[("", vec!["", "..."]), ("...", vec!["a dog runs"]), ("a dog", vec![""])]);
    assert_eq!(empty.per_image, [0.0; 3]);
}

#[test]
fn the_reference_itself_scores_ten() {
    let captions = ["one red dog sleeps here", "two cats look at birds", "some boats lie on water"];
    let images: Vec<_> = captions.iter().map(|&caption| (caption, vec![caption])).collect();
    for score in cider(&images).per_image {
        assert!((score - 10.0).abs() < 1e-9, "{score}");
    }
    // Nothing is gained by saying it twice.
    let twice = cider(&[(captions[0].repeat(2).as_str(), vec![captions[0]]), (captions[1], vec![captions[1]])]);
    assert!(twice.per_image[0] < 10.0);
}

#[test]
fn a_no_break_space_parts_words_of_the_score_only() {
    assert_eq!(ptb::tokenize_one("5 1/2 dogs"), "5\u{a0}1/2 dogs");
    let apart = cider_tokenized(&[("5 1/2 dogs", vec!["5 1/2 dogs"]), ("x y z", vec!["x y z"])]);
    assert_eq!(cider(&[("5 1/2 dogs", vec!["5 1/2 dogs"]), ("x y z", vec!["x y z"])]), apart);
}

#[test]
fn a_caption_sees_the_next_one() {
    assert_eq!(ptb::tokenize(&["vitamin C.", "The dog"]), ["vitamin c", "the dog"]);
    assert_eq!(ptb::tokenize(&["vitamin C.", "dogs"]), ["vitamin c.", "dogs"]);
    assert_eq!(ptb::tokenize(&["hello :)", ""]), ["hello :-rrb-", ""]);
    assert_eq!(ptb::tokenize(&["hello :)"]), ["hello -rrb-"]);
    assert_eq!(ptb::tokenize_one("hello :)"), "hello :-rrb-");
    // But no token goes on in it, and breaks within captions are spaces.
    assert_eq!(ptb::tokenize(&["<a b='c", "d'> e"]).len(), 2);
    assert_eq!(ptb::tokenize_one("two\ndogs\r\nrun\u{2028}fast"), "two dogs run fast");
    assert_eq!(ptb::tokenize::<&str>(&[]), [""; 0]);
}

/// A generator of numbers, good enough to pick characters by.
fn next(state: &mut u64) -> u32 {
    *state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
    (*state >> 33) as u32
}

#[test]
fn plain_words_are_left_alone() {
    let mut state = 1;
    for _ in 0..500 {
        let words: Vec<String> = (0..next(&mut state) % 12)
            .map(|_| (0..=next(&mut state) % 9).map(|_| char::from(b'a' + (next(&mut state) % 26) as u8)).collect())
            .filter(|word: &String| !["cannot", "gonna", "gotta", "lemme", "gimme", "wanna"].contains(&word.as_str()))
            .collect();
        let caption = words.join(" ");
        assert_eq!(ptb::tokenize_one(&format!("  {} . ", caption.to_uppercase())), caption);
        assert_eq!(ptb::tokenize_one(&caption), caption);
    }
}

#[test]
fn any_text_has_tokens() {
    let mut state = 7;
    let planes = [0x80, 0x800, 0x3000, 0x11_0000];
    for _ in 0..20_000 {
        let caption: String = (0..next(&mut state) % 24)
            .filter_map(|_| char::from_u32(next(&mut state) % planes[next(&mut state) as usize % planes.len()]))
            .collect();
        let tokens = ptb::tokenize(&[caption.as_str(), ""]);
        assert_eq!(tokens.len(), 2);
        assert!(!tokens[0].contains(['\n', '\r']), "{caption:?} to {tokens:?}");
        let score = cider(&[(caption.as_str(), vec![caption.as_str()]), ("a", vec!["b"])]).mean;
        assert!(score.is_finite());
    }
}

/// Minutes would pass if any rule looked at the rest of the text again for each token.
#[test]
fn long_captions_take_time_in_proportion() {
    let pieces = [
        "a",
        ".",
        "'",
        "<",
        "😀",
        "1a.",
        "+.",
        "a+",
        "@.",
        "<!a",
        "<a ",
        "<a b='",
        "<a b=' c=\"",
        "1-.",
        "www.ab/c.",
        "http://.",
        "*.com`",
        "a'",
        "(1",
        "é.txt",
        "a.b@",
    ];
    let start = std::time::Instant::now();
    for piece in pieces {
        let caption = piece.repeat(10_000);
        assert!(!ptb::tokenize(&[caption.as_str()]).is_empty());
    }
    assert!(start.elapsed().as_secs() < 60, "{:?}", start.elapsed());
}

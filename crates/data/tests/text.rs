//! Tokenizers against recorded ids and texts.

use std::fs;
use std::path::{Path, PathBuf};

use flamingo_data::{ENDOFCHUNK, IMAGE, PaddingSide, Tokenizer, pad_batch};
use serde_json::Value;

/// The recordings, or `None` (said on stderr) where they are not at hand.
fn golden() -> Option<PathBuf> {
    let folder = std::env::var_os("FLAMINGO_GOLDEN")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/golden"), PathBuf::from);
    if !folder.is_dir() {
        eprintln!("skipped: no golden recordings");
        return None;
    }
    Some(folder)
}

fn ids(json: &Value) -> Vec<u32> {
    json.as_array().expect("ids").iter().map(|id| id.as_u64().expect("an id") as u32).collect()
}

#[test]
fn recorded_texts_have_the_recorded_ids() {
    let Some(golden) = golden() else { return };
    let mut cases = 0;
    for entry in fs::read_dir(golden).expect("a folder") {
        let folder = entry.expect("a folder").path();
        let Ok(text) = fs::read_to_string(folder.join("case.json")) else { continue };
        let case: Value = serde_json::from_str(&text).expect("JSON");
        let mut tokenizer = Tokenizer::open(&folder.join("lm")).expect("a tokenizer");
        let special = tokenizer.add_flamingo_tokens().expect("special tokens");
        assert_eq!(special, tokenizer.add_flamingo_tokens().expect("the same again"));
        let recorded = &case["flamingo"];
        for (ours, key) in [
            (Some(special.endofchunk), "eoc_token_id"),
            (Some(special.image), "media_token_id"),
            (Some(special.pad), "pad_token_id"),
            (special.bos, "bos_token_id"),
            (special.eos, "eos_token_id"),
        ] {
            assert_eq!(ours.map(u64::from), recorded[key].as_u64(), "{key} of {}", folder.display());
        }
        assert_eq!(tokenizer.len() as u64, recorded["vocab_size"].as_u64().expect("a size"));
        for sample in case["tokenization"].as_array().expect("samples") {
            let text = sample["text"].as_str().expect("a text");
            assert_eq!(tokenizer.encode(text).expect("ids"), ids(&sample["ids"]), "{text:?} of {}", folder.display());
        }
        for sample in case["decode_skip_special"].as_array().expect("samples") {
            let text = sample["text"].as_str().expect("a text");
            assert_eq!(tokenizer.decode(&ids(&sample["ids"]), true), text, "{}", folder.display());
        }
        for generation in case["generation"].as_array().expect("generations") {
            let texts = generation["decoded"].as_array().expect("texts");
            for (tokens, text) in generation["new_tokens"].as_array().expect("ids").iter().zip(texts) {
                let text = text.as_str().expect("a text");
                let tokens = ids(tokens);
                assert_eq!(tokenizer.decode(&tokens, true), text, "{}", folder.display());
                let mut stream = tokenizer.stream();
                let mut streamed: String = tokens.iter().filter_map(|&id| stream.push(id)).collect();
                streamed.extend(stream.finish());
                assert_eq!(streamed, text);
            }
        }
        cases += 1;
    }
    assert!(cases >= 10);
}

#[test]
fn published_vocabularies_give_their_published_ids() {
    let Some(golden) = golden() else { return };
    let data = golden.join("../data/tokenizers");
    let work = tempfile::tempdir().expect("a temporary folder");
    let copy = |from: &str, to: &str| {
        fs::copy(data.join(from), work.path().join(to)).expect("a vocabulary");
    };
    let open = || Tokenizer::open(work.path()).expect("a tokenizer");

    copy("gpt2.merges.txt", "merges.txt");
    copy("gpt2.vocab.json", "vocab.json");
    assert_eq!(open().encode("Hello world").expect("ids"), [15496, 995]);

    copy("opt.vocab.json", "vocab.json");
    let config = r#"{"add_bos_token": true, "bos_token": {"content": "</s>"}, "pad_token": "<pad>"}"#;
    fs::write(work.path().join("tokenizer_config.json"), config).expect("a file");
    let mut opt = open();
    assert_eq!(opt.encode("Hello world").expect("ids"), [2, 31414, 232]);
    assert_eq!(opt.encode_plain("Hello world").expect("ids"), [31414, 232]);
    let before = opt.len() as u32;
    let special = opt.add_flamingo_tokens().expect("special tokens");
    assert_eq!((special.endofchunk, special.image, special.pad), (before, before + 1, 1));

    fs::remove_file(work.path().join("tokenizer_config.json")).expect("a file");
    copy("gpt-neox-20b.tokenizer.json", "tokenizer.json");
    let mut neox = open();
    assert_eq!(neox.encode("Hello world").expect("ids"), [12092, 1533]);
    let special = neox.add_flamingo_tokens().expect("special tokens");
    assert_eq!((special.endofchunk, special.image, special.pad), (50277, 50278, 50279));
}

/// Bytes a to z, without merges.
fn letters() -> (tempfile::TempDir, Tokenizer) {
    let work = tempfile::tempdir().expect("a temporary folder");
    let vocab: serde_json::Map<String, Value> =
        ('a'..='z').chain(['Ġ', 'Ã', '©']).enumerate().map(|(i, c)| (c.to_string(), i.into())).collect();
    fs::write(work.path().join("vocab.json"), Value::Object(vocab).to_string()).expect("a file");
    fs::write(work.path().join("merges.txt"), "#version: 0.2\n").expect("a file");
    let mut tokenizer = Tokenizer::open(work.path()).expect("a tokenizer");
    tokenizer.add_flamingo_tokens().expect("special tokens");
    (work, tokenizer)
}

#[test]
fn special_tokens_are_never_split_and_streams_give_whole_characters() {
    let (_work, tokenizer) = letters();
    let text = format!("{IMAGE}a cat{ENDOFCHUNK}");
    let ids = tokenizer.encode(&text).expect("ids");
    assert_eq!(ids, [30, 0, 26, 2, 0, 19, 29]);
    assert_eq!(tokenizer.decode(&ids, false), text);
    assert_eq!(tokenizer.decode(&ids, true), "a cat");
    // é is two bytes, two tokens.
    let mut stream = tokenizer.stream();
    assert_eq!(stream.push(27), None);
    assert_eq!(stream.push(28).as_deref(), Some("é"));
    assert_eq!(stream.push(29), None);
    assert_eq!(stream.push(27), None);
    assert_eq!(stream.finish().as_deref(), Some("\u{FFFD}"));
}

#[test]
fn unusable_folders_are_errors() {
    let work = tempfile::tempdir().expect("a temporary folder");
    let error = Tokenizer::open(work.path()).err().expect("an error").to_string();
    assert!(error.contains("tokenizer.json") && error.contains("merges.txt"), "{error}");
    for content in ["", "{", "[]", r#"{"model": {"type": "BPE"}}"#] {
        fs::write(work.path().join("tokenizer.json"), content).expect("a file");
        assert!(Tokenizer::open(work.path()).is_err(), "{content}");
    }
}

#[test]
fn rows_are_filled_on_the_asked_side() {
    let rows = [vec![1, 2, 3], vec![4]];
    let left = pad_batch(&rows, 9, PaddingSide::Left);
    assert_eq!((left.width, left.ids), (3, vec![1, 2, 3, 9, 9, 4]));
    assert_eq!(left.mask, [true, true, true, false, false, true]);
    let right = pad_batch(&rows, 9, PaddingSide::Right);
    assert_eq!((right.ids, right.mask[4]), (vec![1, 2, 3, 4, 9, 9], false));
}

//! Tokenizers against recorded ids and texts.

use std::fs;
use std::path::{Path, PathBuf};

use flamingo_data::{ENDOFCHUNK, IMAGE, PAD, PaddingSide, Tokenizer, pad_batch};
use serde_json::Value;

use recordings::recorded;

#[path = "../../../tests/recordings.rs"]
mod recordings;

/// Recordings that the repository carries.
fn carried() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/golden")
}

fn ids(json: &Value) -> Vec<u32> {
    json.as_array().expect("ids").iter().map(|id| id.as_u64().expect("an id") as u32).collect()
}

/// All that a stream gives for these ids.
fn streamed(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    let mut stream = tokenizer.stream();
    let mut text: String = ids.iter().filter_map(|&id| stream.push(id)).collect();
    text.extend(stream.finish());
    assert_eq!(stream.finish(), None);
    text
}

/// Numbers without pattern, the same in every run.
struct Noise(u64);

impl Noise {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % end
    }
}

/// Streams of random ids, the vocabulary's and others, give what decoding gives.
fn assert_streams_decode(tokenizer: &Tokenizer, sequences: usize) {
    let mut noise = Noise(7);
    for _ in 0..sequences {
        let ids: Vec<u32> = (0..noise.below(60)).map(|_| noise.below(tokenizer.len() + 3) as u32).collect();
        assert_eq!(streamed(tokenizer, &ids), tokenizer.decode(&ids, true), "{ids:?}");
    }
    for id in [u32::MAX, tokenizer.len() as u32] {
        assert_eq!(tokenizer.decode(&[id], false), "");
    }
}

/// The error of opening a folder.
fn refused(folder: &Path) -> String {
    Tokenizer::open(folder).err().expect("an error").to_string()
}

#[test]
fn recorded_texts_have_the_recorded_ids() {
    let all = recorded("");
    let least = if all.is_some() { 10 } else { 2 };
    let mut cases = 0;
    for entry in fs::read_dir(all.unwrap_or_else(carried)).expect("a folder") {
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
                assert_eq!(streamed(&tokenizer, &tokens), text);
            }
        }
        assert_streams_decode(&tokenizer, 300);
        // Without tokenizer.json, vocab.json and merges.txt give the same.
        if folder.join("lm/merges.txt").is_file() {
            let slow = tempfile::tempdir().expect("a temporary folder");
            for file in ["vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"] {
                fs::copy(folder.join("lm").join(file), slow.path().join(file)).expect("a file");
            }
            let mut slow = Tokenizer::open(slow.path()).expect("a tokenizer");
            assert_eq!(slow.add_flamingo_tokens().expect("special tokens"), special);
            for sample in case["tokenization"].as_array().expect("samples") {
                let text = sample["text"].as_str().expect("a text");
                assert_eq!(slow.encode(text).expect("ids"), ids(&sample["ids"]), "{text:?}");
            }
        }
        cases += 1;
    }
    assert!(cases >= least);
}

#[test]
fn recorded_training_texts_have_the_recorded_ids_and_padding() {
    let folder = carried().join("train_labels");
    let recorded = fs::read_to_string(folder.join("train_labels.json")).expect("a file");
    let recorded: Value = serde_json::from_str(&recorded).expect("JSON");
    let text = |value: &Value| value.as_str().expect("a text").to_string();

    let work = tempfile::tempdir().expect("a temporary folder");
    fs::copy(folder.join("tokenizer_with_specials.json"), work.path().join("tokenizer.json")).expect("a file");
    let mut tokenizer = Tokenizer::open(work.path()).expect("a tokenizer");
    let size = tokenizer.len();
    let special = tokenizer.add_flamingo_tokens().expect("special tokens");
    assert_eq!((special.endofchunk, special.image, special.pad, special.eos), (300, 301, 302, Some(0)));
    assert_eq!(tokenizer.len(), size);

    let labels = &recorded["labels"];
    let rows: Vec<Vec<u32>> = labels["texts"]
        .as_array()
        .expect("texts")
        .iter()
        .map(|sample| tokenizer.encode(&text(sample)).expect("ids"))
        .collect();
    let batch = pad_batch(&rows, special.pad, PaddingSide::Right);
    let joined = |key: &str| -> Vec<u32> { labels[key].as_array().expect("rows").iter().flat_map(ids).collect() };
    assert_eq!(batch.ids, joined("input_ids"));
    assert_eq!(batch.mask.iter().map(|&m| u32::from(m)).collect::<Vec<_>>(), joined("attention_mask"));

    let mut opt = Tokenizer::open(&carried().join("opt350/lm")).expect("a tokenizer");
    let opt_special = opt.add_flamingo_tokens().expect("special tokens");
    for (key, tokenizer, pad, eos) in [
        ("laion_text_neox", &tokenizer, special.pad, "<|endoftext|>"),
        ("laion_text_opt", &opt, opt_special.pad, "</s>"),
    ] {
        let expected = recorded[key]["max_tokens_32"]["input_ids"].as_array().expect("rows");
        for (caption, expected) in recorded[key]["captions"].as_array().expect("texts").iter().zip(expected) {
            let mut row = tokenizer.encode(&format!("{IMAGE}{}{ENDOFCHUNK}{eos}", text(caption).trim())).expect("ids");
            row.resize(32, pad);
            assert_eq!(row, ids(expected), "{caption} of {key}");
        }
    }
}

#[test]
fn published_vocabularies_give_their_published_ids() {
    let Some(data) = recorded("../data/tokenizers") else { return };
    let work = tempfile::tempdir().expect("a temporary folder");
    let copy = |from: &str, to: &str| {
        fs::copy(data.join(from), work.path().join(to)).expect("a vocabulary");
    };
    let open = || Tokenizer::open(work.path()).expect("a tokenizer");

    copy("gpt2.merges.txt", "merges.txt");
    copy("gpt2.vocab.json", "vocab.json");
    let gpt2 = open();
    assert_eq!(gpt2.encode("Hello world").expect("ids"), [15496, 995]);
    assert_eq!(gpt2.encode("a<|endoftext|>").expect("ids"), [64, 50256]);
    assert_streams_decode(&gpt2, 100);

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
    assert_eq!(special.eos, Some(0));
    assert_eq!(neox.len(), 50280);
    // No length makes the pre-tokenizer's expression give up.
    for text in [" ".repeat(300_000), " ".repeat(300_000) + "x", "\n \t".repeat(100_000), "é猫'".repeat(50_000)] {
        let ids = neox.encode(&text).expect("ids");
        assert_eq!(neox.decode(&ids, false).len(), text.len());
    }
    assert_streams_decode(&neox, 300);
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
fn streams_of_any_ids_give_what_decoding_gives() {
    let (_work, tokenizer) = letters();
    assert_streams_decode(&tokenizer, 2000);
    // Pieces hold no half characters: é, then a whole e after half an é.
    let mut stream = tokenizer.stream();
    let pieces: Vec<Option<String>> = [27, 28, 27, 4].into_iter().map(|id| stream.push(id)).collect();
    assert_eq!(pieces, [None, Some("é".to_string()), None, Some("\u{FFFD}e".to_string())]);
}

#[test]
fn saved_tokenizers_are_the_same_and_adding_twice_changes_nothing() {
    let (work, mut tokenizer) = letters();
    let special = tokenizer.add_flamingo_tokens().expect("special tokens");
    assert_eq!((special.endofchunk, special.image, special.pad), (29, 30, 31));
    assert_eq!((special.bos, special.eos, tokenizer.len(), tokenizer.is_empty()), (None, None, 32, false));
    let path = work.path().join("tokenizer.json");
    for _ in 0..2 {
        fs::write(&path, tokenizer.to_json().expect("a tokenizer")).expect("a file");
        let mut again = Tokenizer::open(work.path()).expect("a tokenizer");
        assert_eq!(again.add_flamingo_tokens().expect("special tokens"), special);
        assert_eq!(again.len(), 32);
        let text = format!("{IMAGE}a{PAD}cat{ENDOFCHUNK}");
        assert_eq!(again.encode(&text).expect("ids"), tokenizer.encode(&text).expect("ids"));
    }
    let map = tokenizer.special_tokens_map();
    fs::write(work.path().join("special_tokens_map.json"), &map).expect("a file");
    let map: serde_json::Value = serde_json::from_str(&map).expect("JSON");
    assert_eq!(map["pad_token"], PAD);
    assert_eq!(map["additional_special_tokens"], serde_json::json!([ENDOFCHUNK, IMAGE]));
    let mut again = Tokenizer::open(work.path()).expect("a tokenizer");
    assert_eq!(again.add_flamingo_tokens().expect("special tokens"), special);
}

/// Files that parse, and that the library panics on or that make any text enormous.
#[test]
fn hostile_files_are_errors() {
    let work = tempfile::tempdir().expect("a temporary folder");
    let path = work.path().join("tokenizer.json");
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/golden-tiny/tokenizer.json");
    let sound: serde_json::Value = serde_json::from_slice(&fs::read(tiny).expect("a file")).expect("JSON");
    let encode = |file: &serde_json::Value| {
        fs::write(&path, file.to_string()).expect("a file");
        Tokenizer::open(work.path()).and_then(|tokenizer| tokenizer.encode("a cat"))
    };
    encode(&sound).expect("ids");
    let mut prefix = sound.clone();
    prefix["model"]["continuing_subword_prefix"] = "#".repeat(1000).into();
    assert!(encode(&prefix).is_err());
    let mut template = sound.clone();
    template["post_processor"] = serde_json::json!({"type": "TemplateProcessing", "special_tokens": {}, "pair": [],
        "single": [{"SpecialToken": {"id": "zz", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]});
    assert!(encode(&template).is_err());
    let mut growing = sound;
    let longer = serde_json::json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aaaaaaaaaaaaaaaa"});
    growing["normalizer"] = serde_json::json!({"type": "Sequence", "normalizers": vec![longer; 10]});
    assert!(encode(&growing).expect_err("an error").to_string().contains("enormous"));
}

#[test]
fn config_files_name_the_special_tokens() {
    let (work, _) = letters();
    let write = |file: &str, text: &str| fs::write(work.path().join(file), text).expect("a file");
    write(
        "tokenizer_config.json",
        r#"{"pad_token": "b", "bos_token": "a", "add_bos_token": true, "unk_token": "new"}"#,
    );
    write("special_tokens_map.json", r#"{"pad_token": {"content": "c"}, "additional_special_tokens": ["more", 3]}"#);
    write("added_tokens.json", r#"{"<two>": 30, "<one>": 29}"#);
    let mut tokenizer = Tokenizer::open(work.path()).expect("a tokenizer");
    let special = tokenizer.add_flamingo_tokens().expect("special tokens");
    assert_eq!((special.pad, special.bos, special.endofchunk, special.image), (2, Some(0), 33, 34));
    assert_eq!(tokenizer.encode("<two>z").expect("ids"), [0, 30, 25]);
    assert_eq!(tokenizer.encode_plain("newmore").expect("ids"), [31, 32]);

    write("added_tokens.json", r#"{"<one>": 50}"#);
    assert!(refused(work.path()).contains("<one>"));
    write("tokenizer_config.json", "{");
    assert!(refused(work.path()).contains("tokenizer_config.json"));
}

#[test]
fn unusable_folders_are_errors() {
    let work = tempfile::tempdir().expect("a temporary folder");
    let error = refused(work.path());
    assert!(error.contains("tokenizer.json") && error.contains("merges.txt"), "{error}");
    for (vocab, merges) in
        [("{", ""), ("[]", ""), (r#"{"a": 0}"#, "a b\n"), (r#"{"a": 4294967295}"#, ""), ("{}", "a\n")]
    {
        fs::write(work.path().join("vocab.json"), vocab).expect("a file");
        fs::write(work.path().join("merges.txt"), merges).expect("a file");
        assert!(Tokenizer::open(work.path()).is_err(), "{vocab} {merges}");
    }
    let whole = work.path().join("tokenizer.json");
    let with = |ids: &str, added: &str| {
        format!(
            r#"{{"version": "1.0", "added_tokens": [{added}], "model": {{"type": "BPE", "vocab": {ids}, "merges": []}}}}"#
        )
    };
    let token = |id: u32| {
        format!(
            r#"{{"id": {id}, "content": "x", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}}"#
        )
    };
    fs::write(&whole, with(r#"{"a": 0}"#, &token(1))).expect("a file");
    assert!(Tokenizer::open(work.path()).is_ok());
    for content in [
        String::new(),
        "{".to_string(),
        "[]".to_string(),
        r#"{"model": {"type": "BPE"}}"#.to_string(),
        with(r#"{"a": 4294967295}"#, &token(1)),
        with(r#"{"x": 4294967295}"#, &token(u32::MAX)),
        with(r#"{"a": 0}"#, &token(7)),
    ] {
        fs::write(&whole, &content).expect("a file");
        assert!(Tokenizer::open(work.path()).is_err(), "{content}");
    }
}

#[test]
fn damaged_files_never_panic() {
    let (work, tokenizer) = letters();
    let path = work.path().join("tokenizer.json");
    fs::write(&path, tokenizer.to_json().expect("a tokenizer")).expect("a file");
    let sound = fs::read(&path).expect("a file");
    let mut noise = Noise(11);
    for _ in 0..2000 {
        let mut bytes = sound.clone();
        for _ in 0..=noise.below(3) {
            let at = noise.below(bytes.len());
            match noise.below(4) {
                0 => bytes[at] = b"0123456789{}[]\",:ntf\\\xff"[noise.below(22)],
                1 => drop(bytes.remove(at)),
                2 => bytes.insert(at, b'9'),
                _ => bytes.truncate(at.max(1)),
            }
        }
        fs::write(&path, &bytes).expect("a file");
        if let Ok(mut damaged) = Tokenizer::open(work.path()) {
            let _ = damaged.add_flamingo_tokens();
            let ids = damaged.encode("a <image>cat é<|endofchunk|>").unwrap_or_default();
            damaged.decode(&ids, false);
        }
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
    for side in [PaddingSide::Left, PaddingSide::Right] {
        assert_eq!(pad_batch(&[], 9, side).width, 0);
        assert!(pad_batch(&[Vec::new()], 9, side).ids.is_empty());
    }
}

#[test]
fn spaces_before_punctuation_go_as_transformers_cleans_them() {
    let Some(data) = recorded("../data/tokenizers") else { return };
    let work = tempfile::tempdir().expect("a temporary folder");
    fs::copy(data.join("gpt-neox-20b.tokenizer.json"), work.path().join("tokenizer.json")).expect("a tokenizer");
    let decode = |text: &str| {
        let tokenizer = Tokenizer::open(work.path()).expect("a tokenizer");
        let ids = tokenizer.encode(text).expect("ids");
        let mut stream = tokenizer.stream();
        let mut streamed: String = ids.iter().filter_map(|&id| stream.push(id)).collect();
        streamed.extend(stream.finish());
        let whole = tokenizer.decode(&ids, true);
        assert_eq!(streamed, whole);
        whole
    };
    // transformers 4.33.3, GPTNeoXTokenizerFast.decode
    assert_eq!(decode("Hi , he did n't say ' yes ' . It 's so !"), "Hi, he didn't say'yes '. It's so!");
    let config = r#"{"clean_up_tokenization_spaces": false}"#;
    fs::write(work.path().join("tokenizer_config.json"), config).expect("a file");
    assert_eq!(decode("Hi , he did n't . "), "Hi , he did n't . ");
}

/// Bytes of tokens together are those of the text, also where a character is split among several.
#[test]
fn tokens_have_bytes() {
    let tokenizer = Tokenizer::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/flamingo-tiny-neox"))
        .expect("a tokenizer");
    let text = "A café, ☃ and 🦩.";
    let ids = tokenizer.encode_plain(text).expect("ids");
    let split = ids.iter().filter(|&&id| tokenizer.decode(&[id], false).contains('\u{FFFD}')).count();
    assert!(split > 1, "no character of this text is split");
    let bytes: Vec<u8> = ids.iter().flat_map(|&id| tokenizer.token_bytes(id)).collect();
    assert_eq!(String::from_utf8(bytes).as_deref(), Ok(text));
}

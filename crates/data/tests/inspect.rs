//! Numbers about shards: each against a count of another kind.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flamingo_data::{DocumentRules, InspectOptions, Members, PrepareError, Samples, Summary, Tokenizer, inspect};
use serde_json::{Value, json};

use recordings::recorded;

#[path = "../../../tests/recordings.rs"]
mod recordings;

fn tar(folder: &Path, name: &str, members: &[(&str, &[u8])]) -> String {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        builder.append_data(&mut header, name, *content).expect("a member");
    }
    put(folder, name, &builder.into_inner().expect("an archive"))
}

fn put(folder: &Path, name: &str, content: &[u8]) -> String {
    let path = folder.join(name);
    std::fs::write(&path, content).expect("a file");
    path.display().to_string()
}

fn look(shards: &[String], options: &InspectOptions) -> Result<Summary, PrepareError> {
    inspect(shards, options, &mut |_| {})
}

fn photo(name: &str) -> Vec<u8> {
    let photos = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/photos");
    std::fs::read(photos.join(name)).expect("a photograph")
}

fn picture(width: u32, height: u32) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    image::GrayImage::new(width, height).write_to(&mut bytes, image::ImageFormat::Png).expect("a picture");
    bytes.into_inner()
}

fn tokenizer() -> Tokenizer {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/golden-tiny");
    Tokenizer::open(&folder.join("tokenizer.json")).expect("a tokenizer")
}

#[test]
fn everything_is_counted_once() {
    let work = tempfile::tempdir().expect("a folder");
    let (a, b) = (picture(30, 10), picture(7, 70));
    let document = json!({
        "text_list": ["one", "zwölf"],
        "image_info": [{"image_base64": STANDARD.encode(&b)}, {"image_name": "gone"}, {"image_base64": "?"}],
        "similarity_matrix": [[0.3, 0.1], [0.2, 0.4], [0.0, 0.0]],
    });
    let generated = json!({
        "is_gpt": true,
        "example": "_!_IMAGE1_!_ x",
        "image_map": {"_!_IMAGE1_!_": {"base64_image": STANDARD.encode(photo("coffee.jpg"))}},
    });
    let first = tar(
        work.path(),
        "a.tar",
        &[
            ("0.png", &a),
            ("0.txt", b" a cat \n"),
            ("0.json", b"{\"width\": 3}"),
            ("1.jpg", b"garbage"),
            ("1.txt", b"\xff"),
            ("2.txt", b"alone"),
            ("2.txt", b"twice"),
            ("readme", b"no extension"),
        ],
    );
    let second = tar(
        work.path(),
        "b.tar",
        &[
            ("0.json", document.to_string().as_bytes()),
            ("1.json", generated.to_string().as_bytes()),
            ("2.json", b"no JSON"),
        ],
    );
    let mut cut = std::fs::read(&second).expect("a shard");
    cut.truncate(600);
    let cut = put(work.path(), "c.tar", &cut);
    let options = InspectOptions { tokenizer: Some(Arc::new(tokenizer())), ..InspectOptions::default() };
    let found = look(&[first.clone(), second, cut], &options).expect("numbers");

    assert_eq!(found.samples, Samples { pairs: 2, documents: 1, generated: 1, unknown: 2 });
    assert_eq!(found.shards, 3);
    assert_eq!(found.members["txt"], Members { count: 3, bytes: 8 + 1 + 5 });
    assert_eq!(found.members["png"], Members { count: 1, bytes: a.len() as u64 });
    assert_eq!(found.members["json"].count, 4);
    let kinds = |counts: &std::collections::BTreeMap<String, u64>| -> Vec<String> {
        counts.iter().map(|(kind, count)| format!("{count} {kind}")).collect()
    };
    assert_eq!(kinds(&found.damage), ["1 cut shard", "1 duplicate member", "1 member"]);
    assert_eq!(kinds(&found.formats), ["1 jpg", "2 png"]);
    assert_eq!(
        kinds(&found.unusable),
        ["1 no base64", "1 not a picture", "1 text that is no UTF-8", "1 unreadable document"]
    );
    let (width, height) = (found.width.expect("widths"), found.height.expect("heights"));
    assert_eq!((width.min, width.p50, height.min, height.p50), (7, 30, 10, 70));
    assert_eq!(found.picture_bytes.expect("sizes").max, photo("coffee.jpg").len() as u64);
    let captions = found.captions.characters.expect("captions");
    assert_eq!((captions.count, captions.min, captions.max), (1, 5, 5));
    assert_eq!(
        found.captions.tokens.expect("tokens").max,
        tokenizer().encode_plain("a cat").expect("ids").len() as u64
    );
    let texts = found.texts.characters.expect("texts");
    assert_eq!((texts.count, texts.min, texts.max), (2, 9, 14));
    let per_document = found.pictures_per_document.expect("pictures");
    assert_eq!((per_document.min, per_document.max, per_document.count), (1, 3, 2));
    // One picture that cannot be decoded costs training the document.
    assert!(found.similarity.counts.is_empty());
    let alone = look(&[first], &InspectOptions::default()).expect("numbers");
    assert_eq!((alone.samples.pairs, alone.captions.tokens, alone.texts.characters), (2, None, None));
}

#[test]
fn thresholds_keep_what_training_would_keep() {
    let work = tempfile::tempdir().expect("a folder");
    let mut state = 9u64;
    let mut number = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let encoded = STANDARD.encode(picture(2, 2));
    let documents: Vec<Value> = (0..60)
        .map(|_| {
            let (sentences, pictures) = (1 + number(4), 1 + number(5));
            let info = |there: bool| if there { json!({"image_base64": encoded}) } else { json!({}) };
            let row = |_| (0..sentences).map(|_| (15 + number(30)) as f64 / 100.0).collect::<Vec<f64>>();
            json!({
                "similarity_matrix": (0..pictures).map(row).collect::<Vec<_>>(),
                "image_info": (0..pictures).map(|i| info(i % 3 != 2)).collect::<Vec<_>>(),
                "text_list": vec!["word"; sentences as usize],
            })
        })
        .collect();
    let members: Vec<(String, Vec<u8>)> =
        documents.iter().enumerate().map(|(i, d)| (format!("{i}.json"), d.to_string().into_bytes())).collect();
    let members: Vec<(&str, &[u8])> = members.iter().map(|(name, content)| (&name[..], &content[..])).collect();
    let shard = tar(work.path(), "a.tar", &members);
    let mut tokenizer = tokenizer();
    let tokens = tokenizer.add_flamingo_tokens().expect("tokens");
    for (min_num_images, max_num_images) in [(1, 6), (2, 2), (0, 1)] {
        let rules = DocumentRules { min_bytes: 0, min_num_images, max_num_images, ..DocumentRules::default() };
        let options = InspectOptions { rules: rules.clone(), tokenizer: None };
        let found = look(std::slice::from_ref(&shard), &options).expect("numbers");
        assert_eq!(found.thresholds.len(), 11);
        for kept in &found.thresholds {
            let rules = DocumentRules { textsim_threshold: kept.threshold, ..rules.clone() };
            let trained = members.iter().filter_map(|(_, json)| rules.apply(json, &tokenizer, &tokens, 0.9).ok());
            let pictures: Vec<u64> = trained.map(|document| document.pictures.len() as u64).collect();
            let expected = (pictures.len() as u64, pictures.iter().sum());
            assert_eq!((kept.documents, kept.pictures), expected, "{kept:?} {rules:?}");
        }
        assert!(found.thresholds[0].documents > found.thresholds[10].documents);
    }
}

/// Where no two pictures suit the same sentence best, each goes to its best.
#[test]
fn published_documents_are_matched_as_they_must_be() {
    let Some(file) = recorded("../data/mmc4_sample.jsonl") else { return };
    let text = std::fs::read_to_string(&file).expect("documents");
    let all = look(&[file.display().to_string()], &InspectOptions::default()).expect("numbers");
    assert_eq!(all.samples, Samples { documents: text.lines().count() as u64, ..Samples::default() });
    assert!(all.unusable.is_empty());

    let (mut lines, mut best) = (String::new(), Vec::new());
    for line in text.lines() {
        let document: Value = serde_json::from_str(line).expect("JSON");
        let rows = document["similarity_matrix"].as_array().expect("rows").iter();
        let rows = rows.map(|row| row.as_array().expect("a row").iter().filter_map(Value::as_f64).enumerate());
        let highest: Vec<(usize, f64)> = rows.filter_map(|row| row.max_by(|a, b| a.1.total_cmp(&b.1))).collect();
        if highest.iter().map(|(sentence, _)| sentence).collect::<HashSet<_>>().len() == highest.len() {
            lines += &format!("{line}\n");
            best.push(highest.into_iter().map(|(_, similarity)| similarity).collect::<Vec<f64>>());
        }
    }
    assert!(best.len() > 30, "{}", best.len());
    let work = tempfile::tempdir().expect("a folder");
    let found = look(&[put(work.path(), "a.jsonl", lines.as_bytes())], &InspectOptions::default()).expect("numbers");
    assert_eq!(found.similarity.counts.iter().sum::<u64>(), best.iter().map(|m| m.len() as u64).sum::<u64>());
    for kept in found.thresholds {
        let enough = |document: &Vec<f64>| document.iter().filter(|&&s| s >= kept.threshold).count().min(6) as u64;
        let pictures: Vec<u64> = best.iter().map(enough).filter(|&count| count > 0).collect();
        assert_eq!((kept.documents, kept.pictures), (pictures.len() as u64, pictures.iter().sum()), "{kept:?}");
    }
}

#[test]
fn what_holds_no_samples_is_an_error_and_damage_is_not() {
    let work = tempfile::tempdir().expect("a folder");
    let options = InspectOptions::default();
    let none = |name: &str, content: &[u8]| {
        let shard = put(work.path(), name, content);
        assert!(matches!(look(&[shard], &options), Err(PrepareError::Nothing(_))), "{name}");
    };
    none("a.tar", b"");
    none("b.tar", &[200; 5000]);
    none("c.jsonl", b"\n\n");
    assert!(matches!(look(&["missing.tar".into()], &options), Err(PrepareError::Data(_))));
    assert!(matches!(look(&["/dev/zero".into()], &options), Err(PrepareError::Data(_))));
    assert!(look(&[], &options).is_err());
    let good = tar(work.path(), "good.tar", &[("0.png", &picture(3, 3)), ("0.txt", b"x")]);
    let bytes = std::fs::read(&good).expect("a shard");
    let mut state = 3u32;
    for _ in 0..200 {
        let mut damaged = bytes.clone();
        for _ in 0..6 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let at = state as usize % damaged.len();
            damaged[at] ^= (state >> 24) as u8;
        }
        let damaged = put(work.path(), "damaged.tar", &damaged);
        let found = look(&[good.clone(), damaged], &options).expect("numbers of the good one");
        assert!(found.samples.pairs >= 1);
    }
}

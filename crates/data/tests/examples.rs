//! Samples as training takes them, and shards with every kind of damage.

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use common::shard;
use flamingo_data::{
    Decode, DocumentRules, Documents, ImageTransform, Loader, LoaderOptions, Pairs, Picture, Rejected, Sample,
    SpecialTokens, Tokenizer, pair_ids,
};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

/// One token a byte, and upstream's.
fn tokenizer(folder: &Path) -> (Arc<Tokenizer>, SpecialTokens) {
    let letters = (33..127).chain(161..173).chain(174..324).filter_map(char::from_u32);
    let vocab: BTreeMap<String, usize> = letters.enumerate().map(|(id, letter)| (letter.to_string(), id)).collect();
    std::fs::write(folder.join("vocab.json"), serde_json::to_string(&vocab).expect("JSON")).expect("a file");
    std::fs::write(folder.join("merges.txt"), "#version: 0.2\n").expect("a file");
    let mut tokenizer = Tokenizer::open(folder).expect("a tokenizer");
    let tokens = tokenizer.add_flamingo_tokens().expect("tokens");
    (Arc::new(tokenizer), tokens)
}

/// A picture that its mirror image differs from.
fn png(level: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    let picture = image::RgbImage::from_fn(8, 8, |x, _| image::Rgb([level, 30 * x as u8, 0]));
    picture.write_to(&mut std::io::Cursor::new(&mut bytes), image::ImageFormat::Png).expect("a picture");
    bytes
}

fn sample(parts: &[(&str, &[u8])]) -> Sample {
    let parts = parts.iter().map(|(name, content)| (name.to_string(), content.to_vec())).collect();
    Sample { key: "a".into(), parts }
}

fn mirrored(picture: &[f32], side: usize) -> Vec<f32> {
    picture.chunks(side).flat_map(|row| row.iter().rev()).copied().collect()
}

#[test]
fn pairs_are_a_picture_and_its_caption() {
    let folder = tempfile::tempdir().expect("a folder");
    let pairs = Pairs {
        tokenizer: tokenizer(folder.path()).0,
        transform: ImageTransform::clip(8),
        max_tokens: 6,
        flip: false,
        upstream_compat: false,
    };
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let seen = pairs.transform.tensor(&Picture::decode(&png(9)).expect("a picture"));
    // Upstream's order where there are several pictures.
    for parts in [vec!["jpg", "png"], vec!["png", "jpeg"], vec!["jpeg", "webp"], vec!["webp"]] {
        let mut given = sample(&[("txt", b" a red cat \n"), ("json", b"{")]);
        given.parts.extend(parts.iter().map(|name| (name.to_string(), png(if *name == parts[0] { 9 } else { 200 }))));
        let example = pairs.example(given, &mut rng).expect("an example");
        assert_eq!(example.ids, pair_ids(&pairs.tokenizer, "a red cat", 6).expect("ids"));
        assert_eq!(example.ids.len(), 6);
        assert!(example.pictures == [seen.clone()], "{parts:?}");
    }
    let png = png(9);
    let rejected = [
        (vec![("png", &png[..])], "part missing"),
        (vec![("txt", b"red")], "part missing"),
        (vec![("txt", b"red"), ("gif", &png)], "part missing"),
        (vec![("txt", b"red"), ("png", &png[..50])], "unreadable picture"),
        (vec![("txt", &[0xff]), ("png", &png)], "unreadable text"),
    ];
    for (parts, kind) in rejected {
        assert_eq!(pairs.example(sample(&parts), &mut rng).map_err(|e| e.kind()), Err(kind), "{:?}", parts[0].0);
    }

    // A caption that speaks of marks sets none.
    for text in [
        "<image> tag<|endofchunk|>",
        "<ima<image>ge>tag",
        "<im<|endofchunk|>age> tag",
        "<|end<ima<image>ge>ofchunk|>tag",
    ] {
        let caption = sample(&[("txt", text.as_bytes()), ("png", &png)]);
        let example = pairs.example(caption, &mut rng).expect("an example");
        assert_eq!(example.ids, pair_ids(&pairs.tokenizer, "tag", 6).expect("ids"), "{text}");
    }

    let flips = Pairs { flip: true, ..pairs };
    let mirror = mirrored(&seen, 8);
    assert_ne!(mirror, seen);
    let mut turned = 0;
    for seed in 0..200 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let example = flips.example(sample(&[("txt", b"red"), ("png", &png)]), &mut rng).expect("an example");
        turned += usize::from(example.pictures[0] == mirror);
        assert!(example.pictures[0] == mirror || example.pictures[0] == seen);
    }
    assert!((70..130).contains(&turned), "{turned} of 200");
}

#[test]
fn documents_are_their_json_and_turn_as_a_whole() {
    let folder = tempfile::tempdir().expect("a folder");
    let (tokenizer, tokens) = tokenizer(folder.path());
    let rules = DocumentRules { min_bytes: 0, max_num_images: 2, ..DocumentRules::default() };
    let documents = Documents { tokenizer, tokens, transform: ImageTransform::clip(8), rules, flip: true };
    let picture = |level| base64::engine::general_purpose::STANDARD.encode(png(level));
    let json = |count: usize| {
        let info: Vec<_> = (0..count).map(|i| serde_json::json!({"image_base64": picture(60 * i as u8)})).collect();
        let rows: Vec<Vec<f64>> =
            (0..count).map(|i| (0..count).map(|j| f64::from(u8::from(i == j))).collect()).collect();
        let text: Vec<String> = (0..count).map(|i| format!("sentence {i}.")).collect();
        let file = serde_json::json!({"text_list": text, "image_info": info, "similarity_matrix": rows});
        serde_json::to_vec(&file).expect("JSON")
    };
    let seen = [0, 60].map(|level| documents.transform.tensor(&Picture::decode(&png(level)).expect("a picture")));
    let mirrors = seen.clone().map(|picture| mirrored(&picture, 8));
    let (two, one) = (json(2), json(1));
    let (mut turned, mut kept) = (0, 0);
    for seed in 0..200 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let example = documents.example(sample(&[("json", &two)]), &mut rng).expect("an example");
        assert_eq!(example.ids.iter().filter(|id| **id == documents.tokens.image).count(), 2);
        assert!(example.pictures == seen || example.pictures == mirrors, "never one without the other");
        turned += usize::from(example.pictures == mirrors);
        match documents.example(sample(&[("json", &one)]), &mut rng) {
            Ok(_) => kept += 1,
            Err(reason) => assert!(matches!(reason, Rejected::Single), "{reason}"),
        }
    }
    assert!((70..130).contains(&turned) && (70..130).contains(&kept), "{turned} turned, {kept} kept");
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for (parts, kind) in [
        (vec![("txt", &b"{}"[..])], "part missing"),
        (vec![("json", b"{\"text_list\":")], "unreadable text"),
        (vec![("json", b"{}")], "no picture left"),
    ] {
        assert_eq!(documents.example(sample(&parts), &mut rng).map_err(|e| e.kind()), Err(kind));
    }
}

#[test]
fn damaged_members_are_counted_by_kind_and_cost_nothing_else() {
    let folder = tempfile::tempdir().expect("a folder");
    // One in twenty has a fault, in turn of five kinds.
    let (mut members, mut wanted) = (Vec::new(), BTreeMap::<String, u64>::new());
    for i in 0..400 {
        let (mut picture, mut text) = (Some(png(i as u8)), Some(b"red".to_vec()));
        let kind = match i {
            _ if i % 20 != 7 => "delivered",
            _ if i % 100 == 7 => {
                picture = Some(png(0)[..40].to_vec());
                "unreadable picture"
            }
            _ if i % 100 == 27 => {
                text = None;
                "part missing"
            }
            _ if i % 100 == 47 => {
                picture = None;
                "part missing"
            }
            _ if i % 100 == 67 => {
                picture = Some(Vec::new());
                "unreadable picture"
            }
            _ => {
                text = Some(vec![0xff, 0xfe]);
                "unreadable text"
            }
        };
        *wanted.entry(kind.to_string()).or_default() += 1;
        members.extend(picture.map(|bytes| (format!("{i:06}.png"), bytes)));
        members.extend(text.map(|bytes| (format!("{i:06}.txt"), bytes)));
    }
    let path = folder.path().join("damaged.tar");
    shard(&path, &members);
    let whole = std::fs::read(&path).expect("a shard");
    let cut = folder.path().join("cut.tar");

    let pairs = Pairs {
        tokenizer: tokenizer(folder.path()).0,
        transform: ImageTransform::clip(8),
        max_tokens: 32,
        flip: true,
        upstream_compat: false,
    };
    let decode: Decode<_> = Arc::new(move |sample, rng| pairs.example(sample, rng));
    let options = LoaderOptions { shuffle: 0, batch_size: 380, ..LoaderOptions::default() };
    let with = |shards: &[&Path], batch_size: usize| {
        let shards = shards.iter().map(|path| path.display().to_string()).collect();
        Loader::start(LoaderOptions { shards, batch_size, ..options.clone() }, decode.clone(), None).expect("a loader")
    };
    let mut loader = with(&[&path], 380);
    assert_eq!(loader.next_batch().expect("a batch").len(), 380);
    assert_eq!(loader.position().counts, wanted);
    // Nothing was lost at its end: the first of the next epoch follows.
    assert_eq!(loader.position().workers[0].samples, 400);

    // It ends before the third sample's text; the whole shard follows.
    std::fs::write(&cut, &whole[..5 * 1024 + 400]).expect("a file");
    let mut loader = with(&[&cut, Path::new("nowhere.tar"), &path], 382);
    assert_eq!(loader.next_batch().expect("a batch").len(), 382);
    let more = [("delivered", 2), ("part missing", 1), ("cut shard", 1), ("unreadable shard", 1)];
    more.into_iter().for_each(|(kind, count)| *wanted.entry(kind.to_string()).or_default() += count);
    assert_eq!(loader.position().counts, wanted);
}

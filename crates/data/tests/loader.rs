//! Streams of batches: the same each time, continued exactly, whole, and unimpressed by damage.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use flamingo_data::{
    DataError, Decode, ImageTransform, Loader, LoaderOptions, Pairs, Position, Rejected, Sample, Tokenizer, find_shards,
};
use rand_chacha::rand_core::RngCore;

/// Writes a shard of `(name, content)` members.
fn shard(path: &Path, members: &[(String, Vec<u8>)]) {
    let mut tar = tar::Builder::new(std::fs::File::create(path).expect("a file"));
    for (name, content) in members {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, name, content.as_slice()).expect("a member");
    }
    tar.finish().expect("a shard");
}

/// `count` shards of `samples` numbered samples.
fn numbered(folder: &Path, count: usize, samples: usize) -> Vec<String> {
    let one = |number: usize| {
        let path = folder.join(format!("{number:03}.tar"));
        let member = |i| (format!("{:06}.txt", number * samples + i), format!("{}", number * samples + i).into_bytes());
        shard(&path, &(0..samples).map(member).collect::<Vec<_>>());
        path.display().to_string()
    };
    (0..count).map(one).collect()
}

/// The number of a sample and a draw; every seventh is unusable, and some take longer.
fn decode() -> Decode<(u64, u32)> {
    Arc::new(|mut sample: Sample, rng| {
        let text = sample.parts.remove("txt").ok_or(Rejected::Missing("txt"))?;
        let number: u64 = String::from_utf8_lossy(&text).parse().map_err(|_| Rejected::NoPicture)?;
        if number % 5 == 0 {
            std::thread::sleep(std::time::Duration::from_micros(200 * (number % 3)));
        }
        if number % 7 == 3 { Err(Rejected::Single) } else { Ok((number, rng.next_u32())) }
    })
}

fn options(shards: Vec<String>) -> LoaderOptions {
    LoaderOptions { shards, seed: 7, shuffle: 10, batch_size: 4, ..LoaderOptions::default() }
}

fn start(options: &LoaderOptions, after: Option<Position>) -> Loader<(u64, u32)> {
    Loader::start(options.clone(), decode(), after).expect("a loader")
}

type Batches = Vec<(Vec<(u64, u32)>, Position)>;

fn batches(loader: &mut Loader<(u64, u32)>, count: usize) -> Batches {
    (0..count).map(|_| (loader.next_batch().expect("a batch"), loader.position().clone())).collect()
}

#[test]
fn a_stream_goes_on_exactly_after_any_of_its_batches() {
    let folder = tempfile::tempdir().expect("a folder");
    let shards = numbered(folder.path(), 5, 9);
    for resampled in [false, true] {
        for workers in [1, 3] {
            let options = LoaderOptions { resampled, workers, ..options(shards.clone()) };
            // Several epochs.
            let whole = batches(&mut start(&options, None), 30);
            assert_eq!(whole, batches(&mut start(&options, None), 30), "the same each time");
            for (i, (_, position)) in whole.iter().enumerate().take(29) {
                let rest = batches(&mut start(&options, Some(position.clone())), 29 - i);
                assert_eq!(rest, whole[i + 1..], "after batch {i}, {workers} worker(s), resampled: {resampled}");
            }
            let other = LoaderOptions { seed: 8, ..options };
            assert_ne!(whole[0].0, batches(&mut start(&other, None), 1)[0].0);
        }
    }
}

#[test]
fn an_epoch_over_all_processes_and_workers_has_each_sample_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let shards = numbered(folder.path(), 6, 8);
    for (world_size, workers) in [(1, 1), (1, 4), (3, 2), (2, 9)] {
        let mut seen: BTreeMap<u64, usize> = BTreeMap::new();
        for rank in 0..world_size {
            let options = LoaderOptions { rank, world_size, workers, batch_size: 1, ..options(shards.clone()) };
            let mut loader = start(&options, None);
            loop {
                let batch = loader.next_batch().expect("a batch");
                let position = loader.position();
                let (of, workers) = (&position.workers, position.workers.len());
                if of[(position.next + workers - 1) % workers].epoch > 0 {
                    // This worker is done; the others may not be.
                    if of.iter().all(|worker| worker.epoch > 0) {
                        break;
                    }
                    continue;
                }
                batch.iter().for_each(|(number, _)| *seen.entry(*number).or_default() += 1);
            }
        }
        let wanted: BTreeMap<u64, usize> = (0..48).filter(|n| n % 7 != 3).map(|n| (n, 1)).collect();
        assert_eq!(seen, wanted, "{world_size} process(es), {workers} worker(s)");
    }
    let too_many = LoaderOptions { world_size: 7, ..options(shards) };
    assert!(matches!(Loader::start(too_many, decode(), None), Err(DataError::Shards(_))));
}

#[test]
fn shuffling_shuffles_and_no_shuffling_keeps_the_order() {
    let folder = tempfile::tempdir().expect("a folder");
    let shards = numbered(folder.path(), 3, 14);
    let order = |shuffle: usize| -> Vec<u64> {
        let options = LoaderOptions { shuffle, ..options(shards.clone()) };
        batches(&mut start(&options, None), 9).into_iter().flat_map(|(items, _)| items).map(|(n, _)| n).collect()
    };
    let usable: Vec<u64> = (0..42).filter(|n| n % 7 != 3).collect();
    assert_eq!(order(0), usable);
    let (mut shuffled, unsorted) = (order(12), order(12));
    shuffled.sort_unstable();
    assert_eq!(shuffled, usable);
    let ascents = unsorted.windows(2).filter(|pair| pair[0] + 1 == pair[1]).count();
    assert!(ascents < 8, "{unsorted:?}");
}

fn png(level: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    let picture = image::RgbImage::from_pixel(8, 8, image::Rgb([level, 0, 0]));
    picture.write_to(&mut std::io::Cursor::new(&mut bytes), image::ImageFormat::Png).expect("a picture");
    bytes
}

#[test]
fn damaged_members_are_counted_by_kind_and_cost_nothing_else() {
    let folder = tempfile::tempdir().expect("a folder");
    let vocab: BTreeMap<String, usize> =
        (0..256u32).map(|b| (char::from_u32(b + 256).expect("a letter").to_string(), b as usize)).collect();
    let vocab = serde_json::to_string(&vocab).expect("JSON");
    std::fs::write(folder.path().join("vocab.json"), vocab).expect("a file");
    std::fs::write(folder.path().join("merges.txt"), "#version: 0.2\n").expect("a file");
    let mut tokenizer = Tokenizer::open(folder.path()).expect("a tokenizer");
    tokenizer.add_flamingo_tokens().expect("tokens");

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
    // And a second shard that ends in the middle.
    let whole = std::fs::read(&path).expect("a shard");
    let cut = folder.path().join("cut.tar");
    std::fs::write(&cut, &whole[..700]).expect("a file");

    let pairs =
        Pairs { tokenizer: Arc::new(tokenizer), transform: ImageTransform::clip(8), max_tokens: 32, flip: true };
    let shards = vec![path.display().to_string()];
    let options = LoaderOptions { shards, shuffle: 0, batch_size: 380, ..LoaderOptions::default() };
    let decode: Decode<_> = Arc::new(move |sample, rng| pairs.example(sample, rng));
    let mut loader = Loader::start(options.clone(), decode.clone(), None).expect("a loader");
    assert_eq!(loader.next_batch().expect("a batch").len(), 380);
    assert_eq!(loader.position().counts, wanted);

    let shards = vec![cut.display().to_string(), path.display().to_string(), "nowhere.tar".into()];
    let mut loader =
        Loader::start(LoaderOptions { shards, ..options.clone() }, decode.clone(), None).expect("a loader");
    loader.next_batch().expect("a batch");
    assert_eq!(loader.position().counts.get("cut shard"), Some(&1));

    // Nothing but damage is an error, with the reason.
    let shards = vec![cut.display().to_string(), "nowhere.tar".into()];
    let mut loader = Loader::start(LoaderOptions { shards, ..options.clone() }, decode, None).expect("a loader");
    assert!(matches!(loader.next_batch(), Err(DataError::Shards(_))));

    let options = LoaderOptions { max_consecutive_failures: 3, ..options };
    let all_wrong: Decode<u8> = Arc::new(|_, _| Err(Rejected::NoPicture));
    let error = Loader::start(options.clone(), all_wrong, None).expect("a loader").next_batch().expect_err("an error");
    assert!(error.to_string().contains("4 samples in a row"), "{error}");
    let panics: Decode<u8> = Arc::new(|_, _| panic!("on purpose"));
    assert!(Loader::start(options, panics, None).expect("a loader").next_batch().is_err());
}

#[test]
fn a_stream_may_be_left_at_any_time() {
    let folder = tempfile::tempdir().expect("a folder");
    let shards = numbered(folder.path(), 4, 50);
    for taken in [0, 1, 5] {
        let options = LoaderOptions { workers: 4, ..options(shards.clone()) };
        batches(&mut start(&options, None), taken);
    }
}

#[test]
fn shards_are_found_by_pattern_glob_and_list() {
    let folder = tempfile::tempdir().expect("a folder");
    let shards = numbered(folder.path(), 3, 1);
    let at = |name: &str| folder.path().join(name).display().to_string();
    assert_eq!(find_shards(&at("{000..002}.tar")).expect("shards"), shards);
    assert_eq!(find_shards(&at("*.tar")).expect("shards"), shards);
    assert_eq!(find_shards(&at("00?.tar")).expect("shards"), shards);
    std::fs::write(at("list"), format!("# two\n{}\n\n{}\n", shards[2], at("00[01].tar*"))).expect("a list");
    assert_eq!(find_shards(&format!("@{}", at("list"))).expect("shards"), [2, 0, 1].map(|i: usize| shards[i].clone()));
    assert_eq!(find_shards("https://host/{0..1}.tar").expect("names"), ["https://host/0.tar", "https://host/1.tar"]);
    for wrong in ["", "::", &at("*.zip"), &format!("@{}", at("nothing")), "{0..1"] {
        assert!(find_shards(wrong).is_err(), "{wrong}");
    }
}

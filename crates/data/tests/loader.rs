//! Streams of batches: the same each time, continued exactly, whole, bounded, and left at any time.

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::{numbered, shard};
use flamingo_data::{DataError, Decode, Loader, LoaderOptions, Position, Rejected, Sample, find_shards};
use rand_chacha::rand_core::RngCore;

/// The number of a sample and a draw; every seventh is unusable, and some take `slow` times longer.
fn decode(slow: u64) -> Decode<(u64, u32)> {
    Arc::new(move |mut sample: Sample, rng| {
        let text = sample.parts.remove("txt").ok_or(Rejected::Missing("txt"))?;
        let number: u64 = String::from_utf8_lossy(&text).parse().map_err(|_| Rejected::NoPicture)?;
        if number.is_multiple_of(5) {
            std::thread::sleep(Duration::from_micros(slow * (number % 3)));
        }
        if number % 7 == 3 { Err(Rejected::Single) } else { Ok((number, rng.next_u32())) }
    })
}

fn options(shards: Vec<String>) -> LoaderOptions {
    LoaderOptions { shards, seed: 7, shuffle: 10, initial: 4, batch_size: 4, ..LoaderOptions::default() }
}

fn start(options: &LoaderOptions, after: Option<Position>) -> Loader<(u64, u32)> {
    Loader::start(options.clone(), decode(200), after).expect("a loader")
}

type Batches = Vec<(Vec<(u64, u32)>, Position)>;

fn batches(loader: &mut Loader<(u64, u32)>, count: usize) -> Batches {
    (0..count).map(|_| (loader.next_batch().expect("a batch"), loader.position().clone())).collect()
}

/// Fails where `work` does not end, instead of waiting for ever.
fn within_a_minute(work: impl FnOnce() + Send + 'static) {
    let (sender, done) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        work();
        sender.send(()).ok();
    });
    done.recv_timeout(Duration::from_secs(60)).expect("it ends");
}

#[test]
fn a_stream_goes_on_exactly_after_any_of_its_batches() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut shards = numbered(folder.path(), 5, 9);
    let whole = std::fs::read(&shards[2]).expect("a shard");
    std::fs::write(&shards[2], &whole[..5 * 1024 + 513]).expect("a file");
    let mut damaged = std::fs::read(&shards[3]).expect("a shard");
    damaged[4 * 1024 + 150] ^= 1;
    std::fs::write(&shards[3], damaged).expect("a file");
    shards.push("nowhere.tar".into());
    for (resampled, epoch_samples) in [(false, None), (true, None), (false, Some(50)), (true, Some(50))] {
        for workers in [1, 3] {
            let options = LoaderOptions { resampled, epoch_samples, workers, ..options(shards.clone()) };
            let whole = batches(&mut start(&options, None), 36);
            let last = &whole[35].1;
            assert!(last.workers.iter().all(|worker| worker.epoch >= 1), "several epochs: {last:?}");
            let kinds: Vec<&str> = last.counts.keys().map(String::as_str).collect();
            assert_eq!(kinds, ["cut shard", "damaged member", "delivered", "one picture only", "unreadable shard"]);
            assert_eq!(last.counts["delivered"], 36 * 4);
            for (i, (_, position)) in whole.iter().enumerate().take(35) {
                let saved = serde_json::to_string(position).expect("JSON");
                let after = Some(serde_json::from_str(&saved).expect("a position"));
                let rest = batches(&mut start(&options, after), 35 - i);
                assert_eq!(rest, whole[i + 1..], "after batch {i} of {options:?}");
            }
        }
    }
}

#[test]
fn a_stream_depends_on_its_seed_and_not_on_time() {
    let folder = tempfile::tempdir().expect("a folder");
    let options = LoaderOptions { workers: 3, ..options(numbered(folder.path(), 5, 9)) };
    let whole = batches(&mut start(&options, None), 30);
    let eager = LoaderOptions { prefetch: 20, ..options.clone() };
    let mut slow = Loader::start(eager, decode(3000), None).expect("a loader");
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(whole, batches(&mut slow, 30));
    let other = LoaderOptions { seed: 8, ..options };
    assert_ne!(whole[0].0, batches(&mut start(&other, None), 1)[0].0);
}

#[test]
fn an_epoch_over_all_workers_has_each_sample_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let shards = numbered(folder.path(), 6, 8);
    for workers in [1, 4, 9] {
        let mut seen: BTreeMap<(u64, u64), usize> = BTreeMap::new();
        let mut loader = start(&LoaderOptions { workers, batch_size: 1, ..options(shards.clone()) }, None);
        while loader.position().workers.iter().any(|worker| worker.epoch < 2) {
            let worker = loader.position().next;
            let (number, _) = loader.next_batch().expect("a batch")[0];
            *seen.entry((loader.position().workers[worker].epoch, number)).or_default() += 1;
        }
        seen.retain(|(epoch, _), _| *epoch < 2);
        let usable = (0..48).filter(|n| n % 7 != 3);
        let wanted: BTreeMap<(u64, u64), usize> = usable.flat_map(|n| [((0, n), 1), ((1, n), 1)]).collect();
        assert_eq!(seen, wanted, "{workers} worker(s)");
    }
}

#[test]
fn processes_together_see_what_one_sees_and_go_on_with_another_number() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut shards = numbered(folder.path(), 5, 9);
    shards.push("nowhere.tar".into());
    for (resampled, epoch_samples, workers) in
        [(false, None, 1), (false, None, 4), (true, None, 6), (true, Some(50), 5)]
    {
        let options = LoaderOptions { resampled, epoch_samples, workers, ..options(shards.clone()) };
        let whole = batches(&mut start(&LoaderOptions { batch_size: 12, ..options.clone() }, None), 12);
        let mut after = None;
        for (part, world_size) in whole.chunks(3).zip([2, 6, 4, 3]) {
            let mut loaders: Vec<_> = (0..world_size)
                .map(|rank| LoaderOptions { rank, world_size, batch_size: 12 / world_size, ..options.clone() })
                .map(|options| start(&options, after.clone()))
                .collect();
            for (items, position) in part {
                let batches: Vec<_> = loaders.iter_mut().map(|loader| loader.next_batch().expect("a batch")).collect();
                let together: Vec<_> = (0..12).map(|i| batches[i % world_size][i / world_size]).collect();
                assert_eq!(&together, items, "{world_size} of {options:?}");
                let merged = Position::merge(loaders.iter().map(|loader| loader.position().clone()));
                assert_eq!(&merged, position, "{world_size} of {options:?}");
            }
            after = part.last().map(|(_, position)| position.clone());
        }
    }
}

#[test]
fn batches_are_filled_across_the_end_of_an_epoch() {
    let folder = tempfile::tempdir().expect("a folder");
    let options = LoaderOptions { batch_size: 10, ..options(numbered(folder.path(), 3, 14)) };
    // 36 usable samples an epoch, 180 in five.
    let mut counts: BTreeMap<u64, usize> = BTreeMap::new();
    for (items, _) in batches(&mut start(&options, None), 18) {
        assert_eq!(items.len(), 10);
        items.iter().for_each(|(number, _)| *counts.entry(*number).or_default() += 1);
    }
    assert_eq!(counts, (0..42).filter(|n| n % 7 != 3).map(|n| (n, 5)).collect());
}

#[test]
fn an_epoch_of_so_many_samples_ends_there() {
    let folder = tempfile::tempdir().expect("a folder");
    let shards = numbered(folder.path(), 4, 14);
    for resampled in [false, true] {
        // 30 samples are 8 of each of 4 workers.
        let options = LoaderOptions { resampled, epoch_samples: Some(30), workers: 4, ..options(shards.clone()) };
        let epochs: Vec<Vec<u64>> = batches(&mut start(&LoaderOptions { batch_size: 2, ..options.clone() }, None), 18)
            .iter()
            .map(|(_, position)| position.workers.iter().map(|worker| worker.epoch).collect())
            .collect();
        assert_eq!(epochs[13], [0, 0, 0, 0]);
        assert_eq!(epochs[14..16], [[1, 1, 0, 0], [1, 1, 1, 1]]);
        assert_eq!(epochs[17], [1, 1, 1, 1]);
        // More than there are: 48 usable ones come again.
        let options = LoaderOptions { epoch_samples: Some(100), workers: 1, ..options };
        let whole = batches(&mut start(&options, None), 26);
        assert_eq!((whole[23].1.workers[0].epoch, whole[24].1.workers[0].epoch), (0, 1));
        assert_eq!(whole[24].1.workers[0].samples, 0);
    }
}

#[test]
fn shuffling_shuffles_and_no_shuffling_keeps_the_order() {
    let folder = tempfile::tempdir().expect("a folder");
    let shards = numbered(folder.path(), 3, 14);
    let order = |shuffle: usize| -> Vec<u64> {
        let options = LoaderOptions { shuffle, ..options(shards.clone()) };
        batches(&mut start(&options, None), 36).into_iter().flat_map(|(items, _)| items).map(|(n, _)| n).collect()
    };
    let usable: Vec<u64> = (0..42).filter(|n| n % 7 != 3).collect();
    assert_eq!(order(0), usable.repeat(4));

    let shuffled = order(12);
    let (first, second) = shuffled[..72].split_at(36);
    let sorted = |part: &[u64]| {
        let mut part = part.to_vec();
        part.sort_unstable();
        part
    };
    assert_eq!([sorted(first), sorted(second)], [usable.clone(), usable]);
    assert_ne!(first, second);
    let ascents = first.windows(2).filter(|pair| pair[0] + 1 == pair[1]).count();
    assert!(ascents < 8, "{first:?}");

    // A buffer of one keeps the order within shards, which are permuted anew each epoch all the same.
    let shards: Vec<Vec<u64>> =
        order(1).chunks(36).map(|epoch| epoch.iter().step_by(12).map(|n| n / 14).collect()).collect();
    assert!(shards.iter().all(|epoch| sorted(epoch) == [0, 1, 2]), "{shards:?}");
    assert!(shards.iter().any(|epoch| *epoch != shards[0]), "{shards:?}");
}

#[test]
fn workers_prepare_no_more_samples_than_they_may() {
    let folder = tempfile::tempdir().expect("a folder");
    let shards = numbered(folder.path(), 4, 50);
    for prefetch in [1, 3] {
        let decoded = Arc::new(AtomicUsize::new(0));
        let counter = decoded.clone();
        let decode: Decode<()> = Arc::new(move |_, _| {
            counter.fetch_add(1, Ordering::Relaxed);
            Ok(())
        });
        let options = LoaderOptions { workers: 2, prefetch, ..options(shards.clone()) };
        let mut loader = Loader::start(options, decode, None).expect("a loader");
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(decoded.load(Ordering::Relaxed), prefetch * 4);
        loader.next_batch().expect("a batch");
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(decoded.load(Ordering::Relaxed), (prefetch + 1) * 4);
    }
}

#[test]
fn a_stream_may_be_left_at_any_time() {
    let folder = tempfile::tempdir().expect("a folder");
    let options = LoaderOptions { workers: 4, ..options(numbered(folder.path(), 4, 50)) };
    within_a_minute(move || {
        for taken in [0, 1, 5] {
            batches(&mut start(&options, None), taken);
        }
        // In the middle of going back to a place that is infinitely far.
        let endless = LoaderOptions { epoch_samples: Some(usize::MAX), ..options.clone() };
        let mut position = start(&endless, None).position().clone();
        position.workers.iter_mut().for_each(|worker| worker.samples = u64::MAX);
        let far = start(&endless, Some(position));
        std::thread::sleep(Duration::from_millis(50));
        drop(far);
        drop(folder);
    });
}

#[test]
fn too_many_failures_and_panics_are_errors_and_the_end() {
    let folder = tempfile::tempdir().expect("a folder");
    let shards = numbered(folder.path(), 1, 10);
    // Good ones between bad ones keep a stream alive.
    let options = LoaderOptions { shuffle: 0, batch_size: 3, max_consecutive_failures: 3, ..options(shards.clone()) };
    let good_to = |last: u64| -> Decode<u64> {
        Arc::new(move |sample, _| {
            let number: u64 = sample.key.parse().map_err(|_| Rejected::NoPicture)?;
            if number < last { Ok(number) } else { Err(Rejected::NoPicture) }
        })
    };
    let mut loader = Loader::start(options.clone(), good_to(7), None).expect("a loader");
    (0..20).for_each(|_| assert_eq!(loader.next_batch().expect("a batch").len(), 3));
    let mut loader = Loader::start(options.clone(), good_to(6), None).expect("a loader");
    assert_eq!(loader.next_batch().expect("a batch"), [0, 1, 2]);
    assert_eq!(loader.next_batch().expect("a batch"), [3, 4, 5]);
    let before = loader.position().clone();
    match loader.next_batch() {
        Err(DataError::TooManyFailures { count: 4, last }) => assert_eq!(last, "no picture is left"),
        other => panic!("{other:?}"),
    }
    assert!(loader.next_batch().is_err());
    assert_eq!(*loader.position(), before);

    let panics: Decode<u8> = Arc::new(|sample, _| match &*sample.key {
        "000004" => panic!("on purpose"),
        _ => Ok(0),
    });
    let mut loader = Loader::start(options.clone(), panics, None).expect("a loader");
    loader.next_batch().expect("a batch");
    match loader.next_batch() {
        Err(DataError::Panicked { sample, reason }) => assert_eq!([&*sample, &*reason], ["000004", "on purpose"]),
        other => panic!("{other:?}"),
    }
    assert!(loader.next_batch().is_err());

    // Shards that bring nothing are no endless search, and the sentence says how many there are and why.
    let why = |shards: Vec<String>, resampled| {
        let nothing = LoaderOptions { shards, resampled, ..options.clone() };
        Loader::start(nothing, good_to(7), None).expect("a loader").next_batch().expect_err("an error").to_string()
    };
    let missing = why(vec!["nowhere.tar".into()], false);
    let reason = "cannot read nowhere.tar: No such file or directory (os error 2)";
    assert_eq!(missing, format!("1 shard(s), read 100 times in all, hold no samples, the last because: {reason}"));
    let empty = folder.path().join("empty.tar");
    shard(&empty, &[]);
    let empty = empty.display().to_string();
    for resampled in [false, true] {
        let error = why(vec!["nowhere.tar".into(), empty.clone()], resampled);
        assert!(error.starts_with("2 shard(s), read 100 times in all, hold no samples, the last because: "), "{error}");
    }
    assert!(why(vec![empty.clone()], false).ends_with(&format!("{empty} has no usable members")));
}

#[test]
fn options_that_cannot_be_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let good = options(numbered(folder.path(), 3, 2));
    let position = |workers: usize, next: usize| {
        let position = start(&LoaderOptions { workers, ..good.clone() }, None).position().clone();
        Some(Position { next, ..position })
    };
    let refused = [
        (LoaderOptions { shards: Vec::new(), ..good.clone() }, None),
        (LoaderOptions { shards: Vec::new(), resampled: true, ..good.clone() }, None),
        (LoaderOptions { rank: 4, world_size: 4, ..good.clone() }, None),
        (LoaderOptions { world_size: 0, ..good.clone() }, None),
        (LoaderOptions { world_size: 2, rank: 2, ..good.clone() }, None),
        (LoaderOptions { batch_size: 0, ..good.clone() }, None),
        (LoaderOptions { epoch_samples: Some(0), ..good.clone() }, None),
        (good.clone(), position(2, 0)),
        (good.clone(), position(1, 1)),
    ];
    for (options, after) in refused {
        let started = Loader::start(options.clone(), decode(0), after);
        assert!(matches!(started, Err(DataError::Shards(_))), "{options:?}");
    }
    // Drawn with replacement, a shard may belong to several.
    let many = LoaderOptions { world_size: 4, workers: 5, resampled: true, ..good };
    assert_eq!(start(&many, None).position().workers.len(), 5);
}

#[test]
fn shards_are_found_by_pattern_glob_and_list() {
    let folder = tempfile::tempdir().expect("a folder");
    let shards = numbered(folder.path(), 3, 1);
    let at = |name: &str| folder.path().join(name).display().to_string();
    assert_eq!(find_shards(&at("{000..002}.tar")).expect("shards"), shards);
    assert_eq!(find_shards(&at("*.tar")).expect("shards"), shards);
    assert_eq!(find_shards(&at("00?.tar")).expect("shards"), shards);
    assert_eq!(find_shards(&at("{?01,002}.t*")).expect("shards"), shards[1..]);
    std::fs::write(at("list"), format!("# two\n{}\n\n{}\n", shards[2], at("00[01].tar*"))).expect("a list");
    assert_eq!(find_shards(&format!("@{}", at("list"))).expect("shards"), [2, 0, 1].map(|i: usize| shards[i].clone()));
    assert_eq!(find_shards("https://host/{0..1}.tar").expect("names"), ["https://host/0.tar", "https://host/1.tar"]);
    assert_eq!(find_shards("http://[::1]:80/a.tar::b.tar").expect("names"), ["http://[::1]:80/a.tar", "b.tar"]);
    assert_eq!(find_shards("http://host/a.tar?key=*").expect("a name"), ["http://host/a.tar?key=*"]);
    for wrong in ["", "::", &at("*.zip"), &format!("@{}", at("nothing")), "{0..1", "http://host/*.tar", "gs://a/b.tar"]
    {
        assert!(find_shards(wrong).is_err(), "{wrong}");
    }
}

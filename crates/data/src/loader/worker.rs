//! One worker: its shards, its shuffle buffer, its samples.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow::{self, Break, Continue};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, PoisonError};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use super::shuffle::Shuffle;
use super::{Delivered, Shared, WorkerPosition, source};
use crate::{DataError, Sample, read_samples};

/// Readings of shards in a row that may bring nothing: of one that is not there, too, since it may come back.
const BARREN_READINGS: usize = 100;

/// What a generator is for: no two purposes share one.
#[derive(Clone, Copy)]
enum Purpose {
    Shuffle,
    Draw,
    Permute,
    /// Decoding this sample of the epoch, from 1.
    Decode(u64),
}

/// Why an epoch ends before its shards do.
enum End {
    /// It has as many samples as it should.
    Epoch,
    /// Nobody wants more, or there was an error.
    Stream,
}

/// A worker at work.
pub(super) struct Stream<T> {
    shared: Arc<Shared<T>>,
    sender: SyncSender<Result<Delivered<T>, DataError>>,
    /// Which of the workers this is.
    index: usize,
    /// Samples of this epoch that were used before the start.
    replay: u64,
    at: WorkerPosition,
    counts: BTreeMap<String, u64>,
    /// Unusable samples in a row.
    failures: usize,
    /// Shards that were read in a row and brought nothing.
    barren: Vec<usize>,
}

impl<T> Stream<T> {
    pub(super) fn new(
        shared: Arc<Shared<T>>,
        index: usize,
        after: WorkerPosition,
        sender: SyncSender<Result<Delivered<T>, DataError>>,
    ) -> Self {
        Self {
            shared,
            sender,
            index,
            replay: after.samples,
            at: WorkerPosition { samples: 0, ..after },
            counts: BTreeMap::new(),
            failures: 0,
            barren: Vec::new(),
        }
    }

    /// Goes through epoch after epoch, until nobody wants more.
    pub(super) fn run(mut self) {
        while !matches!(self.epoch(), Break(End::Stream)) {
            self.at = self.next_epoch();
            self.replay = 0;
        }
    }

    fn next_epoch(&self) -> WorkerPosition {
        WorkerPosition { epoch: self.at.epoch.saturating_add(1), ..WorkerPosition::default() }
    }

    fn epoch(&mut self) -> ControlFlow<End> {
        let shared = self.shared.clone();
        let mut rng = self.generator(self.index, Purpose::Shuffle);
        let mut shuffle = Shuffle::new(shared.options.shuffle, shared.options.initial, |count| below(&mut rng, count));
        for shard in self.shards() {
            let name = &shared.options.shards[shard];
            let barren = match source::open(name, &shared.stop) {
                Ok(bytes) => {
                    let (mut flow, mut samples) = (Continue(()), 0);
                    let skipped = read_samples(bytes, &mut |sample| {
                        samples += 1;
                        flow = match shuffle.push((sample, shard)) {
                            Some(sample) => self.take(sample),
                            None => self.wanted(),
                        };
                        if flow.is_continue() { Continue(()) } else { Break(()) }
                    });
                    flow?;
                    for (kind, count, reason) in skipped.kinds() {
                        self.left_out(kind, count, name, &reason);
                    }
                    (samples == 0).then(|| format!("{} has no usable members", source::shown(name)))
                }
                Err(reason) => {
                    let reason = with_causes(&reason);
                    self.left_out("unreadable shard", 1, name, &reason);
                    Some(reason)
                }
            };
            match barren {
                Some(reason) => {
                    self.barren.push(shard);
                    if self.barren.len() == BARREN_READINGS {
                        let shards = self.barren.iter().collect::<BTreeSet<_>>().len();
                        return self.send(Err(DataError::Shards(format!(
                            "{shards} shard(s), read {BARREN_READINGS} times in all, hold no samples, the last because: {reason}"
                        ))));
                    }
                }
                None => self.barren.clear(),
            }
            self.wanted()?;
        }
        while let Some(sample) = shuffle.pop() {
            self.take(sample)?;
        }
        Continue(())
    }

    /// The shards of this worker in this epoch: a share of a permutation that all workers agree on, or as many drawn
    /// with replacement. Where samples end the epoch, shards do not.
    fn shards(&self) -> Box<dyn Iterator<Item = usize>> {
        let options = &self.shared.options;
        let (count, workers) = (options.shards.len(), self.shared.workers);
        let endless = options.epoch_samples.is_some();
        if options.resampled {
            let mut rng = self.generator(self.index, Purpose::Draw);
            let drawn = std::iter::repeat_with(move || below(&mut rng, count));
            return if endless { Box::new(drawn) } else { Box::new(drawn.take((count / workers).max(1))) };
        }
        let mut order: Vec<usize> = (0..count).collect();
        if options.shuffle > 0 {
            let mut rng = self.generator(0, Purpose::Permute);
            (1..count).rev().for_each(|i| order.swap(i, below(&mut rng, i + 1)));
        }
        let share = order.into_iter().skip(self.index).step_by(workers);
        if endless { Box::new(share.cycle()) } else { Box::new(share) }
    }

    /// Uses a sample of a shard.
    fn take(&mut self, (sample, shard): (Sample, usize)) -> ControlFlow<End> {
        self.wanted()?;
        self.at.samples += 1;
        if self.replaying() {
            // What was counted up to here was counted before.
            self.counts.clear();
            return Continue(());
        }
        let shared = self.shared.clone();
        let options = &shared.options;
        let mut rng = self.generator(self.index, Purpose::Decode(self.at.samples));
        let key = sample.key.clone();
        let item = match catch_unwind(AssertUnwindSafe(|| (shared.decode)(sample, &mut rng))) {
            Ok(Ok(item)) => item,
            Ok(Err(reason)) => {
                self.failures += 1;
                let place = format!("{} of {}", key, options.shards[shard]);
                self.left_out(reason.kind(), 1, &place, &reason);
                if self.failures > options.max_consecutive_failures {
                    let (count, last) = (self.failures, reason.to_string());
                    return self.send(Err(DataError::TooManyFailures { count, last }));
                }
                return Continue(());
            }
            Err(panic) => {
                return self.send(Err(DataError::Panicked { sample: key, reason: said(&*panic) }));
            }
        };
        self.failures = 0;
        self.at.delivered += 1;
        self.count("delivered", 1);
        let full = shared.epoch_share().is_some_and(|share| self.at.delivered >= share);
        let position = if full { self.next_epoch() } else { self.at };
        let counts = std::mem::take(&mut self.counts);
        self.send(Ok(Delivered { item, position, counts }))?;
        if full { Break(End::Epoch) } else { Continue(()) }
    }

    fn replaying(&self) -> bool {
        self.at.samples <= self.replay
    }

    fn wanted(&self) -> ControlFlow<End> {
        if self.shared.stop.load(Ordering::Relaxed) { Break(End::Stream) } else { Continue(()) }
    }

    /// Breaks off after an error, and when nobody listens.
    fn send(&self, sample: Result<Delivered<T>, DataError>) -> ControlFlow<End> {
        let last = sample.is_err();
        match self.sender.send(sample) {
            Ok(()) if !last => Continue(()),
            _ => Break(End::Stream),
        }
    }

    fn count(&mut self, kind: &str, count: u64) {
        *self.counts.entry(kind.to_string()).or_default() += count;
    }

    /// Counts what is left out. The first of a kind is worth a warning, unless it was there before the start.
    fn left_out(&mut self, kind: &'static str, count: usize, place: &str, reason: &dyn std::fmt::Display) {
        if count == 0 {
            return;
        }
        self.count(kind, count as u64);
        if self.at.samples < self.replay {
            return;
        }
        let place = source::shown(place);
        if self.shared.warned.lock().unwrap_or_else(PoisonError::into_inner).insert(kind) {
            tracing::warn!(kind, count, place, %reason, "left out; more of this kind are logged as debug messages");
        } else {
            tracing::debug!(kind, count, place, %reason, "left out");
        }
    }

    /// A generator for one purpose in this epoch.
    fn generator(&self, worker: usize, purpose: Purpose) -> ChaCha8Rng {
        let purpose = match purpose {
            Purpose::Shuffle => 0,
            Purpose::Draw => 1,
            Purpose::Permute => 2,
            Purpose::Decode(sample) => sample.saturating_add(2),
        };
        let mut seed = [0; 32];
        let words = [self.shared.options.seed, self.at.epoch, worker as u64, purpose];
        for (place, word) in seed.chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        ChaCha8Rng::from_seed(seed)
    }
}

/// A number below `count`, which is small beside 2^64: the bias of the remainder does not matter.
fn below(rng: &mut ChaCha8Rng, count: usize) -> usize {
    (rng.next_u64() % count as u64) as usize
}

/// What is wrong, and why.
fn with_causes(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// The message of a panic.
fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| text.to_string());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic without a message".into())
}

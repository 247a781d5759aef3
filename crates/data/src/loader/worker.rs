//! One worker: its shards, its shuffle buffer, its batches.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::SyncSender;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use super::{Decode, LoaderOptions, WorkerBatch, WorkerPosition, source};
use crate::{DataError, Sample, read_samples};

/// Epochs in a row that may bring nothing: drawn with replacement, unreadable shards may come several times.
const EMPTY_EPOCHS: usize = 20;

/// Goes through epoch after epoch, until nobody wants more.
pub(super) fn run<T>(
    options: &LoaderOptions,
    index: usize,
    workers: usize,
    decode: &Decode<T>,
    after: WorkerPosition,
    sender: &SyncSender<Result<WorkerBatch<T>, DataError>>,
) {
    let reader = (options.rank * workers + index) as u64;
    let readers = (options.world_size * workers) as u64;
    let mut stream = Stream {
        options,
        decode,
        sender,
        reader,
        replay: after.samples,
        at: WorkerPosition { epoch: after.epoch, samples: 0 },
        items: Vec::new(),
        counts: BTreeMap::new(),
        failures: 0,
    };
    let mut empty = 0;
    while empty < EMPTY_EPOCHS {
        if stream.epoch(readers).is_break() {
            return;
        }
        empty = if stream.at.samples == 0 { empty + 1 } else { 0 };
        stream.at = WorkerPosition { epoch: stream.at.epoch + 1, samples: 0 };
        stream.replay = 0;
    }
    stream.nothing_read();
}

struct Stream<'a, T> {
    options: &'a LoaderOptions,
    decode: &'a Decode<T>,
    sender: &'a SyncSender<Result<WorkerBatch<T>, DataError>>,
    reader: u64,
    /// Samples of this epoch that were used before the start.
    replay: u64,
    at: WorkerPosition,
    items: Vec<T>,
    counts: BTreeMap<String, u64>,
    /// Unusable samples in a row.
    failures: usize,
}

impl<T> Stream<'_, T> {
    fn epoch(&mut self, readers: u64) -> ControlFlow<()> {
        let mut rng = generator(self.options.seed, [self.at.epoch, self.reader, 0]);
        let mut buffer: Vec<Sample> = Vec::new();
        for shard in self.shards(readers) {
            let shard = &self.options.shards[shard];
            let skipped = match source::open(shard) {
                Ok(bytes) => {
                    let mut flow = ControlFlow::Continue(());
                    let skipped = read_samples(bytes, &mut |sample| {
                        buffer.push(sample);
                        if buffer.len() > self.options.shuffle {
                            flow = self.take(drawn(&mut buffer, &mut rng, self.options.shuffle));
                        }
                        flow
                    });
                    flow?;
                    skipped
                }
                Err(reason) => {
                    tracing::warn!(shard, %reason, "a shard is left out");
                    self.count("unreadable shard", 1);
                    continue;
                }
            };
            for (kind, count) in
                [("member", skipped.members), ("duplicate member", skipped.duplicates), ("cut shard", skipped.cut)]
            {
                if count > 0 {
                    tracing::warn!(shard, kind, count, "left out");
                    self.count(kind, count as u64);
                }
            }
        }
        while !buffer.is_empty() {
            self.take(drawn(&mut buffer, &mut rng, self.options.shuffle))?;
        }
        ControlFlow::Continue(())
    }

    /// The shards of this reader in this epoch: a share of a permutation that all readers agree on, or as many drawn
    /// with replacement.
    fn shards(&self, readers: u64) -> Vec<usize> {
        let count = self.options.shards.len();
        if self.options.resampled {
            let mut rng = generator(self.options.seed, [self.at.epoch, self.reader, 1]);
            return (0..(count as u64 / readers).max(1)).map(|_| below(&mut rng, count)).collect();
        }
        let mut order: Vec<usize> = (0..count).collect();
        if self.options.shuffle > 0 {
            let mut rng = generator(self.options.seed, [self.at.epoch, 0, 2]);
            (1..count).rev().for_each(|i| order.swap(i, below(&mut rng, i + 1)));
        }
        order.into_iter().skip(self.reader as usize).step_by(readers as usize).collect()
    }

    /// Uses a sample; breaks off when nobody wants more.
    fn take(&mut self, sample: Sample) -> ControlFlow<()> {
        self.at.samples += 1;
        if self.at.samples <= self.replay {
            // What was counted up to here was counted before.
            self.counts.clear();
            return ControlFlow::Continue(());
        }
        let mut rng = generator(self.options.seed, [self.at.epoch, self.reader, 3 + self.at.samples]);
        let key = sample.key.clone();
        match catch_unwind(AssertUnwindSafe(|| (self.decode)(sample, &mut rng))) {
            Ok(Ok(item)) => {
                self.failures = 0;
                self.items.push(item);
                self.count("delivered", 1);
            }
            Ok(Err(reason)) => {
                self.failures += 1;
                if !self.counts.contains_key(reason.kind()) {
                    tracing::debug!(sample = key, %reason, "a sample is left out");
                }
                self.count(reason.kind(), 1);
                if self.failures > self.options.max_consecutive_failures {
                    let why = format!("{} samples in a row are unusable, the last because: {reason}", self.failures);
                    return self.send(Err(DataError::Shards(why)));
                }
            }
            Err(_) => return self.send(Err(DataError::Shards(format!("decoding the sample `{key}` failed")))),
        }
        if self.items.len() == self.options.batch_size {
            let (items, counts) = (std::mem::take(&mut self.items), std::mem::take(&mut self.counts));
            return self.send(Ok(WorkerBatch { items, position: self.at, counts }));
        }
        ControlFlow::Continue(())
    }

    fn nothing_read(&self) {
        let counts: Vec<String> = self.counts.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
        let why = format!("the shards hold no samples ({})", counts.join(", "));
        // The end either way.
        let _ = self.send(Err(DataError::Shards(why)));
    }

    /// Breaks off after an error, and when nobody listens.
    fn send(&self, batch: Result<WorkerBatch<T>, DataError>) -> ControlFlow<()> {
        let last = batch.is_err();
        match self.sender.send(batch) {
            Ok(()) if !last => ControlFlow::Continue(()),
            _ => ControlFlow::Break(()),
        }
    }

    fn count(&mut self, kind: &str, count: u64) {
        *self.counts.entry(kind.to_string()).or_default() += count;
    }
}

/// Takes a sample out of the buffer, the first one where nothing is shuffled.
fn drawn(buffer: &mut Vec<Sample>, rng: &mut ChaCha8Rng, shuffle: usize) -> Sample {
    if shuffle == 0 { buffer.remove(0) } else { buffer.swap_remove(below(rng, buffer.len())) }
}

/// A generator for one purpose.
fn generator(seed: u64, purpose: [u64; 3]) -> ChaCha8Rng {
    let mut bytes = [0; 32];
    for (place, word) in bytes.chunks_exact_mut(8).zip([seed, purpose[0], purpose[1], purpose[2]]) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    ChaCha8Rng::from_seed(bytes)
}

/// A number below `count`, which is small beside 2^64: the bias of the remainder does not matter.
fn below(rng: &mut ChaCha8Rng, count: usize) -> usize {
    (rng.next_u64() % count as u64) as usize
}

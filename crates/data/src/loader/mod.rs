//! Batches from shards, on threads, in an order that depends on the options and on nothing else.
//!
//! Each worker is an endless stream of its own: epoch after epoch it goes through its shards, shuffles samples in a
//! buffer and decodes them; samples are taken from the workers in turn. So a stream can be continued exactly: its
//! [`Position`] says how far each worker has come, and a worker that starts there reads its epoch again up to that
//! place without decoding anything.
//!
//! Each worker begins its next epoch when it is through with its shards, whether or not the others are: all batches are
//! full, no sample is lost, nobody waits for anybody. No shard belongs to two workers in one epoch, unless it is drawn
//! with replacement.
//!
//! Several processes share a stream by taking its samples in turn, the first sample of a batch to the first process. So
//! which samples a step of all processes sees, and where the stream stands after it, does not depend on how many there
//! are. Drawn for 4 workers and 2 processes of 3 samples each:
//!
//! ```text
//! worker   0 1 2 3 0 1 | 2 3 0 1 2 3 |
//! process  0 1 0 1 0 1 | 0 1 0 1 0 1 |
//! ```
//!
//! Here each process runs the two workers whose samples it takes. Where the processes' number does not divide the
//! workers', several run the same worker, and leave out what is not theirs after decoding it.
//!
//! Exactness ends where shards change: one that cannot be reached now and could before has no samples.

mod position;
#[cfg(feature = "remote")]
mod remote;
mod shuffle;
mod source;
mod worker;

pub use position::{Position, WorkerPosition};
pub use source::find_shards;
pub(crate) use source::{open, shown};

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use rand_chacha::ChaCha8Rng;

use crate::{DataError, Rejected, Sample};

/// Which samples come, and in which order.
#[derive(Clone, Debug, PartialEq)]
pub struct LoaderOptions {
    /// Shards: paths or URLs.
    pub shards: Vec<String>,
    /// Decides every random choice.
    pub seed: u64,
    /// Draw shards with replacement instead of going through all of them once an epoch.
    pub resampled: bool,
    /// Samples that make an epoch, rounded up to as many of each worker; shards come again until there are as many.
    /// `None`: an epoch is each shard once or, drawn with replacement, as many draws.
    pub epoch_samples: Option<usize>,
    /// Samples among which the next one is drawn; 0 keeps the order of samples and shards.
    pub shuffle: usize,
    /// How many of them must be there before the first is drawn.
    pub initial: usize,
    /// Which process this is.
    pub rank: usize,
    /// How many processes share the stream.
    pub world_size: usize,
    /// Threads that read and decode, in all processes together; fewer where there are not as many shards.
    pub workers: usize,
    /// Samples in a batch of this process.
    pub batch_size: usize,
    /// Batches' worth of samples that may be ready.
    pub prefetch: usize,
    /// Samples in a row that may be unusable.
    pub max_consecutive_failures: usize,
}

impl Default for LoaderOptions {
    fn default() -> Self {
        Self {
            shards: Vec::new(),
            seed: 0,
            resampled: false,
            epoch_samples: None,
            shuffle: 1000,
            initial: 100,
            rank: 0,
            world_size: 1,
            workers: 1,
            batch_size: 1,
            prefetch: 2,
            max_consecutive_failures: 1000,
        }
    }
}

impl LoaderOptions {
    /// How many workers there can be.
    fn check(&self) -> Result<usize, DataError> {
        let wrong = |why: String| Err(DataError::Shards(why));
        let (shards, processes) = (self.shards.len(), self.world_size);
        if self.rank >= processes {
            return wrong(format!("process {} of {processes}: the first is 0", self.rank));
        }
        if shards == 0 {
            return wrong("there are no shards".into());
        }
        if self.batch_size == 0 || self.epoch_samples == Some(0) {
            return wrong("a batch or an epoch of no samples".into());
        }
        Ok(if self.resampled { self.workers.max(1) } else { self.workers.clamp(1, shards) })
    }
}

/// Makes something of a sample. The generator belongs to this sample: what it gives depends on the seed and the
/// sample's place, not on time.
pub type Decode<T> = Arc<dyn Fn(Sample, &mut ChaCha8Rng) -> Result<T, Rejected> + Send + Sync>;

/// A stream of batches. Dropping it stops its threads.
pub struct Loader<T> {
    /// Those that this process runs.
    workers: Vec<Option<Worker<T>>>,
    position: Position,
    rank: usize,
    world_size: usize,
    batch_size: usize,
    /// Whether this process counts what its workers meet: the first of those that run them.
    counts: bool,
    stop: Arc<AtomicBool>,
}

struct Worker<T> {
    samples: Receiver<Result<Delivered<T>, DataError>>,
    thread: JoinHandle<()>,
}

/// What a worker hands over.
struct Delivered<T> {
    item: T,
    position: WorkerPosition,
    counts: BTreeMap<String, u64>,
}

/// What all workers know.
struct Shared<T> {
    options: LoaderOptions,
    workers: usize,
    decode: Decode<T>,
    stop: Arc<AtomicBool>,
    /// What was left out and has had its warning.
    warned: Mutex<BTreeSet<&'static str>>,
}

impl<T> Shared<T> {
    /// Samples that a worker delivers in an epoch; `None` where its shards decide.
    fn epoch_share(&self) -> Option<u64> {
        Some(self.options.epoch_samples?.div_ceil(self.workers) as u64)
    }
}

impl<T: Send + 'static> Loader<T> {
    /// Starts reading, from the beginning or after a position of a stream with the same options, whatever the number of
    /// processes was.
    ///
    /// # Errors
    /// [`DataError::Shards`] where there are no shards, where options contradict each other, or the position is another
    /// stream's.
    pub fn start(options: LoaderOptions, decode: Decode<T>, after: Option<Position>) -> Result<Self, DataError> {
        let workers = options.check()?;
        let mut position = after.unwrap_or_else(|| Position::start(workers));
        position.check(workers)?;
        let LoaderOptions { rank, world_size, batch_size, prefetch, .. } = options;
        if rank > 0 {
            // Counts of all processes add up: those before the start are the first one's.
            position.counts.clear();
        }
        let stop = Arc::new(AtomicBool::new(false));
        let shared = Arc::new(Shared { options, workers, decode, stop: stop.clone(), warned: Mutex::default() });
        // Samples come from the workers in turn and go to the processes in turn: this process meets the workers whose
        // distance from the next one leaves its rank, when divided by this.
        let step = greatest_common_divisor(workers, world_size);
        let ready = (prefetch * batch_size).div_ceil(workers / step);
        let mut loader =
            Self { workers: Vec::new(), position, rank, world_size, batch_size, counts: rank < step, stop };
        for (index, &after) in loader.position.workers.iter().enumerate() {
            if (index + workers - loader.position.next) % step != rank % step {
                loader.workers.push(None);
                continue;
            }
            // One more is in the worker's hand.
            let (sender, samples) = sync_channel(ready.saturating_sub(1));
            let stream = worker::Stream::new(shared.clone(), index, after, sender);
            let thread = std::thread::Builder::new().name(format!("loader-{index}")).spawn(move || stream.run());
            let thread = thread.map_err(|e| DataError::Shards(format!("cannot start a loader thread: {e}")))?;
            loader.workers.push(Some(Worker { samples, thread }));
        }
        Ok(loader)
    }

    /// The next batch.
    ///
    /// # Errors
    /// [`DataError::TooManyFailures`] after too many unusable samples in a row, [`DataError::Panicked`] if decoding
    /// panicked, [`DataError::Shards`] if a hundred readings of shards in a row bring nothing. There is nothing after an error.
    pub fn next_batch(&mut self) -> Result<Vec<T>, DataError> {
        let died = |_| DataError::Shards("a loader thread ended before its time".into());
        let mut items = Vec::with_capacity(self.batch_size);
        for place in 0..self.batch_size * self.world_size {
            let index = self.position.next;
            self.position.next = (index + 1) % self.workers.len();
            let Some(worker) = &self.workers[index] else { continue };
            let delivered = worker.samples.recv().map_err(died)??;
            self.position.workers[index] = delivered.position;
            if place % self.world_size == self.rank {
                items.push(delivered.item);
            }
            if self.counts {
                for (kind, count) in delivered.counts {
                    *self.position.counts.entry(kind).or_default() += count;
                }
            }
        }
        Ok(items)
    }

    /// Where the stream stands after the batches that were taken, as far as this process knows: of workers that it does
    /// not run it says where they started, and it counts what its own met ([`Position::merge`]).
    pub fn position(&self) -> &Position {
        &self.position
    }
}

fn greatest_common_divisor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

impl<T> Drop for Loader<T> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for Worker { samples, thread } in self.workers.drain(..).flatten() {
            // One that waits for its sample to be taken gives up now.
            drop(samples);
            // It has nothing to say: what went wrong was sent.
            thread.join().ok();
        }
    }
}

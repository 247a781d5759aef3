//! Batches from shards, on threads, in an order that depends on the options and on nothing else.
//!
//! Each worker is an endless stream of its own: epoch after epoch it goes through its shards, shuffles samples in a
//! buffer, decodes them and fills batches; batches are taken from the workers in turn. So a stream can be continued
//! exactly: its [`Position`] says how far each worker has come, and a worker that starts there reads its epoch again
//! up to that place without decoding anything.
//!
//! Each worker begins its next epoch when it is through with its shards, whether or not the others are, and fills the
//! batch that it has begun with the first samples of that epoch: all batches are full, no sample is lost, nobody waits
//! for anybody. No shard belongs to two workers or processes in one epoch, unless it is drawn with replacement.
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
    /// Samples that make an epoch, over all processes and rounded up to whole batches of each worker; shards come again
    /// until there are as many. `None`: an epoch is each shard once or, drawn with replacement, as many draws.
    pub epoch_samples: Option<usize>,
    /// Samples among which the next one is drawn; 0 keeps the order of samples and shards.
    pub shuffle: usize,
    /// How many of them must be there before the first is drawn.
    pub initial: usize,
    /// Which process this is.
    pub rank: usize,
    /// How many processes share the shards.
    pub world_size: usize,
    /// Threads that read and decode; fewer where there are not as many shards.
    pub workers: usize,
    /// Samples in a batch.
    pub batch_size: usize,
    /// Batches that a worker may have ready.
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
        if shards == 0 || !self.resampled && shards < processes {
            return wrong(format!("{shards} shard(s) for {processes} process(es): every process needs one of its own"));
        }
        if self.batch_size == 0 || self.epoch_samples == Some(0) {
            return wrong("a batch or an epoch of no samples".into());
        }
        Ok(if self.resampled { self.workers.max(1) } else { self.workers.clamp(1, shards / processes) })
    }
}

/// Makes something of a sample. The generator belongs to this sample: what it gives depends on the seed and the
/// sample's place, not on time.
pub type Decode<T> = Arc<dyn Fn(Sample, &mut ChaCha8Rng) -> Result<T, Rejected> + Send + Sync>;

/// A stream of batches. Dropping it stops its threads.
pub struct Loader<T> {
    workers: Vec<Worker<T>>,
    position: Position,
    stop: Arc<AtomicBool>,
}

struct Worker<T> {
    batches: Receiver<Result<WorkerBatch<T>, DataError>>,
    thread: JoinHandle<()>,
}

/// What a worker hands over.
struct WorkerBatch<T> {
    items: Vec<T>,
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
    /// Samples that a worker delivers in an epoch, rounded as upstream does (`train/data.py`, `num_worker_batches`);
    /// `None` where its shards decide.
    fn epoch_share(&self) -> Option<u64> {
        let LoaderOptions { batch_size, world_size, .. } = self.options;
        let batches = self.options.epoch_samples?.div_ceil(batch_size.saturating_mul(world_size));
        Some(batches.div_ceil(self.workers).saturating_mul(batch_size) as u64)
    }
}

impl<T: Send + 'static> Loader<T> {
    /// Starts reading, from the beginning or after a position of a stream with the same options.
    ///
    /// # Errors
    /// [`DataError::Shards`] where there are fewer shards than processes, unless they are drawn with replacement, where
    /// options contradict each other, or the position is another stream's.
    pub fn start(options: LoaderOptions, decode: Decode<T>, after: Option<Position>) -> Result<Self, DataError> {
        let workers = options.check()?;
        let position = after.unwrap_or_else(|| Position::start(workers));
        position.check(workers)?;
        let stop = Arc::new(AtomicBool::new(false));
        let shared = Arc::new(Shared { options, workers, decode, stop: stop.clone(), warned: Mutex::default() });
        let mut loader = Self { workers: Vec::new(), position, stop };
        for (index, &after) in loader.position.workers.iter().enumerate() {
            // One more is in the worker's hand.
            let (sender, batches) = sync_channel(shared.options.prefetch.saturating_sub(1));
            let stream = worker::Stream::new(shared.clone(), index, after, sender);
            let thread = std::thread::Builder::new().name(format!("loader-{index}")).spawn(move || stream.run());
            let thread = thread.map_err(|e| DataError::Shards(format!("cannot start a loader thread: {e}")))?;
            loader.workers.push(Worker { batches, thread });
        }
        Ok(loader)
    }

    /// The next batch.
    ///
    /// # Errors
    /// [`DataError::TooManyFailures`] after too many unusable samples in a row, [`DataError::Panicked`] if decoding
    /// panicked, [`DataError::Shards`] if a hundred shards in a row bring nothing. There is nothing after an error.
    pub fn next_batch(&mut self) -> Result<Vec<T>, DataError> {
        let index = self.position.next;
        let died = |_| DataError::Shards("a loader thread ended before its time".into());
        let batch = self.workers[index].batches.recv().map_err(died)??;
        self.position.workers[index] = batch.position;
        self.position.next = (index + 1) % self.workers.len();
        for (kind, count) in batch.counts {
            *self.position.counts.entry(kind).or_default() += count;
        }
        Ok(batch.items)
    }

    /// Where the stream stands after the batches that were taken.
    pub fn position(&self) -> &Position {
        &self.position
    }
}

impl<T> Drop for Loader<T> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for Worker { batches, thread } in self.workers.drain(..) {
            // One that waits for its batch to be taken gives up now.
            drop(batches);
            // It has nothing to say: what went wrong was sent.
            thread.join().ok();
        }
    }
}

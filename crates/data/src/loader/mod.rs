//! Batches from shards, on threads, in an order that depends on the options and on nothing else.
//!
//! Each worker is an endless stream of its own: epoch after epoch it goes through its shards, shuffles samples in a
//! buffer, decodes them and fills batches; batches are taken from the workers in turn. So a stream can be continued
//! exactly: its [`Position`] says how far each worker has come, and a worker that starts there reads its epoch again
//! up to that place without decoding anything.

mod source;
mod worker;

pub use source::find_shards;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;

use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

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
    /// Samples among which the next one is drawn; 0 keeps the order of the shards.
    pub shuffle: usize,
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
            shuffle: 1000,
            rank: 0,
            world_size: 1,
            workers: 1,
            batch_size: 1,
            prefetch: 2,
            max_consecutive_failures: 1000,
        }
    }
}

/// How far a worker has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerPosition {
    /// The epoch that it is in, from 0.
    pub epoch: u64,
    /// Samples of that epoch that were used or left out.
    pub samples: u64,
}

/// Where a stream stands after a batch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Each worker, after its last batch that was taken.
    pub workers: Vec<WorkerPosition>,
    /// The worker whose batch comes next.
    pub next: usize,
    /// Samples that were delivered, as `delivered`, and those that were left out, by kind.
    pub counts: BTreeMap<String, u64>,
}

/// Makes something of a sample. The generator belongs to this sample: what it gives depends on the seed and the
/// sample's place, not on time.
pub type Decode<T> = Arc<dyn Fn(Sample, &mut ChaCha8Rng) -> Result<T, Rejected> + Send + Sync>;

/// A stream of batches.
pub struct Loader<T> {
    workers: Vec<Worker<T>>,
    position: Position,
}

struct Worker<T> {
    batches: Option<Receiver<Result<WorkerBatch<T>, DataError>>>,
    thread: Option<JoinHandle<()>>,
}

/// What a worker hands over.
struct WorkerBatch<T> {
    items: Vec<T>,
    position: WorkerPosition,
    counts: BTreeMap<String, u64>,
}

impl<T: Send + 'static> Loader<T> {
    /// Starts reading, from the beginning or after a position of a stream with the same options.
    ///
    /// # Errors
    /// [`DataError::Shards`] where there are fewer shards than processes, or the position is another stream's.
    pub fn start(options: LoaderOptions, decode: Decode<T>, after: Option<Position>) -> Result<Self, DataError> {
        let shares = options.shards.len() / options.world_size.max(1);
        if shares == 0 {
            let (shards, processes) = (options.shards.len(), options.world_size);
            return Err(DataError::Shards(format!(
                "{shards} shard(s) for {processes} process(es): every process needs one of its own"
            )));
        }
        if options.batch_size == 0 {
            return Err(DataError::Shards("a batch of no samples".into()));
        }
        let count = options.workers.clamp(1, shares);
        let fresh = Position { workers: vec![WorkerPosition::default(); count], ..Position::default() };
        let position = after.unwrap_or(fresh);
        if position.workers.len() != count || position.next >= count {
            return Err(DataError::Shards(format!(
                "the saved position is of a stream with {} worker(s), this one has {count}: resume with the same \
                 shards and workers",
                position.workers.len()
            )));
        }
        let options = Arc::new(options);
        let start = |(index, &after): (usize, &WorkerPosition)| {
            let (sender, batches) = sync_channel(options.prefetch.max(1));
            let (options, decode) = (options.clone(), decode.clone());
            let thread = std::thread::Builder::new().name(format!("loader-{index}")).spawn(move || {
                worker::run(&options, index, count, &decode, after, &sender);
            });
            let thread = thread.map_err(|e| DataError::Shards(format!("cannot start a loader thread: {e}")))?;
            Ok(Worker { batches: Some(batches), thread: Some(thread) })
        };
        let workers = position.workers.iter().enumerate().map(start).collect::<Result<_, DataError>>()?;
        Ok(Self { workers, position })
    }

    /// The next batch.
    ///
    /// # Errors
    /// [`DataError::Shards`] after too many unusable samples in a row, or if decoding panicked.
    pub fn next_batch(&mut self) -> Result<Vec<T>, DataError> {
        let index = self.position.next;
        let died = || DataError::Shards("a loader thread ended before its time".into());
        let batches = self.workers[index].batches.as_ref().ok_or_else(died)?;
        let batch = batches.recv().map_err(|_| died())??;
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
        // A worker stops when nobody takes its next batch.
        self.workers.iter_mut().for_each(|worker| worker.batches = None);
        for worker in &mut self.workers {
            if let Some(thread) = worker.thread.take() {
                // It has nothing to say: what went wrong was sent.
                thread.join().ok();
            }
        }
    }
}

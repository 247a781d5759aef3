//! Where a stream stands.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::DataError;

/// How far a worker has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct WorkerPosition {
    /// The epoch that it is in, from 0.
    pub epoch: u64,
    /// Samples of that epoch that were used or left out.
    pub samples: u64,
    /// Those of them that were used.
    pub delivered: u64,
}

/// Where a stream stands after a batch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Each worker, after its last sample that was taken.
    pub workers: Vec<WorkerPosition>,
    /// The worker whose sample comes next.
    pub next: usize,
    /// Samples that were delivered, as `delivered`, and what was left out, by kind. What a worker meets counts from
    /// its next sample on.
    pub counts: BTreeMap<String, u64>,
}

impl Position {
    /// The beginning of a stream of so many workers.
    pub(super) fn start(workers: usize) -> Self {
        Self { workers: vec![WorkerPosition::default(); workers], ..Self::default() }
    }

    /// Where a stream stands of which each process knows its own workers; all have taken as many batches.
    pub fn merge(processes: impl IntoIterator<Item = Self>) -> Self {
        let mut processes = processes.into_iter();
        let mut merged = processes.next().unwrap_or_default();
        for process in processes {
            for (worker, other) in merged.workers.iter_mut().zip(process.workers) {
                // Whoever does not run a worker knows where it started.
                *worker = other.max(*worker);
            }
            for (kind, count) in process.counts {
                *merged.counts.entry(kind).or_default() += count;
            }
        }
        merged
    }

    /// Checks that the position can be one of a stream of so many workers.
    pub(super) fn check(&self, workers: usize) -> Result<(), DataError> {
        if self.workers.len() == workers && self.next < workers {
            return Ok(());
        }
        Err(DataError::Shards(format!(
            "the saved position is of a stream with {} worker(s), this one has {workers}: resume with the same shards \
             and workers",
            self.workers.len()
        )))
    }
}

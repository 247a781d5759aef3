//! A training run: what `flamingo train` does, without its command line.
//!
//! A [`Recipe`] says what trains on what. [`Run::open`] begins a run or goes on where its last checkpoint was written;
//! [`Run::step`] does one optimizer step. Everything that decides the next step is in a checkpoint: a run that was
//! killed and started again gives the same numbers, bit for bit, as one that was not.

mod batch;
mod checkpoint;
mod error;
mod export;
mod lock;
mod metrics;
mod recipe;
mod run;
mod shards;

pub use error::RunError;
pub use export::export;
pub use metrics::{Metrics, Together};
pub use recipe::{Objective, OptimizerKind, Recipe, RunPrecision};
pub use run::{Run, Step};

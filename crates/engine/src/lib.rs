//! The one place that names backends: a model on a device, behind one object-safe trait.
//!
//! Every backend compiles the whole model again, which takes minutes. So this is the only crate that
//! instantiates it: [`open`] gives a boxed [`Engine`], and the binary, the tests, the benches and xtask
//! call that. What crosses the boundary is plain host data ([`Array`], [`Text`], token ids).

// A build without a backend, as `cargo check -p flamingo-zoo` makes it, opens no device and uses little of this.
#![cfg_attr(
    not(any(feature = "flex", feature = "ndarray", feature = "wgpu", feature = "cuda")),
    allow(dead_code, unused_imports, unused_variables)
)]

mod array;
mod batch;
mod contrastive;
mod device;
mod engine;
mod features;
mod load;
mod machine;
mod session;
mod training;

pub use array::{Array, Pixels};
pub use batch::{Batch, Seat, Then};
pub use contrastive::ContrastiveOptions;
pub use device::{
    Device, Found, Weights, compiled, open, open_contrastive, open_training, open_training_weights, open_weights,
    probe, survey,
};
pub use engine::{Engine, Forward, Timings};
pub use flamingo_model::{IGNORE, Text};
pub use flamingo_train::{AdamW, Muon, Optimizer, Parameter, Part, Schedule};
/// What weights are on a device.
pub use flamingo_weights::{Dtype, Precision};
pub use machine::Machine;
pub use session::{Next, Session, SessionOptions};
pub use training::{Coming, Ready, Training, TrainingOptions};

/// Why a model cannot be opened or run.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The device is not there, not compiled in, or failed.
    #[error("{0}")]
    Device(String),
    /// The weights do not fit the model.
    #[error("{0}")]
    Weights(String),
    /// What was asked for cannot be computed.
    #[error("{0}")]
    Input(String),
}

//! What a training run will take, before it is begun: memory of a device, time of a step, days and cost.
//!
//! The training that is planned is this project's own: data parallel, with a whole model on each device. What is frozen lies in the
//! run's format, what trains in f32; each device computes the gradients of its rows; the numbers that train are cut into
//! equal parts, each with one device as its owner, which gets all its gradients, has its optimizer state, updates it and sends it
//! back.
//!
//! Memory is counted tensor by tensor as the code of `flamingo-model`, `flamingo-kernels` and `flamingo-train` keeps them
//! ([`activations`] says what, [`memory`] when), and was compared with the peaks of real runs (`benches/plan.md`). Time is
//! operations over what a device does of its peak, and bytes over bandwidths ([`time`]). Whatever is taken for granted is
//! handed out with the numbers, with where it is from ([`Assumption`]).

pub mod activations;
mod assumptions;
mod error;
mod hardware;
pub mod memory;
mod paper;
mod plan;
mod run;
pub mod time;
mod weights;

pub use assumptions::{Assumption, Source};
pub use error::PlanError;
pub use hardware::{Bytes, Device, Interconnect, NVLINK};
pub use memory::Memory;
pub use paper::{DOCUMENTS, PAIRS, Published};
pub use plan::{Plan, Way, plan};
pub use run::{Precision, Run, Stream};
pub use time::Step;
pub use weights::Weights;

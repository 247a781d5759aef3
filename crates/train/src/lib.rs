//! Training a Flamingo as upstream's `train/train_utils.py` does: which parameters train, their gradients, AdamW
//! or Muon, learning rates. Generic over the backend; knows neither files nor where batches come from.
//!
//! One step, drawn for two streams of batches and two micro-steps:
//!
//! ```text
//! backward(pairs) · backward(documents) · clip · backward(pairs) · backward(documents) · clip · update
//! ```

mod adamw;
mod layers;
mod muon;
mod parts;
mod schedule;
mod trainer;

pub use adamw::AdamW;
pub use layers::{Keep, Pictures, Stage};
pub use muon::Muon;
pub use parts::Part;
pub use schedule::Schedule;
pub use trainer::{Named, Optimizer, Parameter, Plan, Trainer};

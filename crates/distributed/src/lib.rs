//! Workers that train together: how they find each other, what they tell each other, and what happens when one is gone.
//!
//! A *worker* has a device and a copy of the model, and a *rank* among all of them. A *process* has one worker or several, on
//! threads. Processes find each other through process 0 ([`Place`]), which from then on also passes small values around
//! and notices who is gone; tensors go from process to process directly.
//!
//! [`Group`] is a worker's view of the others: [`Group::gather`] for small values, [`Group::reduce`] (which MPI calls
//! reduce-scatter) and [`Group::share`] (all-gather) for tensors. All give the same numbers each time, bit for bit. A gathering stands between any two calls for
//! tensors, so that no tensor is asked for whose making waits for the asker.

mod control;
mod error;
mod group;
mod place;
mod post;

pub use error::GroupError;
pub use group::{Alarm, Group, Patience, Readers, Watch};
pub use place::{Place, Said};

//! Development commands of the workspace: converting weights, verifying against recordings.
//!
//! A library too, so that tests and benches use the very code that the commands run.

pub mod convert;
pub mod golden;
pub mod gpu_check;
pub mod hub;
pub mod quality;
pub mod random;
pub mod scale;
pub mod tiny;
pub mod verify;
#[cfg(feature = "web")]
pub mod web;

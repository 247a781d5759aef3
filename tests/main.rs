//! Integration tests: one binary, so that the model is linked once.

mod arrows;
mod batch;
mod cli;
mod data;
mod distributed;
mod ergonomics;
mod eval;
mod experiment;
mod gpu_check;
mod hub;
mod layout;
mod plan;
mod recordings;
mod serve;
mod tiny;
mod train;
mod training;
mod verify;

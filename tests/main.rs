//! Integration tests: one binary, so that the model is linked once.

mod arrows;
mod cli;
mod data;
mod hub;
mod layout;
mod training;
mod verify;

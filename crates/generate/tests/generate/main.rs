//! Tests of searches on toy models.

mod properties;
mod toy;
mod transformers;

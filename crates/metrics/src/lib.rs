//! The metrics of few-shot evaluation, equal to their reference implementations.

pub mod auc;
pub mod caption;
pub mod interval;
pub mod vqa;

//! Captions: how a model's text becomes one, how it is tokenised, how it is scored.

mod cider;
pub mod ptb;

pub use cider::{Cider, cider, cider_tokenized};

/// The caption in what a model generated: everything before the first `Output`, with which the next example of a
/// few-shot prompt would begin, without quotation marks.
pub fn postprocess(generated: &str) -> String {
    let caption = generated.split_once("Output").map_or(generated, |(caption, _)| caption);
    caption.replace('"', "")
}

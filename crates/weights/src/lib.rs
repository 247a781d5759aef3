//! Names and bytes of checkpoints: readers, name tables, conversion and its report.
//!
//! [`convert`] turns CLIP's weights, a language model and an OpenFlamingo checkpoint, in any layout that they
//! are published in, into one model folder; [`ModelFolder`] opens that folder. What a folder holds is said by
//! [`layout`]. Nothing here knows a tensor library: a conversion is names, shapes and ranges of bytes.

mod case;
mod convert;
mod dtype;
mod error;
mod fingerprint;
mod folder;
mod initial;
mod layout;
mod precision;
mod quantise;
pub mod readers;
mod recipe;
mod save;
mod tables;
mod upstream;
mod write;

pub use case::{check_clip, check_language_model, config_from_parts};
pub use convert::{Format, Inputs, Progress, Report, convert};
pub use dtype::{Dtype, SourceDtype};
pub use error::WeightsError;
pub use fingerprint::fingerprint;
pub use folder::{Mapped, ModelFolder, QuantisedView, TensorView};
pub use initial::initial;
pub use layout::{TensorSpec, layout};
pub use precision::Precision;
pub use quantise::quantise;
pub use save::{NewFolder, save_checkpoint};
pub use upstream::{UpstreamTensors, checkpoint_names, embedding_name, upstream_tensors};
pub use write::replaceable;

//! The mathematics of OpenFlamingo, generic over the backend: no files, no strings, no threads.
//!
//! [`Flamingo::forward`] is the architecture in one loop; every other file is one of its parts. Module
//! paths are the tensor names of a model folder (`decoder.blocks.0.attention.qkv.weight`), and linear
//! weights are kept `[d_out, d_in]` as PyTorch keeps them.
//!
//! Numbers that decide what a token may look at (padding, positions, which image) are small and known
//! on the host: they arrive as plain vectors in [`Text`] and become masks here, once a forward pass.

mod attention;
mod cache;
mod contrastive;
mod cross_attention;
mod decoder;
mod embedding;
mod flamingo;
mod linear;
mod loss;
mod media;
mod norm;
mod resampler;
mod text;
mod vision;
mod weight;

pub use cache::Cache;
pub use contrastive::Contrastive;
pub use cross_attention::{GatedCrossAttention, Look, MaskedCrossAttention};
pub use decoder::{Block, Decoder};
pub use embedding::TokenEmbedding;
pub use flamingo::{Conditions, Flamingo, Observe, Point, Turn, ignore};
pub use linear::{FeedForward, Linear};
pub use loss::{IGNORE, next_token_loss, next_token_loss_of_hidden};
pub use media::{KeysValues, Media, Sight, text_time};
pub use norm::Norm;
pub use resampler::Resampler;
pub use text::Text;
pub use vision::VisionTransformer;
pub use weight::{Init, Path, Piece, QuantisedWeight, Weight};

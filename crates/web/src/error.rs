//! What can go wrong.

use flamingo_data::DataError;
use flamingo_engine::EngineError;
use flamingo_generate::{ConfigError, InputError};
use flamingo_weights::WeightsError;
use flamingo_zoo::ZooError;

/// Why a model cannot be opened or a request not be answered.
#[derive(Debug, thiserror::Error)]
pub enum WebError {
    /// A request is no JSON, or has other fields than it should.
    #[error("the request cannot be read: {0}")]
    Json(#[from] serde_json::Error),
    /// What a request asks for makes no sense.
    #[error("{0}")]
    Request(String),
    /// A picture or a tokenizer is unusable.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The weights are unusable.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The model cannot be opened, or pictures and text do not fit together.
    #[error(transparent)]
    Zoo(#[from] ZooError),
    /// The model failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The settings of a continuation make no sense.
    #[error(transparent)]
    Settings(#[from] ConfigError),
    /// No token can be chosen.
    #[error(transparent)]
    Token(#[from] InputError),
}

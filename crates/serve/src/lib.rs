//! A model behind HTTP.
//!
//! Requests are read, checked and turned into token ids and prepared pictures by as many tasks as there are connections; the
//! model itself belongs to one thread (`scheduler.rs`), which continues all prompts together. Between the two is a queue of a
//! fixed length: what does not fit is refused at once.

mod api;
mod app;
mod assets;
mod body;
mod bounded;
mod error;
mod fetch;
mod job;
mod listen;
mod metrics;
mod openapi;
mod pictures;
mod routes;
mod scheduler;
mod template;

pub use fetch::Remote;
pub use listen::{Server, signals};
pub use openapi::document;
pub use template::{DEFAULT as DEFAULT_TEMPLATE, Template};

use std::time::Duration;

use flamingo_config::ModelConfig;
use flamingo_zoo::ZooError;

/// Limits of a server, and what it adds to the model.
#[derive(Clone, Debug)]
pub struct Options {
    /// The model's name in requests and answers.
    pub name: String,
    /// How the messages of a chat become a prompt.
    pub template: Template,
    /// Texts that are continued at the same time.
    pub max_batch: usize,
    /// Requests that may wait for the model; more are refused.
    pub max_queue: usize,
    /// Tokens of a prompt and its continuation together; without it, as many as the model was trained with.
    pub max_context: Option<usize>,
    /// Pictures of a request.
    pub max_images: usize,
    /// Pixels of a picture.
    pub max_pixels: u64,
    /// Bytes of a request's body.
    pub max_body: usize,
    /// Bytes of the bodies of all requests that are being read.
    pub max_bodies: usize,
    /// Connections at the same time; more wait to be accepted.
    pub max_connections: usize,
    /// Memory for pictures that were seen, and as much for beginnings of prompts that were read.
    pub cache_bytes: usize,
    /// How long a request may take, its wait included.
    pub timeout: Duration,
    /// How long a client may take to send a request's head, and again its body.
    pub read_timeout: Duration,
    /// Where pictures may be fetched from; nowhere, without it.
    pub remote: Option<Remote>,
}

impl Options {
    /// Pictures of a prompt: as many as the server takes, or the model has places for.
    pub(crate) fn max_images_of(&self, config: &ModelConfig) -> usize {
        config.resampler.max_num_media.map_or(self.max_images, |most| most.min(self.max_images))
    }

    /// Tokens of a prompt and what follows it.
    pub(crate) fn max_context_of(&self, config: &ModelConfig) -> usize {
        let asked = self.max_context.unwrap_or_else(|| config.max_tokens());
        asked.min(config.most_tokens().unwrap_or(usize::MAX))
    }
}

/// Why a server does not start or ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address cannot be listened at.
    #[error("cannot listen at {address}: choose another --host or --port")]
    Listen {
        /// Where.
        address: String,
        /// Why.
        source: std::io::Error,
    },
    /// The template is no template.
    #[error("the chat template cannot be used: {0}")]
    Template(String),
    /// The model cannot be used.
    #[error(transparent)]
    Model(#[from] ZooError),
    /// A thread or the runtime cannot be had.
    #[error("cannot start a thread or the runtime")]
    Start(#[from] std::io::Error),
}

//! What all requests share: everything but the model, which belongs to its thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use flamingo_config::ModelConfig;
use flamingo_data::{IMAGE, Tokenizer};
use flamingo_generate::GenerationConfig;
use tokio::sync::mpsc;
use tokio::task::{coop::consume_budget, spawn_blocking};

use crate::Options;
use crate::api::more::ModelInfo;
use crate::api::prompt::Part;
use crate::body::Bodies;
use crate::error::Refusal;
use crate::job::{Job, Prompt, Work};
use crate::metrics::Metrics;
use crate::pictures::Pictures;

/// Bytes of a text whose tokens are found about as quickly as another thread is woken.
const SHORT: usize = 256;

/// No vocabulary has longer tokens.
const MAX_TOKEN_BYTES: usize = 256;

pub(crate) struct App {
    pub(crate) options: Options,
    pub(crate) config: ModelConfig,
    /// What is told about the model.
    pub(crate) info: ModelInfo,
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) pictures: Arc<Pictures>,
    pub(crate) bodies: Bodies,
    pub(crate) jobs: mpsc::Sender<Job>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) closing: AtomicBool,
    pub(crate) answers: AtomicU64,
}

impl App {
    /// Whether requests are taken.
    pub(crate) fn ready(&self) -> bool {
        !self.closing.load(Ordering::Relaxed) && !self.jobs.is_closed()
    }

    /// Refuses requests for other models.
    pub(crate) fn check_model(&self, model: Option<&str>) -> Result<(), Refusal> {
        match model {
            Some(model) if model != self.options.name => {
                let message = format!("the model {model:?} is not here: this server has {:?}", self.options.name);
                let mut refusal = Refusal::status(axum::http::StatusCode::NOT_FOUND, message).coded("model_not_found");
                refusal.detail.param = Some("model".into());
                Err(refusal)
            }
            _ => Ok(()),
        }
    }

    /// Greedy settings of the model.
    pub(crate) fn settings(&self) -> GenerationConfig {
        let tokens = &self.config.tokens;
        GenerationConfig::greedy(1, tokens.endofchunk, tokens.generation_pad)
    }

    /// A prompt of parts, tokenised, its pictures prepared. `more` tokens will follow.
    pub(crate) async fn prompt(&self, parts: Vec<Part>, more: usize) -> Result<Prompt, Refusal> {
        let (text, urls) = self.joined(parts)?;
        self.prompt_of(text, urls, more).await
    }

    /// Text with a mark for each picture, and the pictures' addresses.
    pub(crate) fn joined(&self, parts: Vec<Part>) -> Result<(String, Vec<String>), Refusal> {
        let (mut text, mut urls) = (String::new(), Vec::new());
        for part in parts {
            match part {
                Part::Text { text: own } => {
                    check_text(&own)?;
                    text += &own;
                }
                Part::ImageUrl { image_url } => {
                    text += IMAGE;
                    urls.push(image_url.url);
                }
            }
        }
        self.check_images(urls.len())?;
        Ok((text, urls))
    }

    pub(crate) fn check_images(&self, images: usize) -> Result<(), Refusal> {
        let limit = self.max_images();
        if images > limit {
            return Err(Refusal::invalid(format!("{images} pictures: a request has at most {limit} here"))
                .coded("too_many_images"));
        }
        Ok(())
    }

    /// Pictures of a prompt: as many as the server takes, or the model has places for.
    pub(crate) fn max_images(&self) -> usize {
        self.options.max_images_of(&self.config)
    }

    /// [`App::prompt`] of a text with a mark for each picture.
    pub(crate) async fn prompt_of(&self, text: String, urls: Vec<String>, more: usize) -> Result<Prompt, Refusal> {
        let ids = self.prompt_tokens(text.clone(), urls.len()).await?;
        self.check_length(ids.len(), more)?;
        let images = self.pictures.images(urls).await?;
        Ok(Prompt { text, ids, images })
    }

    /// Token ids of a prompt with so many pictures.
    pub(crate) async fn prompt_tokens(&self, text: String, pictures: usize) -> Result<Vec<u32>, Refusal> {
        let ids = self.tokens(text, true).await?;
        if ids.is_empty() {
            return Err(Refusal::invalid("the prompt is empty: give a picture or a text"));
        }
        // Marks can also come about where texts meet, or by a template.
        let marks = ids.iter().filter(|&&id| id == self.config.tokens.image).count();
        if marks != pictures {
            return Err(Refusal::invalid(format!("the prompt has {marks} places for {pictures} pictures")));
        }
        Ok(ids)
    }

    /// Refuses a text that is too long whatever its tokens are.
    pub(crate) fn check_bytes(&self, bytes: usize) -> Result<(), Refusal> {
        let limit = self.max_context();
        if bytes / MAX_TOKEN_BYTES > limit {
            let message = format!("a text of {bytes} bytes: the model reads and writes {limit} tokens together here");
            return Err(Refusal::invalid(message).coded("context_length_exceeded"));
        }
        Ok(())
    }

    /// Refuses what the model cannot read and write in one piece.
    pub(crate) fn check_length(&self, tokens: usize, more: usize) -> Result<(), Refusal> {
        let limit = self.max_context();
        if tokens.saturating_add(more) > limit {
            let message = format!("{tokens} tokens and {more} more: the model reads and writes {limit} together here");
            return Err(Refusal::invalid(message).coded("context_length_exceeded"));
        }
        Ok(())
    }

    /// Tokens of a prompt and what follows it.
    pub(crate) fn max_context(&self) -> usize {
        self.options.max_context_of(&self.config)
    }

    /// Token ids, of a long text on a thread where it disturbs nobody; `whole` texts begin as the model's texts do.
    pub(crate) async fn tokens(&self, text: String, whole: bool) -> Result<Vec<u32>, Refusal> {
        self.check_bytes(text.len())?;
        let (tokenizer, short) = (self.tokenizer.clone(), text.len() <= SHORT);
        let encode = move || if whole { tokenizer.encode(&text) } else { tokenizer.encode_plain(&text) };
        let ids = match short {
            true => {
                consume_budget().await;
                encode()
            }
            false => spawn_blocking(encode).await.map_err(|_| Refusal::failed("the tokenizer failed"))?,
        };
        ids.map_err(|e| Refusal::invalid(e.to_string()))
    }

    /// Hands work of a request to the model that began to come then: all of it, or, where that does not fit into the queue, none.
    pub(crate) fn submit(&self, works: Vec<Work>, begun: Instant) -> Result<(), Refusal> {
        if self.closing.load(Ordering::Relaxed) {
            return Err(Refusal::unavailable("the server ends: ask another one"));
        }
        let arrived = Instant::now();
        let places = self.jobs.try_reserve_many(works.len()).map_err(|e| match e {
            mpsc::error::TrySendError::Full(()) => Refusal::overloaded(),
            mpsc::error::TrySendError::Closed(()) => Refusal::unavailable("the model is gone: start the server again"),
        })?;
        for (place, work) in places.zip(works) {
            place.send(Job { work, arrived, deadline: begun + self.options.timeout });
        }
        Ok(())
    }

    /// A name for an answer.
    pub(crate) fn answer_id(&self, kind: &str) -> String {
        let number = self.answers.fetch_add(1, Ordering::Relaxed);
        format!("{kind}-{:x}-{number:x}", self.info.created)
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// Refuses marks that no picture belongs to.
pub(crate) fn check_text(text: &str) -> Result<(), Refusal> {
    if text.contains(IMAGE) {
        let message = format!("a text holds {IMAGE}: send pictures as parts of the type image_url, where they belong");
        return Err(Refusal::invalid(message));
    }
    Ok(())
}

//! The server's requests.

use std::sync::Arc;

use flamingo_data::{Interleaved, Part, Picture, assemble};
use flamingo_generate::{GenerationConfig, Strategy};
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::WebError;

/// New tokens where a request does not say how many.
const DEFAULT_MAX_TOKENS: usize = 64;
/// Most continuations of one prompt.
const MAX_CHOICES: usize = 16;
/// Most alternatives that are told for each token.
const MAX_LOGPROBS: usize = 5;
/// Stop strings of a request, and the bytes of each.
const MAX_STOPS: usize = 4;
const MAX_STOP_BYTES: usize = 256;

/// `POST /v1/completions`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CompletionRequest {
    pub(crate) model: Option<String>,
    pub(crate) prompt: Prompt,
    max_tokens: Option<usize>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    seed: Option<i64>,
    n: Option<usize>,
    stop: Option<Strings>,
    logprobs: Option<usize>,
    frequency_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    // Pieces always come as they are made, and who asks is all the same.
    #[serde(rename = "stream")]
    _stream: Option<bool>,
    #[serde(rename = "stream_options")]
    _stream_options: Option<IgnoredAny>,
    #[serde(rename = "user")]
    _user: Option<String>,
}

/// `POST /v1/score`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ScoreRequest {
    pub(crate) model: Option<String>,
    pub(crate) prompt: Prompt,
    pub(crate) candidates: Vec<String>,
}

/// `POST /v1/attention`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AttentionRequest {
    pub(crate) model: Option<String>,
    pub(crate) prompt: Prompt,
    #[serde(default)]
    pub(crate) completion: String,
}

/// A prompt: a text, or texts and pictures in order.
#[derive(Deserialize)]
#[serde(untagged)]
pub(crate) enum Prompt {
    Text(String),
    Parts(Vec<Content>),
}

/// A part of a prompt.
#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Content {
    Text {
        text: String,
    },
    // Its address was followed before: the picture itself comes beside the request.
    ImageUrl {
        #[serde(rename = "image_url")]
        _image_url: IgnoredAny,
    },
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Strings {
    One(String),
    Several(Vec<String>),
}

impl CompletionRequest {
    /// How to continue the prompt: `settings` but for what is asked for. Without a seed, `number` is one.
    pub(crate) fn settings(&self, mut settings: GenerationConfig, number: u64) -> Result<GenerationConfig, WebError> {
        let [temperature, top_p] = [self.temperature.unwrap_or(0.0), self.top_p.unwrap_or(1.0)];
        if !(0.0..=2.0).contains(&temperature) {
            return Err(WebError::Request(format!("temperature is {temperature}: it goes from 0 to 2")));
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            return Err(WebError::Request(format!("top_p is {top_p}: it goes from above 0 to 1")));
        }
        if [self.frequency_penalty, self.presence_penalty].into_iter().flatten().any(|penalty| penalty != 0.0) {
            return Err(WebError::Request("penalties are not supported: leave them out".into()));
        }
        settings.max_new_tokens = self.max_tokens.unwrap_or(DEFAULT_MAX_TOKENS);
        if temperature > 0.0 {
            let seed = self.seed.map_or(number, |seed| seed as u64);
            let top_p = (top_p < 1.0).then_some(top_p);
            settings.strategy = Strategy::Sample { temperature, top_k: None, top_p, seed };
        }
        settings.validate()?;
        Ok(settings)
    }

    /// How many continuations are asked for.
    pub(crate) fn choices(&self) -> Result<usize, WebError> {
        match self.n.unwrap_or(1) {
            n @ 1..=MAX_CHOICES => Ok(n),
            n => Err(WebError::Request(format!("n is {n}: from 1 to {MAX_CHOICES} continuations can be had"))),
        }
    }

    /// Texts that end a continuation and are no part of it.
    pub(crate) fn stops(&self) -> Result<Vec<String>, WebError> {
        let stops = match &self.stop {
            None => Vec::new(),
            Some(Strings::One(stop)) => vec![stop.clone()],
            Some(Strings::Several(stops)) => stops.clone(),
        };
        if stops.len() > MAX_STOPS || stops.iter().any(|stop| stop.is_empty() || stop.len() > MAX_STOP_BYTES) {
            let what = format!("stop is at most {MAX_STOPS} strings of 1 to {MAX_STOP_BYTES} bytes");
            return Err(WebError::Request(what));
        }
        Ok(stops)
    }

    /// How many alternatives are told for each token, if any.
    pub(crate) fn alternatives(&self) -> Result<Option<usize>, WebError> {
        match self.logprobs {
            Some(count) if count > MAX_LOGPROBS => {
                Err(WebError::Request(format!("logprobs is {count}: at most {MAX_LOGPROBS} can be told")))
            }
            count => Ok(count),
        }
    }
}

impl Prompt {
    /// The prompt with its pictures.
    ///
    /// # Errors
    /// [`WebError::Request`] for another number of pictures than places for them.
    pub(crate) fn with(self, pictures: Vec<Arc<Picture>>) -> Result<Interleaved<Arc<Picture>>, WebError> {
        let parts = match self {
            Self::Text(text) => vec![Content::Text { text }],
            Self::Parts(parts) => parts,
        };
        let places = parts.iter().filter(|part| matches!(part, Content::ImageUrl { .. })).count();
        if places != pictures.len() {
            return Err(WebError::Request(format!("{} picture(s) for {places} place(s)", pictures.len())));
        }
        let mut pictures = pictures.into_iter();
        let parts = parts.into_iter().filter_map(|part| match part {
            Content::Text { text } => Some(Part::Text(text)),
            Content::ImageUrl { .. } => pictures.next().map(Part::Image),
        });
        Ok(assemble(parts)?)
    }
}

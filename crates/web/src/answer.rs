//! The server's answers.

use std::time::Duration;

use serde::Serialize;
use serde_json::{Map, Value};

/// The answer to `GET /v1/models`.
#[derive(Serialize)]
pub(crate) struct Models {
    pub(crate) object: &'static str,
    pub(crate) data: [ModelCard; 1],
}

#[derive(Serialize)]
pub(crate) struct ModelCard {
    pub(crate) id: String,
    pub(crate) object: &'static str,
    pub(crate) created: u64,
    pub(crate) owned_by: &'static str,
    pub(crate) flamingo: About,
}

/// What the page wants to know of a model.
#[derive(Serialize)]
pub(crate) struct About {
    pub(crate) device: String,
    pub(crate) precision: String,
    pub(crate) image_size: usize,
    pub(crate) grid: [usize; 2],
    pub(crate) caption_prompt: String,
    pub(crate) max_tokens: usize,
    pub(crate) max_images: usize,
    pub(crate) parameters: u64,
}

/// A continuation, or a piece of one that is still being made.
#[derive(Serialize)]
pub(crate) struct Completed {
    pub(crate) id: String,
    pub(crate) object: &'static str,
    pub(crate) created: u64,
    pub(crate) model: String,
    pub(crate) choices: Vec<Choice>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) usage: Option<Usage>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) flamingo: Option<Details>,
}

#[derive(Serialize)]
pub(crate) struct Choice {
    pub(crate) index: usize,
    pub(crate) text: String,
    pub(crate) finish_reason: Option<&'static str>,
    pub(crate) logprobs: Option<LogProbs>,
}

/// How likely each token was, and the likeliest in its place.
#[derive(Clone, Default, Serialize)]
pub(crate) struct LogProbs {
    pub(crate) tokens: Vec<String>,
    pub(crate) token_logprobs: Vec<f32>,
    pub(crate) top_logprobs: Vec<Map<String, Value>>,
    pub(crate) text_offset: Vec<usize>,
}

/// The answer to `POST /v1/score`.
#[derive(Serialize)]
pub(crate) struct Scores {
    pub(crate) object: &'static str,
    pub(crate) model: String,
    pub(crate) data: Vec<Score>,
    pub(crate) usage: Usage,
    pub(crate) flamingo: Details,
}

#[derive(Serialize)]
pub(crate) struct Score {
    pub(crate) index: usize,
    pub(crate) candidate: String,
    pub(crate) log_prob: f64,
    pub(crate) mean_log_prob: f64,
    pub(crate) tokens: usize,
    pub(crate) probability: f64,
}

/// The answer to `POST /v1/attention`.
#[derive(Serialize)]
pub(crate) struct Attention {
    pub(crate) object: &'static str,
    pub(crate) model: String,
    pub(crate) grid: [usize; 2],
    pub(crate) tokens: Vec<LookingToken>,
}

/// A token, and where it looked.
#[derive(Serialize)]
pub(crate) struct LookingToken {
    pub(crate) text: String,
    pub(crate) image: Option<usize>,
    pub(crate) completion: bool,
    pub(crate) looks: Vec<Look>,
}

#[derive(Serialize)]
pub(crate) struct Look {
    pub(crate) image: usize,
    pub(crate) map: Vec<f32>,
}

#[derive(Clone, Copy, Serialize)]
pub(crate) struct Usage {
    prompt_tokens: usize,
    completion_tokens: usize,
    total_tokens: usize,
    prompt_tokens_details: PromptTokensDetails,
}

/// Tokens that were read for an earlier request: none, as nothing is kept of a text.
#[derive(Clone, Copy, Default, Serialize)]
struct PromptTokensDetails {
    cached_tokens: usize,
}

impl Usage {
    pub(crate) fn new(prompt_tokens: usize, completion_tokens: usize) -> Self {
        Self {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
            prompt_tokens_details: PromptTokensDetails::default(),
        }
    }
}

/// What an answer cost.
#[derive(Clone, Serialize)]
pub(crate) struct Details {
    pub(crate) prompt: String,
    pub(crate) timings: Timings,
    pub(crate) images: Images,
    pub(crate) tokens: Tokens,
}

/// Milliseconds of each stage. How long a request waited is known to the worker, which adds it.
#[derive(Clone, Copy, Default, Serialize)]
pub(crate) struct Timings {
    pub(crate) images_ms: f64,
    pub(crate) prefill_ms: f64,
    pub(crate) decode_ms: f64,
}

/// Pictures of a prompt, and how many of them were looked at before.
#[derive(Clone, Copy, Serialize)]
pub(crate) struct Images {
    pub(crate) seen: usize,
    pub(crate) cached: usize,
}

/// Tokens of a prompt, and how many of them were read before.
#[derive(Clone, Copy, Serialize)]
pub(crate) struct Tokens {
    pub(crate) prompt: usize,
    pub(crate) cached: usize,
}

pub(crate) fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

//! `/v1/completions`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::prompt::Prompts;
use super::{Details, FinishReason, LogProbs, Sampling, StreamOptions, Strings, Usage};

/// A prompt to be continued.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CompletionRequest {
    /// The server's model; may be left out.
    #[serde(default)]
    pub(crate) model: Option<String>,
    /// A text, several texts, or one prompt as a list of parts of text and pictures.
    pub(crate) prompt: Prompts,
    /// Most tokens of a continuation.
    #[serde(default)]
    #[schema(minimum = 1, default = 64)]
    pub(crate) max_tokens: Option<u32>,
    /// The model does not end a continuation by itself before so many tokens.
    #[serde(default)]
    pub(crate) min_tokens: Option<u32>,
    /// 0, without it: the likeliest token each time. OpenAI's servers take 1.
    #[serde(default)]
    #[schema(minimum = 0, maximum = 2, default = 0)]
    pub(crate) temperature: Option<f32>,
    /// Only the likeliest tokens that together have this probability.
    #[serde(default)]
    #[schema(exclusive_minimum = 0, maximum = 1, default = 1)]
    pub(crate) top_p: Option<f32>,
    /// Equal seeds give equal continuations.
    #[serde(default)]
    pub(crate) seed: Option<i64>,
    /// Continuations of each prompt.
    #[serde(default)]
    #[schema(minimum = 1, default = 1)]
    pub(crate) n: Option<u32>,
    /// Strings that end a continuation, at most four; it ends before them.
    #[serde(default)]
    pub(crate) stop: Option<Strings>,
    /// Log-probabilities of the tokens, and so many of the likeliest beside each.
    #[serde(default)]
    #[schema(minimum = 0, maximum = 5)]
    pub(crate) logprobs: Option<u32>,
    /// Whether the answer comes in pieces, as server-sent events.
    #[serde(default)]
    pub(crate) stream: Option<bool>,
    /// How.
    #[serde(default)]
    pub(crate) stream_options: Option<StreamOptions>,
    /// 0 alone.
    #[serde(default)]
    pub(crate) frequency_penalty: Option<f32>,
    /// 0 alone.
    #[serde(default)]
    pub(crate) presence_penalty: Option<f32>,
    /// Taken, and not looked at.
    #[serde(default)]
    #[expect(dead_code, reason = "for clients that send it")]
    pub(crate) user: Option<String>,
}

impl CompletionRequest {
    pub(crate) fn sampling(&self) -> Sampling {
        Sampling {
            max_tokens: self.max_tokens,
            min_tokens: self.min_tokens,
            temperature: self.temperature,
            top_p: self.top_p,
            seed: self.seed,
            n: self.n,
            stop: self.stop.clone(),
            frequency_penalty: self.frequency_penalty,
            presence_penalty: self.presence_penalty,
        }
    }
}

/// A completion, or a piece of one.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct CompletionResponse {
    pub(crate) id: String,
    /// `text_completion`.
    pub(crate) object: &'static str,
    /// Seconds since 1970.
    pub(crate) created: u64,
    pub(crate) model: String,
    pub(crate) choices: Vec<CompletionChoice>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) usage: Option<Usage>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) flamingo: Option<Details>,
}

/// A continuation, or a piece of one.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub(crate) struct CompletionChoice {
    /// Which continuation; those of the first prompt come first.
    pub(crate) index: usize,
    pub(crate) text: String,
    pub(crate) logprobs: Option<CompletionLogProbs>,
    pub(crate) finish_reason: Option<FinishReason>,
}

/// Log-probabilities of the tokens of a text.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub(crate) struct CompletionLogProbs {
    pub(crate) tokens: Vec<String>,
    pub(crate) token_logprobs: Vec<f32>,
    pub(crate) top_logprobs: Vec<LogProbs>,
    /// Where each token begins in the text, in characters.
    pub(crate) text_offset: Vec<usize>,
}

//! `/v1/chat/completions`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::prompt::Content;
use super::{Details, FinishReason, Sampling, StreamOptions, Strings, Usage};

/// Messages that become a few-shot prompt by the server's template.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ChatRequest {
    /// The server's model; may be left out.
    #[serde(default)]
    pub(crate) model: Option<String>,
    /// A user's message and its answer are a demonstration; the last message is to be continued.
    #[schema(min_items = 1)]
    pub(crate) messages: Vec<Message>,
    /// Most tokens of an answer.
    #[serde(default)]
    #[schema(minimum = 1, default = 64)]
    pub(crate) max_tokens: Option<u32>,
    /// The newer name of `max_tokens`.
    #[serde(default)]
    #[schema(minimum = 1)]
    pub(crate) max_completion_tokens: Option<u32>,
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
    /// Equal seeds give equal answers.
    #[serde(default)]
    pub(crate) seed: Option<i64>,
    /// Answers.
    #[serde(default)]
    #[schema(minimum = 1, default = 1)]
    pub(crate) n: Option<u32>,
    /// Strings that end an answer, at most four; it ends before them.
    #[serde(default)]
    pub(crate) stop: Option<Strings>,
    /// Whether log-probabilities of the tokens are told.
    #[serde(default)]
    pub(crate) logprobs: Option<bool>,
    /// So many of the likeliest beside each.
    #[serde(default)]
    #[schema(minimum = 0, maximum = 20)]
    pub(crate) top_logprobs: Option<u32>,
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

impl ChatRequest {
    pub(crate) fn sampling(&self) -> Sampling {
        Sampling {
            max_tokens: self.max_completion_tokens.or(self.max_tokens),
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

/// A message.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Message {
    pub(crate) role: Role,
    pub(crate) content: Content,
    /// Taken, and not looked at.
    #[serde(default)]
    #[expect(dead_code, reason = "for clients that send it")]
    pub(crate) name: Option<String>,
    /// Taken, and not looked at: what OpenAI's client adds to an answer that is sent back.
    #[serde(default)]
    #[expect(dead_code, reason = "for clients that send it")]
    pub(crate) refusal: Option<String>,
    /// Null alone, as are those that follow.
    #[serde(default)]
    #[expect(dead_code, reason = "for clients that send it")]
    pub(crate) annotations: (),
    #[serde(default)]
    #[expect(dead_code, reason = "for clients that send it")]
    pub(crate) audio: (),
    #[serde(default)]
    #[expect(dead_code, reason = "for clients that send it")]
    pub(crate) function_call: (),
    #[serde(default)]
    #[expect(dead_code, reason = "for clients that send it")]
    pub(crate) parsed: (),
    #[serde(default)]
    #[expect(dead_code, reason = "for clients that send it")]
    pub(crate) tool_calls: (),
}

/// Who wrote a message.
#[derive(Clone, Copy, Debug, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Role {
    /// Text before all else.
    System,
    /// Its newer name.
    Developer,
    /// A question.
    User,
    /// An answer.
    Assistant,
}

impl Role {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::Developer => "developer",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

/// Answers.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct ChatResponse {
    pub(crate) id: String,
    /// `chat.completion`.
    pub(crate) object: &'static str,
    /// Seconds since 1970.
    pub(crate) created: u64,
    pub(crate) model: String,
    pub(crate) choices: Vec<ChatChoice>,
    pub(crate) usage: Usage,
    pub(crate) flamingo: Details,
}

/// An answer.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct ChatChoice {
    pub(crate) index: usize,
    pub(crate) message: Answer,
    pub(crate) logprobs: Option<ChatLogProbs>,
    pub(crate) finish_reason: FinishReason,
}

/// The message of an answer.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Answer {
    /// `assistant`.
    pub(crate) role: &'static str,
    /// Without the space that it begins with in the prompt.
    pub(crate) content: String,
    /// Always null.
    pub(crate) refusal: Option<String>,
}

/// A piece of an answer.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct ChatChunk {
    pub(crate) id: String,
    /// `chat.completion.chunk`.
    pub(crate) object: &'static str,
    /// Seconds since 1970.
    pub(crate) created: u64,
    pub(crate) model: String,
    pub(crate) choices: Vec<ChatChunkChoice>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) usage: Option<Usage>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) flamingo: Option<Details>,
}

/// What is new in an answer.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct ChatChunkChoice {
    pub(crate) index: usize,
    pub(crate) delta: Delta,
    pub(crate) logprobs: Option<ChatLogProbs>,
    pub(crate) finish_reason: Option<FinishReason>,
}

/// New text.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub(crate) struct Delta {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) content: Option<String>,
}

/// Log-probabilities of an answer's tokens.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub(crate) struct ChatLogProbs {
    pub(crate) content: Vec<ChatLogProb>,
    /// Always null.
    pub(crate) refusal: Option<Vec<ChatLogProb>>,
}

/// A token and the likeliest in its place.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct ChatLogProb {
    pub(crate) token: String,
    pub(crate) logprob: f32,
    pub(crate) bytes: Vec<u8>,
    pub(crate) top_logprobs: Vec<TopLogProb>,
}

/// A likely token.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct TopLogProb {
    pub(crate) token: String,
    pub(crate) logprob: f32,
    pub(crate) bytes: Vec<u8>,
}

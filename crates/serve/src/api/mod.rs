//! What is sent and answered: OpenAI's forms, with parts of text and pictures wherever a prompt is, and a field `flamingo` that
//! says what an answer took.

pub(crate) mod chat;
pub(crate) mod completions;
pub(crate) mod more;
pub(crate) mod prompt;

use std::collections::BTreeMap;

use flamingo_generate::{GenerationConfig, Strategy};
use flamingo_zoo::Finish;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::error::Refusal;
use crate::job::Stats;

/// New tokens where a request does not say how many.
pub(crate) const DEFAULT_MAX_TOKENS: u32 = 64;

/// Stop strings of a request, and the bytes of each.
const MAX_STOPS: usize = 4;
const MAX_STOP_BYTES: usize = 256;

/// One string or several.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum Strings {
    /// One.
    One(String),
    /// Several.
    Several(Vec<String>),
}

/// How a continuation is chosen: the fields that all forms of completion share.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sampling {
    pub(crate) max_tokens: Option<u32>,
    pub(crate) min_tokens: Option<u32>,
    pub(crate) temperature: Option<f32>,
    pub(crate) top_p: Option<f32>,
    pub(crate) seed: Option<i64>,
    pub(crate) n: Option<u32>,
    pub(crate) stop: Option<Strings>,
    pub(crate) frequency_penalty: Option<f32>,
    pub(crate) presence_penalty: Option<f32>,
}

/// [`Sampling`], checked.
#[derive(Clone, Debug)]
pub(crate) struct Chosen {
    pub(crate) settings: GenerationConfig,
    pub(crate) n: usize,
    pub(crate) stops: Vec<String>,
}

impl Sampling {
    /// Checks the fields; `greedy` are the settings of the model, whose number of tokens is replaced.
    pub(crate) fn check(self, mut settings: GenerationConfig, max_n: usize) -> Result<Chosen, Refusal> {
        for (name, penalty) in
            [("frequency_penalty", self.frequency_penalty), ("presence_penalty", self.presence_penalty)]
        {
            if penalty.is_some_and(|penalty| penalty != 0.0) {
                return Err(Refusal::field(name, format!("{name} is not supported: leave it out")));
            }
        }
        let n = self.n.unwrap_or(1) as usize;
        if n == 0 || n > max_n {
            return Err(Refusal::field("n", format!("n is {n}: from 1 to {max_n} continuations can be had")));
        }
        let max_tokens = self.max_tokens.unwrap_or(DEFAULT_MAX_TOKENS) as usize;
        if max_tokens == 0 {
            return Err(Refusal::field("max_tokens", "max_tokens is 0: there is nothing to write"));
        }
        let min_tokens = self.min_tokens.unwrap_or(0) as usize;
        if min_tokens > max_tokens {
            let message = format!("min_tokens is {min_tokens}, more than the {max_tokens} that are allowed");
            return Err(Refusal::field("min_tokens", message));
        }
        let temperature = self.temperature.unwrap_or(0.0);
        if !(0.0..=2.0).contains(&temperature) {
            return Err(Refusal::field("temperature", format!("temperature is {temperature}: it goes from 0 to 2")));
        }
        let top_p = self.top_p.unwrap_or(1.0);
        if !(top_p > 0.0 && top_p <= 1.0) {
            return Err(Refusal::field("top_p", format!("top_p is {top_p}: it goes from above 0 to 1")));
        }
        settings.max_new_tokens = max_tokens;
        settings.min_new_tokens = min_tokens;
        if temperature > 0.0 {
            let seed = self.seed.map_or_else(random_seed, |seed| seed as u64);
            settings.strategy =
                Strategy::Sample { temperature, top_k: None, top_p: (top_p < 1.0).then_some(top_p), seed };
        }
        let stops = match self.stop {
            None => Vec::new(),
            Some(Strings::One(stop)) => vec![stop],
            Some(Strings::Several(stops)) => stops,
        };
        if stops.len() > MAX_STOPS || stops.iter().any(|stop| stop.is_empty() || stop.len() > MAX_STOP_BYTES) {
            let message = format!("stop is at most {MAX_STOPS} strings of 1 to {MAX_STOP_BYTES} bytes");
            return Err(Refusal::field("stop", message));
        }
        Ok(Chosen { settings, n, stops })
    }
}

/// Something else at each call.
fn random_seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0)
}

/// How an answer is streamed.
#[derive(Clone, Copy, Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct StreamOptions {
    /// Whether a last chunk says how many tokens were read and written.
    #[serde(default)]
    pub(crate) include_usage: bool,
}

/// How many tokens were read and written.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
pub(crate) struct Usage {
    /// Tokens of the prompt; a picture is one.
    prompt_tokens: usize,
    /// Tokens written, in all continuations.
    completion_tokens: usize,
    /// Both.
    total_tokens: usize,
    prompt_tokens_details: PromptTokensDetails,
}

/// Where the prompt's tokens came from.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
pub(crate) struct PromptTokensDetails {
    /// Tokens that had been read for an earlier request.
    cached_tokens: usize,
}

impl Usage {
    pub(crate) fn of(stats: &Stats) -> Self {
        Self {
            prompt_tokens: stats.prompt_tokens,
            completion_tokens: stats.new_tokens,
            total_tokens: stats.prompt_tokens + stats.new_tokens,
            prompt_tokens_details: PromptTokensDetails { cached_tokens: stats.cached_tokens },
        }
    }
}

/// What an answer took.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Details {
    /// The prompt as the model read it, with `<image>` for each picture.
    prompt: String,
    timings: Timings,
    images: Images,
    tokens: Tokens,
}

/// Milliseconds.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
pub(crate) struct Timings {
    /// The wait for the model.
    queue_ms: f64,
    /// Looking at pictures.
    images_ms: f64,
    /// Reading the prompt.
    prefill_ms: f64,
    /// Writing, while others may have been written to as well.
    decode_ms: f64,
}

/// Pictures of the prompt.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
pub(crate) struct Images {
    /// All.
    seen: usize,
    /// Those that had been looked at for an earlier request.
    cached: usize,
}

/// Tokens of the prompt.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
pub(crate) struct Tokens {
    /// All.
    prompt: usize,
    /// Those that had been read for an earlier request.
    cached: usize,
}

impl Details {
    pub(crate) fn of(stats: &Stats) -> Self {
        let ms = |time: std::time::Duration| (time.as_secs_f64() * 1e6).round() / 1e3;
        Self {
            prompt: stats.prompt.clone(),
            timings: Timings {
                queue_ms: ms(stats.queue),
                images_ms: ms(stats.images),
                prefill_ms: ms(stats.prefill),
                decode_ms: ms(stats.decode),
            },
            images: Images { seen: stats.pictures, cached: stats.cached_pictures },
            tokens: Tokens { prompt: stats.prompt_tokens, cached: stats.cached_tokens },
        }
    }
}

/// Why a continuation ended.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum FinishReason {
    /// The model ended it, or a stop string was reached.
    Stop,
    /// It has `max_tokens` tokens.
    Length,
}

impl From<Finish> for FinishReason {
    fn from(finish: Finish) -> Self {
        match finish {
            Finish::Stop => Self::Stop,
            Finish::Length => Self::Length,
        }
    }
}

/// OpenAI's older form of likely tokens.
pub(crate) type LogProbs = BTreeMap<String, f32>;

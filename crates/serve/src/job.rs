//! What the model's thread is asked for, and what it answers.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use flamingo_engine::Array;
use flamingo_generate::{GenerationConfig, SequenceScore};
use flamingo_zoo::{Finish, Latents, View};
use tokio::sync::{mpsc, oneshot};

use crate::bounded::Bounded;
use crate::error::Refusal;

/// What names a picture or a beginning: the hash of its content.
pub(crate) type Key = [u8; 32];

/// Pictures that were seen, by their content and, where that matters, their place.
pub(crate) type Seen = Arc<Mutex<Bounded<(Key, usize), Latents>>>;

/// A picture of a prompt.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    pub(crate) key: Key,
    pub(crate) content: Content,
}

#[derive(Clone, Debug)]
pub(crate) enum Content {
    /// It is remembered.
    Seen(Latents),
    /// It has to be looked at.
    New(View),
}

/// A prompt that was checked.
#[derive(Clone, Debug)]
pub(crate) struct Prompt {
    pub(crate) text: String,
    pub(crate) ids: Vec<u32>,
    pub(crate) images: Vec<Image>,
}

/// A request, on its way to the model.
pub(crate) struct Job {
    pub(crate) work: Work,
    pub(crate) arrived: Instant,
    pub(crate) deadline: Instant,
}

pub(crate) type Answer<T> = oneshot::Sender<Result<T, Refusal>>;

pub(crate) enum Work {
    Complete { completion: Completion, events: mpsc::UnboundedSender<Event> },
    Score { prompt: Prompt, candidates: Vec<Vec<u32>>, answer: Answer<(Vec<SequenceScore>, Stats)> },
    Embed { views: Vec<View>, answer: Answer<Vec<Vec<f32>>> },
    Attend { ids: Vec<u32>, views: Vec<View>, answer: Answer<Array> },
}

/// A prompt to be continued.
#[derive(Clone, Debug)]
pub(crate) struct Completion {
    pub(crate) prompt: Prompt,
    pub(crate) settings: GenerationConfig,
    /// Continuations, and the number of the first.
    pub(crate) n: usize,
    pub(crate) first: usize,
    pub(crate) stops: Vec<String>,
    /// How many of the likeliest tokens are told beside each, where log-probabilities are asked for.
    pub(crate) logprobs: Option<usize>,
    /// Whether pieces are sent as they become certain; else all in one, at the end.
    pub(crate) stream: bool,
}

/// What a continuation sends: as it grows where it is streamed, else at its end.
#[derive(Debug)]
pub(crate) enum Event {
    Piece {
        index: usize,
        text: String,
        tokens: Vec<TokenProbability>,
    },
    End {
        index: usize,
        finish: Finish,
    },
    /// All continuations have ended.
    Done(Box<Stats>),
    Failed(Refusal),
}

/// A token that was chosen, and the likeliest in its place.
#[derive(Clone, Debug)]
pub(crate) struct TokenProbability {
    pub(crate) id: u32,
    pub(crate) log_prob: f32,
    pub(crate) top: Vec<(u32, f32)>,
}

/// What a request took.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stats {
    pub(crate) prompt: String,
    pub(crate) queue: Duration,
    pub(crate) images: Duration,
    pub(crate) prefill: Duration,
    pub(crate) decode: Duration,
    pub(crate) pictures: usize,
    pub(crate) cached_pictures: usize,
    pub(crate) prompt_tokens: usize,
    pub(crate) cached_tokens: usize,
    pub(crate) new_tokens: usize,
}

impl Stats {
    /// Adds what another prompt of the same request took.
    pub(crate) fn add(&mut self, other: &Self) {
        if self.prompt.is_empty() {
            self.prompt.clone_from(&other.prompt);
        }
        self.queue = self.queue.max(other.queue);
        self.images += other.images;
        self.prefill += other.prefill;
        self.decode = self.decode.max(other.decode);
        self.pictures += other.pictures;
        self.cached_pictures += other.cached_pictures;
        self.prompt_tokens += other.prompt_tokens;
        self.cached_tokens += other.cached_tokens;
        self.new_tokens += other.new_tokens;
    }
}

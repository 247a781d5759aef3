//! Everything that can be wrong, each in one sentence.

/// Settings that make no sense.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// No token may be generated.
    #[error("max_new_tokens is 0: there is nothing to generate")]
    NoNewTokens,
    /// More tokens are demanded than allowed.
    #[error("min_new_tokens {min} is more than max_new_tokens {max}")]
    MinAboveMax {
        /// `min_new_tokens`.
        min: usize,
        /// `max_new_tokens`.
        max: usize,
    },
    /// No continuation is asked for.
    #[error("num_return_sequences is 0: there is nothing to return")]
    NoSequences,
    /// Several results of a search that has one.
    #[error("greedy search has one result: num_return_sequences {0} needs beams or sampling")]
    GreedySequences(usize),
    /// A beam search without beams.
    #[error("num_beams is 0: one beam is greedy search, two or more are a beam search")]
    NoBeams,
    /// Beams where one sequence grows token by token.
    #[error("{0} beams are searched together, not one sequence after the other")]
    Beams(usize),
    /// More results than beams.
    #[error("num_return_sequences {sequences} is more than num_beams {beams}")]
    SequencesAboveBeams {
        /// `num_return_sequences`.
        sequences: usize,
        /// `num_beams`.
        beams: usize,
    },
    /// A penalty that is infinite or no number, or whose power of a length is.
    #[error("length_penalty {0} is out of range: a length to this power must be a positive finite number")]
    LengthPenalty(f64),
    /// A temperature that is not above 0 or not finite.
    #[error("temperature {0} is not a positive finite number: greedy search is the limit of small temperatures")]
    Temperature(f32),
    /// A filter that keeps nothing.
    #[error("top_k 0 leaves no token: leave it out to allow all")]
    TopK,
    /// A share that is none.
    #[error("top_p {0} is not in (0, 1]")]
    TopP(f32),
}

/// Prompts or logits that are unusable.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum InputError {
    /// An empty batch.
    #[error("there is no prompt")]
    NoPrompt,
    /// A prompt without a token.
    #[error("prompt {row} is empty: a prompt has one token at least")]
    EmptyPrompt {
        /// Which prompt, from 0.
        row: usize,
    },
    /// Prompts that were not padded.
    #[error("prompt {row} has {found} tokens and the first has {expected}: prompts must be left-padded to one width")]
    PromptWidth {
        /// Which prompt, from 0.
        row: usize,
        /// Its length.
        found: usize,
        /// The first prompt's length.
        expected: usize,
    },
    /// An absurd batch.
    #[error("{prompts} prompts with {each} beams or samples each are more than {most} rows")]
    TooManyRows {
        /// Prompts in the batch.
        prompts: usize,
        /// Rows for each prompt.
        each: usize,
        /// The limit.
        most: usize,
    },
    /// First logits that are no rows of a vocabulary.
    #[error("{found} first logits are not one row of a vocabulary for each of {prompts} prompt(s)")]
    FirstLogits {
        /// How many there are.
        found: usize,
        /// Prompts in the batch.
        prompts: usize,
    },
    /// A step that returned too few or too many logits.
    #[error("the model gave {found} logits instead of {expected}")]
    Logits {
        /// How many there are.
        found: usize,
        /// Rows times vocabulary.
        expected: usize,
    },
    /// Logits from which nothing can be chosen.
    #[error(
        "the model gave logits that are no finite numbers (NaN or infinity): its weights or its precision are at fault"
    )]
    NotANumber,
    /// Sampling with every token impossible.
    #[error("every token is impossible: no_repeat_ngram_size has blocked the whole vocabulary, or all logits are -inf")]
    NoToken,
    /// A vocabulary in which a beam cannot both end and go on.
    #[error("a beam search needs a vocabulary of two tokens at least")]
    Vocabulary,
}

/// Why nothing was generated.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum GenerateError<E> {
    /// The settings are unusable.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Prompts or logits are unusable.
    #[error(transparent)]
    Input(#[from] InputError),
    /// The model failed.
    #[error("{0}")]
    Decoder(E),
}

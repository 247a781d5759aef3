//! Why nothing can be planned.

/// Why nothing can be planned.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum PlanError {
    /// A word or number that means nothing here.
    #[error("`{given}` is no {what}: give {fix}")]
    Value {
        /// What was given.
        given: String,
        /// What it should be.
        what: &'static str,
        /// What would do.
        fix: &'static str,
    },
    /// Neither stream has rows.
    #[error("there is nothing to train on: give --batch-size-laion, --batch-size-mmc4 or both")]
    Nothing,
    /// Texts that the decoder has no positions for.
    #[error("{tokens} tokens are more than the model's {most} positions: give at most {most} to {option}")]
    TooLong {
        /// Tokens of a row.
        tokens: u64,
        /// What the model can read.
        most: usize,
        /// The option that says so.
        option: &'static str,
    },
    /// A number outside of what can be.
    #[error("{option} must be {range}")]
    Range {
        /// The option.
        option: &'static str,
        /// What it may be.
        range: &'static str,
    },
}

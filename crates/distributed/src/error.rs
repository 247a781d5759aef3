//! What can go wrong between workers.

/// Why workers cannot train together, or no longer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GroupError {
    /// Where this process stands among the others is said wrongly or not at all.
    #[error("{0}")]
    Place(String),
    /// The processes did not all come, or do not belong together.
    #[error("{0}")]
    Rendezvous(String),
    /// A worker is gone, hangs, or has failed; the sentence names it.
    #[error("{0}")]
    Lost(String),
}

//! Why nothing can be drawn.

use std::path::PathBuf;

/// Why metrics cannot be read or drawn.
#[derive(Debug, thiserror::Error)]
pub enum PlotError {
    /// The file system refused.
    #[error("cannot read {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A file without a single line of metrics.
    #[error("{} has no line of metrics: each must be a JSON object with numbers, `step` among them", .0.display())]
    NoMetrics(PathBuf),
    /// No panel to draw.
    #[error("there is nothing to draw")]
    Nothing,
    /// A panel without a point that can be shown.
    #[error("`{0}` has no number that can be drawn (a logarithmic scale shows positive ones only)")]
    NoNumbers(String),
    /// The drawing library failed.
    #[error("cannot draw: {0}")]
    Drawing(String),
}

//! What can be wrong with weights.

use std::path::{Path, PathBuf};

use flamingo_config::ConfigError;

/// Why weights cannot be read, converted or opened.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// The file system refused.
    #[error("cannot {action} {}: {reason}", path.display())]
    Io {
        /// What was tried: "read", "write".
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not. It is part of the message, so it is no `source` that would be printed a second time.
        reason: std::io::Error,
    },
    /// A file is not what it should be.
    #[error("{}: {what}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A pickle asks for a call that is no part of a checkpoint.
    #[error("{}: refused: opcode {opcode} would call {callable}; nothing was run", path.display())]
    Refused {
        /// The file.
        path: PathBuf,
        /// The opcode's name.
        opcode: &'static str,
        /// `module.name` of what it would call.
        callable: String,
    },
    /// A tensor that the model needs is in none of the files.
    #[error("missing tensor `{name}` (it becomes `{target}`)")]
    Missing {
        /// Its name in the source.
        name: String,
        /// Its name in the model folder.
        target: String,
    },
    /// A tensor has another shape than the config says.
    #[error("wrong shape: `{name}` is {found:?}, the config needs {expected:?} for `{target}`")]
    Shape {
        /// Its name in the source.
        name: String,
        /// Its name in the model folder.
        target: String,
        /// Its shape.
        found: Vec<usize>,
        /// The shape that the config asks for.
        expected: Vec<usize>,
    },
    /// Tensors that nothing explains.
    #[error("unexpected tensor(s) in {}: {}", path.display(), some(names))]
    Unexpected {
        /// The file or folder.
        path: PathBuf,
        /// Their names.
        names: Vec<String>,
    },
    /// A weight is NaN or infinite.
    #[error("tensor `{name}` holds a value that is not finite ({value})")]
    NotFinite {
        /// Its name in the source.
        name: String,
        /// NaN, inf or -inf.
        value: f32,
    },
    /// A weight does not fit the chosen type.
    #[error("tensor `{name}` holds {value:e}, which f16 cannot hold: convert with --dtype bf16 or f32")]
    Overflow {
        /// Its name in the source.
        name: String,
        /// The value.
        value: f32,
    },
    /// The model's config is unusable.
    #[error("{}: {reason}", path.display())]
    Config {
        /// Where it was read.
        path: PathBuf,
        /// What is wrong; part of the message too.
        reason: ConfigError,
    },
    /// The config and the files describe different models.
    #[error("{0}")]
    Mismatch(String),
    /// The output folder exists.
    #[error("{} exists and is not empty: give another --out, or --force to replace it", .0.display())]
    Exists(PathBuf),
}

impl WeightsError {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |reason| Self::Io { action, path, reason }
    }

    pub(crate) fn format(path: &Path, what: impl Into<String>) -> Self {
        Self::Format { path: path.to_path_buf(), what: what.into() }
    }
}

/// The first names of a list, and how many more there are.
fn some(names: &[String]) -> String {
    let shown = names.iter().take(5).map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(5) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

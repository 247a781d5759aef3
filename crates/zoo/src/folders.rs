//! Finding model folders by name.

use std::path::{Path, PathBuf};

use flamingo_config::{ConfigError, ModelConfig};

use crate::ZooError;

/// A folder of the zoo.
#[derive(Debug)]
pub struct Entry {
    /// The folder's name.
    pub name: String,
    /// The folder.
    pub path: PathBuf,
    /// Its config, or why that is unusable.
    pub config: Result<ModelConfig, ConfigError>,
    /// Whether the weights are there too.
    pub weights: bool,
}

/// Whether a folder holds weights.
fn has_weights(folder: &Path) -> bool {
    folder.join("model.safetensors").is_file() || folder.join("model.safetensors.index.json").is_file()
}

/// All model folders in `zoo`, sorted by name.
///
/// # Errors
/// [`ZooError::NotFound`] if `zoo` is no readable folder.
pub fn list(zoo: &Path) -> Result<Vec<Entry>, ZooError> {
    let folders = std::fs::read_dir(zoo).map_err(|e| {
        ZooError::NotFound(format!(
            "cannot list the models in {}: {e}; --models or FLAMINGO_MODELS says where they are",
            zoo.display()
        ))
    })?;
    let mut entries: Vec<Entry> = folders
        .filter_map(|folder| folder.ok().map(|f| f.path()))
        .filter_map(|path| {
            let text = std::fs::read_to_string(path.join("model.toml")).ok()?;
            Some(Entry {
                name: path.file_name()?.to_string_lossy().into_owned(),
                config: ModelConfig::from_toml(&text),
                weights: has_weights(&path),
                path,
            })
        })
        .collect();
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}

/// The folder of a model given by path or by its name in `zoo`, with weights in it.
///
/// # Errors
/// [`ZooError::NotFound`], with what to do about it.
pub fn find(model: &str, zoo: &Path) -> Result<PathBuf, ZooError> {
    let by_name = zoo.join(model);
    for folder in [Path::new(model), by_name.as_path()] {
        if has_weights(folder) {
            return Ok(folder.to_path_buf());
        }
    }
    Err(ZooError::NotFound(if by_name.join("model.toml").is_file() {
        format!(
            "{model} has a config and no weights here: make a model folder with `cargo xtask convert-weights --config \
             {model} …` and give its path"
        )
    } else if Path::new(model).is_dir() {
        format!(
            "{model} is a folder without model.safetensors: convert a checkpoint with `cargo xtask convert-weights`"
        )
    } else {
        format!(
            "no model {model}: it is neither a folder nor one of those in {}; --models or FLAMINGO_MODELS says where \
             they are",
            zoo.display()
        )
    }))
}

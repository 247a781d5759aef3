//! What the model keeps of pictures, remembered: a demonstration is looked at once, however many prompts show it.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use flamingo_data::{DataError, Picture};
use flamingo_zoo::{Latents, Model};
use lru::LruCache;
use rayon::prelude::*;

use crate::EvalError;

/// Pictures that are decoded, and go through the vision tower, together. Always as many, because the shape of a matrix
/// product decides how it rounds: what is kept of a picture does not depend on what was seen before it.
pub(crate) const AT_ONCE: usize = 16;

/// How far ahead pictures are looked for that may join those which are wanted now.
const AHEAD: usize = 8 * AT_ONCE;

/// Latents of the pictures that were asked for last.
pub struct Gallery {
    latents: LruCache<PathBuf, Latents>,
    bytes: usize,
    limit: usize,
}

impl Gallery {
    /// A gallery that keeps at most so many bytes between calls.
    pub fn new(limit: usize) -> Self {
        Self { latents: LruCache::unbounded(), bytes: 0, limit }
    }

    /// Latents of pictures by their paths. `soon` will be wanted next: where there is room beside what is wanted now,
    /// the first of them are looked at, too.
    ///
    /// # Errors
    /// [`EvalError`] for a picture that cannot be read, or if the device fails.
    pub fn look<'p>(
        &mut self,
        model: &Model,
        paths: &[&'p Path],
        soon: impl Iterator<Item = &'p Path>,
    ) -> Result<HashMap<PathBuf, Latents>, EvalError> {
        let mut seen = HashMap::new();
        let mut unseen: Vec<&Path> = Vec::new();
        let mut known: HashSet<&Path> = HashSet::new();
        for &path in paths {
            if !known.insert(path) {
                continue;
            }
            match self.latents.get(path) {
                Some(latents) => drop(seen.insert(path.to_path_buf(), latents.clone())),
                None => unseen.push(path),
            }
        }
        if unseen.is_empty() {
            return Ok(seen);
        }
        for path in soon.take(AHEAD) {
            if unseen.len().is_multiple_of(AT_ONCE) {
                break;
            }
            if known.insert(path) && !self.latents.contains(path) {
                unseen.push(path);
            }
        }
        for chunk in unseen.chunks(AT_ONCE) {
            let pictures = open(chunk)?;
            for (path, latents) in chunk.iter().zip(model.latents(&filled(&pictures))?) {
                seen.insert(path.to_path_buf(), latents.clone());
                self.keep(path, latents);
            }
        }
        Ok(seen)
    }

    fn keep(&mut self, path: &Path, latents: Latents) {
        self.bytes += latents.bytes();
        if let Some(old) = self.latents.put(path.to_path_buf(), latents) {
            self.bytes -= old.bytes();
        }
        while self.bytes > self.limit
            && let Some((_, oldest)) = self.latents.pop_lru()
        {
            self.bytes -= oldest.bytes();
        }
    }
}

/// CLIP's features of at most [`AT_ONCE`] pictures, each of length 1.
pub(crate) fn features(model: &Model, paths: &[&Path]) -> Result<Vec<Vec<f32>>, EvalError> {
    let pictures = open(paths)?;
    let mut features = model.features(&filled(&pictures))?;
    features.truncate(paths.len());
    Ok(features)
}

/// As many pictures as always, the last one again where there are fewer.
fn filled(pictures: &[Picture]) -> Vec<&Picture> {
    pictures.iter().chain(pictures.last().into_iter().cycle()).take(AT_ONCE).collect()
}

fn open(paths: &[&Path]) -> Result<Vec<Picture>, EvalError> {
    let picture = |path: &&Path| {
        Picture::open(path).map_err(|error| match error {
            DataError::Io { path, source: why } => EvalError::File { path, why },
            other => EvalError::content(*path, other),
        })
    };
    paths.par_iter().map(picture).collect()
}

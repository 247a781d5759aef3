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

/// A picture in a prompt, and which of the prompt's it is, from 0 on.
pub type Shown<'p> = (&'p Path, usize);

/// A picture by its place, which is 0 for models that do not tell places, and its path.
type Key = (usize, PathBuf);

/// Latents of pictures.
pub struct Seen {
    latents: HashMap<Key, Latents>,
    tells_places: bool,
}

impl Seen {
    /// The latents of one that was asked for.
    ///
    /// # Panics
    /// If it was not.
    pub fn of(&self, (path, place): Shown) -> Latents {
        self.latents[&key((path, place), self.tells_places)].clone()
    }
}

fn key((path, place): Shown, tells_places: bool) -> Key {
    (if tells_places { place } else { 0 }, path.to_path_buf())
}

/// Latents of the pictures that were asked for last.
pub struct Gallery {
    latents: LruCache<Key, Latents>,
    bytes: usize,
    limit: usize,
}

impl Gallery {
    /// A gallery that keeps at most so many bytes between calls.
    pub fn new(limit: usize) -> Self {
        Self { latents: LruCache::unbounded(), bytes: 0, limit }
    }

    /// Latents of pictures. `soon` will be wanted next: where there is room beside what is wanted now, the first of them
    /// are looked at, too.
    ///
    /// # Errors
    /// [`EvalError`] for a picture that cannot be read, or if the device fails.
    pub fn look<'p>(
        &mut self,
        model: &Model,
        wanted: &[Shown<'p>],
        soon: impl Iterator<Item = Shown<'p>>,
    ) -> Result<Seen, EvalError> {
        let tells_places = model.tells_places();
        let mut seen = HashMap::new();
        let mut unseen: Vec<Key> = Vec::new();
        let mut known: HashSet<Key> = HashSet::new();
        for &shown in wanted {
            let key = key(shown, tells_places);
            if !known.insert(key.clone()) {
                continue;
            }
            match self.latents.get(&key) {
                Some(latents) => drop(seen.insert(key, latents.clone())),
                None => unseen.push(key),
            }
        }
        if !unseen.is_empty() {
            for shown in soon.take(AHEAD) {
                if unseen.len().is_multiple_of(AT_ONCE) {
                    break;
                }
                let key = key(shown, tells_places);
                if known.insert(key.clone()) && !self.latents.contains(&key) {
                    unseen.push(key);
                }
            }
        }
        // What is looked at together has one place.
        unseen.sort_by_key(|(place, _)| *place);
        for of_place in unseen.chunk_by(|(a, _), (b, _)| a == b) {
            for chunk in of_place.chunks(AT_ONCE) {
                let paths: Vec<&Path> = chunk.iter().map(|(_, path)| path.as_path()).collect();
                let pictures = open(&paths)?;
                for (key, latents) in chunk.iter().zip(model.latents(&filled(&pictures), chunk[0].0)?) {
                    seen.insert(key.clone(), latents.clone());
                    self.keep(key.clone(), latents);
                }
            }
        }
        Ok(Seen { latents: seen, tells_places })
    }

    fn keep(&mut self, key: Key, latents: Latents) {
        self.bytes += latents.bytes();
        if let Some(old) = self.latents.put(key, latents) {
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

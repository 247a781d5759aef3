//! Retrieval of in-context examples (RICES): demonstrations whose pictures resemble the one asked about.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use flamingo_zoo::Model;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use sha2::{Digest, Sha256};

use crate::EvalError;
use crate::dataset::Sample;
use crate::gallery::{self, AT_ONCE};

/// Features that are written to disk at a time, at least.
const SAVED: usize = 4096;

/// Features of length 1, and which of them is each sample's: several questions may be about one picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Features {
    /// One a picture.
    pub distinct: Vec<Vec<f32>>,
    /// For each sample the index of its picture's.
    pub of: Vec<usize>,
}

impl Features {
    /// The indices of the `count` samples most similar to `query`, most similar last; of equals the first counts as
    /// more similar. The sample `without` is left out.
    pub fn most_similar(&self, query: &[f32], count: usize, without: Option<usize>) -> Vec<usize> {
        let of_picture: Vec<f32> = self.distinct.iter().map(|features| dot(features, query)).collect();
        let better = |a: &(f32, usize), b: &(f32, usize)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
        let samples = self.of.iter().enumerate().filter(|(i, _)| Some(*i) != without);
        let mut ranked: Vec<(f32, usize)> = samples.map(|(i, &picture)| (of_picture[picture], i)).collect();
        let count = count.min(ranked.len());
        if count > 0 && count < ranked.len() {
            ranked.select_nth_unstable_by(count - 1, better);
        }
        ranked.truncate(count);
        ranked.sort_by(better);
        ranked.into_iter().rev().map(|(_, i)| i).collect()
    }
}

/// A sum of products, in as many sums side by side as a processor's registers take: benchmarks compare thousands of
/// pictures with tens of thousands.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 16;
    let mut sums = [0.0; LANES];
    let (a, b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest: f32 = a.remainder().iter().zip(b.remainder()).map(|(x, y)| x * y).sum();
    for (a, b) in a.zip(b) {
        (0..LANES).for_each(|i| sums[i] += a[i] * b[i]);
    }
    sums.iter().sum::<f32>() + rest
}

/// Features of pictures that were looked at before, in one file.
pub struct FeatureCache<'a> {
    model: &'a Model,
    path: PathBuf,
    /// Read from the file when they are first wanted.
    known: Option<HashMap<Key, Vec<f32>>>,
    /// How many of them are in the file.
    saved: usize,
}

/// A picture by its path, size and time.
type Key = [u8; 16];

impl<'a> FeatureCache<'a> {
    /// The cache of a model in a folder; `fingerprint` tells the model from others.
    pub fn open(model: &'a Model, fingerprint: &str, folder: &Path) -> Self {
        let path = folder.join(format!("features-{}.safetensors", &fingerprint[..fingerprint.len().min(16)]));
        Self { model, path, known: None, saved: 0 }
    }

    /// CLIP's features of the pictures of samples.
    ///
    /// # Errors
    /// [`EvalError`] if a picture is not there or cannot be read, the device fails, or the file cannot be written.
    pub fn features(
        &mut self,
        samples: &[&Sample],
        on_progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Features, EvalError> {
        let mut places: HashMap<&Path, usize> = HashMap::new();
        let (mut paths, mut of) = (Vec::new(), Vec::with_capacity(samples.len()));
        for sample in samples {
            let place = *places.entry(&sample.image).or_insert_with(|| {
                paths.push(*sample);
                paths.len() - 1
            });
            of.push(place);
        }
        let keys = paths.iter().map(|sample| key(sample)).collect::<Result<Vec<Key>, _>>()?;
        if self.known.is_none() {
            let known = read(&self.path).unwrap_or_default();
            self.saved = known.len();
            self.known = Some(known);
        }
        let known = self.known.get_or_insert_default();
        let missing: Vec<(Key, &Path)> = keys
            .iter()
            .zip(&paths)
            .filter(|(key, _)| !known.contains_key(*key))
            .map(|(key, sample)| (*key, sample.image.as_path()))
            .collect();
        for (i, chunk) in missing.chunks(AT_ONCE).enumerate() {
            let pictures: Vec<&Path> = chunk.iter().map(|(_, path)| *path).collect();
            let features = gallery::features(self.model, &pictures)?;
            known.extend(chunk.iter().map(|(key, _)| *key).zip(features));
            // Ever more at a time, so that what is there is not written again and again.
            if known.len() - self.saved >= SAVED.max(self.saved / 2) {
                write(&self.path, known)?;
                self.saved = known.len();
            }
            on_progress((i * AT_ONCE + chunk.len()).min(missing.len()), missing.len());
        }
        if known.len() > self.saved {
            write(&self.path, known)?;
            self.saved = known.len();
        }
        Ok(Features { distinct: keys.iter().map(|key| known[key].clone()).collect(), of })
    }
}

fn write(path: &Path, known: &HashMap<Key, Vec<f32>>) -> Result<(), EvalError> {
    let mut sorted: Vec<(&Key, &Vec<f32>)> = known.iter().collect();
    sorted.sort_by_key(|(key, _)| **key);
    let keys: Vec<u8> = sorted.iter().flat_map(|(key, _)| **key).collect();
    let numbers: Vec<u8> = sorted.iter().flat_map(|(_, features)| *features).flat_map(|x| x.to_le_bytes()).collect();
    let width = sorted.first().map_or(0, |(_, features)| features.len());
    let error = |e| EvalError::content(path, e);
    let content = safetensors::serialize(
        [
            ("keys", TensorView::new(Dtype::U8, vec![sorted.len(), size_of::<Key>()], &keys).map_err(error)?),
            ("features", TensorView::new(Dtype::F32, vec![sorted.len(), width], &numbers).map_err(error)?),
        ],
        None,
    );
    flamingo_data::write_whole(path, &content.map_err(error)?).map_err(EvalError::file(path))
}

fn key(sample: &Sample) -> Result<Key, EvalError> {
    let data = std::fs::metadata(&sample.image).map_err(|_| sample.without_picture())?;
    let time = data.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    let nanoseconds = time.map_or(0, |time| time.as_nanos());
    let hash = Sha256::digest(format!("{}\n{} {nanoseconds}", sample.image.display(), data.len()));
    let mut key = Key::default();
    key.copy_from_slice(&hash[..size_of::<Key>()]);
    Ok(key)
}

/// `None` for a file that is not there or is not what the cache wrote: features are then computed again.
fn read(path: &Path) -> Option<HashMap<Key, Vec<f32>>> {
    let bytes = std::fs::read(path).ok()?;
    let tensors = SafeTensors::deserialize(&bytes).ok()?;
    let (keys, features) = (tensors.tensor("keys").ok()?, tensors.tensor("features").ok()?);
    let (&[rows, 16], &[same, width]) = (keys.shape(), features.shape()) else { return None };
    if (keys.dtype(), features.dtype()) != (Dtype::U8, Dtype::F32) || rows != same || width == 0 {
        return None;
    }
    let keys = keys.data().chunks_exact(16).filter_map(|key| Key::try_from(key).ok());
    let numbers = features
        .data()
        .chunks_exact(4 * width)
        .map(|row| row.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect::<Vec<f32>>());
    Some(keys.zip(numbers).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_of_any_length_are_summed() {
        for length in [0, 1, 15, 16, 17, 768, 1000] {
            let a: Vec<f32> = (0..length).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
            let b: Vec<f32> = (0..length).map(|i| ((i * 53 % 97) as f32 - 48.0) / 48.0).collect();
            let exact: f64 = a.iter().zip(&b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum();
            assert!((f64::from(dot(&a, &b)) - exact).abs() < 1e-4, "{length}");
        }
    }
}

//! Albums: documents in MMC4's form, in some of which a picture is not what its sentence says.
//!
//! Web pages are like that, and training filters them by similarity. Here the sentences are the answers of few-shot
//! sequences, the similarity of a picture to a sentence is what a vision tower thinks of it, and how many pictures are
//! misplaced is known.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::ControlFlow;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flamingo_data::read_samples;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::CorpusError;
use crate::random::Random;
use crate::sequences::SHOWN;
use crate::shards::{Member, Shards};

/// Albums of a shard.
const OF_A_SHARD: usize = 1000;

/// A few-shot sequence, as [`crate::make`] writes it.
#[derive(Deserialize)]
struct Generated {
    example: String,
    image_map: BTreeMap<String, Encoded>,
}

#[derive(Deserialize)]
struct Encoded {
    base64_image: String,
}

/// A picture and the sentence at it, by their places in [`Albums`].
#[derive(Clone, Copy)]
struct Item {
    picture: usize,
    sentence: usize,
}

/// Albums in the making.
#[derive(Default)]
pub struct Albums {
    pictures: Vec<Vec<u8>>,
    picture_places: BTreeMap<Vec<u8>, usize>,
    sentences: Vec<String>,
    sentence_places: BTreeMap<String, usize>,
    albums: Vec<Vec<Item>>,
}

/// A picture of an album that was written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Placed {
    /// Its similarity to the sentence that it stands at.
    pub similarity: f64,
    /// Whether it is not what that sentence says.
    pub misplaced: bool,
}

impl Albums {
    /// Reads those sequences that only show, by `Output:` and an answer, from shards of few-shot sequences.
    ///
    /// # Errors
    /// [`CorpusError`] if a shard cannot be read or is damaged, or none has such a sequence.
    pub fn read(shards: &[String]) -> Result<Self, CorpusError> {
        let mut albums = Self::default();
        for shard in shards {
            let path = Path::new(shard);
            let file = File::open(path).map_err(CorpusError::io(path))?;
            let mut wrong = None;
            let skipped = read_samples(std::io::BufReader::new(file), &mut |sample| {
                let Some(json) = sample.parts.get("json") else { return ControlFlow::Continue(()) };
                match albums.add(json) {
                    Ok(()) => ControlFlow::Continue(()),
                    Err(reason) => {
                        wrong = Some(CorpusError::content(&format!("{shard}, sample {}", sample.key), reason));
                        ControlFlow::Break(())
                    }
                }
            });
            wrong.map_or(Ok(()), Err)?;
            if skipped.damaged + skipped.cut > 0 {
                return Err(CorpusError::content(shard, "it is damaged: make it again with fetch-data"));
            }
        }
        if albums.albums.is_empty() {
            return Err(CorpusError::content("the shards", "they have no sequence whose texts begin with `Output:`"));
        }
        Ok(albums)
    }

    fn add(&mut self, json: &[u8]) -> Result<(), String> {
        let sequence: Generated = serde_json::from_slice(json).map_err(|e| e.to_string())?;
        let mut album = Vec::new();
        for part in sequence.example.split("_!_IMAGE").skip(1) {
            let (number, text) = part.split_once("_!_").ok_or("a mark of a picture that does not end")?;
            if !text.starts_with(SHOWN) {
                return Ok(());
            }
            let picture = sequence.image_map.get(&format!("_!_IMAGE{number}_!_")).ok_or("a picture is missing")?;
            let png = STANDARD.decode(&picture.base64_image).map_err(|e| e.to_string())?;
            album.push((png, text.trim().to_string()));
        }
        let album: Vec<Item> = album
            .into_iter()
            .map(|(png, text)| Item {
                picture: place(&mut self.picture_places, &mut self.pictures, png),
                sentence: place(&mut self.sentence_places, &mut self.sentences, text),
            })
            .collect();
        if !album.is_empty() {
            self.albums.push(album);
        }
        Ok(())
    }

    /// All pictures, as files: what features are needed of.
    pub fn pictures(&self) -> &[Vec<u8>] {
        &self.pictures
    }

    /// Writes `albums-0000.tar` and so on, with a share of pictures exchanged for others. `features` are those of
    /// [`Albums::pictures`]. A sentence's feature is the mean of those of all its pictures, as they were before; what all
    /// have in common is taken off, and the cosine is the similarity. Returns every picture, in order.
    ///
    /// # Errors
    /// [`CorpusError`] if the disk refuses.
    ///
    /// # Panics
    /// If there are not as many features as pictures.
    pub fn write(
        &self,
        folder: &Path,
        features: &[Vec<f32>],
        misplaced: f32,
        seed: u64,
    ) -> Result<Vec<Placed>, CorpusError> {
        assert_eq!(features.len(), self.pictures.len(), "a feature for each picture");
        let middle = mean(features.iter());
        let features: Vec<Vec<f32>> =
            features.iter().map(|feature| unit(feature.iter().zip(&middle).map(|(x, m)| x - m).collect())).collect();
        let mut shown: Vec<Vec<&Vec<f32>>> = vec![Vec::new(); self.sentences.len()];
        for item in self.albums.iter().flatten() {
            shown[item.sentence].push(&features[item.picture]);
        }
        let sentences: Vec<Vec<f32>> = shown.into_iter().map(|shown| unit(mean(shown.into_iter()))).collect();

        let mut random = Random::new(seed, "albums");
        let mut shards = Shards::new(folder, "albums", OF_A_SHARD)?;
        let mut placed = Vec::new();
        for album in &self.albums {
            let similarity = |picture: usize, item: &Item| {
                let cosine: f32 = features[picture].iter().zip(&sentences[item.sentence]).map(|(x, y)| x * y).sum();
                (f64::from(cosine) * 1e4).round() / 1e4
            };
            let mut pictures = Vec::new();
            for item in album {
                let exchanged = random.chance(misplaced);
                let other = random.below(self.pictures.len());
                let picture = if exchanged { other } else { item.picture };
                pictures.push(picture);
                placed.push(Placed { similarity: similarity(picture, item), misplaced: picture != item.picture });
            }
            let rows: Vec<Vec<f64>> =
                pictures.iter().map(|&picture| album.iter().map(|item| similarity(picture, item)).collect()).collect();
            let infos: Vec<Value> = pictures
                .iter()
                .enumerate()
                .map(|(number, &picture)| {
                    json!({
                        "image_name": format!("{number}.png"),
                        "image_base64": STANDARD.encode(&self.pictures[picture]),
                    })
                })
                .collect();
            let texts: Vec<&str> = album.iter().map(|item| self.sentences[item.sentence].as_str()).collect();
            let json = json!({ "text_list": texts, "image_info": infos, "similarity_matrix": rows }).to_string();
            shards.add(&[Member { extension: "json", content: json.as_bytes() }])?;
        }
        shards.finish()?;
        Ok(placed)
    }
}

/// The place of a value, which is added if it is new.
fn place<T: Clone + Ord>(places: &mut BTreeMap<T, usize>, values: &mut Vec<T>, value: T) -> usize {
    *places.entry(value).or_insert_with_key(|value| {
        values.push(value.clone());
        values.len() - 1
    })
}

fn mean<'a>(features: impl ExactSizeIterator<Item = &'a Vec<f32>>) -> Vec<f32> {
    let count = features.len().max(1) as f64;
    let mut sum: Vec<f64> = Vec::new();
    for feature in features {
        sum.resize(feature.len(), 0.0);
        sum.iter_mut().zip(feature).for_each(|(sum, &x)| *sum += f64::from(x));
    }
    sum.into_iter().map(|x| (x / count) as f32).collect()
}

fn unit(mut feature: Vec<f32>) -> Vec<f32> {
    let length = feature.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt().max(1e-12);
    feature.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
    feature
}

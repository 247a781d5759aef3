//! Patch tokens of pictures that were seen before: a frozen tower gives the same ones each time.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use burn::tensor::{Tensor, backend::Backend};

use crate::Pixels;

/// A picture's identity: a hash of its pixels.
type Key = u128;

/// What a frozen vision tower gave, up to a number of bytes.
pub(crate) struct Features<B: Backend> {
    known: HashMap<Key, Tensor<B, 2>>,
    room: usize,
}

impl<B: Backend> Features<B> {
    /// Remembers as many pictures as fit into `bytes`; later ones are encoded each time.
    pub(crate) fn new(bytes: usize) -> Self {
        Self { known: HashMap::new(), room: bytes }
    }

    /// Patch tokens of pictures, `[pictures, patches, width]`.
    ///
    /// Unknown pictures are encoded `at_once`, blank ones filling up the last batch: the shape of a matrix product
    /// decides how it rounds, and what a picture gives must not depend on when it was first seen.
    pub(crate) fn of(
        &mut self,
        pictures: &[(Key, &[f32])],
        at_once: usize,
        encode: impl Fn(&[&[f32]]) -> Tensor<B, 3>,
    ) -> Tensor<B, 3> {
        let unknown: Vec<&(Key, &[f32])> = pictures.iter().filter(|(key, _)| !self.known.contains_key(key)).collect();
        let mut fresh = HashMap::new();
        for chunk in unknown.chunks(at_once) {
            let blank = vec![0.0; chunk[0].1.len()];
            let mut batch: Vec<&[f32]> = chunk.iter().map(|(_, picture)| *picture).collect();
            batch.resize(at_once, &blank);
            let tokens = encode(&batch).detach();
            for (i, (key, _)) in chunk.iter().enumerate() {
                fresh.insert(*key, tokens.clone().narrow(0, i, 1).squeeze_dim::<2>(0) * 1.0);
            }
        }
        let tokens = |key| self.known.get(key).or_else(|| fresh.get(key)).cloned();
        let tokens = pictures.iter().filter_map(|(key, _)| tokens(key)).collect();
        let tokens = Tensor::stack(tokens, 0);
        for (key, one) in fresh {
            let bytes = one.shape().num_elements() * one.dtype().size();
            if bytes <= self.room {
                self.room -= bytes;
                self.known.insert(key, one);
            }
        }
        tokens
    }
}

/// The distinct pictures of a batch, and which of them stands at each place.
pub(crate) fn distinct(pixels: &Pixels) -> (Vec<(Key, &[f32])>, Vec<i32>) {
    let size = 3 * pixels.side * pixels.side;
    let mut distinct = Vec::new();
    let mut seen = HashMap::new();
    let places = pixels.data.chunks_exact(size).map(|picture| {
        let key = key(picture);
        *seen.entry(key).or_insert_with(|| {
            distinct.push((key, picture));
            distinct.len() as i32 - 1
        })
    });
    let places = places.collect();
    (distinct, places)
}

fn key(picture: &[f32]) -> Key {
    let bytes: Vec<u8> = picture.iter().flat_map(|x| x.to_le_bytes()).collect();
    let half = |salt: u8| {
        let mut hasher = DefaultHasher::new();
        salt.hash(&mut hasher);
        hasher.write(&bytes);
        u128::from(hasher.finish())
    };
    half(0) << 64 | half(1)
}

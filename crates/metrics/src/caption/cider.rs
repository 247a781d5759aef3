//! CIDEr as pycocoevalcap computes it: the variant that its authors call CIDEr-D, without stemming.

use std::collections::{HashMap, HashSet};

use super::ptb;

/// The longest n-grams that are compared.
const ORDERS: usize = 4;
/// The standard deviation of the penalty for a difference in length, in words.
const SIGMA: f64 = 6.0;

/// How well captions agree with what people wrote about the same pictures; higher is better.
#[derive(Clone, Debug, PartialEq)]
pub struct Cider {
    /// The mean over all images, which papers report times 100; 0 where there are no images.
    pub mean: f64,
    /// One score for each image, from 0 to 10, in the order that they were given.
    pub per_image: Vec<f64>,
}

/// CIDEr of one caption for each image, each with its references, as they were written.
///
/// All references are tokenised in one pass and all captions in a second one, as pycocoevalcap does; see
/// [`ptb::tokenize`] for why that matters. An image without references scores 0.
pub fn cider<H: AsRef<str>, R: AsRef<str>>(images: &[(H, Vec<R>)]) -> Cider {
    let captions: Vec<_> = images.iter().map(|(caption, _)| caption.as_ref()).collect();
    let references: Vec<_> = images.iter().flat_map(|(_, references)| references.iter().map(AsRef::as_ref)).collect();
    let mut references = ptb::tokenize(&references).into_iter();
    let tokenized: Vec<_> = ptb::tokenize(&captions)
        .into_iter()
        .zip(images)
        .map(|(caption, (_, own))| (caption, references.by_ref().take(own.len()).collect::<Vec<_>>()))
        .collect();
    cider_tokenized(&tokenized)
}

/// [`cider`] of captions and references that are tokenised already: words between spaces.
pub fn cider_tokenized<H: AsRef<str>, R: AsRef<str>>(images: &[(H, Vec<R>)]) -> Cider {
    let mut vocabulary = Vocabulary::default();
    let images: Vec<(Counts, Vec<Counts>)> = images
        .iter()
        .map(|(caption, references)| {
            let references = references.iter().map(|reference| vocabulary.count(reference.as_ref())).collect();
            (vocabulary.count(caption.as_ref()), references)
        })
        .collect();
    let rarity = Rarity::of(images.iter().map(|(_, references)| references.as_slice()));
    let per_image: Vec<f64> =
        images.iter().map(|(caption, references)| score(&rarity.weigh(caption), references, &rarity)).collect();
    let mean = if per_image.is_empty() { 0.0 } else { per_image.iter().sum::<f64>() / per_image.len() as f64 };
    Cider { mean, per_image }
}

/// One to four words by their numbers, filled up with [`NO_WORD`].
type Ngram = [u32; ORDERS];

/// No vocabulary is that large.
const NO_WORD: u32 = u32::MAX;

/// The n-grams of a caption and how often each occurs, by n, in the order in which they appear: sums over them are then
/// rounded as the reference implementation rounds them.
type Counts = [Vec<(Ngram, f64)>; ORDERS];

#[derive(Default)]
struct Vocabulary(HashMap<String, u32>);

impl Vocabulary {
    fn count(&mut self, caption: &str) -> Counts {
        let words: Vec<u32> =
            caption.split(is_python_space).filter(|word| !word.is_empty()).map(|word| self.number(word)).collect();
        std::array::from_fn(|order| {
            let mut counts: Vec<(Ngram, f64)> = Vec::new();
            let mut places = HashMap::new();
            for window in words.windows(order + 1) {
                let mut ngram = [NO_WORD; ORDERS];
                ngram[..=order].copy_from_slice(window);
                let place = *places.entry(ngram).or_insert(counts.len());
                match counts.get_mut(place) {
                    Some((_, count)) => *count += 1.0,
                    None => counts.push((ngram, 1.0)),
                }
            }
            counts
        })
    }

    fn number(&mut self, word: &str) -> u32 {
        if let Some(&number) = self.0.get(word) {
            return number;
        }
        let number = self.0.len() as u32;
        self.0.insert(word.to_owned(), number);
        number
    }
}

/// What Python's `str.split` splits at. A token may hold a no-break space, and counts as two words then.
pub(super) fn is_python_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// In the references of how many images each n-gram occurs.
struct Rarity {
    images: HashMap<Ngram, f64>,
    /// The logarithm of the number of all images.
    total: f64,
}

impl Rarity {
    fn of<'a>(references: impl Iterator<Item = &'a [Counts]>) -> Rarity {
        let mut images = HashMap::new();
        let mut total: f64 = 0.0;
        for references in references {
            let ngrams: HashSet<Ngram> = references.iter().flatten().flatten().map(|&(ngram, _)| ngram).collect();
            for ngram in ngrams {
                *images.entry(ngram).or_insert(0.0) += 1.0;
            }
            total += 1.0;
        }
        Rarity { images, total: total.ln() }
    }

    fn weigh(&self, counts: &Counts) -> Weights {
        let ngrams: [Vec<(Ngram, f64)>; ORDERS] = std::array::from_fn(|order| {
            let weigh = |&(ngram, count): &(Ngram, f64)| {
                let images: f64 = self.images.get(&ngram).copied().unwrap_or(0.0);
                (ngram, count * (self.total - images.max(1.0).ln()))
            };
            counts[order].iter().map(weigh).collect()
        });
        let norms =
            std::array::from_fn(|order| ngrams[order].iter().map(|(_, weight)| weight * weight).sum::<f64>().sqrt());
        // The reference implementation sums the counts of what its index 1 holds, which are the pairs of words.
        let length = counts[1].iter().map(|(_, count)| count).sum();
        Weights { ngrams, norms, length }
    }
}

/// A caption as one vector for each n: how often an n-gram occurs, times how rare it is.
struct Weights {
    ngrams: [Vec<(Ngram, f64)>; ORDERS],
    norms: [f64; ORDERS],
    length: f64,
}

fn score(caption: &Weights, references: &[Counts], rarity: &Rarity) -> f64 {
    let mut sums = [0.0; ORDERS];
    for reference in references {
        let similarities = similarities(caption, &rarity.weigh(reference));
        for (sum, similarity) in sums.iter_mut().zip(similarities) {
            *sum += similarity;
        }
    }
    let mean = sums.iter().sum::<f64>() / ORDERS as f64;
    // Without references there is nothing to agree with, rather than 0 / 0.
    mean / references.len().max(1) as f64 * 10.0
}

/// For each n the cosine of the two vectors, where a caption gains nothing from repeating an n-gram more often than the
/// reference has it, times the penalty for another length.
fn similarities(caption: &Weights, reference: &Weights) -> [f64; ORDERS] {
    let difference = caption.length - reference.length;
    let penalty = std::f64::consts::E.powf(-difference.powi(2) / (2.0 * SIGMA.powi(2)));
    std::array::from_fn(|order| {
        let weights: HashMap<Ngram, f64> = reference.ngrams[order].iter().copied().collect();
        let product: f64 = caption.ngrams[order]
            .iter()
            .filter_map(|(ngram, weight)| weights.get(ngram).map(|other| weight.min(*other) * other))
            .sum();
        let norms = caption.norms[order] * reference.norms[order];
        penalty * if norms == 0.0 { product } else { product / norms }
    })
}

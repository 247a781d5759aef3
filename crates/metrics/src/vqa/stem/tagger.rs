//! Parts of speech by NLTK's averaged perceptron tagger for English, with its weights.
//!
//! A word that nearly always had one tag in the training text gets that tag. Any other gets the tag with the highest sum
//! of the weights that belong to its features: the word, its ends, its neighbours, and the two tags before it.

use std::collections::HashMap;
use std::io::Read;
use std::ops::Range;
use std::sync::LazyLock;

use flate2::read::GzDecoder;
use regex::Regex;

static TAGGER: LazyLock<Tagger> = LazyLock::new(Tagger::shipped);

/// The tags of a sentence's words, in the Penn Treebank's names.
pub fn tags(words: &[String]) -> Vec<&'static str> {
    TAGGER.tags(words)
}

struct Tagger {
    /// In the order of their names.
    tags: Vec<&'static str>,
    /// Words with one tag.
    known: HashMap<&'static str, &'static str>,
    /// Where the weights of a feature lie.
    features: HashMap<&'static str, Range<usize>>,
    /// Places in `tags`, and what a feature adds to that tag's sum.
    weights: Vec<(usize, f64)>,
}

impl Tagger {
    /// The file that comes with this crate; its format is described beside it.
    fn shipped() -> Self {
        let mut text = String::new();
        let file: &[u8] = include_bytes!("../../../data/tagger.txt.gz");
        GzDecoder::new(file).read_to_string(&mut text).expect("the file is part of the program");
        // It is read once and needed until the program ends; names in it need no copies.
        Self::parse(text.leak())
    }

    fn parse(text: &'static str) -> Self {
        let mut lines = text.lines();
        let tags: Vec<&str> = lines.next().unwrap_or_default().split(' ').collect();
        let words = lines.next().and_then(|count| count.parse().ok()).unwrap_or(0);
        let place = |letter: char| (letter as usize).wrapping_sub('A' as usize).min(tags.len() - 1);
        let known = lines
            .by_ref()
            .take(words)
            .filter_map(|line| line.split_once('\t'))
            .filter_map(|(word, letter)| Some((word, tags[place(letter.chars().next()?)])))
            .collect();

        let mut features = HashMap::new();
        let mut weights = Vec::new();
        for (feature, coded) in lines.filter_map(|line| line.split_once('\t')) {
            let start = weights.len();
            let mut rest = coded;
            while let Some(letter) = rest.chars().next() {
                let number = &rest[letter.len_utf8()..];
                let end = number.find(|c: char| c != '-' && !c.is_ascii_digit()).unwrap_or(number.len());
                let thousandths: f64 = number[..end].parse().unwrap_or(0.0);
                // Divided, it is the very number that three decimals are read as.
                weights.push((place(letter), thousandths / 1000.0));
                rest = &number[end..];
            }
            features.insert(feature, start..weights.len());
        }
        Self { tags, known, features, weights }
    }

    fn tags(&self, words: &[String]) -> Vec<&'static str> {
        let mut context = vec!["-START-".to_owned(), "-START2-".to_owned()];
        context.extend(words.iter().map(|word| normalised(word)));
        context.extend(["-END-".to_owned(), "-END2-".to_owned()]);

        let mut before = ["-START2-", "-START-"];
        let mut tags = Vec::with_capacity(words.len());
        for (word, context) in words.iter().zip(context.windows(5)) {
            let tag = self.known.get(word.as_str()).copied().unwrap_or_else(|| self.best(word, context, before));
            before = [before[1], tag];
            tags.push(tag);
        }
        tags
    }

    /// The tag with the highest sum, of several the last by name. `context` is the word between its neighbours, two at
    /// either side; `before` are the tags of the two to the left.
    fn best(&self, word: &str, context: &[String], before: [&str; 2]) -> &'static str {
        let mut sums = vec![0.0; self.tags.len()];
        // Sums are rounded, so the order of the features is part of the result.
        for feature in features(word, context, before) {
            let weights = self.features.get(feature.as_str()).cloned().unwrap_or_default();
            for &(tag, weight) in &self.weights[weights] {
                sums[tag] += weight;
            }
        }
        let best = (0..sums.len()).reduce(|best, tag| if sums[tag] >= sums[best] { tag } else { best });
        self.tags[best.unwrap_or(0)]
    }
}

fn features(word: &str, context: &[String], [tag2, tag1]: [&str; 2]) -> [String; 14] {
    let [left2, left1, this, right1, right2] = [0, 1, 2, 3, 4].map(|i| context[i].as_str());
    [
        "bias".to_owned(),
        format!("i suffix {}", suffix(word)),
        format!("i pref1 {}", word.chars().next().map_or(String::new(), String::from)),
        format!("i-1 tag {tag1}"),
        format!("i-2 tag {tag2}"),
        format!("i tag+i-2 tag {tag1} {tag2}"),
        format!("i word {this}"),
        format!("i-1 tag+i word {tag1} {this}"),
        format!("i-1 word {left1}"),
        format!("i-1 suffix {}", suffix(left1)),
        format!("i-2 word {left2}"),
        format!("i+1 word {right1}"),
        format!("i+1 suffix {}", suffix(right1)),
        format!("i+2 word {right2}"),
    ]
}

/// The last three characters.
fn suffix(word: &str) -> &str {
    word.char_indices().rev().nth(2).map_or(word, |(start, _)| &word[start..])
}

/// A word as its neighbours see it: years, numbers and compounds are all the same, case does not matter.
fn normalised(word: &str) -> String {
    /// Decimal digits, and those in circles, brackets and as powers, which Python takes for digits, too.
    const DIGIT: &str = r"[\d²³¹\x{1369}-\x{1371}\x{19DA}\x{2070}\x{2074}-\x{2079}\x{2080}-\x{2089}\x{2460}-\x{2468}\x{2474}-\x{247C}\x{2488}-\x{2490}\x{24EA}\x{24F5}-\x{24FD}\x{24FF}\x{2776}-\x{277E}\x{2780}-\x{2788}\x{278A}-\x{2792}\x{10A40}-\x{10A43}\x{10E60}-\x{10E68}\x{11052}-\x{1105A}\x{1F100}-\x{1F10A}]";
    static YEAR: LazyLock<Regex> = LazyLock::new(|| Regex::new(&format!("^{DIGIT}{{4}}$")).expect("a valid pattern"));
    static NUMBER: LazyLock<Regex> = LazyLock::new(|| Regex::new(&format!("^{DIGIT}")).expect("a valid pattern"));
    if word.contains('-') && !word.starts_with('-') {
        "!HYPHEN".to_owned()
    } else if YEAR.is_match(word) {
        "!YEAR".to_owned()
    } else if NUMBER.is_match(word) {
        "!DIGITS".to_owned()
    } else {
        word.to_lowercase()
    }
}

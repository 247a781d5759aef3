//! Interleaved documents as training reads them: which pictures stay, where their marks go, what text remains
//! (`open_flamingo/train/data.py`, `preprocess_interleaved` and `preprocess_gpt_interleaved`).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use crate::assignment::most_similar;
use crate::{DataError, ENDOFCHUNK, IMAGE, Picture, SpecialTokens, Tokenizer};

/// What a document must be to be learnt from; upstream's `--mmc4_*` options.
#[derive(Clone, Debug, PartialEq)]
pub struct DocumentRules {
    /// A picture stays if its similarity to its sentence is this at least.
    pub textsim_threshold: f64,
    /// Fewest `<image>` marks among the tokens.
    pub min_num_images: usize,
    /// Most pictures.
    pub max_num_images: usize,
    /// Tokens after which a document is cut off.
    pub max_tokens: usize,
    /// Pictures whose file is smaller are decoration.
    pub min_bytes: usize,
    /// Upstream's order of pictures, which need not be that of their marks; its cut of generated sequences, which keeps
    /// one mark fewer than pictures; and marks that a text itself contains.
    pub upstream_compat: bool,
}

impl Default for DocumentRules {
    /// Upstream's defaults, but for the threshold: upstream's is 30, and the similarities that it is compared with are
    /// fractions. Ours is the paper's, as in a recipe.
    fn default() -> Self {
        Self {
            textsim_threshold: 0.24,
            min_num_images: 1,
            max_num_images: 6,
            max_tokens: 256,
            min_bytes: 11_000,
            upstream_compat: false,
        }
    }
}

/// A document ready for a batch.
#[derive(Clone, Debug)]
pub struct Document {
    /// Its pictures, in the order of their marks.
    pub pictures: Vec<Picture>,
    /// Its tokens; cutting may have left fewer marks than pictures.
    pub ids: Vec<u32>,
}

/// Why a document is not learnt from.
#[derive(Debug, thiserror::Error)]
pub enum Rejected {
    /// No JSON, or not of this form.
    #[error("not a document: {0}")]
    Form(String),
    /// A picture or the text is unusable.
    #[error(transparent)]
    Data(#[from] DataError),
    /// No picture passes the rules.
    #[error("no picture is left")]
    NoPicture,
    /// Too few marks among the tokens.
    #[error("fewer than {0} pictures are left")]
    TooFew(usize),
    /// One picture only: every second such document is left out.
    #[error("one picture only")]
    Single,
    /// The only mark is the last token, so nothing would be predicted.
    #[error("nothing follows the only picture")]
    Empty,
    /// A sample without a part that it needs.
    #[error("the sample has no {0}")]
    Missing(&'static str),
}

impl Rejected {
    /// A short name of the reason, to count by.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Form(_) => "unreadable text",
            Self::Data(DataError::Tokenizer(_)) => "tokenizer",
            Self::Data(_) => "unreadable picture",
            Self::NoPicture => "no picture left",
            Self::TooFew(_) => "too few pictures",
            Self::Single => "one picture only",
            Self::Empty => "nothing predicted",
            Self::Missing(_) => "part missing",
        }
    }
}

/// MMC4's form of a document; ChatGPT-generated sequences have `example` and `image_map` instead.
#[derive(Deserialize)]
pub(crate) struct File {
    pub(crate) is_gpt: Option<serde_json::Value>,
    #[serde(default)]
    pub(crate) text_list: Vec<String>,
    #[serde(default)]
    pub(crate) image_info: Vec<ImageInfo>,
    #[serde(default)]
    pub(crate) similarity_matrix: Vec<Vec<f64>>,
    #[serde(default)]
    pub(crate) example: String,
    #[serde(default)]
    pub(crate) image_map: std::collections::BTreeMap<String, Base64Image>,
}

#[derive(Deserialize)]
pub(crate) struct ImageInfo {
    pub(crate) image_base64: Option<String>,
}

#[derive(Deserialize)]
pub(crate) struct Base64Image {
    pub(crate) base64_image: String,
}

impl File {
    /// Whether each picture of a web page has a number for each sentence.
    pub(crate) fn check(&self) -> Result<(), Rejected> {
        if self.image_info.len() != self.similarity_matrix.len() {
            return Err(Rejected::Form("image_info and similarity_matrix differ in length".into()));
        }
        let fits = |row: &Vec<f64>| row.len() == self.text_list.len() && row.iter().all(|x| x.is_finite());
        if !self.similarity_matrix.iter().all(fits) {
            return Err(Rejected::Form("a row of similarity_matrix is not one number a sentence".into()));
        }
        Ok(())
    }
}

impl DocumentRules {
    /// Makes a document of its JSON. `draw`, uniform in [0, 1), decides whether a document with one picture stays.
    ///
    /// # Errors
    /// [`Rejected`]: whatever keeps it from being learnt from.
    pub fn apply(
        &self,
        json: &[u8],
        tokenizer: &Tokenizer,
        tokens: &SpecialTokens,
        draw: f64,
    ) -> Result<Document, Rejected> {
        let file: File = serde_json::from_slice(json).map_err(|e| Rejected::Form(e.to_string()))?;
        let generated = file.is_gpt.is_some();
        let (pictures, text) = if generated { self.generated(file)? } else { self.crawled(file)? };
        let eos = tokenizer.eos_token().unwrap_or_default();
        let mut ids = tokenizer.encode(&format!("{text}{ENDOFCHUNK}{eos}"))?;
        ids.truncate(self.max_tokens);

        let marks = ids.iter().filter(|&&id| id == tokens.image).count();
        if marks < self.min_num_images {
            return Err(Rejected::TooFew(self.min_num_images));
        }
        if !generated && marks == 1 {
            if draw <= 0.5 {
                return Err(Rejected::Single);
            }
            if ids.len() == self.max_tokens && ids.last() == Some(&tokens.image) {
                return Err(Rejected::Empty);
            }
        }
        Ok(Document { pictures, ids })
    }

    /// A web page: each picture goes to the sentence that it suits best, no two to one.
    fn crawled(&self, file: File) -> Result<(Vec<Picture>, String), Rejected> {
        let mut pictures = Vec::new();
        let mut similarities = Vec::new();
        let mut budget = Budget::default();
        file.check()?;
        let mut sentences = file.text_list;
        if !self.upstream_compat {
            sentences.iter_mut().for_each(|sentence| *sentence = without_marks(sentence));
        }
        for (info, row) in file.image_info.iter().zip(file.similarity_matrix) {
            let Some(encoded) = &info.image_base64 else { continue };
            let bytes = decoded(encoded)?;
            if bytes.len() < self.min_bytes {
                continue;
            }
            pictures.push(budget.decode(&bytes)?);
            similarities.push(row);
        }
        let mut kept: Vec<(Picture, usize)> = pictures
            .into_iter()
            .zip(most_similar(&similarities))
            .filter_map(|(picture, place)| place.map(|(place, similarity)| (picture, place, similarity)))
            .filter(|(_, _, similarity)| *similarity >= self.textsim_threshold)
            .map(|(picture, place, _)| (picture, place))
            .collect();
        if kept.is_empty() {
            return Err(Rejected::NoPicture);
        }
        kept.truncate(self.max_num_images);
        for (_, place) in &kept {
            sentences[*place].insert_str(0, &format!("{ENDOFCHUNK}{IMAGE}"));
        }
        if !self.upstream_compat {
            kept.sort_by_key(|(_, place)| *place);
        }
        let pictures = kept.into_iter().map(|(picture, _)| picture).collect();
        Ok((pictures, tidied(&sentences.join(" "))))
    }

    /// A sequence that a language model wrote around numbered pictures.
    fn generated(&self, file: File) -> Result<(Vec<Picture>, String), Rejected> {
        let example = if self.upstream_compat { file.example } else { without_marks(&file.example) };
        let (text, numbers) = with_marks(&example);
        let mut text = tidied(&text);
        // Upstream takes the pictures as they are numbered, wherever they stand.
        let numbers = if self.upstream_compat { (1..=file.image_map.len()).collect() } else { numbers };
        let mut budget = Budget::default();
        let mut pictures = Vec::new();
        for number in numbers.into_iter().take(self.max_num_images) {
            let image = file.image_map.get(&format!("_!_IMAGE{number}_!_"));
            let image = image.ok_or_else(|| Rejected::Form(format!("image_map has no picture {number}")))?;
            pictures.push(budget.decode(&decoded(&image.base64_image)?)?);
        }
        let kept = if self.upstream_compat { self.max_num_images.saturating_sub(1) } else { self.max_num_images };
        let marks: Vec<usize> = text.match_indices(IMAGE).map(|(at, _)| at).collect();
        if marks.len() > self.max_num_images {
            text.truncate(marks[kept]);
        }
        Ok((pictures, text))
    }
}

/// Most pixels of a document's pictures together: 768 MiB of them, decoded.
const MAX_PIXELS: u64 = 1 << 28;

/// How many pixels a document has so far.
#[derive(Default)]
struct Budget(u64);

impl Budget {
    fn decode(&mut self, bytes: &[u8]) -> Result<Picture, Rejected> {
        let picture = Picture::decode(bytes)?;
        self.0 += u64::from(picture.width()) * u64::from(picture.height());
        if self.0 > MAX_PIXELS {
            return Err(Rejected::Form(format!("its pictures have more than {MAX_PIXELS} pixels together")));
        }
        Ok(picture)
    }
}

/// A text that says nothing about where pictures are and where they end: what a page writes about `<image>` is no picture.
/// A mark that appears where another one was taken out goes, too.
pub(crate) fn without_marks(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    for character in text.chars() {
        kept.push(character);
        if let Some(mark) = [IMAGE, ENDOFCHUNK].into_iter().find(|mark| kept.ends_with(mark)) {
            kept.truncate(kept.len() - mark.len());
        }
    }
    kept
}

fn decoded(encoded: &str) -> Result<Vec<u8>, Rejected> {
    STANDARD.decode(encoded).map_err(|e| Rejected::Form(format!("a picture is no base64: {e}")))
}

/// Puts a mark where a numbered placeholder `_!_IMAGE7_!_` stands; also the numbers.
fn with_marks(text: &str) -> (String, Vec<usize>) {
    let mut numbers = Vec::new();
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("_!_IMAGE") {
        let (before, from) = rest.split_at(at);
        let number = &from["_!_IMAGE".len()..];
        let digits = number.len() - number.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        out.push_str(before);
        match number[digits..].strip_prefix("_!_") {
            Some(after) if digits > 0 => {
                out.push_str(ENDOFCHUNK);
                out.push_str(IMAGE);
                // No picture has a number that is larger than all.
                numbers.push(number[..digits].parse().unwrap_or(usize::MAX));
                rest = after;
            }
            _ => {
                out.push_str("_!_IMAGE");
                rest = number;
            }
        }
    }
    (out + rest, numbers)
}

/// Nothing ends before the first picture, and no space surrounds a mark.
fn tidied(text: &str) -> String {
    text.replacen(ENDOFCHUNK, "", 1)
        .replace(&format!(" {ENDOFCHUNK}"), ENDOFCHUNK)
        .replace(&format!("{IMAGE} "), IMAGE)
        .replace(&format!(" {IMAGE}"), IMAGE)
}

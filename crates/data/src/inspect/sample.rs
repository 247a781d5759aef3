//! What there is to say about one sample.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::InspectOptions;
use crate::assignment::most_similar;
use crate::documents::File;
use crate::examples::PICTURES;
use crate::prepare::{Unusable, decode, extension};
use crate::{Sample, Tokenizer};

/// What a sample is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Pair,
    Document,
    Generated,
    Unknown,
}

/// What there is to say about a sample.
pub(super) struct Facts {
    pub(super) kind: Kind,
    /// Extension and bytes of each part.
    pub(super) members: Vec<(String, u64)>,
    pub(super) pictures: Vec<Result<Size, Unusable>>,
    /// Pictures that a document names, whether or not they are there.
    pub(super) named: usize,
    /// Characters and tokens.
    pub(super) text: Option<(u64, Option<u64>)>,
    /// Of the pictures that training would use, to the sentences that it would put them before.
    pub(super) similarities: Vec<f64>,
    /// What else is wrong.
    pub(super) problems: Vec<Unusable>,
}

/// A picture that can be decoded.
pub(super) struct Size {
    pub(super) format: &'static str,
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) bytes: usize,
}

impl Facts {
    fn new(kind: Kind) -> Self {
        Self {
            kind,
            members: Vec::new(),
            pictures: Vec::new(),
            named: 0,
            text: None,
            similarities: Vec::new(),
            problems: Vec::new(),
        }
    }

    /// Bytes of all parts.
    pub(super) fn bytes(&self) -> u64 {
        self.members.iter().map(|(_, bytes)| bytes).sum()
    }

    fn measure(&mut self, text: &str, tokenizer: Option<&Tokenizer>) {
        let tokens = tokenizer.map(|tokenizer| tokenizer.encode_plain(text));
        if let Some(Err(_)) = tokens {
            self.problems.push(Unusable::Tokenizer);
        }
        let tokens = tokens.and_then(Result::ok).map(|ids| ids.len() as u64);
        self.text = Some((text.chars().count() as u64, tokens));
    }
}

/// Looks at a sample of a shard.
pub(super) fn facts(sample: &Sample, options: &InspectOptions) -> Facts {
    let document = sample.parts.get("json").and_then(|json| of_document(json, options, false));
    let mut facts = document.or_else(|| of_pair(sample, options)).unwrap_or_else(|| Facts::new(Kind::Unknown));
    if facts.kind == Kind::Unknown && sample.parts.contains_key("json") {
        facts.problems.push(Unusable::Document);
    }
    facts.members = sample.parts.iter().map(|(extension, part)| (extension.clone(), part.len() as u64)).collect();
    facts
}

/// Looks at a document outside of a shard. Pictures that it does not hold are taken for there: they are elsewhere.
pub(super) fn facts_of_line(line: &[u8], options: &InspectOptions) -> Facts {
    let mut facts = of_document(line, options, true).unwrap_or_else(|| Facts::new(Kind::Unknown));
    if facts.kind == Kind::Unknown {
        facts.problems.push(Unusable::Document);
    }
    facts.members = vec![("json".to_string(), line.len() as u64)];
    facts
}

fn of_pair(sample: &Sample, options: &InspectOptions) -> Option<Facts> {
    let picture = PICTURES.iter().find_map(|kind| sample.parts.get(*kind))?;
    let text = sample.parts.get("txt")?;
    let mut facts = Facts::new(Kind::Pair);
    facts.pictures.push(size(picture));
    match std::str::from_utf8(text) {
        Ok(text) => facts.measure(text.trim(), options.tokenizer.as_deref()),
        Err(_) => facts.problems.push(Unusable::Text),
    }
    Some(facts)
}

fn of_document(json: &[u8], options: &InspectOptions, pictures_elsewhere: bool) -> Option<Facts> {
    let file: File = serde_json::from_slice(json).ok()?;
    let tokenizer = options.tokenizer.as_deref();
    if file.is_gpt.is_some() {
        let mut facts = Facts::new(Kind::Generated);
        facts.named = file.image_map.len();
        facts.pictures = file.image_map.values().map(|image| size(&base64(&image.base64_image)?)).collect();
        facts.measure(&file.example, tokenizer);
        return Some(facts);
    }
    if file.text_list.is_empty() && file.image_info.is_empty() {
        return None;
    }
    let mut facts = Facts::new(Kind::Document);
    facts.named = file.image_info.len();
    facts.measure(&file.text_list.join(" "), tokenizer);
    // Which pictures training would use; a damaged one costs it the whole document.
    let (mut used, mut damaged) = (Vec::new(), false);
    for image in &file.image_info {
        let Some(encoded) = &image.image_base64 else {
            used.push(pictures_elsewhere);
            continue;
        };
        let bytes = base64(encoded);
        let large = bytes.as_ref().is_ok_and(|bytes| bytes.len() >= options.rules.min_bytes);
        let size = bytes.and_then(|bytes| size(&bytes));
        damaged |= size.as_ref().is_err_and(|reason| large || *reason == Unusable::Base64);
        used.push(large);
        facts.pictures.push(size);
    }
    if file.check().is_err() {
        facts.problems.push(Unusable::Similarities);
    } else if !damaged {
        let rows = file.similarity_matrix.into_iter().zip(used).filter_map(|(row, used)| used.then_some(row));
        let placed = most_similar(&rows.collect::<Vec<_>>());
        facts.similarities = placed.into_iter().flatten().map(|(_, similarity)| similarity).collect();
    }
    Some(facts)
}

fn base64(encoded: &str) -> Result<Vec<u8>, Unusable> {
    STANDARD.decode(encoded).map_err(|_| Unusable::Base64)
}

fn size(bytes: &[u8]) -> Result<Size, Unusable> {
    let (format, picture) = decode(bytes)?;
    Ok(Size { format: extension(format), width: picture.width(), height: picture.height(), bytes: bytes.len() })
}

//! Text as upstream's tokenizers read it, with the tokens that upstream adds.

use std::fs;
use std::io::ErrorKind;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use serde_json::{Map, Value, json};
use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, Model, Tokenizer as Inner};

use crate::DataError;

/// Ends each picture's text.
pub const ENDOFCHUNK: &str = "<|endofchunk|>";
/// Stands where a picture is.
pub const IMAGE: &str = "<image>";
/// Padding, for tokenizers that have none of their own.
pub const PAD: &str = "<PAD>";

/// What GPT-2 and GPT-NeoX begin and end texts with where their files do not say.
const ENDOFTEXT: &str = "<|endoftext|>";

/// Ids from here on are taken for damage: no embedding table is that long.
const MAX_ID: u64 = 1 << 30;

/// LLaMA's tokenizer, which writes spaces with three bytes in several places, grows texts by 27 at most.
const MAX_GROWTH: f64 = 4096.0;

/// transformers' `clean_up_tokenization`, in its order.
const CLEAN_UP: [(&str, &str); 10] = [
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
];

/// A language model's tokenizer.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Inner,
    named: Named,
    /// `special_tokens_map.json`, with the tokens that were added.
    map: Map<String, Value>,
    /// Whether decoded text loses the space before punctuation, as Hugging Face's tokenizers do unless told not to.
    clean_up: bool,
}

/// Special tokens that the folder's config files name.
#[derive(Clone, Default)]
struct Named {
    bos: Option<String>,
    eos: Option<String>,
    pad: Option<String>,
}

/// Ids of the tokens that OpenFlamingo needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpecialTokens {
    /// `<|endofchunk|>`.
    pub endofchunk: u32,
    /// `<image>`.
    pub image: u32,
    /// The tokenizer's own padding token, or `<PAD>`.
    pub pad: u32,
    /// Begins a text, in families that have one.
    pub bos: Option<u32>,
    /// Ends a text, in families that have one.
    pub eos: Option<u32>,
}

impl Tokenizer {
    /// Opens the tokenizer of a model folder: `tokenizer.json`, or GPT-2's form of `vocab.json` and `merges.txt`. A
    /// path to a file is a `tokenizer.json` alone.
    ///
    /// `tokenizer_config.json` and `special_tokens_map.json` name the special tokens; where they contradict each
    /// other, the map counts, as in upstream's Hugging Face version.
    ///
    /// # Errors
    /// [`DataError::Tokenizer`] if the folder has neither, or one of the files is unusable; [`DataError::Io`] if one
    /// cannot be read.
    pub fn open(folder: &Path) -> Result<Self, DataError> {
        let alone = folder.is_file();
        let beside = |name: &str| if alone { Ok(None) } else { optional(&folder.join(name)) };
        let files = [beside("special_tokens_map.json")?, beside("tokenizer_config.json")?];
        let whole = if alone { folder.to_path_buf() } else { folder.join("tokenizer.json") };
        let inner = if whole.is_file() {
            from_json(&whole, &read(&whole)?)?
        } else {
            let adds_bos = files.iter().flatten().any(|file| file["add_bos_token"] == Value::Bool(true));
            let bos = named(&files, "bos_token").unwrap_or_else(|| ENDOFTEXT.to_string());
            from_merges(folder, adds_bos.then_some(bos.as_str()))?
        };
        Self::new(inner, files)
    }

    /// What [`Tokenizer::open`] makes of a folder, from what its files hold: `tokenizer.json`, and where they are there
    /// `special_tokens_map.json` and `tokenizer_config.json`.
    ///
    /// # Errors
    /// [`DataError::Tokenizer`] if one of them is unusable.
    pub fn from_memory(tokenizer: &[u8], map: Option<&[u8]>, config: Option<&[u8]>) -> Result<Self, DataError> {
        let beside = |name: &str, bytes: Option<&[u8]>| bytes.map(|bytes| object(Path::new(name), bytes)).transpose();
        let files = [beside("special_tokens_map.json", map)?, beside("tokenizer_config.json", config)?];
        Self::new(from_json(Path::new("tokenizer.json"), tokenizer)?, files)
    }

    /// A tokenizer with the special tokens that `special_tokens_map.json` and `tokenizer_config.json` name.
    fn new(inner: Inner, files: [Option<Value>; 2]) -> Result<Self, DataError> {
        let named = |key: &str| named(&files, key);
        let mut own = Named { bos: named("bos_token"), eos: named("eos_token"), pad: named("pad_token") };
        if own.bos.is_none() && own.eos.is_none() && inner.token_to_id(ENDOFTEXT).is_some() {
            own.bos = Some(ENDOFTEXT.to_string());
            own.eos = own.bos.clone();
        }
        // The order in which Hugging Face adds those that the vocabulary lacks.
        let mut special: Vec<String> = [&own.bos, &own.eos].into_iter().flatten().cloned().collect();
        special
            .extend(["unk_token", "sep_token", "pad_token", "cls_token", "mask_token"].into_iter().filter_map(named));
        if let Some(more) = files.iter().flatten().find_map(|file| file["additional_special_tokens"].as_array()) {
            special.extend(more.iter().filter_map(content).map(str::to_string));
        }
        let keeps = files.iter().flatten().any(|file| file["clean_up_tokenization_spaces"] == Value::Bool(false));
        let [map, _] = files;
        let map = map.and_then(|map| map.as_object().cloned()).unwrap_or_default();
        let mut tokenizer = Self { inner, named: own, map, clean_up: !keeps };
        for token in special {
            tokenizer.add(&token)?;
        }
        Ok(tokenizer)
    }

    /// Adds upstream's tokens in upstream's order (`src/factory.py`): `<|endofchunk|>`, `<image>`, and `<PAD>`
    /// where the tokenizer has no padding token. Tokens that are there already keep their ids.
    ///
    /// # Errors
    /// [`DataError::Tokenizer`] if they cannot be added.
    pub fn add_flamingo_tokens(&mut self) -> Result<SpecialTokens, DataError> {
        let endofchunk = self.add(ENDOFCHUNK)?;
        let image = self.add(IMAGE)?;
        let pad_token = self.named.pad.get_or_insert_with(|| PAD.to_string()).clone();
        let pad = self.add(&pad_token)?;
        self.map.insert("pad_token".into(), pad_token.into());
        // As upstream's call does it: its two tokens take the place of others in this list.
        self.map.insert("additional_special_tokens".into(), json!([ENDOFCHUNK, IMAGE]));
        let id = |token: &Option<String>| token.as_deref().and_then(|token| self.inner.token_to_id(token));
        Ok(SpecialTokens { endofchunk, image, pad, bos: id(&self.named.bos), eos: id(&self.named.eos) })
    }

    /// Makes a token special, adding it if it is not there.
    fn add(&mut self, token: &str) -> Result<u32, DataError> {
        if !self.inner.get_added_vocabulary().is_special_token(token) {
            self.inner.add_special_tokens(&[AddedToken::from(token, true)]);
        }
        self.inner.token_to_id(token).ok_or_else(|| wrong(format!("the tokenizer does not take the token {token}")))
    }

    /// Token ids of a text, with the beginning-of-text token in families that prepend one.
    ///
    /// # Errors
    /// [`DataError::Tokenizer`] if the tokenizer fails.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, DataError> {
        self.ids(text, true)
    }

    /// Token ids of a text that continues another: nothing is prepended.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>, DataError> {
        self.ids(text, false)
    }

    fn ids(&self, text: &str, whole: bool) -> Result<Vec<u32>, DataError> {
        let encoding =
            guarded(|| self.inner.encode(text, whole))?.map_err(|e| wrong(format!("cannot tokenize: {e}")))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of token ids, spaces as they are. Bytes that are no UTF-8 become U+FFFD; ids outside the vocabulary
    /// have no text.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        self.cleaned(self.raw(ids, skip_special))
    }

    /// The bytes of one token, which may be a part of a character.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        let text = self.decode(&[id], false);
        let of_token = || {
            let token = self.inner.id_to_token(id)?;
            // As SentencePiece names bytes, and as GPT-2 writes them.
            match token.strip_prefix("<0x").and_then(|token| token.strip_suffix('>')) {
                Some(digits) => Some(vec![u8::from_str_radix(digits, 16).ok()?]),
                None => token.chars().map(byte_of).collect(),
            }
        };
        let whole = !text.contains(char::REPLACEMENT_CHARACTER);
        if whole { text.into_bytes() } else { of_token().unwrap_or_else(|| text.into_bytes()) }
    }

    fn raw(&self, ids: &[u32], skip_special: bool) -> String {
        guarded(|| self.inner.decode(ids, skip_special)).ok().and_then(Result::ok).unwrap_or_default()
    }

    fn cleaned(&self, text: String) -> String {
        if !self.clean_up {
            return text;
        }
        CLEAN_UP.iter().fold(text, |text, (from, to)| text.replace(from, to))
    }

    /// Decodes ids one by one.
    pub fn stream(&self) -> TextStream<'_> {
        TextStream { tokenizer: self, ids: Vec::new(), context: 0, given: 0, held: String::new() }
    }

    /// The token that ends a text, in families that have one.
    pub fn eos_token(&self) -> Option<&str> {
        self.named.eos.as_deref()
    }

    /// Number of tokens, added ones included.
    pub fn len(&self) -> usize {
        // The library's own count copies the vocabulary.
        let model = self.inner.get_model();
        let added = self.inner.get_added_vocabulary().get_vocab().keys();
        model.get_vocab_size() + added.filter(|token| model.token_to_id(token).is_none()).count()
    }

    /// Whether there is no token at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The text of a `tokenizer.json`, added tokens included.
    ///
    /// # Errors
    /// [`DataError::Tokenizer`] if the tokenizer cannot be written down.
    pub fn to_json(&self) -> Result<String, DataError> {
        self.inner.to_string(true).map_err(|e| wrong(format!("cannot write the tokenizer down: {e}")))
    }

    /// The text of a `special_tokens_map.json`, which names to Hugging Face's tools what was added.
    pub fn special_tokens_map(&self) -> String {
        format!("{:#}\n", Value::Object(self.map.clone()))
    }
}

/// The byte that a character stands for in GPT-2's vocabulary: itself where it can be seen, else one of those that follow Latin-1.
fn byte_of(c: char) -> Option<u8> {
    let seen = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    match u8::try_from(c) {
        Ok(byte) if seen(byte) => Some(byte),
        _ => (0..=u8::MAX).filter(|&byte| !seen(byte)).nth((c as usize).checked_sub(256)?),
    }
}

fn wrong(what: String) -> DataError {
    DataError::Tokenizer(what)
}

/// The library panics on some files that parse.
fn guarded<T>(work: impl FnOnce() -> T) -> Result<T, DataError> {
    catch_unwind(AssertUnwindSafe(work))
        .map_err(|_| wrong("the tokenizer's file is damaged: it parses but cannot be used".into()))
}

fn read(path: &Path) -> Result<Vec<u8>, DataError> {
    fs::read(path).map_err(|source| DataError::Io { path: path.to_path_buf(), source })
}

fn object(path: &Path, bytes: &[u8]) -> Result<Value, DataError> {
    match serde_json::from_slice(bytes) {
        Ok(value @ Value::Object(_)) => Ok(value),
        Ok(_) => Err(wrong(format!("{} is no JSON object", path.display()))),
        Err(e) => Err(wrong(format!("{} is no JSON: {e}", path.display()))),
    }
}

/// A JSON object, or `None` where there is no such file.
fn optional(path: &Path) -> Result<Option<Value>, DataError> {
    match read(path) {
        Ok(bytes) => object(path, &bytes).map(Some),
        Err(DataError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// A special token that one of the files names.
fn named(files: &[Option<Value>], key: &str) -> Option<String> {
    files.iter().flatten().find_map(|file| content(&file[key])).map(str::to_string)
}

/// A token's text: config files give a string or an object.
fn content(token: &Value) -> Option<&str> {
    token.as_str().or_else(|| token.get("content")?.as_str()).filter(|text| !text.is_empty())
}

/// `tokenizer.json`. Truncation and padding that it may ask for are left out, as upstream's calls do.
fn from_json(path: &Path, bytes: &[u8]) -> Result<Inner, DataError> {
    let unusable = |why: &dyn std::fmt::Display| wrong(format!("{} is no tokenizer: {why}", path.display()));
    let file = object(path, bytes)?;
    if let Some((token, id)) = file["model"]["vocab"]
        .as_object()
        .into_iter()
        .flatten()
        .find(|(_, id)| id.as_u64().is_none_or(|id| id >= MAX_ID))
    {
        return Err(unusable(&format!("the id of {token:?} is {id}")));
    }
    if growth(&file) > MAX_GROWTH {
        return Err(unusable(&"its replacements make any text enormous"));
    }
    let mut inner: Inner = guarded(|| serde_json::from_slice(bytes))?.map_err(|e| unusable(&e))?;
    // The library gives added tokens the next free ids, whatever the file says.
    for token in file["added_tokens"].as_array().into_iter().flatten() {
        let Some(text) = content(token) else { continue };
        let id = inner.token_to_id(text).map(u64::from);
        if id != token["id"].as_u64() {
            return Err(unusable(&format!("the added token {text:?} has the id {}, out of order", token["id"])));
        }
    }
    inner.with_padding(None);
    inner.with_truncation(None).map_err(|e| unusable(&e))?;
    Ok(inner)
}

/// How much longer a text can become by the replacements in a tokenizer's file, each of which can feed the next.
fn growth(part: &Value) -> f64 {
    let inside = match part {
        Value::Array(parts) => parts.iter().map(growth).product(),
        Value::Object(fields) => fields.values().map(growth).product(),
        _ => 1.0,
    };
    match part["type"].as_str() {
        Some("Replace" | "Prepend") => {
            let text = part["content"].as_str().or(part["prepend"].as_str()).unwrap_or_default();
            inside * text.len().max(1) as f64
        }
        _ => inside,
    }
}

/// GPT-2's byte-level BPE from its two files, with `added_tokens.json` if there is one; `bos` is prepended to every
/// text.
fn from_merges(folder: &Path, bos: Option<&str>) -> Result<Inner, DataError> {
    let (vocab, merges) = (folder.join("vocab.json"), folder.join("merges.txt"));
    if !vocab.is_file() || !merges.is_file() {
        return Err(wrong(format!(
            "{} has no tokenizer: neither tokenizer.json nor vocab.json with merges.txt",
            folder.display()
        )));
    }
    let unusable = |e: tokenizers::Error| wrong(format!("{} holds no usable tokenizer: {e}", folder.display()));
    let (vocab, merges) = BPE::read_file(&vocab.to_string_lossy(), &merges.to_string_lossy()).map_err(unusable)?;
    if let Some((token, id)) = vocab.iter().find(|(_, id)| u64::from(**id) >= MAX_ID) {
        return Err(unusable(format!("the id of {token:?} is {id}").into()));
    }
    let bpe = BPE::builder().vocab_and_merges(vocab, merges).build().map_err(unusable)?;
    let mut inner = Inner::new(bpe);
    inner.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
    inner.with_decoder(Some(ByteLevel::default()));
    let added = optional(&folder.join("added_tokens.json"))?;
    let added = added.as_ref().and_then(Value::as_object).into_iter().flatten();
    let mut added: Vec<(&String, Option<u64>)> = added.map(|(token, id)| (token, id.as_u64())).collect();
    added.sort_by_key(|(_, id)| *id);
    for (token, id) in added {
        inner.add_tokens(&[AddedToken::from(token.as_str(), false)]);
        if inner.token_to_id(token).map(u64::from) != id {
            return Err(unusable(format!("added_tokens.json gives {token:?} an id out of order").into()));
        }
    }
    if let Some(bos) = bos {
        inner.add_special_tokens(&[AddedToken::from(bos, true)]);
        let id = inner.token_to_id(bos).ok_or_else(|| wrong(format!("the vocabulary has no {bos}")))?;
        let template = TemplateProcessing::builder()
            .try_single(format!("{bos} $A"))
            .map_err(wrong)?
            .special_tokens(vec![(bos, id)])
            .build()
            .map_err(|e| wrong(format!("cannot prepend {bos}: {e}")))?;
        inner.with_post_processor(Some(template));
    }
    Ok(inner)
}

/// Text that grows by tokens. A character's bytes may come in several: it is given when it is whole.
///
/// The pieces together are what [`Tokenizer::decode`] gives for all ids at once, special tokens skipped.
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    /// The ids since the last but one clean cut: what precedes a token can decide its text.
    ids: Vec<u32>,
    /// How many of them precede the last clean cut.
    context: usize,
    /// How many bytes of their text were taken.
    given: usize,
    /// Text that was taken and not yet given.
    held: String,
}

impl TextStream<'_> {
    /// Takes a token and returns the text that became whole with it. Special tokens have no text.
    pub fn push(&mut self, id: u32) -> Option<String> {
        self.ids.push(id);
        let text = self.tokenizer.raw(&self.ids, true);
        let whole = text.trim_end_matches('\u{FFFD}');
        self.held += whole.get(self.given..).unwrap_or_default();
        self.given = whole.len();
        if whole.len() == text.len() {
            self.ids.drain(..self.context);
            self.context = self.ids.len();
            self.given = self.tokenizer.raw(&self.ids, true).len();
        }
        // What could begin a space that is cleaned away waits for what follows it.
        let open = |at: &usize| {
            let rest = &self.held[*at..];
            self.tokenizer.clean_up
                && CLEAN_UP.iter().any(|(from, _)| from.len() > rest.len() && from.starts_with(rest))
        };
        let cut = self.held.char_indices().map(|(at, _)| at).find(open).unwrap_or(self.held.len());
        let rest = self.held.split_off(cut);
        let piece = std::mem::replace(&mut self.held, rest);
        (!piece.is_empty()).then(|| self.tokenizer.cleaned(piece))
    }

    /// What is left: characters that never became whole. The stream is then as new.
    pub fn finish(&mut self) -> Option<String> {
        let text = self.tokenizer.raw(&self.ids, true);
        let mut piece = std::mem::take(&mut self.held);
        piece += text.get(self.given..).unwrap_or_default();
        (self.context, self.given) = (0, 0);
        self.ids.clear();
        (!piece.is_empty()).then(|| self.tokenizer.cleaned(piece))
    }
}

/// Text from files and models, for a terminal: without the control characters that would ring its bell, move its
/// cursor or change its title.
pub fn printable(text: &str) -> String {
    let harmless = |c: char| !c.is_control() || matches!(c, '\n' | '\t');
    text.chars().map(|c| if harmless(c) { c } else { char::REPLACEMENT_CHARACTER }).collect()
}

/// Which side of a row is filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PaddingSide {
    /// Before the text: to continue it.
    Left,
    /// After the text: to learn from it.
    Right,
}

/// Rows of one width.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// `rows * width` token ids, row-major.
    pub ids: Vec<u32>,
    /// Which of them are text.
    pub mask: Vec<bool>,
    /// The longest row's length.
    pub width: usize,
}

/// Fills rows with `pad` to the longest.
pub fn pad_batch(rows: &[Vec<u32>], pad: u32, side: PaddingSide) -> Batch {
    let width = rows.iter().map(Vec::len).max().unwrap_or(0);
    let mut batch = Batch { ids: Vec::with_capacity(rows.len() * width), mask: Vec::new(), width };
    for row in rows {
        let fill = width - row.len();
        let (before, after) = if side == PaddingSide::Left { (fill, 0) } else { (0, fill) };
        batch.ids.extend(std::iter::repeat_n(pad, before));
        batch.ids.extend_from_slice(row);
        batch.ids.extend(std::iter::repeat_n(pad, after));
        batch.mask.extend(std::iter::repeat_n(false, before));
        batch.mask.extend(std::iter::repeat_n(true, row.len()));
        batch.mask.extend(std::iter::repeat_n(false, after));
    }
    batch
}

//! Captions, wordings, and the tokenizer that is learnt from them.

use std::path::Path;

use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, TokenizerBuilder};

use crate::concepts::Concept;
use crate::random::Random;
use crate::{CorpusError, shards};

/// Entries of the tokenizer.
const VOCABULARY: usize = 1500;

/// `a cat`, `an apple`.
pub(crate) fn with_article(name: &str) -> String {
    // Scissors and glasses come in pairs.
    if name.ends_with('s') && !name.ends_with("ss") && !name.ends_with("us") {
        return name.to_string();
    }
    let vowel = name.starts_with(['a', 'e', 'i', 'o', 'u']) && !name.starts_with("uni") && !name.starts_with("eu");
    format!("{} {name}", if vowel { "an" } else { "a" })
}

/// `cats`, `boxes`, `cherries`.
pub(crate) fn plural(name: &str) -> String {
    let consonant_y = name.ends_with('y') && !name.ends_with("ay") && !name.ends_with("ey") && !name.ends_with("oy");
    if consonant_y {
        format!("{}ies", &name[..name.len() - 1])
    } else if name.ends_with(['s', 'x']) || name.ends_with("ch") || name.ends_with("sh") {
        if name.ends_with("ss") || !name.ends_with('s') { format!("{name}es") } else { name.to_string() }
    } else {
        format!("{name}s")
    }
}

/// What a captioned picture says.
pub(crate) fn caption(concept: &Concept, colour: Option<&str>, random: &mut Random) -> String {
    let (name, kind, category) = (&concept.name, &concept.kind, concept.category);
    let tag = |random: &mut Random| concept.tags.get(random.below(concept.tags.len().max(1))).cloned();
    let coloured = match colour {
        Some(colour) => format!("{colour} {name}"),
        None => name.clone(),
    };
    match random.below(8) {
        0 => name.clone(),
        1 => format!("{coloured}, {kind}, {category}"),
        2 => format!("{category}: {kind}: {name}"),
        3 => coloured,
        4 => format!("{name}, {}", tag(random).unwrap_or_else(|| kind.clone())),
        5 => format!("{kind}, {coloured}"),
        6 => match colour {
            Some(colour) => format!("{colour} {kind}, {name}"),
            None => format!("{kind}, {name}"),
        },
        _ => {
            let tags: Vec<String> = (0..3).filter_map(|_| tag(random)).collect();
            format!("{name}, {}, {category}", tags.join(", "))
        }
    }
}

/// Learns a byte-level tokenizer and writes `tokenizer.json`. Its end of text is entry 0.
pub(crate) fn tokenizer(texts: &[String], folder: &Path) -> Result<(), CorpusError> {
    let wrong = |e: &dyn std::fmt::Display| CorpusError::content("the tokenizer", e);
    let mut trainer = BpeTrainerBuilder::new()
        .vocab_size(VOCABULARY)
        .min_frequency(2)
        .show_progress(false)
        .special_tokens(vec![AddedToken::from("<|endoftext|>", true)])
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    let mut tokenizer = TokenizerBuilder::new()
        .with_model(BPE::default())
        .with_normalizer(None::<tokenizers::NormalizerWrapper>)
        .with_pre_tokenizer(Some(ByteLevel::new(false, true, true)))
        .with_post_processor(Some(ByteLevel::new(false, false, true)))
        .with_decoder(Some(ByteLevel::default()))
        .build()
        .map_err(|e| wrong(&e))?;
    tokenizer.train(&mut trainer, texts.iter()).map_err(|e| wrong(&e))?;
    let json = tokenizer.to_string(true).map_err(|e| wrong(&e))?;
    shards::write(&folder.join("tokenizer.json"), json.as_bytes())?;
    let config = serde_json::json!({"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "tokenizer_class": "GPTNeoXTokenizer"});
    shards::write(&folder.join("tokenizer_config.json"), format!("{config:#}\n").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_inflected() {
        assert_eq!(
            ["cat", "apple", "unicorn", "hourglass"].map(with_article),
            ["a cat", "an apple", "a unicorn", "a hourglass"]
        );
        assert_eq!(
            ["cat", "cherry", "fox", "bus", "scissors", "key", "dress"].map(plural),
            ["cats", "cherries", "foxes", "bus", "scissors", "keys", "dresses"]
        );
    }
}

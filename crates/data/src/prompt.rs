//! Interleaved prompts, as upstream's README writes them: each picture is an `<image>` mark in the text.

use crate::{DataError, ENDOFCHUNK, IMAGE};

/// A piece of interleaved content. `I` stands for a picture: its path, its index, or the picture itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part<I> {
    /// Text, without marks.
    Text(String),
    /// A picture.
    Image(I),
}

/// Text with one `<image>` mark for each picture, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interleaved<I> {
    /// The text.
    pub text: String,
    /// The pictures.
    pub images: Vec<I>,
}

/// Joins parts, with `<image>` where a picture is and nothing in between.
///
/// # Errors
/// [`DataError::Marks`] if a text has marks of its own.
pub fn assemble<I>(parts: impl IntoIterator<Item = Part<I>>) -> Result<Interleaved<I>, DataError> {
    let (mut text, mut images) = (String::new(), Vec::new());
    for part in parts {
        match part {
            Part::Text(part) => text += &part,
            Part::Image(image) => {
                text += IMAGE;
                images.push(image);
            }
        }
    }
    check_marks(&text, images.len())?;
    Ok(Interleaved { text, images })
}

/// A few-shot prompt: `<image>{text}<|endofchunk|>` for each demonstration, then `<image>{prompt}` for the query, or
/// the prompt alone if the query has no picture.
///
/// # Errors
/// As [`assemble`].
pub fn few_shot<I, S: Into<String>>(
    shots: impl IntoIterator<Item = (I, S)>,
    query: Option<I>,
    prompt: impl Into<String>,
) -> Result<Interleaved<I>, DataError> {
    let mut parts = Vec::new();
    for (image, text) in shots {
        parts.extend([Part::Image(image), Part::Text(text.into() + ENDOFCHUNK)]);
    }
    parts.extend(query.map(Part::Image));
    parts.push(Part::Text(prompt.into()));
    assemble(parts)
}

/// Checks that a text has as many `<image>` marks as there are pictures: upstream accepts any number, and text behind
/// a mark without picture then sees all pictures at once.
///
/// # Errors
/// [`DataError::Marks`] with both numbers.
pub fn check_marks(text: &str, pictures: usize) -> Result<(), DataError> {
    let marks = text.matches(IMAGE).count();
    if marks == pictures { Ok(()) } else { Err(DataError::Marks { marks, pictures }) }
}

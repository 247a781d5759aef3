//! A text that is being written, token by token.

use flamingo_data::TextStream;
use flamingo_generate::{Continuation, GenerateError, GenerationConfig};

use crate::{Model, ZooError};

/// Why a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model ended it, or a stop string was reached.
    Stop,
    /// It has as many tokens as are allowed.
    Length,
}

/// A continuation and its text. Who holds it feeds the model with its tokens.
pub struct Writing<'m> {
    continuation: Continuation,
    stream: TextStream<'m>,
    stops: Stops,
    stopped: bool,
}

impl<'m> Writing<'m> {
    /// A continuation of a prompt's tokens, number `index` of those with these settings, that ends before any of `stops`, none
    /// of which is empty.
    ///
    /// # Errors
    /// [`ZooError::Generate`] for settings that make no sense, or beams.
    pub fn new(
        model: &'m Model,
        prompt: Vec<u32>,
        settings: &GenerationConfig,
        stops: Vec<String>,
        index: usize,
    ) -> Result<Self, ZooError> {
        let continuation = Continuation::new(prompt, settings, index).map_err(GenerateError::Config)?;
        let stream = model.tokenizer().stream();
        Ok(Self { continuation, stream, stops: Stops { stops, held: String::new() }, stopped: false })
    }

    /// Chooses the next token by the logits that follow the last, which are overwritten. Returns it, and what is certain to be
    /// part of the text with it.
    ///
    /// # Errors
    /// [`ZooError::Generate`] where none can be chosen.
    pub fn choose(&mut self, logits: &mut [f32]) -> Result<(u32, String), ZooError> {
        let token = self.continuation.choose(logits).map_err(GenerateError::Input)?;
        let mut text = String::new();
        if let Some(piece) = self.stream.push(token) {
            self.take(&piece, &mut text);
        }
        if self.continuation.ended() && !self.stopped {
            if let Some(rest) = self.stream.finish() {
                self.take(&rest, &mut text);
            }
            if !self.stopped {
                text += &self.stops.finish();
            }
        }
        Ok((token, text))
    }

    fn take(&mut self, piece: &str, text: &mut String) {
        let (certain, stopped) = self.stops.push(piece);
        *text += &certain;
        self.stopped = stopped;
    }

    /// The tokens so far.
    pub fn ids(&self) -> &[u32] {
        self.continuation.ids()
    }

    /// Why the text ended, once it has.
    pub fn finish(&self) -> Option<Finish> {
        match self.stopped || self.continuation.finished() {
            true => Some(Finish::Stop),
            false => self.continuation.ended().then_some(Finish::Length),
        }
    }
}

/// Holds back what may be the beginning of a stop string.
struct Stops {
    stops: Vec<String>,
    held: String,
}

impl Stops {
    /// Takes a piece of text. Returns what is certain to be before any stop string, and whether one was found: then the text
    /// ends there.
    fn push(&mut self, piece: &str) -> (String, bool) {
        self.held += piece;
        // Of several that are found the first; of several at one place it does not matter.
        if let Some(at) = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min() {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        let begins = |at: &usize| self.stops.iter().any(|stop| stop.starts_with(&self.held[*at..]));
        let cut = self.held.char_indices().map(|(at, _)| at).find(begins).unwrap_or(self.held.len());
        let rest = self.held.split_off(cut);
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// What was held back, when nothing follows.
    fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is given piece by piece, and whether a stop string was found.
    fn given(stops: &[&str], pieces: &[&str]) -> (Vec<String>, bool) {
        let mut found = Stops { stops: stops.iter().map(|s| s.to_string()).collect(), held: String::new() };
        let mut given = Vec::new();
        for piece in pieces {
            let (text, stopped) = found.push(piece);
            given.push(text);
            if stopped {
                return (given, true);
            }
        }
        given.push(found.finish());
        (given, false)
    }

    #[test]
    fn texts_end_before_their_stop_strings() {
        assert_eq!(given(&[], &["a", "b"]), (vec!["a".into(), "b".into(), "".into()], false));
        assert_eq!(given(&["\n"], &[" a", " cat\nA", " dog"]), (vec![" a".into(), " cat".into()], true));
        // Over several pieces, and one that only began as one.
        assert_eq!(given(&["END"], &["xE", "N", "D."]), (vec!["x".into(), "".into(), "".into()], true));
        assert_eq!(given(&["END"], &["xE", "NT"]), (vec!["x".into(), "ENT".into(), "".into()], false));
        assert_eq!(given(&["END"], &["xEN"]), (vec!["x".into(), "EN".into()], false));
        // The first in the text counts, whichever is named first; a beginning within a beginning is found.
        assert_eq!(given(&["cd", "bc"], &["abcd"]), (vec!["a".into()], true));
        assert_eq!(given(&["aab"], &["aa", "ab"]), (vec!["".into(), "a".into()], true));
        assert_eq!(given(&["é!"], &["caf", "é", "!"]), (vec!["caf".into(), "".into(), "".into()], true));
    }
}

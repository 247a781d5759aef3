//! Strings that end a text, found as it grows.

/// Holds back what may be the beginning of a stop string.
#[derive(Clone, Debug)]
pub(crate) struct Stops {
    stops: Vec<String>,
    held: String,
}

impl Stops {
    /// None of the strings is empty.
    pub(crate) fn new(stops: Vec<String>) -> Self {
        Self { stops, held: String::new() }
    }

    /// Takes a piece of text. Returns what is certain to be before any stop string, and whether one was found: then the text
    /// ends there.
    pub(crate) fn push(&mut self, piece: &str) -> (String, bool) {
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
    pub(crate) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is given piece by piece, and whether a stop string was found.
    fn given(stops: &[&str], pieces: &[&str]) -> (Vec<String>, bool) {
        let mut found = Stops::new(stops.iter().map(|s| s.to_string()).collect());
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

//! Text and pictures of a Sphinx page, in order.

/// Sentences shorter than this are numbers and labels.
const MIN_WORDS: usize = 3;

/// Sentences longer than this are lists or tables that lost their form.
const MAX_WORDS: usize = 60;

/// A part of a page.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    Sentence(String),
    Picture {
        /// Its file's name.
        file: String,
        /// What it is said to show.
        title: Option<String>,
    },
}

/// Elements whose content is no prose.
const SKIPPED: [&str; 5] = ["script", "style", "pre", "table", "math"];

/// What Sphinx says itself on every page.
const NOTES: [&str; 3] = ["ownload", "Total running time", "Gallery generated"];

/// Elements that stand within a sentence.
const INLINE: [&str; 11] = ["a", "span", "code", "em", "strong", "b", "i", "cite", "sup", "sub", "kbd"];

/// The pieces of a page's main part.
pub(crate) fn pieces(page: &str) -> Vec<Piece> {
    let main = page.find("role=\"main\"").and_then(|at| page[at..].split_once('>')).map_or("", |(_, main)| main);
    let mut rest = main.split_once("<footer").map_or(main, |(main, _)| main);
    let mut pieces = Vec::new();
    let mut text = String::new();
    while let Some((before, after)) = rest.split_once('<') {
        text.push_str(before);
        let Some((tag, after)) = after.split_once('>') else { break };
        rest = after;
        let name = tag.trim_start_matches('/').split([' ', '\n', '/']).next().unwrap_or_default();
        if INLINE.contains(&name) {
            continue;
        }
        flush(&mut text, &mut pieces);
        if name == "img" {
            let file = attribute(tag, "src").and_then(|path| path.rsplit('/').next().map(str::to_string));
            let title =
                attribute(tag, "alt").map(|alt| plain(&alt)).filter(|alt| is_sentence(alt) && !alt.contains('/'));
            pieces.extend(file.map(|file| Piece::Picture { file, title }));
        } else if SKIPPED.contains(&name) && !tag.starts_with('/') {
            rest = rest.split_once(&format!("</{name}>")).map_or("", |(_, after)| after);
        }
    }
    flush(&mut text, &mut pieces);
    pieces
}

/// Takes a block of text apart into sentences.
fn flush(text: &mut String, pieces: &mut Vec<Piece>) {
    let block = plain(&std::mem::take(text));
    let mut start = 0;
    let ends = block.match_indices(". ").map(|(at, _)| at + 1).chain([block.len()]);
    for end in ends {
        let sentence = block[start..end].trim();
        start = end;
        if is_sentence(sentence) {
            pieces.push(Piece::Sentence(sentence.to_string()));
        }
    }
}

/// Whether it is prose, and not formulas or Sphinx's own notes.
fn is_sentence(text: &str) -> bool {
    let words = text.split(' ').count();
    (MIN_WORDS..=MAX_WORDS).contains(&words)
        && !text.contains(['\\', '{'])
        && !NOTES.iter().any(|note| text.contains(note))
}

/// Text without entities, marks of headings and line breaks.
fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('&') {
        out.push_str(before);
        match after.split_once(';').and_then(|(entity, after)| Some((character(entity)?, after))) {
            Some((character, after)) => {
                out.push(character);
                rest = after;
            }
            None => {
                out.push('&');
                rest = after;
            }
        }
    }
    out.push_str(rest);
    out.replace('¶', "").split_whitespace().collect::<Vec<_>>().join(" ")
}

fn character(entity: &str) -> Option<char> {
    match entity {
        "amp" => Some('&'),
        "lt" => Some('<'),
        "gt" => Some('>'),
        "quot" => Some('"'),
        "nbsp" => Some(' '),
        _ => {
            let number = entity.strip_prefix('#')?;
            let code = match number.strip_prefix('x') {
                Some(hexadecimal) => u32::from_str_radix(hexadecimal, 16),
                None => number.parse(),
            };
            char::from_u32(code.ok()?)
        }
    }
}

fn attribute(tag: &str, name: &str) -> Option<String> {
    let (_, after) = tag.split_once(&format!(" {name}=\""))?;
    after.split_once('"').map(|(value, _)| value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_becomes_sentences_and_pictures() {
        let page = "<p>menu entries are here</p><div role=\"main\"><h1>Plot the tree<a href=\"#\">¶</a></h1>\
                    <p>It has <b>two</b> leaves &amp; a root. They\nare not large.</p><pre>import this and that</pre>\
                    <img src=\"../_images/a.png\" alt=\"a tree with leaves\"/>tiny</div><footer>no part of it</footer>";
        let sentence = |text: &str| Piece::Sentence(text.into());
        let expected = [
            sentence("Plot the tree"),
            sentence("It has two leaves & a root."),
            sentence("They are not large."),
            Piece::Picture { file: "a.png".into(), title: Some("a tree with leaves".into()) },
        ];
        assert_eq!(pieces(page), expected);
        assert_eq!(pieces("<div role=\"main\"><img src="), []);
    }
}

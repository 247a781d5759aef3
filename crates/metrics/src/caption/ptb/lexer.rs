//! The rules of CoreNLP's English lexer.
//!
//! It is generated from regular expressions: at each place all of them are tried, the longest match wins, and of
//! several the first. A rule may ask for something after the token, which counts as part of the match but is read
//! again. Here each rule is a function from a place in the text to the end of its longest match there, and
//! [`Lexer::longest_match`] lists them in their order. Rules that can never win, or whose tokens come out the same
//! without them, are left out.

use std::borrow::Cow;

use super::chars::{is_digit, is_letter, is_symbol, is_word_letter};

/// Titles and other abbreviations that a name follows. An entry in capitals asks for one in the text.
const BEFORE_NAMES: &[&str] = &[
    "adj", "adm", "adv", "alex", "assoc", "asst", "atty", "attys", "ave", "brig", "capt", "cf", "cie", "cmdr", "col",
    "comdr", "cpl", "dept", "det", "dr", "drs", "elec", "ens", "ft", "gen", "gov", "govs", "hon", "insp", "invt",
    "jos", "lieut", "lt", "maj", "messrs", "Miss", "mlle", "mme", "mr", "mrs", "ms", "msgr", "mt", "natl", "pfc", "ph",
    "pres", "prof", "profs", "pvt", "rep", "reps", "rev", "sen", "sens", "sfc", "sgt", "spc", "st", "ste", "supt",
    "supts", "treas", "vs", "wm",
];

/// Abbreviations after which a sentence may go on or end.
const WITHIN_SENTENCES: &[&str] = &[
    "al", "ala", "apr", "ariz", "Ark", "assn", "aug", "Az", "bancorp", "bhd", "bldg", "blvd", "bros", "calif", "co",
    "colo", "conn", "corp", "cos", "ct", "dak", "dec", "Del", "esq", "est", "etc", "ext", "feb", "fla", "fri", "ga",
    "Ill", "inc", "ind", "intl", "jan", "jr", "jul", "jun", "kan", "kans", "ky", "La", "ltd", "mar", "Mass", "md",
    "mich", "minn", "Miss", "mo", "mon", "mont", "neb", "nev", "nov", "oct", "okla", "Ore", "Pa", "penn", "plc", "rd",
    "rt", "sep", "sept", "seq", "sq", "sr", "sys", "tel", "tenn", "Tex", "thu", "thurs", "tue", "tues", "univ", "va",
    "vt", "Wash", "wed", "wis", "wisc", "wyo",
];

/// Words that are abbreviations only before a number.
const BEFORE_NUMBERS: &[&str] = &["art", "bldg", "ca", "fig", "figs", "no", "nos", "op", "pp", "prop"];

/// Words that begin a sentence, so that the full stop after a single capital before them ends one.
const SENTENCE_STARTS: &[&str] = &[
    "A",
    "About",
    "According",
    "Additionally",
    "After",
    "An",
    "As",
    "At",
    "But",
    "Earlier",
    "He",
    "Her",
    "Here",
    "However",
    "If",
    "In",
    "It",
    "Last",
    "Many",
    "More",
    "Mr.",
    "Ms.",
    "Now",
    "Once",
    "One",
    "Other",
    "Our",
    "She",
    "Since",
    "So",
    "Some",
    "Such",
    "That",
    "The",
    "Their",
    "Then",
    "There",
    "These",
    "They",
    "This",
    "We",
    "What",
    "When",
    "While",
    "Yet",
    "You",
];

/// Words that hold an apostrophe, apart from those that end with it or that a pattern describes.
const APOSTROPHE_WORDS: &[&str] =
    &["cont'd.", "cont'd", "nor'easter", "c'mon", "e'er", "s'mores", "ev'ry", "li'l", "nat'l"];

/// Words of two that were written as one, and the length of the first.
const CONTRACTED: &[(&str, usize)] =
    &[("cannot", 3), ("'twas", 2), ("'tis", 2), ("gonna", 3), ("gotta", 3), ("lemme", 3), ("gimme", 3), ("wanna", 3)];

/// Endings by which `X.txt` is a file's name.
const EXTENSIONS: &[&str] = &[
    "bat", "bmp", "c", "cgi", "class", "cpp", "dll", "doc", "docx", "exe", "gif", "gz", "h", "htm", "html", "jar",
    "java", "jpeg", "jpg", "mov", "mp3", "pdf", "php", "pl", "png", "ppt", "ps", "py", "sql", "tar", "txt", "wav", "x",
    "xml", "zip",
];

/// What is done to a token's characters.
#[derive(Clone, Copy)]
enum Form {
    AsIs,
    /// Soft hyphens go, or become a hyphen where there is nothing else.
    Word,
    /// Spaces stay in the token, as no-break spaces.
    Spaced,
    /// Spaces stay in the token, and parentheses become `-LRB-` and `-RRB-`.
    Parentheses,
    /// `&amp;` becomes `&`.
    Ampersand,
    /// Quotation marks and apostrophes as LaTeX and the Penn Treebank write them.
    Quotes,
    Currency,
    Fraction,
    Fixed(&'static str),
    /// No token: white space, and what the lexer does not know.
    Nothing,
}

/// The longest match so far.
struct Longest {
    /// Up to where the rule looked.
    seen: usize,
    end: usize,
    form: Form,
}

impl Longest {
    fn offer(&mut self, end: Option<usize>, form: Form) {
        if let Some(end) = end {
            self.offer_before(end, Some(end), form);
        }
    }

    /// A token that ends at `end` because of what follows up to `seen`.
    fn offer_before(&mut self, end: usize, seen: Option<usize>, form: Form) {
        if let Some(seen) = seen.filter(|&seen| seen > self.seen) {
            *self = Longest { seen, end, form };
        }
    }
}

/// A stretch of text that some rule scans as a whole. The rule's longest match ends at the same place from wherever in
/// the stretch it starts, as long as that is before the last place that decides. Remembering it keeps the time linear
/// where a match is looked for at every token of a long stretch.
#[derive(Clone, Copy, Default)]
struct Stretch {
    start: usize,
    end: usize,
    /// The last place that decides, and the end of the match.
    last: Option<(usize, usize)>,
}

impl Stretch {
    fn holds(&self, place: usize) -> bool {
        (self.start..self.end).contains(&place)
    }

    fn from(&self, place: usize) -> Option<usize> {
        self.last.filter(|&(last, _)| place <= last).map(|(_, end)| end)
    }
}

/// Takes a text apart, from its beginning to its end.
pub(super) struct Lexer<'a> {
    text: &'a [char],
    place: usize,
    domain: Stretch,
    email: Stretch,
    file: Stretch,
    hyphenated: Stretch,
    declaration: Stretch,
}

/// Everything that ends a line, of which only the line feed is left in the text of the lexer.
pub(super) fn is_line_break(c: char) -> bool {
    matches!(c, '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{2028}' | '\u{2029}')
}

fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\u{a0}' | '\u{2000}'..='\u{200a}' | '\u{3000}')
}

fn is_space_or_break(c: char) -> bool {
    is_space(c) || is_line_break(c) || c == '\u{85}'
}

/// `_` and hyphens, which join the parts of a compound.
fn is_hyphen(c: char) -> bool {
    matches!(c, '-' | '_' | '\u{58a}' | '\u{2010}' | '\u{2011}')
}

fn is_alphanumeric(c: char) -> bool {
    is_letter(c) || is_digit(c)
}

fn is_vowel(c: char) -> bool {
    matches!(c.to_ascii_lowercase(), 'a' | 'e' | 'i' | 'o' | 'u')
}

/// The marks after which a sentence goes on.
fn is_pause(c: char) -> bool {
    matches!(c, ',' | ';' | ':' | '\u{3001}')
}

/// What neither addresses nor names of hosts hold.
fn ends_address(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\u{c}' | '\r' | '"' | '<' | '>' | '|' | '(' | ')')
}

fn ends_url(c: char) -> bool {
    ends_address(c) || matches!(c, '{' | '}')
}

fn ends_host_label(c: char) -> bool {
    ends_url(c) || matches!(c, '.' | '!' | '?' | ',')
}

/// The parts of a host without `www` before it: what lies between `,` and `_`, digits and capitals among it, is
/// excluded as a range (surely unmeant, but so it is).
fn ends_plain_label(c: char) -> bool {
    ends_host_label(c) || matches!(c, '`' | '\'' | '$' | ','..='_')
}

fn ends_mail(c: char) -> bool {
    ends_url(c) || c == '\u{a0}'
}

/// Letters as rules that ignore case compare them, which follow Unicode beyond ASCII.
fn fold(c: char) -> char {
    match c {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        '\u{130}' | '\u{131}' => 'i',
        c => c.to_ascii_lowercase(),
    }
}

/// Whether the text is that word, in any case where the word is in lower case.
fn is_word(text: &[char], word: &str) -> bool {
    text.len() == word.len()
        && text.iter().zip(word.chars()).all(|(&c, w)| if w.is_ascii_uppercase() { c == w } else { fold(c) == w })
}

fn is_one_of(text: &[char], words: &[&str]) -> bool {
    words.iter().any(|word| is_word(text, word))
}

impl<'a> Lexer<'a> {
    pub(super) fn new(text: &'a [char]) -> Lexer<'a> {
        let [domain, email, file, hyphenated, declaration] = [Stretch::default(); 5];
        Lexer { text, place: 0, domain, email, file, hyphenated, declaration }
    }

    /// The next token, or nothing where the line ends, behind which the next call goes on.
    pub(super) fn next_in_line(&mut self) -> Option<String> {
        while let Some(c) = self.at(self.place) {
            let start = self.place;
            if c == '\n' {
                self.place += 1;
                return None;
            }
            // No other rule begins with one.
            if c == ' ' {
                self.place = self.all(start, is_space);
                continue;
            }
            let Longest { end, form, .. } = self.longest_match(start);
            self.place = end;
            if let Some(token) = spell(&self.text[start..end], form) {
                return Some(token);
            }
        }
        None
    }

    fn longest_match(&mut self, at: usize) -> Longest {
        let mut best = Longest { seen: at, end: at + 1, form: Form::Nothing };
        best.offer(self.literal(at, "c++").or(self.literal(at, "c#")).or(self.literal(at, "f#")), Form::AsIs);
        for &(word, first) in CONTRACTED {
            best.offer_before(at + first, self.literal(at, word), Form::AsIs);
        }
        best.offer(self.tag(at), Form::Spaced);
        best.offer(self.dash(at), Form::Fixed("--"));
        best.offer(self.literal(at, "&amp;"), Form::Ampersand);
        best.offer(self.entity(at), Form::AsIs);
        let word = self.word(at);
        if let Some(end) = word {
            best.offer_before(end, self.clitic(end), Form::Word);
        }
        if let Some((end, seen)) = self.negated(at) {
            best.offer_before(end, Some(seen), Form::Word);
        }
        best.offer(word, Form::Word);
        best.offer(self.apostrophe_word(at), Form::AsIs);
        if let Some(end) = self.literal(at, "y").and_then(|end| self.apostrophe(end)) {
            best.offer_before(end, self.one(end, is_letter), Form::AsIs);
        }
        best.offer(self.full_url(at), Form::AsIs);
        best.offer(self.likely_url(at), Form::AsIs);
        best.offer(self.email_address(at), Form::AsIs);
        best.offer(self.handle(at), Form::AsIs);
        let clitic = self.clitic(at).or(self.negation(at));
        if let Some(end) = clitic {
            best.offer_before(end, self.one(end, |c| !c.is_ascii_alphabetic()), Form::Quotes);
        }
        best.offer(self.date(at), Form::AsIs);
        best.offer(self.number(at), Form::Word);
        best.offer(self.raised_number(at), Form::AsIs);
        best.offer(self.fraction(at), Form::Spaced);
        best.offer(self.one(at, |c| matches!(c, '\u{bc}'..='\u{be}' | '\u{2153}'..='\u{215e}')), Form::Fraction);
        best.offer(self.special(at), Form::Ampersand);
        best.offer(self.alternatives(at), Form::AsIs);
        best.offer(self.dollar(at), Form::AsIs);
        best.offer(self.one(at, is_currency), Form::Currency);
        best.offer_before(at + 1, self.initial_at_sentence_end(at), Form::AsIs);
        self.abbreviations(at, &mut best);
        if let Some(end) = self.decade(at) {
            best.offer_before(end, self.one(end, is_space_or_break), Form::AsIs);
        }
        if let Some(end) = self.file_name(at) {
            best.offer_before(end, Some(end + 1), Form::AsIs);
        }
        self.offer_abbreviated(word, Form::Word, &mut best);
        best.offer(self.phone(at), Form::Parentheses);
        best.offer(self.one(at, |c| c == '"').or(self.literal(at, "&quot;")), Form::Quotes);
        best.offer(self.literal(at, "&lt;"), Form::Fixed("<"));
        best.offer(self.literal(at, "&gt;"), Form::Fixed(">"));
        best.offer(self.one(at, |c| matches!(c, '<' | '>')), Form::AsIs);
        if let Some(end) = self.smiley(at) {
            best.offer_before(end, self.one(end, |c| !c.is_ascii_alphanumeric()), Form::Parentheses);
        }
        best.offer(self.asian_smiley(at), Form::Parentheses);
        best.offer(self.one(at, |c| matches!(c, '(' | ')')), Form::Parentheses);
        for (bracket, name) in [('[', "-LSB-"), (']', "-RSB-"), ('{', "-LCB-"), ('}', "-RCB-")] {
            best.offer(self.one(at, |c| c == bracket), Form::Fixed(name));
        }
        let hyphens = self.some(at, |c| c == '-');
        let is_dash = hyphens.is_some_and(|end| (3..=4).contains(&(end - at)));
        best.offer(hyphens, if is_dash { Form::Fixed("--") } else { Form::AsIs });
        best.offer(self.ellipsis(at), Form::Fixed("..."));
        for mark in ['@', '#', '_', '*'] {
            best.offer(self.some(at, |c| c == mark), Form::AsIs);
        }
        best.offer(self.escaped_asterisks(at), Form::AsIs);
        best.offer(self.one(at, is_pause), Form::AsIs);
        best.offer(self.some(at, |c| matches!(c, '?' | '!')), Form::AsIs);
        let hyphenated = self.hyphenated(at);
        self.offer_abbreviated(hyphenated, Form::Word, &mut best);
        best.offer(hyphenated, Form::Word);
        let compound = self.compound(at);
        self.offer_abbreviated(compound, Form::AsIs, &mut best);
        best.offer(compound, Form::AsIs);
        let partners = self.partners(at);
        self.offer_abbreviated(partners, Form::Ampersand, &mut best);
        best.offer(partners, Form::Ampersand);
        best.offer_before(at + 1, self.opening_apostrophe(at), Form::Fixed("`"));
        best.offer(clitic, Form::Quotes);
        best.offer(self.quotes(at), Form::Quotes);
        best.offer(self.literal(at, "<<").or(self.literal(at, ">>")), Form::AsIs);
        best.offer(self.one(at, is_symbol), Form::AsIs);
        best.offer(self.some(at, is_space).or_else(|| self.literal(at, "&nbsp;")), Form::Nothing);
        best
    }

    // The alphabet of the rules.

    fn at(&self, place: usize) -> Option<char> {
        self.text.get(place).copied()
    }

    /// Behind a character of that kind.
    fn one(&self, at: usize, kind: impl Fn(char) -> bool) -> Option<usize> {
        self.at(at).filter(|&c| kind(c)).map(|_| at + 1)
    }

    /// Behind all characters of that kind, where there are none at the same place.
    fn all(&self, at: usize, kind: impl Fn(char) -> bool) -> usize {
        self.up_to(at, usize::MAX, kind)
    }

    /// Behind all characters of that kind, of which there must be one.
    fn some(&self, at: usize, kind: impl Fn(char) -> bool) -> Option<usize> {
        Some(self.all(at, kind)).filter(|&end| end > at)
    }

    fn up_to(&self, at: usize, limit: usize, kind: impl Fn(char) -> bool) -> usize {
        at + self.text.iter().skip(at).take(limit).take_while(|&&c| kind(c)).count()
    }

    /// Behind as many characters of that kind as there are, if that is neither too few nor too many.
    fn exactly(&self, at: usize, count: std::ops::RangeInclusive<usize>, kind: impl Fn(char) -> bool) -> Option<usize> {
        let end = self.up_to(at, count.end() + 1, kind);
        count.contains(&(end - at)).then_some(end)
    }

    /// Behind as many characters of that kind as are allowed, if there are enough.
    fn at_most(&self, at: usize, count: std::ops::RangeInclusive<usize>, kind: impl Fn(char) -> bool) -> Option<usize> {
        let end = self.up_to(at, *count.end(), kind);
        (end - at >= *count.start()).then_some(end)
    }

    /// Behind that word, given in lower case.
    fn literal(&self, at: usize, word: &str) -> Option<usize> {
        let end = at + word.len();
        self.text.get(at..end).filter(|text| is_word(text, word)).map(|_| end)
    }

    fn apostrophe(&self, at: usize) -> Option<usize> {
        self.one(at, |c| matches!(c, '\'' | '\u{92}' | '\u{2019}')).or_else(|| self.literal(at, "&apos;"))
    }

    /// An apostrophe, or what is written for one.
    fn loose_apostrophe(&self, at: usize) -> Option<usize> {
        self.apostrophe(at).or_else(|| self.one(at, |c| matches!(c, '`' | '\u{91}' | '\u{2018}' | '\u{201b}')))
    }

    /// Offers `etc.` for `etc` where a pause after the full stop shows that it ends no sentence.
    fn offer_abbreviated(&self, end: Option<usize>, form: Form, best: &mut Longest) {
        if let Some(end) = end.and_then(|end| self.literal(end, ".")) {
            best.offer_before(end, self.one(end, is_pause), form);
        }
    }

    // Words.

    /// A letter, or an entity such as `&eacute;` for one.
    fn letter(&self, at: usize) -> Option<usize> {
        self.one(at, is_word_letter).or_else(|| {
            let vowel = self.literal(at, "&").and_then(|end| self.one(end, is_vowel))?;
            ["acute;", "grave;", "uml;"].iter().find_map(|accent| self.literal(vowel, accent))
        })
    }

    fn letters_and_digits(&self, at: usize) -> usize {
        let mut end = at;
        while let Some(next) = self.letter(end).or_else(|| self.one(end, is_digit)) {
            end = next;
        }
        end
    }

    /// Letters and digits after a letter, also several such words where only `.`, `!` or `?` stands between them.
    fn word(&self, at: usize) -> Option<usize> {
        let mut end = self.letters_and_digits(self.letter(at)?);
        while let Some(next) = self.one(end, |c| matches!(c, '.' | '!' | '?')).and_then(|end| self.letter(end)) {
            end = self.letters_and_digits(next);
        }
        Some(end)
    }

    /// `'s` and other verbs that lean on the word before them.
    fn clitic(&self, at: usize) -> Option<usize> {
        let end = self.apostrophe(at)?;
        let short = self.one(end, |c| matches!(c.to_ascii_lowercase(), 'm' | 's' | 'd'));
        short.or_else(|| ["re", "ve", "ll"].iter().find_map(|verb| self.literal(end, verb)))
    }

    /// `n't`.
    fn negation(&self, at: usize) -> Option<usize> {
        self.literal(at, "n").and_then(|end| self.loose_apostrophe(end)).and_then(|end| self.literal(end, "t"))
    }

    /// The `do` of `don't`, and the end of the whole.
    fn negated(&self, at: usize) -> Option<(usize, usize)> {
        let n = self.some(at, |c| c.is_ascii_alphabetic() || c == '\u{ad}')?.checked_sub(1)?;
        let seen = self.negation(n).filter(|_| n > at)?;
        let last = self.text[at..n].iter().rev().find(|&&c| c != '\u{ad}')?;
        (!matches!(last, 'n' | 'N')).then_some((n, seen))
    }

    /// Words with an apostrophe that are one token.
    fn apostrophe_word(&self, at: usize) -> Option<usize> {
        let listed = APOSTROPHE_WORDS.iter().find_map(|word| self.literal(at, word));
        // rock 'n' roll
        let and = self.apostrophe(at).and_then(|end| self.literal(end, "n"));
        let and = and.map(|end| self.apostrophe(end).unwrap_or(end));
        let french = self.one(at, |c| matches!(c.to_ascii_lowercase(), 'l' | 'd' | 'j'));
        let cut = ["dunkin", "somethin", "ol"].iter().find_map(|word| self.literal(at, word)).or(french);
        let cut = cut.and_then(|end| self.apostrophe(end));
        let short = self.apostrophe(at).and_then(|end| {
            let decade = self.one(end, |c| matches!(c, '2'..='9')).and_then(|end| self.literal(end, "0s"));
            decade.or_else(|| ["em", "till", "til", "cause"].iter().find_map(|word| self.literal(end, word)))
        });
        let oclock =
            self.literal(at, "o").and_then(|end| self.loose_apostrophe(end)).and_then(|end| self.literal(end, "o"));
        [listed, and, cut, short, oclock, self.foreign_name(at), self.after_vowel(at)].into_iter().flatten().max()
    }

    /// `O'Brien`, `D'Angelo`; but not `Y'all`, nor `I'm`.
    fn foreign_name(&self, at: usize) -> Option<usize> {
        let first = self.one(at, |c| matches!(c, 'A'..='H' | 'J'..='X' | 'Z' | 'n'))?;
        self.at_most(self.loose_apostrophe(first)?, 2..=usize::MAX, is_letter)
    }

    /// `Shi'ite`: an apostrophe between vowels, or between a vowel and a capital.
    fn after_vowel(&self, at: usize) -> Option<usize> {
        let end = self.at_most(at, 2..=usize::MAX, is_letter)?;
        let last = self.at(end - 1)?;
        let next = self.loose_apostrophe(end).filter(|_| is_vowel(last) || matches!(last, 'y' | 'Y'))?;
        let next = self.one(next, |c| c.is_ascii_uppercase() || (c.is_ascii_lowercase() && is_vowel(c)))?;
        Some(self.all(next, is_letter))
    }

    /// Letters and digits between hyphens, any of the parts with a French article.
    fn compound(&self, at: usize) -> Option<usize> {
        let mut end = self.compound_part(at)?;
        while let Some(next) = self.one(end, is_hyphen).and_then(|end| self.compound_part(end)) {
            end = next;
        }
        Some(end)
    }

    fn compound_part(&self, at: usize) -> Option<usize> {
        let article = self.one(at, |c| matches!(c.to_ascii_lowercase(), 'd' | 'o' | 'l'));
        let name = article.and_then(|end| self.loose_apostrophe(end));
        name.and_then(|name| self.at_most(name, 2..=usize::MAX, is_alphanumeric))
            .or_else(|| self.some(at, is_alphanumeric))
    }

    /// Compounds of ASCII whose first part may hold full stops and commas, and whose others may be acronyms.
    fn hyphenated(&mut self, at: usize) -> Option<usize> {
        self.one(at, |c| c.is_ascii_alphanumeric())?;
        if !self.hyphenated.holds(at) {
            let end = self.all(at, |c| c.is_ascii_alphanumeric() || matches!(c, '.' | ',' | '\u{ad}'));
            self.hyphenated = Stretch { start: at, end, last: None };
        }
        let part = |end| {
            let part = self.literal(end, "-")?;
            let acronym = self.acronym(part).filter(|&end| end >= part + 4);
            acronym.or_else(|| self.some(part, |c| c.is_ascii_alphanumeric() || c == '\u{ad}'))
        };
        let mut end = part(self.hyphenated.end)?;
        while let Some(next) = part(end) {
            end = next;
        }
        Some(end)
    }

    /// `black/white`, `he/she/it`, with hyphens in the parts.
    fn alternatives(&self, at: usize) -> Option<usize> {
        let part = |at| {
            let mut end = self.some(at, |c: char| c.is_ascii_alphanumeric())?;
            for _ in 0..2 {
                let next = self.literal(end, "-").and_then(|end| self.some(end, |c| c.is_ascii_alphabetic()));
                end = next.unwrap_or(end);
            }
            Some(end)
        };
        let next = |end| self.slash(end).and_then(part);
        let end = next(part(at)?)?;
        Some(next(end).unwrap_or(end))
    }

    fn slash(&self, at: usize) -> Option<usize> {
        self.literal(at, "/").or_else(|| self.literal(at, "\\/"))
    }

    /// `AT&T`, `A+E`.
    fn partners(&self, at: usize) -> Option<usize> {
        let capitals = |at| self.some(at, |c: char| c.is_ascii_uppercase());
        let more = |end| {
            let sign = self.literal(end, "&amp;").or_else(|| self.one(end, |c| matches!(c, '+' | '&')))?;
            capitals(sign)
        };
        let mut end = more(capitals(at)?)?;
        while let Some(next) = more(end) {
            end = next;
        }
        Some(end)
    }

    /// What is a token against all rules.
    fn special(&self, at: usize) -> Option<usize> {
        const WORDS: [&str; 13] = [
            "-rrb-",
            "-lrb-",
            "-rcb-",
            "-lcb-",
            "-rsb-",
            "-lsb-",
            "c.d.s",
            "pro-",
            "anti-",
            "s&p-500",
            "s&amp;p-500",
            "s&ls",
            "s&amp;ls",
        ];
        let listed = WORDS.iter().find_map(|word| self.literal(at, word));
        let with_apostrophe = [("cap", "n"), ("c", "est")].iter().find_map(|(before, after)| {
            self.literal(at, before).and_then(|end| self.apostrophe(end)).and_then(|end| self.literal(end, after))
        });
        listed.or(with_apostrophe)
    }

    // Abbreviations.

    /// Behind single letters with a full stop each: `U.S.A.`
    fn acronym(&self, at: usize) -> Option<usize> {
        let mut end = at;
        while let Some(next) = self.one(end, |c| c.is_ascii_alphabetic()).and_then(|end| self.literal(end, ".")) {
            end = next;
        }
        (end > at).then_some(end)
    }

    /// `non-U.S` and others that the Wall Street Journal is full of.
    fn compound_acronym(&self, at: usize) -> Option<usize> {
        const WORDS: [&str; 8] =
            ["canada-u.s", "sino-u.s", "korean-u.s", "eu-u.s", "japan-u.s", "non-u.s", "u.s.-u.k", "u.s.-u.s.s.r"];
        WORDS.iter().find_map(|word| self.literal(at, word))
    }

    fn abbreviations(&self, at: usize, best: &mut Longest) {
        let word_end = self.up_to(at, 9, |c| c.is_ascii_alphabetic() || fold(c) != c);
        let word = &self.text[at..word_end];
        let stop = self.literal(word_end, ".").filter(|_| word_end > at);
        let before_number = stop.filter(|_| is_one_of(word, BEFORE_NUMBERS)).and_then(|stop| {
            let digit = |end| self.one(end, is_digit);
            digit(stop).or_else(|| self.one(stop, is_space_or_break).and_then(digit)).map(|seen| (stop, seen))
        });
        if let Some((stop, seen)) = before_number {
            best.offer_before(stop, Some(seen), Form::AsIs);
        }
        if let Some(stop) = stop.filter(|_| is_word(word, "co") || is_word(word, "pty") || is_word(word, "pte")) {
            let limited = self.one(stop, is_space);
            let limited = limited.and_then(|end| self.literal(end, "ltd").or_else(|| self.literal(end, "lim")));
            best.offer_before(stop, limited, Form::AsIs);
        }
        let degree = ["ed.d.", "ph.d."].iter().find_map(|degree| self.literal(at, degree));
        let sentence = stop.filter(|_| is_one_of(word, WITHIN_SENTENCES) || is_proprietary(word)).or(degree);
        if let Some(end) = sentence {
            // Whatever the next two characters are, they tell whether the sentence ends, and so count.
            let seen = if end + 2 <= self.text.len() { end + 2 } else { end };
            best.offer_before(end, Some(seen), Form::AsIs);
        }
        let is_manufacturing = is_word(word, "mtg") || is_word(word, "mfg");
        let is_title = is_one_of(word, BEFORE_NAMES) || (is_manufacturing && matches!(word[1], 't' | 'f'));
        best.offer(stop.filter(|_| is_title), Form::AsIs);
        best.offer(self.acronym(at), Form::AsIs);
        if let Some(end) = self.compound_acronym(at) {
            best.offer(self.literal(end, "."), Form::AsIs);
            best.offer_before(end, self.one(end, is_space_or_break), Form::AsIs);
        }
    }

    /// The end of `I. The ` in `So did I. The dog`, where the full stop is no part of an initial.
    fn initial_at_sentence_end(&mut self, at: usize) -> Option<usize> {
        let stop = self.one(at, |c| c.is_ascii_alphabetic()).and_then(|end| self.literal(end, "."))?;
        let next = self.some(stop, is_space_or_break)?;
        let word = self.exactly(next, 1..=12, |c| !is_space_or_break(c));
        let word = word.filter(|&end| is_one_of(&self.text[next..end], SENTENCE_STARTS));
        let end = if word.is_some() { word } else { self.tag(next) };
        self.one(end?, is_space_or_break)
    }

    // Numbers.

    /// Digits, also with points, commas and colons among them and a sign before.
    fn number(&self, at: usize) -> Option<usize> {
        let start = self.one(at, |c| matches!(c, '+' | '-')).unwrap_or(at);
        let mut end = self.all(start, is_digit);
        let part = |end| {
            let sign = self.one(end, |c| matches!(c, '.' | ':' | ',' | '\u{ad}' | '\u{66b}' | '\u{66c}'))?;
            self.some(sign, is_digit)
        };
        while let Some(next) = part(end) {
            end = next;
        }
        (end > start).then_some(end)
    }

    /// Superscripts or subscripts.
    fn raised_number(&self, at: usize) -> Option<usize> {
        let start = self.one(at, |c| matches!(c, '\u{207a}' | '\u{207b}' | '\u{208a}' | '\u{208b}')).unwrap_or(at);
        let raised =
            self.some(start, |c| matches!(c, '\u{2070}' | '\u{b9}' | '\u{b2}' | '\u{b3}' | '\u{2074}'..='\u{2079}'));
        raised.or_else(|| self.some(start, |c| matches!(c, '\u{2080}'..='\u{2089}')))
    }

    fn date(&self, at: usize) -> Option<usize> {
        let part = |at| self.exactly(at, 1..=2, is_digit).and_then(|end| self.one(end, |c| matches!(c, '-' | '/')));
        self.at_most(part(part(at)?)?, 2..=4, is_digit)
    }

    /// `1/2`, also with a whole number before it.
    fn fraction(&self, at: usize) -> Option<usize> {
        let parts = |at| {
            let end = self.exactly(at, 1..=4, is_digit)?;
            let slash = self.slash(end).or_else(|| self.one(end, |c| c == '\u{2044}'))?;
            self.at_most(slash, 1..=4, is_digit)
        };
        let whole =
            self.exactly(at, 1..=4, is_digit).and_then(|end| self.one(end, |c| matches!(c, '-' | ' ' | '\u{a0}')));
        whole.and_then(parts).or_else(|| parts(at))
    }

    /// `$`, `US$`, `#`.
    fn dollar(&self, at: usize) -> Option<usize> {
        let end = self.all(at, |c| c.is_ascii_uppercase());
        self.literal(end, "$").or_else(|| self.literal(at, "#"))
    }

    /// `'80` before a space; `'80s` is a word with an apostrophe.
    fn decade(&self, at: usize) -> Option<usize> {
        self.at_most(self.apostrophe(at)?, 2..=2, |c| c.is_ascii_digit())
    }

    fn phone(&self, at: usize) -> Option<usize> {
        [self.phone_with_points(at), self.phone_with_spaces(at)].into_iter().flatten().max()
    }

    fn phone_with_points(&self, at: usize) -> Option<usize> {
        let group = |at, count| self.exactly(at, count, |c| c.is_ascii_digit()).and_then(|end| self.literal(end, "."));
        let national = |at| {
            let end = group(group(at, 2..=4)?, 3..=4)?;
            self.at_most(end, 3..=5, |c| c.is_ascii_digit())
        };
        let country = self.up_to(at, 2, |c| c == '+');
        group(country, 2..=4).and_then(national).or_else(|| national(at))
    }

    fn phone_with_spaces(&self, at: usize) -> Option<usize> {
        let digit = |c: char| c.is_ascii_digit();
        let gap = |at| self.one(at, |c| matches!(c, '-' | ' ' | '\u{a0}'));
        let group = |at| self.exactly(at, 2..=4, digit).and_then(gap);
        let local = |at| {
            let apart = self.exactly(at, 3..=4, digit).and_then(gap).and_then(|end| self.at_most(end, 3..=5, digit));
            apart.or_else(|| self.at_most(at, 6..=9, digit))
        };
        let in_parentheses = self.literal(at, "(").and_then(|end| self.exactly(end, 2..=3, digit));
        if let Some(area) = in_parentheses.and_then(|end| self.literal(end, ")")) {
            return local(self.one(area, |c| matches!(c, ' ' | '\u{a0}')).unwrap_or(area));
        }
        let area = group(self.up_to(at, 2, |c| c == '+'))?;
        [local(area), group(area).and_then(local)].into_iter().flatten().max()
    }

    // Addresses, names of files and accounts, markup.

    fn full_url(&self, at: usize) -> Option<usize> {
        let scheme = self.literal(at, "http://").or_else(|| self.literal(at, "https://"))?;
        self.url_tail(scheme, ends_url)
    }

    /// At least two characters, of which the last is no punctuation.
    fn url_tail(&self, at: usize, ends: impl Fn(char) -> bool) -> Option<usize> {
        let end = self.all(at, |c| !ends(c));
        let last = self.text[at..end].iter().rposition(|&c| !(ends_host_label(c) || c == '-'))?;
        (last > 0).then_some(at + last + 1)
    }

    /// The path after a host, which it may lack.
    fn with_path(&self, host: usize) -> usize {
        self.literal(host, "/").and_then(|path| self.url_tail(path, ends_address)).unwrap_or(host)
    }

    /// An address without `http://`.
    fn likely_url(&mut self, at: usize) -> Option<usize> {
        let www = self.literal(at, "www.").and_then(|end| self.www_host(end));
        [www, self.plain_host(at)].into_iter().flatten().max()
    }

    fn www_host(&self, at: usize) -> Option<usize> {
        let mut longest = None;
        let mut label = at;
        while let Some(next) = self.some(label, |c| !ends_host_label(c)).and_then(|end| self.literal(end, ".")) {
            label = next;
            let Some(domain) = self.at_most(label, 2..=4, |c| c.is_ascii_alphabetic()) else { continue };
            longest = Some(self.with_path(domain));
            // A path goes on for as long as any address here could.
            if longest > Some(domain) {
                break;
            }
        }
        longest
    }

    fn plain_host(&mut self, at: usize) -> Option<usize> {
        let label = |c| !ends_plain_label(c);
        self.one(at, label)?;
        if !self.domain.holds(at) {
            let (mut end, mut last) = (at, None);
            while let Some(point) = self.some(end, label) {
                end = point;
                let Some(next) = self.literal(point, ".") else { break };
                let domain = ["com", "net", "org", "edu"].iter().find_map(|domain| self.literal(next, domain));
                last = domain.map(|end| (point, self.with_path(end))).or(last);
                end = next;
            }
            self.domain = Stretch { start: at, end, last };
        }
        self.domain.from(at)
    }

    fn email_address(&mut self, at: usize) -> Option<usize> {
        let start = self.literal(at, "&lt;").or_else(|| self.literal(at, "<")).unwrap_or(at);
        let name = self.one(start, |c| c.is_ascii_alphanumeric())?;
        if !self.email.holds(start) {
            let end = self.all(start, |c| !ends_mail(c));
            let text = &self.text[start..end];
            let last = text.windows(2).rposition(|pair| pair[0] == '@' && pair[1] != '.').map(|sign| {
                let label = |c| !ends_mail(c) && c != '.';
                let mut host = self.all(start + sign + 1, label);
                while let Some(next) = self.literal(host, ".").and_then(|point| self.some(point, label)) {
                    host = next;
                }
                (start + sign, self.literal(host, ">").unwrap_or(host))
            });
            self.email = Stretch { start, end, last };
        }
        self.email.from(name)
    }

    /// `@account`, `#subject`.
    fn handle(&self, at: usize) -> Option<usize> {
        let account = self.literal(at, "@").and_then(|end| self.one(end, |c| c.is_ascii_alphabetic() || c == '_'));
        let account = account.map(|end| self.all(end, |c| c.is_ascii_alphanumeric() || c == '_'));
        account.or_else(|| {
            let mut end = self.literal(at, "#").and_then(|end| self.letter(end))?;
            while let Some(next) = self.letter(end) {
                end = next;
            }
            Some(end)
        })
    }

    /// A name with an extension that a space or a mark follows.
    fn file_name(&mut self, at: usize) -> Option<usize> {
        let part = |lexer: &Self, at| Some(lexer.letters_and_digits(at)).filter(|&end| end > at);
        let mut end = part(self, at)?;
        if !self.file.holds(at) {
            let mut last = None;
            while let Some(next) = self.literal(end, ".") {
                let Some(name) = part(self, next) else { break };
                let ends = self.one(name, |c| is_space_or_break(c) || matches!(c, '.' | '?' | '!' | ','));
                if ends.is_some() && is_one_of(&self.text[next..name], EXTENSIONS) {
                    last = Some((end, name));
                }
                end = name;
            }
            self.file = Stretch { start: at, end, last };
        }
        self.file.from(at)
    }

    /// `<tag>`, `</tag>`, `<tag name="value">`, `<!declaration>`. Upstream's values may go on in the next line, which
    /// would give all later captions the tokens of others; here none does.
    fn tag(&mut self, at: usize) -> Option<usize> {
        let start = self.literal(at, "<")?;
        if let Some(end) = self.one(start, |c| matches!(c, '!' | '?')) {
            let end = self.one(end, |c| c.is_ascii_alphabetic() || c == '-')?;
            if !self.declaration.holds(end) {
                let line = self.all(end, |c| !matches!(c, '>' | '\n'));
                let last = self.literal(line, ">").map(|closed| (line, closed));
                self.declaration = Stretch { start: end, end: line + 1, last };
            }
            return self.declaration.from(end);
        }
        let spaces = |at| self.all(at, |c| c == ' ');
        let name = |at| {
            let end = self.one(at, |c: char| c.is_ascii_alphabetic())?;
            Some(self.all(end, |c| c.is_ascii_alphanumeric() || matches!(c, '_' | ':' | '.' | '-')))
        };
        if let Some(end) = self.literal(start, "/").and_then(name) {
            return self.literal(spaces(end), ">");
        }
        let value = |end| {
            let start = self.literal(spaces(end), "=").map(spaces)?;
            let quote = self.at(start).filter(|c| matches!(c, '\'' | '"'))?;
            self.one(self.all(start + 1, |c| c != quote && c != '\n'), |c| c == quote)
        };
        let mut end = name(start)?;
        while let Some(next) = self.literal(end, " ").map(spaces).and_then(name) {
            end = value(next).unwrap_or(next);
        }
        end = spaces(end);
        end = self.literal(end, "/").map_or(end, spaces);
        self.literal(end, ">")
    }

    // Marks.

    fn dash(&self, at: usize) -> Option<usize> {
        let named = ["&md;", "&mdash;", "&ndash;"].iter().find_map(|dash| self.literal(at, dash));
        named.or_else(|| self.one(at, |c| matches!(c, '\u{96}' | '\u{97}' | '\u{2013}'..='\u{2015}')))
    }

    /// Entities for punctuation, which are left as they are.
    fn entity(&self, at: usize) -> Option<usize> {
        const NAMES: [&str; 9] = ["&ht;", "&tl;", "&ur;", "&lr;", "&qc;", "&ql;", "&qr;", "&odq;", "&cdq;"];
        let numbered = self.literal(at, "&#").and_then(|end| self.some(end, |c| c.is_ascii_digit()));
        let numbered = numbered.and_then(|end| self.literal(end, ";"));
        NAMES.iter().find_map(|name| self.literal(at, name)).or(numbered)
    }

    fn smiley(&self, at: usize) -> Option<usize> {
        let eyes = self.one(at, |c| matches!(c, '<' | '>')).unwrap_or(at);
        let nose = self.one(eyes, |c| matches!(c, ':' | ';' | '='))?;
        let mouth = self.one(nose, |c| matches!(c, '-' | 'o' | '*' | '\'')).unwrap_or(nose);
        self.one(mouth, |c| r"()DPdpO\{@|[]".contains(c))
    }

    /// `^_^`, `(x.x)`.
    fn asian_smiley(&self, at: usize) -> Option<usize> {
        let eye = |at| self.one(at, |c| matches!(c, '-' | '^' | 'x' | '=' | '~' | '<' | '>' | '\''));
        let between = |at| self.literal(at, "_");
        if let Some(end) = eye(at).and_then(between).and_then(eye) {
            return Some(end);
        }
        let left = self.literal(at, "(").and_then(eye)?;
        let closed = |at| eye(at).and_then(|end| self.literal(end, ")"));
        let mouth = self.one(left, |c| matches!(c, '_' | '.')).unwrap_or(left);
        closed(mouth).or_else(|| {
            // With a hyphen for a mouth, the right eye may wink; and no eye is a hyphen, too.
            let open = |place| self.one(place, |c| c != '-').and_then(|_| eye(place));
            let mouth = open(left - 1).and_then(|_| self.literal(left, "-"))?;
            let right = open(mouth).or_else(|| self.literal(mouth, "`"))?;
            self.literal(right, ")")
        })
    }

    /// Three to five full stops, also with spaces among them.
    fn ellipsis(&self, at: usize) -> Option<usize> {
        let mut spaced = None;
        let mut end = at;
        for count in 1..=5 {
            let Some(stop) = self.literal(end, ".") else { break };
            spaced = if count >= 3 { Some(stop) } else { None };
            let Some(next) = self.one(stop, |c| matches!(c, ' ' | '\u{a0}')) else { break };
            end = next;
        }
        let single = self.one(at, |c| matches!(c, '\u{85}' | '\u{2026}'));
        self.at_most(at, 3..=5, |c| c == '.').or(spaced).or(single)
    }

    fn escaped_asterisks(&self, at: usize) -> Option<usize> {
        let mut end = None;
        for _ in 0..3 {
            end = self.literal(end.unwrap_or(at), "\\*").or(end);
        }
        end
    }

    /// An apostrophe before a letter, most likely a quotation mark. The character after the letter counts.
    fn opening_apostrophe(&self, at: usize) -> Option<usize> {
        let letter = self.literal(at, "'").and_then(|end| self.one(end, |c| c.is_ascii_alphabetic()))?;
        self.one(letter, |c| !matches!(c, ' ' | '\t' | '\n' | '\r' | '\u{a0}'))
    }

    /// Quotation marks, up to two of those that are no ASCII.
    fn quotes(&self, at: usize) -> Option<usize> {
        self.at_most(at, 1..=2, is_curly_quote).or_else(|| self.literal(at, "''")).or_else(|| self.apostrophe(at))
    }
}

/// `Pty` and its kind: `e` and `y` are in lower case.
fn is_proprietary(word: &[char]) -> bool {
    let word = match word {
        [start @ .., 's' | 'S'] => start,
        word => word,
    };
    match word {
        [p, t, 'y' | 'e'] => fold(*p) == 'p' && fold(*t) == 't',
        [p, second, t, 'y' | 'e'] => fold(*p) == 'p' && fold(*second) == 'p' && fold(*t) == 't',
        _ => false,
    }
}

fn is_curly_quote(c: char) -> bool {
    matches!(c, '`' | '\u{91}'..='\u{94}' | '\u{ab}' | '\u{bb}' | '\u{2018}'..='\u{201f}' | '\u{2039}' | '\u{203a}')
}

fn is_currency(c: char) -> bool {
    matches!(
        c,
        '\u{a2}'
            ..='\u{a5}'
                | '\u{80}'
                | '\u{20a0}'
                | '\u{20a4}'
                | '\u{20ac}'
                | '\u{60b}'
                | '\u{e3f}'
                | '\u{ffe0}'
                | '\u{ffe1}'
                | '\u{ffe5}'
                | '\u{ffe6}'
    )
}

/// The token for what stands in the text.
fn spell(text: &[char], form: Form) -> Option<String> {
    let as_is = || text.iter().collect::<String>();
    Some(match form {
        Form::AsIs => as_is(),
        Form::Word => {
            let visible: String = text.iter().filter(|&&c| c != '\u{ad}').collect();
            if visible.is_empty() { "-".into() } else { visible }
        }
        Form::Spaced => as_is().replace(' ', "\u{a0}"),
        Form::Parentheses => as_is().replace(' ', "\u{a0}").replace('(', "-LRB-").replace(')', "-RRB-"),
        Form::Ampersand => plain_ampersands(text),
        Form::Quotes => as_is().replace("&apos;", "'").replace("&quot;", "\"").chars().map(latex_quote).collect(),
        Form::Currency => text.iter().copied().map(currency).collect(),
        Form::Fraction => text.iter().copied().map(spelled_fraction).collect(),
        Form::Fixed(token) => token.into(),
        Form::Nothing => return None,
    })
}

fn plain_ampersands(text: &[char]) -> String {
    let mut plain = String::new();
    let mut rest = text;
    while let Some((&c, more)) = rest.split_first() {
        plain.push(c);
        rest = rest.get(5..).filter(|_| is_word(&rest[..5], "&amp;")).unwrap_or(more);
    }
    plain
}

/// Those at their places in Windows' code page 1252 are the same marks.
fn latex_quote(c: char) -> Cow<'static, str> {
    match c {
        '\u{91}' | '\u{2018}' | '\u{201b}' | '\u{2039}' => "`".into(),
        '\u{92}' | '\u{2019}' | '\u{203a}' => "'".into(),
        '\u{93}' | '\u{201c}' | '\u{ab}' => "``".into(),
        '"' | '\u{94}' | '\u{201d}' | '\u{bb}' => "''".into(),
        c => c.to_string().into(),
    }
}

/// The Penn Treebank knows dollars and cents, writes `#` for pounds, and takes the rest for dollars.
fn currency(c: char) -> Cow<'static, str> {
    match c {
        '\u{a2}' => "cents".into(),
        '\u{a3}' => "#".into(),
        '\u{80}' | '\u{a4}' | '\u{20a0}' | '\u{20ac}' => "$".into(),
        c => c.to_string().into(),
    }
}

fn spelled_fraction(c: char) -> Cow<'static, str> {
    match c {
        '\u{bc}' => "1/4".into(),
        '\u{bd}' => "1/2".into(),
        '\u{be}' => "3/4".into(),
        '\u{2153}' => "1/3".into(),
        '\u{2154}' => "2/3".into(),
        c => c.to_string().into(),
    }
}

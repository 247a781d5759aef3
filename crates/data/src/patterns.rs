//! Patterns that stand for many shards, as the Python package `braceexpand` reads them; braces that hold neither a list nor a
//! range are refused rather than kept.

use crate::DataError;

/// Most names that a pattern may stand for.
const MAX_SHARDS: usize = 1 << 20;

const TOO_MANY: &str = "stands for more than a million names";

/// Letters in the order in which ranges count them.
const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// The names that a pattern stands for: `{0000..0999}` and `{a..e}` count, `{0..9..3}` in steps, `{a,b}` lists, all of
/// them within each other, and `::` joins patterns. A backslash takes its meaning from the character after it.
///
/// # Errors
/// [`DataError::Shards`] for braces that do not close or hold neither a range nor a list, and for more than a million
/// names.
pub fn expand(pattern: &str) -> Result<Vec<String>, DataError> {
    let wrong = |why| DataError::Shards(format!("the shard pattern `{pattern}` {why}"));
    let mut names = Vec::new();
    for part in parts(pattern) {
        names.extend(braces(part).map_err(wrong)?);
        if names.len() > MAX_SHARDS {
            return Err(wrong(TOO_MANY));
        }
    }
    if names.is_empty() { Err(wrong("names nothing")) } else { Ok(names) }
}

/// The patterns that `::` joins, without empty ones. In the brackets of a host, `http://[::1]/a.tar`, it is part of the
/// address.
pub(crate) fn parts(pattern: &str) -> impl Iterator<Item = &str> {
    let mut rest = pattern;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let joint = rest.match_indices("::").map(|(at, _)| at).find(|&at| !in_address(&rest[..at]));
        let (part, after) = joint.map_or((rest, ""), |at| (&rest[..at], &rest[at + 2..]));
        rest = after;
        Some(part)
    })
    .filter(|part| !part.is_empty())
}

/// Whether what comes before a place leaves the brackets of a host open.
fn in_address(before: &str) -> bool {
    before.split_once("://").is_some_and(|(_, host)| !host.contains('/') && host.rfind('[') > host.rfind(']'))
}

/// What a pattern without `::` stands for, or what is wrong with it.
fn braces(pattern: &str) -> Result<Vec<String>, &'static str> {
    let marks = first_braces(pattern)?;
    let [open, .., close] = marks[..] else { return Ok(vec![plain(pattern)]) };
    let between: Vec<&str> = marks.windows(2).map(|pair| &pattern[pair[0] + 1..pair[1]]).collect();
    let choices = match between[..] {
        [inside] => range(inside)?,
        _ => between.into_iter().map(braces).collect::<Result<Vec<_>, _>>()?.concat(),
    };
    let tails = braces(&pattern[close + 1..])?;
    if choices.len().saturating_mul(tails.len()) > MAX_SHARDS {
        return Err(TOO_MANY);
    }
    let before = plain(&pattern[..open]);
    let beginnings = choices.iter().map(|choice| format!("{before}{choice}"));
    Ok(beginnings.flat_map(|beginning| tails.iter().map(move |tail| format!("{beginning}{tail}"))).collect())
}

/// Where the first braces of a pattern open, where their own commas are, and where they close; nothing without braces.
fn first_braces(pattern: &str) -> Result<Vec<usize>, &'static str> {
    let (mut marks, mut depth, mut escaped) = (Vec::new(), 0, false);
    for (at, byte) in pattern.bytes().enumerate() {
        if std::mem::take(&mut escaped) {
            continue;
        }
        match byte {
            b'\\' => escaped = true,
            b'{' => depth += 1,
            b'}' if depth == 0 => return Err("has a brace that was not opened"),
            b'}' => depth -= 1,
            _ => {}
        }
        match byte {
            b'{' | b',' if depth == 1 => marks.push(at),
            b'}' if depth == 0 => {
                marks.push(at);
                return Ok(marks);
            }
            _ => {}
        }
    }
    if depth == 0 { Ok(marks) } else { Err("has a brace that does not close") }
}

/// A text without the backslashes that take meanings away.
fn plain(text: &str) -> String {
    let mut characters = text.chars();
    let next = || match characters.next()? {
        '\\' => Some(characters.next().unwrap_or('\\')),
        other => Some(other),
    };
    std::iter::from_fn(next).collect()
}

/// What a range counts: `0..9`, `09..0`, `a..e`, `0..9..3`.
fn range(text: &str) -> Result<Vec<String>, &'static str> {
    let wrong = "has braces without a range `{000..999}` or a list `{a,b}`: a brace of a name is written `\\{`";
    let ends: Vec<&str> = text.split("..").collect();
    let (first, last, step) = match ends[..] {
        [first, last] => (first, last, "1"),
        [first, last, step] => (first, last, step),
        _ => return Err(wrong),
    };
    // Its sign says nothing: the ends decide which way it goes.
    let step = number(step).ok_or(wrong)?.abs().max(1);
    if let (Some(from), Some(to)) = (number(first), number(last)) {
        // As in a shell: zeros in front set the width.
        let padded = |text: &str| !["0", "-0"].contains(&text) && (text.starts_with('0') || text.starts_with("-0"));
        let width = if padded(first) || padded(last) { first.len().max(last.len()) } else { 0 };
        return Ok(count(from, to, step)?.map(|number| format!("{number:0width$}")).collect());
    }
    let letter = |text: &str| {
        let place = LETTERS.iter().position(|&letter| text.as_bytes() == [letter]);
        place.map(|place| place as i128)
    };
    let (from, to) = letter(first).zip(letter(last)).ok_or(wrong)?;
    Ok(count(from, to, step)?.map(|place| char::from(LETTERS[place as usize]).to_string()).collect())
}

/// A number of a range; the type has room for sums of them.
fn number(text: &str) -> Option<i128> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let known = digits.bytes().all(|b| b.is_ascii_digit());
    if known { text.parse::<i64>().ok().map(i128::from) } else { None }
}

/// From one number to another, both included, whichever is larger.
fn count(from: i128, to: i128, step: i128) -> Result<impl Iterator<Item = i128>, &'static str> {
    let steps = (to - from).abs() / step;
    if steps >= MAX_SHARDS as i128 {
        return Err(TOO_MANY);
    }
    Ok((0..=steps).map(move |i| from + i * step * (to - from).signum()))
}

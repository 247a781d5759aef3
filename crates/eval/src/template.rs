//! Texts and paths with places to fill in: `{question}`, `{image_id:012}`.

use serde_json::Value;

/// Fills in a template: `{name}` stands for what `field` knows by that name, `{name:012}` for a number with zeros in
/// front up to a width. Braces around anything else are text.
///
/// # Errors
/// The name of a field that is not there, or is neither text nor number.
pub(crate) fn fill<'a>(template: &str, field: impl Fn(&str) -> Option<&'a Value>) -> Result<String, String> {
    let mut filled = String::new();
    let mut rest = template;
    while let Some(open) = rest.find('{') {
        filled += &rest[..open];
        rest = &rest[open..];
        let Some(place) = rest.find('}').map(|close| &rest[1..close]).filter(|place| is_place(place)) else {
            filled.push('{');
            rest = &rest[1..];
            continue;
        };
        rest = &rest[place.len() + 2..];
        let (name, width) = place.split_once(':').unwrap_or((place, "0"));
        let text = match field(name) {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Number(number)) => number.to_string(),
            _ => return Err(name.to_string()),
        };
        let zeros = width.parse::<usize>().unwrap_or(0).saturating_sub(text.chars().count());
        filled.extend(std::iter::repeat_n('0', zeros));
        filled += &text;
    }
    Ok(filled + rest)
}

/// A name of letters and `_`, and maybe a width of at most two digits behind a zero.
fn is_place(text: &str) -> bool {
    let (name, width) = text.split_once(':').unwrap_or((text, "0"));
    !name.is_empty()
        && name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_')
        && width.starts_with('0')
        && width.len() <= 3
        && width.bytes().all(|c| c.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn places_are_filled_and_other_braces_stay() {
        let fields = json!({"image_id": 42, "question": "is {this} it?", "flag": true});
        let filled = |template: &str| fill(template, |name| fields.get(name));
        assert_eq!(filled("COCO_{image_id:012}.jpg"), Ok("COCO_000000000042.jpg".into()));
        assert_eq!(filled("Q:{question} {image_id}"), Ok("Q:is {this} it? 42".into()));
        assert_eq!(filled("{} {a b} {image_id:x} {"), Ok("{} {a b} {image_id:x} {".into()));
        assert_eq!(filled("é{image_id}ü"), Ok("é42ü".into()));
        assert_eq!(filled("{answer}"), Err("answer".into()));
        assert_eq!(filled("{flag}"), Err("flag".into()));
        assert_eq!(filled("{image_id:099}").map(|text| text.len()), Ok(99));
    }
}

//! What emoji show, and which are kept out of training.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use sha2::Digest;

use crate::CorpusError;
use crate::drawing::Drawing;
use crate::packages::Packages;

const FILE: &str = "emojibase-data-17.0.0.tgz";

/// The style that training never sees.
pub(crate) const TEST_STYLE: &str = "noto-v1";

/// Concepts that training never sees in any style.
const HELD_OUT: usize = 150;

/// Most concepts that are named.
const NAMED: usize = 400;

/// A plain word for each group; components and symbols are left out.
const CATEGORIES: [(u64, &str); 8] = [
    (0, "face"),
    (1, "person"),
    (3, "nature"),
    (4, "food"),
    (5, "travel"),
    (6, "activity"),
    (7, "object"),
    (9, "flag"),
];

/// What an emoji shows.
pub(crate) struct Concept {
    pub(crate) hexcode: String,
    pub(crate) name: String,
    pub(crate) tags: Vec<String>,
    pub(crate) category: &'static str,
    pub(crate) kind: String,
    pub(crate) held_out: bool,
    /// Other spellings by which sets of drawings may know it.
    pub(crate) spellings: BTreeSet<String>,
}

/// A name without anything that spellings differ in.
pub(crate) fn compact(name: &str) -> String {
    name.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
}

/// All concepts, in Unicode's order.
pub(crate) fn read(packages: &Packages) -> Result<Vec<Concept>, CorpusError> {
    let data = packages.npm_json(FILE, "package/en/data.json")?;
    let messages = packages.npm_json(FILE, "package/en/messages.json")?;
    let mut kinds = BTreeMap::new();
    for entry in messages["subgroups"].as_array().into_iter().flatten() {
        if let (Some(key), Some(order)) = (entry["key"].as_str(), entry["order"].as_u64()) {
            kinds.insert(order, key.to_string());
        }
    }
    let mut shortcodes = Vec::new();
    for file in ["emojibase", "cldr", "iamcal", "github", "joypixels"] {
        shortcodes.push(packages.npm_json(FILE, &format!("package/en/shortcodes/{file}.json"))?);
    }
    let mut concepts: Vec<Concept> = Vec::new();
    for entry in data.as_array().into_iter().flatten() {
        let group = entry["group"].as_u64();
        let Some((_, category)) = CATEGORIES.iter().find(|(id, _)| Some(*id) == group) else { continue };
        let (Some(label), Some(hexcode)) = (entry["label"].as_str(), entry["hexcode"].as_str()) else { continue };
        // Unicode's sets of drawings say "flag for France".
        let mut spellings: BTreeSet<String> = [compact(label), compact(&label.replace("flag: ", "flag for "))].into();
        for table in &shortcodes {
            match &table[hexcode] {
                Value::String(name) => drop(spellings.insert(compact(name))),
                Value::Array(names) => spellings.extend(names.iter().filter_map(Value::as_str).map(compact)),
                _ => {}
            }
        }
        let text = |value: &Value| value.as_str().map(str::to_lowercase);
        concepts.push(Concept {
            hexcode: hexcode.to_lowercase(),
            name: label.to_lowercase().replace(": ", " "),
            tags: entry["tags"].as_array().into_iter().flatten().filter_map(text).collect(),
            category,
            kind: kinds
                .get(&entry["subgroup"].as_u64().unwrap_or(u64::MAX))
                .map_or("other", String::as_str)
                .replace('-', " "),
            held_out: false,
            spellings,
        });
    }
    // The smallest hashes are as good as any.
    let mut order: Vec<usize> = (0..concepts.len()).collect();
    order.sort_by_key(|&i| sha2::Sha256::digest(format!("held out {}", concepts[i].hexcode)).to_vec());
    order.iter().take(HELD_OUT).for_each(|&i| concepts[i].held_out = true);
    Ok(concepts)
}

/// Groups and sub-groups of things that have a look of their own.
fn concrete(concept: &Concept) -> bool {
    let by_kind = match concept.category {
        "nature" | "food" => true,
        "travel" => concept.kind.starts_with("transport") && concept.kind != "transport sign",
        "activity" => concept.kind != "award medal",
        "object" => true,
        _ => false,
    };
    let words = concept.name.split(' ').count();
    by_kind && words <= 2 && concept.name.bytes().all(|b| b.is_ascii_lowercase() || b" -".contains(&b))
}

/// Concepts that the models learn to name: concrete, drawn in many styles and in the test's.
pub(crate) fn named(concepts: &[Concept], train: &[Drawing], test: &[Drawing]) -> Vec<usize> {
    let mut styles: BTreeMap<usize, BTreeSet<&str>> = BTreeMap::new();
    for drawing in train {
        styles.entry(drawing.concept).or_default().insert(drawing.style);
    }
    let tested: BTreeSet<usize> = test.iter().map(|drawing| drawing.concept).collect();
    let count = |concept: usize| styles.get(&concept).map_or(0, BTreeSet::len);
    let mut named: Vec<usize> = (0..concepts.len())
        .filter(|&i| concrete(&concepts[i]) && !concepts[i].held_out && tested.contains(&i) && count(i) >= 4)
        .collect();
    named.sort_by_key(|&i| std::cmp::Reverse(count(i)));
    named.truncate(NAMED);
    named.sort_unstable();
    named
}

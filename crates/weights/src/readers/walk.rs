//! The tensors in a pickle, by name.

use super::pickle::{Id, Node, Pickle, PickleError, PickledTensor, damaged};

/// Most entries that are looked at, and most bytes of their names: a pickle may hold one dictionary under a
/// million names.
const MAX_ENTRIES: usize = 1 << 21;
const MAX_NAMES: usize = 1 << 26;

/// The tensors in a pickle by path: dictionary keys and attribute names joined by dots.
///
/// Where the root holds a model beside other things, as a trainer writes it (`model_state_dict`,
/// `state_dict`), only the model is taken.
pub(super) fn tensors(pickle: &Pickle) -> Result<Vec<(String, &PickledTensor)>, PickleError> {
    let children = |id: Id| -> &[(Id, Id)] {
        match &pickle.nodes[id as usize] {
            Node::Dict(items) => items,
            Node::Object(Some(state)) => match &pickle.nodes[*state as usize] {
                Node::Dict(items) => items,
                _ => &[],
            },
            _ => &[],
        }
    };
    let name = |id: Id| match &pickle.nodes[id as usize] {
        Node::Str(text) => Some(text.as_str()),
        _ => None,
    };
    let is_dict = |id: Id| matches!(pickle.nodes[id as usize], Node::Dict(_));
    let inner = |key: &str| children(pickle.root).iter().find(|(k, v)| name(*k) == Some(key) && is_dict(*v));
    let root = ["model_state_dict", "state_dict"].iter().find_map(|key| inner(key)).map_or(pickle.root, |(_, v)| *v);

    let mut found = Vec::new();
    let mut open = vec![(String::new(), root, 0usize)];
    let (mut entries, mut names) = (0, 0);
    while let Some((path, id, depth)) = open.pop() {
        // Deeper than any module tree: a cycle.
        if depth > 64 {
            return damaged("its pickle holds itself");
        }
        for &(key, value) in children(id) {
            entries += 1;
            let Some(key) = name(key) else { continue };
            names += path.len() + key.len();
            if entries > MAX_ENTRIES || names > MAX_NAMES {
                return damaged("its pickle holds more than any checkpoint needs");
            }
            let path = if path.is_empty() { key.to_string() } else { format!("{path}.{key}") };
            match &pickle.nodes[value as usize] {
                Node::Tensor(tensor) => found.push((path, &**tensor)),
                Node::Dict(_) | Node::Object(_) => open.push((path, value, depth + 1)),
                _ => {}
            }
        }
    }
    Ok(found)
}

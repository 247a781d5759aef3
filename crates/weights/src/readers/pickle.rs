//! A pickle, parsed and never executed.
//!
//! Pickle is a little stack machine whose programs can call anything. A checkpoint needs a handful of calls
//! (rebuild a tensor, make an ordered dictionary); each is understood here as data. Any other call is
//! refused with the opcode and the name of what it would have called.
//!
//! Values live in one arena and refer to each other by number, so no input can nest deep enough to overflow
//! the stack, and sharing and cycles cost nothing.

use std::collections::HashMap;

use crate::SourceDtype;

/// A value's number in the arena.
pub(super) type Id = u32;

/// A tensor as a pickle describes it.
#[derive(Clone, Debug)]
pub(super) struct PickledTensor {
    pub(super) storage: Storage,
    pub(super) first: usize,
    pub(super) shape: Vec<usize>,
    pub(super) strides: Vec<usize>,
}

/// Bytes that tensors are views of.
#[derive(Clone, Debug)]
pub(super) struct Storage {
    pub(super) key: String,
    pub(super) dtype: SourceDtype,
}

/// A value.
#[derive(Clone, Debug)]
pub(super) enum Node {
    Int(i64),
    Str(String),
    List(Vec<Id>),
    Tuple(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Tensor(PickledTensor),
    Storage(Storage),
    /// A name, not looked up.
    Global(String),
    /// An object of a TorchScript class: its attributes.
    Object(Option<Id>),
    /// A value that no weight depends on: None, truth values, floats, bytes, sets.
    Other,
}

/// Why a pickle was not read.
#[derive(Debug, PartialEq)]
pub(super) enum PickleError {
    Damaged(String),
    Refused { opcode: &'static str, callable: String },
}

/// A parsed pickle.
#[derive(Debug)]
pub(super) struct Pickle {
    pub(super) nodes: Vec<Node>,
    pub(super) root: Id,
    /// Bytes read: several pickles may follow each other in one file.
    pub(super) len: usize,
}

/// Parses the pickle at the start of `bytes`.
pub(super) fn parse(bytes: &[u8]) -> Result<Pickle, PickleError> {
    let mut machine =
        Machine { bytes, at: 0, nodes: Vec::new(), stack: Vec::new(), marks: Vec::new(), memo: HashMap::new() };
    let root = machine.run()?;
    Ok(Pickle { nodes: machine.nodes, root, len: machine.at })
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    nodes: Vec<Node>,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

fn damaged<T>(what: impl Into<String>) -> Result<T, PickleError> {
    Err(PickleError::Damaged(what.into()))
}

impl<'a> Machine<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], PickleError> {
        let end = self.at.checked_add(n).filter(|&end| end <= self.bytes.len());
        let Some(end) = end else { return damaged("its pickle ends early") };
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn number(&mut self, n: usize) -> Result<usize, PickleError> {
        let bytes = self.take(n)?;
        let value = bytes.iter().rev().fold(0u64, |value, &b| value << 8 | u64::from(b));
        usize::try_from(value).or_else(|_| damaged("a length in its pickle is absurd"))
    }

    fn line(&mut self) -> Result<String, PickleError> {
        let rest = &self.bytes[self.at..];
        let Some(n) = rest.iter().position(|&b| b == b'\n') else { return damaged("its pickle ends early") };
        let line = String::from_utf8_lossy(&rest[..n]).into_owned();
        self.at += n + 1;
        Ok(line)
    }

    fn text(&mut self, n: usize) -> Result<String, PickleError> {
        Ok(String::from_utf8_lossy(self.take(n)?).into_owned())
    }

    fn push(&mut self, node: Node) {
        self.stack.push(self.nodes.len() as Id);
        self.nodes.push(node);
    }

    fn pop(&mut self) -> Result<Id, PickleError> {
        // Values below the newest mark belong to whoever set it.
        match self.stack.pop() {
            Some(id) if self.marks.last().is_none_or(|&mark| self.stack.len() >= mark) => Ok(id),
            _ => damaged("its pickle takes a value that is not there"),
        }
    }

    fn top(&self) -> Result<Id, PickleError> {
        self.stack.last().copied().map_or_else(|| damaged("its pickle takes a value that is not there"), Ok)
    }

    fn pop_mark(&mut self) -> Result<Vec<Id>, PickleError> {
        match self.marks.pop() {
            Some(mark) if mark <= self.stack.len() => Ok(self.stack.split_off(mark)),
            _ => damaged("its pickle closes a group that was not opened"),
        }
    }

    fn run(&mut self) -> Result<Id, PickleError> {
        loop {
            match self.take(1)?[0] {
                b'.' => return self.pop(),
                0x80 => drop(self.take(1)?),
                0x95 => drop(self.take(8)?),
                b'(' => self.marks.push(self.stack.len()),
                b'0' => drop(self.pop()?),
                b'1' => drop(self.pop_mark()?),
                b'2' => {
                    let top = self.top()?;
                    self.stack.push(top);
                }
                b'N' | 0x88 | 0x89 => self.push(Node::Other),
                b'I' | b'L' => {
                    let line = self.line()?;
                    let node = line.trim_end_matches('L').parse().map_or(Node::Other, Node::Int);
                    self.push(node);
                }
                b'J' => {
                    let n = self.number(4)? as u32 as i32;
                    self.push(Node::Int(n.into()));
                }
                b'K' => {
                    let n = self.number(1)?;
                    self.push(Node::Int(n as i64));
                }
                b'M' => {
                    let n = self.number(2)?;
                    self.push(Node::Int(n as i64));
                }
                0x8a => {
                    let n = self.number(1)?;
                    self.long(n)?;
                }
                0x8b => {
                    let n = self.number(4)?;
                    self.long(n)?;
                }
                b'F' => {
                    self.line()?;
                    self.push(Node::Other);
                }
                b'G' => {
                    self.take(8)?;
                    self.push(Node::Other);
                }
                b'S' | b'V' => {
                    let line = self.line()?;
                    let text = line.trim_matches(['\'', '"']).to_string();
                    self.push(Node::Str(text));
                }
                b'X' | b'T' => {
                    let n = self.number(4)?;
                    let text = self.text(n)?;
                    self.push(Node::Str(text));
                }
                0x8c | b'U' => {
                    let n = self.number(1)?;
                    let text = self.text(n)?;
                    self.push(Node::Str(text));
                }
                0x8d => {
                    let n = self.number(8)?;
                    let text = self.text(n)?;
                    self.push(Node::Str(text));
                }
                b'B' => {
                    let n = self.number(4)?;
                    self.take(n)?;
                    self.push(Node::Other);
                }
                b'C' => {
                    let n = self.number(1)?;
                    self.take(n)?;
                    self.push(Node::Other);
                }
                0x8e | 0x96 => {
                    let n = self.number(8)?;
                    self.take(n)?;
                    self.push(Node::Other);
                }
                b']' => self.push(Node::List(Vec::new())),
                b')' => self.push(Node::Tuple(Vec::new())),
                b'}' => self.push(Node::Dict(Vec::new())),
                0x8f => self.push(Node::Other),
                b'l' => {
                    let items = self.pop_mark()?;
                    self.push(Node::List(items));
                }
                b't' => {
                    let items = self.pop_mark()?;
                    self.push(Node::Tuple(items));
                }
                0x85..=0x87 => {
                    let n = usize::from(self.bytes[self.at - 1] - 0x84);
                    let mut items = Vec::with_capacity(n);
                    for _ in 0..n {
                        items.push(self.pop()?);
                    }
                    items.reverse();
                    self.push(Node::Tuple(items));
                }
                b'd' => {
                    let items = self.pop_mark()?;
                    let pairs = pairs(&items)?;
                    self.push(Node::Dict(pairs));
                }
                0x91 => {
                    self.pop_mark()?;
                    self.push(Node::Other);
                }
                b'a' => {
                    let item = self.pop()?;
                    self.extend(&[item])?;
                }
                b'e' => {
                    let items = self.pop_mark()?;
                    self.extend(&items)?;
                }
                0x90 => drop(self.pop_mark()?),
                b's' => {
                    let value = self.pop()?;
                    let key = self.pop()?;
                    self.insert(vec![(key, value)])?;
                }
                b'u' => {
                    let items = self.pop_mark()?;
                    self.insert(pairs(&items)?)?;
                }
                b'p' => {
                    let line = self.line()?;
                    let Ok(slot) = line.parse() else { return damaged("a memo of its pickle has no number") };
                    self.memo.insert(slot, self.top()?);
                }
                b'q' => {
                    let slot = self.number(1)? as u32;
                    self.memo.insert(slot, self.top()?);
                }
                b'r' => {
                    let slot = self.number(4)? as u32;
                    self.memo.insert(slot, self.top()?);
                }
                0x94 => {
                    let slot = self.memo.len() as u32;
                    self.memo.insert(slot, self.top()?);
                }
                b'g' => {
                    let line = self.line()?;
                    let Ok(slot) = line.parse() else { return damaged("a memo of its pickle has no number") };
                    self.recall(slot)?;
                }
                b'h' => {
                    let slot = self.number(1)? as u32;
                    self.recall(slot)?;
                }
                b'j' => {
                    let slot = self.number(4)? as u32;
                    self.recall(slot)?;
                }
                b'c' => {
                    let module = self.line()?;
                    let name = self.line()?;
                    self.push(Node::Global(format!("{module}.{name}")));
                }
                0x93 => {
                    let name = self.pop()?;
                    let module = self.pop()?;
                    match (self.str(module), self.str(name)) {
                        (Some(module), Some(name)) => {
                            let global = format!("{module}.{name}");
                            self.push(Node::Global(global));
                        }
                        _ => return damaged("a global of its pickle has no name"),
                    }
                }
                b'Q' => self.persistent()?,
                b'R' => self.call()?,
                0x81 => self.new_object()?,
                b'b' => self.build()?,
                b'i' => {
                    let callable = format!("{}.{}", self.line()?, self.line()?);
                    return Err(PickleError::Refused { opcode: "INST", callable });
                }
                b'o' => return Err(self.refused_group("OBJ")),
                0x92 => return Err(self.refused_below("NEWOBJ_EX", 2)),
                0x82..=0x84 => {
                    return Err(PickleError::Refused { opcode: "EXT", callable: "an extension registry entry".into() });
                }
                b'P' => return damaged("its pickle names an object by a protocol 0 identifier"),
                other => return damaged(format!("its pickle has the unknown opcode 0x{other:02x}")),
            }
        }
    }

    fn long(&mut self, n: usize) -> Result<(), PickleError> {
        let bytes = self.take(n)?;
        // Integers of more than 64 bits occur in random number states, which no weight depends on.
        let node = if n > 8 {
            Node::Other
        } else {
            let mut value = bytes.iter().rev().fold(0i64, |value, &b| value << 8 | i64::from(b));
            if n > 0 && n < 8 && bytes[n - 1] & 0x80 != 0 {
                value -= 1 << (8 * n);
            }
            Node::Int(value)
        };
        self.push(node);
        Ok(())
    }

    fn recall(&mut self, slot: u32) -> Result<(), PickleError> {
        match self.memo.get(&slot) {
            Some(&id) => {
                self.stack.push(id);
                Ok(())
            }
            None => damaged("its pickle recalls a value that it never stored"),
        }
    }

    fn extend(&mut self, items: &[Id]) -> Result<(), PickleError> {
        let list = self.top()?;
        match &mut self.nodes[list as usize] {
            Node::List(list) => list.extend_from_slice(items),
            Node::Other => {}
            _ => return damaged("its pickle appends to something that is no list"),
        }
        Ok(())
    }

    fn insert(&mut self, pairs: Vec<(Id, Id)>) -> Result<(), PickleError> {
        let dict = self.top()?;
        match &mut self.nodes[dict as usize] {
            Node::Dict(dict) => dict.extend(pairs),
            Node::Other => {}
            _ => return damaged("its pickle sets an item of something that is no dictionary"),
        }
        Ok(())
    }

    fn str(&self, id: Id) -> Option<&str> {
        match &self.nodes[id as usize] {
            Node::Str(text) => Some(text),
            _ => None,
        }
    }

    fn tuple(&self, id: Id) -> Result<&[Id], PickleError> {
        match &self.nodes[id as usize] {
            Node::Tuple(items) | Node::List(items) => Ok(items),
            _ => damaged("a call in its pickle has no arguments"),
        }
    }

    fn size(&self, id: Id) -> Result<usize, PickleError> {
        match self.nodes[id as usize] {
            Node::Int(n) if n >= 0 => Ok(n as usize),
            _ => damaged("a size in its pickle is no number"),
        }
    }

    fn sizes(&self, id: Id) -> Result<Vec<usize>, PickleError> {
        self.tuple(id)?.iter().map(|&id| self.size(id)).collect()
    }

    /// A name for an error.
    fn describe(&self, id: Id) -> String {
        match &self.nodes[id as usize] {
            Node::Global(name) => name.clone(),
            _ => "an object that it built".into(),
        }
    }

    /// `('storage', type, key, location, elements)`, as torch.save writes storages.
    fn persistent(&mut self) -> Result<(), PickleError> {
        let id = self.pop()?;
        let items = self.tuple(id)?.to_vec();
        let [kind, class, key, _, _, ..] = items[..] else {
            return damaged("a storage in its pickle is incomplete");
        };
        if self.str(kind) != Some("storage") {
            return damaged("its pickle refers to something outside that is no storage");
        }
        let class = self.describe(class);
        let Some(dtype) = storage_dtype(&class) else {
            return damaged(format!("a storage in its pickle has the unsupported type {class}"));
        };
        let key = self.str(key).map(str::to_string);
        let Some(key) = key else { return damaged("a storage in its pickle has no name") };
        self.push(Node::Storage(Storage { key, dtype }));
        Ok(())
    }

    fn call(&mut self) -> Result<(), PickleError> {
        let arguments = self.pop()?;
        let callable = self.pop()?;
        let name = match &self.nodes[callable as usize] {
            Node::Global(name) => name.clone(),
            _ => return Err(PickleError::Refused { opcode: "REDUCE", callable: self.describe(callable) }),
        };
        let arguments = self.tuple(arguments)?.to_vec();
        let node = match name.as_str() {
            "torch._utils._rebuild_tensor_v2" | "torch._utils._rebuild_tensor" => {
                let [storage, first, shape, strides, ..] = arguments[..] else {
                    return damaged("a tensor in its pickle is incomplete");
                };
                let Node::Storage(storage) = &self.nodes[storage as usize] else {
                    return damaged("a tensor in its pickle has no storage");
                };
                Node::Tensor(PickledTensor {
                    storage: storage.clone(),
                    first: self.size(first)?,
                    shape: self.sizes(shape)?,
                    strides: self.sizes(strides)?,
                })
            }
            "torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state" => match arguments.first()
            {
                Some(&data) => self.nodes[data as usize].clone(),
                None => return damaged("a parameter in its pickle is incomplete"),
            },
            "collections.OrderedDict" => Node::Dict(match arguments.first() {
                Some(&items) => {
                    let items = self.tuple(items)?.to_vec();
                    items
                        .into_iter()
                        .map(|pair| match self.tuple(pair)? {
                            [key, value] => Ok((*key, *value)),
                            _ => damaged("a dictionary in its pickle has an item that is no pair"),
                        })
                        .collect::<Result<_, _>>()?
                }
                None => Vec::new(),
            }),
            "collections.defaultdict" => Node::Dict(Vec::new()),
            "torch.Size" => match arguments.first() {
                Some(&sizes) => self.nodes[sizes as usize].clone(),
                None => Node::Tuple(Vec::new()),
            },
            // Values beside the weights in trainers' files; made of plain data.
            "torch.device"
            | "builtins.set"
            | "__builtin__.set"
            | "_codecs.encode"
            | "numpy.dtype"
            | "numpy.core.multiarray.scalar"
            | "numpy.core.multiarray._reconstruct" => Node::Other,
            _ => return Err(PickleError::Refused { opcode: "REDUCE", callable: name }),
        };
        self.push(node);
        Ok(())
    }

    /// TorchScript archives make an object for each module.
    fn new_object(&mut self) -> Result<(), PickleError> {
        self.pop()?;
        let class = self.pop()?;
        let name = self.describe(class);
        match name.as_str() {
            name if name.starts_with("__torch__.") => self.push(Node::Object(None)),
            "collections.OrderedDict" => self.push(Node::Dict(Vec::new())),
            _ => return Err(PickleError::Refused { opcode: "NEWOBJ", callable: name }),
        }
        Ok(())
    }

    fn build(&mut self) -> Result<(), PickleError> {
        let state = self.pop()?;
        let object = self.top()?;
        match &mut self.nodes[object as usize] {
            Node::Object(attributes) => *attributes = Some(state),
            // state_dict() hangs version numbers on its dictionary.
            Node::Dict(_) | Node::Other => {}
            node => {
                let callable = match node {
                    Node::Global(name) => format!("{name}.__setstate__"),
                    _ => "__setstate__".into(),
                };
                return Err(PickleError::Refused { opcode: "BUILD", callable });
            }
        }
        Ok(())
    }

    fn refused_group(&mut self, opcode: &'static str) -> PickleError {
        let callable = match self.pop_mark() {
            Ok(items) if !items.is_empty() => self.describe(items[0]),
            _ => "something unnamed".into(),
        };
        PickleError::Refused { opcode, callable }
    }

    fn refused_below(&self, opcode: &'static str, depth: usize) -> PickleError {
        let class = self.stack.len().checked_sub(depth + 1).map(|i| self.describe(self.stack[i]));
        PickleError::Refused { opcode, callable: class.unwrap_or_else(|| "something unnamed".into()) }
    }
}

fn pairs(items: &[Id]) -> Result<Vec<(Id, Id)>, PickleError> {
    if !items.len().is_multiple_of(2) {
        return damaged("a dictionary in its pickle has a key without a value");
    }
    Ok(items.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
}

fn storage_dtype(class: &str) -> Option<SourceDtype> {
    Some(match class.rsplit('.').next()? {
        "DoubleStorage" => SourceDtype::F64,
        "FloatStorage" => SourceDtype::F32,
        "HalfStorage" => SourceDtype::F16,
        "BFloat16Storage" => SourceDtype::Bf16,
        "LongStorage" => SourceDtype::I64,
        "IntStorage" => SourceDtype::I32,
        "ShortStorage" => SourceDtype::I16,
        "CharStorage" => SourceDtype::I8,
        "ByteStorage" => SourceDtype::U8,
        "BoolStorage" => SourceDtype::Bool,
        _ => return None,
    })
}

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
    while let Some((path, id, depth)) = open.pop() {
        // Deeper than any module tree: a cycle. Wider than any: the same object met over and over.
        if depth > 64 || found.len() + open.len() > 1_000_000 {
            return damaged("its pickle holds itself");
        }
        for &(key, value) in children(id) {
            let Some(key) = name(key) else { continue };
            let path = if path.is_empty() { key.to_string() } else { format!("{path}.{key}") };
            match &pickle.nodes[value as usize] {
                Node::Tensor(tensor) => found.push((path, tensor)),
                Node::Dict(_) | Node::Object(_) => open.push((path, value, depth + 1)),
                _ => {}
            }
        }
    }
    Ok(found)
}

//! A pickle, parsed and never executed.
//!
//! Pickle is a little stack machine whose programs can call anything. A checkpoint needs a handful of calls
//! (rebuild a tensor, make an ordered dictionary); each is understood here as data. Any other call is
//! refused with the opcode and the name of what it would have called.
//!
//! Values live in one arena and refer to each other by number, so no input can nest deep enough to overflow
//! the stack. Whatever is stored or copied is charged to a budget, so a small pickle cannot fill the memory by
//! recalling a large value again and again.

use std::collections::HashMap;

use crate::SourceDtype;

/// Most bytes that a pickle's values may take, and be copied, in all. Those of a 9B model with its optimizer take
/// less than a tenth.
const BUDGET: usize = 1 << 27;

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
    Tensor(Box<PickledTensor>),
    Storage(Storage),
    /// A name, not looked up.
    Global(String),
    /// An object of a TorchScript class: its attributes.
    Object(Option<Id>),
    /// A value that no weight depends on: None, truth values, floats, bytes, sets.
    Other,
}

impl Node {
    /// Bytes that it takes.
    fn size(&self) -> usize {
        let beside = match self {
            Self::Str(text) | Self::Global(text) => text.len(),
            Self::List(items) | Self::Tuple(items) => items.len() * size_of::<Id>(),
            Self::Dict(items) => items.len() * size_of::<(Id, Id)>(),
            Self::Tensor(tensor) => {
                size_of::<PickledTensor>()
                    + tensor.storage.key.len()
                    + (tensor.shape.len() + tensor.strides.len()) * size_of::<usize>()
            }
            Self::Storage(storage) => storage.key.len(),
            Self::Int(_) | Self::Object(_) | Self::Other => 0,
        };
        size_of::<Self>() + beside
    }
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
    let mut machine = Machine {
        bytes,
        at: 0,
        nodes: Vec::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        budget: BUDGET,
    };
    let root = machine.run()?;
    Ok(Pickle { nodes: machine.nodes, root, len: machine.at })
}

pub(super) struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    pub(super) nodes: Vec<Node>,
    pub(super) stack: Vec<Id>,
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
    /// Bytes that may still be stored or copied.
    budget: usize,
}

pub(super) fn damaged<T>(what: impl Into<String>) -> Result<T, PickleError> {
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

    pub(super) fn line(&mut self) -> Result<String, PickleError> {
        let rest = &self.bytes[self.at..];
        let Some(n) = rest.iter().position(|&b| b == b'\n') else { return damaged("its pickle ends early") };
        let line = String::from_utf8_lossy(&rest[..n]).into_owned();
        self.at += n + 1;
        Ok(line)
    }

    fn text(&mut self, n: usize) -> Result<String, PickleError> {
        Ok(String::from_utf8_lossy(self.take(n)?).into_owned())
    }

    fn charge(&mut self, bytes: usize) -> Result<(), PickleError> {
        match self.budget.checked_sub(bytes) {
            Some(left) => {
                self.budget = left;
                Ok(())
            }
            None => damaged("its pickle holds more than any checkpoint needs"),
        }
    }

    pub(super) fn push(&mut self, node: Node) -> Result<(), PickleError> {
        self.charge(node.size())?;
        let id = self.nodes.len() as Id;
        self.nodes.push(node);
        self.push_again(id)
    }

    /// Pushes a value that is in the arena already.
    pub(super) fn push_again(&mut self, id: Id) -> Result<(), PickleError> {
        self.charge(size_of::<Id>())?;
        self.stack.push(id);
        Ok(())
    }

    fn memoize(&mut self, slot: u32) -> Result<(), PickleError> {
        let top = self.top()?;
        self.charge(2 * size_of::<(u32, Id)>())?;
        self.memo.insert(slot, top);
        Ok(())
    }

    pub(super) fn pop(&mut self) -> Result<Id, PickleError> {
        // Values below the newest mark belong to whoever set it.
        match self.stack.pop() {
            Some(id) if self.marks.last().is_none_or(|&mark| self.stack.len() >= mark) => Ok(id),
            _ => damaged("its pickle takes a value that is not there"),
        }
    }

    pub(super) fn top(&self) -> Result<Id, PickleError> {
        self.stack.last().copied().map_or_else(|| damaged("its pickle takes a value that is not there"), Ok)
    }

    pub(super) fn pop_mark(&mut self) -> Result<Vec<Id>, PickleError> {
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
                b'(' => {
                    self.charge(size_of::<usize>())?;
                    self.marks.push(self.stack.len());
                }
                b'0' => drop(self.pop()?),
                b'1' => drop(self.pop_mark()?),
                b'2' => {
                    let top = self.top()?;
                    self.push_again(top)?;
                }
                b'N' | 0x88 | 0x89 => self.push(Node::Other)?,
                b'I' | b'L' => {
                    let line = self.line()?;
                    let node = line.trim_end_matches('L').parse().map_or(Node::Other, Node::Int);
                    self.push(node)?;
                }
                b'J' => {
                    let n = self.number(4)? as u32 as i32;
                    self.push(Node::Int(n.into()))?;
                }
                b'K' => {
                    let n = self.number(1)?;
                    self.push(Node::Int(n as i64))?;
                }
                b'M' => {
                    let n = self.number(2)?;
                    self.push(Node::Int(n as i64))?;
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
                    self.push(Node::Other)?;
                }
                b'G' => {
                    self.take(8)?;
                    self.push(Node::Other)?;
                }
                b'S' | b'V' => {
                    let line = self.line()?;
                    let text = line.trim_matches(['\'', '"']).to_string();
                    self.push(Node::Str(text))?;
                }
                b'X' | b'T' => {
                    let n = self.number(4)?;
                    let text = self.text(n)?;
                    self.push(Node::Str(text))?;
                }
                0x8c | b'U' => {
                    let n = self.number(1)?;
                    let text = self.text(n)?;
                    self.push(Node::Str(text))?;
                }
                0x8d => {
                    let n = self.number(8)?;
                    let text = self.text(n)?;
                    self.push(Node::Str(text))?;
                }
                b'B' => {
                    let n = self.number(4)?;
                    self.take(n)?;
                    self.push(Node::Other)?;
                }
                b'C' => {
                    let n = self.number(1)?;
                    self.take(n)?;
                    self.push(Node::Other)?;
                }
                0x8e | 0x96 => {
                    let n = self.number(8)?;
                    self.take(n)?;
                    self.push(Node::Other)?;
                }
                b']' => self.push(Node::List(Vec::new()))?,
                b')' => self.push(Node::Tuple(Vec::new()))?,
                b'}' => self.push(Node::Dict(Vec::new()))?,
                0x8f => self.push(Node::Other)?,
                b'l' => {
                    let items = self.pop_mark()?;
                    self.push(Node::List(items))?;
                }
                b't' => {
                    let items = self.pop_mark()?;
                    self.push(Node::Tuple(items))?;
                }
                0x85..=0x87 => {
                    let n = usize::from(self.bytes[self.at - 1] - 0x84);
                    let mut items = Vec::with_capacity(n);
                    for _ in 0..n {
                        items.push(self.pop()?);
                    }
                    items.reverse();
                    self.push(Node::Tuple(items))?;
                }
                b'd' => {
                    let items = self.pop_mark()?;
                    let pairs = pairs(&items)?;
                    self.push(Node::Dict(pairs))?;
                }
                0x91 => {
                    self.pop_mark()?;
                    self.push(Node::Other)?;
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
                    self.memoize(slot)?;
                }
                b'q' => {
                    let slot = self.number(1)? as u32;
                    self.memoize(slot)?;
                }
                b'r' => {
                    let slot = self.number(4)? as u32;
                    self.memoize(slot)?;
                }
                0x94 => {
                    let slot = self.memo.len() as u32;
                    self.memoize(slot)?;
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
                    self.push(Node::Global(format!("{module}.{name}")))?;
                }
                0x93 => {
                    let name = self.pop()?;
                    let module = self.pop()?;
                    match (self.str(module), self.str(name)) {
                        (Some(module), Some(name)) => {
                            let global = format!("{module}.{name}");
                            self.push(Node::Global(global))?;
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
        self.push(node)?;
        Ok(())
    }

    fn recall(&mut self, slot: u32) -> Result<(), PickleError> {
        match self.memo.get(&slot) {
            Some(&id) => self.push_again(id),
            None => damaged("its pickle recalls a value that it never stored"),
        }
    }

    fn extend(&mut self, items: &[Id]) -> Result<(), PickleError> {
        self.charge(size_of_val(items))?;
        let list = self.top()?;
        match &mut self.nodes[list as usize] {
            Node::List(list) => list.extend_from_slice(items),
            Node::Other => {}
            _ => return damaged("its pickle appends to something that is no list"),
        }
        Ok(())
    }

    fn insert(&mut self, pairs: Vec<(Id, Id)>) -> Result<(), PickleError> {
        self.charge(size_of_val(&pairs[..]))?;
        let dict = self.top()?;
        match &mut self.nodes[dict as usize] {
            Node::Dict(dict) => dict.extend(pairs),
            Node::Other => {}
            _ => return damaged("its pickle sets an item of something that is no dictionary"),
        }
        Ok(())
    }

    pub(super) fn str(&self, id: Id) -> Option<&str> {
        match &self.nodes[id as usize] {
            Node::Str(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn tuple(&self, id: Id) -> Result<&[Id], PickleError> {
        match &self.nodes[id as usize] {
            Node::Tuple(items) | Node::List(items) => Ok(items),
            _ => damaged("a call in its pickle has no arguments"),
        }
    }

    pub(super) fn size(&self, id: Id) -> Result<usize, PickleError> {
        match self.nodes[id as usize] {
            Node::Int(n) if n >= 0 => Ok(n as usize),
            _ => damaged("a size in its pickle is no number"),
        }
    }

    pub(super) fn sizes(&mut self, id: Id) -> Result<Vec<usize>, PickleError> {
        self.items(id)?.into_iter().map(|id| self.size(id)).collect()
    }

    /// A copy of a tuple's or a list's items.
    pub(super) fn items(&mut self, id: Id) -> Result<Vec<Id>, PickleError> {
        self.charge(size_of_val(self.tuple(id)?))?;
        Ok(self.tuple(id)?.to_vec())
    }

    /// A copy of the name that a call goes to, or what it goes to instead.
    pub(super) fn callable(&mut self, id: Id) -> Result<String, PickleError> {
        self.charge(self.nodes[id as usize].size())?;
        Ok(self.describe(id))
    }

    /// A name for an error.
    pub(super) fn describe(&self, id: Id) -> String {
        match &self.nodes[id as usize] {
            Node::Global(name) => name.clone(),
            _ => "an object that it built".into(),
        }
    }
}

fn pairs(items: &[Id]) -> Result<Vec<(Id, Id)>, PickleError> {
    if !items.len().is_multiple_of(2) {
        return damaged("a dictionary in its pickle has a key without a value");
    }
    Ok(items.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
}

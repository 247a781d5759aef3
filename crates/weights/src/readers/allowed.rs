//! What the calls in a checkpoint's pickle mean: the allow-list. Any other call is refused by name.

use super::pickle::{Machine, Node, PickleError, PickledTensor, Storage, damaged};
use crate::SourceDtype;

/// As many as torch's own limit.
const MAX_DIMENSIONS: usize = 64;

impl Machine<'_> {
    /// `('storage', type, key, location, elements)`, as torch.save writes storages.
    pub(super) fn persistent(&mut self) -> Result<(), PickleError> {
        let id = self.pop()?;
        let items = self.items(id)?;
        let [kind, class, key, _, _, ref view @ ..] = items[..] else {
            return damaged("a storage in its pickle is incomplete");
        };
        // Before 2017 a storage could be a part of another one.
        if view.iter().any(|&id| matches!(self.nodes[id as usize], Node::Tuple(_))) {
            return damaged("a storage in its pickle is a view of another one, which is not supported");
        }
        if self.str(kind) != Some("storage") {
            return damaged("its pickle refers to something outside that is no storage");
        }
        let class = self.callable(class)?;
        let Some(dtype) = storage_dtype(&class) else {
            return damaged(format!("a storage in its pickle has the unsupported type {class}"));
        };
        let key = self.str(key).map(str::to_string);
        let Some(key) = key else { return damaged("a storage in its pickle has no name") };
        self.push(Node::Storage(Storage { key, dtype }))?;
        Ok(())
    }

    pub(super) fn call(&mut self) -> Result<(), PickleError> {
        let arguments = self.pop()?;
        let callable = self.pop()?;
        let name = self.callable(callable)?;
        if !matches!(self.nodes[callable as usize], Node::Global(_)) {
            return Err(PickleError::Refused { opcode: "REDUCE", callable: name });
        }
        let arguments = self.items(arguments)?;
        let node = match name.as_str() {
            "torch._utils._rebuild_tensor_v2" | "torch._utils._rebuild_tensor" => {
                let [storage, first, shape, strides, ..] = arguments[..] else {
                    return damaged("a tensor in its pickle is incomplete");
                };
                let Node::Storage(storage) = &self.nodes[storage as usize] else {
                    return damaged("a tensor in its pickle has no storage");
                };
                let storage = storage.clone();
                let (first, shape, strides) = (self.size(first)?, self.sizes(shape)?, self.sizes(strides)?);
                if shape.len() > MAX_DIMENSIONS {
                    return damaged(format!("a tensor in its pickle has {} dimensions", shape.len()));
                }
                Node::Tensor(Box::new(PickledTensor { storage, first, shape, strides }))
            }
            // Their first argument, marked as something that no weight depends on. TorchScript marks its lists.
            "torch._utils._rebuild_parameter"
            | "torch._utils._rebuild_parameter_with_state"
            | "torch.jit._pickle.restore_type_tag"
            | "torch.jit._pickle.build_intlist"
            | "torch.jit._pickle.build_doublelist"
            | "torch.jit._pickle.build_boollist"
            | "torch.jit._pickle.build_tensorlist" => match arguments.first() {
                Some(&data) => return self.push_again(data),
                None => return damaged(format!("a call of {name} in its pickle has no arguments")),
            },
            "collections.OrderedDict" => Node::Dict(match arguments.first() {
                Some(&items) => {
                    let items = self.items(items)?;
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
                Some(&sizes) => return self.push_again(sizes),
                None => Node::Tuple(Vec::new()),
            },
            // Values beside the weights in trainers' files; made of plain data.
            "torch.device"
            | "builtins.set"
            | "__builtin__.set"
            | "_codecs.encode"
            | "numpy.dtype"
            | "numpy.core.multiarray.scalar"
            | "numpy.core.multiarray._reconstruct"
            | "numpy._core.multiarray.scalar"
            | "numpy._core.multiarray._reconstruct" => Node::Other,
            _ => return Err(PickleError::Refused { opcode: "REDUCE", callable: name }),
        };
        self.push(node)?;
        Ok(())
    }

    /// TorchScript archives make an object for each module.
    pub(super) fn new_object(&mut self) -> Result<(), PickleError> {
        self.pop()?;
        let class = self.pop()?;
        let name = self.callable(class)?;
        match name.as_str() {
            name if name.starts_with("__torch__.") => self.push(Node::Object(None))?,
            "collections.OrderedDict" => self.push(Node::Dict(Vec::new()))?,
            _ => return Err(PickleError::Refused { opcode: "NEWOBJ", callable: name }),
        }
        Ok(())
    }

    pub(super) fn build(&mut self) -> Result<(), PickleError> {
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

    pub(super) fn refused_group(&mut self, opcode: &'static str) -> PickleError {
        let callable = match self.pop_mark() {
            Ok(items) if !items.is_empty() => self.describe(items[0]),
            _ => "something unnamed".into(),
        };
        PickleError::Refused { opcode, callable }
    }

    pub(super) fn refused_below(&self, opcode: &'static str, depth: usize) -> PickleError {
        let class = self.stack.len().checked_sub(depth + 1).map(|i| self.describe(self.stack[i]));
        PickleError::Refused { opcode, callable: class.unwrap_or_else(|| "something unnamed".into()) }
    }
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

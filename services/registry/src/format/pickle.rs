//! A pickle reader that executes nothing.
//!
//! A pickle is a program; this reader runs only the part of it that builds
//! data: numbers, strings, lists, tuples, dicts, and torch's tensor rebuilders
//! as inert descriptions. A name it does not know is refused, so no import, no
//! call and no object construction can ever be reached from a file.
//! Opcodes: <https://github.com/python/cpython/blob/main/Lib/pickletools.py>

mod machine;

use super::{FormatError, malformed};

/// A value's place in its [`Pickle`]. Values are kept flat, so that deep or
/// even cyclic nesting costs no recursion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NodeId(usize);

/// A value.
#[derive(Debug, Clone, PartialEq)]
pub enum Node {
    /// None, and the result of anything without meaning here.
    None,
    /// True or False.
    Bool(bool),
    /// An integer.
    Int(i64),
    /// A float.
    Float(f64),
    /// Text.
    Text(String),
    /// A tuple.
    Tuple(Vec<NodeId>),
    /// A list.
    List(Vec<NodeId>),
    /// A dict or OrderedDict, in order of insertion.
    Dict(Vec<(NodeId, NodeId)>),
    /// One of the known names; nothing is imported.
    Global(Global),
    /// Reference to a storage outside the pickle.
    Storage(Storage),
    /// A tensor, described.
    Tensor(TensorNode),
}

/// The names a pickle may mention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Global {
    /// `collections.OrderedDict`.
    OrderedDict,
    /// `torch._utils._rebuild_tensor_v2`.
    RebuildTensor,
    /// `torch._utils._rebuild_parameter`.
    RebuildParameter,
    /// A typed storage of torch, e.g. `torch.FloatStorage`.
    Storage(StorageType),
}

/// Element type of a torch storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StorageType {
    /// `torch.HalfStorage`.
    F16,
    /// `torch.BFloat16Storage`.
    Bf16,
    /// `torch.FloatStorage`.
    F32,
    /// `torch.DoubleStorage`.
    F64,
    /// `torch.IntStorage`.
    I32,
    /// `torch.LongStorage`.
    I64,
}

/// A storage that the archive keeps in a file of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Storage {
    /// Element type.
    pub dtype: StorageType,
    /// Name of the file.
    pub key: String,
    /// Number of elements.
    pub len: u64,
}

/// Arguments of `_rebuild_tensor_v2`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorNode {
    /// Where its numbers are.
    pub storage: Storage,
    /// First element.
    pub offset: u64,
    /// Shape.
    pub shape: Vec<u64>,
    /// Distance between neighbours along each axis, in elements.
    pub strides: Vec<u64>,
}

/// A pickle's values.
#[derive(Debug)]
pub struct Pickle {
    nodes: Vec<Node>,
    root: NodeId,
}

impl Pickle {
    /// Reads a pickle.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        let (nodes, root) = machine::run(bytes)?;
        Ok(Self { nodes, root })
    }

    /// The outermost value.
    pub fn root(&self) -> &Node {
        self.node(self.root)
    }

    /// A value.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0]
    }

    /// Entries of the outermost dict, by text key; other keys are refused.
    pub fn root_entries(&self) -> Result<Vec<(&str, &Node)>, FormatError> {
        let Node::Dict(items) = self.root() else {
            return Err(malformed("is not a dict"));
        };
        items
            .iter()
            .map(|&(key, value)| match self.node(key) {
                Node::Text(key) => Ok((key.as_str(), self.node(value))),
                _ => Err(malformed("is a dict with keys that are not text")),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests;

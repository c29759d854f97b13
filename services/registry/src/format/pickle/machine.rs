//! The pickle machine: a stack, a memo, and opcodes that build data.

use std::collections::HashMap;

use super::{Global, Node, NodeId, Storage, StorageType, TensorNode};
use crate::format::{FormatError, malformed, unservable};

/// Most values one pickle may build.
pub(super) const NODES_MAX: usize = 1 << 20;
/// Deepest nesting of marks and most values waiting on the stack.
pub(super) const STACK_MAX: usize = 1 << 20;

/// Longest name of a storage in bytes; torch numbers them. A name is copied wherever it is used,
/// which may be any number of times.
const STORAGE_KEY_LEN_MAX: usize = 64;
/// Most axes of a tensor.
const AXES_MAX: usize = 8;

/// Runs a pickle; returns its values and which of them is the outermost.
pub(super) fn run(bytes: &[u8]) -> Result<(Vec<Node>, NodeId), FormatError> {
    let mut machine = Machine::new(bytes);
    let root = machine.run()?;
    Ok((machine.nodes, root))
}

struct Machine<'a> {
    rest: &'a [u8],
    nodes: Vec<Node>,
    stack: Vec<NodeId>,
    marks: Vec<usize>,
    memo: HashMap<u64, NodeId>,
}

impl<'a> Machine<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self {
            rest: bytes,
            nodes: Vec::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
        }
    }

    fn run(&mut self) -> Result<NodeId, FormatError> {
        loop {
            if let Some(root) = self.step()? {
                return Ok(root);
            }
            if self.nodes.len() > NODES_MAX
                || self.stack.len() > STACK_MAX
                || self.marks.len() > STACK_MAX
            {
                return Err(malformed("pickle builds too many values"));
            }
        }
    }

    /// Runs one opcode; `STOP` gives the result.
    fn step(&mut self) -> Result<Option<NodeId>, FormatError> {
        let opcode = self.array::<1>()?[0];
        match opcode {
            b'.' => return self.pop().map(Some),
            0x80 => drop(self.array::<1>()?),
            0x95 => drop(self.array::<8>()?),
            b'(' => self.marks.push(self.stack.len()),
            b'0' => drop(self.pop()?),
            b'1' => drop(self.pop_mark()?),
            b'2' => {
                let top = self.top()?;
                self.stack.push(top);
            }
            b'N' => self.push(Node::None),
            0x88 => self.push(Node::Bool(true)),
            0x89 => self.push(Node::Bool(false)),
            b'J' | b'K' | b'M' | 0x8a | b'G' | b'I' | b'F' | b'L' => self.number(opcode)?,
            b'X' | 0x8c | 0x8d | b'T' | b'U' | b'V' => self.text(opcode)?,
            b')' => self.push(Node::Tuple(Vec::new())),
            b']' => self.push(Node::List(Vec::new())),
            b'}' => self.push(Node::Dict(Vec::new())),
            0x85..=0x87 => {
                let items = self.pop_many(usize::from(opcode - 0x84))?;
                self.push(Node::Tuple(items));
            }
            b't' | b'l' | b'd' => self.gather(opcode)?,
            b'a' | b'e' | b's' | b'u' => self.extend(opcode)?,
            b'q' | b'r' | 0x94 | b'h' | b'j' => self.memo(opcode)?,
            b'c' | 0x93 => self.global(opcode)?,
            b'Q' => self.persistent_id()?,
            b'R' => self.reduce()?,
            b'b' => self.build()?,
            other => {
                return Err(unservable(format!(
                    "pickle uses opcode 0x{other:02x}, which could construct objects; only plain data \
                     and tensors are read"
                )));
            }
        }
        Ok(None)
    }

    fn number(&mut self, opcode: u8) -> Result<(), FormatError> {
        let node = match opcode {
            b'J' => Node::Int(i32::from_le_bytes(self.array()?).into()),
            b'K' => Node::Int(self.array::<1>()?[0].into()),
            b'M' => Node::Int(u16::from_le_bytes(self.array()?).into()),
            0x8a => {
                let len = usize::from(self.array::<1>()?[0]);
                let bytes = self.take(len)?;
                if len > 8 {
                    // torch's legacy magic number is such an integer; nothing here needs one.
                    return Err(malformed(format!("pickle holds an integer of {len} bytes")));
                }
                let fill = if bytes.last().is_some_and(|&last| last >= 0x80) {
                    0xff
                } else {
                    0
                };
                let mut wide = [fill; 8];
                wide[..len].copy_from_slice(bytes);
                Node::Int(i64::from_le_bytes(wide))
            }
            b'G' => Node::Float(f64::from_be_bytes(self.array()?)),
            b'I' | b'L' => match self.line()? {
                "00" => Node::Bool(false),
                "01" => Node::Bool(true),
                line => Node::Int(parse_line(line.trim_end_matches('L'))?),
            },
            _ => Node::Float(parse_line(self.line()?)?),
        };
        self.push(node);
        Ok(())
    }

    fn text(&mut self, opcode: u8) -> Result<(), FormatError> {
        let len = match opcode {
            0x8c | b'U' => self.array::<1>()?[0].into(),
            b'X' | b'T' => u32::from_le_bytes(self.array()?).into(),
            0x8d => u64::from_le_bytes(self.array()?),
            _ => {
                let line = self.line()?.to_owned();
                self.push(Node::Text(line));
                return Ok(());
            }
        };
        let len = usize::try_from(len).map_err(|_| malformed("pickle holds an endless string"))?;
        let text = std::str::from_utf8(self.take(len)?)
            .map_err(|_| malformed("pickle holds a string that is not UTF-8"))?
            .to_owned();
        self.push(Node::Text(text));
        Ok(())
    }

    fn gather(&mut self, opcode: u8) -> Result<(), FormatError> {
        let items = self.pop_mark()?;
        let node = match opcode {
            b't' => Node::Tuple(items),
            b'l' => Node::List(items),
            _ => Node::Dict(pairs(&items)?),
        };
        self.push(node);
        Ok(())
    }

    fn extend(&mut self, opcode: u8) -> Result<(), FormatError> {
        let items = match opcode {
            b'a' => self.pop_many(1)?,
            b's' => self.pop_many(2)?,
            _ => self.pop_mark()?,
        };
        let target = self.top()?;
        match (&mut self.nodes[target.0], opcode) {
            (Node::List(list), b'a' | b'e') => list.extend(items),
            (Node::Dict(dict), b's' | b'u') => dict.extend(pairs(&items)?),
            _ => {
                return Err(malformed(
                    "pickle appends to something that is no list or dict",
                ));
            }
        }
        Ok(())
    }

    fn memo(&mut self, opcode: u8) -> Result<(), FormatError> {
        let key = match opcode {
            b'q' | b'h' => self.array::<1>()?[0].into(),
            b'r' | b'j' => u32::from_le_bytes(self.array()?).into(),
            _ => self.memo.len() as u64,
        };
        if matches!(opcode, b'h' | b'j') {
            let id = self.memo.get(&key).copied();
            self.stack
                .push(id.ok_or_else(|| malformed("pickle uses a value before it is there"))?);
        } else {
            let top = self.top()?;
            self.memo.insert(key, top);
        }
        Ok(())
    }

    fn global(&mut self, opcode: u8) -> Result<(), FormatError> {
        let (module, name) = if opcode == b'c' {
            (self.line()?.to_owned(), self.line()?.to_owned())
        } else {
            let name = self.pop()?;
            let module = self.pop()?;
            match (&self.nodes[module.0], &self.nodes[name.0]) {
                (Node::Text(module), Node::Text(name)) => (module.clone(), name.clone()),
                _ => return Err(malformed("pickle names a global without text")),
            }
        };
        let global = match (module.as_str(), name.as_str()) {
            ("collections", "OrderedDict") => Global::OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2") => Global::RebuildTensor,
            ("torch._utils", "_rebuild_parameter") => Global::RebuildParameter,
            ("torch", "HalfStorage") => Global::Storage(StorageType::F16),
            ("torch", "BFloat16Storage") => Global::Storage(StorageType::Bf16),
            ("torch", "FloatStorage") => Global::Storage(StorageType::F32),
            ("torch", "DoubleStorage") => Global::Storage(StorageType::F64),
            ("torch", "IntStorage") => Global::Storage(StorageType::I32),
            ("torch", "LongStorage") => Global::Storage(StorageType::I64),
            _ => {
                return Err(unservable(format!(
                    "pickle refers to {module}.{name}; only tensors and plain data are read, and nothing \
                     is executed"
                )));
            }
        };
        self.push(Node::Global(global));
        Ok(())
    }

    /// `("storage", type, key, location, element count)`, as torch saves it.
    fn persistent_id(&mut self) -> Result<(), FormatError> {
        let bad = || malformed("pickle refers to outside data that is no torch storage");
        let id = self.pop()?;
        let Node::Tuple(items) = &self.nodes[id.0] else {
            return Err(bad());
        };
        let items: &[NodeId; 5] = items.as_slice().try_into().map_err(|_| bad())?;
        let storage = match items.map(|id| &self.nodes[id.0]) {
            [
                Node::Text(kind),
                Node::Global(Global::Storage(dtype)),
                Node::Text(key),
                Node::Text(_location),
                Node::Int(len),
            ] if kind == "storage" && key.len() <= STORAGE_KEY_LEN_MAX => Storage {
                dtype: *dtype,
                key: key.clone(),
                len: u64::try_from(*len).map_err(|_| bad())?,
            },
            _ => return Err(bad()),
        };
        self.push(Node::Storage(storage));
        Ok(())
    }

    fn reduce(&mut self) -> Result<(), FormatError> {
        let arguments = self.pop()?;
        let callable = self.pop()?;
        let Node::Tuple(arguments) = &self.nodes[arguments.0] else {
            return Err(malformed("pickle calls with arguments that are no tuple"));
        };
        match (&self.nodes[callable.0], arguments.as_slice()) {
            (Node::Global(Global::OrderedDict), []) => self.push(Node::Dict(Vec::new())),
            (Node::Global(Global::RebuildTensor), arguments) => {
                let tensor = self.tensor(arguments)?;
                self.push(Node::Tensor(tensor));
            }
            // A parameter is its tensor: (tensor, requires_grad, hooks).
            (Node::Global(Global::RebuildParameter), &[tensor, ..]) => self.stack.push(tensor),
            _ => {
                return Err(unservable(
                    "pickle calls something that is no tensor rebuilder",
                ));
            }
        }
        Ok(())
    }

    /// `(storage, offset, shape, strides, requires_grad, hooks, …)`.
    fn tensor(&self, arguments: &[NodeId]) -> Result<TensorNode, FormatError> {
        let bad = || malformed("pickle describes a tensor wrongly");
        let &[storage, offset, shape, strides, ..] = arguments else {
            return Err(bad());
        };
        let Node::Storage(storage) = &self.nodes[storage.0] else {
            return Err(bad());
        };
        let int = |id: NodeId| match self.nodes[id.0] {
            Node::Int(value) => u64::try_from(value).map_err(|_| bad()),
            _ => Err(bad()),
        };
        let ints = |id: NodeId| match &self.nodes[id.0] {
            Node::Tuple(items) if items.len() <= AXES_MAX => items
                .iter()
                .map(|&item| int(item))
                .collect::<Result<Vec<_>, _>>(),
            _ => Err(bad()),
        };
        let (shape, strides) = (ints(shape)?, ints(strides)?);
        if shape.len() != strides.len() {
            return Err(bad());
        }
        Ok(TensorNode {
            storage: storage.clone(),
            offset: int(offset)?,
            shape,
            strides,
        })
    }

    /// State set on a dict (a state_dict's `_metadata`) says nothing about its
    /// numbers; state of anything else is refused.
    fn build(&mut self) -> Result<(), FormatError> {
        self.pop()?;
        let target = self.top()?;
        match self.nodes[target.0] {
            Node::Dict(_) => Ok(()),
            _ => Err(unservable(
                "pickle sets the state of an object; only plain data and tensors are read",
            )),
        }
    }

    fn push(&mut self, node: Node) {
        self.stack.push(NodeId(self.nodes.len()));
        self.nodes.push(node);
    }

    fn top(&self) -> Result<NodeId, FormatError> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.last() {
            Some(&top) if self.stack.len() > floor => Ok(top),
            _ => Err(malformed("pickle takes a value that is not there")),
        }
    }

    fn pop(&mut self) -> Result<NodeId, FormatError> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn pop_many(&mut self, count: usize) -> Result<Vec<NodeId>, FormatError> {
        let mut items = (0..count)
            .map(|_| self.pop())
            .collect::<Result<Vec<_>, _>>()?;
        items.reverse();
        Ok(items)
    }

    fn pop_mark(&mut self) -> Result<Vec<NodeId>, FormatError> {
        let mark = self
            .marks
            .pop()
            .ok_or_else(|| malformed("pickle takes a mark that is not there"))?;
        Ok(self.stack.split_off(mark))
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], FormatError> {
        let (head, tail) = self
            .rest
            .split_at_checked(len)
            .ok_or_else(|| malformed("pickle ends early"))?;
        self.rest = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], FormatError> {
        let (head, tail) = self
            .rest
            .split_first_chunk()
            .ok_or_else(|| malformed("pickle ends early"))?;
        self.rest = tail;
        Ok(*head)
    }

    fn line(&mut self) -> Result<&'a str, FormatError> {
        let end = self.rest.iter().position(|&byte| byte == b'\n');
        let end = end.ok_or_else(|| malformed("pickle ends early"))?;
        let line = self.take(end + 1)?;
        std::str::from_utf8(&line[..end])
            .map_err(|_| malformed("pickle holds a line that is not UTF-8"))
    }
}

fn parse_line<T: std::str::FromStr>(line: &str) -> Result<T, FormatError> {
    line.parse()
        .map_err(|_| malformed(format!("pickle holds {line:?} as a number")))
}

fn pairs(items: &[NodeId]) -> Result<Vec<(NodeId, NodeId)>, FormatError> {
    let (pairs, rest) = items.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(malformed("pickle has a dict key without a value"));
    }
    Ok(pairs.iter().map(|&[key, value]| (key, value)).collect())
}

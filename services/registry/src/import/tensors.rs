//! The named tensors of an SAE's file, each to be used or refused.

use std::collections::BTreeMap;

use crate::format::{FormatError, malformed, tensor::Tensor};

/// Tensors not used yet.
#[derive(Debug)]
pub struct TensorSet {
    tensors: BTreeMap<String, Tensor>,
}

impl TensorSet {
    /// All tensors of a file.
    pub fn new(tensors: BTreeMap<String, Tensor>) -> Self {
        Self { tensors }
    }

    /// Takes the tensor that has one of these names; the first that exists wins.
    pub fn take_any(&mut self, names: &[&str]) -> Result<Tensor, FormatError> {
        names
            .iter()
            .find_map(|name| self.tensors.remove(*name))
            .ok_or_else(|| {
                let held: Vec<&str> = self.tensors.keys().map(String::as_str).collect();
                malformed(format!(
                    "has no {}; it holds {}",
                    names.join(" or "),
                    held.join(", ")
                ))
            })
    }

    /// Takes a tensor that must exist.
    pub fn take(&mut self, name: &str) -> Result<Tensor, FormatError> {
        self.take_any(&[name])
    }

    /// Takes a tensor that may exist.
    pub fn take_optional(&mut self, name: &str) -> Option<Tensor> {
        self.tensors.remove(name)
    }

    /// Refuses tensors that nobody took: they could change the result.
    pub fn finish(self) -> Result<(), FormatError> {
        let left: Vec<String> = self.tensors.into_keys().collect();
        if left.is_empty() {
            return Ok(());
        }
        Err(malformed(format!(
            "holds tensors that this architecture does not have: {}",
            left.join(", ")
        )))
    }
}

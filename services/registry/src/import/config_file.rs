//! Configuration files of SAEs: every key is used, known to be harmless, or refused.

use serde_json::{Map, Value};

use crate::format::{FormatError, SourceFile, malformed, unservable};

const FILE_LEN_MAX: u64 = 4 << 20;

/// A JSON object whose keys are taken one by one.
#[derive(Debug)]
pub struct ConfigFile {
    name: String,
    entries: Map<String, Value>,
}

impl ConfigFile {
    /// Reads a JSON object.
    pub fn read(file: &SourceFile) -> Result<Self, FormatError> {
        let name = file.name().to_owned();
        if file.len() > FILE_LEN_MAX {
            return Err(malformed(format!("{name} has {} bytes", file.len())));
        }
        let bytes = file.read_vec(0, file.len())?;
        match serde_json::from_slice(&bytes) {
            Ok(Value::Object(entries)) => Ok(Self { name, entries }),
            Ok(_) => Err(malformed(format!("{name} is not a JSON object"))),
            Err(error) => Err(malformed(format!("{name} is not valid JSON: {error}"))),
        }
    }

    /// A nested object, empty if there is none.
    pub fn nested(&mut self, key: &str) -> Result<Self, FormatError> {
        let name = format!("{}: {key}", self.name);
        match self.take(key) {
            None => Ok(Self {
                name,
                entries: Map::new(),
            }),
            Some(Value::Object(entries)) => Ok(Self { name, entries }),
            Some(_) => Err(malformed(format!("{name} is not an object"))),
        }
    }

    /// Takes a value; null counts as absent.
    pub fn take(&mut self, key: &str) -> Option<Value> {
        self.entries.remove(key).filter(|value| !value.is_null())
    }

    /// Takes a text.
    pub fn text(&mut self, key: &str) -> Result<Option<String>, FormatError> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.bad(key, &other, "a string")),
        }
    }

    /// Takes true or false.
    pub fn flag(&mut self, key: &str) -> Result<Option<bool>, FormatError> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(other) => Err(self.bad(key, &other, "true or false")),
        }
    }

    /// Takes a size.
    pub fn size(&mut self, key: &str) -> Result<Option<usize>, FormatError> {
        match self.take(key) {
            None => Ok(None),
            Some(value) => match value.as_u64().and_then(|size| usize::try_from(size).ok()) {
                Some(size) => Ok(Some(size)),
                None => Err(self.bad(key, &value, "a whole number")),
            },
        }
    }

    /// Requires that a size stated by the file is what the tensors have.
    pub fn check_size(&mut self, key: &str, actual: usize) -> Result<(), FormatError> {
        match self.size(key)? {
            Some(stated) if stated != actual => Err(malformed(format!(
                "{}: {key} is {stated}, the tensors have {actual}",
                self.name
            ))),
            _ => Ok(()),
        }
    }

    /// An error about a value.
    pub fn bad(&self, key: &str, value: &Value, wanted: &str) -> FormatError {
        malformed(format!(
            "{}: {key} is {value}; {wanted} is needed",
            self.name
        ))
    }

    /// Refuses keys that nobody took and that are not in `harmless` (a list
    /// separated by blanks); null says nothing and passes.
    pub fn finish(self, harmless: &str) -> Result<(), FormatError> {
        let unknown: Vec<&str> = self
            .entries
            .iter()
            .filter(|(key, value)| {
                !value.is_null() && !harmless.split(' ').any(|known| known == key.as_str())
            })
            .map(|(key, _)| key.as_str())
            .collect();
        if unknown.is_empty() {
            return Ok(());
        }
        Err(unservable(format!(
            "{} has keys whose effect on the maths is unknown: {}",
            self.name,
            unknown.join(", ")
        )))
    }
}

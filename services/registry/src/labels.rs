//! Files of labels, read as a stream: any number of labels, little memory.

use std::{
    cell::Cell,
    io::{BufRead, BufReader, Read, Seek},
    rc::Rc,
};

use serde::{Deserialize, de::Error as _};
use serde_json::{Deserializer, Number};

use self::{
    row::Row,
    stream::{Bounded, DeserializeWith},
};
use crate::{
    format::{FormatError, malformed},
    store::{LabelFacts, NewLabel},
};

mod row;
mod stream;

/// Longest label in bytes.
const LABEL_LEN_MAX: usize = 4096;
/// Longest source in bytes.
const SOURCE_LEN_MAX: usize = 200;
/// Most bytes of one entry; bounds what the parser holds.
const ENTRY_LEN_MAX: u64 = 4 << 20;
/// First bytes looked at to tell formats apart.
const PEEK_LEN: u64 = 1 << 20;
/// What some editors begin a text in UTF-8 with; it says nothing.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Formats of label files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LabelFormat {
    /// One object, `{label: feature_index}`, as the notebook has it.
    Notebook,
    /// Objects with `index` and `label`, as lines or in an array.
    Rows,
    /// Neuronpedia's explanations: objects with `index` and `description`, as
    /// lines or in an array. Many features may share a description.
    Neuronpedia,
}

impl LabelFormat {
    /// Whether a label stands for one feature.
    pub fn names_are_unique(self) -> bool {
        match self {
            Self::Notebook | Self::Rows => true,
            Self::Neuronpedia => false,
        }
    }

    /// Tells the format of a file, read from its start.
    pub fn detect(file: impl Read + Seek) -> Result<Self, FormatError> {
        let mut start = Vec::new();
        file.take(PEEK_LEN).read_to_end(&mut start)?;
        let start = start.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&start);
        let start = start.trim_ascii_start();
        let row = match start.first() {
            None => return Err(malformed("the file is empty")),
            Some(b'[') => start[1..].trim_ascii_start(),
            Some(b'{') => start,
            Some(_) => {
                return Err(malformed(
                    "is not JSON: a {label: feature_index} object, JSON lines or an array of objects is needed",
                ));
            }
        };
        // The first complete object, if that is a row.
        let row: Option<Keys> = Deserializer::from_slice(row)
            .into_iter()
            .next()
            .and_then(Result::ok);
        match (row, start[0]) {
            (Some(keys), _) if keys.is_row() => Ok(if keys.label.is_some() {
                Self::Rows
            } else {
                Self::Neuronpedia
            }),
            (_, b'[') => Err(malformed(
                "is an array, but not of objects with \"index\" and \"label\" or \"description\"",
            )),
            _ => Ok(Self::Notebook),
        }
    }
}

/// What tells a row from the notebook's object, where `index` may be a label too.
#[derive(Deserialize)]
struct Keys {
    index: Option<serde_json::Value>,
    label: Option<serde_json::Value>,
    description: Option<serde_json::Value>,
}

impl Keys {
    fn is_row(&self) -> bool {
        let text = self.label.as_ref().or(self.description.as_ref());
        self.index.is_some() && text.is_some_and(|text| text.is_string() || text.is_null())
    }
}

/// What labels of a file are checked against.
#[derive(Debug, Clone)]
pub struct LabelContext {
    /// Features of the SAE.
    pub d_sae: u32,
    /// Source of labels that name none.
    pub source: String,
}

/// Reads a file from its start and hands on every label, in order. An error
/// names the label or entry.
pub fn read_labels(
    file: impl Read,
    format: LabelFormat,
    context: &LabelContext,
    emit: &mut dyn FnMut(NewLabel) -> Result<(), FormatError>,
) -> Result<(), FormatError> {
    let left = Rc::new(Cell::new(ENTRY_LEN_MAX));
    let mut reader = BufReader::new(Bounded {
        inner: file,
        left: Rc::clone(&left),
    });
    let mut sink = Sink {
        context,
        format,
        left,
        emit,
        failed: None,
        count: 0,
        origin: None,
    };
    let first = first_byte(&mut reader)?;
    let mut json = Deserializer::from_reader(reader);
    let result = match (format, first) {
        (LabelFormat::Notebook, _) => json
            .deserialize_map_with(&mut sink)
            .and_then(|()| json.end()),
        (_, Some(b'[')) => json
            .deserialize_seq_with(&mut sink)
            .and_then(|()| json.end()),
        _ => json.into_iter::<Row>().try_for_each(|row| sink.row(row?)),
    };
    match (sink.failed, result) {
        (Some(error), _) => Err(error),
        (None, Err(error)) if error.is_io() => match error.io_error_kind() {
            Some(std::io::ErrorKind::InvalidData) => Err(malformed(format!(
                "entry {} is longer than {ENTRY_LEN_MAX} bytes",
                sink.count + 1
            ))),
            _ => Err(FormatError::Io(error.into())),
        },
        (None, Err(error)) => Err(malformed(format!("after {} labels: {error}", sink.count))),
        (None, Ok(())) if sink.count == 0 => Err(malformed("the file holds no labels")),
        (None, Ok(())) => Ok(()),
    }
}

/// Skips what says nothing.
fn first_byte(reader: &mut impl BufRead) -> Result<Option<u8>, FormatError> {
    if reader.fill_buf()?.starts_with(BYTE_ORDER_MARK) {
        reader.consume(BYTE_ORDER_MARK.len());
    }
    loop {
        let buffer = reader.fill_buf()?;
        match buffer.first() {
            Some(byte) if byte.is_ascii_whitespace() => reader.consume(1),
            first => return Ok(first.copied()),
        }
    }
}

/// Takes labels one by one, checks them, hands them on.
struct Sink<'a> {
    context: &'a LabelContext,
    format: LabelFormat,
    left: Rc<Cell<u64>>,
    emit: &'a mut dyn FnMut(NewLabel) -> Result<(), FormatError>,
    /// The error itself, as serde_json carries text only.
    failed: Option<FormatError>,
    count: u64,
    /// modelId and layer of the first row.
    origin: Option<(Option<String>, Option<String>)>,
}

impl Sink<'_> {
    fn take(&mut self, label: NewLabel) -> Result<(), FormatError> {
        self.left.set(ENTRY_LEN_MAX);
        let number = self.count + 1;
        if label.label.trim().is_empty() {
            return Err(malformed(format!(
                "entry {number} (feature {}) has an empty label",
                label.feature_index
            )));
        }
        for (what, text, len_max) in [
            ("label", &label.label, LABEL_LEN_MAX),
            ("source", &label.source, SOURCE_LEN_MAX),
        ] {
            if text.len() > len_max {
                return Err(malformed(format!(
                    "entry {number} has a {what} of more than {len_max} bytes"
                )));
            }
            // Not every database has a place for it.
            if text.contains('\0') {
                return Err(malformed(format!(
                    "entry {number} has a {what} with a NUL character"
                )));
            }
        }
        self.count = number;
        (self.emit)(label)
    }

    fn index(&self, label: &str, index: &str) -> Result<u32, FormatError> {
        let d_sae = self.context.d_sae;
        index
            .parse()
            .ok()
            .filter(|&index| index < d_sae)
            .ok_or_else(|| {
                malformed(format!(
                    "label {label:?} has index {index}; a whole number from 0 to {} is needed",
                    d_sae.saturating_sub(1)
                ))
            })
    }

    fn notebook_entry(&mut self, label: String, index: &Number) -> Result<(), FormatError> {
        let feature_index = self.index(&label, &index.to_string())?;
        self.take(NewLabel {
            feature_index,
            label,
            source: self.context.source.clone(),
            facts: LabelFacts::default(),
        })
    }

    fn row_entry(&mut self, row: Row) -> Result<(), FormatError> {
        let number = self.count + 1;
        let facts = row.facts().map_err(|what| {
            let label = row.label.as_deref().unwrap_or_default();
            malformed(format!("entry {number} ({label:?}) has {what}"))
        })?;
        let Row {
            index,
            label,
            description,
            source,
            model_id,
            layer,
            ..
        } = row;
        let label = match (self.format, label, description) {
            (LabelFormat::Neuronpedia, None, description) => match description {
                Some(description) if !description.trim().is_empty() => description,
                // A feature that nobody explained.
                _ => {
                    self.left.set(ENTRY_LEN_MAX);
                    return Ok(());
                }
            },
            (_, Some(label), _) => label,
            _ => return Err(malformed(format!("entry {number} has no label"))),
        };
        let origin = (model_id, layer.map(|layer| layer.to_string()));
        if *self.origin.get_or_insert_with(|| origin.clone()) != origin {
            return Err(malformed(format!(
                "entry {number} ({label:?}) is for another modelId or layer than the first; one SAE's labels are needed"
            )));
        }
        let feature_index = self.index(&label, &index.into_text())?;
        let source = source
            .filter(|source| !source.is_empty())
            .unwrap_or_else(|| self.context.source.clone());
        self.take(NewLabel {
            feature_index,
            label,
            source,
            facts,
        })
    }

    fn row(&mut self, row: Row) -> Result<(), serde_json::Error> {
        self.row_entry(row).map_err(|error| {
            self.failed = Some(error);
            serde_json::Error::custom("refused")
        })
    }
}

#[cfg(test)]
mod tests;

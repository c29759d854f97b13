//! A label file as a stream: entries one by one, each of bounded size.

use std::{cell::Cell, fmt, io::Read, rc::Rc};

use serde::de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Deserializer, Number};

use super::{Row, Sink};

/// Runs a [`Sink`] over an object or array without holding it in memory.
pub(super) trait DeserializeWith {
    fn deserialize_map_with(&mut self, sink: &mut Sink<'_>) -> Result<(), serde_json::Error>;
    fn deserialize_seq_with(&mut self, sink: &mut Sink<'_>) -> Result<(), serde_json::Error>;
}

impl<'de, R: serde_json::de::Read<'de>> DeserializeWith for Deserializer<R> {
    fn deserialize_map_with(&mut self, sink: &mut Sink<'_>) -> Result<(), serde_json::Error> {
        MapOf(sink).deserialize(self)
    }

    fn deserialize_seq_with(&mut self, sink: &mut Sink<'_>) -> Result<(), serde_json::Error> {
        SeqOf(sink).deserialize(self)
    }
}

struct MapOf<'s, 'a>(&'s mut Sink<'a>);

impl<'de> DeserializeSeed<'de> for MapOf<'_, '_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for MapOf<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object {label: feature_index}")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(label) = map.next_key::<String>()? {
            let index = map
                .next_value::<Number>()
                .map_err(|error| A::Error::custom(format!("label {label:?}: {error}")))?;
            if let Err(error) = self.0.notebook_entry(label, &index) {
                self.0.failed = Some(error);
                return Err(A::Error::custom("refused"));
            }
        }
        Ok(())
    }
}

struct SeqOf<'s, 'a>(&'s mut Sink<'a>);

impl<'de> DeserializeSeed<'de> for SeqOf<'_, '_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for SeqOf<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut rows: A) -> Result<(), A::Error> {
        while let Some(row) = rows.next_element::<Row>()? {
            self.0.row(row).map_err(A::Error::custom)?;
        }
        Ok(())
    }
}

/// A reader that fails when one entry takes too many bytes.
pub(super) struct Bounded<R> {
    pub(super) inner: R,
    /// Bytes that the entry being read may still take.
    pub(super) left: Rc<Cell<u64>>,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.left.get() == 0 {
            return Err(std::io::ErrorKind::InvalidData.into());
        }
        let read = self.inner.read(buffer)?;
        self.left.set(self.left.get().saturating_sub(read as u64));
        Ok(read)
    }
}

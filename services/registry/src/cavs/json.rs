//! JSON: a list of `{"label", "cav"}`, or `{"cavs": [[…]], "labels": […]}`.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{Error, SeqAccess, Visitor},
};

use super::{CAVS_MAX, CavEntry, CavFile, check_counts};
use crate::format::{FormatError, SourceFile, malformed};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Labelled {
    label: String,
    cav: Vec<f32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Columns {
    cavs: Bounded<Vec<f32>>,
    labels: Bounded<String>,
}

/// At most [`CAVS_MAX`] entries. They are counted while they are read: an empty one takes ten
/// times its text.
struct Bounded<T>(Vec<T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Bounded<T> {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        json.deserialize_seq(Entries(PhantomData)).map(Self)
    }
}

struct Entries<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for Entries<T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<Vec<T>, A::Error> {
        let mut read = Vec::new();
        while let Some(entry) = entries.next_element()? {
            if read.len() == CAVS_MAX {
                return Err(A::Error::custom(format!(
                    "a list of more than {CAVS_MAX} entries"
                )));
            }
            read.push(entry);
        }
        Ok(read)
    }
}

pub(super) fn read(source: &SourceFile) -> Result<CavFile, FormatError> {
    let bytes = source.read_vec(0, source.len())?;
    let bad = |error: serde_json::Error| {
        malformed(format!(
            "is neither a JSON list of {{\"label\", \"cav\"}} nor {{\"cavs\", \"labels\"}}: {error}"
        ))
    };
    let cavs = if bytes.trim_ascii_start().starts_with(b"[") {
        let Bounded(cavs) = serde_json::from_slice(&bytes).map_err(bad)?;
        cavs
    } else {
        let Columns {
            cavs: Bounded(cavs),
            labels: Bounded(labels),
        } = serde_json::from_slice(&bytes).map_err(bad)?;
        check_counts(cavs.len(), labels.len())?;
        labels
            .into_iter()
            .zip(cavs)
            .map(|(label, cav)| Labelled { label, cav })
            .collect()
    };
    let cavs = cavs
        .into_iter()
        .map(|Labelled { label, cav }| CavEntry {
            name: Some(label),
            directions: vec![(None, cav)],
        })
        .collect();
    Ok(CavFile {
        cavs,
        model_id: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::testing::source;

    #[test]
    fn both_shapes_and_nothing_else() {
        let list = read(&source(br#" [{"label": "a", "cav": [1, 2.5]}]"#)).expect("list");
        let columns =
            read(&source(br#"{"labels": ["a"], "cavs": [[1.0, 2.5]]}"#)).expect("columns");
        assert_eq!(list, columns);
        assert_eq!(list.cavs[0].directions, [(None, vec![1.0, 2.5])]);
        for bad in [
            &br#"{"labels": ["a"], "cavs": []}"#[..],
            b"[1]",
            br#"[{"label": "a"}]"#,
            b"[",
            br#"{"a": 1}"#,
        ] {
            assert!(read(&source(bad)).is_err());
        }
    }

    #[test]
    fn entries_are_counted_while_they_are_read() {
        let many = |entry: &str| vec![entry; CAVS_MAX + 1].join(",");
        for file in [
            format!(r#"{{"cavs": [{}], "labels": []}}"#, many("[]")),
            format!(r#"{{"labels": [{}], "cavs": []}}"#, many(r#""""#)),
            format!("[{}]", many(r#"{"label": "", "cav": []}"#)),
        ] {
            let error = read(&source(file.as_bytes()))
                .expect_err("many")
                .to_string();
            assert!(error.contains("more than 65536 entries"), "{error}");
        }
    }
}

//! JSON: a list of `{"label", "cav"}`, or `{"cavs": [[…]], "labels": […]}`.

use serde::Deserialize;

use super::{CavEntry, CavFile};
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
    cavs: Vec<Vec<f32>>,
    labels: Vec<String>,
}

pub(super) fn read(source: &SourceFile) -> Result<CavFile, FormatError> {
    let bytes = source.read_vec(0, source.len())?;
    let bad = |error: serde_json::Error| {
        malformed(format!(
            "is neither a JSON list of {{\"label\", \"cav\"}} nor {{\"cavs\", \"labels\"}}: {error}"
        ))
    };
    let cavs = if bytes.trim_ascii_start().starts_with(b"[") {
        serde_json::from_slice::<Vec<Labelled>>(&bytes).map_err(bad)?
    } else {
        let Columns { cavs, labels } = serde_json::from_slice(&bytes).map_err(bad)?;
        if cavs.len() != labels.len() {
            return Err(malformed(format!(
                "has {} vectors and {} labels",
                cavs.len(),
                labels.len()
            )));
        }
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
}

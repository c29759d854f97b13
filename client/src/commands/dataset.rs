//! A file of texts, labelled or not: a JSON object a line, gzipped or not.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read},
    path::Path,
};

use anyhow::Context;
use flate2::read::MultiGzDecoder;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::failure::hinted;

/// Longest line in bytes.
const LINE_LEN_MAX: u64 = 64 << 20;
/// Most bytes of text, which is kept in memory.
const TEXT_BYTES_MAX: usize = 1 << 30;

/// Texts, in the file's order.
#[derive(Debug)]
pub(crate) struct Dataset {
    pub(crate) examples: Vec<Example>,
    /// SHA-256 (hex) of texts and labels.
    pub(crate) digest: String,
}

/// One of them.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Example {
    pub(crate) text: String,
    /// Empty where none was asked for.
    pub(crate) label: String,
    /// SHA-256 of the text.
    pub(crate) digest: [u8; 32],
}

impl Dataset {
    /// Reads the first `limit` texts, with their labels if they are to have any.
    pub(crate) fn read(
        path: &Path,
        text_key: &str,
        label_key: Option<&str>,
        limit: Option<usize>,
    ) -> anyhow::Result<Self> {
        let cannot = || format!("cannot read {}", path.display());
        let mut lines = open(path).with_context(cannot)?;
        let mut examples = Vec::new();
        let mut hasher = Sha256::new();
        let mut bytes = 0;
        let mut line = String::new();
        for number in 1.. {
            line.clear();
            let read = (&mut lines).take(LINE_LEN_MAX).read_line(&mut line);
            if read.with_context(cannot)? == 0 || limit == Some(examples.len()) {
                break;
            }
            if line.trim().is_empty() {
                continue;
            }
            let example = parse(&line, text_key, label_key).map_err(|what| {
                let hint = match label_key {
                    None => "every line is needed as {\"text\": …}; --text names another key",
                    Some(_) => {
                        "every line is needed as {\"text\": …, \"label_text\": …}; --text and \
                         --label name other keys"
                    }
                };
                in_line(path, number, &what, hint)
            })?;
            bytes += example.text.len();
            if bytes > TEXT_BYTES_MAX {
                let what = format!("more than {TEXT_BYTES_MAX} bytes of text");
                return Err(in_line(
                    path,
                    number,
                    &what,
                    "take fewer texts with --limit",
                ));
            }
            for part in [&example.text, &example.label] {
                hasher.update((part.len() as u64).to_le_bytes());
                hasher.update(part);
            }
            examples.push(example);
        }
        if examples.is_empty() {
            return Err(hinted(
                format!("{} has no texts", path.display()),
                "name a file of JSON lines",
            ));
        }
        Ok(Self {
            examples,
            digest: hasher
                .finalize()
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect(),
        })
    }
}

fn open(path: &Path) -> std::io::Result<Box<dyn BufRead>> {
    let mut file = BufReader::new(File::open(path)?);
    if file.fill_buf()?.starts_with(&[0x1f, 0x8b]) {
        return Ok(Box::new(BufReader::new(MultiGzDecoder::new(file))));
    }
    Ok(Box::new(file))
}

fn parse(line: &str, text_key: &str, label_key: Option<&str>) -> Result<Example, String> {
    let value: Value =
        serde_json::from_str(line).map_err(|error| format!("is no JSON: {error}"))?;
    let Some(Value::String(text)) = value.get(text_key) else {
        return Err(format!("has no text {text_key:?}"));
    };
    let label = match label_key.map(|key| (key, value.get(key))) {
        None => String::new(),
        Some((_, Some(Value::String(label)))) if !label.is_empty() => label.clone(),
        Some((_, Some(Value::Number(label)))) => label.to_string(),
        Some((key, _)) => return Err(format!("has no label {key:?}")),
    };
    Ok(Example {
        digest: Sha256::digest(text).into(),
        text: text.clone(),
        label,
    })
}

/// An error that names the place in a file.
pub(crate) fn in_line(file: &Path, line: usize, what: &str, hint: &str) -> anyhow::Error {
    hinted(format!("{}, line {line}: {what}", file.display()), hint)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const LINES: &str =
        "{\"text\": \"a\", \"label_text\": \"x\"}\n\n{\"text\": \"b\", \"label_text\": 7}";

    fn read(bytes: &[u8], limit: Option<usize>) -> anyhow::Result<Dataset> {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("file");
        std::fs::write(&path, bytes).expect("file");
        Dataset::read(&path, "text", Some("label_text"), limit)
    }

    #[test]
    fn gzipped_or_not_the_texts_are_the_same() {
        let plain = read(LINES.as_bytes(), None).expect("plain");
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(LINES.as_bytes()).expect("gzip");
        let zipped = read(&gzip.finish().expect("gzip"), None).expect("gzipped");
        assert_eq!(plain.examples, zipped.examples);
        assert_eq!(plain.digest, zipped.digest);
        assert_eq!(plain.examples[1].label, "7");
        let first = read(LINES.as_bytes(), Some(1)).expect("limited");
        assert_eq!(first.examples.len(), 1);
        assert_ne!(first.digest, plain.digest);
    }

    #[test]
    fn errors_name_the_line() {
        for (line, what) in [
            ("{\"text\": 3, \"label_text\": \"x\"}", "no text"),
            ("{\"text\": \"a\"}", "no label"),
            ("not json", "no JSON"),
        ] {
            let file = format!("{LINES}\n{line}");
            let error = read(file.as_bytes(), None).expect_err(what).to_string();
            assert!(error.contains("line 4") && error.contains(what), "{error}");
        }
        assert!(read(b"", None).is_err());
    }
}

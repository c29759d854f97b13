use std::io::Cursor;

use super::*;

/// Feature, label, source, score.
type Read = (u32, String, String, Option<f32>);

fn read(text: &str) -> Result<Vec<Read>, String> {
    let context = LabelContext {
        d_sae: 100,
        source: "imported".to_owned(),
    };
    let mut labels = Vec::new();
    let format = LabelFormat::detect(Cursor::new(text)).map_err(|error| error.to_string())?;
    read_labels(Cursor::new(text), format, &context, &mut |label| {
        labels.push((
            label.feature_index,
            label.label,
            label.source,
            label.facts.score,
        ));
        Ok(())
    })
    .map_err(|error| error.to_string())?;
    Ok(labels)
}

fn plain(labels: &[(u32, &str)]) -> Vec<Read> {
    labels
        .iter()
        .map(|&(i, label)| (i, label.to_owned(), "imported".to_owned(), None))
        .collect()
}

#[test]
fn the_notebooks_object() {
    assert_eq!(
        read(r#"{"baseball": 7, "nba": 9, "basketball": 9}"#),
        Ok(plain(&[(7, "baseball"), (9, "nba"), (9, "basketball")]))
    );
    assert_eq!(
        read("\n {\n\"index\": 5, \"label\": 7}\n"),
        Ok(plain(&[(5, "index"), (7, "label")]))
    );
}

#[test]
fn rows_as_lines_and_as_an_array() {
    let expected = vec![
        (1, "a".to_owned(), "auto".to_owned(), Some(0.5)),
        (2, "b".to_owned(), "imported".to_owned(), None),
    ];
    let lines = "{\"index\": 1, \"label\": \"a\", \"source\": \"auto\", \"score\": 0.5}\n{\"index\": 2, \"label\": \"b\"}\n";
    assert_eq!(read(lines), Ok(expected.clone()));
    let array = r#"[{"index": 1, "label": "a", "source": "auto", "score": 0.5}, {"index": 2, "label": "b"}]"#;
    assert_eq!(read(array), Ok(expected));
}

#[test]
fn a_byte_order_mark_says_nothing() {
    let expected = Ok(plain(&[(1, "a")]));
    for text in [
        r#"{"a": 1}"#,
        r#" [{"index": 1, "label": "a"}]"#,
        r#"{"index": 1, "label": "a"}"#,
    ] {
        assert_eq!(read(&format!("\u{feff}{text}")), expected, "{text}");
    }
    assert!(read("\u{feff}\u{feff}{}").is_err());
}

#[test]
fn neuronpedia_explanations() {
    let text = r#"{"modelId":"gemma-2-2b","layer":"21-gemmascope-res-65k","index":"13","description":"mentions of baseball","x":[1]}
{"modelId":"gemma-2-2b","layer":"21-gemmascope-res-65k","index":14,"description":""}
{"modelId":"gemma-2-2b","layer":"21-gemmascope-res-65k","index":15,"description":"mentions of baseball"}"#;
    let expected = plain(&[(13, "mentions of baseball"), (15, "mentions of baseball")]);
    assert_eq!(read(text), Ok(expected.clone()));
    let array = format!("[{}]", text.replace('\n', ","));
    assert_eq!(read(&array), Ok(expected));
    assert!(
        !LabelFormat::detect(Cursor::new(text))
            .expect("format")
            .names_are_unique()
    );
    let mixed = text.replace(
        "21-gemmascope-res-65k\",\"index\":15",
        "20-gemmascope-res-65k\",\"index\":15",
    );
    assert!(
        read(&mixed)
            .expect_err("two layers")
            .contains("another modelId or layer")
    );
}

#[test]
fn bad_files_are_refused_with_the_label() {
    for (text, expected) in [
        ("", "empty"),
        ("  \n", "empty"),
        ("{}", "no labels"),
        ("hello", "not JSON"),
        ("[]", "not of objects"),
        ("[1, 2]", "not of objects"),
        (
            r#"{"far": 100}"#,
            "\"far\" has index 100; a whole number from 0 to 99",
        ),
        (r#"{"negative": -1}"#, "\"negative\" has index -1"),
        (r#"{"half": 1.5}"#, "\"half\" has index 1.5"),
        (r#"{"text": "1"}"#, "\"text\""),
        (r#"{"nested": {"a": 1}}"#, "\"nested\""),
        (r#"{"": 3}"#, "empty label"),
        (r#"{"a": 1"#, "after 1 labels"),
        (r#"{"a": 1} trailing"#, "trailing"),
        (
            "{\"index\": 1, \"label\": \"a\"}\n{\"index\": 2}",
            "entry 2 has no label",
        ),
        (
            "{\"index\": 1, \"label\": \"a\"}\n{\"index\": 200, \"label\": \"b\"}",
            "\"b\" has index 200",
        ),
        (
            "{\"index\": 1, \"label\": \"a\"}\n{\"label\": \"b\"}",
            "missing field `index`",
        ),
    ] {
        let error = read(text).expect_err(text);
        assert!(error.contains(expected), "{text:?}: {error}");
    }
    assert!(read(&"[".repeat(20_000)).is_err());
    let long = format!("{{\"{}\": 1}}", "x".repeat(LABEL_LEN_MAX + 1));
    assert!(
        read(&long)
            .expect_err("long")
            .contains("more than 4096 bytes")
    );
    let endless = format!("{{\"{}", "x".repeat(16 << 20));
    assert!(read(&endless).expect_err("endless").contains("longer than"));
}

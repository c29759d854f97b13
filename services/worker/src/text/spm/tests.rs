use super::*;

fn vocabulary(add_space_prefix: bool) -> SpmVocabulary {
    let token = |text: &str, score: f32, kind| SpmToken {
        text: text.to_owned(),
        score,
        kind,
    };
    let mut tokens = vec![
        token("<unk>", 0.0, TokenKind::Unknown),
        token("<s>", 0.0, TokenKind::Control),
        token("</s>", 0.0, TokenKind::Control),
        token("\n\n", 0.0, TokenKind::UserDefined),
    ];
    tokens.extend((0..=255).map(|b| token(&format!("<0x{b:02X}>"), 0.0, TokenKind::Byte)));
    for (i, text) in ["ab", "bc", "abc", "▁a", "▁", "a", "b", "c"]
        .iter()
        .enumerate()
    {
        tokens.push(token(text, -(i as f32), TokenKind::Normal));
    }
    let options = SpmOptions {
        add_space_prefix,
        bos: Some(1),
        eos: None,
    };
    SpmVocabulary::new(tokens, options).expect("a good vocabulary")
}

fn pieces(vocabulary: &SpmVocabulary, text: &str) -> Vec<String> {
    let ids = vocabulary.encode(text, true);
    ids.iter()
        .map(|&id| vocabulary.piece(id).expect("in the vocabulary").to_owned())
        .collect()
}

#[test]
fn the_best_score_merges_first_and_the_leftmost_of_equals() {
    let vocabulary = vocabulary(false);
    assert_eq!(pieces(&vocabulary, "abc"), ["<s>", "abc"]);
    assert_eq!(pieces(&vocabulary, "bca"), ["<s>", "bc", "a"]);
    assert_eq!(pieces(&vocabulary, "abab a"), ["<s>", "ab", "ab", "▁a"]);
}

#[test]
fn other_characters_become_bytes() {
    let vocabulary = vocabulary(false);
    assert_eq!(
        pieces(&vocabulary, "aé\n"),
        ["<s>", "a", "<0xC3>", "<0xA9>", "<0x0A>"]
    );
    let ids = vocabulary.encode("aé", false);
    let bytes: Vec<u8> = ids
        .iter()
        .filter_map(|&id| vocabulary.bytes(id))
        .flatten()
        .collect();
    assert_eq!(bytes, "aé".as_bytes());
}

#[test]
fn special_tokens_are_cut_out_and_text_after_them_gets_its_space() {
    let vocabulary = vocabulary(true);
    assert_eq!(
        pieces(&vocabulary, "a</s>a\n\nbc"),
        ["<s>", "▁a", "</s>", "▁a", "\n\n", "▁", "bc"]
    );
    assert_eq!(pieces(&vocabulary, ""), ["<s>"]);
    assert!(vocabulary.encode("", false).is_empty());
}

#[test]
fn a_vocabulary_needs_bytes_or_an_unknown_token() {
    let token = SpmToken {
        text: "a".to_owned(),
        score: 0.0,
        kind: TokenKind::Normal,
    };
    assert!(SpmVocabulary::new(vec![token.clone()], SpmOptions::default()).is_err());
    let nan = SpmToken {
        score: f32::NAN,
        ..token
    };
    assert!(SpmVocabulary::new(vec![nan], SpmOptions::default()).is_err());
}

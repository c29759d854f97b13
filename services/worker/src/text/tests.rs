//! Against the golden fixtures: what `transformers` and `tokenizers` make of
//! small tokenizers with the structure of the real ones.

use std::{path::PathBuf, sync::Arc};

use proptest::prelude::*;
use serde::Deserialize;

use super::*;

const FAMILIES: [&str; 7] = [
    "gemma2",
    "gemma3",
    "llama",
    "llama_rope3",
    "qwen2",
    "qwen3",
    "smollm2",
];

fn fixture(family: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/golden/fixtures")
        .join(family)
}

fn codec(family: &str) -> TextCodec {
    TextCodec::from_hf_folder(&fixture(family).join("model")).expect("the fixture loads")
}

fn read<T: serde::de::DeserializeOwned>(family: &str, file: &str) -> T {
    let path = fixture(family).join(file);
    let text = std::fs::read_to_string(path).expect("the fixture is there");
    serde_json::from_str(&text).expect("the fixture parses")
}

#[derive(Deserialize)]
struct TokenizerCase {
    text: String,
    ids: Vec<u32>,
    ids_without_special: Vec<u32>,
    decoded: String,
    decoded_with_special: String,
}

#[test]
fn tokenizers_agree_with_transformers() {
    for family in FAMILIES {
        let codec = codec(family);
        let cases: Vec<TokenizerCase> = read(family, "tokenizer_cases.json");
        assert!(!cases.is_empty());
        for case in cases {
            let text = &case.text;
            let encode = |chat| {
                if chat {
                    codec.encode_bare(text)
                } else {
                    codec.encode(text)
                }
            };
            assert_eq!(
                encode(false).expect("encodes"),
                case.ids,
                "{family}: {text:?}"
            );
            assert_eq!(
                encode(true).expect("encodes"),
                case.ids_without_special,
                "{family}: {text:?}"
            );
            let decode = |skip| codec.decode(&case.ids, skip).expect("decodes");
            assert_eq!(decode(true), case.decoded, "{family}: {text:?}");
            assert_eq!(
                decode(false),
                case.decoded_with_special,
                "{family}: {text:?}"
            );
        }
    }
}

#[derive(Deserialize)]
struct Cases {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    prompt: CasePrompt,
    prompt_token_ids: Vec<u32>,
    token_ids: Vec<u32>,
    text: String,
}

#[derive(Deserialize)]
struct CasePrompt {
    text: Option<String>,
    messages: Option<Vec<CaseMessage>>,
    add_generation_prompt: Option<bool>,
    rendered: Option<String>,
}

#[derive(Deserialize)]
struct CaseMessage {
    role: String,
    content: String,
}

#[test]
fn prompts_and_continuations_agree_with_transformers() {
    let mut chats = 0;
    for family in FAMILIES {
        let codec = codec(family);
        for case in read::<Cases>(family, "cases.json").cases {
            let name = format!("{family}: {}", case.name);
            let ids = match (case.prompt.text, case.prompt.messages) {
                (Some(text), _) => codec.encode(&text),
                (None, messages) => {
                    chats += 1;
                    let messages: Vec<Message> = messages
                        .unwrap_or_default()
                        .into_iter()
                        .map(|CaseMessage { role, content }| Message { role, content })
                        .collect();
                    let open = case.prompt.add_generation_prompt.unwrap_or_default();
                    let rendered = codec.render_chat(&messages, open).expect("renders");
                    assert_eq!(Some(&rendered), case.prompt.rendered.as_ref(), "{name}");
                    codec.encode_bare(&rendered)
                }
            };
            assert_eq!(ids.expect("encodes"), case.prompt_token_ids, "{name}");
            // The fixtures keep special tokens in the text.
            let text = codec.decode(&case.token_ids, true).expect("decodes");
            assert_eq!(text, case.text, "{name}");
        }
    }
    assert!(chats >= 2 * FAMILIES.len());
}

#[test]
fn templates_refuse_what_the_model_cannot_read() {
    let codec = codec("gemma2");
    let message = |role: &str| Message {
        role: role.to_owned(),
        content: "x".to_owned(),
    };
    assert!(codec.has_chat_template());
    let refused = codec.render_chat(&[message("system"), message("user")], true);
    match refused {
        Err(TextError::TemplateRaised(text)) => assert_eq!(text, "System role not supported"),
        other => panic!("{other:?}"),
    }
    let twice = codec.render_chat(&[message("user"), message("user")], true);
    assert!(matches!(twice, Err(TextError::TemplateRaised(_))));
}

#[test]
fn special_tokens_are_known() {
    let gemma = codec("gemma2");
    assert_eq!(gemma.bos_token_id(), Some(2));
    assert_eq!(gemma.eos_token_id(), Some(1));
    assert_eq!(gemma.end_token_ids(), [1]);
    assert!(gemma.is_special(2));
    assert_eq!(gemma.piece(2).as_deref(), Some("<bos>"));
    assert_eq!(gemma.piece(u32::MAX), None);
    // Tokens beyond the vocabulary have no text: models pad theirs.
    let past = u32::try_from(gemma.vocab_size()).expect("small");
    assert_eq!(gemma.piece(past), None);
    assert!(gemma.piece(past - 1).is_some());
    assert_eq!(gemma.decode(&[past], true).expect("decodes"), "");
    let llama = codec("llama");
    assert_eq!(
        (llama.bos_token_id(), llama.eos_token_id()),
        (Some(1), Some(2))
    );
    assert_eq!(codec("qwen2").bos_token_id(), None);
}

/// What the `tokenizers` library makes of the same tokens.
fn library_decode(codec: &TextCodec, ids: &[u32], skip_special: bool) -> String {
    match &codec.vocabulary {
        Vocabulary::Tokenizers(tokenizer) => tokenizer.decode(ids, skip_special).expect("decodes"),
        Vocabulary::Spm(_) => panic!("not this one"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn streaming_is_exact(picks in prop::collection::vec(any::<u32>(), 0..60)) {
        for family in FAMILIES {
            let codec = codec_of(family);
            let size = codec.vocab_size() as u32 + 3;
            let ids: Vec<u32> = picks.iter().map(|pick| pick % size).collect();
            let mut decoder = IncrementalDecoder::new(codec.clone());
            let mut text = String::new();
            for &id in &ids {
                text.push_str(&decoder.push(id).expect("decodes"));
            }
            text.push_str(&decoder.finish().expect("decodes"));
            prop_assert_eq!(&text, &library_decode(&codec, &ids, true), "{}", family);
            for skip in [true, false] {
                let whole = codec.decode(&ids, skip).expect("decodes");
                prop_assert_eq!(&whole, &library_decode(&codec, &ids, skip), "{}", family);
            }
        }
    }

    #[test]
    fn text_survives_a_round_trip(text in "[a-zA-Z0-9 .,!?'\n\t🙂👩‍👧é中▁]{0,40}") {
        for family in ["gemma2", "llama", "llama_rope3", "smollm2"] {
            let codec = codec_of(family);
            let ids = codec.encode(&text).expect("encodes");
            let back = codec.decode(&ids, true).expect("decodes");
            // SentencePiece writes a space as ▁ and cannot tell them apart.
            let has_marks = matches!(family, "gemma2" | "llama");
            let want = if has_marks { text.replace('▁', " ") } else { text.clone() };
            prop_assert_eq!(back, want, "{}", family);
        }
    }
}

/// Loaded once: the property tests ask for it often.
fn codec_of(family: &str) -> Arc<TextCodec> {
    use std::sync::{LazyLock, Mutex};
    static LOADED: LazyLock<Mutex<HashMap<String, Arc<TextCodec>>>> = LazyLock::new(Mutex::default);
    let mut loaded = LOADED.lock().expect("no test panics with it");
    let load = || Arc::new(codec(family));
    loaded.entry(family.to_owned()).or_insert_with(load).clone()
}

#[test]
fn emoji_stay_whole_in_a_stream() {
    for family in FAMILIES {
        let codec = codec_of(family);
        let ids = codec.encode_bare("a 👩‍👩‍👧 🇩🇰 é").expect("encodes");
        let mut decoder = IncrementalDecoder::new(codec.clone());
        let mut pieces: Vec<String> = Vec::new();
        for id in ids {
            pieces.push(decoder.push(id).expect("decodes"));
        }
        pieces.push(decoder.finish().expect("decodes"));
        assert_eq!(pieces.concat(), "a 👩‍👩‍👧 🇩🇰 é", "{family}");
        assert!(
            pieces.iter().all(|piece| !piece.contains('\u{fffd}')),
            "{family}"
        );
    }
}

//! Tokenizers in Hugging Face folders, read as `transformers` 5 reads them.
//!
//! `tokenizer.json` is the tokenizer: its own post-processor says whether BOS is
//! added. `transformers` ignores `add_bos_token` beside it, and so do we. The
//! other files name the special tokens and hold the chat template.

use std::{
    collections::{BTreeMap, HashSet},
    fmt, fs,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value};
use tokenizers::{AddedToken, ModelWrapper, Tokenizer};

use crate::text::{Template, TextCodec, TextError, Vocabulary, decode::Decoding};

/// The special tokens that every tokenizer may name.
const NAMED: [&str; 7] = [
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
];

/// Reads the folder.
pub(super) fn read(dir: &Path) -> Result<TextCodec, TextError> {
    let path = dir.join("tokenizer.json");
    let mut tokenizer = read_tokenizer(&path)?;
    let config = read_object(&dir.join("tokenizer_config.json"))?.unwrap_or_default();
    let special = SpecialTokens::read(dir, config)?;
    check_supported(&path, &tokenizer, &special.config)?;
    let library = |error: tokenizers::Error| file_problem(&path, &error);
    let missing = special.missing_from(&tokenizer);
    tokenizer.add_tokens(missing).map_err(library)?;
    tokenizer.with_truncation(None).map_err(library)?;
    tokenizer.with_padding(None);
    if special.flag("split_special_tokens") {
        tokenizer.set_encode_special_tokens(true);
    }
    let decoding = Decoding::of(tokenizer.get_decoder())?;
    let id_of = |name: &str| tokenizer.token_to_id(special.text(name)?);
    let (bos_token_id, eos_token_id) = (id_of("bos_token"), id_of("eos_token"));
    let special_ids: HashSet<u32> = tokenizer
        .get_added_tokens_decoder()
        .into_iter()
        .filter(|(_, token)| token.special)
        .map(|(id, _)| id)
        .collect();
    let highest = tokenizer.get_vocab(true).into_values().max();
    let template = read_template(dir, &special)?;
    warn_if_bos_is_missing(&tokenizer, &special, bos_token_id);
    Ok(TextCodec {
        decoding,
        special_ids,
        vocab_size: highest.map_or(0, |id| id as usize + 1),
        template,
        bos_token_id,
        eos_token_id,
        end_token_ids: eos_token_id.into_iter().collect(),
        vocabulary: Vocabulary::Tokenizers(Box::new(tokenizer)),
    })
}

fn read_tokenizer(path: &Path) -> Result<Tokenizer, TextError> {
    let bytes = fs::read(path).map_err(|source| TextError::Io {
        path: path.to_owned(),
        source,
    })?;
    Tokenizer::from_bytes(bytes).map_err(|error| file_problem(path, &error))
}

/// Refuses what would make tokens depend on chance, or text differ from what
/// `transformers` prints.
fn check_supported(
    path: &Path,
    tokenizer: &Tokenizer,
    config: &Map<String, Value>,
) -> Result<(), TextError> {
    match tokenizer.get_model() {
        ModelWrapper::BPE(bpe) if bpe.dropout.is_some_and(|dropout| dropout > 0.0) => {
            Err(file_problem(
                path,
                &"its BPE has dropout, so the same text has many encodings",
            ))
        }
        // `transformers` does not clean up after BPE, whatever the config says.
        ModelWrapper::BPE(_) => Ok(()),
        _ if config.get("clean_up_tokenization_spaces") == Some(&Value::Bool(true)) => {
            Err(TextError::Unsupported(
                "clean_up_tokenization_spaces with a model that is not BPE".to_owned(),
            ))
        }
        _ => Ok(()),
    }
}

/// `tokenizer_config.json`, with what older files keep elsewhere.
struct SpecialTokens {
    config: Map<String, Value>,
    /// Tokens by id, from before `tokenizer.json` held them all.
    added: BTreeMap<u64, AddedToken>,
}

impl SpecialTokens {
    fn read(dir: &Path, mut config: Map<String, Value>) -> Result<Self, TextError> {
        let mut added = BTreeMap::new();
        if let Some(Value::Object(decoder)) = config.get("added_tokens_decoder") {
            for (id, token) in decoder {
                if let (Ok(id), Some(token)) = (id.parse(), as_token(token, false)) {
                    added.insert(id, token);
                }
            }
            return Ok(Self { config, added });
        }
        if let Some(map) = read_object(&dir.join("special_tokens_map.json"))? {
            config.extend(map);
        }
        let special = Self { config, added };
        let Some(file) = read_object(&dir.join("added_tokens.json"))? else {
            return Ok(special);
        };
        let known: HashSet<String> = special.tokens().map(|token| token.content).collect();
        let mut added = BTreeMap::new();
        for (content, id) in file {
            let is_special = known.contains(&content);
            if let Some(id) = id.as_u64() {
                added.insert(id, AddedToken::from(content, is_special));
            }
        }
        Ok(Self { added, ..special })
    }

    /// The named tokens: the common ones, and a model's own such as
    /// `image_token`.
    fn named(&self) -> impl Iterator<Item = (&str, AddedToken)> {
        self.config
            .iter()
            .filter(|(key, value)| {
                NAMED.contains(&key.as_str()) || (key.ends_with("_token") && value.is_string())
            })
            .filter_map(|(key, value)| Some((key.as_str(), as_token(value, true)?)))
    }

    /// All tokens that are special, with those that have no name.
    fn tokens(&self) -> impl Iterator<Item = AddedToken> {
        let listed = ["additional_special_tokens", "extra_special_tokens"]
            .into_iter()
            .filter_map(|key| self.config.get(key))
            .flat_map(|value| match value {
                Value::Array(tokens) => tokens.iter().collect(),
                Value::Object(tokens) => tokens.values().collect(),
                _ => Vec::new(),
            })
            .filter_map(|value| as_token(value, true));
        self.named().map(|(_, token)| token).chain(listed)
    }

    /// What the tokenizer does not know yet.
    fn missing_from(&self, tokenizer: &Tokenizer) -> Vec<AddedToken> {
        let known = tokenizer.get_added_tokens_decoder();
        let mut known: HashSet<String> = known.into_values().map(|token| token.content).collect();
        self.added
            .values()
            .cloned()
            .chain(self.tokens())
            .filter(|token| !token.content.is_empty() && known.insert(token.content.clone()))
            .collect()
    }

    fn text(&self, name: &str) -> Option<&str> {
        content(self.config.get(name)?)
    }

    fn flag(&self, name: &str) -> bool {
        self.config.get(name) == Some(&Value::Bool(true))
    }

    fn template_tokens(&self) -> Vec<(String, String)> {
        self.named()
            .map(|(name, token)| (name.to_owned(), token.content))
            .collect()
    }
}

/// A token's text: a string, or an object with `content`.
fn content(value: &Value) -> Option<&str> {
    value.get("content").unwrap_or(value).as_str()
}

fn as_token(value: &Value, special: bool) -> Option<AddedToken> {
    let flag = |name: &str| value.get(name).and_then(Value::as_bool);
    let special = special || flag("special").unwrap_or(false);
    let token = AddedToken::from(content(value)?, special);
    let normalized = flag("normalized").unwrap_or(token.normalized);
    Some(
        token
            .normalized(normalized)
            .lstrip(flag("lstrip").unwrap_or(false))
            .rstrip(flag("rstrip").unwrap_or(false))
            .single_word(flag("single_word").unwrap_or(false)),
    )
}

/// The template in its own file goes before the one in the config.
fn read_template(dir: &Path, special: &SpecialTokens) -> Result<Template, TextError> {
    let path = dir.join("chat_template.jinja");
    let new = |source| Template::new(Some(source), special.template_tokens());
    if let Some(source) = read_text(&path)? {
        return Ok(new(source));
    }
    let in_json = read_object(&dir.join("chat_template.json"))?;
    let template = special
        .config
        .get("chat_template")
        .filter(|template| !template.is_null())
        .or(in_json.as_ref().and_then(|file| file.get("chat_template")));
    Ok(match template {
        None | Some(Value::Null) => Template::Missing,
        Some(Value::String(source)) => new(source.clone()),
        Some(Value::Array(named)) => {
            let name = |entry: &Value| entry.get("name").and_then(Value::as_str).map(str::to_owned);
            let default = named
                .iter()
                .find(|entry| name(entry).as_deref() == Some("default"))
                .and_then(|entry| entry.get("template").and_then(Value::as_str));
            match default {
                Some(source) => new(source.to_owned()),
                None => {
                    let names: Vec<String> = named.iter().filter_map(name).collect();
                    Template::Broken(format!(
                        "none is named \"default\" (there are: {})",
                        names.join(", ")
                    ))
                }
            }
        }
        Some(_) => Template::Broken("it is neither text nor a list of named templates".to_owned()),
    })
}

/// A missing BOS quietly degrades a model, so a contradiction is worth a line.
fn warn_if_bos_is_missing(tokenizer: &Tokenizer, special: &SpecialTokens, bos: Option<u32>) {
    let (true, Some(bos)) = (special.flag("add_bos_token"), bos) else {
        return;
    };
    let adds = tokenizer
        .encode_fast("a", true)
        .is_ok_and(|encoding| encoding.get_ids().contains(&bos));
    if !adds {
        tracing::warn!(
            "tokenizer_config.json has add_bos_token, but tokenizer.json adds no BOS; as in transformers, none is added"
        );
    }
}

fn read_object(path: &Path) -> Result<Option<Map<String, Value>>, TextError> {
    let Some(text) = read_text(path)? else {
        return Ok(None);
    };
    match serde_json::from_str(&text) {
        Ok(Value::Object(object)) => Ok(Some(object)),
        Ok(_) => Err(file_problem(path, &"is not a JSON object")),
        Err(error) => Err(file_problem(path, &error)),
    }
}

fn read_text(path: &Path) -> Result<Option<String>, TextError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(TextError::Io {
            path: path.to_owned(),
            source,
        }),
    }
}

fn file_problem(path: &Path, problem: &dyn fmt::Display) -> TextError {
    TextError::File {
        path: PathBuf::from(path),
        problem: problem.to_string(),
    }
}

#[cfg(test)]
mod tests;

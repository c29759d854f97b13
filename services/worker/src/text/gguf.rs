//! Tokenizers inside GGUF files.

use std::collections::{BTreeSet, HashSet};

use candle_core::quantized::gguf_file::Value;

use crate::text::{
    GgufMetadata, Template, TextCodec, TextError, Vocabulary,
    decode::Decoding,
    gguf_bpe,
    spm::{SpmOptions, SpmToken, SpmVocabulary, TokenKind},
};

/// Tokens that end a generation by what they are called: GGUF names one end
/// token, and chat models stop at another. The list is llama.cpp's, less
/// `</s>`: where that is the end token the file says so, and in Gemma's
/// vocabulary it is HTML.
const END_TOKENS: [&str; 10] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|eom_id|>",
    "<EOT>",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
];

/// Reads `tokenizer.ggml.*`.
pub(super) fn read(metadata: &GgufMetadata) -> Result<TextCodec, TextError> {
    let metadata = Metadata(metadata);
    let model = metadata.string("tokenizer.ggml.model")?.ok_or_else(|| {
        metadata.problem(
            "tokenizer.ggml.model",
            "is missing: the file has no tokenizer",
        )
    })?;
    let mut tokens = read_tokens(&metadata)?;
    let end_by_name = mark_end_tokens(&mut tokens);
    let special = SpecialIds::read(&metadata, model, tokens.len())?;
    let template_tokens = special.template_tokens(&tokens);
    let special_ids: HashSet<u32> = (0u32..)
        .zip(&tokens)
        .filter(|(_, token)| token.kind.is_special())
        .map(|(id, _)| id)
        .collect();
    let mut end_token_ids: BTreeSet<u32> = end_by_name;
    end_token_ids.extend(
        [special.eos, special.eot, special.eom]
            .into_iter()
            .flatten(),
    );
    let vocab_size = tokens.len();
    let (vocabulary, decoding) = match model {
        "llama" => {
            let options = spm_options(&metadata, &special)?;
            let decoding = Decoding::Bytes {
                drop_first_space: options.add_space_prefix,
            };
            let spm = SpmVocabulary::new(tokens, options)?;
            (Vocabulary::Spm(Box::new(spm)), decoding)
        }
        "gpt2" => {
            let tokenizer = gguf_bpe::build(&metadata, &tokens, &special)?;
            (
                Vocabulary::Tokenizers(Box::new(tokenizer)),
                Decoding::ByteLevel,
            )
        }
        other => {
            return Err(metadata.problem(
                "tokenizer.ggml.model",
                format!("is {other:?}; supported are \"llama\" and \"gpt2\""),
            ));
        }
    };
    let template = metadata.string("tokenizer.chat_template")?;
    Ok(TextCodec {
        vocabulary,
        decoding,
        special_ids,
        vocab_size,
        template: Template::new(template.map(str::to_owned), template_tokens),
        bos_token_id: special.bos,
        eos_token_id: special.eos,
        end_token_ids: end_token_ids.into_iter().collect(),
    })
}

fn spm_options(metadata: &Metadata<'_>, special: &SpecialIds) -> Result<SpmOptions, TextError> {
    let add_bos = metadata.boolean("tokenizer.ggml.add_bos_token")?;
    let add_eos = metadata.boolean("tokenizer.ggml.add_eos_token")?;
    let add_space_prefix = metadata.boolean("tokenizer.ggml.add_space_prefix")?;
    Ok(SpmOptions {
        add_space_prefix: add_space_prefix.unwrap_or(true),
        bos: special.added_bos(metadata, add_bos.unwrap_or(true))?,
        eos: special.added_eos(metadata, add_eos.unwrap_or(false))?,
    })
}

/// The tokens that `tokenizer.ggml.*_token_id` name.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct SpecialIds {
    bos: Option<u32>,
    eos: Option<u32>,
    eot: Option<u32>,
    eom: Option<u32>,
    unknown: Option<u32>,
    padding: Option<u32>,
    separator: Option<u32>,
}

impl SpecialIds {
    fn read(metadata: &Metadata<'_>, model: &str, count: usize) -> Result<Self, TextError> {
        let id = |name: &str| metadata.token_id(name, count);
        let default = |id: u32| (model == "llama" && (id as usize) < count).then_some(id);
        Ok(Self {
            bos: id("bos")?.or(default(1)),
            eos: id("eos")?.or(default(2)),
            eot: id("eot")?,
            eom: id("eom")?,
            unknown: id("unknown")?.or(default(0)),
            padding: id("padding")?,
            separator: id("seperator")?.or(id("separator")?),
        })
    }

    /// Whether the file names a begin-of-sequence token.
    pub(super) fn has_bos(&self) -> bool {
        self.bos.is_some()
    }

    /// The token to put first.
    pub(super) fn added_bos(
        &self,
        metadata: &Metadata<'_>,
        add: bool,
    ) -> Result<Option<u32>, TextError> {
        if add && self.bos.is_none() {
            let problem = "is true, but tokenizer.ggml.bos_token_id is not set";
            return Err(metadata.problem("tokenizer.ggml.add_bos_token", problem));
        }
        Ok(self.bos.filter(|_| add))
    }

    /// The token to put last.
    pub(super) fn added_eos(
        &self,
        metadata: &Metadata<'_>,
        add: bool,
    ) -> Result<Option<u32>, TextError> {
        if add && self.eos.is_none() {
            let problem = "is true, but tokenizer.ggml.eos_token_id is not set";
            return Err(metadata.problem("tokenizer.ggml.add_eos_token", problem));
        }
        Ok(self.eos.filter(|_| add))
    }

    /// Variables of the chat template.
    fn template_tokens(&self, tokens: &[SpmToken]) -> Vec<(String, String)> {
        [
            ("bos_token", self.bos),
            ("eos_token", self.eos),
            ("unk_token", self.unknown),
            ("pad_token", self.padding),
            ("sep_token", self.separator),
        ]
        .into_iter()
        .filter_map(|(name, id)| Some((name.to_owned(), tokens.get(id? as usize)?.text.clone())))
        .collect()
    }
}

fn read_tokens(metadata: &Metadata<'_>) -> Result<Vec<SpmToken>, TextError> {
    const TOKENS: &str = "tokenizer.ggml.tokens";
    const SCORES: &str = "tokenizer.ggml.scores";
    const TYPES: &str = "tokenizer.ggml.token_type";
    let texts = metadata
        .array(TOKENS)?
        .ok_or_else(|| metadata.problem(TOKENS, "is missing"))?;
    if texts.is_empty() || u32::try_from(texts.len()).is_err() {
        return Err(metadata.problem(TOKENS, format!("has {} entries", texts.len())));
    }
    let scores = metadata.array_of_length(SCORES, texts.len())?;
    let kinds = metadata.array_of_length(TYPES, texts.len())?;
    let mut tokens = Vec::with_capacity(texts.len());
    for (id, text) in texts.iter().enumerate() {
        let Value::String(text) = text else {
            return Err(metadata.problem(TOKENS, format!("entry {id} is not a string")));
        };
        let score = match scores.map(|scores| &scores[id]) {
            None => 0.0,
            Some(Value::F32(score)) => *score,
            Some(Value::I32(score)) => *score as f32,
            Some(_) => return Err(metadata.problem(SCORES, format!("entry {id} is not a number"))),
        };
        let kind = match kinds.map(|kinds| integer(&kinds[id])) {
            None | Some(Some(1)) => TokenKind::Normal,
            Some(Some(2)) => TokenKind::Unknown,
            Some(Some(3)) => TokenKind::Control,
            Some(Some(4)) => TokenKind::UserDefined,
            Some(Some(0 | 5)) => TokenKind::Unused,
            Some(Some(6)) => TokenKind::Byte,
            Some(_) => {
                let problem = format!("entry {id} is not a token type (1 to 6)");
                return Err(metadata.problem(TYPES, problem));
            }
        };
        tokens.push(SpmToken {
            text: text.clone(),
            score,
            kind,
        });
    }
    Ok(tokens)
}

/// Finds the tokens that are known to end a turn, and makes them control
/// tokens: some files call them ordinary text.
fn mark_end_tokens(tokens: &mut [SpmToken]) -> BTreeSet<u32> {
    let mut found = BTreeSet::new();
    for (id, token) in (0u32..).zip(tokens) {
        if END_TOKENS.contains(&token.text.as_str()) {
            token.kind = TokenKind::Control;
            found.insert(id);
        }
    }
    found
}

fn integer(value: &Value) -> Option<i64> {
    match *value {
        Value::U8(v) => Some(i64::from(v)),
        Value::I8(v) => Some(i64::from(v)),
        Value::U16(v) => Some(i64::from(v)),
        Value::I16(v) => Some(i64::from(v)),
        Value::U32(v) => Some(i64::from(v)),
        Value::I32(v) => Some(i64::from(v)),
        Value::U64(v) => i64::try_from(v).ok(),
        Value::I64(v) => Some(v),
        _ => None,
    }
}

/// Typed access to a GGUF file's metadata.
pub(super) struct Metadata<'a>(&'a GgufMetadata);

impl<'a> Metadata<'a> {
    /// An error about an entry.
    pub(super) fn problem(&self, key: &str, problem: impl Into<String>) -> TextError {
        TextError::Gguf {
            key: key.to_owned(),
            problem: problem.into(),
        }
    }

    /// A string, where there is one.
    pub(super) fn string(&self, key: &str) -> Result<Option<&'a str>, TextError> {
        match self.0.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.problem(key, "is not a string")),
        }
    }

    /// A boolean, where there is one.
    pub(super) fn boolean(&self, key: &str) -> Result<Option<bool>, TextError> {
        match self.0.get(key) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(*value)),
            Some(_) => Err(self.problem(key, "is not a boolean")),
        }
    }

    /// An array, where there is one.
    pub(super) fn array(&self, key: &str) -> Result<Option<&'a [Value]>, TextError> {
        match self.0.get(key) {
            None => Ok(None),
            Some(Value::Array(values)) => Ok(Some(values)),
            Some(_) => Err(self.problem(key, "is not an array")),
        }
    }

    fn array_of_length(&self, key: &str, length: usize) -> Result<Option<&'a [Value]>, TextError> {
        let array = self.array(key)?;
        match array {
            Some(values) if values.len() != length => {
                let problem = format!("has {} entries for {length} tokens", values.len());
                Err(self.problem(key, problem))
            }
            _ => Ok(array),
        }
    }

    fn token_id(&self, name: &str, count: usize) -> Result<Option<u32>, TextError> {
        let key = format!("tokenizer.ggml.{name}_token_id");
        let Some(value) = self.0.get(&key) else {
            return Ok(None);
        };
        match integer(value).and_then(|id| u32::try_from(id).ok()) {
            Some(id) if (id as usize) < count => Ok(Some(id)),
            // Some converters write -1, or one past the end, for "none".
            Some(_) | None if integer(value).is_some() => Ok(None),
            _ => Err(self.problem(&key, "is not an integer")),
        }
    }
}

#[cfg(test)]
mod tests;

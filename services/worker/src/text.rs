//! Text and tokens: the model's own tokenizer, chat template and detokeniser.
//!
//! A [`TextCodec`] is read from a Hugging Face folder, where it does what
//! `transformers` does with `tokenizer.json`, or from a GGUF file's metadata,
//! where it does what llama.cpp does. Nothing here knows of requests, threads
//! or the model.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    path::{Path, PathBuf},
};

use candle_core::quantized::gguf_file;
use steering_proto::generate::Message;

use decode::{Decoding, TextStream};
use spm::SpmVocabulary;
use template::ChatTemplate;

mod byte_level;
mod decode;
mod gguf;
mod gguf_bpe;
mod hf;
mod partition;
mod spm;
mod stop;
mod template;
mod utf8;

pub use decode::IncrementalDecoder;
pub use stop::{Emit, StopMatcher};

/// The metadata of a GGUF file, as candle reads it.
pub type GgufMetadata = HashMap<String, gguf_file::Value>;

/// What can go wrong between text and tokens.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// A file of the tokenizer could not be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file of the tokenizer does not hold what it should.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A GGUF metadata entry is missing or not what it should be.
    #[error("GGUF metadata {key}: {problem}")]
    Gguf {
        /// The entry.
        key: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The tokenizer needs something that is not implemented.
    #[error("this tokenizer is not supported: {0}")]
    Unsupported(String),
    /// The model has no chat template.
    #[error("the model has no chat template; send text or token ids")]
    NoChatTemplate,
    /// The template refused the conversation: the caller's mistake.
    #[error("{0}")]
    TemplateRaised(String),
    /// The template used up the budget of a render.
    #[error("the chat template needs too much work for this conversation")]
    TemplateTooCostly,
    /// The template itself is broken, or uses what is not implemented.
    #[error("the model's chat template fails: {0}")]
    Template(String),
    /// The tokenizer failed on a text.
    #[error("the tokenizer fails: {0}")]
    Encode(String),
    /// The decoder failed on tokens.
    #[error("the tokenizer's decoder fails: {0}")]
    Decode(String),
}

/// A model's tokenizer and chat template.
pub struct TextCodec {
    vocabulary: Vocabulary,
    decoding: Decoding,
    special_ids: HashSet<u32>,
    vocab_size: usize,
    template: Template,
    bos_token_id: Option<u32>,
    eos_token_id: Option<u32>,
    end_token_ids: Vec<u32>,
}

enum Vocabulary {
    /// Anything that the `tokenizers` library runs.
    Tokenizers(Box<tokenizers::Tokenizer>),
    /// GGUF's "llama".
    Spm(Box<SpmVocabulary>),
}

enum Template {
    Missing,
    Ready(Box<ChatTemplate>),
    /// It does not compile: raw prompts still work.
    Broken(String),
}

impl Template {
    fn new(source: Option<String>, special_tokens: Vec<(String, String)>) -> Self {
        match source.map(|source| ChatTemplate::compile(&source, special_tokens)) {
            None => Self::Missing,
            Some(Ok(template)) => Self::Ready(Box::new(template)),
            Some(Err(error)) => {
                tracing::warn!(%error, "chat prompts will be refused");
                Self::Broken(match error {
                    TextError::Template(problem) => problem,
                    other => other.to_string(),
                })
            }
        }
    }
}

impl TextCodec {
    /// Reads `tokenizer.json` and what lies beside it.
    pub fn from_hf_folder(dir: &Path) -> Result<Self, TextError> {
        hf::read(dir)
    }

    /// Reads `tokenizer.ggml.*` and `tokenizer.chat_template`.
    pub fn from_gguf(metadata: &GgufMetadata) -> Result<Self, TextError> {
        gguf::read(metadata)
    }

    /// Whether chat prompts can be rendered.
    pub fn has_chat_template(&self) -> bool {
        matches!(self.template, Template::Ready(_))
    }

    /// The tokens of a text, with those the tokenizer adds (mostly BOS).
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TextError> {
        self.encode_with(text, true)
    }

    /// The tokens of a text as it stands: a continuation, or a rendered
    /// conversation, whose template has written BOS where the model wants one.
    pub fn encode_bare(&self, rendered: &str) -> Result<Vec<u32>, TextError> {
        self.encode_with(rendered, false)
    }

    fn encode_with(&self, text: &str, add_special: bool) -> Result<Vec<u32>, TextError> {
        match &self.vocabulary {
            Vocabulary::Tokenizers(tokenizer) => tokenizer
                .encode_fast(text, add_special)
                .map(|encoding| encoding.get_ids().to_vec())
                .map_err(|error| TextError::Encode(error.to_string())),
            Vocabulary::Spm(spm) => Ok(spm.encode(text, add_special)),
        }
    }

    /// A conversation as the model's template writes it;
    /// `add_generation_prompt` opens the assistant's turn.
    pub fn render_chat(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<String, TextError> {
        match &self.template {
            Template::Missing => Err(TextError::NoChatTemplate),
            Template::Broken(problem) => Err(TextError::Template(problem.clone())),
            Template::Ready(template) => template.render(messages, add_generation_prompt),
        }
    }

    /// The text of tokens, with or without the special ones. Ids outside the
    /// vocabulary have no text.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, TextError> {
        let mut stream = TextStream::new(self, skip_special);
        let mut out = String::new();
        for &id in ids {
            stream.push(self, id, &mut out)?;
        }
        stream.finish(self, &mut out)?;
        Ok(out)
    }

    /// The vocabulary's own piece for a token, such as `▁hello`.
    pub fn piece(&self, id: u32) -> Option<String> {
        match &self.vocabulary {
            Vocabulary::Tokenizers(tokenizer) => tokenizer.id_to_token(id),
            Vocabulary::Spm(spm) => spm.piece(id).map(str::to_owned),
        }
    }

    /// Whether a token is special: BOS, an end of turn, and their like.
    pub fn is_special(&self, id: u32) -> bool {
        self.special_ids.contains(&id)
    }

    /// One more than the highest token id.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The tokenizer's begin-of-sequence token.
    pub fn bos_token_id(&self) -> Option<u32> {
        self.bos_token_id
    }

    /// The tokenizer's end-of-sequence token.
    pub fn eos_token_id(&self) -> Option<u32> {
        self.eos_token_id
    }

    /// Every token that ends a generation as far as the tokenizer knows. A GGUF
    /// file has no generation config, so there this names the ends of turns
    /// too, as llama.cpp finds them.
    pub fn end_token_ids(&self) -> &[u32] {
        &self.end_token_ids
    }

    /// The bytes of a token of a byte vocabulary.
    fn raw_bytes(&self, id: u32) -> Option<Vec<u8>> {
        match &self.vocabulary {
            Vocabulary::Tokenizers(_) => None,
            Vocabulary::Spm(spm) => spm.bytes(id),
        }
    }
}

impl fmt::Debug for TextCodec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TextCodec")
            .field("vocab_size", &self.vocab_size)
            .field("eos_token_id", &self.eos_token_id)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;

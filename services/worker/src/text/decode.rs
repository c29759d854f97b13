//! Token pieces to text, one token at a time.
//!
//! A tokenizer's decoder works on a whole list of pieces. The decoders that
//! language models use can also run piece by piece, with little held back, and
//! then give exactly the same text; which one a tokenizer has is found once,
//! at load. Others are refused: text that changes after it was sent, or a
//! stream that differs from the whole, is not worth having.

use std::sync::Arc;

use tokenizers::{Decoder, decoders::DecoderWrapper, pre_tokenizers::metaspace::PrependScheme};

use crate::text::{TextCodec, TextError, byte_level, utf8::Utf8Stream};

/// How pieces become text.
#[derive(Debug, Clone)]
pub(super) enum Decoding {
    /// Each character of a piece is a byte (GPT-2, Llama 3, Qwen, SmolLM).
    ByteLevel,
    /// Pieces are bytes, taken as they are; a space at the start is dropped
    /// where the tokenizer had put it there (GGUF's "llama").
    Bytes {
        /// Drop one space at the start of the text.
        drop_first_space: bool,
    },
    /// A chain of decoders over pieces (Gemma, Llama 2).
    Chain(Chain),
}

/// A `Sequence` of decoders that work piece by piece.
#[derive(Debug, Clone, Default)]
pub(super) struct Chain {
    /// Before [`Self::byte_fallback`].
    before: Vec<DecoderWrapper>,
    /// Whether `<0x41>` pieces are bytes.
    byte_fallback: bool,
    /// After it.
    after: Vec<DecoderWrapper>,
    /// `(character, how many)` to drop from the start of the whole text.
    strip_start: Option<(char, usize)>,
    /// Between pieces.
    separator: &'static str,
}

impl Decoding {
    /// Reads a `tokenizers` decoder.
    pub(super) fn of(decoder: Option<&DecoderWrapper>) -> Result<Self, TextError> {
        let Some(decoder) = decoder else {
            return Ok(Self::Chain(Chain {
                separator: " ",
                ..Chain::default()
            }));
        };
        let mut flat = Vec::new();
        flatten(decoder, &mut flat);
        if let [DecoderWrapper::ByteLevel(_)] = flat[..] {
            return Ok(Self::ByteLevel);
        }
        let mut chain = Chain::default();
        let mut is_fused = false;
        for decoder in flat {
            match decoder {
                DecoderWrapper::Fuse(_) => is_fused = true,
                DecoderWrapper::Strip(strip) if strip.stop == 0 && is_fused => {
                    if chain.strip_start.is_some() {
                        return Err(unsupported("two Strip"));
                    }
                    chain.strip_start = Some((strip.content, strip.start));
                }
                DecoderWrapper::ByteFallback(_) if !is_fused && !chain.byte_fallback => {
                    chain.byte_fallback = true;
                }
                DecoderWrapper::Replace(_) | DecoderWrapper::Metaspace(_) if !is_fused => {
                    let stage = if chain.byte_fallback {
                        &mut chain.after
                    } else {
                        &mut chain.before
                    };
                    stage.push(decoder.clone());
                }
                other => return Err(unsupported(name(other))),
            }
        }
        Ok(Self::Chain(chain))
    }

    /// A stream at the start of a text.
    fn start(&self) -> State {
        match self {
            Self::ByteLevel => State::Bytes {
                utf8: Utf8Stream::default(),
                drop_space: false,
            },
            Self::Bytes { drop_first_space } => State::Bytes {
                utf8: Utf8Stream::default(),
                drop_space: *drop_first_space,
            },
            Self::Chain(chain) => State::Chain(ChainState {
                is_first_in: true,
                is_first_out: true,
                byte_run: Vec::new(),
                to_strip: chain.strip_start.map_or(0, |(_, count)| count),
            }),
        }
    }
}

fn flatten<'a>(decoder: &'a DecoderWrapper, out: &mut Vec<&'a DecoderWrapper>) {
    match decoder {
        DecoderWrapper::Sequence(sequence) => {
            for inner in sequence.get_decoders() {
                flatten(inner, out);
            }
        }
        single => out.push(single),
    }
}

fn unsupported(decoder: &str) -> TextError {
    TextError::Unsupported(format!(
        "the tokenizer's decoder has {decoder} where it cannot be streamed; supported are ByteLevel, \
         or Replace, Metaspace, ByteFallback, Fuse and a Strip of the start after Fuse"
    ))
}

fn name(decoder: &DecoderWrapper) -> &'static str {
    match decoder {
        DecoderWrapper::BPE(_) => "BPEDecoder",
        DecoderWrapper::ByteLevel(_) => "ByteLevel",
        DecoderWrapper::WordPiece(_) => "WordPiece",
        DecoderWrapper::Metaspace(_) => "Metaspace",
        DecoderWrapper::CTC(_) => "CTC",
        DecoderWrapper::Sequence(_) => "Sequence",
        DecoderWrapper::Replace(_) => "Replace",
        DecoderWrapper::Fuse(_) => "Fuse",
        DecoderWrapper::Strip(_) => "Strip",
        DecoderWrapper::ByteFallback(_) => "ByteFallback",
    }
}

/// A text under way.
#[derive(Debug)]
enum State {
    Bytes { utf8: Utf8Stream, drop_space: bool },
    Chain(ChainState),
}

#[derive(Debug)]
struct ChainState {
    /// No piece has come in yet.
    is_first_in: bool,
    /// No piece has passed [`Chain::byte_fallback`] yet.
    is_first_out: bool,
    /// Byte pieces in a row. They wait for the end of the run: if all of it is
    /// not UTF-8, each of its bytes is a U+FFFD, the good ones too.
    byte_run: Vec<u8>,
    /// How many characters may still be dropped from the start.
    to_strip: usize,
}

impl ChainState {
    fn push(&mut self, chain: &Chain, piece: String, out: &mut String) -> Result<(), TextError> {
        let piece = run_stage(&chain.before, piece, self.is_first_in)?;
        self.is_first_in = false;
        if chain.byte_fallback
            && let Some(byte) = fallback_byte(&piece)
        {
            self.byte_run.push(byte);
            return Ok(());
        }
        self.end_run(chain, out)?;
        self.emit(chain, piece, out)
    }

    fn end_run(&mut self, chain: &Chain, out: &mut String) -> Result<(), TextError> {
        if self.byte_run.is_empty() {
            return Ok(());
        }
        match String::from_utf8(std::mem::take(&mut self.byte_run)) {
            Ok(text) => self.emit(chain, text, out),
            Err(error) => {
                let count = error.into_bytes().len();
                (0..count).try_for_each(|_| {
                    self.emit(chain, char::REPLACEMENT_CHARACTER.to_string(), out)
                })
            }
        }
    }

    fn emit(&mut self, chain: &Chain, piece: String, out: &mut String) -> Result<(), TextError> {
        let piece = run_stage(&chain.after, piece, self.is_first_out)?;
        if !self.is_first_out {
            out.push_str(chain.separator);
        }
        self.is_first_out = false;
        let mut text = piece.as_str();
        if let Some((content, _)) = chain.strip_start {
            while self.to_strip > 0 && !text.is_empty() {
                match text.strip_prefix(content) {
                    Some(rest) => {
                        text = rest;
                        self.to_strip -= 1;
                    }
                    None => self.to_strip = 0,
                }
            }
        }
        out.push_str(text);
        Ok(())
    }
}

/// Runs one piece through decoders that map each piece by itself, except that
/// `Metaspace` treats the first of a text in its own way.
fn run_stage(stage: &[DecoderWrapper], piece: String, is_first: bool) -> Result<String, TextError> {
    stage
        .iter()
        .try_fold(piece, |piece, decoder| match decoder {
            DecoderWrapper::Metaspace(metaspace) => {
                let drops = is_first && metaspace.prepend_scheme != PrependScheme::Never;
                let space = if drops { "" } else { " " };
                Ok(piece.replace(metaspace.get_replacement(), space))
            }
            other => other
                .decode_chain(vec![piece])
                .map(|pieces| pieces.concat())
                .map_err(|error| TextError::Decode(error.to_string())),
        })
}

/// The byte that `<0x41>` stands for.
fn fallback_byte(piece: &str) -> Option<u8> {
    if piece.len() != 6 {
        return None;
    }
    let digits = piece.strip_prefix("<0x")?.strip_suffix('>')?;
    u8::from_str_radix(digits, 16).ok()
}

/// Decodes a text token by token.
///
/// Special tokens are skipped. The pushes and [`finish`](Self::finish) together
/// are exactly [`TextCodec::decode`] of all the tokens.
#[derive(Debug)]
pub struct IncrementalDecoder {
    codec: Arc<TextCodec>,
    stream: TextStream,
}

impl IncrementalDecoder {
    /// A decoder at the start of a text.
    pub fn new(codec: Arc<TextCodec>) -> Self {
        let stream = TextStream::new(&codec, true);
        Self { codec, stream }
    }

    /// The text that this token completes: whole characters, often none.
    pub fn push(&mut self, id: u32) -> Result<String, TextError> {
        let mut out = String::new();
        self.stream.push(&self.codec, id, &mut out)?;
        Ok(out)
    }

    /// The end of the tokens: the text still held back.
    pub fn finish(&mut self) -> Result<String, TextError> {
        let mut out = String::new();
        self.stream.finish(&self.codec, &mut out)?;
        Ok(out)
    }
}

/// A text under way, whoever owns the codec.
#[derive(Debug)]
pub(super) struct TextStream {
    state: State,
    skip_special: bool,
}

impl TextStream {
    pub(super) fn new(codec: &TextCodec, skip_special: bool) -> Self {
        Self {
            state: codec.decoding.start(),
            skip_special,
        }
    }

    pub(super) fn push(
        &mut self,
        codec: &TextCodec,
        id: u32,
        out: &mut String,
    ) -> Result<(), TextError> {
        if self.skip_special && codec.is_special(id) {
            return Ok(());
        }
        match (&mut self.state, &codec.decoding) {
            (State::Chain(state), Decoding::Chain(chain)) => match codec.piece(id) {
                Some(piece) => state.push(chain, piece, out),
                None => Ok(()),
            },
            (State::Bytes { utf8, drop_space }, decoding) => {
                let bytes = match decoding {
                    Decoding::ByteLevel => codec.piece(id).map(byte_level::bytes_of),
                    _ => codec.raw_bytes(id),
                };
                let mut bytes = bytes.unwrap_or_default();
                if *drop_space && !bytes.is_empty() {
                    *drop_space = false;
                    if bytes[0] == b' ' {
                        bytes.remove(0);
                    }
                }
                utf8.push(&bytes, out);
                Ok(())
            }
            (State::Chain(_), _) => Err(TextError::Decode("the codec has changed".to_owned())),
        }
    }

    pub(super) fn finish(&mut self, codec: &TextCodec, out: &mut String) -> Result<(), TextError> {
        match (&mut self.state, &codec.decoding) {
            (State::Chain(state), Decoding::Chain(chain)) => state.end_run(chain, out),
            (State::Bytes { utf8, .. }, _) => {
                utf8.finish(out);
                Ok(())
            }
            (State::Chain(_), _) => Err(TextError::Decode("the codec has changed".to_owned())),
        }
    }
}

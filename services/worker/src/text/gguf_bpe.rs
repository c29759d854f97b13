//! GGUF's "gpt2" tokenizer: byte-level BPE. The file names the pattern that
//! splits text into words; the patterns themselves are common knowledge.

use candle_core::quantized::gguf_file::Value;
use tokenizers::{
    AddedToken, Tokenizer,
    models::bpe::{BPE, Merges, Vocab},
    normalizers::unicode::NFC,
    pre_tokenizers::{
        PreTokenizerWrapper,
        byte_level::ByteLevel,
        sequence::Sequence,
        split::{Split, SplitPattern},
    },
    processors::template::TemplateProcessing,
    tokenizer::normalizer::SplitDelimiterBehavior,
};

use crate::text::{
    TextError,
    gguf::{Metadata, SpecialIds},
    spm::SpmToken,
};

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// What `tokenizer.ggml.pre` stands for.
struct PreTokenizer {
    names: &'static [&'static str],
    /// Applied one after the other, each to what the last has left whole.
    patterns: &'static [&'static str],
    /// A word that is a token is that token, whatever the merges say.
    ignore_merges: bool,
    add_bos: bool,
    /// The model's own tokenizer normalises, and so do we; llama.cpp does not.
    nfc: bool,
}

const PLAIN: PreTokenizer = PreTokenizer {
    names: &[],
    patterns: &[],
    ignore_merges: false,
    add_bos: false,
    nfc: false,
};

const PRE_TOKENIZERS: [PreTokenizer; 6] = [
    PreTokenizer {
        names: &["default"],
        patterns: &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"],
        ..PLAIN
    },
    PreTokenizer {
        names: &["gpt-2", "phi-2", "mpt", "olmo", "exaone4"],
        patterns: &[GPT2],
        ..PLAIN
    },
    PreTokenizer {
        names: &["llama-bpe", "llama3", "llama-v3", "falcon3", "lfm2"],
        patterns: &[LLAMA3],
        ignore_merges: true,
        add_bos: true,
        ..PLAIN
    },
    PreTokenizer {
        names: &["dbrx", "smaug-bpe"],
        patterns: &[LLAMA3],
        ..PLAIN
    },
    PreTokenizer {
        names: &["qwen2", "deepseek-r1-qwen", "megrez", "stablelm2"],
        patterns: &[QWEN2],
        nfc: true,
        ..PLAIN
    },
    PreTokenizer {
        names: &[
            "smollm",
            "starcoder",
            "refact",
            "command-r",
            "codeshell",
            "exaone",
            "minerva-7b",
        ],
        patterns: &[r"\p{N}", GPT2],
        ..PLAIN
    },
];

/// Builds the tokenizer.
pub(super) fn build(
    metadata: &Metadata<'_>,
    tokens: &[SpmToken],
    special: &SpecialIds,
) -> Result<Tokenizer, TextError> {
    let pre = pre_tokenizer(metadata)?;
    let vocab: Vocab = (0u32..)
        .zip(tokens)
        .filter(|(_, token)| !token.text.is_empty())
        .map(|(id, token)| (token.text.clone(), id))
        .collect();
    let bpe = BPE::builder()
        .vocab_and_merges(vocab, read_merges(metadata)?)
        .ignore_merges(pre.ignore_merges)
        .build()
        .map_err(|error| metadata.problem("tokenizer.ggml.merges", error.to_string()))?;
    let library = |error: tokenizers::Error| TextError::Unsupported(error.to_string());
    let mut tokenizer = Tokenizer::new(bpe);
    if pre.nfc {
        tokenizer.with_normalizer(Some(NFC)).map_err(library)?;
    }
    let mut steps: Vec<PreTokenizerWrapper> = Vec::new();
    for pattern in pre.patterns {
        let pattern = SplitPattern::Regex((*pattern).to_owned());
        let split =
            Split::new(pattern, SplitDelimiterBehavior::Isolated, false).map_err(library)?;
        steps.push(split.into());
    }
    steps.push(ByteLevel::new(false, false, false).into());
    tokenizer.with_pre_tokenizer(Some(Sequence::new(steps)));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    tokenizer
        .add_tokens(
            tokens
                .iter()
                .filter(|token| token.kind.is_partitioned() && !token.text.is_empty())
                .map(|token| {
                    AddedToken::from(token.text.clone(), token.kind.is_special()).normalized(false)
                }),
        )
        .map_err(library)?;
    if let Some(processor) = post_processor(metadata, tokens, special, pre.add_bos)? {
        tokenizer.with_post_processor(Some(processor));
    }
    Ok(tokenizer)
}

fn pre_tokenizer(metadata: &Metadata<'_>) -> Result<&'static PreTokenizer, TextError> {
    const PRE: &str = "tokenizer.ggml.pre";
    let name = metadata.string(PRE)?.unwrap_or("default");
    if name == "default" {
        tracing::warn!(
            "the GGUF file does not say how its tokenizer splits words; generation may suffer"
        );
    }
    let found = PRE_TOKENIZERS
        .iter()
        .find(|candidate| candidate.names.contains(&name));
    found.ok_or_else(|| {
        let known: Vec<&str> = PRE_TOKENIZERS
            .iter()
            .flat_map(|candidate| candidate.names.iter().copied())
            .collect();
        metadata.problem(
            PRE,
            format!("is {name:?}; supported are {}", known.join(", ")),
        )
    })
}

fn read_merges(metadata: &Metadata<'_>) -> Result<Merges, TextError> {
    const MERGES: &str = "tokenizer.ggml.merges";
    let lines = metadata
        .array(MERGES)?
        .ok_or_else(|| metadata.problem(MERGES, "is missing"))?;
    lines
        .iter()
        .enumerate()
        .map(|(i, line)| {
            let Value::String(line) = line else {
                return Err(metadata.problem(MERGES, format!("entry {i} is not a string")));
            };
            // The first half may itself start with the separator.
            let first_len = line.chars().next().map_or(0, char::len_utf8);
            match line[first_len..].find(' ') {
                Some(at) => {
                    let (left, right) = line.split_at(first_len + at);
                    Ok((left.to_owned(), right[1..].to_owned()))
                }
                None => Err(metadata.problem(MERGES, format!("entry {i} is not a pair"))),
            }
        })
        .collect()
}

fn post_processor(
    metadata: &Metadata<'_>,
    tokens: &[SpmToken],
    special: &SpecialIds,
    add_bos_by_default: bool,
) -> Result<Option<TemplateProcessing>, TextError> {
    let add_bos = metadata.boolean("tokenizer.ggml.add_bos_token")?;
    let add_eos = metadata.boolean("tokenizer.ggml.add_eos_token")?;
    // By default BOS is added only where the file has one.
    let add_bos = add_bos.unwrap_or(add_bos_by_default && special.has_bos());
    let bos = special.added_bos(metadata, add_bos)?;
    let eos = special.added_eos(metadata, add_eos.unwrap_or(false))?;
    if bos.is_none() && eos.is_none() {
        return Ok(None);
    }
    let text_of = |id: u32| tokens[id as usize].text.clone();
    let mut single = Vec::new();
    single.extend(bos.map(text_of));
    single.push("$A".to_owned());
    single.extend(eos.map(text_of));
    let used: Vec<(String, u32)> = bos
        .into_iter()
        .chain(eos)
        .map(|id| (text_of(id), id))
        .collect();
    let unsupported = |error: String| TextError::Unsupported(error);
    TemplateProcessing::builder()
        .try_single(single)
        .map_err(unsupported)?
        .special_tokens(used)
        .build()
        .map(Some)
        .map_err(|error| TextError::Unsupported(error.to_string()))
}

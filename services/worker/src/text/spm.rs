//! GGUF's "llama" tokenizer: SentencePiece's BPE with scores in place of merge
//! ranks, as llama.cpp runs it.

use std::{
    cmp::Ordering,
    collections::{BinaryHeap, HashMap},
};

use crate::text::{
    TextError,
    partition::{Fragment, Partition},
};

/// What `tokenizer.ggml.token_type` says of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TokenKind {
    /// A piece of text.
    Normal,
    /// The unknown token.
    Unknown,
    /// BOS, EOS, ends of turns.
    Control,
    /// Text that always is this one token.
    UserDefined,
    /// A place that is not in use.
    Unused,
    /// One byte, written `<0x41>`.
    Byte,
}

impl TokenKind {
    /// Whether generated text leaves it out.
    pub(super) fn is_special(self) -> bool {
        matches!(self, Self::Unknown | Self::Control)
    }

    /// Whether it is cut out of a text before tokenising.
    pub(super) fn is_partitioned(self) -> bool {
        matches!(self, Self::Unknown | Self::Control | Self::UserDefined)
    }
}

/// One token of the vocabulary.
#[derive(Debug, Clone)]
pub(super) struct SpmToken {
    /// As the vocabulary writes it, with `▁` for spaces.
    pub(super) text: String,
    /// Higher is merged first.
    pub(super) score: f32,
    /// What it is.
    pub(super) kind: TokenKind,
}

/// What goes around and before the pieces.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct SpmOptions {
    /// Put a space before text that starts a prompt or follows a special token.
    pub(super) add_space_prefix: bool,
    /// Put this token first.
    pub(super) bos: Option<u32>,
    /// Put this token last.
    pub(super) eos: Option<u32>,
}

/// The vocabulary and its encoder.
#[derive(Debug)]
pub(super) struct SpmVocabulary {
    tokens: Vec<SpmToken>,
    ids: HashMap<String, u32>,
    byte_ids: [u32; 256],
    longest: usize,
    partition: Partition,
    options: SpmOptions,
}

const SPACE: &str = "▁";

impl SpmVocabulary {
    /// A vocabulary of these tokens; a token's id is its place.
    pub(super) fn new(mut tokens: Vec<SpmToken>, options: SpmOptions) -> Result<Self, TextError> {
        let mut ids = HashMap::with_capacity(tokens.len());
        let mut partition = Partition::default();
        let mut unknown = None;
        for (id, token) in (0u32..).zip(&mut tokens) {
            if token.score.is_nan() {
                return Err(TextError::Gguf {
                    key: "tokenizer.ggml.scores".to_owned(),
                    problem: format!("the score of token {id} is not a number"),
                });
            }
            // -0 and 0 are one score.
            token.score += 0.0;
            if token.kind.is_partitioned() {
                partition.insert(&token.text, id);
            }
            if token.kind == TokenKind::Unknown {
                unknown.get_or_insert(id);
            }
            if !token.text.is_empty() {
                ids.insert(token.text.clone(), id);
            }
        }
        let mut byte_ids = [0; 256];
        for (byte, slot) in (0u8..=255).zip(&mut byte_ids) {
            let as_text = ids.get(char::from(byte).to_string().as_str()).copied();
            let as_text = as_text.filter(|_| byte.is_ascii());
            *slot = ids
                .get(&format!("<0x{byte:02X}>"))
                .copied()
                .or(as_text)
                .or(unknown)
                .ok_or_else(|| TextError::Gguf {
                    key: "tokenizer.ggml.tokens".to_owned(),
                    problem: format!("neither <0x{byte:02X}> nor an unknown token is there"),
                })?;
        }
        let longest = tokens.iter().map(|token| token.text.len()).max();
        Ok(Self {
            longest: longest.unwrap_or(0),
            tokens,
            ids,
            byte_ids,
            partition,
            options,
        })
    }

    /// How the vocabulary writes a token.
    pub(super) fn piece(&self, id: u32) -> Option<&str> {
        self.tokens
            .get(id as usize)
            .map(|token| token.text.as_str())
    }

    /// The bytes a token stands for in a text.
    pub(super) fn bytes(&self, id: u32) -> Option<Vec<u8>> {
        let token = self.tokens.get(id as usize)?;
        Some(match token.kind {
            TokenKind::Normal => token.text.replace(SPACE, " ").into_bytes(),
            TokenKind::Unknown | TokenKind::Control | TokenKind::UserDefined => {
                token.text.clone().into_bytes()
            }
            TokenKind::Unused => Vec::new(),
            TokenKind::Byte => {
                let digits = token.text.get(3..5).unwrap_or_default();
                u8::from_str_radix(digits, 16).into_iter().collect()
            }
        })
    }

    /// The tokens of a text.
    pub(super) fn encode(&self, text: &str, add_special: bool) -> Vec<u32> {
        let mut out = Vec::new();
        if add_special {
            out.extend(self.options.bos);
        }
        let mut follows_special = true;
        for fragment in self.partition.split(text) {
            match fragment {
                Fragment::Token(id) => {
                    out.push(id);
                    follows_special = true;
                }
                Fragment::Text(range) => {
                    let prefix = if self.options.add_space_prefix && follows_special {
                        SPACE
                    } else {
                        ""
                    };
                    let escaped = format!("{prefix}{}", text[range].replace(' ', SPACE));
                    Merger::new(self, &escaped).run(&mut out);
                    follows_special = false;
                }
            }
        }
        if add_special {
            out.extend(self.options.eos);
        }
        out
    }
}

/// A run of text that is one piece so far; its neighbours are a linked list.
#[derive(Debug, Clone, Copy)]
struct Symbol {
    start: usize,
    /// 0 when it has been merged into its left neighbour.
    len: usize,
    previous: Option<usize>,
    next: Option<usize>,
}

/// Two neighbours that together are a token.
#[derive(Debug, PartialEq)]
struct Pair {
    score: f32,
    left: usize,
    right: usize,
    len: usize,
}

impl Eq for Pair {}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Pair {
    /// The greatest has the highest score and, among equals, is leftmost.
    fn cmp(&self, other: &Self) -> Ordering {
        self.score
            .total_cmp(&other.score)
            .then_with(|| other.left.cmp(&self.left))
    }
}

/// Merges neighbours, best score first, until none are a token.
struct Merger<'a> {
    vocabulary: &'a SpmVocabulary,
    text: &'a str,
    symbols: Vec<Symbol>,
    queue: BinaryHeap<Pair>,
}

impl<'a> Merger<'a> {
    fn new(vocabulary: &'a SpmVocabulary, text: &'a str) -> Self {
        let mut symbols: Vec<Symbol> = text
            .char_indices()
            .enumerate()
            .map(|(i, (start, c))| Symbol {
                start,
                len: c.len_utf8(),
                previous: i.checked_sub(1),
                next: Some(i + 1),
            })
            .collect();
        if let Some(last) = symbols.last_mut() {
            last.next = None;
        }
        Self {
            vocabulary,
            text,
            symbols,
            queue: BinaryHeap::new(),
        }
    }

    fn run(mut self, out: &mut Vec<u32>) {
        for right in 1..self.symbols.len() {
            self.offer(Some(right - 1), Some(right));
        }
        while let Some(pair) = self.queue.pop() {
            self.merge(&pair);
        }
        let mut at = (!self.symbols.is_empty()).then_some(0);
        while let Some(i) = at {
            let symbol = self.symbols[i];
            let piece = &self.text[symbol.start..symbol.start + symbol.len];
            match self.vocabulary.ids.get(piece) {
                Some(&id) => out.push(id),
                None => {
                    let byte_id = |byte: u8| self.vocabulary.byte_ids[usize::from(byte)];
                    out.extend(piece.bytes().map(byte_id));
                }
            }
            at = symbol.next;
        }
    }

    /// Queues two neighbours if together they are a token.
    fn offer(&mut self, left: Option<usize>, right: Option<usize>) {
        let (Some(left), Some(right)) = (left, right) else {
            return;
        };
        let start = self.symbols[left].start;
        let len = self.symbols[left].len + self.symbols[right].len;
        if len > self.vocabulary.longest {
            return;
        }
        if let Some(&id) = self.vocabulary.ids.get(&self.text[start..start + len]) {
            self.queue.push(Pair {
                score: self.vocabulary.tokens[id as usize].score,
                left,
                right,
                len,
            });
        }
    }

    /// Merges a pair, unless one of its sides has changed since it was queued.
    fn merge(&mut self, pair: &Pair) {
        let (left, right) = (self.symbols[pair.left], self.symbols[pair.right]);
        if left.len == 0 || right.len == 0 || left.len + right.len != pair.len {
            return;
        }
        self.symbols[pair.left].len = pair.len;
        self.symbols[pair.left].next = right.next;
        self.symbols[pair.right].len = 0;
        if let Some(next) = right.next {
            self.symbols[next].previous = Some(pair.left);
        }
        self.offer(left.previous, Some(pair.left));
        self.offer(Some(pair.left), right.next);
    }
}

#[cfg(test)]
mod tests;

//! The tokens of texts, on disk, for what is around a token.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, BufWriter, Write},
    os::unix::fs::FileExt,
    path::Path,
    sync::Arc,
};

use steering_proto::Invalid;

use super::Place;

/// Tokens shown on each side.
const TOKENS_AROUND: u32 = 12;
/// Bytes of one token's text.
const TOKEN_LEN_MAX: usize = 64;
/// Different texts of tokens; most vocabularies are smaller.
const VOCABULARY_MAX: usize = 1 << 20;
/// Stands between texts.
const BREAK: u32 = u32::MAX;
const LEN: u32 = size_of::<u32>() as u32;

/// A token, and what is around it.
#[derive(Debug, Clone, PartialEq)]
pub struct Context {
    /// Activation at the token.
    pub activation: f32,
    /// What comes before it.
    pub before: String,
    /// The token.
    pub token: String,
    /// What comes behind it.
    pub after: String,
}

/// Tokens of texts, by number.
#[derive(Debug)]
pub struct Corpus {
    /// A number for each token and [`BREAK`] around each text, 32 bits each.
    file: BufWriter<File>,
    /// Entries of the file.
    len: u32,
    numbers: HashMap<Arc<str>, u32>,
    vocabulary: Vec<Arc<str>>,
}

impl Corpus {
    /// An empty one, in a file of a folder that is gone when this is.
    pub fn create(folder: &Path) -> io::Result<Self> {
        let mut corpus = Self {
            file: BufWriter::new(tempfile::tempfile_in(folder)?),
            len: 0,
            numbers: HashMap::new(),
            vocabulary: Vec::new(),
        };
        corpus.write(BREAK)?;
        Ok(corpus)
    }

    /// Adds a text's tokens. Returns the number of the first; the others follow.
    pub fn add<'a>(
        &mut self,
        tokens: impl ExactSizeIterator<Item = &'a str>,
    ) -> Result<u32, crate::Error> {
        let count = u32::try_from(tokens.len()).unwrap_or(u32::MAX);
        let first = self.len;
        if count >= BREAK - 1 - first {
            let text = format!("makes more than {} tokens in all; send fewer", BREAK - 2);
            return Err(Invalid::field("tokens", text).into());
        }
        for token in tokens {
            let number = self.number(token)?;
            self.write(number)?;
        }
        self.write(BREAK)?;
        Ok(first)
    }

    fn number(&mut self, token: &str) -> Result<u32, Invalid> {
        let token = &token[..token.floor_char_boundary(TOKEN_LEN_MAX)];
        if let Some(&number) = self.numbers.get(token) {
            return Ok(number);
        }
        if self.vocabulary.len() == VOCABULARY_MAX {
            let text = format!("have more than {VOCABULARY_MAX} different texts");
            return Err(Invalid::field("tokens", text));
        }
        let number = self.vocabulary.len() as u32;
        let token: Arc<str> = token.into();
        self.numbers.insert(token.clone(), number);
        self.vocabulary.push(token);
        Ok(number)
    }

    fn write(&mut self, entry: u32) -> io::Result<()> {
        self.len += 1;
        self.file.write_all(&entry.to_le_bytes())
    }

    /// Brings what was added to where [`Corpus::context`] finds it.
    pub fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }

    /// What is around a token that was added before the last flush.
    pub fn context(&self, place: Place) -> io::Result<Context> {
        let first = place.token.saturating_sub(TOKENS_AROUND);
        let end = place.token.saturating_add(TOKENS_AROUND + 1).min(self.len);
        let mut bytes = vec![0; (LEN * (end - first)) as usize];
        let offset = u64::from(LEN) * u64::from(first);
        self.file.get_ref().read_exact_at(&mut bytes, offset)?;
        let (entries, _) = bytes.as_chunks::<4>();
        let entries: Vec<u32> = entries.iter().map(|e| u32::from_le_bytes(*e)).collect();
        let at = (place.token - first) as usize;
        let start = entries[..at].iter().rposition(|&entry| entry == BREAK);
        let after = &entries[at + 1..];
        let stop = after.iter().position(|&entry| entry == BREAK);
        Ok(Context {
            activation: place.activation,
            before: self.text(&entries[start.map_or(0, |start| start + 1)..at]),
            token: self.text(&entries[at..=at]),
            after: self.text(&after[..stop.unwrap_or(after.len())]),
        })
    }

    fn text(&self, numbers: &[u32]) -> String {
        let texts = numbers.iter().map(|&number| {
            let token = self.vocabulary.get(number as usize);
            token.map_or("", |token| token.as_ref())
        });
        texts.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_ends_where_its_text_does() {
        let folder = tempfile::tempdir().expect("folder");
        let mut corpus = Corpus::create(folder.path()).expect("corpus");
        let long: Vec<String> = (0..40).map(|i| format!(" {i}")).collect();
        let mut firsts = Vec::new();
        for text in [&["a"][..], &["b", " c", " d"]] {
            firsts.push(corpus.add(text.iter().copied()).expect("added"));
        }
        firsts.push(corpus.add(long.iter().map(String::as_str)).expect("added"));
        corpus.flush().expect("flush");
        let context = |token| {
            let place = Place {
                activation: 2.0,
                text: 0,
                token,
            };
            let Context {
                activation: _,
                before,
                token,
                after,
            } = corpus.context(place).expect("context");
            (before, token, after)
        };
        let own = |parts: [&str; 3]| (parts[0].into(), parts[1].into(), parts[2].into());
        assert_eq!(context(firsts[0]), own(["", "a", ""]));
        assert_eq!(context(firsts[1] + 1), own(["b", " c", " d"]));
        let (before, token, after) = context(firsts[2] + 20);
        assert_eq!((before, token), (long[8..20].concat(), " 20".to_owned()));
        assert_eq!(after, long[21..33].concat());
        assert_eq!(context(firsts[2] + 39).2, "");
    }

    #[test]
    fn a_token_is_cut_between_characters() {
        let folder = tempfile::tempdir().expect("folder");
        let mut corpus = Corpus::create(folder.path()).expect("corpus");
        let first = corpus.add(["é".repeat(50).as_str()].into_iter());
        corpus.flush().expect("flush");
        let place = Place {
            token: first.expect("added"),
            ..Place::default()
        };
        assert_eq!(
            corpus.context(place).expect("context").token,
            "é".repeat(32)
        );
    }
}

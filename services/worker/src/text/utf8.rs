//! Bytes to text while they arrive.

use std::str;

/// Turns a stream of bytes into text: whole characters leave at once, the
/// start of a character waits for its rest, and what is not UTF-8 becomes
/// U+FFFD exactly as [`String::from_utf8_lossy`] over all bytes would have it.
#[derive(Debug, Default)]
pub(super) struct Utf8Stream {
    /// An unfinished character: at most three bytes.
    pending: Vec<u8>,
}

impl Utf8Stream {
    /// Appends to `out` the text that these bytes complete.
    pub(super) fn push(&mut self, bytes: &[u8], out: &mut String) {
        self.pending.extend_from_slice(bytes);
        let mut rest = self.pending.as_slice();
        loop {
            match str::from_utf8(rest) {
                Ok(text) => {
                    out.push_str(text);
                    rest = &[];
                    break;
                }
                Err(error) => {
                    let (valid, invalid) = rest.split_at(error.valid_up_to());
                    out.push_str(&String::from_utf8_lossy(valid));
                    rest = invalid;
                    let Some(len) = error.error_len() else {
                        break;
                    };
                    out.push(char::REPLACEMENT_CHARACTER);
                    rest = &rest[len..];
                }
            }
        }
        let kept = rest.len();
        self.pending.drain(..self.pending.len() - kept);
    }

    /// The end of the bytes: an unfinished character is one U+FFFD.
    pub(super) fn finish(&mut self, out: &mut String) {
        if !self.pending.is_empty() {
            out.push(char::REPLACEMENT_CHARACTER);
            self.pending.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn chunks_make_no_difference(chunks in prop::collection::vec(
            prop::collection::vec(prop_oneof![any::<u8>(), prop::sample::select(&b"a\xf0\x9f\x99\x82\xe4\xb8\xad\xc3\xa9"[..])], 0..6), 0..20))
        {
            let mut stream = Utf8Stream::default();
            let mut text = String::new();
            for chunk in &chunks {
                stream.push(chunk, &mut text);
                prop_assert!(stream.pending.len() < 4);
            }
            stream.finish(&mut text);
            let bytes = chunks.concat();
            prop_assert_eq!(text, String::from_utf8_lossy(&bytes));
        }
    }
}

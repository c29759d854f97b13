//! GPT-2's alphabet: a printable character for each byte.

/// The bytes a piece stands for; a piece with any other character stands for
/// its own UTF-8.
pub(super) fn bytes_of(piece: String) -> Vec<u8> {
    let bytes: Option<Vec<u8>> = piece.chars().map(byte_of).collect();
    bytes.unwrap_or_else(|| piece.into_bytes())
}

/// Printable Latin-1 characters are their own bytes. The other 68 bytes, in
/// order, are the characters from U+0100.
fn byte_of(c: char) -> Option<u8> {
    match u32::from(c) {
        code @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => u8::try_from(code).ok(),
        code @ 0x100..=0x120 => u8::try_from(code - 0x100).ok(),
        code @ 0x121..=0x142 => u8::try_from(code - 0x121 + 0x7f).ok(),
        0x143 => Some(0xad),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use tokenizers::pre_tokenizers::byte_level::ByteLevel;

    use super::*;

    #[test]
    fn the_alphabet_is_a_permutation_of_the_bytes() {
        let mut bytes: Vec<u8> = ByteLevel::alphabet()
            .into_iter()
            .filter_map(byte_of)
            .collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
        assert_eq!(bytes_of("Ġa\u{120}".to_owned()), b" a ");
        assert_eq!(bytes_of("Ċ".to_owned()), b"\n");
        assert_eq!(bytes_of("中".to_owned()), "中".as_bytes());
    }
}

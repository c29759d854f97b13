//! Page sizes and tokens. A token carries where a listing stopped and what
//! was listed, so that one of another listing is refused.

use serde::{Serialize, de::DeserializeOwned};
use steering_proto::{Invalid, payload::hex};

const PAGE_SIZE_MAX: u32 = 1000;
const TOKEN_LEN_MAX: usize = 64 << 10;

/// The page size to use: `default` where 0 is asked for.
pub(super) fn page_size(asked: u32, default: u32) -> Result<u32, Invalid> {
    match asked {
        0 => Ok(default),
        size if size <= PAGE_SIZE_MAX => Ok(size),
        size => Err(Invalid::field(
            "page_size",
            format!("is {size}; at most {PAGE_SIZE_MAX}"),
        )),
    }
}

/// A token for the place behind `cursor` in the listing `scope`.
pub(super) fn encode(scope: &str, cursor: &impl Serialize) -> String {
    // Strings and numbers always serialise.
    hex(&serde_json::to_vec(&(scope, cursor)).unwrap_or_default())
}

/// The cursor of a token; None for the first page.
pub(super) fn decode<T: DeserializeOwned>(scope: &str, token: &str) -> Result<Option<T>, Invalid> {
    if token.is_empty() {
        return Ok(None);
    }
    let bad = || {
        Invalid::field(
            "page_token",
            "is not a token of this listing; start again without one",
        )
    };
    let bytes = unhex(token).ok_or_else(bad)?;
    let (for_scope, cursor): (String, T) = serde_json::from_slice(&bytes).map_err(|_| bad())?;
    if for_scope == scope {
        Ok(Some(cursor))
    } else {
        Err(bad())
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if text.len() > TOKEN_LEN_MAX {
        return None;
    }
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let digit = |byte: u8| {
        char::from(byte)
            .to_digit(16)
            .and_then(|digit| u8::try_from(digit).ok())
    };
    if !rest.is_empty() {
        return None;
    }
    pairs
        .iter()
        .map(|&[high, low]| Some(digit(high)? << 4 | digit(low)?))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_belong_to_their_listing() {
        let token = encode("a", &("x", 3));
        assert_eq!(
            decode::<(String, i32)>("a", &token),
            Ok(Some(("x".to_owned(), 3)))
        );
        assert_eq!(decode::<(String, i32)>("a", ""), Ok(None));
        for (scope, token) in [
            ("b", token.as_str()),
            ("a", "zz"),
            ("a", "abc"),
            ("a", "00"),
            ("a", "é"),
        ] {
            assert!(
                decode::<(String, i32)>(scope, token).is_err(),
                "{scope} {token}"
            );
        }
        assert_eq!(page_size(0, 20), Ok(20));
        assert!(page_size(1001, 20).is_err());
    }
}

//! What a request is called: an id of its own, and its place in a W3C trace.

use http::HeaderMap;
use steering_proto::access::hex;

/// Names the request; answered with the same value.
pub(crate) const REQUEST_ID: &str = "x-request-id";
/// <https://www.w3.org/TR/trace-context/>
const TRACEPARENT: &str = "traceparent";
/// Longest id taken from a client.
const ID_LEN_MAX: usize = 128;

/// What a request is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Names {
    pub(crate) request_id: String,
    /// 32 hexadecimal digits; empty without a trace.
    pub(crate) trace_id: String,
    /// The caller's span, 16 hexadecimal digits; empty without a trace.
    pub(crate) parent_id: String,
    /// Whether the caller's trace is one of those that are kept.
    pub(crate) sampled: bool,
}

impl Names {
    /// From a request's headers; what is malformed counts as absent.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let given = text(REQUEST_ID).filter(|id| is_plain(id));
        let request_id = given.map_or_else(|| hex(&rand::random::<[u8; 8]>()), str::to_owned);
        let (trace_id, parent_id, sampled) =
            text(TRACEPARENT).and_then(traceparent).unwrap_or_default();
        Self {
            request_id,
            trace_id: trace_id.to_owned(),
            parent_id: parent_id.to_owned(),
            sampled,
        }
    }
}

fn is_plain(id: &str) -> bool {
    (1..=ID_LEN_MAX).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic())
}

/// Trace id, parent id and the first flag of `version-trace-parent-flags`.
fn traceparent(text: &str) -> Option<(&str, &str, bool)> {
    let mut parts = text.split('-');
    let (version, trace, parent, flags) =
        (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let is_hex = |part: &str, len| {
        part.len() == len
            && part
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    let is_id = |part: &str, len| is_hex(part, len) && part.bytes().any(|b| b != b'0');
    // Later versions may have more parts; version 0 has four.
    let known =
        is_hex(version, 2) && version != "ff" && (version != "00" || parts.next().is_none());
    let sound = known && is_id(trace, 32) && is_id(parent, 16) && is_hex(flags, 2);
    let sampled = u8::from_str_radix(flags, 16).is_ok_and(|flags| flags & 1 == 1);
    sound.then_some((trace, parent, sampled))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traceparents_are_taken_or_ignored() {
        let (trace, parent) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
        let good = format!("00-{trace}-{parent}-01");
        assert_eq!(traceparent(&good), Some((trace, parent, true)));
        let unsampled = format!("00-{trace}-{parent}-02");
        assert_eq!(traceparent(&unsampled), Some((trace, parent, false)));
        let wrong = [
            format!("00-{trace}-{parent}"),
            format!("00-{trace}-{parent}-01-more"),
            format!("ff-{trace}-{parent}-01"),
            format!("00-{}-{parent}-01", "0".repeat(32)),
            format!("00-{}-{parent}-01", trace.to_uppercase()),
            String::new(),
        ];
        for text in wrong {
            assert_eq!(traceparent(&text), None, "{text}");
        }
    }

    #[test]
    fn ids_are_given_or_made() {
        let mut headers = HeaderMap::new();
        let made = Names::of(&headers).request_id;
        assert_eq!(made.len(), 16);
        assert_ne!(made, Names::of(&headers).request_id);
        headers.insert(REQUEST_ID, "mine-1".parse().expect("value"));
        assert_eq!(Names::of(&headers).request_id, "mine-1");
        headers.insert(REQUEST_ID, "two words".parse().expect("value"));
        assert_ne!(Names::of(&headers).request_id, "two words");
    }
}

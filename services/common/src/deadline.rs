//! gRPC's `grpc-timeout` header, and the service's own limit on it.

use std::time::Duration;

use http::{HeaderMap, HeaderValue};

const HEADER: &str = "grpc-timeout";

/// The time that a client gives a request, if it says so in gRPC's way.
pub fn timeout(headers: &HeaderMap) -> Option<Duration> {
    parse(headers.get(HEADER)?.to_str().ok()?)
}

/// Lowers the time that a request has to `most`: whoever reads the header later sees
/// the limit as if the client had asked for it.
pub(crate) fn limit(headers: &mut HeaderMap, most: Duration) {
    if timeout(headers).is_some_and(|given| given <= most) {
        return;
    }
    let value = HeaderValue::from_str(&format!("{}S", most.as_secs()));
    if let Ok(value) = value {
        headers.insert(HEADER, value);
    }
}

/// At most eight digits and a unit.
fn parse(header: &str) -> Option<Duration> {
    let (digits, unit) = header.split_at_checked(header.len().checked_sub(1)?)?;
    if digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let n: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(n * 3600)),
        "M" => Some(Duration::from_secs(n * 60)),
        "S" => Some(Duration::from_secs(n)),
        "m" => Some(Duration::from_millis(n)),
        "u" => Some(Duration::from_micros(n)),
        "n" => Some(Duration::from_nanos(n)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_have_eight_digits_and_a_unit() {
        assert_eq!(parse("250m"), Some(Duration::from_millis(250)));
        assert_eq!(parse("3S"), Some(Duration::from_secs(3)));
        for wrong in ["", "S", "-1S", "123456789S", "1s", "1 S", "5é"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_shorter_time_counts() {
        let limited = |given: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            if let Some(given) = given {
                headers.insert(HEADER, HeaderValue::from_static(given));
            }
            limit(&mut headers, Duration::from_secs(60));
            timeout(&headers)
        };
        assert_eq!(limited(None), Some(Duration::from_secs(60)));
        assert_eq!(limited(Some("5M")), Some(Duration::from_secs(60)));
        assert_eq!(limited(Some("nonsense")), Some(Duration::from_secs(60)));
        assert_eq!(limited(Some("2S")), Some(Duration::from_secs(2)));
    }
}

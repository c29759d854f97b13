//! Waiting for what a client sends.

use std::time::Duration;

use tonic::Status;

/// A stream's next message, if it comes in time: whoever sends it holds what others wait for.
pub(super) async fn patiently<T>(
    patience: Duration,
    message: impl Future<Output = Result<T, Status>>,
) -> Result<T, Status> {
    let message = tokio::time::timeout(patience, message).await;
    message.map_err(|_| {
        let text = format!("no message came for {} s", patience.as_secs());
        Status::deadline_exceeded(text)
    })?
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    #[tokio::test]
    async fn a_message_that_does_not_come_is_not_waited_for() {
        let patience = Duration::from_millis(10);
        let late = patiently::<()>(patience, std::future::pending()).await;
        assert_eq!(late.expect_err("late").code(), Code::DeadlineExceeded);
        let there = patiently(patience, async { Ok(1) }).await;
        assert_eq!(there.expect("in time"), 1);
    }
}

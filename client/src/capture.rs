//! The activations of texts, as they come.

use std::{collections::BTreeMap, fmt, sync::Arc};

use futures::{Stream, StreamExt, stream};
use tokio::sync::Semaphore;
use tonic::{CancellationHandle, Request, Streaming};

use crate::{Client, Error, Service, v1};

/// Answers to the texts of [`Client::capture_activations`]. Dropping it cancels the rest.
pub struct CaptureStream {
    inner: Streaming<v1::CaptureActivationsResponse>,
    client: Client,
    /// One for every text that may be sent.
    permits: Arc<Semaphore>,
    summary: Option<v1::CaptureSummary>,
    /// The text that is next in order, and answers that came before its.
    due: u64,
    held: BTreeMap<u64, v1::CapturedText>,
    _cancelled: CancelledOnDrop,
}

impl fmt::Debug for CaptureStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CaptureStream")
            .field("summary", &self.summary)
            .finish_non_exhaustive()
    }
}

impl CaptureStream {
    pub(crate) fn new(
        inner: Streaming<v1::CaptureActivationsResponse>,
        client: Client,
        permits: Arc<Semaphore>,
        cancelled: CancelledOnDrop,
    ) -> Self {
        Self {
            inner,
            client,
            permits,
            summary: None,
            due: 0,
            held: BTreeMap::new(),
            _cancelled: cancelled,
        }
    }

    /// The next text's activations, or why it has none; none after the last.
    ///
    /// # Errors
    /// If the worker fails, or its stream does not end with a summary.
    pub async fn next(&mut self) -> Result<Option<v1::CapturedText>, Error> {
        let text = self.receive().await?;
        if text.is_some() {
            self.permits.add_permits(1);
        }
        Ok(text)
    }

    /// As [`CaptureStream::next`], in order of the texts' ids, which count from 0. Answers
    /// that come early are held, and count as under way.
    ///
    /// # Errors
    /// As [`CaptureStream::next`]; and if an answer is missing, or comes twice.
    pub async fn next_in_order(&mut self) -> Result<Option<v1::CapturedText>, Error> {
        loop {
            if let Some(text) = self.held.remove(&self.due) {
                self.due += 1;
                self.permits.add_permits(1);
                return Ok(Some(text));
            }
            match self.receive().await? {
                Some(text) if text.id >= self.due && !self.held.contains_key(&text.id) => {
                    self.held.insert(text.id, text);
                }
                None if self.held.is_empty() => return Ok(None),
                _ => return Err(contract("answered a text twice or not at all")),
            }
        }
    }

    async fn receive(&mut self) -> Result<Option<v1::CapturedText>, Error> {
        use v1::capture_activations_response::Message;
        loop {
            let message = self.inner.message().await;
            let message = message.map_err(|status| self.client.worker_failed(status))?;
            let Some(v1::CaptureActivationsResponse { message }) = message else {
                let ended = self.summary.is_some().then_some(None);
                return ended.ok_or_else(|| contract("ended a capture without its summary"));
            };
            match message {
                Some(Message::Text(_)) if self.summary.is_some() => {
                    return Err(contract("went on with a capture after its summary"));
                }
                Some(Message::Text(text)) => return Ok(Some(text)),
                Some(Message::Summary(summary)) => self.summary = Some(summary),
                None => return Err(contract("sent a capture message of an unknown kind")),
            }
        }
    }

    /// What became of the texts, once the last was read.
    pub fn summary(&self) -> Option<&v1::CaptureSummary> {
        self.summary.as_ref()
    }
}

/// Ends a call when dropped. Dropping the answers alone does not, as long as requests
/// may follow: both ends would keep the stream until the connection closes.
pub(crate) struct CancelledOnDrop(CancellationHandle);

impl CancelledOnDrop {
    pub(crate) fn call<T>(request: &mut Request<T>) -> Self {
        Self(request.cancellation_handle())
    }
}

impl Drop for CancelledOnDrop {
    fn drop(&mut self) {
        self.0.clone().cancel();
    }
}

fn contract(what: &str) -> Error {
    Error::contract(Service::Worker, what)
}

/// The messages of a capture: the configuration, then a text for every permit.
pub(crate) fn requests(
    config: v1::CaptureConfig,
    texts: impl Stream<Item = v1::CaptureText> + Send + 'static,
    permits: Arc<Semaphore>,
) -> impl Stream<Item = v1::CaptureActivationsRequest> + Send + 'static {
    use v1::capture_activations_request::Message;
    let texts = texts.then(move |text| {
        let permits = permits.clone();
        async move {
            // Given back when the text is answered. The semaphore is never closed.
            if let Ok(permit) = permits.acquire().await {
                permit.forget();
            }
            Message::Text(text)
        }
    });
    let messages = stream::once(async { Message::Config(config) }).chain(texts);
    messages.map(|message| v1::CaptureActivationsRequest {
        message: Some(message),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn no_more_texts_are_taken_than_may_be_under_way() {
        let permits = Arc::new(Semaphore::new(2));
        let texts = stream::iter((0..4).map(|id| v1::CaptureText { id, prompt: None }));
        let config = v1::CaptureConfig::default();
        let mut sent = Box::pin(requests(config, texts, permits.clone()));
        for _ in 0..3 {
            assert!(
                sent.next().await.is_some(),
                "the configuration and two texts"
            );
        }
        assert!(futures::poll!(sent.next()).is_pending());
        permits.add_permits(1);
        assert!(sent.next().await.is_some());
        assert!(futures::poll!(sent.next()).is_pending());
        permits.add_permits(1);
        assert!(sent.next().await.is_some());
        assert!(sent.next().await.is_none());
    }
}

//! `CaptureActivations`: texts in, activations out, both in streams.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use steering_proto::{
    Invalid,
    capture::{CaptureConfig, CaptureText, Pooling},
    invalid::required,
    v1::{self, capture_activations_request::Message},
};
use tokio::sync::mpsc;
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tonic::{Status, Streaming};

use super::{Responses, blocking, generate::events};
use crate::{
    engine::{Event, Job, SubmitError},
    error::RequestError,
    steering::Collected,
    worker::{Capturing, Worker},
};

/// Texts of one stream in the engine at the same time.
const IN_FLIGHT: usize = 16;
/// How long a text waits before it is offered to a full engine again.
const RETRY: Duration = Duration::from_millis(10);

type Sender = mpsc::Sender<Result<v1::CaptureActivationsResponse, Status>>;

/// Reads the configuration, then answers texts until the client has sent all.
pub(super) async fn respond(
    mut requests: Streaming<v1::CaptureActivationsRequest>,
    worker: &Arc<Worker>,
    deadline: Option<Instant>,
) -> Result<Responses<v1::CaptureActivationsResponse>, Status> {
    let Some(Message::Config(wire)) = next(&mut requests).await? else {
        let text = "must be in the first message of the stream";
        return Err(Invalid::field("config", text).into());
    };
    let config = CaptureConfig::try_from(wire).map_err(|e| e.within("config"))?;
    let width = worker.check_capture(&config)?;
    let (sender, responses) = mpsc::channel(IN_FLIGHT);
    let stream = CaptureStream {
        worker: worker.clone(),
        config,
        width,
        deadline,
    };
    tokio::spawn(async move {
        let closed = sender.clone();
        tokio::select! {
            () = stream.run(requests, sender) => {}
            () = closed.closed() => {} // whoever asked has gone
        }
    });
    Ok(Box::pin(ReceiverStream::new(responses)))
}

async fn next(
    requests: &mut Streaming<v1::CaptureActivationsRequest>,
) -> Result<Option<Message>, Status> {
    match requests.message().await? {
        None => Ok(None),
        Some(v1::CaptureActivationsRequest { message }) => Ok(Some(required(message, "message")?)),
    }
}

struct CaptureStream {
    worker: Arc<Worker>,
    config: CaptureConfig,
    width: usize,
    deadline: Option<Instant>,
}

impl CaptureStream {
    async fn run(self, requests: Streaming<v1::CaptureActivationsRequest>, sender: Sender) {
        let result = match self.answer_all(requests, &sender).await {
            Ok(summary) => Ok(response(
                v1::capture_activations_response::Message::Summary(summary),
            )),
            Err(status) => Err(status),
        };
        // An error means that nobody listens any more.
        let _ = sender.send(result).await;
    }

    /// Keeps [`IN_FLIGHT`] texts in the engine and sends what comes back.
    async fn answer_all(
        &self,
        mut requests: Streaming<v1::CaptureActivationsRequest>,
        sender: &Sender,
    ) -> Result<v1::CaptureSummary, Status> {
        let mut summary = v1::CaptureSummary {
            width: self.width as u32,
            ..Default::default()
        };
        let mut reading = tokio::task::JoinSet::new();
        let mut more = true;
        while more || !reading.is_empty() {
            tokio::select! {
                message = next(&mut requests), if more && reading.len() < IN_FLIGHT => {
                    match message? {
                        None => more = false,
                        Some(Message::Text(wire)) => {
                            let text = CaptureText::try_from(wire).map_err(|e| e.within("text"))?;
                            let capturing = self.submit(text).await?;
                            reading.spawn(collect(capturing));
                        }
                        Some(Message::Config(_)) => {
                            let text = "can be sent once only, first";
                            return Err(Invalid::field("config", text).into());
                        }
                    }
                }
                Some(read) = reading.join_next(), if !reading.is_empty() => {
                    let read = read.map_err(|e| Status::internal(format!("internal error: {e}")))?;
                    let text = self.answer(read?, &mut summary);
                    let text = v1::capture_activations_response::Message::Text(text);
                    if sender.send(Ok(response(text))).await.is_err() {
                        return Ok(summary); // whoever asked has gone
                    }
                }
            }
        }
        Ok(summary)
    }

    /// Hands a text to the engine, waiting while its queue is full: the stream
    /// as a whole was accepted.
    async fn submit(&self, text: CaptureText) -> Result<Capturing, Status> {
        let (config, deadline, id) = (self.config, self.deadline, text.id);
        let (capturing, job): (Capturing, Job) = blocking(&self.worker, move |worker| {
            worker
                .prepare_capture(&config, text, deadline)
                .map_err(|e| e.within(&format!("text (id {id})")))
        })
        .await?;
        loop {
            match self.worker.submit(job.clone()) {
                Ok(()) => return Ok(capturing),
                Err(SubmitError::Full { .. }) => tokio::time::sleep(RETRY).await,
                Err(stopped) => return Err(RequestError::from(stopped).into()),
            }
        }
    }

    fn answer(&self, read: Read, summary: &mut v1::CaptureSummary) -> v1::CapturedText {
        let Read {
            id,
            tokens,
            collected,
        } = read;
        let per_token = self.config.pooling == Pooling::PerToken;
        let scale = if per_token { 1 } else { collected.tokens };
        let values = collected.values.iter().map(|v| (v / scale as f64) as f32);
        let mut values: Vec<f32> = values.collect();
        let dropped = if collected.tokens == 0 {
            summary.dropped_too_short += 1;
            v1::CaptureDrop::TooShort
        } else if values.iter().any(|v| !v.is_finite()) {
            summary.dropped_not_finite += 1;
            v1::CaptureDrop::NotFinite
        } else {
            summary.captured += 1;
            v1::CaptureDrop::Unspecified
        };
        summary.tokens += tokens.len() as u64;
        let kept = dropped == v1::CaptureDrop::Unspecified;
        if !kept {
            values.clear();
        }
        v1::CapturedText {
            id,
            dropped: dropped.into(),
            n_tokens: tokens.len() as u32,
            values,
            token_ids: if kept && per_token {
                tokens.to_vec()
            } else {
                Vec::new()
            },
        }
    }
}

/// A text that the engine has read.
struct Read {
    id: u64,
    tokens: Arc<[u32]>,
    collected: Collected,
}

/// Waits until the engine has read a text.
async fn collect(capturing: Capturing) -> Result<Read, Status> {
    let Capturing {
        id,
        tokens,
        outcome,
    } = capturing;
    let mut events = std::pin::pin!(events(outcome));
    match events.next().await {
        Some(Ok(Event::Captured(collected))) => Ok(Read {
            id,
            tokens,
            collected,
        }),
        Some(Err(status)) => Err(status),
        Some(Ok(_)) | None => Err(Status::internal("internal error: the engine stopped")),
    }
}

fn response(message: v1::capture_activations_response::Message) -> v1::CaptureActivationsResponse {
    v1::CaptureActivationsResponse {
        message: Some(message),
    }
}

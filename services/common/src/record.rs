//! A request from its first byte to its last: counted and logged when it ends.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, Response};
use http_body::{Body as _, Frame, SizeHint};
use steering_proto::access::{Access, access};
use tokio::time::{Sleep, sleep_until};
use tonic::{Code, Status, body::Body};

use crate::{
    metrics::Metrics,
    quota::Permit,
    refusal::Refusal,
    span::{RequestSpan, Spans},
    trace::Names,
};

/// Where the log says what was asked for: `--log steer::request=off` silences it.
const TARGET: &str = "steer::request";
/// What metrics call what is not known, so that nobody can make up labels.
const OTHER: &str = "other";

/// What is known of a request; written down when dropped.
#[derive(Debug)]
pub(crate) struct Record {
    metrics: Metrics,
    names: Names,
    span: RequestSpan,
    service: String,
    method: String,
    quiet: bool,
    key: Option<String>,
    refused: Option<&'static str>,
    /// How many refusals before this one have no line.
    left_out: Option<u64>,
    began: Instant,
    /// None until the end: a response that is dropped before was cancelled.
    code: Option<Code>,
    _permit: Option<Permit>,
}

impl Record {
    pub(crate) fn begin(
        metrics: Metrics,
        spans: Option<&Spans>,
        path: &str,
        mut names: Names,
    ) -> Self {
        metrics.begun();
        let known = access(path);
        let (service, method) = known
            .and(path.strip_prefix('/'))
            .and_then(|path| path.split_once('/'))
            .unwrap_or((OTHER, OTHER));
        // Probes ask every few seconds; they are worth neither a line nor a span.
        let quiet = known == Some(Access::Open);
        let span = match spans {
            Some(spans) if !quiet => spans.begin(service, method, &mut names),
            _ => RequestSpan::default(),
        };
        Self {
            metrics,
            names,
            span,
            service: service.to_owned(),
            method: method.to_owned(),
            quiet,
            key: None,
            refused: None,
            left_out: None,
            began: Instant::now(),
            code: None,
            _permit: None,
        }
    }

    /// Notes who asks.
    pub(crate) fn of(&mut self, key: &str) {
        self.key = Some(key.to_owned());
    }

    /// Notes why it is turned away, or cut.
    pub(crate) fn refused(&mut self, reason: &'static str) {
        self.refused = Some(reason);
    }

    /// Notes that it is one of many of its kind, of which a few have a line: this one has
    /// none, or stands for so many before it.
    pub(crate) fn one_of_many(&mut self, line: Option<u64>) {
        self.quiet |= line.is_none();
        self.left_out = line;
    }

    /// Keeps a place in a quota for as long as the request takes.
    pub(crate) fn hold(&mut self, permit: Option<Permit>) {
        self._permit = permit;
    }

    /// Where the request's span is told more.
    pub(crate) fn span(&self) -> RequestSpan {
        self.span.clone()
    }

    /// What the request is called, in the log and in its span.
    pub(crate) fn names(&self) -> &Names {
        &self.names
    }

    fn note(&mut self, headers: &HeaderMap) {
        if let Some(code) = headers.get(Status::GRPC_STATUS) {
            self.code = Some(Code::from_bytes(code.as_bytes()));
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let took = self.began.elapsed();
        let code = self.code.unwrap_or(Code::Cancelled);
        self.metrics.ended(&self.service, &self.method, code, took);
        let Names {
            request_id,
            trace_id,
            parent_id,
            sampled: _,
        } = &self.names;
        self.span.end(code);
        let (service, method) = (&self.service, &self.method);
        let key = self.key.as_deref().unwrap_or_default();
        let (reason, left_out, seconds) = (self.refused, self.left_out, took.as_secs_f64());
        if self.quiet {
            tracing::debug!(target: TARGET, service, method, ?code, seconds, "answered");
        } else {
            tracing::info!(
                target: TARGET,
                service, method, ?code, reason, left_out, seconds, key, request_id, trace_id,
                parent_id,
                "answered"
            );
        }
    }
}

/// A response's body with the record of its request.
#[derive(Debug)]
pub(crate) struct Recorded {
    body: Body,
    /// When the request has taken as long as it may, and how long that is.
    limit: Option<(Pin<Box<Sleep>>, Duration)>,
    record: Record,
}

impl Recorded {
    /// `most`: the time that the request may take, from when it began.
    pub(crate) fn wrap(
        response: Response<Body>,
        mut record: Record,
        most: Option<Duration>,
    ) -> Response<Body> {
        record.note(response.headers());
        let (parts, body) = response.into_parts();
        let limit = most.filter(|_| !record.quiet).map(|most| {
            let end = record.began + most;
            (Box::pin(sleep_until(end.into())), most)
        });
        // An empty body is never polled: the record ends here.
        let body = if body.is_end_stream() {
            body
        } else {
            Body::new(Self {
                body,
                limit,
                record,
            })
        };
        Response::from_parts(parts, body)
    }
}

impl http_body::Body for Recorded {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        if let Some((end, most)) = &mut this.limit
            && end.as_mut().poll(context).is_ready()
        {
            let refusal = Refusal::TooLong { most: *most };
            let trailers = refusal.trailers();
            this.record.refused(refusal.reason());
            this.limit = None;
            // Whoever still writes to it finds that nobody reads.
            this.body = Body::empty();
            this.record.note(&trailers);
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        let frame = ready!(Pin::new(&mut this.body).poll_frame(context));
        if let Some(Ok(frame)) = &frame
            && let Some(trailers) = frame.trailers_ref()
        {
            this.record.note(trailers);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

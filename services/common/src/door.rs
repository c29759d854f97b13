//! The door: every request comes in here, before any service sees it.
//!
//! It is named, its caller checked, its quota counted; it is refused while the service
//! loads or stops; and when its response has ended, that is counted and logged. What a
//! request or a response *says* is never looked at.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
    time::Duration,
};

use http::{HeaderValue, Request, Response};
use steering_proto::access::{Access, Scope, access};
use tokio::sync::watch;
use tonic::{Status, body::Body, service::Routes};
use tower::Service;
use tracing::Instrument;

use crate::{
    deadline,
    keys::KeyRing,
    metrics::Metrics,
    queue::Queue,
    quota::{Permit, Quotas},
    record::{Record, Recorded},
    refusal::Refusal,
    span::Spans,
    trace::{Names, REQUEST_ID},
    watch::Latest,
};

/// How far the service is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Loading,
    Serving,
    /// Says NOT_SERVING and serves on, until load balancers have noticed.
    Draining,
    /// Requests are refused; those that run go on.
    Refusing,
    /// The same, and connections are told to go.
    Stopping,
}

/// What the door knows.
#[derive(Debug)]
pub(crate) struct Door {
    /// None lets everybody in.
    pub(crate) keys: Option<Latest<KeyRing>>,
    pub(crate) quotas: Quotas,
    pub(crate) metrics: Metrics,
    /// None where spans go nowhere.
    pub(crate) spans: Option<Spans>,
    pub(crate) phase: watch::Receiver<Phase>,
    pub(crate) max_request_time: Option<Duration>,
    /// Health and reflection.
    pub(crate) common: Routes,
    /// The service, once it has loaded.
    pub(crate) own: OnceLock<Own>,
}

/// A service that has loaded.
#[derive(Debug)]
pub(crate) struct Own {
    pub(crate) routes: Routes,
    pub(crate) queue: Option<Queue>,
}

/// Why a request goes no further.
enum TurnedAway<'a> {
    Refused(Refusal),
    Full(&'a Queue),
}

impl From<Refusal> for TurnedAway<'_> {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// The door as tonic takes it.
#[derive(Debug, Clone)]
pub(crate) struct Entrance(pub(crate) Arc<Door>);

impl Service<Request<Body>> for Entrance {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let door = self.0.clone();
        Box::pin(async move { Ok(door.pass(request).await) })
    }
}

impl Door {
    async fn pass(&self, mut request: Request<Body>) -> Response<Body> {
        let path = request.uri().path().to_owned();
        let names = Names::of(request.headers());
        let id = HeaderValue::from_str(&names.request_id);
        let metrics = self.metrics.clone();
        let mut record = Record::begin(metrics, self.spans.as_ref(), &path, names);
        let response = match self.admit(request.headers(), &path, &mut record) {
            Err(turned_away) => self.turn_away(&turned_away, &mut record),
            Ok(permit) => {
                record.hold(permit);
                request.extensions_mut().insert(record.span());
                let Names {
                    request_id,
                    trace_id,
                    ..
                } = record.names();
                let span = tracing::info_span!("request", id = request_id, trace_id);
                let answered = self.in_time(request, &path, &mut record);
                answered.instrument(span).await
            }
        };
        let mut response = Recorded::wrap(response, record, self.max_request_time);
        if let Ok(id) = id {
            response.headers_mut().insert(REQUEST_ID, id);
        }
        response
    }

    /// Lets a request in, or not. Who asks is noted as soon as it is known.
    fn admit(
        &self,
        headers: &http::HeaderMap,
        path: &str,
        record: &mut Record,
    ) -> Result<Option<Permit>, TurnedAway<'_>> {
        // What nobody has declared, nobody but an administrator may call.
        let access = access(path).unwrap_or(Access::Scope(Scope::Admin));
        if access == Access::Open {
            return Ok(None);
        }
        let ring = self.keys.as_ref().map(|keys| keys.borrow().clone());
        let key = ring.as_ref().map(|ring| ring.find(headers)).transpose()?;
        if let Some(key) = key {
            record.of(&key.id);
            key.check(access)?;
        }
        match *self.phase.borrow() {
            Phase::Loading if access != Access::AnyKey => return Err(Refusal::Loading.into()),
            Phase::Loading | Phase::Serving | Phase::Draining => {}
            Phase::Refusing | Phase::Stopping => return Err(Refusal::Stopping.into()),
        }
        let permit = key.map(|key| self.quotas.enter(key)).transpose()?;
        match self.own.get().and_then(|own| own.queue.as_ref()) {
            Some(queue) if queue.refuses(path) => Err(TurnedAway::Full(queue)),
            _ => Ok(permit.flatten()),
        }
    }

    fn turn_away(&self, why: &TurnedAway<'_>, record: &mut Record) -> Response<Body> {
        let (reason, response) = match why {
            TurnedAway::Refused(refusal) => (refusal.reason(), Status::from(*refusal).into_http()),
            TurnedAway::Full(queue) => {
                record.one_of_many(queue.line());
                (queue.reason(), queue.refusal())
            }
        };
        self.metrics.refused(reason);
        record.refused(reason);
        response
    }

    /// Bounds the time until a response begins. Whoever works on it sees the bound in the
    /// header; the response itself is cut by [`Recorded`].
    async fn in_time(
        &self,
        mut request: Request<Body>,
        path: &str,
        record: &mut Record,
    ) -> Response<Body> {
        let Some(most) = self.max_request_time else {
            return self.answer(request, path).await;
        };
        deadline::limit(request.headers_mut(), most);
        let answer = tokio::time::timeout(most, self.answer(request, path)).await;
        answer.unwrap_or_else(|_| {
            let refusal = Refusal::TooLong { most };
            record.refused(refusal.reason());
            Status::from(refusal).into_http()
        })
    }

    async fn answer(&self, request: Request<Body>, path: &str) -> Response<Body> {
        let routes = match access(path) {
            Some(Access::Open | Access::AnyKey) => Some(&self.common),
            Some(Access::Scope(_)) | None => self.own.get().map(|own| &own.routes),
        };
        let Some(mut routes) = routes.cloned() else {
            return Status::from(Refusal::Loading).into_http();
        };
        match routes.call(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }
}

#[cfg(test)]
mod tests;

//! Spans of requests, sent to an OpenTelemetry collector.
//!
//! A span says what the request's line in the log says, and what a service adds by
//! [`RequestSpan::note`]; never what was asked or answered. Ended spans wait in a bounded
//! queue for a thread that sends them: where the collector is slow or gone, spans are
//! dropped and requests notice nothing.

use std::{env, time::Duration};

use opentelemetry::{
    Context, KeyValue, Value,
    trace::{
        SpanBuilder, SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceFlags, TraceId,
        TraceState, Tracer, TracerProvider,
    },
};
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::{
    Resource,
    trace::{SdkTracer, SdkTracerProvider},
};
use tonic::Code;

use crate::trace::Names;

/// How long the last spans may take to be sent when the service stops.
const FLUSH_MAX: Duration = Duration::from_secs(3);

/// Where spans go.
#[derive(Debug)]
pub(crate) struct Spans {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

impl Spans {
    /// To a collector at this URL. OpenTelemetry's own variables say the rest: headers,
    /// sampler, queue, resource attributes.
    pub(crate) fn to(endpoint: &str, program: &'static str) -> Result<Self, String> {
        let exporter = SpanExporter::builder()
            .with_tonic()
            .with_endpoint(endpoint)
            .build()
            .map_err(|error| format!("--otlp-endpoint {endpoint}: {error}"))?;
        let name = env::var("OTEL_SERVICE_NAME").unwrap_or_default();
        let name = if name.is_empty() {
            program.to_owned()
        } else {
            name
        };
        let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
        let resource = Resource::builder()
            .with_service_name(name)
            .with_attribute(version)
            .build();
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(resource)
            .build();
        let tracer = provider.tracer("steer");
        Ok(Self { provider, tracer })
    }

    /// Begins the span of a request, as the caller's trace goes on. A request without a
    /// trace begins one, and is named by it from now on.
    pub(crate) fn begin(&self, service: &str, method: &str, names: &mut Names) -> RequestSpan {
        let parent = match parent(names) {
            Some(parent) => Context::new().with_remote_span_context(parent),
            None => Context::new(),
        };
        let text = |name, value: &str| KeyValue::new(name, value.to_owned());
        let builder = SpanBuilder::from_name(format!("{service}/{method}"))
            .with_kind(SpanKind::Server)
            .with_attributes([
                text("rpc.system", "grpc"),
                text("rpc.service", service),
                text("rpc.method", method),
                text("steer.request_id", &names.request_id),
            ]);
        let span = self.tracer.build_with_context(builder, &parent);
        let context = Context::new().with_span(span);
        names.trace_id = context.span().span_context().trace_id().to_string();
        RequestSpan(Some(context))
    }

    /// Sends what waits, in bounded time; no more are taken.
    pub(crate) async fn flush(&self) {
        let provider = self.provider.clone();
        let sent =
            tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(FLUSH_MAX)).await;
        if !matches!(sent, Ok(Ok(()))) {
            tracing::warn!("the last spans could not be sent: {sent:?}");
        }
    }
}

/// The caller's span.
fn parent(names: &Names) -> Option<SpanContext> {
    let trace = TraceId::from_hex(&names.trace_id).ok()?;
    let span = SpanId::from_hex(&names.parent_id).ok()?;
    let flags = TraceFlags::default().with_sampled(names.sampled);
    Some(SpanContext::new(trace, span, flags, true, TraceState::NONE))
}

/// The span of a request under way, among the request's extensions. Notes nothing where
/// spans go nowhere.
#[derive(Debug, Clone, Default)]
pub struct RequestSpan(Option<Context>);

impl RequestSpan {
    /// Adds an attribute. Never anything that was asked or answered.
    pub fn note(&self, name: &'static str, value: impl Into<Value>) {
        if let Some(context) = &self.0 {
            context.span().set_attribute(KeyValue::new(name, value));
        }
    }

    pub(crate) fn end(&self, code: Code) {
        let Some(context) = &self.0 else { return };
        let span = context.span();
        span.set_attribute(KeyValue::new(
            "rpc.grpc.status_code",
            i64::from(code as i32),
        ));
        if is_servers_fault(code) {
            // Without the message, which may quote the request.
            span.set_status(Status::error(format!("{code:?}")));
        }
        span.end();
    }
}

/// As OpenTelemetry's conventions for gRPC servers have it.
fn is_servers_fault(code: Code) -> bool {
    matches!(
        code,
        Code::Unknown
            | Code::DeadlineExceeded
            | Code::Unimplemented
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss
    )
}

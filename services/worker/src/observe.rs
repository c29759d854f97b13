//! Metrics of the worker, named as OpenTelemetry's conventions for generative AI name
//! them. A token costs a comparison; clocks are read at the first and the last.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use steering_service::{
    Metrics, RequestSpan,
    metrics::SECONDS,
    prometheus::{
        self, Histogram, HistogramOpts, IntCounter, IntGauge, Opts,
        core::{Collector, Desc},
        proto::MetricFamily,
    },
};

use crate::{
    engine::{EngineHandle, Event, Finish, TokenEvent},
    worker::{Accepted, Worker},
};

const OPERATION: &str = "text_completion";

/// Where generations are counted.
#[derive(Debug)]
pub(crate) struct Observed {
    model_id: String,
    first_token: Histogram,
    per_token: Histogram,
    duration: Histogram,
    prompt_tokens: IntCounter,
    shared_tokens: IntCounter,
    generated_tokens: IntCounter,
    edits: IntCounter,
}

impl Observed {
    pub(crate) fn new(worker: &Worker, metrics: &Metrics) -> prometheus::Result<Self> {
        let histogram = |name: &str, help: &str, buckets: &[f64]| {
            let opts = HistogramOpts::new(name, help)
                .buckets(buckets.to_vec())
                .const_label("gen_ai_operation_name", OPERATION)
                .const_label("gen_ai_request_model", &worker.model_id);
            let histogram = Histogram::with_opts(opts)?;
            metrics.register(histogram.clone())?;
            prometheus::Result::Ok(histogram)
        };
        let counter = |name: &str, help: &str| {
            let counter = IntCounter::new(name, help)?;
            metrics.register(counter.clone())?;
            prometheus::Result::Ok(counter)
        };
        metrics.register(LoadCollector::new(worker)?)?;
        Ok(Self {
            model_id: worker.model_id.clone(),
            first_token: histogram(
                "gen_ai_server_time_to_first_token_seconds",
                "Time from a request's arrival to its first token",
                &SECONDS,
            )?,
            per_token: histogram(
                "gen_ai_server_time_per_output_token_seconds",
                "Mean time between tokens of a variant, after its first",
                &PER_TOKEN_SECONDS,
            )?,
            duration: histogram(
                "gen_ai_server_request_duration_seconds",
                "Time from a generation's arrival to its end",
                &SECONDS,
            )?,
            prompt_tokens: counter(
                "steer_prompt_tokens_total",
                "Prompt tokens of finished variants",
            )?,
            shared_tokens: counter(
                "steer_shared_prompt_tokens_total",
                "Of these, tokens that were known from another variant or request",
            )?,
            generated_tokens: counter(
                "steer_generated_tokens_total",
                "Generated tokens of finished variants",
            )?,
            edits: counter(
                "steer_edits_fired_total",
                "Positions at which an intervention changed the activation, in finished variants",
            )?,
        })
    }
}

const PER_TOKEN_SECONDS: [f64; 12] = [
    0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5,
];

/// One generation as it goes on.
#[derive(Debug)]
pub(crate) struct Observation {
    observed: Arc<Observed>,
    began: Instant,
    prompt_len: usize,
    /// When each variant's first token came.
    first: Vec<Option<Instant>>,
    first_token_after: Option<Duration>,
    generated: usize,
    span: RequestSpan,
}

impl Observation {
    pub(crate) fn new(
        observed: Arc<Observed>,
        began: Instant,
        accepted: &Accepted,
        span: RequestSpan,
    ) -> Self {
        span.note("gen_ai.operation.name", OPERATION);
        span.note("gen_ai.request.model", observed.model_id.clone());
        let most = accepted.sampling.max_new_tokens;
        span.note("gen_ai.request.max_tokens", most as i64);
        span.note("steer.variants", accepted.variants.len() as i64);
        Self {
            observed,
            began,
            prompt_len: accepted.prompt.len(),
            first: vec![None; accepted.variants.len()],
            first_token_after: None,
            generated: 0,
            span,
        }
    }

    pub(crate) fn see(&mut self, event: &Event) {
        match event {
            Event::Token(TokenEvent { variant, .. }) => {
                self.generated += 1;
                if self.first[*variant].is_none() {
                    self.begun(*variant);
                }
            }
            Event::Finished(finish) => self.finished(finish),
            Event::Scored(_) | Event::Captured(_) => {}
        }
    }

    fn begun(&mut self, variant: usize) {
        let now = Instant::now();
        self.first[variant] = Some(now);
        if self.first_token_after.is_none() {
            let took = now.duration_since(self.began);
            self.observed.first_token.observe(took.as_secs_f64());
            self.first_token_after = Some(took);
        }
    }

    fn finished(&self, finish: &Finish) {
        let observed = &self.observed;
        if let Some(first) = self.first[finish.variant]
            && finish.generated > 1
        {
            let rest = (finish.generated - 1) as f64;
            let mean = first.elapsed().as_secs_f64() / rest;
            observed.per_token.observe(mean);
        }
        let changed: u64 = finish.tallies.iter().map(|t| t.positions_changed).sum();
        observed.edits.inc_by(changed);
        observed.prompt_tokens.inc_by(self.prompt_len as u64);
        observed
            .shared_tokens
            .inc_by(finish.shared_prompt_tokens as u64);
        observed.generated_tokens.inc_by(finish.generated as u64);
    }
}

impl Drop for Observation {
    fn drop(&mut self) {
        let span = &self.span;
        span.note("gen_ai.usage.input_tokens", self.prompt_len as i64);
        span.note("gen_ai.usage.output_tokens", self.generated as i64);
        if let Some(took) = self.first_token_after {
            span.note("gen_ai.server.time_to_first_token", took.as_secs_f64());
        }
        let took = self.began.elapsed();
        self.observed.duration.observe(took.as_secs_f64());
    }
}

/// What the engine is doing, read when Prometheus asks.
#[derive(Debug)]
struct LoadCollector {
    engine: EngineHandle,
    running: IntGauge,
    waiting: IntGauge,
    kv_reserved: IntGauge,
    prefix: IntGauge,
    prefix_tokens: IntGauge,
    /// Limits, which do not change.
    fixed: Vec<IntGauge>,
}

impl LoadCollector {
    fn new(worker: &Worker) -> prometheus::Result<Self> {
        let gauge = |name: &str, help: &str| IntGauge::with_opts(Opts::new(name, help));
        let slots = gauge("steer_slots", "Sequences that can run at the same time")?;
        slots.set(worker.limits.max_sequences.into());
        let queue = gauge("steer_queue_capacity", "Requests that may wait")?;
        queue.set(worker.limits.max_queued_requests.into());
        let kv = gauge("steer_kv_cache_bytes", "Memory for keys and values")?;
        kv.set(worker.limits.kv_cache_bytes as i64);
        Ok(Self {
            engine: worker.engine.clone(),
            running: gauge("steer_running_sequences", "Sequences in slots")?,
            waiting: gauge(
                "steer_queue_depth",
                "Requests of which a variant waits for a slot",
            )?,
            kv_reserved: gauge(
                "steer_kv_cache_reserved_bytes",
                "Keys and values reserved by running sequences",
            )?,
            prefix: gauge(
                "steer_prefix_cache_bytes",
                "Keys and values kept for prompts to come",
            )?,
            prefix_tokens: gauge(
                "steer_prefix_cache_tokens",
                "Prompt tokens taken from there, since the start",
            )?,
            fixed: vec![slots, queue, kv],
        })
    }

    fn all(&self) -> impl Iterator<Item = &IntGauge> {
        let live = [
            &self.running,
            &self.waiting,
            &self.kv_reserved,
            &self.prefix,
            &self.prefix_tokens,
        ];
        live.into_iter().chain(&self.fixed)
    }
}

impl Collector for LoadCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.all().flat_map(Collector::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let load = self.engine.load();
        self.running.set(load.running_sequences as i64);
        self.waiting.set(load.waiting_requests as i64);
        self.kv_reserved.set(load.kv_bytes_reserved as i64);
        self.prefix.set(load.prefix_bytes as i64);
        self.prefix_tokens.set(load.prefix_tokens as i64);
        self.all().flat_map(Collector::collect).collect()
    }
}

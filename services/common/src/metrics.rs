//! Prometheus metrics that both services have; a service adds its own.

use std::{fs, time::Duration};

use prometheus::{
    Encoder, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, Opts, Registry, TextEncoder,
    core::Collector,
};
use tonic::Code;

/// Seconds, from a lookup to a long generation.
pub const SECONDS: [f64; 14] = [
    0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0,
];

/// All metrics of a service. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Registry,
    durations: HistogramVec,
    active: IntGauge,
    refused: IntCounterVec,
    memory: IntGauge,
}

impl Metrics {
    /// With what every service has.
    ///
    /// # Errors
    /// If a name is malformed, which tests would show.
    pub fn new(version: &str) -> prometheus::Result<Self> {
        let info = IntGauge::with_opts(
            Opts::new("steer_build_info", "1, for the version in the label")
                .const_label("version", version),
        )?;
        info.set(1);
        let metrics = Self {
            registry: Registry::new(),
            durations: HistogramVec::new(
                HistogramOpts::new(
                    "rpc_server_duration_seconds",
                    "Time from a request's headers to the end of its response",
                )
                .buckets(SECONDS.to_vec()),
                &["rpc_service", "rpc_method", "rpc_grpc_status_code"],
            )?,
            active: IntGauge::new("rpc_server_active_requests", "Requests under way")?,
            refused: IntCounterVec::new(
                Opts::new(
                    "steer_requests_refused_total",
                    "Requests turned away at the door, by reason",
                ),
                &["reason"],
            )?,
            memory: IntGauge::new("process_resident_memory_bytes", "Resident memory")?,
        };
        metrics.register(info)?;
        metrics.register(metrics.durations.clone())?;
        metrics.register(metrics.active.clone())?;
        metrics.register(metrics.refused.clone())?;
        metrics.register(metrics.memory.clone())?;
        Ok(metrics)
    }

    /// Adds a metric.
    ///
    /// # Errors
    /// If one of that name is there.
    pub fn register(&self, metric: impl Collector + 'static) -> prometheus::Result<()> {
        self.registry.register(Box::new(metric))
    }

    /// All values as Prometheus' text.
    pub(crate) fn text(&self) -> Result<String, prometheus::Error> {
        if let Some(bytes) = resident_bytes() {
            self.memory.set(bytes);
        }
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    pub(crate) fn begun(&self) {
        self.active.inc();
    }

    pub(crate) fn ended(&self, service: &str, method: &str, code: Code, took: Duration) {
        self.active.dec();
        let code = (code as i32).to_string();
        self.durations
            .with_label_values(&[service, method, &code])
            .observe(took.as_secs_f64());
    }

    pub(crate) fn refused(&self, reason: &str) {
        self.refused.with_label_values(&[reason]).inc();
    }
}

/// Linux only; None elsewhere.
fn resident_bytes() -> Option<i64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: i64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

//! What both services share, written once: who may connect and call, how a server
//! starts, is watched and stops.
//!
//! - [`Security`] and [`Operation`] are the flags, [`settings`] reads them;
//! - [`Front`] listens, serves a service once it has loaded, and drains;
//! - every request comes through one door (`door.rs`), which names it, checks its key,
//!   counts it and logs its end; what it says is never looked at.

mod config;
pub mod deadline;
mod door;
mod front;
mod keys;
pub mod logging;
pub mod metrics;
mod ops;
mod queue;
mod quota;
mod record;
mod refusal;
mod runtime;
pub mod settings;
mod signals;
mod span;
mod tls;
mod trace;
mod watch;

pub use config::{LogFormat, Operation, Security};
pub use front::{Connection, Front, FrontConfig, FrontError};
pub use keys::admits;
pub use metrics::Metrics;
/// The metrics' own crate, for metrics of a service.
pub use prometheus;
pub use queue::Queue;
pub use runtime::run_to_end;
pub use signals::stop_signal;
pub use span::RequestSpan;

//! The feature registry: keeps SAE features, their labels, and CAVs, and hands
//! them out as the payloads a model worker takes.
//!
//! - [`mod@format`] reads files of others, trusting nothing;
//! - [`import`], [`labels`] and [`cavs`] decide what their numbers mean;
//! - [`concept`] trains CAVs and says what they are worth;
//! - [`canonical`] is the one form in which SAEs are kept;
//! - [`scan`] reads all features of an SAE: encodes activations, finds neighbours;
//! - [`vectors`] (an object store) and [`store`] (a database) keep things;
//! - [`registry`] puts these together; [`grpc`] speaks for it;
//! - [`check`] and [`mod@backup`] look after what is kept.

pub mod backup;
mod blocking;
pub mod canonical;
pub mod cavs;
pub mod check;
pub mod concept;
pub mod config;
pub mod error;
pub mod format;
pub mod grpc;
pub mod import;
pub mod labels;
pub mod progress;
pub mod registry;
pub mod scan;
mod serve;
pub mod store;
mod upkeep;
pub mod vectors;

pub use config::{Config, Task};
pub use error::{Error, Result};
pub use serve::run;
pub use upkeep::perform;

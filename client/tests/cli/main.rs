//! Runs the built `steer` against mock services: what it sends, what it prints,
//! how it exits.

mod chat;
mod errors;
mod fake_service;
mod generate;
mod mock;
mod mock_registry;
mod mock_worker;
mod observe;
mod registry;
mod score;
mod status;
mod sweep;
#[cfg(unix)]
mod up;

//! What the end-to-end tests share: fixtures, services in this process, binaries.

pub mod binaries;
pub mod demo;
pub mod direction;
pub mod fixture;
pub mod request;
pub mod services;
pub mod untrusted;

pub use fixture::Fixture;
pub use services::{Services, WorkerOptions};

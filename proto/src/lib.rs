//! The `steering.v1` contract.
//!
//! [`v1`] is the generated code. The other modules are the validated domain
//! types that services work with: a wire message is parsed once, at the
//! boundary, and goes no further. Parsing destructures every message without
//! `..`, so a new field breaks the build until somebody has honoured it.

pub mod access;
pub mod capture;
pub mod cav_training;
pub mod feature_statistics;
pub mod generate;
pub mod hook_point;
pub mod intervention;
pub mod invalid;
pub mod payload;
pub mod readout;
pub mod score;

pub use hook_point::{HookPoint, Site};
pub use invalid::{Invalid, Violation};

/// Generated messages, clients and servers of package `steering.v1`.
#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::semicolon_if_nothing_returned
)]
pub mod v1 {
    tonic::include_proto!("steering.v1");

    /// Encoded `FileDescriptorSet` of the package, for server reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] =
        include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
}

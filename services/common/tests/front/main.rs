//! The front over real connections: certificates made here, every RPC of the contract.
//!
//! No service stands behind it: a request that is let in is answered UNIMPLEMENTED.

mod auth;
mod certs;
mod harness;
mod operation;
mod tls;

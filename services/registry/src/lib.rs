//! Feature registry.

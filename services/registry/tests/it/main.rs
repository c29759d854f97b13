//! The registry over real gRPC: every test starts its own on port 0.

mod binary;
mod cavs;
mod database;
mod evidence;
mod features;
mod golden;
mod harness;
mod imports;
mod lifecycle;
mod migrations;
mod mutations;
mod replicas;
mod scans;
mod search;
mod sources;
mod training;

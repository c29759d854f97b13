//! The registry over real gRPC: every test starts its own on port 0.

mod binary;
mod cavs;
mod damage;
mod database;
mod deletion;
mod disks;
mod durability;
mod evidence;
mod features;
mod golden;
mod harness;
mod imports;
mod lifecycle;
mod migrations;
mod mutations;
mod process;
mod replicas;
mod s3;
mod scans;
mod search;
mod sources;
mod statistics;
mod training;
mod versions;

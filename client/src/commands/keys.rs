//! `steer keys`: API keys for services.

use std::{
    fs::OpenOptions,
    io::{Read, Write},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::Context;
use clap::{Args, Subcommand};
use prost_types::Timestamp;
use serde::Serialize;
use steering_proto::access::{KeyEntry, Scope, hex, key_digest, key_entries, key_of};

use crate::{cli::Globals, failure::hinted, output};

const SECONDS_PER_DAY: u64 = 86_400;

/// Make API keys.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  steer keys new --id alice --scope generate --scope registry.read --add-to keys.jsonl
  steer-worker --model ./model --api-keys keys.jsonl")]
pub(crate) struct KeysArgs {
    #[command(subcommand)]
    command: KeysCommand,
}

#[derive(Debug, Subcommand)]
enum KeysCommand {
    New(NewArgs),
}

/// Make a key: it is shown once, a service keeps its hash only.
///
/// The services' --api-keys file has one entry per line and is read again when it
/// changes: add a line to let a key in, remove it to shut it out.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  steer keys new --id alice --scope generate --scope registry.read
  steer keys new --id ci --scope admin --days 90 --add-to keys.jsonl > ci.key
  steer keys new --id class --scope generate --requests-per-minute 60 --concurrent-requests 4

Scopes: generate (all of the worker), registry.read, registry.write, admin (everything).
With --json: {\"key\", \"entry\": {\"id\", \"sha256\", \"scopes\", …}}")]
struct NewArgs {
    /// Whose key it is; shown in logs.
    #[arg(long)]
    id: String,
    /// What it allows; may be repeated.
    #[arg(long = "scope", value_name = "SCOPE", required = true, value_parser = str::parse::<Scope>)]
    scopes: Vec<Scope>,
    /// Days until it expires [default: never].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=36_500))]
    days: Option<u32>,
    /// Most requests per minute.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    requests_per_minute: Option<u32>,
    /// Most requests at the same time.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    concurrent_requests: Option<u32>,
    /// Append the entry to this file, and print the key alone.
    #[arg(long, value_name = "FILE")]
    add_to: Option<PathBuf>,
}

#[derive(Serialize)]
struct NewKey<'a> {
    key: &'a str,
    entry: &'a KeyEntry,
}

pub(crate) fn run(args: KeysArgs, globals: &Globals) -> anyhow::Result<()> {
    let KeysCommand::New(args) = args.command;
    let expires = args.days.map(|days| {
        let seconds = u64::from(days) * SECONDS_PER_DAY;
        let mut at = Timestamp::from(SystemTime::now() + Duration::from_secs(seconds));
        at.nanos = 0;
        at.to_string()
    });
    let key = key_of(&rand::random());
    let entry = KeyEntry {
        id: args.id,
        sha256: hex(&key_digest(&key)),
        scopes: args.scopes,
        expires,
        requests_per_minute: args.requests_per_minute,
        concurrent_requests: args.concurrent_requests,
    };
    entry
        .check()
        .map_err(|error| hinted(format!("--{error}"), "steer keys new --help has examples"))?;
    if let Some(file) = &args.add_to {
        append(file, &entry).with_context(|| format!("--add-to {}", file.display()))?;
    }
    if globals.json {
        return output::json(&NewKey {
            key: &key,
            entry: &entry,
        });
    }
    if args.add_to.is_none() {
        output::note("entry for the services' --api-keys file:");
        output::note(serde_json::to_string(&entry)?);
        output::note("the key, which is kept nowhere else:");
    }
    Ok(output::line(&key)?)
}

/// Adds a line, readable for nobody else where the file is new. What would make the file
/// one that services refuse is not written.
fn append(file: &Path, entry: &KeyEntry) -> anyhow::Result<()> {
    let mut options = OpenOptions::new();
    options.create(true).read(true).append(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(file)?;
    file.lock()?; // another command may be adding a line, too
    let mut held = Vec::new();
    file.read_to_end(&mut held)?;
    let entries = key_entries(&held).map_err(|error| {
        let hint = "services go on with what they read before; mend that line first";
        hinted(format!("is no file of keys: {error}"), hint)
    })?;
    if entries.iter().any(|other| other.id == entry.id) {
        let hint = "take another --id, or remove its line to replace it";
        return Err(hinted(format!("has a key of {:?} already", entry.id), hint));
    }
    let mut line = serde_json::to_string(entry)?;
    line.push('\n');
    if held.last().is_some_and(|&last| last != b'\n') {
        line.insert(0, '\n');
    }
    held.extend_from_slice(line.as_bytes());
    key_entries(&held).map_err(|error| anyhow::anyhow!("would be no file of keys: {error}"))?;
    // One write, so that a service never reads half a line.
    file.write_all(line.as_bytes())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(id: &str) -> KeyEntry {
        KeyEntry {
            id: id.to_owned(),
            sha256: hex(&key_digest("secret")),
            scopes: vec![Scope::Generate],
            expires: None,
            requests_per_minute: None,
            concurrent_requests: None,
        }
    }

    #[test]
    fn a_file_of_keys_stays_one() {
        let folder = tempfile::tempdir().expect("folder");
        let file = folder.path().join("keys.jsonl");
        append(&file, &entry("alice")).expect("a new file");
        let held = std::fs::read_to_string(&file).expect("keys");
        // As an editor may leave it.
        std::fs::write(&file, format!("# ours\n{}", held.trim_end())).expect("written");
        append(&file, &entry("bob")).expect("another");
        let ids = |file: &Path| -> Vec<String> {
            let held = std::fs::read(file).expect("keys");
            let entries = key_entries(&held).expect("a file of keys");
            entries.into_iter().map(|entry| entry.id).collect()
        };
        assert_eq!(ids(&file), ["alice", "bob"]);
        let twice = append(&file, &entry("alice")).expect_err("is there");
        assert!(twice.to_string().contains("alice"), "{twice}");
        assert_eq!(ids(&file), ["alice", "bob"]);
        std::fs::write(&file, "no keys\n").expect("written");
        let broken = append(&file, &entry("carol")).expect_err("no keys");
        assert!(broken.to_string().contains("line 1"), "{broken}");
        assert_eq!(std::fs::read(&file).expect("file"), b"no keys\n");
    }
}

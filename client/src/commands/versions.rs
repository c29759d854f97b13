//! Versions of SAEs and CAVs: which are listed, and what deleting them said.

use clap::Args;
use serde::Serialize;

use crate::output;

/// Which versions a list shows.
#[derive(Debug, Args)]
pub(super) struct VersionArgs {
    /// Every version, in the order of storing.
    #[arg(long)]
    pub(super) all_versions: bool,
    /// Versions that were deleted, and can be brought back.
    #[arg(long, conflicts_with = "all_versions")]
    pub(super) deleted: bool,
}

#[derive(Serialize)]
struct RestoredDocument {
    restored_count: u32,
}

/// Says what was deleted, and how it comes back.
pub(super) fn print_removed(
    command: &str,
    name: &str,
    count: u32,
    purge_time: Option<&str>,
) -> anyhow::Result<()> {
    let versions = if count == 1 { "version" } else { "versions" };
    let after = match purge_time {
        None => "purged".to_owned(),
        Some(time) => {
            format!("deleted; until {time}, `steer {command} undelete {name}` brings back what was")
        }
    };
    Ok(output::line(format_args!(
        "{count} {versions} of {name} {after}"
    ))?)
}

/// Says what is back.
pub(super) fn print_restored(name: &str, restored_count: u32, json: bool) -> anyhow::Result<()> {
    if json {
        return output::json(&RestoredDocument { restored_count });
    }
    let text = match restored_count {
        0 => format!("nothing of {name} was deleted"),
        1 => format!("1 version of {name} is back"),
        n => format!("{n} versions of {name} are back"),
    };
    Ok(output::line(format_args!("{text}"))?)
}

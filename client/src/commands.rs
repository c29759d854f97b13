//! The commands, one module each.

pub(crate) mod archive;
pub(crate) mod cavs;
pub(crate) mod chat;
pub(crate) mod dataset;
pub(crate) mod demo;
pub(crate) mod features;
pub(crate) mod generate;
pub(crate) mod inspect;
pub(crate) mod keys;
pub(crate) mod labels;
pub(crate) mod options;
pub(crate) mod project;
pub(crate) mod saes;
pub(crate) mod score;
pub(crate) mod status;
pub(crate) mod sweep;
pub(crate) mod tokenize;
pub(crate) mod up;
mod versions;

use crate::cli::{Cli, Command};

pub(crate) async fn run(cli: Cli) -> anyhow::Result<()> {
    let Cli { globals, command } = cli;
    match command {
        Command::Demo(args) => demo::run(args, &globals).await,
        Command::Up(args) => up::run(args, &globals).await,
        Command::Generate(args) => generate::run(*args, &globals).await,
        Command::Chat(args) => chat::run(*args, &globals).await,
        Command::Sweep(args) => sweep::run(*args, &globals).await,
        Command::Score(args) => score::run(*args, &globals).await,
        Command::Project(args) => project::run(args, &globals).await,
        Command::Inspect(args) => inspect::run(args, &globals).await,
        Command::Tokenize(args) => tokenize::run(args, &globals).await,
        Command::Features(args) => features::run(args, &globals).await,
        Command::Labels(args) => labels::run(args, &globals).await,
        Command::Saes(args) => saes::run(args, &globals).await,
        Command::Cavs(args) => cavs::run(args, &globals).await,
        Command::Export(args) => archive::export(args, &globals).await,
        Command::Import(args) => archive::import(args, &globals).await,
        Command::Status(args) => status::run(args, &globals).await,
        Command::Keys(args) => keys::run(args, &globals),
    }
}

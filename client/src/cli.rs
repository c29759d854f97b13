//! The command line: global options and the list of commands.

use clap::{Arg, Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use steering_client::{Client, Endpoints, connection::service_url};

use crate::{access::AccessArgs, commands, failure::hinted};

/// The trace that the command is part of, as other tools hand it on.
const TRACEPARENT: &str = "TRACEPARENT";

/// Steer a language model while it writes.
///
/// Steered generation edits a model's activations: it clamps features of a sparse
/// autoencoder (SAE) or adds concept activation vectors (CAVs). A worker runs the
/// model; a registry keeps features, labels and CAVs; this command uses both.
#[derive(Debug, Parser)]
#[command(version, propagate_version = true, max_term_width = 100)]
#[command(after_help = "\
Examples:
  steer demo
  steer up --model google/gemma-2-2b-it
  steer generate 'Write a haiku.' --feature baseball=525 --compare
  steer sweep 'Write a haiku.' --feature baseball --to 600 --plot out.html
  steer features search hockey
  steer inspect 'The goalie stopped the puck.'
  steer status

Exit codes: 0 success, 1 failure, 2 wrong usage.")]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) globals: Globals,
    #[command(subcommand)]
    pub(crate) command: Command,
}

impl Cli {
    /// Reads the command line. A variable that is set to nothing is not set.
    pub(crate) fn read() -> Self {
        let matches = without_empty(Self::command()).get_matches();
        Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
    }
}

fn without_empty(command: clap::Command) -> clap::Command {
    let is_empty = |arg: &Arg| {
        let value = arg.get_env().and_then(std::env::var_os);
        value.is_some_and(|value| value.is_empty())
    };
    command
        .mut_args(|arg| match is_empty(&arg) {
            true => arg.env(None::<&'static str>),
            false => arg,
        })
        .mut_subcommands(without_empty)
}

/// Options of every command.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Globals {
    /// Where the model worker is.
    #[arg(long, global = true, value_name = "URL", env = "STEER_WORKER")]
    #[arg(default_value = Endpoints::DEFAULT_WORKER, value_parser = service_url)]
    worker: String,
    /// Where the feature registry is.
    #[arg(long, global = true, value_name = "URL", env = "STEER_REGISTRY")]
    #[arg(default_value = Endpoints::DEFAULT_REGISTRY, value_parser = service_url)]
    registry: String,
    /// SAE to use where the registry holds more than one.
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) sae: Option<String>,
    /// Print one JSON document for machines.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) access: AccessArgs,
}

impl Globals {
    pub(crate) fn client(&self) -> anyhow::Result<Client> {
        let endpoints = Endpoints {
            worker: self.worker.clone(),
            registry: self.registry.clone(),
        };
        let client = Client::connect_with(&endpoints, &self.access.credentials()?)?;
        Ok(match std::env::var(TRACEPARENT) {
            Ok(parent) => client.within_trace(&parent),
            Err(_) => client,
        })
    }

    /// The SAE named by `--sae`, or the only one there is.
    pub(crate) async fn sae(&self, client: &Client) -> anyhow::Result<String> {
        if let Some(sae) = &self.sae {
            return Ok(sae.clone());
        }
        let saes = client.list_saes(Some(20)).await?.items;
        match saes.as_slice() {
            [only] => Ok(only.sae_id.clone()),
            [] => Err(hinted(
                "the registry holds no SAE",
                "import one with `steer saes import PATH|HUB_ID --name NAME`",
            )),
            several => {
                let names: Vec<&str> = several.iter().map(|sae| sae.sae_id.as_str()).collect();
                Err(hinted(
                    "the registry holds several SAEs",
                    format!("pick one with --sae: {}", names.join(", ")),
                ))
            }
        }
    }
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Demo(commands::demo::DemoArgs),
    Up(commands::up::UpArgs),
    Generate(Box<commands::generate::GenerateArgs>),
    Chat(Box<commands::chat::ChatArgs>),
    Sweep(Box<commands::sweep::SweepArgs>),
    Score(Box<commands::score::ScoreArgs>),
    Project(commands::project::ProjectArgs),
    Inspect(commands::inspect::InspectArgs),
    Tokenize(commands::tokenize::TokenizeArgs),
    Features(commands::features::FeaturesArgs),
    Labels(commands::labels::LabelsArgs),
    Saes(commands::saes::SaesArgs),
    Cavs(commands::cavs::CavsArgs),
    Export(commands::archive::ExportArgs),
    Import(commands::archive::ImportArgs),
    Status(commands::status::StatusArgs),
    Keys(commands::keys::KeysArgs),
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_examples() {
        fn check(command: &clap::Command) {
            let help = command.get_after_help().map(ToString::to_string);
            assert!(
                help.is_some_and(|help| help.contains("steer ")),
                "{} has no examples",
                command.get_name()
            );
            command.get_subcommands().for_each(check);
        }
        check(&Cli::command());
    }
}

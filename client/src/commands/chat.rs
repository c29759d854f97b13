//! `steer chat`.

use std::io::IsTerminal;

use clap::{ArgGroup, Args};

use super::{
    generate::EditOptions,
    options::{ObserveOptions, SamplingOptions, stdin_failure},
};
use crate::{cli::Globals, failure, output};

mod input;
mod session;

use session::{Config, Session, Step};

/// Talk to the model, and change how it is steered in between.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("edits").multiple(true))]
#[command(group = ArgGroup::new("named").multiple(true))]
#[command(group = ArgGroup::new("readings").multiple(true))]
#[command(after_help = "\
While it runs, a line is a message, or one of these (`//` starts a message with a slash):
  /feature LABEL=VALUE  edit a feature from now on; replaces an earlier edit of it
  /cav NAME=STRENGTH    edit with a CAV from now on; replaces an earlier edit with it
  /clear                take all edits back
  /steer                show the edits
  /baseline             answer the last message again unsteered, beside the conversation
  /seed [N]             use this seed from now on; without N, a new one every time
  /reset                forget the conversation, keep the edits
  /help, /quit          Ctrl-D ends too; Ctrl-C ends an answer

Examples:
  steer chat
  steer chat --feature baseball=300 --system 'Be brief.'
  printf '%s\\n' 'Hi!' '/feature baseball=300' 'Hi!' | steer chat --seed 7 --json

JSON, --json: one object at the end
  {\"turns\": [{\"user\", \"baseline\", \"model\", \"prompt_token_ids\", \"seed\", \"probes\", and
  everything of a variant of `steer generate --json`}], \"warnings\"}")]
pub(crate) struct ChatArgs {
    /// A system message in front, where the template has one.
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    #[command(flatten)]
    edits: EditOptions,
    #[command(flatten)]
    observe: ObserveOptions,
    #[command(flatten)]
    sampling: SamplingOptions,
}

const PROMPT: &str = "> ";

pub(crate) async fn run(args: ChatArgs, globals: &Globals) -> anyhow::Result<()> {
    let client = globals.client()?;
    let steering = args.edits.steering(globals.sae.clone());
    let config = Config {
        quiet: globals.json,
        system: args.system,
        observe: args.observe,
        sampling: args.sampling.into(),
    };
    let mut session = Session::new(client, config);
    // Names that the registry does not know are told before the first message.
    session.steer(steering).await?;
    let interactive = std::io::stdin().is_terminal() && output::is_terminal() && !globals.json;
    if interactive {
        output::dim("/help lists the commands, Ctrl-D ends");
    }
    let mut lines = input::lines();
    loop {
        if interactive {
            output::write(PROMPT)?;
        }
        let line = tokio::select! {
            line = lines.recv() => line,
            signal = tokio::signal::ctrl_c() => signal.map(|()| None)?,
        };
        let Some(line) = line else { break };
        match session.take(&line.map_err(stdin_failure)?).await {
            Ok(Step::On) => {}
            Ok(Step::Quit) => break,
            // A person can try again; a script should not go on.
            Err(error) if interactive => {
                failure::report(&error);
            }
            Err(error) => return Err(error),
        }
    }
    if interactive {
        output::line("")?;
    }
    if globals.json {
        output::json(&session.document())?;
    }
    Ok(())
}

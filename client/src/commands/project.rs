//! `steer project`.

use clap::Args;
use serde::Serialize;
use steering_client::{Lookup, Readout, v1};

use super::options::check_hook;
use crate::{cli::Globals, output, series::number, table::Table};

/// The tokens that a direction makes most and least likely (logit lens).
#[derive(Debug, Args)]
#[command(after_help = "\
The direction of a feature is its decoder row, what setting it writes; of a CAV, its
vector. The output head reads it as if nothing came in between.

Examples:
  steer project baseball
  steer project 'gemma-scope-l21-65k::#20175' --top 20
  steer project cav:rec.autos --json

JSON, --json: one object
  {\"direction\", \"hook_name\", \"top\": [{\"token_id\", \"text\", \"logit\"}], \"bottom\"}")]
pub(crate) struct ProjectArgs {
    /// LABEL, #INDEX, SAE::LABEL or cav:NAME.
    #[arg(value_name = "DIRECTION")]
    direction: Readout,
    /// Tokens to show at each end.
    #[arg(long, value_name = "N", default_value_t = 10)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1000))]
    top: u32,
    /// Which direction of a CAV that has several.
    #[arg(long, value_name = "NAME")]
    hook: Option<String>,
}

#[derive(Serialize)]
struct Document {
    direction: String,
    hook_name: String,
    top: Vec<Token>,
    bottom: Vec<Token>,
}

/// A token and its logit.
#[derive(Serialize)]
pub(super) struct Token {
    token_id: u32,
    pub(super) text: String,
    logit: f32,
}

impl From<v1::TokenLogit> for Token {
    fn from(token: v1::TokenLogit) -> Self {
        let v1::TokenLogit {
            token_id,
            text,
            logit,
        } = token;
        Self {
            token_id,
            text,
            logit,
        }
    }
}

pub(crate) async fn run(args: ProjectArgs, globals: &Globals) -> anyhow::Result<()> {
    let names_cav = matches!(args.direction, Readout::Cav(_));
    check_hook(args.hook.as_deref(), names_cav)?;
    let client = globals.client()?;
    let lookup = Lookup {
        default_sae: globals.sae.as_deref(),
        cav_hook: args.hook.as_deref(),
    };
    let (hook_name, vector) = client.direction(&args.direction, lookup).await?;
    let response = client.project_direction(vector, args.top).await?;
    let v1::ProjectDirectionResponse { top, bottom } = response;
    let document = Document {
        direction: args.direction.to_string(),
        hook_name,
        top: top.into_iter().map(Into::into).collect(),
        bottom: bottom.into_iter().map(Into::into).collect(),
    };
    if globals.json {
        output::json(&document)
    } else {
        Ok(document.print()?)
    }
}

impl Document {
    fn print(&self) -> std::io::Result<()> {
        let mut table = Table::new(&["most likely", "logit", "least likely", "logit"]);
        for i in 0..self.top.len().max(self.bottom.len()) {
            let [more, less] = [&self.top, &self.bottom].map(|end| cells(end.get(i)));
            table.row(more.into_iter().chain(less));
        }
        table.print("no tokens")?;
        output::dim(format_args!("{} at {}", self.direction, self.hook_name));
        Ok(())
    }
}

fn cells(token: Option<&Token>) -> [String; 2] {
    match token {
        Some(token) => [format!("{:?}", token.text), number(f64::from(token.logit))],
        None => [String::new(), String::new()],
    }
}

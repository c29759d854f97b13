//! `steer tokenize`.

use clap::Args;
use serde::Serialize;
use steering_client::v1;

use super::options::PromptOptions;
use crate::{cli::Globals, output, table::Table};

/// Show the tokens of a text, and what the chat template makes of it.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  steer tokenize 'Write a haiku.'
  steer tokenize 'Write a haiku.' --add-generation-prompt
  steer tokenize 'Write a haiku.' --raw --json")]
pub(crate) struct TokenizeArgs {
    /// The text: one user message for the chat template; `-` = standard input.
    text: String,
    #[command(flatten)]
    prompt_options: PromptOptions,
}

#[derive(Serialize)]
struct Document {
    tokens: Vec<Token>,
    rendered: String,
}

#[derive(Serialize)]
struct Token {
    token_id: u32,
    piece: String,
    special: bool,
}

impl From<v1::TokenizeResponse> for Document {
    fn from(response: v1::TokenizeResponse) -> Self {
        let v1::TokenizeResponse { tokens, rendered } = response;
        let token = |token: v1::TokenPiece| {
            let v1::TokenPiece {
                token_id,
                piece,
                special,
            } = token;
            Token {
                token_id,
                piece,
                special,
            }
        };
        Self {
            tokens: tokens.into_iter().map(token).collect(),
            rendered,
        }
    }
}

pub(crate) async fn run(args: TokenizeArgs, globals: &Globals) -> anyhow::Result<()> {
    let prompt = args.prompt_options.prompt(&args.text)?;
    let document = Document::from(globals.client()?.tokenize(prompt).await?);
    if globals.json {
        return output::json(&document);
    }
    let mut table = Table::new(&["position", "token", "piece", "special"]);
    for (position, token) in document.tokens.iter().enumerate() {
        table.row([
            position.to_string(),
            token.token_id.to_string(),
            token.piece.escape_debug().to_string(),
            if token.special { "yes" } else { "" }.to_owned(),
        ]);
    }
    table.print("no tokens")?;
    if !document.rendered.is_empty() {
        output::dim(format_args!("rendered: {:?}", document.rendered));
    }
    Ok(())
}

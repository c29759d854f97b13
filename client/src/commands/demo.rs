//! `steer demo`.

use std::sync::Arc;

use clap::Args;
use console::style;
use steering_client::{Client, GenerationBuilder, Transcript, v1};
use tempfile::TempDir;

use super::up;
use crate::{
    cli::Globals,
    columns::side_by_side,
    demo::{Demo, DemoDir},
    output,
    process::Show,
    progress, report,
    services::{Launch, Running, run_with},
};

/// Cells to write in where nobody's terminal says how many it has.
const WIDTH: usize = 110;
const ANY_PORT: &str = "127.0.0.1:0";

/// See steering at work: a toy model, unsteered and steered, in a few seconds.
///
/// Starts both services on free ports on the model in `demo/`, which comes with the
/// repository, imports its SAE, labels and CAVs into a folder that is removed at the end,
/// and shows one prompt three times: unsteered, with one SAE feature set, with one CAV added.
#[derive(Debug, Args)]
#[command(after_help = "\
With --json: the document of `steer generate --json`, with the variants \"baseline\",
\"feature\" and \"cav\".

Examples:
  steer demo
  steer demo --keep
  steer demo --json")]
pub(crate) struct DemoArgs {
    /// Leave the services running until Ctrl-C.
    #[arg(long)]
    keep: bool,
    #[command(flatten)]
    demo_dir: DemoDir,
}

pub(crate) async fn run(args: DemoArgs, globals: &Globals) -> anyhow::Result<()> {
    let demo = Demo::find(&args.demo_dir)?;
    let scratch = TempDir::with_prefix("steer-demo-")?;
    let launch = Launch {
        worker_listen: ANY_PORT.to_owned(),
        worker_args: vec!["--model".into(), demo.model().into()],
        registry_listen: ANY_PORT.to_owned(),
        registry_args: vec!["--data".into(), scratch.path().into()],
        credentials: globals.access.credentials()?,
    };
    let spinner = progress::spinner("starting steer-worker and steer-registry");
    // What a service writes is shown if it fails.
    let quiet: Show = Arc::new(|_| {});
    run_with(&launch, &quiet, &spinner, async |client, running| {
        spinner.set_message("importing the SAE, the labels and the CAVs");
        demo.import(client).await?;
        spinner.finish_and_clear();
        let transcript = generate(&demo, client).await?;
        if globals.json {
            output::json(&report::Document::from(&transcript))?;
        } else {
            show(&demo, &transcript)?;
            suggest(&demo, running, args.keep)?;
        }
        if args.keep {
            std::future::pending::<()>().await;
        }
        Ok(())
    })
    .await
}

/// All three in one request, so in one batch.
async fn generate(demo: &Demo, client: &Client) -> anyhow::Result<Transcript> {
    let show = demo.shown();
    let mut builder = GenerationBuilder::new(show.to_prompt());
    builder.variant("baseline", Vec::new());
    for (name, steering) in ["feature", "cav"].into_iter().zip(show.edits()?) {
        let edits = client.resolve(&steering, &mut builder).await?;
        builder.variant(name, edits);
    }
    builder.sampling(v1::Sampling {
        seed: Some(show.seed),
        max_new_tokens: Some(show.max_new_tokens),
        ..v1::Sampling::default()
    });
    Ok(client.generate(builder.build()).await?.collect().await?)
}

fn show(demo: &Demo, transcript: &Transcript) -> std::io::Result<()> {
    let show = demo.shown();
    let headings = [
        "unsteered".to_owned(),
        format!("--feature {}", show.feature),
        format!("--cav {}", show.cav),
    ];
    let texts: Vec<&str> = transcript.variants.iter().map(|v| v.text.trim()).collect();
    let headings: Vec<&str> = headings.iter().map(String::as_str).collect();
    output::line(format_args!(
        "{}  (seed {}, a toy model trained for this demo)\n",
        style(format!("\"{}\"", show.prompt)).bold(),
        show.seed
    ))?;
    let width = output::terminal_width().unwrap_or(WIDTH).min(WIDTH);
    for row in side_by_side(&headings, &texts, width) {
        output::line(row)?;
    }
    output::line("\nwhat was done to the model:")?;
    for line in report::interventions(transcript) {
        output::line(format_args!("  {}", output::printable(&line)))?;
    }
    output::line("")
}

fn suggest(demo: &Demo, running: &Running, keep: bool) -> std::io::Result<()> {
    if keep {
        output::line("try in another terminal:")?;
        up::export(running)?;
        demo.suggest()?;
        return output::line("Ctrl-C stops both services");
    }
    let steer = crate::demo::program();
    output::line(format_args!(
        "`{steer} up --demo` serves the same model; try then, in another terminal:"
    ))?;
    demo.suggest()
}

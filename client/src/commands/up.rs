//! `steer up`.

use std::{ffi::OsString, path::PathBuf, sync::Arc};

use clap::Args;
use console::style;
use steering_client::{Credentials, Endpoints};
use tempfile::TempDir;

use crate::{
    cli::Globals,
    demo::{Demo, DemoDir},
    failure::hinted,
    output,
    process::Show,
    progress,
    services::{Launch, Running, run_with},
};

/// Start a worker and a registry on this machine, and run until Ctrl-C.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  steer up --demo
  steer up --model google/gemma-2-2b-it --quantize q8_0
  steer up --model ./gemma-3-270m-it-Q4_K_M.gguf --device cpu
  steer up --model ./model --worker-listen 127.0.0.1:0 --registry-listen 127.0.0.1:0 --json

The programs steer-worker and steer-registry are looked up next to steer, then on the PATH.
With --json, one document is printed when both are ready:
  {\"worker\": {\"url\", \"pid\"}, \"registry\": {\"url\", \"pid\"}}")]
pub(crate) struct UpArgs {
    /// Model: a folder, a GGUF file, or an id on the hub.
    #[arg(long, value_name = "ID|PATH", env = "STEER_WORKER_MODEL")]
    #[arg(required_unless_present = "demo")]
    model: Option<OsString>,
    /// Serve the demo model, with its SAE, labels and CAVs imported; without --data, into
    /// a folder that is removed at the end.
    #[arg(long)]
    demo: bool,
    #[command(flatten)]
    demo_dir: DemoDir,
    /// Type of activations and unquantised weights: f32, bf16, f16.
    #[arg(long, value_name = "TYPE")]
    dtype: Option<String>,
    /// Quantise the weights on load: q8_0, q4k, …
    #[arg(long, value_name = "FORMAT")]
    quantize: Option<String>,
    /// Where the model runs: auto, cpu, cuda, metal.
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,
    /// The registry's folder [default: the registry's own, ~/.local/share/steer/registry].
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Address of the worker; port 0 = any free one.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:50051")]
    worker_listen: String,
    /// Address of the registry; port 0 = any free one.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:50052")]
    registry_listen: String,
    /// One more argument for steer-worker; may be repeated.
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    worker_arg: Vec<OsString>,
    /// One more argument for steer-registry; may be repeated.
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    registry_arg: Vec<OsString>,
}

pub(crate) async fn run(args: UpArgs, globals: &Globals) -> anyhow::Result<()> {
    let demo = match (args.demo, &args.model) {
        (false, _) => None,
        (true, None) => Some(Demo::find(&args.demo_dir)?),
        (true, Some(_)) => {
            return Err(hinted(
                "--demo brings its own model, and one is given",
                "leave out one of --demo and --model (or STEER_WORKER_MODEL)",
            ));
        }
    };
    let scratch = match (&demo, &args.data) {
        (Some(_), None) => Some(TempDir::with_prefix("steer-demo-")?),
        _ => None,
    };
    let mut launch = launch(args, demo.as_ref(), scratch.as_ref());
    launch.credentials = globals.access.credentials()?;
    let spinner = progress::spinner("starting steer-worker and steer-registry");
    let shown = spinner.clone();
    let show: Show = Arc::new(move |line| shown.suspend(|| output::note(output::printable(line))));
    run_with(&launch, &show, &spinner, async |client, running| {
        if let Some(demo) = &demo {
            spinner.set_message("importing the SAE, the labels and the CAVs");
            demo.import(client).await?;
        }
        spinner.finish_and_clear();
        announce(running, demo.as_ref(), globals.json)?;
        std::future::pending().await
    })
    .await
}

fn launch(args: UpArgs, demo: Option<&Demo>, scratch: Option<&TempDir>) -> Launch {
    let model = demo.map(|demo| demo.model().into()).or(args.model);
    let options: [(&str, Option<OsString>); 4] = [
        ("--model", model),
        ("--dtype", args.dtype.map(Into::into)),
        ("--quantize", args.quantize.map(Into::into)),
        ("--device", args.device.map(Into::into)),
    ];
    let given = |(name, value): (&str, Option<OsString>)| Some([name.into(), value?]);
    let mut worker_args: Vec<OsString> = options.into_iter().filter_map(given).flatten().collect();
    worker_args.extend(args.worker_arg);
    let data = args
        .data
        .or_else(|| scratch.map(|folder| folder.path().to_owned()));
    let data = data.map(|data| ["--data".into(), data.into()]);
    let mut registry_args: Vec<OsString> = data.into_iter().flatten().collect();
    registry_args.extend(args.registry_arg);
    Launch {
        worker_listen: args.worker_listen,
        worker_args,
        registry_listen: args.registry_listen,
        registry_args,
        credentials: Credentials::default(),
    }
}

fn announce(running: &Running, demo: Option<&Demo>, json: bool) -> anyhow::Result<()> {
    if json {
        return output::json(running);
    }
    output::line(style("ready").green().bold())?;
    output::line(format_args!("  worker    {}", running.worker.url))?;
    output::line(format_args!("  registry  {}", running.registry.url))?;
    output::line("try in another terminal")?;
    export(running)?;
    match demo {
        Some(demo) => demo.suggest()?,
        None => {
            output::line("  steer status")?;
            output::line("  steer generate 'Write a haiku.'")?;
            output::line("  steer saes import --help")?;
        }
    }
    Ok(output::line("Ctrl-C stops both")?)
}

/// Says how other commands find the services, where they are not at their usual places.
pub(crate) fn export(running: &Running) -> std::io::Result<()> {
    let default = Endpoints::default();
    if running.worker.url != default.worker {
        output::line(format_args!("  export STEER_WORKER={}", running.worker.url))?;
    }
    if running.registry.url != default.registry {
        let url = &running.registry.url;
        output::line(format_args!("  export STEER_REGISTRY={url}"))?;
    }
    Ok(())
}

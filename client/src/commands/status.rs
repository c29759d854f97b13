//! `steer status`.

use clap::Args;
use console::style;
use serde::Serialize;
use steering_client::{Client, Error, Health, Service, v1};

use crate::{cli::Globals, failure, output, table::print_card};

/// Show what runs: the model, what the registry holds, health and versions.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  steer status
  steer status --json
  steer status --worker http://gpu-box:50051

Exits with 1 where a service cannot be reached or is not ready.")]
pub(crate) struct StatusArgs {}

#[derive(Serialize)]
struct Document {
    version: &'static str,
    worker: Side<Model>,
    registry: Side<Holdings>,
}

/// One service: its health, and what it says about itself.
#[derive(Serialize)]
struct Side<T> {
    url: String,
    /// "serving", "not_serving", "unreachable".
    health: &'static str,
    error: Option<String>,
    #[serde(flatten)]
    content: Option<T>,
}

#[derive(Serialize)]
struct Model {
    model_id: String,
    model_digest: String,
    family: String,
    d_model: u32,
    n_layers: u32,
    vocab_size: u32,
    context_length: u32,
    dtype: String,
    quantization: String,
    device: String,
    hook_points: Vec<HookPoint>,
    has_chat_template: bool,
    limits: Option<Limits>,
    load: Option<Load>,
    version: String,
}

#[derive(Serialize)]
struct HookPoint {
    name_pattern: String,
    width: u32,
}

#[derive(Serialize)]
struct Limits {
    max_variants: u32,
    max_interventions: u32,
    max_payloads: u32,
    max_new_tokens: u32,
    max_request_bytes: u64,
    max_sequences: u32,
    max_queued_requests: u32,
    max_probes: u32,
    max_stop_conditions: u32,
    kv_cache_bytes: u64,
    kv_bytes_per_token: u64,
    max_prompt_tokens: u32,
    max_response_bytes: u64,
    max_streams_per_connection: u32,
    max_request_seconds: u32,
    max_parked_seconds: u32,
}

#[derive(Serialize)]
struct Load {
    running_sequences: u32,
    waiting_requests: u32,
    kv_cache_bytes_reserved: u64,
    prefix_cache_bytes: u64,
    prefix_cache_tokens: u64,
}

#[derive(Serialize)]
struct Holdings {
    sae_count: usize,
    label_count: u64,
    cav_count: usize,
}

pub(crate) async fn run(_: StatusArgs, globals: &Globals) -> anyhow::Result<()> {
    let client = globals.client()?;
    let (worker, registry) = tokio::join!(worker(&client), registry(&client));
    let document = Document {
        version: env!("CARGO_PKG_VERSION"),
        worker,
        registry,
    };
    let well = document.worker.error.is_none() && document.registry.error.is_none();
    if globals.json {
        output::json(&document)?;
    } else {
        print(&document)?;
    }
    if well {
        Ok(())
    } else {
        Err(failure::hinted(
            "not every service is up",
            "start both with `steer up --model ID|PATH`, or pass --worker and --registry",
        ))
    }
}

async fn worker(client: &Client) -> Side<Model> {
    let url = client.endpoints().worker.clone();
    let health = client.health(Service::Worker).await;
    let content = match &health {
        Ok(_) => client.get_model().await.map(Some),
        Err(_) => Ok(None),
    };
    side(url, &health, content.map(|model| model.map(Model::from)))
}

async fn registry(client: &Client) -> Side<Holdings> {
    let url = client.endpoints().registry.clone();
    let health = client.health(Service::Registry).await;
    let content = match &health {
        Ok(_) => holdings(client).await.map(Some),
        Err(_) => Ok(None),
    };
    side(url, &health, content)
}

async fn holdings(client: &Client) -> Result<Holdings, Error> {
    let saes = client.list_saes(None).await?.items;
    Ok(Holdings {
        sae_count: saes.len(),
        label_count: saes.iter().map(|sae| sae.label_count).sum(),
        cav_count: client.list_cavs("", None).await?.items.len(),
    })
}

fn side<T>(
    url: String,
    health: &Result<Health, Error>,
    content: Result<Option<T>, Error>,
) -> Side<T> {
    let message = |error: &Error| failure::from_client(error).message;
    let (health, mut error) = match health {
        Ok(Health::Serving) => ("serving", None),
        Ok(Health::NotServing) => ("not_serving", Some("the service is not ready".to_owned())),
        Err(failed) => ("unreachable", Some(message(failed))),
    };
    let content = content.unwrap_or_else(|failed| {
        error.get_or_insert(message(&failed));
        None
    });
    Side {
        url,
        health,
        error,
        content,
    }
}

impl From<v1::GetModelResponse> for Model {
    fn from(model: v1::GetModelResponse) -> Self {
        let v1::GetModelResponse {
            model_id,
            model_digest,
            family,
            d_model,
            n_layers,
            vocab_size,
            context_length,
            dtype,
            quantization,
            device,
            hook_points,
            has_chat_template,
            limits,
            version,
            load,
        } = model;
        let hook_point = |hook: v1::HookPointInfo| HookPoint {
            name_pattern: hook.name_pattern,
            width: hook.width,
        };
        Self {
            model_id,
            model_digest,
            family,
            d_model,
            n_layers,
            vocab_size,
            context_length,
            dtype,
            quantization,
            device,
            hook_points: hook_points.into_iter().map(hook_point).collect(),
            has_chat_template,
            limits: limits.map(Into::into),
            load: load.map(Into::into),
            version,
        }
    }
}

impl From<v1::Limits> for Limits {
    fn from(limits: v1::Limits) -> Self {
        let v1::Limits {
            max_variants,
            max_interventions,
            max_payloads,
            max_new_tokens,
            max_request_bytes,
            max_sequences,
            max_queued_requests,
            max_probes,
            max_stop_conditions,
            kv_cache_bytes,
            kv_bytes_per_token,
            max_prompt_tokens,
            max_response_bytes,
            max_streams_per_connection,
            max_request_seconds,
            max_parked_seconds,
        } = limits;
        Self {
            max_variants,
            max_interventions,
            max_payloads,
            max_new_tokens,
            max_request_bytes,
            max_sequences,
            max_queued_requests,
            max_probes,
            max_stop_conditions,
            kv_cache_bytes,
            kv_bytes_per_token,
            max_prompt_tokens,
            max_response_bytes,
            max_streams_per_connection,
            max_request_seconds,
            max_parked_seconds,
        }
    }
}

impl From<v1::Load> for Load {
    fn from(load: v1::Load) -> Self {
        let v1::Load {
            running_sequences,
            waiting_requests,
            kv_cache_bytes_reserved,
            prefix_cache_bytes,
            prefix_cache_tokens,
        } = load;
        Self {
            running_sequences,
            waiting_requests,
            kv_cache_bytes_reserved,
            prefix_cache_bytes,
            prefix_cache_tokens,
        }
    }
}

fn print(document: &Document) -> std::io::Result<()> {
    let Document {
        version,
        worker,
        registry,
    } = document;
    heading("worker", worker)?;
    if let Some(model) = &worker.content {
        print_card(&model.card())?;
    }
    output::line("")?;
    heading("registry", registry)?;
    if let Some(holdings) = &registry.content {
        print_card(&[
            ("  SAEs", holdings.sae_count.to_string()),
            ("  labels", holdings.label_count.to_string()),
            ("  CAVs", holdings.cav_count.to_string()),
        ])?;
    }
    output::line("")?;
    output::line(format_args!("steer {version}"))
}

fn heading<T>(name: &str, side: &Side<T>) -> std::io::Result<()> {
    let health = match side.health {
        "serving" => style(side.health).green(),
        other => style(other).red(),
    };
    output::line(format_args!("{} {} {health}", style(name).bold(), side.url))?;
    match &side.error {
        Some(error) => output::line(format_args!("  {error}")),
        None => Ok(()),
    }
}

impl Model {
    fn card(&self) -> Vec<(&'static str, String)> {
        let hooks: Vec<String> = self
            .hook_points
            .iter()
            .map(|hook| format!("{} ({})", hook.name_pattern, hook.width))
            .collect();
        let weights = [&self.dtype, &self.quantization].map(String::as_str);
        let weights: Vec<&str> = weights
            .into_iter()
            .filter(|text| !text.is_empty())
            .collect();
        let template = if self.has_chat_template {
            "yes"
        } else {
            "no: use --raw"
        };
        vec![
            ("  model", self.model_id.clone()),
            ("  family", self.family.clone()),
            ("  layers", self.n_layers.to_string()),
            ("  d_model", self.d_model.to_string()),
            ("  vocabulary", self.vocab_size.to_string()),
            ("  context", self.context_length.to_string()),
            ("  weights", weights.join(", ")),
            ("  device", self.device.clone()),
            ("  chat template", template.to_owned()),
            ("  hook points", hooks.join(", ")),
            (
                "  limits",
                self.limits.as_ref().map_or(String::new(), Limits::line),
            ),
            (
                "  load",
                self.load.as_ref().map_or(String::new(), Load::line),
            ),
            ("  digest", self.model_digest.clone()),
            ("  version", self.version.clone()),
        ]
    }
}

impl Limits {
    fn line(&self) -> String {
        let tokens = match self.kv_bytes_per_token {
            0 => String::new(),
            bytes => format!(", {} tokens in all", self.kv_cache_bytes / bytes),
        };
        format!(
            "{} variants a request, {} sequences at a time, {} requests waiting, \
             {} new tokens{tokens}",
            self.max_variants, self.max_sequences, self.max_queued_requests, self.max_new_tokens
        )
    }
}

impl Load {
    fn line(&self) -> String {
        format!(
            "{} sequences running, {} requests waiting, {} prompt tokens reused",
            self.running_sequences, self.waiting_requests, self.prefix_cache_tokens
        )
    }
}

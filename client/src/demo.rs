//! The demo that comes with the repository: a folder with a model, an SAE, labels and
//! CAVs, loaded as anybody's are. `demo.json` in it says what is where.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context;
use clap::Args;
use serde::Deserialize;
use steering_client::{CavEdit, Client, FeatureEdit, ImportEvent, Steering, prompt, v1};

use crate::{failure::hinted, output, progress};

/// Its manifest, relative to the checkout.
const MANIFEST: &str = "demo/demo.json";
/// The folder itself, where it was named.
const MANIFEST_NAME: &str = "demo.json";

/// Where the demo is.
#[derive(Debug, Args)]
pub(crate) struct DemoDir {
    /// Folder of the demo [default: `demo` in the checkout that steer was built in, else in
    /// or above the current folder].
    #[arg(long, value_name = "DIR", env = "STEER_DEMO_DIR")]
    demo_dir: Option<PathBuf>,
}

/// The demo's manifest.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    /// Folder of the model.
    model: PathBuf,
    sae: SaeFiles,
    cavs: CavFile,
    show: Show,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SaeFiles {
    /// Name it gets.
    name: String,
    path: PathBuf,
    hook: String,
    labels: PathBuf,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CavFile {
    path: PathBuf,
    hook: String,
}

/// What `steer demo` shows.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Show {
    /// What the user says.
    pub(crate) prompt: String,
    /// Whether the template opens the model's turn.
    pub(crate) add_generation_prompt: bool,
    /// Seed of the sampler.
    pub(crate) seed: u64,
    /// Most tokens to generate.
    pub(crate) max_new_tokens: u32,
    /// One SAE feature, as after `--feature`.
    pub(crate) feature: String,
    /// One CAV, as after `--cav`.
    pub(crate) cav: String,
    /// A label for the reader to try.
    pub(crate) try_feature: String,
}

/// The demo, found.
#[derive(Debug)]
pub(crate) struct Demo {
    dir: PathBuf,
    manifest: Manifest,
}

impl Demo {
    /// Finds and reads it.
    pub(crate) fn find(place: &DemoDir) -> anyhow::Result<Self> {
        let path = match &place.demo_dir {
            Some(dir) => dir.join(MANIFEST_NAME),
            None => search().ok_or_else(|| {
                hinted(
                    format!(
                        "the demo is not here: no {MANIFEST} above steer or the current folder"
                    ),
                    "it comes with the repository; run in a checkout, or name its folder with \
                     --demo-dir (STEER_DEMO_DIR)",
                )
            })?,
        };
        let named = || path.display().to_string();
        let text = fs::read_to_string(&path).with_context(named)?;
        let manifest = serde_json::from_str(&text).with_context(named)?;
        let dir = path.parent().unwrap_or(Path::new(".")).canonicalize()?;
        Ok(Self { dir, manifest })
    }

    /// What to show.
    pub(crate) fn shown(&self) -> &Show {
        &self.manifest.show
    }

    /// Folder of the model.
    pub(crate) fn model(&self) -> PathBuf {
        self.dir.join(&self.manifest.model)
    }

    /// Imports SAE, labels and CAVs. An SAE that is there already stays as it is.
    pub(crate) async fn import(&self, client: &Client) -> anyhow::Result<()> {
        let model_id = client.get_model().await?.model_id;
        let Manifest { sae, cavs, .. } = &self.manifest;
        let held = client.list_saes(None).await?.items;
        if !held.iter().any(|held| held.sae_id == sae.name) {
            self.import_sae(client, sae, &model_id).await?;
        }
        let silent = || progress::on_bytes(&indicatif::ProgressBar::hidden());
        let header = v1::LabelImportHeader {
            sae_id: sae.name.clone(),
            source: String::new(),
            shared_names: false,
        };
        let labels = self.dir.join(&sae.labels);
        client.import_labels(header, &labels, silent()).await?;
        let header = v1::CavImportHeader {
            hook_name: cavs.hook.clone(),
            model_id,
            file_name: cavs.path.display().to_string(),
        };
        let file = self.dir.join(&cavs.path);
        client.import_cavs(header, &file, silent()).await?;
        Ok(())
    }

    async fn import_sae(
        &self,
        client: &Client,
        sae: &SaeFiles,
        model_id: &str,
    ) -> anyhow::Result<()> {
        let path = self.dir.join(&sae.path).into_os_string();
        let path = path
            .into_string()
            .map_err(|path| anyhow::anyhow!("{} is not valid UTF-8", path.display()))?;
        let request = v1::ImportSaeRequest {
            source: Some(v1::import_sae_request::Source::Path(path)),
            options: Some(v1::SaeImportOptions {
                sae_id: sae.name.clone(),
                hook_name: sae.hook.clone(),
                model_id: model_id.to_owned(),
                activation_scale: None,
                provenance: None,
                new_version: false,
            }),
        };
        let mut import = client.import_sae(request).await?;
        while let Some(event) = import.next().await? {
            if matches!(event, ImportEvent::Done(_)) {
                return Ok(());
            }
        }
        anyhow::bail!("the import ended without an SAE")
    }

    /// Prints three commands that work on it.
    pub(crate) fn suggest(&self) -> std::io::Result<()> {
        let steer = program();
        let show = self.shown();
        let open = if show.add_generation_prompt {
            " --add-generation-prompt"
        } else {
            ""
        };
        let Show {
            prompt,
            try_feature,
            ..
        } = show;
        let label = try_feature.split('=').next().unwrap_or(try_feature);
        for command in [
            format!("generate {prompt:?}{open} --feature {try_feature} --compare"),
            format!("features show {label}"),
            "features list --candidates".to_owned(),
        ] {
            output::line(format_args!("  {steer} {command}"))?;
        }
        Ok(())
    }
}

impl Show {
    /// The prompt's message.
    pub(crate) fn to_prompt(&self) -> v1::Prompt {
        let message = prompt::message("user", self.prompt.clone());
        prompt::chat(vec![message], self.add_generation_prompt)
    }

    /// The feature's edit and the CAV's.
    pub(crate) fn edits(&self) -> anyhow::Result<[Steering; 2]> {
        let feature: FeatureEdit = self.feature.parse()?;
        let cav: CavEdit = self.cav.parse()?;
        Ok([
            Steering {
                features: vec![feature],
                ..Steering::default()
            },
            Steering {
                cavs: vec![cav],
                ..Steering::default()
            },
        ])
    }
}

/// How this program was called, so that a printed command can be copied.
pub(crate) fn program() -> String {
    std::env::args()
        .next()
        .unwrap_or_else(|| "steer".to_owned())
}

/// The manifest above this program, else above the current folder.
fn search() -> Option<PathBuf> {
    let program = std::env::current_exe().ok();
    let program = program.and_then(|path| path.canonicalize().ok());
    let starts = [program, std::env::current_dir().ok()];
    starts
        .iter()
        .flatten()
        .flat_map(|start| start.ancestors())
        .map(|folder| folder.join(MANIFEST))
        .find(|path| path.is_file())
}

//! `steer cavs export`.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, ValueEnum};
use serde::Serialize;
use steering_client::{Client, v1};

use super::{gguf::to_gguf, torch::to_torch};
use crate::{failure::hinted, output};

/// Write CAVs to a file that `steer cavs import` reads.
///
/// A safetensors file has the tensor `cavs` [n, d] in float32 and the metadata `labels` (a
/// JSON list), `hook_name` and `model_id`. A JSON file is a list of {"label", "cav"}, a .pt file
/// the notebook's {"cavs", "labels"} for torch.load: import both with --hook and --model. A GGUF
/// file is a control vector for llama.cpp and repeng: one CAV at the output of layers, whose
/// import names it by the file. No format keeps where a CAV came from or how it was trained;
/// `steer export` does.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  steer cavs export rec.sport.baseball --out baseball.safetensors
  steer cavs export sci.space sci.med --out cavs.pt
  steer cavs export rec.sport.baseball --out baseball.gguf")]
pub(super) struct ExportArgs {
    /// Names, or NAME@DIGEST; all of one width, at one hook point.
    #[arg(required = true)]
    names: Vec<String>,
    /// The file to write.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Format of the file [default: what its name ends in, else safetensors].
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Hook point, where a CAV has directions at several. A GGUF file can hold all of them.
    #[arg(long, value_name = "HOOK")]
    hook: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum Format {
    Safetensors,
    Json,
    Pt,
    Gguf,
}

impl Format {
    /// What is asked for, which a file's name must not contradict; else what the name says.
    fn choose(asked: Option<Self>, file: &Path) -> anyhow::Result<Self> {
        let extension = file.extension().unwrap_or_default().to_string_lossy();
        let named = Self::from_str(&extension, true).ok();
        match (asked, named) {
            (Some(asked), Some(named)) if asked != named => Err(hinted(
                format!(
                    "--format says {}, but --out {} ends in .{extension}",
                    asked.name(),
                    file.display()
                ),
                format!("leave --format out, or end the name in .{}", asked.name()),
            )),
            (Some(format), _) | (None, Some(format)) => Ok(format),
            (None, None) => Ok(Self::Safetensors),
        }
    }

    /// As it is written, and what files of it end in.
    fn name(self) -> &'static str {
        match self {
            Self::Safetensors => "safetensors",
            Self::Json => "json",
            Self::Pt => "pt",
            Self::Gguf => "gguf",
        }
    }
}

/// What goes into the file.
#[derive(Debug, Default, PartialEq)]
pub(in crate::commands) struct Export {
    pub(in crate::commands) hook_name: String,
    pub(in crate::commands) model_id: String,
    pub(in crate::commands) labels: Vec<String>,
    pub(in crate::commands) rows: Vec<Vec<f32>>,
}

#[derive(Serialize)]
struct JsonRow<'a> {
    label: &'a str,
    cav: &'a [f32],
}

#[derive(Serialize)]
struct ExportDocument {
    path: PathBuf,
    format: Format,
    hook_name: String,
    model_id: String,
    labels: Vec<String>,
}

pub(super) async fn run(args: ExportArgs, client: &Client, json: bool) -> anyhow::Result<()> {
    let format = Format::choose(args.format, &args.out)?;
    let mut cavs = Vec::new();
    for name in &args.names {
        cavs.push(client.get_cav(name).await?);
    }
    let (export, bytes) = match format {
        Format::Gguf => control_vector(cavs, args.hook.as_deref())?,
        format => {
            let export = collect(cavs, args.hook.as_deref())?;
            let bytes = match format {
                Format::Json => to_json(&export)?,
                Format::Pt => to_torch(&export)?,
                Format::Safetensors | Format::Gguf => to_safetensors(&export)?,
            };
            (export, bytes)
        }
    };
    write_whole(&args.out, &bytes)
        .with_context(|| format!("cannot write {}", args.out.display()))?;
    if json {
        return output::json(&ExportDocument {
            path: args.out,
            format,
            hook_name: export.hook_name,
            model_id: export.model_id,
            labels: export.labels,
        });
    }
    let (path, labels) = (args.out.display(), export.labels.join(", "));
    Ok(output::line(format_args!("{labels} written to {path}"))?)
}

fn collect(cavs: Vec<v1::Cav>, hook: Option<&str>) -> anyhow::Result<Export> {
    let mut export = Export::default();
    for (i, cav) in cavs.into_iter().enumerate() {
        let v1::Cav {
            name,
            model_id,
            mut directions,
            ..
        } = cav;
        if let Some(hook) = hook {
            directions.retain(|direction| direction.hook_name == hook);
        }
        let count = directions.len();
        let direction = match (directions.pop(), count) {
            (Some(direction), 1) => direction,
            (_, 0) => anyhow::bail!("CAV {name:?} has no direction there"),
            _ => {
                return Err(hinted(
                    format!("CAV {name:?} has directions at {count} hook points"),
                    "pick one with --hook; `steer cavs show` lists them",
                ));
            }
        };
        let values = direction.vector.unwrap_or_default().values;
        if i == 0 {
            export.hook_name = direction.hook_name;
            export.model_id = model_id;
        } else if export.hook_name != direction.hook_name
            || export.model_id != model_id
            || export.rows[0].len() != values.len()
        {
            return Err(hinted(
                format!("CAV {name:?} is of another model, hook point or width than the first"),
                "export them to separate files",
            ));
        }
        export.labels.push(name);
        export.rows.push(values);
    }
    Ok(export)
}

/// The vectors of one CAV as a GGUF file; and what is to be said of it.
fn control_vector(cavs: Vec<v1::Cav>, hook: Option<&str>) -> anyhow::Result<(Export, Vec<u8>)> {
    let Ok([cav]) = <[v1::Cav; 1]>::try_from(cavs) else {
        return Err(hinted(
            "a GGUF control vector is one CAV".to_owned(),
            "export them to separate files",
        ));
    };
    let v1::Cav {
        name,
        model_id,
        mut directions,
        ..
    } = cav;
    directions.retain(|direction| hook.is_none_or(|hook| direction.hook_name == hook));
    anyhow::ensure!(
        !directions.is_empty(),
        "CAV {name:?} has no direction there"
    );
    let (hooks, rows): (Vec<String>, Vec<Vec<f32>>) = directions
        .into_iter()
        .map(|it| (it.hook_name, it.vector.unwrap_or_default().values))
        .unzip();
    let vectors = hooks
        .iter()
        .map(String::as_str)
        .zip(rows.iter().map(Vec::as_slice));
    let vectors: Vec<(&str, &[f32])> = vectors.collect();
    let bytes = to_gguf(&name, &model_id, &vectors)?;
    let export = Export {
        hook_name: hooks.join(","),
        model_id,
        labels: vec![name],
        rows,
    };
    Ok((export, bytes))
}

/// The file that `steer cavs import` reads. Written here, since the library writes metadata
/// in another order each time, and the same CAVs are to be the same bytes.
pub(in crate::commands) fn to_safetensors(export: &Export) -> anyhow::Result<Vec<u8>> {
    let width = export.rows.first().map_or(0, Vec::len);
    let numbers = export.rows.iter().flatten();
    let data: Vec<u8> = numbers.flat_map(|value| value.to_le_bytes()).collect();
    let header = serde_json::json!({
        "__metadata__": {
            "hook_name": export.hook_name,
            "labels": serde_json::to_string(&export.labels)?,
            "model_id": export.model_id,
        },
        "cavs": {
            "dtype": "F32",
            "shape": [export.rows.len(), width],
            "data_offsets": [0, data.len()],
        },
    });
    let mut header = serde_json::to_vec(&header)?;
    // Numbers begin at a multiple of eight.
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header);
    file.extend(data);
    Ok(file)
}

fn to_json(export: &Export) -> anyhow::Result<Vec<u8>> {
    let labels = export.labels.iter().map(String::as_str);
    let rows = export.rows.iter().map(Vec::as_slice);
    let rows: Vec<JsonRow<'_>> = labels
        .zip(rows)
        .map(|(label, cav)| JsonRow { label, cav })
        .collect();
    Ok(serde_json::to_vec(&rows)?)
}

/// Writes a file so that it is whole or not there.
fn write_whole(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let written = std::fs::write(&partial, bytes).and_then(|()| std::fs::rename(&partial, path));
    if written.is_err() {
        // The first error is the one to tell.
        let _ = std::fs::remove_file(&partial);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::SafeTensors;

    fn cav(name: &str, hooks: &[&str], values: &[f32]) -> v1::Cav {
        let direction = |hook: &&str| v1::CavDirection {
            hook_name: (*hook).to_owned(),
            vector: Some(v1::Vector {
                name: name.to_owned(),
                values: values.to_vec(),
            }),
            ..v1::CavDirection::default()
        };
        v1::Cav {
            name: name.to_owned(),
            model_id: "tiny".to_owned(),
            directions: hooks.iter().map(direction).collect(),
            ..v1::Cav::default()
        }
    }

    #[test]
    fn safetensors_have_one_tensor_and_the_labels() {
        let cavs = vec![cav("a", &["h"], &[1.0, 2.0]), cav("b", &["h"], &[3.0, 4.0])];
        let bytes = to_safetensors(&collect(cavs, None).expect("export")).expect("bytes");
        let (_, header) = SafeTensors::read_metadata(&bytes).expect("header");
        let metadata = header.metadata().as_ref().expect("metadata");
        assert_eq!(metadata["labels"], r#"["a","b"]"#);
        assert_eq!(metadata["hook_name"], "h");
        assert_eq!(metadata["model_id"], "tiny");
        let tensors = SafeTensors::deserialize(&bytes).expect("tensors");
        let tensor = tensors.tensor("cavs").expect("cavs");
        assert_eq!(
            (tensor.dtype(), tensor.shape()),
            (safetensors::Dtype::F32, &[2, 2][..])
        );
        assert_eq!(tensor.data()[12..], 4.0_f32.to_le_bytes());
    }

    #[test]
    fn json_is_a_list_of_labels_and_vectors() {
        let export = collect(vec![cav("a", &["h"], &[0.1])], None).expect("export");
        let text = String::from_utf8(to_json(&export).expect("json")).expect("utf-8");
        let expected = r#"[{"label":"a","cav":[0.1]}]"#;
        assert_eq!(text, expected);
    }

    #[test]
    fn a_files_name_says_its_format() {
        let choose = |asked, file: &str| Format::choose(asked, Path::new(file)).ok();
        for (asked, file, expected) in [
            (None, "a.pt", Some(Format::Pt)),
            (None, "a.b/c.GGUF", Some(Format::Gguf)),
            (None, "a.json", Some(Format::Json)),
            (None, "a.safetensors", Some(Format::Safetensors)),
            (None, "a.bin", Some(Format::Safetensors)),
            (None, "pt", Some(Format::Safetensors)),
            (Some(Format::Pt), "a.bin", Some(Format::Pt)),
            (Some(Format::Pt), "a.pt", Some(Format::Pt)),
            (Some(Format::Pt), "a.gguf", None),
            (Some(Format::Safetensors), "a.json", None),
        ] {
            assert_eq!(choose(asked, file), expected, "{asked:?} {file}");
        }
        let error = Format::choose(Some(Format::Json), Path::new("x.pt"));
        let error = error.expect_err("contradiction").to_string();
        assert!(error.contains("--format says json"), "{error}");
    }

    #[test]
    fn one_file_has_one_hook_point() {
        let both = || cav("a", &["h", "k"], &[1.0]);
        assert!(collect(vec![both()], None).is_err());
        assert_eq!(collect(vec![both()], Some("k")).expect("k").hook_name, "k");
        assert!(collect(vec![both()], Some("z")).is_err());
        let mixed = vec![cav("a", &["h"], &[1.0]), cav("b", &["k"], &[1.0])];
        assert!(collect(mixed, None).is_err());
    }
}

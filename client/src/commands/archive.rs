//! `steer export`, `steer import`: a registry in a folder of plain files, and back.
//!
//! | file | what |
//! |---|---|
//! | `manifest.json` | what is there, with the SHA-256 of every other file; written last |
//! | `saes/…/steer_sae.safetensors` | the canonical file; its SHA-256 is the SAE's digest |
//! | `saes/…/labels.jsonl` | labels and candidates, as `steer labels import` reads them |
//! | `saes/…/statistics-….jsonl` | one version of feature statistics |
//! | `cavs/….safetensors` | one direction of a CAV, as `steer cavs import` reads it |
//! | `cavs/….pt`, `cavs/….gguf` | the same numbers for other programs; not read again |

mod export;
mod files;
mod import;
mod manifest;
mod rows;

pub(crate) use export::{ExportArgs, run as export};
pub(crate) use import::{ImportArgs, run as import};

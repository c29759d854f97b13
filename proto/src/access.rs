//! Who may call what: the scope that each RPC takes, and API keys as they are kept.
//!
//! A key is a random secret; a service knows its SHA-256 only. That is enough
//! against theft of the file, because a secret of 256 random bits, unlike a
//! password, cannot be found by trying.

mod keys;

use std::{fmt::Write as _, str::FromStr};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub use keys::{KeyEntry, key_entries};

/// What every key begins with, so that scanners for leaked secrets know one.
pub const KEY_PREFIX: &str = "steer_";

/// What a key allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Scope {
    /// Everything that the worker does.
    #[serde(rename = "generate")]
    Generate,
    /// Reading SAEs, features, labels and CAVs.
    #[serde(rename = "registry.read")]
    RegistryRead,
    /// Importing and deleting them; reading is a scope of its own.
    #[serde(rename = "registry.write")]
    RegistryWrite,
    /// Everything.
    #[serde(rename = "admin")]
    Admin,
}

/// What calling an RPC takes where keys are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Nothing: health, which probes without keys ask for.
    Open,
    /// Any valid key: reflection.
    AnyKey,
    /// A key with this scope, or with [`Scope::Admin`].
    Scope(Scope),
}

/// What calling the RPC at `path` (`/package.Service/Method`) takes. None for one that
/// nobody has thought about.
pub fn access(path: &str) -> Option<Access> {
    let (service, method) = path.strip_prefix('/')?.split_once('/')?;
    let scope = match service {
        "grpc.health.v1.Health" => {
            return matches!(method, "Check" | "Watch" | "List").then_some(Access::Open);
        }
        "grpc.reflection.v1.ServerReflection" | "grpc.reflection.v1alpha.ServerReflection" => {
            return (method == "ServerReflectionInfo").then_some(Access::AnyKey);
        }
        "steering.v1.ModelWorkerService" => worker_scope(method)?,
        "steering.v1.FeatureRegistryService" => registry_scope(method)?,
        _ => return None,
    };
    Some(Access::Scope(scope))
}

fn worker_scope(method: &str) -> Option<Scope> {
    match method {
        "GetModel" | "Generate" | "Tokenize" | "CaptureActivations" | "ScoreText"
        | "ProjectDirection" => Some(Scope::Generate),
        _ => None,
    }
}

fn registry_scope(method: &str) -> Option<Scope> {
    match method {
        "ListSaes"
        | "GetSae"
        | "SearchFeatures"
        | "ListFeatures"
        | "GetFeatures"
        | "FindSimilarFeatures"
        | "EncodeActivations"
        | "DownloadSae"
        | "ListFeatureStatisticsVersions"
        | "ListFeatureStatistics"
        | "ListCavs"
        | "GetCav" => Some(Scope::RegistryRead),
        "ImportSae"
        | "UploadSae"
        | "DeleteSae"
        | "UndeleteSae"
        | "ImportFeatureLabels"
        | "ComputeFeatureStatistics"
        | "ImportFeatureStatistics"
        | "DeleteFeatureStatistics"
        | "CreateCav"
        | "ImportCavs"
        | "TrainCavs"
        | "DeleteCav"
        | "UndeleteCav" => Some(Scope::RegistryWrite),
        _ => None,
    }
}

impl Scope {
    /// All scopes.
    pub const ALL: [Self; 4] = [
        Self::Generate,
        Self::RegistryRead,
        Self::RegistryWrite,
        Self::Admin,
    ];

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Generate => "generate",
            Self::RegistryRead => "registry.read",
            Self::RegistryWrite => "registry.write",
            Self::Admin => "admin",
        }
    }
}

impl FromStr for Scope {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|scope| scope.name() == text);
        found.ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            format!("{text:?} is no scope; there are {names}")
        })
    }
}

/// A key from random bytes.
pub fn key_of(random: &[u8; 32]) -> String {
    KEY_PREFIX.to_owned() + &hex(random)
}

/// SHA-256 of a key, as services keep it.
pub fn key_digest(key: &str) -> [u8; 32] {
    Sha256::digest(key.as_bytes()).into()
}

/// Bytes in hex.
pub fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use prost_types::FileDescriptorSet;

    use super::*;
    use crate::v1::FILE_DESCRIPTOR_SET;

    #[test]
    fn every_rpc_of_the_contract_has_a_scope() {
        let files = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).expect("descriptors");
        let mut rpcs = 0;
        for file in &files.file {
            for service in &file.service {
                for method in &service.method {
                    let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                    let access = access(&path);
                    assert!(
                        matches!(access, Some(Access::Scope(_))),
                        "{path}: {access:?}"
                    );
                    rpcs += 1;
                }
            }
        }
        assert!(rpcs >= 20, "{rpcs}");
        let documented = include_str!("../../services/common/README.md");
        assert!(
            documented.contains(&format!("each of the {rpcs} RPCs")),
            "{rpcs}"
        );
    }

    /// Of the registry; all of the worker's have one.
    #[test]
    fn the_table_of_scopes_is_whole() {
        let documented = include_str!("../../services/common/README.md");
        let files = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).expect("descriptors");
        let services = files.file.iter().flat_map(|file| &file.service);
        let registry = services.filter(|service| service.name() == "FeatureRegistryService");
        for method in registry.flat_map(|service| &service.method) {
            let scope = registry_scope(method.name()).expect("a scope").name();
            let row = documented
                .lines()
                .find(|line| line.starts_with(&format!("| `{scope}`")))
                .expect("a row");
            assert!(
                row.contains(&format!("`{}`", method.name())),
                "{}",
                method.name()
            );
        }
    }

    #[test]
    fn what_is_not_known_has_none() {
        for path in [
            "",
            "/",
            "/steering.v1.ModelWorkerService/Nothing",
            "/steering.v1.ModelWorkerService/GetModel/",
            "//steering.v1.ModelWorkerService/GetModel",
            "/x/grpc.health.v1.Health/Check",
            "/grpc.health.v1.Health/Anything",
        ] {
            assert_eq!(access(path), None, "{path}");
        }
    }

    #[test]
    fn scopes_are_written_as_they_are_read() {
        for scope in Scope::ALL {
            assert_eq!(scope.name().parse(), Ok(scope));
        }
        assert!("write".parse::<Scope>().is_err());
    }
}

//! What the service does, apart from gRPC: one method per operation.

mod cavs;
mod deletion;
mod features;
mod labels;
mod saes;
mod scans;
pub mod search;
mod statistics;
mod statistics_import;
mod training;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::sync::{Mutex, Semaphore, SemaphorePermit};

use crate::{
    error::{Error, Result},
    import::access::{Access, HubAccess},
    store::{Address, SaeRecord, Store, Versions},
    vectors::{Stored, Vectors},
};

pub use deletion::{KEEP_DELETED_DAYS, Removed};
pub use features::{FEATURES_MAX, FeatureName, FeatureRef, check_index};
pub use saes::ImportSource;
use search::{SharedLists, SharedVocabulary};

pub use scans::{FoundFeature, SimilarQuery};
pub use statistics::Gathering;
pub use statistics_import::ReceivedStatistics;
pub use training::{LabelledActivations, TrainedCavs};

/// SAE imports that run at once: each holds up to 150 MB.
const IMPORTS_RUNNING_MAX: usize = 1;
/// SAE imports that run or wait.
const IMPORTS_MAX: usize = 16;
/// Names listed when one was not found.
const NAMES_LISTED: u32 = 20;
/// Look-alikes suggested when a name was not found.
const SUGGESTIONS_MAX: usize = 5;
/// Similarity from which a name passes for a mistyped one.
const ALIKE_MIN: f64 = 0.6;

/// The registry.
#[derive(Debug)]
pub struct Registry {
    store: Arc<dyn Store>,
    vectors: Vectors,
    staging: PathBuf,
    access: Option<Access>,
    hub: HubAccess,
    imports: Semaphore,
    importing: Semaphore,
    cav_imports: Semaphore,
    trainings: Semaphore,
    scans: Semaphore,
    statistics: Semaphore,
    /// Held, with the store's lock, while an object gains its first row or loses its last,
    /// so that neither happens between the two steps of the other.
    objects: Mutex<()>,
    vocabulary: SharedVocabulary,
    lists: Arc<SharedLists>,
    keep_deleted: Duration,
}

impl Registry {
    /// Puts the parts together. `staging` is for files on their way in and is
    /// emptied. `access` of None refuses imports by path.
    pub fn open(
        store: Arc<dyn Store>,
        vectors: Vectors,
        staging: &Path,
        access: Option<Access>,
    ) -> Result<Self> {
        match std::fs::remove_dir_all(staging) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        std::fs::create_dir_all(staging)?;
        Ok(Self {
            store,
            vectors,
            staging: staging.to_owned(),
            access,
            hub: HubAccess::default(),
            imports: Semaphore::new(IMPORTS_MAX),
            importing: Semaphore::new(IMPORTS_RUNNING_MAX),
            scans: Semaphore::new(scans::SCANS_MAX),
            statistics: Semaphore::new(statistics::STATISTICS_MAX),
            cav_imports: Semaphore::new(cavs::CAV_IMPORTS_MAX),
            trainings: Semaphore::new(training::TRAININGS_MAX),
            objects: Mutex::new(()),
            vocabulary: SharedVocabulary::default(),
            lists: Arc::default(),
            keep_deleted: Duration::ZERO,
        }
        .keeping_deleted(KEEP_DELETED_DAYS))
    }

    /// With a list of hub repositories that may be imported.
    pub fn with_hub(self, hub: HubAccess) -> Self {
        Self { hub, ..self }
    }

    /// Removes objects that no SAE has: left by a process that ended between
    /// making them visible and naming them. A folder must be this process's own.
    pub async fn remove_orphans(&self) -> Result<()> {
        for Stored { digest, .. } in self.vectors.list().await? {
            let _here = self.objects.lock().await;
            let _everywhere = self.store.lock_objects().await?;
            if !self.store.has_digest(&digest).await? {
                tracing::info!(digest, "removing directions that no SAE has");
                self.vectors.delete(&digest).await?;
            }
        }
        Ok(())
    }

    /// Folder for files on their way in; on the disk that they will end up on.
    pub fn staging(&self) -> &Path {
        &self.staging
    }

    /// Leave to bring an SAE in. Errors at once if too many do.
    pub fn admit_import(&self) -> Result<SemaphorePermit<'_>> {
        self.imports
            .try_acquire()
            .map_err(|_| Error::Busy(format!("{IMPORTS_MAX} imports run or wait already")))
    }

    /// Ends all use of the store.
    pub async fn close(&self) {
        self.store.close().await;
    }

    /// The SAE at `name` (its newest version) or `name@digest`; an empty name stands for the
    /// only one.
    pub async fn sae(&self, sae_id: &str) -> Result<SaeRecord> {
        if !sae_id.is_empty() {
            return self.sae_at(sae_id).await;
        }
        let mut saes = self.store.list_saes("", NAMES_LISTED).await?;
        match (saes.pop(), saes.as_slice()) {
            (Some(only), []) => Ok(only),
            (None, _) => Err(Error::SaeNotFound {
                sae_id: String::new(),
                known: Vec::new(),
            }),
            (Some(last), others) => {
                let names: Vec<&str> = others
                    .iter()
                    .chain([&last])
                    .map(|sae| sae.name.as_str())
                    .collect();
                Err(steering_proto::Invalid::field(
                    "sae_id",
                    format!(
                        "is required where several SAEs are held: {}",
                        names.join(", ")
                    ),
                )
                .into())
            }
        }
    }

    async fn sae_at(&self, sae_id: &str) -> Result<SaeRecord> {
        let address = deletion::parse_sae_address(sae_id)?;
        if address.digest_prefix.is_none() {
            return match self.store.sae(sae_id).await? {
                Some(sae) => Ok(sae),
                None => Err(self.sae_not_found(sae_id).await?),
            };
        }
        let mut found = self.store.saes_at(&address, Versions::Live).await?;
        match (found.pop(), found.is_empty()) {
            (Some(sae), true) => Ok(sae),
            (Some(_), false) => Err(deletion::ambiguous("sae_id", sae_id)),
            (None, _) => Err(self.sae_not_found(sae_id).await?),
        }
    }

    /// Why an SAE could not be read: damage, unless it was purged meanwhile.
    async fn unreadable(&self, sae: &SaeRecord, error: Error) -> Error {
        if !matches!(error, Error::DataLoss(_)) {
            return error;
        }
        let address = Address::of(&sae.name, &sae.digest);
        match self.store.saes_at(&address, Versions::All).await {
            Ok(there) if !there.is_empty() => error.of_sae(&sae.name),
            Ok(_) => self
                .sae_not_found(&sae.name)
                .await
                .unwrap_or_else(|error| error),
            Err(error) => error,
        }
    }

    async fn sae_not_found(&self, sae_id: &str) -> Result<Error> {
        let address = deletion::parse_sae_address(sae_id)?;
        let deleted = self.store.saes_at(&address, Versions::Deleted).await?;
        if !deleted.is_empty() {
            return Ok(Error::SaeDeleted {
                sae_id: sae_id.to_owned(),
            });
        }
        let known = self.store.list_saes("", NAMES_LISTED).await?;
        Ok(Error::SaeNotFound {
            sae_id: sae_id.to_owned(),
            known: known.into_iter().map(|sae| sae.name).collect(),
        })
    }
}

/// Up to five candidates that look most like `wanted`, best first; those that do not
/// look like it at all only where nothing does, so that an empty list means that there
/// is nothing to choose from.
fn nearest(wanted: &str, candidates: Vec<String>) -> Vec<String> {
    let wanted = wanted.to_lowercase();
    let mut scored: Vec<(f64, String)> = candidates
        .into_iter()
        .map(|candidate| {
            let folded = candidate.to_lowercase();
            let similarity = strsim::normalized_damerau_levenshtein(&wanted, &folded)
                .max(0.95 * strsim::jaro_winkler(&wanted, &folded));
            let contains = folded.contains(&wanted) || wanted.contains(&folded);
            (similarity + if contains { 0.2 } else { 0.0 }, candidate)
        })
        .collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    scored.truncate(SUGGESTIONS_MAX);
    let alike = scored.partition_point(|(similarity, _)| *similarity >= ALIKE_MIN);
    if alike > 0 {
        scored.truncate(alike);
    }
    scored.into_iter().map(|(_, candidate)| candidate).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn look_alikes_come_best_first() {
        let labels = ["baseball", "basketball", "tennis", "base", "football"]
            .map(str::to_owned)
            .to_vec();
        let found = nearest("basebal", labels.clone());
        assert_eq!(found[0], "baseball");
        assert!(
            found.len() <= SUGGESTIONS_MAX && !found.contains(&"tennis".to_owned()),
            "{found:?}"
        );
        assert_eq!(nearest("BASEBALL", labels.clone())[0], "baseball");
        assert_eq!(nearest("zzzzqqqq", labels).len(), SUGGESTIONS_MAX);
        assert!(nearest("zzzzqqqq", Vec::new()).is_empty());
    }
}

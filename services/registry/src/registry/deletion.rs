//! Deletions of SAEs and CAVs: undone for a while, then purged.

use std::time::Duration;

use super::Registry;
use crate::{
    cavs::parse_address,
    error::{Error, Result},
    store::{Address, Versions, now_ms},
};

/// How long deleted versions are kept, unless the registry is told otherwise.
pub const KEEP_DELETED_DAYS: u32 = 30;
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Versions read at once.
const PAGE: u32 = 200;

/// What a deletion did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Removed {
    /// Versions.
    pub count: u32,
    /// When they will be purged, in milliseconds since 1970, UTC; None if they were.
    pub purge_at_ms: Option<i64>,
}

impl Registry {
    /// Keeps deleted versions for so many days; 0 = not at all.
    pub fn keeping_deleted(self, days: u32) -> Self {
        Self {
            keep_deleted: DAY * days,
            ..self
        }
    }

    /// When something that is deleted now will be purged; None if at once.
    fn purge_time(&self) -> Option<i64> {
        let keep = i64::try_from(self.keep_deleted.as_millis()).unwrap_or(i64::MAX);
        (keep > 0).then(|| now_ms().saturating_add(keep))
    }

    /// Deletes what is at `name` (all versions) or `name@digest` (one); with `purge` for good.
    pub async fn delete_sae(&self, address: &str, purge: bool) -> Result<Removed> {
        let parsed = self.sae_address(address).await?;
        let purge_at_ms = self.purge_time().filter(|_| !purge);
        let _here = self.objects.lock().await;
        let _everywhere = self.store.lock_objects().await?;
        let count = match purge_at_ms {
            Some(_) => self.store.delete_saes(&parsed).await?,
            None => self.purge_saes(&parsed, None).await?,
        };
        match count {
            0 => Err(self.sae_not_found(address).await?),
            count => Ok(Removed { count, purge_at_ms }),
        }
    }

    /// Brings back what was deleted at `name` (all versions) or `name@digest` (one).
    pub async fn undelete_sae(&self, address: &str) -> Result<u32> {
        let parsed = self.sae_address(address).await?;
        let _here = self.objects.lock().await;
        let _everywhere = self.store.lock_objects().await?;
        match self.store.undelete_saes(&parsed).await? {
            0 if self
                .store
                .saes_at(&parsed, Versions::Live)
                .await?
                .is_empty() =>
            {
                Err(self.sae_not_found(address).await?)
            }
            restored => Ok(restored),
        }
    }

    /// Removes rows, and then directions that no row has. The lock is held.
    async fn purge_saes(&self, address: &Address, deleted_before_ms: Option<i64>) -> Result<u32> {
        let purged = self.store.purge_saes(address, deleted_before_ms).await?;
        for (digest, shared) in &purged {
            if !shared {
                self.vectors.delete(digest).await?;
            }
        }
        Ok(u32::try_from(purged.len()).unwrap_or(u32::MAX))
    }

    /// An address, of one version where it has a digest.
    async fn sae_address(&self, address: &str) -> Result<Address> {
        let parsed = parse_sae_address(address)?;
        let several = parsed.digest_prefix.is_some()
            && self.store.saes_at(&parsed, Versions::All).await?.len() > 1;
        if several {
            return Err(ambiguous("sae_id", address));
        }
        Ok(parsed)
    }

    /// Deletes what is at `name` (all versions) or `name@digest` (one); with `purge` for good.
    pub async fn delete_cav(&self, address: &str, purge: bool) -> Result<Removed> {
        let parsed = self.cav_address(address).await?;
        let purge_at_ms = self.purge_time().filter(|_| !purge);
        let count = match purge_at_ms {
            Some(_) => self.store.delete_cavs(&parsed).await?,
            None => self.store.purge_cavs(&parsed).await?,
        };
        match count {
            0 => Err(self.cav_not_found(&parsed, address).await?),
            count => Ok(Removed { count, purge_at_ms }),
        }
    }

    /// Brings back what was deleted at `name` (all versions) or `name@digest` (one).
    pub async fn undelete_cav(&self, address: &str) -> Result<u32> {
        let parsed = self.cav_address(address).await?;
        match self.store.undelete_cavs(&parsed).await? {
            0 if self
                .store
                .cavs_at(&parsed, Versions::Live)
                .await?
                .is_empty() =>
            {
                Err(self.cav_not_found(&parsed, address).await?)
            }
            restored => Ok(restored),
        }
    }

    async fn cav_address(&self, address: &str) -> Result<Address> {
        let parsed = parse_address(address)?;
        let several = parsed.digest_prefix.is_some()
            && self.store.cavs_at(&parsed, Versions::All).await?.len() > 1;
        if several {
            return Err(ambiguous("name", address));
        }
        Ok(parsed)
    }

    /// Purges what was deleted longer ago than it is kept.
    pub async fn purge_deleted(&self) -> Result<()> {
        let keep = i64::try_from(self.keep_deleted.as_millis()).unwrap_or(i64::MAX);
        let before = now_ms().saturating_sub(keep);
        let cavs = self.store.purge_deleted_cavs(before).await?;
        let (mut saes, mut after) = (0, 0);
        loop {
            let store = &self.store;
            let page = store.list_sae_versions(Versions::Deleted, after, PAGE);
            let page = page.await?;
            let Some((last, _)) = page.last() else { break };
            after = *last;
            for (_, sae) in page {
                if sae.deleted_at_ms.is_some_and(|deleted| deleted < before) {
                    let _here = self.objects.lock().await;
                    let _everywhere = self.store.lock_objects().await?;
                    // It may have come back meanwhile.
                    let address = Address::of(&sae.name, &sae.digest);
                    saes += self.purge_saes(&address, Some(before)).await?;
                }
            }
        }
        if saes + cavs > 0 {
            tracing::info!(saes, cavs, "purged versions that were deleted");
        }
        Ok(())
    }
}

/// Parses `name` or `name@digest` of an SAE.
pub(super) fn parse_sae_address(address: &str) -> Result<Address> {
    if address.is_empty() {
        return Err(steering_proto::Invalid::field("sae_id", "is required").into());
    }
    Ok(parse_address(address)?)
}

pub(super) fn ambiguous(field: &str, address: &str) -> Error {
    let text = format!("{address:?} fits several versions; give more digits");
    steering_proto::Invalid::field(field, text).into()
}

//! CAVs: storing, listing.

use std::{fs::File, sync::Arc};

use tokio::sync::SemaphorePermit;

use super::{Registry, deletion::ambiguous, nearest};
use crate::{
    blocking::blocking,
    cavs::{self, CavContext, CavFile, parse_address},
    error::{Error, Result},
    format::SourceFile,
    store::{Address, CavRecord, Versions},
};

/// Names looked through for look-alikes.
const NAMES_MAX: u32 = 20_000;

/// Imports at once: each holds its file, and what came of it, in memory.
pub(super) const CAV_IMPORTS_MAX: usize = 4;

impl Registry {
    /// Leave to send a file of CAVs. Errors at once while too many do.
    pub fn admit_cav_import(&self) -> Result<SemaphorePermit<'_>> {
        let busy = || {
            Error::Busy(format!(
                "{CAV_IMPORTS_MAX} files of CAVs are being imported already"
            ))
        };
        self.cav_imports.try_acquire().map_err(|_| busy())
    }

    /// Stores CAVs that are complete. Returns them without numbers.
    pub async fn add_cavs(&self, records: &[CavRecord]) -> Result<Vec<CavRecord>> {
        self.store.add_cavs(records).await
    }

    /// Imports all CAVs of a file, or none. Returns them without numbers.
    pub async fn import_cavs(
        &self,
        context: CavContext,
        file: File,
        file_name: String,
    ) -> Result<Vec<CavRecord>> {
        let scratch = self.staging.clone();
        let records = blocking(move || {
            let source = Arc::new(SourceFile::new(file, file_name.clone())?);
            let file =
                CavFile::read(&source, &scratch).map_err(|error| Error::file("chunk", error))?;
            Ok(cavs::records(file, &context, &file_name)?)
        })
        .await?;
        self.add_cavs(&records).await
    }

    /// Newest versions by name, behind `after`, without numbers.
    pub async fn list_cavs(&self, prefix: &str, after: &str, limit: u32) -> Result<Vec<CavRecord>> {
        self.store.list_cavs(prefix, after, limit).await
    }

    /// Versions of names that start with `prefix`, as they were stored, behind `after`.
    pub async fn list_cav_versions(
        &self,
        prefix: &str,
        versions: Versions,
        after: i64,
        limit: u32,
    ) -> Result<Vec<(i64, CavRecord)>> {
        self.store
            .list_cav_versions(prefix, versions, after, limit)
            .await
    }

    /// The CAV at `name` (its newest version) or `name@digest`, with numbers.
    pub async fn cav(&self, address: &str) -> Result<CavRecord> {
        let parsed = parse_address(address)?;
        let found = self.store.cavs_at(&parsed, Versions::Live).await?;
        let mut found = found.into_iter();
        match (found.next(), found.next()) {
            (Some(_), Some(_)) if parsed.digest_prefix.is_some() => Err(ambiguous("name", address)),
            (Some(cav), _) if cavs::numbers_digest(&cav) != cav.digest => {
                let CavRecord { name, digest, .. } = cav;
                let text =
                    format!("CAV {name}@{digest}: its numbers are not those it was stored with");
                Err(Error::DataLoss(text))
            }
            (Some(cav), _) => Ok(cav),
            (None, _) => Err(self.cav_not_found(&parsed, address).await?),
        }
    }

    pub(super) async fn cav_not_found(&self, parsed: &Address, address: &str) -> Result<Error> {
        let deleted = self.store.cavs_at(parsed, Versions::Deleted).await?;
        if !deleted.is_empty() {
            return Ok(Error::CavDeleted {
                name: address.to_owned(),
            });
        }
        let names = self.store.cav_names(NAMES_MAX).await?;
        Ok(Error::CavNotFound {
            name: address.to_owned(),
            nearest: nearest(&parsed.name, names),
        })
    }
}

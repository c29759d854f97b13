//! CAVs: storing, listing, removal.

use std::{fs::File, sync::Arc};

use steering_proto::Invalid;

use super::{Registry, nearest};
use crate::{
    blocking::blocking,
    cavs::{self, CavContext, CavFile, parse_address},
    error::{Error, Result},
    format::SourceFile,
    store::{CavAddress, CavRecord},
};

/// Names looked through for look-alikes.
const NAMES_MAX: u32 = 20_000;

impl Registry {
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

    /// The CAV at `name` (its newest version) or `name@digest`, with numbers.
    pub async fn cav(&self, address: &str) -> Result<CavRecord> {
        let parsed = parse_address(address)?;
        let mut found = self.store.cavs_at(&parsed).await?.into_iter();
        match (found.next(), found.next()) {
            (Some(_), Some(_)) if parsed.digest_prefix.is_some() => Err(ambiguous(address)),
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

    /// Removes what is at `name` (all versions) or `name@digest` (one); returns how many.
    pub async fn delete_cav(&self, address: &str) -> Result<u32> {
        let parsed = parse_address(address)?;
        if parsed.digest_prefix.is_some() && self.store.cavs_at(&parsed).await?.len() > 1 {
            return Err(ambiguous(address));
        }
        match self.store.remove_cavs(&parsed).await? {
            0 => Err(self.cav_not_found(&parsed, address).await?),
            removed => Ok(removed),
        }
    }

    async fn cav_not_found(&self, parsed: &CavAddress, address: &str) -> Result<Error> {
        let names = self.store.cav_names(NAMES_MAX).await?;
        Ok(Error::CavNotFound {
            name: address.to_owned(),
            nearest: nearest(&parsed.name, names),
        })
    }
}

fn ambiguous(address: &str) -> Error {
    Invalid::field(
        "name",
        format!("{address:?} fits several versions; give more digits"),
    )
    .into()
}

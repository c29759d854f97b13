//! SAEs: import, listing.

use std::{ops::Range, path::PathBuf, sync::Arc, time::Instant};

use bytes::Bytes;
use steering_proto::Invalid;
use tempfile::TempDir;
use tokio::sync::mpsc;

use super::Registry;
use crate::{
    blocking::blocking,
    canonical::Layout,
    error::{Error, Result},
    format::FormatError,
    import::{
        SaeSource,
        access::Access,
        convert::convert,
        detect::{Found, detect},
        hub::{self, HubSource},
        options::{ImportOptions, Resolved},
    },
    progress::Progress,
    scan::SaeFile,
    store::{SaeRecord, Versions, now_ms},
    vectors::StagedObject,
};

/// Chunks of 4 MiB between conversion and storage: as many as keep the storing
/// side busy while the next block is read.
const CHUNKS_WAITING_MAX: usize = 8;

/// Where an SAE comes from.
#[derive(Debug)]
pub enum ImportSource {
    /// A file or folder of this machine, named by a client.
    Path(PathBuf),
    /// A repository of the model hub.
    Hub(HubSource),
    /// A folder of files that a client sent; gone after the import.
    Upload(TempDir),
}

/// Files on this machine, and what is known of them.
struct Located {
    path: PathBuf,
    /// Path in the words of the request; its names may say something.
    hint: String,
    origin: Option<String>,
    /// Request field that errors are about.
    field: &'static str,
    access: Access,
    upload: Option<TempDir>,
}

/// Files that are open, and what is known of them.
struct Opened {
    found: Found,
    origin: String,
    /// Request field that errors are about.
    field: &'static str,
    /// Keeps an upload's files.
    upload: Option<TempDir>,
}

impl Registry {
    /// Imports an SAE; it is visible when this returns, and nothing of it is
    /// left if it fails. Stops soon after nobody listens to `progress`.
    pub async fn import_sae(
        &self,
        options: ImportOptions,
        source: ImportSource,
        progress: Arc<Progress>,
    ) -> Result<SaeRecord> {
        let new_version = options.new_version;
        if !new_version && self.store.sae(&options.sae_id).await?.is_some() {
            return Err(Error::SaeExists {
                sae_id: options.sae_id,
            });
        }
        let opened = self.open_source(source, &progress).await?;
        let _running = tokio::select! {
            permit = self.importing.acquire() => permit.map_err(|error| Error::Storage(Box::new(error)))?,
            () = progress.cancelled() => return Err(Error::Cancelled),
        };
        let scratch = self.staging.clone();
        let reading = Arc::clone(&progress);
        let field = opened.field;
        let started = Instant::now();
        let (opened, source) = blocking(move || {
            let source = SaeSource::read(&opened.found, &scratch, &reading)
                .map_err(|error| Error::file(field, error))?;
            Ok((opened, source))
        })
        .await?;
        let read_ms = started.elapsed().as_millis();
        let resolved = options.resolve(&source)?;
        let (layout, staged) = self
            .write_canonical(source, &resolved, field, &progress)
            .await?;
        let provenance = options.provenance;
        if let Some(known) = &provenance {
            known.check(&staged.digest)?;
        }
        let record = SaeRecord {
            key: 0,
            name: options.sae_id,
            digest: staged.digest.clone(),
            hook_name: resolved.hook.to_string(),
            model_id: resolved.model_id,
            layout: layout.0,
            normalization: layout.1,
            format: layout.2.to_owned(),
            origin: opened.origin,
            created_at_ms: now_ms(),
            label_count: 0,
            deleted_at_ms: None,
        };
        let record = match provenance {
            Some(known) => SaeRecord {
                format: known.format,
                origin: known.origin,
                created_at_ms: known.created_at_ms.unwrap_or(record.created_at_ms),
                ..record
            },
            None => record,
        };
        drop(opened.upload);
        let record = self.make_visible(staged, &record, new_version).await?;
        let total_ms = started.elapsed().as_millis();
        tracing::info!(
            sae = record.name,
            digest = record.digest,
            read_ms,
            total_ms,
            "imported"
        );
        Ok(record)
    }

    async fn open_source(&self, source: ImportSource, progress: &Arc<Progress>) -> Result<Opened> {
        let Located {
            path,
            hint,
            origin,
            field,
            access,
            upload,
        } = self.locate(source, progress).await?;
        let found = blocking(move || {
            detect(&path, &hint, &access).map_err(|error| Error::file(field, error))
        })
        .await?;
        // An upload has no path of its own; its files' names are what is known of it.
        let origin = origin.unwrap_or_else(|| found.hint.clone());
        Ok(Opened {
            found,
            origin,
            field,
            upload,
        })
    }

    /// Where the files are on this machine, once they are.
    async fn locate(&self, source: ImportSource, progress: &Arc<Progress>) -> Result<Located> {
        Ok(match source {
            ImportSource::Path(path) => {
                let access = self.access.clone().ok_or_else(|| {
                    Error::NotAllowed(
                        "this registry serves more than its own machine and was started without \
                         --import-root, so it reads no paths; upload the files instead"
                            .to_owned(),
                    )
                })?;
                if !path.is_absolute() {
                    return Err(Invalid::field(
                        "path",
                        "must be absolute, as the registry sees it",
                    )
                    .into());
                }
                let hint = path.display().to_string();
                Located {
                    path,
                    origin: Some(hint.clone()),
                    hint,
                    field: "path",
                    access,
                    upload: None,
                }
            }
            ImportSource::Hub(hub) if !self.hub.allows(&hub.repo_id) => {
                return Err(Error::NotAllowed(format!(
                    "hub.repo_id: {:?} is none of the repositories that this registry imports; \
                     start it with --hub-allow, or send the files with UploadSae",
                    hub.repo_id
                )));
            }
            ImportSource::Hub(hub) => Located {
                path: hub::download(&hub, progress).await?,
                hint: format!("{}/{}", hub.repo_id, hub.path),
                origin: Some(hub.origin()),
                field: "hub",
                access: Access::Anywhere,
                upload: None,
            },
            ImportSource::Upload(folder) => Located {
                path: folder.path().to_owned(),
                hint: "upload".to_owned(),
                origin: None,
                field: "chunk",
                access: Access::roots(&[folder.path().to_owned()])?,
                upload: Some(folder),
            },
        })
    }

    /// Converts on one thread while the bytes before are hashed and stored.
    async fn write_canonical(
        &self,
        source: SaeSource,
        resolved: &Resolved,
        field: &'static str,
        progress: &Arc<Progress>,
    ) -> Result<(
        (
            Layout,
            steering_proto::payload::InputNormalization,
            &'static str,
        ),
        StagedObject,
    )> {
        let narrow =
            |size: usize| u32::try_from(size).map_err(|_| Error::DataLoss("size".to_owned()));
        let (layout, header) = Layout::new(
            source.activation.architecture(),
            source.normalization,
            narrow(source.encoder.width())?,
            narrow(source.encoder.features())?,
        );
        let described = (layout, source.normalization, source.format);
        let mut writer = self.vectors.writer()?;
        let (sender, mut chunks) = mpsc::channel::<Bytes>(CHUNKS_WAITING_MAX);
        let (scale, converting) = (resolved.scale, Arc::clone(progress));
        let conversion = tokio::task::spawn_blocking(move || {
            let mut emit = |chunk: Vec<u8>| {
                sender
                    .blocking_send(chunk.into())
                    .map_err(|_| FormatError::Cancelled)
            };
            emit(header)?;
            convert(&source, scale, &converting, &mut emit)
        });
        let mut written = Ok(());
        while let Some(chunk) = chunks.recv().await {
            written = writer.write(chunk).await;
            if written.is_err() {
                break;
            }
        }
        // Lets a conversion that still sends notice.
        drop(chunks);
        let converted = conversion
            .await
            .map_err(|error| Error::Storage(Box::new(error)))?;
        // A storage error is the cause of the conversion's end, not the other way round.
        let outcome = written.and_then(|()| converted.map_err(|error| Error::file(field, error)));
        outcome?;
        let _ = progress.report("storing", 0, layout.file_len());
        let started = Instant::now();
        let staged = writer.finish().await?;
        tracing::debug!(sync_ms = started.elapsed().as_millis(), "object is durable");
        Ok((described, staged))
    }

    async fn make_visible(
        &self,
        staged: StagedObject,
        record: &SaeRecord,
        new_version: bool,
    ) -> Result<SaeRecord> {
        // An upload takes long, and what nobody has named yet stays in a bucket for a while.
        if self.vectors.keeps_unnamed() {
            self.vectors.publish(staged).await?;
            let _here = self.objects.lock().await;
            let _everywhere = self.store.lock_objects().await?;
            return self.name(record, new_version).await;
        }
        let _here = self.objects.lock().await;
        let _everywhere = self.store.lock_objects().await?;
        self.vectors.publish(staged).await?;
        self.name(record, new_version).await
    }

    /// Gives an object that is visible a name; removes it if that fails.
    async fn name(&self, record: &SaeRecord, new_version: bool) -> Result<SaeRecord> {
        match self.store.add_sae(record, new_version).await {
            Ok(record) => Ok(record),
            Err(error) => {
                if !self.store.has_digest(&record.digest).await.unwrap_or(true) {
                    self.vectors.delete(&record.digest).await?;
                }
                Err(error)
            }
        }
    }

    /// Bytes of an SAE's canonical file.
    pub async fn read_sae(
        &self,
        sae: &SaeRecord,
        file: &SaeFile,
        bytes: Range<u64>,
    ) -> Result<Vec<u8>> {
        let object = Arc::clone(&file.object);
        let read = blocking(move || {
            let mut buffer = Vec::new();
            Ok(object.read(&bytes, &mut buffer).map(<[u8]>::to_vec))
        });
        match read.await? {
            Ok(bytes) => Ok(bytes),
            Err(error) => Err(self.unreadable(sae, error.into()).await),
        }
    }

    /// Newest versions by name, behind `after`.
    pub async fn list_saes(&self, after: &str, limit: u32) -> Result<Vec<SaeRecord>> {
        self.store.list_saes(after, limit).await
    }

    /// Versions as they were stored, behind `after`.
    pub async fn list_sae_versions(
        &self,
        versions: Versions,
        after: i64,
        limit: u32,
    ) -> Result<Vec<(i64, SaeRecord)>> {
        self.store.list_sae_versions(versions, after, limit).await
    }
}

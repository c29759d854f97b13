//! Sending files, and following an import.

use std::{
    fmt,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
};

use futures::{Stream, StreamExt, stream};
use steering_proto::v1;
use tokio::{fs::File, io::AsyncReadExt, sync::mpsc};
use tonic::Status;

use crate::{Client, Error, Service};

/// Bytes of a file per message; the contract allows 1 MiB.
const CHUNK_BYTES: usize = 512 << 10;

/// Told how many bytes were just read.
pub type OnBytes = Arc<dyn Fn(u64) + Send + Sync>;

/// Files to upload, with names relative to their folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileSet {
    /// Name and place of each, by name.
    pub files: Vec<(String, PathBuf)>,
    /// Bytes in all.
    pub total_bytes: u64,
}

impl FileSet {
    /// A file, or all files in a folder and its folders, hidden ones left out.
    ///
    /// # Errors
    /// If something cannot be read, or there is no file.
    pub fn scan(path: &Path) -> Result<Self, Error> {
        let mut set = Self {
            files: Vec::new(),
            total_bytes: 0,
        };
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if std::fs::metadata(path).map_err(file_error(path))?.is_dir() {
            set.add_folder(path, "")?;
        } else {
            set.add_file(path.to_owned(), name.into_owned())?;
        }
        set.files.sort();
        if set.files.is_empty() {
            let empty = std::io::Error::new(std::io::ErrorKind::NotFound, "the folder is empty");
            return Err(file_error(path)(empty));
        }
        Ok(set)
    }

    fn add_folder(&mut self, folder: &Path, prefix: &str) -> Result<(), Error> {
        for entry in std::fs::read_dir(folder).map_err(file_error(folder))? {
            let entry = entry.map_err(file_error(folder))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with('.') {
                continue;
            }
            let name = format!("{prefix}{name}");
            // Links to files are followed, as in the hub's cache; links to folders
            // could lead in circles.
            let kind = entry.file_type().map_err(file_error(folder))?;
            if kind.is_dir() {
                self.add_folder(&entry.path(), &format!("{name}/"))?;
            } else {
                self.add_file(entry.path(), name)?;
            }
        }
        Ok(())
    }

    fn add_file(&mut self, path: PathBuf, name: String) -> Result<(), Error> {
        let metadata = std::fs::metadata(&path).map_err(file_error(&path))?;
        if !metadata.is_file() {
            let kind = std::io::Error::new(std::io::ErrorKind::InvalidInput, "is not a file");
            return Err(file_error(&path)(kind));
        }
        self.total_bytes += metadata.len();
        self.files.push((name, path));
        Ok(())
    }
}

/// What an import says.
#[derive(Debug, Clone, PartialEq)]
pub enum ImportEvent {
    /// How far it is.
    Progress(v1::ImportProgress),
    /// Done: the SAE is stored and visible.
    Done(v1::Sae),
}

/// A running import. Dropping it cancels the import.
pub struct ImportStream {
    events: Pin<Box<dyn Stream<Item = Result<Option<ImportEvent>, Status>> + Send>>,
    failures: mpsc::Receiver<Error>,
    client: Client,
    done: bool,
}

impl fmt::Debug for ImportStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ImportStream").finish_non_exhaustive()
    }
}

impl ImportStream {
    /// The next event; the last one is [`ImportEvent::Done`].
    ///
    /// # Errors
    /// If the registry fails or ends without the SAE, or a file cannot be read.
    pub async fn next(&mut self) -> Result<Option<ImportEvent>, Error> {
        let event = tokio::select! {
            event = self.events.next() => event,
            Some(failure) = self.failures.recv() => return Err(failure),
        };
        let contract = |what| Error::contract(Service::Registry, what);
        match event {
            None if self.done => Ok(None),
            None => Err(contract("ended an import without the SAE")),
            Some(Err(status)) => Err(self.client.registry_failed(status)),
            Some(Ok(None)) => Err(contract("sent an event of an unknown kind")),
            Some(Ok(Some(event))) => {
                self.done |= matches!(event, ImportEvent::Done(_));
                Ok(Some(event))
            }
        }
    }
}

impl Client {
    /// Imports an SAE that the registry reads itself.
    ///
    /// # Errors
    /// If the registry refuses the request.
    pub async fn import_sae(&self, request: v1::ImportSaeRequest) -> Result<ImportStream, Error> {
        use v1::import_sae_response::Event;
        let response = self.registry().import_sae(request).await;
        let response = response.map_err(|s| self.registry_failed(s))?.into_inner();
        let event = |response: v1::ImportSaeResponse| {
            response.event.map(|event| match event {
                Event::Progress(progress) => ImportEvent::Progress(progress),
                Event::Sae(sae) => ImportEvent::Done(sae),
            })
        };
        Ok(ImportStream {
            events: Box::pin(response.map(move |message| message.map(event))),
            failures: mpsc::channel(1).1,
            client: self.clone(),
            done: false,
        })
    }

    /// Imports an SAE from local files.
    ///
    /// # Errors
    /// If the registry refuses the request or a file cannot be read.
    pub async fn upload_sae(
        &self,
        options: v1::SaeImportOptions,
        files: FileSet,
        on_bytes: OnBytes,
    ) -> Result<ImportStream, Error> {
        use v1::{upload_sae_request::Content, upload_sae_response::Event};
        let (failed, mut failures) = mpsc::channel(1);
        let file = move |(name, path)| {
            let start = stream::once(async { Content::FileName(name) });
            let bytes = chunks(path, failed.clone(), on_bytes.clone()).map(Content::Chunk);
            start.chain(bytes)
        };
        let messages = stream::once(async { Content::Options(options) })
            .chain(stream::iter(files.files).flat_map(file))
            .map(|content| v1::UploadSaeRequest {
                content: Some(content),
            });
        let mut registry = self.registry();
        let response = tokio::select! {
            response = registry.upload_sae(messages) => response,
            Some(failure) = failures.recv() => return Err(failure),
        };
        let response = response.map_err(|s| self.registry_failed(s))?.into_inner();
        let event = |response: v1::UploadSaeResponse| {
            response.event.map(|event| match event {
                Event::Progress(progress) => ImportEvent::Progress(progress),
                Event::Sae(sae) => ImportEvent::Done(sae),
            })
        };
        Ok(ImportStream {
            events: Box::pin(response.map(move |message| message.map(event))),
            failures,
            client: self.clone(),
            done: false,
        })
    }

    /// Imports a file of labels.
    ///
    /// # Errors
    /// If the registry refuses it or it cannot be read.
    pub async fn import_labels(
        &self,
        header: v1::LabelImportHeader,
        path: &Path,
        on_bytes: OnBytes,
    ) -> Result<v1::ImportFeatureLabelsResponse, Error> {
        use v1::import_feature_labels_request::Content;
        let (failed, mut failures) = mpsc::channel(1);
        let messages = stream::once(async { Content::Header(header) })
            .chain(chunks(path.to_owned(), failed, on_bytes).map(Content::Chunk))
            .map(|content| v1::ImportFeatureLabelsRequest {
                content: Some(content),
            });
        let mut registry = self.registry();
        tokio::select! {
            response = registry.import_feature_labels(messages) => response
                .map(tonic::Response::into_inner)
                .map_err(|s| self.registry_failed(s)),
            Some(failure) = failures.recv() => Err(failure),
        }
    }

    /// Imports a file of CAVs; the stored ones, without vectors.
    ///
    /// # Errors
    /// If the registry refuses it or it cannot be read.
    pub async fn import_cavs(
        &self,
        header: v1::CavImportHeader,
        path: &Path,
        on_bytes: OnBytes,
    ) -> Result<Vec<v1::Cav>, Error> {
        use v1::import_cavs_request::Content;
        let (failed, mut failures) = mpsc::channel(1);
        let messages = stream::once(async { Content::Header(header) })
            .chain(chunks(path.to_owned(), failed, on_bytes).map(Content::Chunk))
            .map(|content| v1::ImportCavsRequest {
                content: Some(content),
            });
        let mut registry = self.registry();
        tokio::select! {
            response = registry.import_cavs(messages) => response
                .map(|response| response.into_inner().cavs)
                .map_err(|s| self.registry_failed(s)),
            Some(failure) = failures.recv() => Err(failure),
        }
    }
}

fn file_error(path: &Path) -> impl FnOnce(std::io::Error) -> Error + use<> {
    let path = path.to_owned();
    |source| Error::File { path, source }
}

/// A file's bytes. On a read error the stream reports it and stays open: an ended
/// stream would make half a file look like a whole one. Dropping the call closes it.
fn chunks(
    path: PathBuf,
    failed: mpsc::Sender<Error>,
    on_bytes: OnBytes,
) -> impl Stream<Item = Vec<u8>> + Send + 'static {
    stream::unfold(None, move |file: Option<File>| {
        let (path, failed, on_bytes) = (path.clone(), failed.clone(), on_bytes.clone());
        async move {
            match read_chunk(file, &path).await {
                Ok((chunk, _)) if chunk.is_empty() => None,
                Ok((chunk, file)) => {
                    on_bytes(chunk.len() as u64);
                    Some((chunk, Some(file)))
                }
                Err(source) => {
                    // Nobody listens once the call is over.
                    let _ = failed.send(Error::File { path, source }).await;
                    std::future::pending().await
                }
            }
        }
    })
}

async fn read_chunk(file: Option<File>, path: &Path) -> std::io::Result<(Vec<u8>, File)> {
    let mut file = match file {
        Some(file) => file,
        None => File::open(path).await?,
    };
    let mut chunk = Vec::with_capacity(CHUNK_BYTES);
    (&mut file)
        .take(CHUNK_BYTES as u64)
        .read_to_end(&mut chunk)
        .await?;
    Ok((chunk, file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_scanned_with_relative_names() {
        let folder = tempfile::tempdir().expect("tempdir");
        let root = folder.path();
        std::fs::create_dir(root.join("checkpoints")).expect("mkdir");
        for (name, text) in [
            ("cfg.json", "{}"),
            ("checkpoints/final.safetensors", "abc"),
            (".hidden", "no"),
        ] {
            std::fs::write(root.join(name), text).expect("write");
        }
        let set = FileSet::scan(root).expect("scan");
        let names: Vec<_> = set.files.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["cfg.json", "checkpoints/final.safetensors"]);
        assert_eq!(set.total_bytes, 5);
        let one = FileSet::scan(&root.join("cfg.json")).expect("scan");
        assert_eq!(one.files[0].0, "cfg.json");
        assert!(FileSet::scan(&root.join("absent")).is_err());
    }

    #[tokio::test]
    async fn files_come_in_bounded_chunks() {
        let folder = tempfile::tempdir().expect("tempdir");
        let path = folder.path().join("file");
        std::fs::write(&path, vec![7; CHUNK_BYTES + 5]).expect("write");
        let (failed, _failures) = mpsc::channel(1);
        let sizes: Vec<usize> = chunks(path, failed, Arc::new(|_| {}))
            .map(|chunk| chunk.len())
            .collect()
            .await;
        assert_eq!(sizes, [CHUNK_BYTES, 5]);
    }

    #[tokio::test]
    async fn an_unreadable_file_is_a_failure_not_an_end() {
        let (failed, mut failures) = mpsc::channel(1);
        let mut bytes = Box::pin(chunks("/absent/file".into(), failed, Arc::new(|_| {})));
        tokio::select! {
            _ = bytes.next() => panic!("the stream must stay open"),
            failure = failures.recv() => {
                assert!(matches!(failure, Some(Error::File { .. })));
            }
        }
    }
}

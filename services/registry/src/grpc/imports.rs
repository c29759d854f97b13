//! `ImportSae`, `UploadSae`: a task imports, a stream tells how far it is.

use std::{path::PathBuf, sync::Arc, time::Duration};

use steering_proto::{
    Invalid,
    invalid::required,
    v1::{self, ImportProgress},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::{EventStream, patience::patiently, receive::ReceivedFolder};
use crate::{
    error::Result,
    import::options::ImportOptions,
    progress::Progress,
    registry::{ImportSource, Registry},
    store::SaeRecord,
};

/// Most bytes of one upload: Gemma Scope's largest SAEs have 19 GB.
const UPLOAD_LEN_MAX: u64 = 64 << 30;
const PROGRESS_WAITING_MAX: usize = 16;
/// How long the next message of an upload may take: few may be under way.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) fn import_sae(
    registry: &Arc<Registry>,
    request: v1::ImportSaeRequest,
) -> Result<EventStream<v1::ImportSaeResponse>> {
    use v1::import_sae_request::Source;
    let v1::ImportSaeRequest { source, options } = request;
    let options = parse_options(options)?;
    let source = match required(source, "source")? {
        Source::Path(path) => ImportSource::Path(PathBuf::from(path)),
        Source::Hub(hub) => ImportSource::Hub(
            hub.try_into()
                .map_err(|invalid: Invalid| invalid.within("hub"))?,
        ),
    };
    let registry = Arc::clone(registry);
    let stream = watched(move |progress| async move {
        let _admitted = registry.admit_import()?;
        Ok(registry.import_sae(options, source, progress).await?)
    });
    Ok(Box::pin(futures::StreamExt::map(stream, |event| {
        use v1::import_sae_response::Event as Wire;
        let event = match event? {
            Event::Progress(progress) => Wire::Progress(progress),
            Event::Sae(sae) => Wire::Sae(sae.to_wire()),
        };
        Ok(v1::ImportSaeResponse { event: Some(event) })
    })))
}

pub(super) fn upload_sae(
    registry: &Arc<Registry>,
    requests: Streaming<v1::UploadSaeRequest>,
) -> EventStream<v1::UploadSaeResponse> {
    let registry = Arc::clone(registry);
    let stream = watched(move |progress| async move {
        let _admitted = registry.admit_import()?;
        let (options, source) = receive(&registry, requests, &progress).await?;
        Ok(registry.import_sae(options, source, progress).await?)
    });
    Box::pin(futures::StreamExt::map(stream, |event| {
        use v1::upload_sae_response::Event as Wire;
        let event = match event? {
            Event::Progress(progress) => Wire::Progress(progress),
            Event::Sae(sae) => Wire::Sae(sae.to_wire()),
        };
        Ok(v1::UploadSaeResponse { event: Some(event) })
    }))
}

fn parse_options(options: Option<v1::SaeImportOptions>) -> Result<ImportOptions, Invalid> {
    ImportOptions::try_from(required(options, "options")?)
        .map_err(|invalid| invalid.within("options"))
}

/// Takes an upload's files into a folder of the staging area.
async fn receive(
    registry: &Registry,
    mut requests: Streaming<v1::UploadSaeRequest>,
    progress: &Progress,
) -> Result<(ImportOptions, ImportSource), Status> {
    use v1::upload_sae_request::Content;
    let first = patiently(PATIENCE, requests.message()).await?;
    let first = first.and_then(|message| message.content);
    let Some(Content::Options(options)) = first else {
        return Err(Invalid::field("options", "must be the first message").into());
    };
    let options = parse_options(Some(options))?;
    let mut folder = ReceivedFolder::create(registry.staging(), UPLOAD_LEN_MAX)?;
    while let Some(message) = patiently(PATIENCE, requests.message()).await? {
        match required(message.content, "content")? {
            Content::FileName(name) => folder.start(&name).await?,
            Content::Chunk(chunk) => folder.append(chunk).await?,
            Content::Options(_) => return Err(Invalid::field("options", "are there twice").into()),
        }
        progress
            .report("receiving", folder.len(), 0)
            .map_err(|error| crate::error::Error::file("chunk", error))?;
    }
    Ok((options, ImportSource::Upload(folder.finish().await?)))
}

enum Event {
    Progress(ImportProgress),
    Sae(SaeRecord),
}

/// Runs an import as a task, so that it cleans up after itself even when the
/// stream that tells of it is dropped; the task notices that and stops.
fn watched<F>(
    import: impl FnOnce(Arc<Progress>) -> F + Send + 'static,
) -> impl futures::Stream<Item = Result<Event, Status>> + Send
where
    F: Future<Output = Result<SaeRecord, Status>> + Send + 'static,
{
    let (sender, events) = mpsc::channel(PROGRESS_WAITING_MAX);
    tokio::spawn(async move {
        let (progress_sender, mut progress) = mpsc::channel(PROGRESS_WAITING_MAX);
        let work = import(Arc::new(Progress::new(progress_sender)));
        tokio::pin!(work);
        let result = loop {
            tokio::select! {
                Some(message) = progress.recv() => {
                    // A full stream loses messages; a closed one stops the work.
                    let event = sender.try_send(Ok(Event::Progress(message)));
                    if matches!(event, Err(mpsc::error::TrySendError::Closed(_))) {
                        progress.close();
                    }
                }
                () = sender.closed(), if !progress.is_closed() => progress.close(),
                result = &mut work => break result,
            }
        };
        if let Err(status) = &result {
            tracing::info!(code = ?status.code(), message = status.message(), "import failed");
        }
        let _ = sender.send(result.map(Event::Sae)).await;
    });
    ReceiverStream::new(events)
}

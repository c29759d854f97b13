//! Labels: import from a file.

use std::{fs::File, io::Seek};

use futures::StreamExt;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::Registry;
use crate::{
    blocking::blocking,
    error::{Error, Result},
    format::FormatError,
    labels::{LabelContext, LabelFormat, read_labels},
    store::{LabelCounts, NewLabel},
};

const BATCH_LEN: usize = 2000;
const BATCHES_WAITING_MAX: usize = 4;

impl Registry {
    /// Imports all labels of a file, or none. `source` is recorded for labels that name none.
    pub async fn import_labels(
        &self,
        sae_id: &str,
        source: &str,
        mut file: File,
    ) -> Result<LabelCounts> {
        let sae = self.sae(sae_id).await?;
        let context = LabelContext {
            d_sae: sae.layout.d_sae,
            source: source.to_owned(),
        };
        let in_file = |error| Error::file("chunk", error);
        let (file, format) = blocking(move || {
            file.rewind()?;
            let format = LabelFormat::detect(&file).map_err(in_file)?;
            file.rewind()?;
            Ok((file, format))
        })
        .await?;
        let (sender, batches) = mpsc::channel::<Result<Vec<NewLabel>>>(BATCHES_WAITING_MAX);
        let reading = tokio::task::spawn_blocking(move || {
            let mut batch = Vec::with_capacity(BATCH_LEN);
            let sent = |batch| {
                sender
                    .blocking_send(Ok(batch))
                    .map_err(|_| FormatError::Cancelled)
            };
            let read = read_labels(file, format, &context, &mut |label| {
                batch.push(label);
                if batch.len() == BATCH_LEN {
                    sent(std::mem::replace(&mut batch, Vec::with_capacity(BATCH_LEN)))?;
                }
                Ok(())
            });
            let last = read.and_then(|()| sent(batch));
            if let Err(error) = last {
                // Makes the store give up everything; it may have given up before.
                let _ = sender.blocking_send(Err(in_file(error)));
            }
        });
        let stored = self
            .store
            .add_labels(
                &sae,
                ReceiverStream::new(batches).boxed(),
                format.names_are_unique(),
            )
            .await;
        reading
            .await
            .map_err(|error| Error::Storage(Box::new(error)))?;
        stored
    }
}

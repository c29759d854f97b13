//! Feature statistics that were computed elsewhere.

use std::{
    fs::File,
    io::{BufReader, BufWriter, IntoInnerError, Read, Seek, Write},
};

use futures::StreamExt;
use prost::Message;
use steering_proto::{
    Invalid,
    feature_statistics::CorpusSource,
    invalid::{finite, required, short},
    v1,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::{Registry, check_index, statistics::Seal};
use crate::{
    error::{Error, Result},
    statistics::{CONTEXTS_MAX, Context, FeatureStatistics},
    store::{SaeRecord, StatisticsVersion, milliseconds, now_ms},
};

/// Features written at once.
const FEATURES_WRITTEN: usize = 500;
const BATCHES_WAITING: usize = 4;
/// Longest text of a context: 12 tokens of 64 bytes.
const CONTEXT_LEN_MAX: usize = 12 * 64;

impl Registry {
    /// A version that was exported, and its SAE here.
    pub async fn check_statistics_version(
        &self,
        wire: v1::FeatureStatisticsVersion,
    ) -> Result<(SaeRecord, StatisticsVersion)> {
        let v1::FeatureStatisticsVersion {
            digest,
            sae_id,
            sae_digest,
            source,
            include_special_tokens,
            text_count,
            dropped_count,
            token_count,
            active_feature_count,
            created_at,
        } = wire;
        let sae = self.sae(&sae_id).await?;
        if sae_digest != sae.digest {
            let text = format!(
                "is {sae_digest:?}; SAE {:?} here has {}",
                sae.name, sae.digest
            );
            return Err(Invalid::field("version.sae_digest", text).into());
        }
        let source = required(source, "source").and_then(CorpusSource::try_from);
        let version = StatisticsVersion {
            key: 0,
            stored: 0,
            digest,
            source: source.map_err(|invalid| invalid.within("version.source"))?,
            include_special_tokens,
            text_count,
            dropped_count,
            token_count,
            active_feature_count,
            created_at_ms: created_at.map_or_else(now_ms, |time| milliseconds(&time)),
        };
        Ok((sae, version))
    }

    /// Begins to take a version's features.
    pub fn receive_statistics(
        &self,
        sae: SaeRecord,
        version: StatisticsVersion,
    ) -> Result<ReceivedStatistics> {
        Ok(ReceivedStatistics {
            seal: Seal::new(&version, &sae.digest),
            sae,
            version,
            file: BufWriter::new(tempfile::tempfile_in(&self.staging)?),
            next_index: 0,
        })
    }

    /// Stores what was received, if it has the digest that the version says.
    pub async fn import_statistics(
        &self,
        received: ReceivedStatistics,
    ) -> Result<(SaeRecord, StatisticsVersion)> {
        let (sae, version, file) = received.finish()?;
        let d_sae = sae.layout.d_sae;
        let (sender, batches) = mpsc::channel(BATCHES_WAITING);
        tokio::task::spawn_blocking(move || {
            if let Err(error) = send_all(file, d_sae, &sender) {
                // Nobody may wait any more.
                let _ = sender.blocking_send(Err(error));
            }
        });
        let features = ReceiverStream::new(batches).boxed();
        let stored = self.store.add_statistics(&sae, &version, features).await?;
        Ok((sae, stored))
    }
}

/// Features that are checked as they arrive, and wait on disk until all are there: the
/// store's other writers must not wait for a client.
#[derive(Debug)]
pub struct ReceivedStatistics {
    seal: Seal,
    sae: SaeRecord,
    version: StatisticsVersion,
    /// Each message behind its length.
    file: BufWriter<File>,
    /// Indices grow.
    next_index: u32,
}

impl ReceivedStatistics {
    /// Takes the next feature.
    pub fn push(&mut self, wire: v1::FeatureStatistics) -> Result<()> {
        let bytes = wire.encode_to_vec();
        let feature = parse(wire)?;
        let index = feature.feature_index;
        check_index(&self.sae, index)?;
        if index < self.next_index {
            let text = format!("is {index}; indices must grow");
            return Err(Invalid::field("feature_index", text).into());
        }
        self.next_index = index + 1;
        self.seal.add(&feature);
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        self.file.write_all(&len.to_le_bytes())?;
        Ok(self.file.write_all(&bytes)?)
    }

    fn finish(self) -> Result<(SaeRecord, StatisticsVersion, File)> {
        let (digest, count) = self.seal.finish();
        let said = (&self.version.digest, self.version.active_feature_count);
        if said != (&digest, count) {
            let text = format!(
                "is {} with {} features; what came has {digest} with {count}: it was changed",
                said.0, said.1
            );
            return Err(Invalid::field("version.digest", text).into());
        }
        let file = self.file.into_inner().map_err(IntoInnerError::into_error)?;
        Ok((self.sae, self.version, file))
    }
}

/// Sends the features of a file, batch by batch, as they are asked for.
fn send_all(
    mut file: File,
    d_sae: u32,
    sender: &mpsc::Sender<Result<Vec<FeatureStatistics>>>,
) -> Result<()> {
    let len = file.metadata()?.len();
    file.rewind()?;
    let mut file = BufReader::new(file);
    let (mut batch, mut read) = (Vec::new(), 0);
    // No file has more than an SAE has features.
    for _ in 0..d_sae {
        if read == len {
            break;
        }
        let mut prefix = [0; 4];
        file.read_exact(&mut prefix)?;
        let mut bytes = vec![0; u32::from_le_bytes(prefix) as usize];
        file.read_exact(&mut bytes)?;
        read += (prefix.len() + bytes.len()) as u64;
        let wire = v1::FeatureStatistics::decode(bytes.as_slice());
        batch.push(parse(
            wire.map_err(|error| Error::Storage(Box::new(error)))?,
        )?);
        if batch.len() >= FEATURES_WRITTEN {
            let sent = sender.blocking_send(Ok(std::mem::take(&mut batch)));
            sent.map_err(|_| Error::Cancelled)?;
        }
    }
    sender
        .blocking_send(Ok(batch))
        .map_err(|_| Error::Cancelled)
}

fn parse(wire: v1::FeatureStatistics) -> Result<FeatureStatistics, Invalid> {
    let v1::FeatureStatistics {
        feature_index,
        digest: _, // the version's
        active_count,
        density: _, // follows from the count
        max_activation,
        mean_activation,
        p50_activation,
        p90_activation,
        p99_activation,
        top_contexts,
    } = wire;
    if top_contexts.len() > CONTEXTS_MAX {
        let text = format!("has {} entries; at most {CONTEXTS_MAX}", top_contexts.len());
        return Err(Invalid::field("top_contexts", text));
    }
    let contexts = top_contexts.into_iter().map(context);
    Ok(FeatureStatistics {
        feature_index,
        active_count,
        max_activation: finite(max_activation, "max_activation")?,
        mean_activation: finite(mean_activation, "mean_activation")?,
        percentiles: [
            finite(p50_activation, "p50_activation")?,
            finite(p90_activation, "p90_activation")?,
            finite(p99_activation, "p99_activation")?,
        ],
        contexts: contexts.collect::<Result<_, _>>()?,
    })
}

fn context(wire: v1::FeatureContext) -> Result<Context, Invalid> {
    let v1::FeatureContext {
        activation,
        before,
        token,
        after,
    } = wire;
    for text in [&before, &token, &after] {
        short(text, "top_contexts", CONTEXT_LEN_MAX)?;
    }
    Ok(Context {
        activation: finite(activation, "top_contexts.activation")?,
        before,
        token,
        after,
    })
}

//! Feature statistics: gathered from activations as they arrive, stored at once, found.

use std::{collections::HashMap, sync::Arc};

use futures::StreamExt;
use sha2::{Digest, Sha256};
use steering_proto::{
    Invalid,
    feature_statistics::{StatisticsConfig, TextToken},
    payload::hex,
    v1,
};
use tokio::sync::{SemaphorePermit, mpsc};
use tokio_stream::wrappers::ReceiverStream;

use super::Registry;
use crate::{
    blocking::blocking,
    error::{Error, Result},
    scan::{Gathered, Rows},
    statistics::{Corpus, FeatureStatistics},
    store::{SaeRecord, StatisticsVersion, WhichStatistics, now_ms},
    vectors::is_damage,
};

/// Computations at once: each holds up to 1.2 KB for every feature of its SAE.
pub(super) const STATISTICS_MAX: usize = 2;
/// Activations encoded at once: so many that the products, not the SAE's file, take the time.
const BATCH_ROWS: usize = 1024;
const BATCH_BYTES: usize = 16 << 20;
/// Features written at once, and how often that many may wait.
const FEATURES_WRITTEN: usize = 500;
const BATCHES_WAITING: usize = 4;
/// Digits of a digest that name a version.
const DIGEST_PREFIX_MIN: usize = 8;

/// Statistics on their way. Nothing of them is stored before the end.
#[derive(Debug)]
pub struct Gathering {
    config: StatisticsConfig,
    sae: SaeRecord,
    gathered: Arc<Gathered>,
    corpus: Corpus,
    /// Activations that wait to be encoded, and where they are.
    waiting: Vec<f32>,
    places: Vec<(u32, u32)>,
    /// Tokens of the current text, by number, whose activations have not come; last first.
    expected: Vec<(u32, bool)>,
    text_count: u32,
    token_count: u64,
}

impl Gathering {
    /// Width of the activations.
    pub fn width(&self) -> usize {
        self.sae.layout.d_in as usize
    }

    /// Begins a text.
    pub fn begin_text(&mut self, tokens: &[TextToken]) -> Result<()> {
        self.check_complete()?;
        let first = self
            .corpus
            .add(tokens.iter().map(|token| token.text.as_str()))?;
        let special = tokens.iter().map(|token| token.special);
        self.expected = (first..).zip(special).collect();
        self.expected.reverse();
        self.text_count += 1;
        Ok(())
    }

    fn check_complete(&self) -> Result<(), Invalid> {
        if self.expected.is_empty() {
            return Ok(());
        }
        let text = format!(
            "are missing: {} tokens of text {} have no activations",
            self.expected.len(),
            self.text_count - 1
        );
        Err(Invalid::field("rows", text))
    }

    /// Takes the next activations of the text.
    fn take(&mut self, values: &[f32]) -> Result<(), Invalid> {
        for row in values.chunks_exact(self.width()) {
            let Some((token, special)) = self.expected.pop() else {
                return Err(Invalid::field(
                    "values",
                    "has more rows than the text has tokens",
                ));
            };
            if special && !self.config.include_special_tokens {
                continue;
            }
            self.waiting.extend_from_slice(row);
            self.places.push((self.text_count - 1, token));
            self.token_count += 1;
        }
        Ok(())
    }
}

impl Registry {
    /// Leave to compute statistics. Errors at once while too many do.
    pub fn admit_statistics(&self) -> Result<SemaphorePermit<'_>> {
        let busy = || {
            Error::Busy(format!(
                "{STATISTICS_MAX} statistics are being computed already"
            ))
        };
        self.statistics.try_acquire().map_err(|_| busy())
    }

    /// Begins statistics of an SAE's features.
    pub async fn gather_statistics(&self, config: StatisticsConfig) -> Result<Gathering> {
        let sae = self.sae(&config.sae_id).await?;
        let file = self.whole(&sae).await?;
        Ok(Gathering {
            config,
            gathered: Arc::new(Gathered::new(&file)),
            corpus: Corpus::create(&self.staging)?,
            sae,
            waiting: Vec::new(),
            places: Vec::new(),
            expected: Vec::new(),
            text_count: 0,
            token_count: 0,
        })
    }

    /// Counts the next activations of a text.
    pub async fn gather_rows(&self, gathering: &mut Gathering, values: &[f32]) -> Result<()> {
        let at_once = (BATCH_BYTES / (4 * gathering.width())).clamp(1, BATCH_ROWS);
        for values in values.chunks(at_once * gathering.width()) {
            gathering.take(values)?;
            if gathering.places.len() >= at_once {
                self.encode_waiting(gathering).await?;
            }
        }
        Ok(())
    }

    async fn encode_waiting(&self, gathering: &mut Gathering) -> Result<()> {
        let activations = std::mem::take(&mut gathering.waiting);
        let places = std::mem::take(&mut gathering.places);
        if places.is_empty() {
            return Ok(());
        }
        let gathered = gathering.gathered.clone();
        let sae = &gathering.sae;
        let normalization = sae.normalization;
        let file = self.whole(sae).await?;
        let _permit = self.scan_permit().await?;
        let counted = blocking(move || {
            let rows = Rows {
                activations: &activations,
                normalization,
                places: &places,
            };
            Ok(gathered.add(&file, rows))
        });
        let Err(error) = counted.await? else {
            return Ok(());
        };
        // What was counted of these rows cannot be taken back; who tries again reads anew.
        if is_damage(&error) {
            self.vectors.refetch(&sae.digest)?;
        }
        Err(self.unreadable(sae, error.into()).await)
    }

    /// Stores what was gathered; `text_count` texts must have come.
    pub async fn store_statistics(
        &self,
        mut gathering: Gathering,
        text_count: u64,
        dropped_count: u64,
    ) -> Result<(SaeRecord, StatisticsVersion)> {
        gathering.check_complete()?;
        if text_count != u64::from(gathering.text_count) {
            let text = format!("is {text_count}; {} texts came", gathering.text_count);
            return Err(Invalid::field("end.text_count", text).into());
        }
        if gathering.token_count == 0 {
            return Err(Invalid::field("end", "comes before any token that is counted").into());
        }
        self.encode_waiting(&mut gathering).await?;
        gathering.corpus.flush()?;
        let Gathering {
            config,
            sae,
            gathered,
            corpus,
            token_count,
            ..
        } = gathering;
        let version = StatisticsVersion {
            key: 0,
            stored: 0,
            digest: String::new(),
            source: config.source,
            include_special_tokens: config.include_special_tokens,
            text_count,
            dropped_count,
            token_count,
            active_feature_count: 0,
            created_at_ms: now_ms(),
        };
        let of_sae = sae.digest.clone();
        let finished = Arc::new((gathered, corpus));
        let reading = finished.clone();
        let version = blocking(move || sealed(version, &of_sae, &reading)).await?;
        let features = ReceiverStream::new(written(finished)).boxed();
        let version = self.store.add_statistics(&sae, &version, features).await?;
        Ok((sae, version))
    }

    /// What features did in the newest version, and that version; None if there is none.
    /// A feature that never fired has no entry.
    pub(super) async fn newest_statistics(
        &self,
        sae: i64,
        indices: &[u32],
        with_contexts: bool,
    ) -> Result<Option<(StatisticsVersion, HashMap<u32, FeatureStatistics>)>> {
        let which = WhichStatistics::Newest;
        let Some(version) = self.store.statistics_version(sae, which).await? else {
            return Ok(None);
        };
        let found = self
            .store
            .statistics_of(version.key, indices, with_contexts)
            .await?;
        let by_index = found
            .into_iter()
            .map(|feature| (feature.feature_index, feature));
        Ok(Some((version, by_index.collect())))
    }

    /// Versions of an SAE's statistics stored before `before`, newest first.
    pub async fn statistics_versions(
        &self,
        sae: &SaeRecord,
        before: i64,
        limit: u32,
    ) -> Result<Vec<StatisticsVersion>> {
        self.store
            .list_statistics_versions(sae.key, before, limit)
            .await
    }

    /// The version whose digest starts with `prefix`; without one, the newest.
    pub async fn statistics_version(
        &self,
        sae: &SaeRecord,
        prefix: &str,
    ) -> Result<StatisticsVersion> {
        let digits = prefix.bytes().all(|byte| byte.is_ascii_hexdigit());
        let which = match prefix {
            "" => WhichStatistics::Newest,
            _ if digits && prefix.len() >= DIGEST_PREFIX_MIN => WhichStatistics::Digest(prefix),
            _ => {
                let text =
                    format!("is {prefix:?}; at least {DIGEST_PREFIX_MIN} hex digits are needed");
                return Err(Invalid::field("digest", text).into());
            }
        };
        let found = self.store.statistics_version(sae.key, which).await?;
        found.ok_or_else(|| Error::StatisticsNotFound {
            sae_id: sae.name.clone(),
            which: match prefix {
                "" => String::new(),
                _ => format!(" whose digest starts with {prefix:?}"),
            },
        })
    }

    /// A page of statistics.
    pub async fn list_statistics(
        &self,
        version: &StatisticsVersion,
        from: u32,
        limit: u32,
    ) -> Result<Vec<FeatureStatistics>> {
        self.store.list_statistics(version.key, from, limit).await
    }

    /// Removes a version of an SAE's statistics.
    pub async fn delete_statistics(&self, sae: &SaeRecord, digest: &str) -> Result<()> {
        let version = self.statistics_version(sae, digest).await?;
        self.store.remove_statistics(version.key).await?;
        Ok(())
    }
}

/// What was gathered of all features, and the texts.
type Finished = (Arc<Gathered>, Corpus);

/// The version with its digest and the number of features that fired.
fn sealed(
    version: StatisticsVersion,
    sae_digest: &str,
    (gathered, corpus): &Finished,
) -> Result<StatisticsVersion> {
    let mut seal = Seal::new(&version, sae_digest);
    gathered.each(|index, feature| {
        let feature = FeatureStatistics::of(index, feature, corpus)?;
        feature.iter().for_each(|feature| seal.add(feature));
        Ok::<_, Error>(())
    })?;
    let (digest, active_feature_count) = seal.finish();
    Ok(StatisticsVersion {
        digest,
        active_feature_count,
        ..version
    })
}

/// Makes a version's digest.
#[derive(Debug)]
pub(super) struct Seal {
    hasher: Sha256,
    features: u32,
}

impl Seal {
    pub(super) fn new(version: &StatisticsVersion, sae_digest: &str) -> Self {
        let mut hasher = Sha256::new();
        let source = &version.source;
        let texts = [
            "steer.statistics.v1",
            sae_digest,
            &source.data_digest,
            &source.model_digest,
        ];
        for text in texts {
            hasher.update((text.len() as u64).to_le_bytes());
            hasher.update(text);
        }
        hasher.update(source.max_tokens.to_le_bytes());
        hasher.update([u8::from(version.include_special_tokens)]);
        hasher.update(version.text_count.to_le_bytes());
        hasher.update(version.token_count.to_le_bytes());
        Self {
            hasher,
            features: 0,
        }
    }

    /// Adds a feature that fired; by index.
    pub(super) fn add(&mut self, feature: &FeatureStatistics) {
        feature.add_to(&mut self.hasher);
        self.features += 1;
    }

    /// The digest, and how many features fired.
    pub(super) fn finish(self) -> (String, u32) {
        (hex(&self.hasher.finalize()), self.features)
    }
}

/// The features that fired, batch by batch, as they are asked for.
fn written(finished: Arc<Finished>) -> mpsc::Receiver<Result<Vec<FeatureStatistics>>> {
    let (sender, batches) = mpsc::channel(BATCHES_WAITING);
    tokio::task::spawn_blocking(move || {
        let (gathered, corpus) = finished.as_ref();
        let mut batch = Vec::new();
        let read = gathered.each(|index, feature| {
            batch.extend(FeatureStatistics::of(index, feature, corpus)?);
            if batch.len() >= FEATURES_WRITTEN {
                let sent = sender.blocking_send(Ok(std::mem::take(&mut batch)));
                sent.map_err(|_| Error::Cancelled)?;
            }
            Ok(())
        });
        // An error of sending means that nobody waits any more.
        let _ = sender.blocking_send(read.map(|()| batch));
    });
    batches
}

/// A feature's statistics on the wire: without a digest where there is no version.
pub(super) fn to_wire(
    newest: Option<&(StatisticsVersion, HashMap<u32, FeatureStatistics>)>,
    index: u32,
) -> v1::FeatureStatistics {
    match newest {
        None => v1::FeatureStatistics {
            feature_index: index,
            ..v1::FeatureStatistics::default()
        },
        Some((version, found)) => {
            let feature = found.get(&index).cloned();
            version.feature_to_wire(feature.unwrap_or_else(|| FeatureStatistics::silent(index)))
        }
    }
}

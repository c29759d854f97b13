//! Whole SAEs read at once: similar features, encoded activations.

use std::{collections::HashMap, io, sync::Arc};

use steering_proto::Invalid;
use tokio::sync::SemaphorePermit;

use super::{FeatureRef, Registry};
use crate::{
    blocking::blocking,
    error::{Error, Result},
    scan::{self, Encoded, Input, Neighbour, Query, SaeFile},
    store::SaeRecord,
    vectors::is_damage,
};

/// Scans at once; each uses all cores.
pub(super) const SCANS_MAX: usize = 2;
/// SAEs read from the store at once.
const SAES_PAGE: u32 = 100;

/// What similar features are like.
#[derive(Debug, Clone, PartialEq)]
pub enum SimilarQuery {
    /// This feature's decoder row; the feature itself is left out.
    Feature(FeatureRef),
    /// This direction, not zero.
    Direction(Vec<f32>),
}

/// A feature that was found.
#[derive(Debug, Clone, PartialEq)]
pub struct FoundFeature {
    /// Its SAE.
    pub sae: Arc<SaeRecord>,
    /// The feature and its cosine.
    pub neighbour: Neighbour,
    /// Best label known.
    pub label: Option<String>,
}

impl Registry {
    /// The features most like a query, in the SAEs named or in all of the query's width;
    /// and how many were compared.
    pub async fn similar_features(
        &self,
        query: SimilarQuery,
        sae_ids: &[String],
        top_k: usize,
    ) -> Result<(Vec<FoundFeature>, u64)> {
        let (direction, except) = self.query_direction(query).await?;
        let saes = self.saes_of_width(direction.len(), sae_ids).await?;
        let _permit = self.scan_permit().await?;
        let mut found = Vec::new();
        let mut compared = 0;
        for sae in saes {
            let direction = direction.clone();
            let except = except.as_ref().filter(|(digest, _)| *digest == sae.digest);
            let except = except.map(|&(_, index)| index);
            let neighbours = self.scan(&sae, move |file| {
                let query = Query {
                    direction: &direction,
                    except,
                    top_k,
                };
                scan::similar(file, query)
            });
            let neighbours = neighbours.await?;
            compared += u64::from(sae.layout.d_sae) - u64::from(except.is_some());
            let sae = Arc::new(sae);
            found.extend(
                neighbours
                    .into_iter()
                    .map(|neighbour| (sae.clone(), neighbour)),
            );
        }
        // Stable, so that of equal ones the first SAE's come first.
        found.sort_by(|a, b| b.1.cosine.total_cmp(&a.1.cosine));
        found.truncate(top_k);
        Ok((self.labelled(found).await?, compared))
    }

    /// A direction, and the digest and index of the feature it is of.
    async fn query_direction(
        &self,
        query: SimilarQuery,
    ) -> Result<(Arc<[f32]>, Option<(String, u32)>)> {
        match query {
            SimilarQuery::Direction(direction) => Ok((direction.into(), None)),
            SimilarQuery::Feature(reference) => {
                let located = self.locate_feature(reference).await;
                let (sae, index) = located.map_err(in_feature)?;
                let read = self.numbers(&sae, &[index]).await?;
                let decoder = read.into_iter().next().map(|numbers| numbers.decoder);
                let decoder =
                    decoder.ok_or_else(|| Error::DataLoss("a feature is missing".to_owned()))?;
                if decoder.iter().all(|&value| value == 0.0) {
                    let text = "has a decoder row of zeros: nothing is like it";
                    return Err(Invalid::field("feature", text).into());
                }
                Ok((decoder.into(), Some((sae.digest, index))))
            }
        }
    }

    async fn saes_of_width(&self, width: usize, sae_ids: &[String]) -> Result<Vec<SaeRecord>> {
        let fits = |sae: &SaeRecord| sae.layout.d_in as usize == width;
        let mut saes = Vec::new();
        if sae_ids.is_empty() {
            let mut after = String::new();
            loop {
                let page = self.store.list_saes(&after, SAES_PAGE).await?;
                let Some(last) = page.last() else { break };
                after.clone_from(&last.name);
                saes.extend(page.into_iter().filter(fits));
            }
            if saes.is_empty() {
                let text = format!("is {width} wide, and the registry holds no SAE of that width");
                return Err(Invalid::field("query", text).into());
            }
            return Ok(saes);
        }
        for (i, sae_id) in sae_ids.iter().enumerate() {
            let sae = self.sae(sae_id).await?;
            if !fits(&sae) {
                let text = format!(
                    "{sae_id:?} is of width {}; the query is {width} wide",
                    sae.layout.d_in
                );
                return Err(Invalid::field(format!("sae_ids[{i}]"), text).into());
            }
            if saes.iter().all(|known: &SaeRecord| known.key != sae.key) {
                saes.push(sae);
            }
        }
        Ok(saes)
    }

    async fn labelled(&self, found: Vec<(Arc<SaeRecord>, Neighbour)>) -> Result<Vec<FoundFeature>> {
        let mut by_sae: HashMap<i64, Vec<u32>> = HashMap::new();
        for (sae, neighbour) in &found {
            by_sae.entry(sae.key).or_default().push(neighbour.index);
        }
        let mut notes = HashMap::new();
        for (key, indices) in by_sae {
            notes.insert(key, self.store.feature_notes(key, &indices).await?);
        }
        let label = |sae: &SaeRecord, index| notes.get(&sae.key)?.get(&index)?.label.clone();
        let labelled = found.into_iter().map(|(sae, neighbour)| FoundFeature {
            label: label(&sae, neighbour.index),
            sae,
            neighbour,
        });
        Ok(labelled.collect())
    }

    /// The strongest features of each activation, and the labels of those that have one.
    pub async fn encode_activations(
        &self,
        sae: &SaeRecord,
        activations: Vec<f32>,
        top_k: usize,
    ) -> Result<(Vec<Encoded>, HashMap<u32, String>)> {
        let normalization = sae.normalization;
        let permit = self.scan_permit().await?;
        let encoded = self.scan(sae, move |file| {
            let input = Input {
                activations: &activations,
                normalization,
                top_k,
            };
            scan::encode(file, input)
        });
        let encoded = encoded.await?;
        drop(permit);
        let found = encoded.iter().flat_map(|row| &row.features);
        let mut indices: Vec<u32> = found.map(|(index, _)| *index).collect();
        indices.sort_unstable();
        indices.dedup();
        let mut labels = HashMap::new();
        for indices in indices.chunks(SAES_PAGE as usize) {
            let notes = self.store.feature_notes(sae.key, indices).await?;
            let named = notes
                .into_iter()
                .filter_map(|(index, notes)| Some((index, notes.label?)));
            labels.extend(named);
        }
        Ok((encoded, labels))
    }

    /// An SAE's file, all of it on this machine.
    pub async fn whole(&self, sae: &SaeRecord) -> Result<SaeFile> {
        let layout = sae.layout;
        match self.vectors.whole(&sae.digest, &layout).await {
            Err(error) => Err(self.unreadable(sae, error).await),
            Ok(object) => Ok(SaeFile { object, layout }),
        }
    }

    /// Reads all of an SAE. What is damaged in a cache only is fetched and read once more.
    async fn scan<T: Send + 'static>(
        &self,
        sae: &SaeRecord,
        work: impl Fn(&SaeFile) -> io::Result<T> + Send + Sync + 'static,
    ) -> Result<T> {
        let work = Arc::new(work);
        let mut first = true;
        loop {
            let file = self.whole(sae).await?;
            let work = Arc::clone(&work);
            match blocking(move || Ok(work(&file))).await? {
                Err(error)
                    if first && is_damage(&error) && self.vectors.refetch(&sae.digest)? =>
                {
                    first = false;
                }
                Err(error) => return Err(self.unreadable(sae, error.into()).await),
                Ok(found) => return Ok(found),
            }
        }
    }

    pub(super) async fn scan_permit(&self) -> Result<SemaphorePermit<'_>> {
        let permit = self.scans.acquire().await;
        permit.map_err(|error| Error::Storage(Box::new(error)))
    }
}

fn in_feature(error: Error) -> Error {
    match error {
        Error::Invalid(invalid) => invalid.within("feature").into(),
        other => other,
    }
}

//! Calls of the feature registry about what features do on a corpus.

use futures::{Stream, StreamExt};

use crate::{Client, Error, Listing, Service, listing::follow, v1};

/// A message of a computation of statistics.
pub use v1::compute_feature_statistics_request::Message as StatisticsMessage;

/// A message of an import of statistics.
pub use v1::import_feature_statistics_request::Message as ImportedStatistics;

impl Client {
    /// Features as [`Client::get_features`] gives them, each with its statistics, which have
    /// no digest where none are known.
    ///
    /// # Errors
    /// If one of them does not exist.
    pub async fn get_features_with_statistics(
        &self,
        features: Vec<v1::FeatureRef>,
    ) -> Result<Vec<(v1::SaeFeature, v1::FeatureStatistics)>, Error> {
        let asked = features.len();
        let request = v1::GetFeaturesRequest {
            features,
            include_statistics: true,
        };
        let response = self.registry().get_features(request).await;
        let response = response.map_err(|s| self.registry_failed(s))?.into_inner();
        let v1::GetFeaturesResponse {
            features,
            mut statistics,
        } = response;
        // A registry of an older version knows none.
        statistics.resize_with(asked, Default::default);
        if features.len() == asked {
            Ok(features.into_iter().zip(statistics).collect())
        } else {
            let what = format!(
                "GetFeatures answered {} of {asked} features",
                features.len()
            );
            Err(Error::contract(Service::Registry, what))
        }
    }

    /// Sends what a worker read of texts: the configuration, then tokens and activations of
    /// each, then the end. Without the end nothing is stored.
    ///
    /// # Errors
    /// If the registry refuses a message, or computes too many statistics already.
    pub async fn compute_feature_statistics(
        &self,
        messages: impl Stream<Item = StatisticsMessage> + Send + 'static,
    ) -> Result<v1::FeatureStatisticsVersion, Error> {
        let messages = messages.map(|message| v1::ComputeFeatureStatisticsRequest {
            message: Some(message),
        });
        let response = self.registry().compute_feature_statistics(messages).await;
        let response = response.map_err(|s| self.registry_failed(s))?.into_inner();
        response.version.ok_or_else(|| {
            let what = "ComputeFeatureStatistics left out the version";
            Error::contract(Service::Registry, what)
        })
    }

    /// Versions of an SAE's statistics, the one that is used first.
    ///
    /// # Errors
    /// If a call fails.
    pub async fn list_feature_statistics_versions(
        &self,
        sae_id: &str,
        limit: Option<usize>,
    ) -> Result<Listing<v1::FeatureStatisticsVersion>, Error> {
        follow(limit, async |page_size, page_token| {
            let request = v1::ListFeatureStatisticsVersionsRequest {
                sae_id: sae_id.to_owned(),
                page_size,
                page_token,
            };
            let page = self
                .registry()
                .list_feature_statistics_versions(request)
                .await;
            let page = page.map_err(|s| self.registry_failed(s))?.into_inner();
            Ok((page.versions, page.next_page_token))
        })
        .await
    }

    /// A page of statistics of the features that fired, by index, and the next page's token.
    ///
    /// # Errors
    /// If the call fails.
    pub async fn list_feature_statistics(
        &self,
        request: v1::ListFeatureStatisticsRequest,
    ) -> Result<v1::ListFeatureStatisticsResponse, Error> {
        let response = self.registry().list_feature_statistics(request).await;
        Ok(response.map_err(|s| self.registry_failed(s))?.into_inner())
    }

    /// Stores statistics that were listed elsewhere: the version, then its features by index.
    ///
    /// # Errors
    /// If the registry refuses them: they must have the digest that the version says.
    pub async fn import_feature_statistics(
        &self,
        messages: impl Stream<Item = ImportedStatistics> + Send + 'static,
    ) -> Result<v1::FeatureStatisticsVersion, Error> {
        let messages = messages.map(|message| v1::ImportFeatureStatisticsRequest {
            message: Some(message),
        });
        let response = self.registry().import_feature_statistics(messages).await;
        let response = response.map_err(|s| self.registry_failed(s))?.into_inner();
        response.version.ok_or_else(|| {
            let what = "ImportFeatureStatistics left out the version";
            Error::contract(Service::Registry, what)
        })
    }

    /// Removes one version of an SAE's statistics.
    ///
    /// # Errors
    /// If the registry does not hold it.
    pub async fn delete_feature_statistics(&self, sae_id: &str, digest: &str) -> Result<(), Error> {
        let request = v1::DeleteFeatureStatisticsRequest {
            sae_id: sae_id.to_owned(),
            digest: digest.to_owned(),
        };
        let response = self.registry().delete_feature_statistics(request).await;
        response.map_err(|s| self.registry_failed(s))?;
        Ok(())
    }
}

//! The gRPC face: wire messages in, domain calls, wire messages out.

mod cavs;
mod encode;
mod features;
mod imports;
mod pages;
mod patience;
mod receive;
mod saes;
mod similar;
mod statistics;
mod training;

use std::{pin::Pin, sync::Arc};

use futures::Stream;
use steering_proto::v1::{self, feature_registry_service_server::FeatureRegistryService};
use tonic::{Request, Response, Status, Streaming, async_trait};

use crate::registry::Registry;

/// Serves [`Registry`] as `steering.v1.FeatureRegistryService`.
#[derive(Debug, Clone)]
pub struct RegistryService {
    registry: Arc<Registry>,
}

impl RegistryService {
    /// Serves `registry`.
    pub fn new(registry: Arc<Registry>) -> Self {
        Self { registry }
    }
}

/// What an import tells.
type EventStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[async_trait]
impl FeatureRegistryService for RegistryService {
    type ImportSaeStream = EventStream<v1::ImportSaeResponse>;
    type DownloadSaeStream = EventStream<v1::DownloadSaeResponse>;
    type UploadSaeStream = EventStream<v1::UploadSaeResponse>;

    async fn import_sae(
        &self,
        request: Request<v1::ImportSaeRequest>,
    ) -> Result<Response<Self::ImportSaeStream>, Status> {
        Ok(Response::new(imports::import_sae(
            &self.registry,
            request.into_inner(),
        )?))
    }

    async fn upload_sae(
        &self,
        request: Request<Streaming<v1::UploadSaeRequest>>,
    ) -> Result<Response<Self::UploadSaeStream>, Status> {
        Ok(Response::new(imports::upload_sae(
            &self.registry,
            request.into_inner(),
        )))
    }

    async fn list_saes(
        &self,
        request: Request<v1::ListSaesRequest>,
    ) -> Result<Response<v1::ListSaesResponse>, Status> {
        Ok(Response::new(
            saes::list(&self.registry, request.into_inner()).await?,
        ))
    }

    async fn get_sae(
        &self,
        request: Request<v1::GetSaeRequest>,
    ) -> Result<Response<v1::GetSaeResponse>, Status> {
        Ok(Response::new(
            saes::get(&self.registry, request.into_inner()).await?,
        ))
    }

    async fn delete_sae(
        &self,
        request: Request<v1::DeleteSaeRequest>,
    ) -> Result<Response<v1::DeleteSaeResponse>, Status> {
        Ok(Response::new(
            saes::delete(&self.registry, request.into_inner()).await?,
        ))
    }

    async fn undelete_sae(
        &self,
        request: Request<v1::UndeleteSaeRequest>,
    ) -> Result<Response<v1::UndeleteSaeResponse>, Status> {
        Ok(Response::new(
            saes::undelete(&self.registry, request.into_inner()).await?,
        ))
    }

    async fn download_sae(
        &self,
        request: Request<v1::DownloadSaeRequest>,
    ) -> Result<Response<Self::DownloadSaeStream>, Status> {
        let registry = Arc::clone(&self.registry);
        Ok(Response::new(
            saes::download(registry, request.into_inner()).await?,
        ))
    }

    async fn search_features(
        &self,
        request: Request<v1::SearchFeaturesRequest>,
    ) -> Result<Response<v1::SearchFeaturesResponse>, Status> {
        Ok(Response::new(
            features::search(&self.registry, request.into_inner()).await?,
        ))
    }

    async fn list_features(
        &self,
        request: Request<v1::ListFeaturesRequest>,
    ) -> Result<Response<v1::ListFeaturesResponse>, Status> {
        Ok(Response::new(
            features::list(&self.registry, request.into_inner()).await?,
        ))
    }

    async fn get_features(
        &self,
        request: Request<v1::GetFeaturesRequest>,
    ) -> Result<Response<v1::GetFeaturesResponse>, Status> {
        Ok(Response::new(
            features::get(&self.registry, request.into_inner()).await?,
        ))
    }

    async fn find_similar_features(
        &self,
        request: Request<v1::FindSimilarFeaturesRequest>,
    ) -> Result<Response<v1::FindSimilarFeaturesResponse>, Status> {
        Ok(Response::new(
            similar::find(&self.registry, request.into_inner()).await?,
        ))
    }

    async fn encode_activations(
        &self,
        request: Request<v1::EncodeActivationsRequest>,
    ) -> Result<Response<v1::EncodeActivationsResponse>, Status> {
        Ok(Response::new(
            encode::encode(&self.registry, request.into_inner()).await?,
        ))
    }

    async fn compute_feature_statistics(
        &self,
        request: Request<Streaming<v1::ComputeFeatureStatisticsRequest>>,
    ) -> Result<Response<v1::ComputeFeatureStatisticsResponse>, Status> {
        Ok(Response::new(
            statistics::compute(&self.registry, request.into_inner()).await?,
        ))
    }

    async fn list_feature_statistics_versions(
        &self,
        request: Request<v1::ListFeatureStatisticsVersionsRequest>,
    ) -> Result<Response<v1::ListFeatureStatisticsVersionsResponse>, Status> {
        Ok(Response::new(
            statistics::versions(&self.registry, request.into_inner()).await?,
        ))
    }

    async fn list_feature_statistics(
        &self,
        request: Request<v1::ListFeatureStatisticsRequest>,
    ) -> Result<Response<v1::ListFeatureStatisticsResponse>, Status> {
        Ok(Response::new(
            statistics::list(&self.registry, request.into_inner()).await?,
        ))
    }

    async fn delete_feature_statistics(
        &self,
        request: Request<v1::DeleteFeatureStatisticsRequest>,
    ) -> Result<Response<v1::DeleteFeatureStatisticsResponse>, Status> {
        Ok(Response::new(
            statistics::delete(&self.registry, request.into_inner()).await?,
        ))
    }

    async fn import_feature_statistics(
        &self,
        request: Request<Streaming<v1::ImportFeatureStatisticsRequest>>,
    ) -> Result<Response<v1::ImportFeatureStatisticsResponse>, Status> {
        Ok(Response::new(
            statistics::import(&self.registry, request.into_inner()).await?,
        ))
    }

    async fn import_feature_labels(
        &self,
        request: Request<Streaming<v1::ImportFeatureLabelsRequest>>,
    ) -> Result<Response<v1::ImportFeatureLabelsResponse>, Status> {
        Ok(Response::new(
            features::import_labels(&self.registry, request.into_inner()).await?,
        ))
    }

    async fn train_cavs(
        &self,
        request: Request<Streaming<v1::TrainCavsRequest>>,
    ) -> Result<Response<v1::TrainCavsResponse>, Status> {
        Ok(Response::new(
            training::train(&self.registry, request.into_inner()).await?,
        ))
    }

    async fn create_cav(
        &self,
        request: Request<v1::CreateCavRequest>,
    ) -> Result<Response<v1::CreateCavResponse>, Status> {
        Ok(Response::new(
            cavs::create(&self.registry, request.into_inner()).await?,
        ))
    }

    async fn import_cavs(
        &self,
        request: Request<Streaming<v1::ImportCavsRequest>>,
    ) -> Result<Response<v1::ImportCavsResponse>, Status> {
        Ok(Response::new(
            cavs::import(&self.registry, request.into_inner()).await?,
        ))
    }

    async fn list_cavs(
        &self,
        request: Request<v1::ListCavsRequest>,
    ) -> Result<Response<v1::ListCavsResponse>, Status> {
        Ok(Response::new(
            cavs::list(&self.registry, request.into_inner()).await?,
        ))
    }

    async fn get_cav(
        &self,
        request: Request<v1::GetCavRequest>,
    ) -> Result<Response<v1::GetCavResponse>, Status> {
        Ok(Response::new(
            cavs::get(&self.registry, request.into_inner()).await?,
        ))
    }

    async fn delete_cav(
        &self,
        request: Request<v1::DeleteCavRequest>,
    ) -> Result<Response<v1::DeleteCavResponse>, Status> {
        Ok(Response::new(
            cavs::delete(&self.registry, request.into_inner()).await?,
        ))
    }

    async fn undelete_cav(
        &self,
        request: Request<v1::UndeleteCavRequest>,
    ) -> Result<Response<v1::UndeleteCavResponse>, Status> {
        Ok(Response::new(
            cavs::undelete(&self.registry, request.into_inner()).await?,
        ))
    }
}

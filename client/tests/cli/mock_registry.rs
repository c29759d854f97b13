//! A registry with one SAE, a few labels and three CAVs, that keeps what it is sent.

use std::pin::Pin;

use steering_client::v1::{self, feature_registry_service_server::FeatureRegistryService};
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

use crate::mock::{Shared, lock};
pub(crate) use data::{BASEBALL, SAE, cav, feature, sae};
use data::{found, labels, not_found};

mod data;

/// What the mock registry saw.
#[derive(Clone, Default)]
pub(crate) struct Registry {
    pub(crate) feature_refs: Shared<Vec<v1::FeatureRef>>,
    pub(crate) import: Shared<Option<v1::ImportSaeRequest>>,
    pub(crate) uploaded: Shared<Vec<Upload>>,
    pub(crate) deleted: Shared<Vec<String>>,
    pub(crate) page_sizes: Shared<Vec<u32>>,
}

/// A file that came in chunks, behind its header.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Upload {
    pub(crate) header: String,
    pub(crate) bytes: Vec<u8>,
    pub(crate) chunk_bytes_max: usize,
}

/// The mock serves no longer pages than this.
const PAGE_SIZE_MAX: usize = 2;

impl Registry {
    /// One page, its token the number of the next entry.
    fn page<T>(&self, all: Vec<T>, size: u32, token: &str) -> (Vec<T>, String) {
        lock(&self.page_sizes).push(size);
        let start: usize = token.parse().unwrap_or(0);
        let end = all.len().min(start + PAGE_SIZE_MAX.min(size as usize));
        let next = if end < all.len() {
            end.to_string()
        } else {
            String::new()
        };
        (all.into_iter().take(end).skip(start).collect(), next)
    }

    /// Keeps what is deleted, and says when it goes for good.
    fn delete(&self, name: String, purge: bool) -> Option<prost_types::Timestamp> {
        let seen = if purge {
            format!("{name} purged")
        } else {
            name
        };
        lock(&self.deleted).push(seen);
        (!purge).then_some(prost_types::Timestamp {
            seconds: 1_798_243_200,
            nanos: 0,
        })
    }

    fn keep(&self, header: String, chunks: &[Vec<u8>]) {
        lock(&self.uploaded).push(Upload {
            header,
            bytes: chunks.concat(),
            chunk_bytes_max: chunks.iter().map(Vec::len).max().unwrap_or(0),
        });
    }
}

type Messages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl FeatureRegistryService for Registry {
    type ImportSaeStream = Messages<v1::ImportSaeResponse>;

    async fn import_sae(
        &self,
        request: Request<v1::ImportSaeRequest>,
    ) -> Result<Response<Self::ImportSaeStream>, Status> {
        use v1::import_sae_response::Event;
        *lock(&self.import) = Some(request.into_inner());
        let progress = v1::ImportProgress {
            stage: "reading".to_owned(),
            done: 1,
            total: 2,
        };
        let events = [Event::Progress(progress), Event::Sae(sae())];
        let message = |event| Ok(v1::ImportSaeResponse { event: Some(event) });
        Ok(Response::new(Box::pin(
            tokio_stream::iter(events).map(message),
        )))
    }

    type UploadSaeStream = Messages<v1::UploadSaeResponse>;

    async fn upload_sae(
        &self,
        request: Request<Streaming<v1::UploadSaeRequest>>,
    ) -> Result<Response<Self::UploadSaeStream>, Status> {
        use v1::upload_sae_request::Content;
        let mut messages = request.into_inner();
        let (mut name, mut chunks) = (String::new(), Vec::new());
        while let Some(message) = messages.message().await? {
            match message.content {
                Some(Content::Options(options)) => name = format!("options {}", options.sae_id),
                Some(Content::FileName(next)) => {
                    self.keep(
                        std::mem::replace(&mut name, next),
                        &std::mem::take(&mut chunks),
                    );
                }
                Some(Content::Chunk(chunk)) => chunks.push(chunk),
                None => return Err(Status::invalid_argument("no content")),
            }
        }
        self.keep(name, &chunks);
        let done = v1::UploadSaeResponse {
            event: Some(v1::upload_sae_response::Event::Sae(sae())),
        };
        Ok(Response::new(Box::pin(tokio_stream::once(Ok(done)))))
    }

    async fn list_saes(
        &self,
        request: Request<v1::ListSaesRequest>,
    ) -> Result<Response<v1::ListSaesResponse>, Status> {
        let request = request.into_inner();
        let (saes, next_page_token) =
            self.page(vec![sae()], request.page_size, &request.page_token);
        Ok(Response::new(v1::ListSaesResponse {
            saes,
            next_page_token,
        }))
    }

    async fn get_sae(
        &self,
        request: Request<v1::GetSaeRequest>,
    ) -> Result<Response<v1::GetSaeResponse>, Status> {
        match request.into_inner().sae_id.as_str() {
            SAE => Ok(Response::new(v1::GetSaeResponse { sae: Some(sae()) })),
            other => Err(not_found(
                "SAE_NOT_FOUND",
                format!("no SAE is named {other:?}"),
            )),
        }
    }

    async fn delete_sae(
        &self,
        request: Request<v1::DeleteSaeRequest>,
    ) -> Result<Response<v1::DeleteSaeResponse>, Status> {
        let v1::DeleteSaeRequest { sae_id, purge } = request.into_inner();
        Ok(Response::new(v1::DeleteSaeResponse {
            removed_count: 1,
            purge_time: self.delete(sae_id, purge),
        }))
    }

    async fn undelete_sae(
        &self,
        request: Request<v1::UndeleteSaeRequest>,
    ) -> Result<Response<v1::UndeleteSaeResponse>, Status> {
        lock(&self.deleted).push(format!("{} back", request.into_inner().sae_id));
        Ok(Response::new(v1::UndeleteSaeResponse { restored_count: 1 }))
    }

    async fn search_features(
        &self,
        request: Request<v1::SearchFeaturesRequest>,
    ) -> Result<Response<v1::SearchFeaturesResponse>, Status> {
        let request = request.into_inner();
        let matching = labels().filter(|label| label.label.contains(&request.query));
        let (features, next_page_token) =
            self.page(matching.collect(), request.page_size, &request.page_token);
        Ok(Response::new(v1::SearchFeaturesResponse {
            features,
            next_page_token,
            // As if some words stood for too many.
            truncated: request.query == "o",
        }))
    }

    async fn list_features(
        &self,
        request: Request<v1::ListFeaturesRequest>,
    ) -> Result<Response<v1::ListFeaturesResponse>, Status> {
        let request = request.into_inner();
        if request.sae_id.is_empty() {
            return Err(Status::invalid_argument("sae_id is required"));
        }
        let (features, next_page_token) =
            self.page(labels().collect(), request.page_size, &request.page_token);
        Ok(Response::new(v1::ListFeaturesResponse {
            features,
            next_page_token,
        }))
    }

    async fn get_features(
        &self,
        request: Request<v1::GetFeaturesRequest>,
    ) -> Result<Response<v1::GetFeaturesResponse>, Status> {
        let refs = request.into_inner().features;
        lock(&self.feature_refs).extend(refs.clone());
        let features = refs.into_iter().map(found).collect::<Result<_, _>>()?;
        Ok(Response::new(v1::GetFeaturesResponse {
            features,
            statistics: Vec::new(),
        }))
    }

    async fn import_feature_labels(
        &self,
        request: Request<Streaming<v1::ImportFeatureLabelsRequest>>,
    ) -> Result<Response<v1::ImportFeatureLabelsResponse>, Status> {
        use v1::import_feature_labels_request::Content;
        let mut messages = request.into_inner();
        let (mut header, mut chunks) = (String::new(), Vec::new());
        while let Some(message) = messages.message().await? {
            match message.content {
                Some(Content::Header(h)) => header = format!("{} {}", h.sae_id, h.source),
                Some(Content::Chunk(chunk)) => chunks.push(chunk),
                None => return Err(Status::invalid_argument("no content")),
            }
        }
        self.keep(header, &chunks);
        Ok(Response::new(v1::ImportFeatureLabelsResponse {
            label_count: 64,
            feature_count: 62,
            candidate_count: 0,
        }))
    }

    async fn find_similar_features(
        &self,
        _: Request<v1::FindSimilarFeaturesRequest>,
    ) -> Result<Response<v1::FindSimilarFeaturesResponse>, Status> {
        Err(Status::unimplemented("tested end to end"))
    }

    async fn encode_activations(
        &self,
        _: Request<v1::EncodeActivationsRequest>,
    ) -> Result<Response<v1::EncodeActivationsResponse>, Status> {
        Err(Status::unimplemented("tested end to end"))
    }

    async fn compute_feature_statistics(
        &self,
        _: Request<Streaming<v1::ComputeFeatureStatisticsRequest>>,
    ) -> Result<Response<v1::ComputeFeatureStatisticsResponse>, Status> {
        Err(Status::unimplemented("tested end to end"))
    }

    async fn list_feature_statistics_versions(
        &self,
        _: Request<v1::ListFeatureStatisticsVersionsRequest>,
    ) -> Result<Response<v1::ListFeatureStatisticsVersionsResponse>, Status> {
        Err(Status::unimplemented("tested end to end"))
    }

    async fn list_feature_statistics(
        &self,
        _: Request<v1::ListFeatureStatisticsRequest>,
    ) -> Result<Response<v1::ListFeatureStatisticsResponse>, Status> {
        Err(Status::unimplemented("tested end to end"))
    }

    async fn delete_feature_statistics(
        &self,
        _: Request<v1::DeleteFeatureStatisticsRequest>,
    ) -> Result<Response<v1::DeleteFeatureStatisticsResponse>, Status> {
        Err(Status::unimplemented("tested end to end"))
    }

    type DownloadSaeStream = Messages<v1::DownloadSaeResponse>;

    async fn download_sae(
        &self,
        _: Request<v1::DownloadSaeRequest>,
    ) -> Result<Response<Self::DownloadSaeStream>, Status> {
        Err(Status::unimplemented("tested end to end"))
    }

    async fn import_feature_statistics(
        &self,
        _: Request<Streaming<v1::ImportFeatureStatisticsRequest>>,
    ) -> Result<Response<v1::ImportFeatureStatisticsResponse>, Status> {
        Err(Status::unimplemented("tested end to end"))
    }

    async fn train_cavs(
        &self,
        _: Request<Streaming<v1::TrainCavsRequest>>,
    ) -> Result<Response<v1::TrainCavsResponse>, Status> {
        Err(Status::unimplemented("tested end to end"))
    }

    async fn create_cav(
        &self,
        _: Request<v1::CreateCavRequest>,
    ) -> Result<Response<v1::CreateCavResponse>, Status> {
        Err(Status::unimplemented("the command does not call it"))
    }

    async fn import_cavs(
        &self,
        request: Request<Streaming<v1::ImportCavsRequest>>,
    ) -> Result<Response<v1::ImportCavsResponse>, Status> {
        use v1::import_cavs_request::Content;
        let mut messages = request.into_inner();
        let (mut header, mut chunks) = (String::new(), Vec::new());
        while let Some(message) = messages.message().await? {
            match message.content {
                Some(Content::Header(h)) => {
                    header = format!("{} {} {}", h.hook_name, h.model_id, h.file_name);
                }
                Some(Content::Chunk(chunk)) => chunks.push(chunk),
                None => return Err(Status::invalid_argument("no content")),
            }
        }
        self.keep(header, &chunks);
        Ok(Response::new(v1::ImportCavsResponse {
            cavs: vec![cav("one")],
        }))
    }

    async fn list_cavs(
        &self,
        request: Request<v1::ListCavsRequest>,
    ) -> Result<Response<v1::ListCavsResponse>, Status> {
        let request = request.into_inner();
        let all = ["bare", "one", "two"].into_iter();
        let matching = all
            .filter(|name| name.starts_with(&request.prefix))
            .map(cav);
        let (cavs, next_page_token) =
            self.page(matching.collect(), request.page_size, &request.page_token);
        Ok(Response::new(v1::ListCavsResponse {
            cavs,
            next_page_token,
        }))
    }

    async fn get_cav(
        &self,
        request: Request<v1::GetCavRequest>,
    ) -> Result<Response<v1::GetCavResponse>, Status> {
        let name = request.into_inner().name;
        match name.as_str() {
            "one" | "two" | "bare" => Ok(Response::new(v1::GetCavResponse {
                cav: Some(cav(&name)),
            })),
            _ => Err(not_found(
                "CAV_NOT_FOUND",
                format!("no CAV is named {name:?}"),
            )),
        }
    }

    async fn delete_cav(
        &self,
        request: Request<v1::DeleteCavRequest>,
    ) -> Result<Response<v1::DeleteCavResponse>, Status> {
        let v1::DeleteCavRequest { name, purge } = request.into_inner();
        Ok(Response::new(v1::DeleteCavResponse {
            removed_count: 2,
            purge_time: self.delete(name, purge),
        }))
    }

    async fn undelete_cav(
        &self,
        request: Request<v1::UndeleteCavRequest>,
    ) -> Result<Response<v1::UndeleteCavResponse>, Status> {
        lock(&self.deleted).push(format!("{} back", request.into_inner().name));
        Ok(Response::new(v1::UndeleteCavResponse { restored_count: 2 }))
    }
}

//! Calls of the feature registry.

use futures::{Stream, StreamExt, stream};

use crate::{Client, Error, Listing, Service, listing::follow, v1};

impl Client {
    /// SAEs by name, at most `limit`.
    ///
    /// # Errors
    /// If a call fails.
    pub async fn list_saes(&self, limit: Option<usize>) -> Result<Listing<v1::Sae>, Error> {
        follow(limit, async |page_size, page_token| {
            let request = v1::ListSaesRequest {
                page_size,
                page_token,
                ..v1::ListSaesRequest::default()
            };
            let page = self.registry().list_saes(request).await;
            let page = page.map_err(|s| self.registry_failed(s))?.into_inner();
            Ok((page.saes, page.next_page_token))
        })
        .await
    }

    /// All versions of SAEs in the order of storing, at most `limit`; deleted ones too if asked
    /// for.
    ///
    /// # Errors
    /// If a call fails.
    pub async fn list_sae_versions(
        &self,
        show_deleted: bool,
        limit: Option<usize>,
    ) -> Result<Listing<v1::Sae>, Error> {
        follow(limit, async |page_size, page_token| {
            let request = v1::ListSaesRequest {
                page_size,
                page_token,
                all_versions: true,
                show_deleted,
            };
            let page = self.registry().list_saes(request).await;
            let page = page.map_err(|s| self.registry_failed(s))?.into_inner();
            Ok((page.saes, page.next_page_token))
        })
        .await
    }

    /// One SAE, by `name` or `name@digest`.
    ///
    /// # Errors
    /// If the registry does not hold it.
    pub async fn get_sae(&self, sae_id: &str) -> Result<v1::Sae, Error> {
        let request = v1::GetSaeRequest {
            sae_id: sae_id.to_owned(),
        };
        let response = self.registry().get_sae(request).await;
        let response = response.map_err(|s| self.registry_failed(s))?.into_inner();
        response
            .sae
            .ok_or_else(|| Error::contract(Service::Registry, "GetSae left out the SAE"))
    }

    /// Deletes one version (`name@digest`) of an SAE or all (`name`), with their labels; with
    /// `purge` for good.
    ///
    /// # Errors
    /// If the registry does not hold it.
    pub async fn delete_sae(
        &self,
        sae_id: &str,
        purge: bool,
    ) -> Result<v1::DeleteSaeResponse, Error> {
        let request = v1::DeleteSaeRequest {
            sae_id: sae_id.to_owned(),
            purge,
        };
        let response = self.registry().delete_sae(request).await;
        Ok(response.map_err(|s| self.registry_failed(s))?.into_inner())
    }

    /// Brings one deleted version (`name@digest`) of an SAE back or all (`name`); how many.
    ///
    /// # Errors
    /// If the registry has none.
    pub async fn undelete_sae(&self, sae_id: &str) -> Result<u32, Error> {
        let request = v1::UndeleteSaeRequest {
            sae_id: sae_id.to_owned(),
        };
        let response = self.registry().undelete_sae(request).await;
        let response = response.map_err(|s| self.registry_failed(s))?;
        Ok(response.into_inner().restored_count)
    }

    /// An SAE's canonical file, in chunks; its SHA-256 is the SAE's digest.
    ///
    /// # Errors
    /// If the registry does not hold it; in the stream, if it fails.
    pub async fn download_sae(
        &self,
        sae_id: &str,
    ) -> Result<impl Stream<Item = Result<Vec<u8>, Error>> + use<>, Error> {
        let request = v1::DownloadSaeRequest {
            sae_id: sae_id.to_owned(),
        };
        let response = self.registry().download_sae(request).await;
        let chunks = response.map_err(|s| self.registry_failed(s))?.into_inner();
        let client = self.clone();
        Ok(chunks.map(move |message| match message {
            Ok(v1::DownloadSaeResponse { chunk }) => Ok(chunk),
            Err(status) => Err(client.registry_failed(status)),
        }))
    }

    /// Labels that match a text, best first. The request's page fields are filled in here.
    ///
    /// # Errors
    /// If a call fails.
    pub async fn search_features(
        &self,
        request: v1::SearchFeaturesRequest,
        limit: Option<usize>,
    ) -> Result<Listing<v1::FeatureLabel>, Error> {
        let mut cut = false;
        let listing = follow(limit, async |page_size, page_token| {
            let request = v1::SearchFeaturesRequest {
                page_size,
                page_token,
                ..request.clone()
            };
            let page = self.registry().search_features(request).await;
            let page = page.map_err(|s| self.registry_failed(s))?.into_inner();
            cut |= page.truncated;
            Ok((page.features, page.next_page_token))
        });
        let Listing { items, truncated } = listing.await?;
        let truncated = truncated || cut;
        Ok(Listing { items, truncated })
    }

    /// Labelled features of an SAE by index. The request's page fields are filled in here.
    ///
    /// # Errors
    /// If a call fails.
    pub async fn list_features(
        &self,
        request: v1::ListFeaturesRequest,
        limit: Option<usize>,
    ) -> Result<Listing<v1::FeatureLabel>, Error> {
        follow(limit, async |page_size, page_token| {
            let request = v1::ListFeaturesRequest {
                page_size,
                page_token,
                ..request.clone()
            };
            let page = self.registry().list_features(request).await;
            let page = page.map_err(|s| self.registry_failed(s))?.into_inner();
            Ok((page.features, page.next_page_token))
        })
        .await
    }

    /// One page of labelled features.
    ///
    /// # Errors
    /// If the call fails.
    pub async fn list_features_page(
        &self,
        request: v1::ListFeaturesRequest,
    ) -> Result<v1::ListFeaturesResponse, Error> {
        let page = self.registry().list_features(request).await;
        Ok(page.map_err(|s| self.registry_failed(s))?.into_inner())
    }

    /// Features, complete, in the order of the references.
    ///
    /// # Errors
    /// If one of them does not exist.
    pub async fn get_features(
        &self,
        features: Vec<v1::FeatureRef>,
    ) -> Result<Vec<v1::SaeFeature>, Error> {
        let asked = features.len();
        let request = v1::GetFeaturesRequest {
            features,
            ..Default::default()
        };
        let response = self.registry().get_features(request).await;
        let features = response
            .map_err(|s| self.registry_failed(s))?
            .into_inner()
            .features;
        if features.len() == asked {
            Ok(features)
        } else {
            let what = format!(
                "GetFeatures answered {} of {asked} features",
                features.len()
            );
            Err(Error::contract(Service::Registry, what))
        }
    }

    /// The features most like a feature or a direction, and how many were compared.
    ///
    /// # Errors
    /// If the registry refuses the query.
    pub async fn find_similar_features(
        &self,
        request: v1::FindSimilarFeaturesRequest,
    ) -> Result<v1::FindSimilarFeaturesResponse, Error> {
        let response = self.registry().find_similar_features(request).await;
        Ok(response.map_err(|s| self.registry_failed(s))?.into_inner())
    }

    /// The strongest features of activations, one answer for each of `rows` rows.
    ///
    /// # Errors
    /// If the registry refuses the activations, or leaves a row out.
    pub async fn encode_activations(
        &self,
        request: v1::EncodeActivationsRequest,
        rows: usize,
    ) -> Result<Vec<v1::EncodedActivation>, Error> {
        let response = self.registry().encode_activations(request).await;
        let response = response.map_err(|s| self.registry_failed(s))?.into_inner();
        let answered = response.rows.len();
        if answered == rows {
            Ok(response.rows)
        } else {
            let what = format!("EncodeActivations answered {answered} of {rows} rows");
            Err(Error::contract(Service::Registry, what))
        }
    }

    /// Trains one CAV per label; the stored ones, without vectors, and which of them keep an
    /// earlier training.
    ///
    /// # Errors
    /// If the registry refuses the examples, or is training already.
    pub async fn train_cavs(
        &self,
        config: v1::CavTrainingConfig,
        examples: impl Stream<Item = v1::LabelledActivation> + Send + 'static,
    ) -> Result<v1::TrainCavsResponse, Error> {
        use v1::train_cavs_request::Message;
        let messages = stream::once(async { Message::Config(config) })
            .chain(examples.map(Message::Example))
            .map(|message| v1::TrainCavsRequest {
                message: Some(message),
            });
        let response = self.registry().train_cavs(messages).await;
        let response = response.map_err(|s| self.registry_failed(s))?;
        Ok(response.into_inner())
    }

    /// CAVs whose names start with `prefix`, without their numbers.
    ///
    /// # Errors
    /// If a call fails.
    pub async fn list_cavs(
        &self,
        prefix: &str,
        limit: Option<usize>,
    ) -> Result<Listing<v1::Cav>, Error> {
        follow(limit, async |page_size, page_token| {
            let request = v1::ListCavsRequest {
                prefix: prefix.to_owned(),
                page_size,
                page_token,
                ..v1::ListCavsRequest::default()
            };
            let page = self.list_cavs_page(request).await?;
            Ok((page.cavs, page.next_page_token))
        })
        .await
    }

    /// All versions of CAVs whose names start with `prefix`, in the order of storing, without
    /// their numbers; deleted ones too if asked for.
    ///
    /// # Errors
    /// If a call fails.
    pub async fn list_cav_versions(
        &self,
        prefix: &str,
        show_deleted: bool,
        limit: Option<usize>,
    ) -> Result<Listing<v1::Cav>, Error> {
        follow(limit, async |page_size, page_token| {
            let request = v1::ListCavsRequest {
                prefix: prefix.to_owned(),
                page_size,
                page_token,
                all_versions: true,
                show_deleted,
            };
            let page = self.list_cavs_page(request).await?;
            Ok((page.cavs, page.next_page_token))
        })
        .await
    }

    /// One page of CAVs.
    ///
    /// # Errors
    /// If the call fails.
    pub async fn list_cavs_page(
        &self,
        request: v1::ListCavsRequest,
    ) -> Result<v1::ListCavsResponse, Error> {
        let page = self.registry().list_cavs(request).await;
        Ok(page.map_err(|s| self.registry_failed(s))?.into_inner())
    }

    /// Stores a CAV; what is stored, without vectors.
    ///
    /// # Errors
    /// If the registry refuses it.
    pub async fn create_cav(&self, request: v1::CreateCavRequest) -> Result<v1::Cav, Error> {
        let response = self.registry().create_cav(request).await;
        let response = response.map_err(|s| self.registry_failed(s))?.into_inner();
        response
            .cav
            .ok_or_else(|| Error::contract(Service::Registry, "CreateCav left out the CAV"))
    }

    /// One CAV with its vectors, by `name` or `name@digest`.
    ///
    /// # Errors
    /// If the registry does not hold it.
    pub async fn get_cav(&self, name: &str) -> Result<v1::Cav, Error> {
        let request = v1::GetCavRequest {
            name: name.to_owned(),
        };
        let response = self.registry().get_cav(request).await;
        let response = response.map_err(|s| self.registry_failed(s))?.into_inner();
        response
            .cav
            .ok_or_else(|| Error::contract(Service::Registry, "GetCav left out the CAV"))
    }

    /// Deletes one version (`name@digest`) or all (`name`); with `purge` for good.
    ///
    /// # Errors
    /// If the registry does not hold it.
    pub async fn delete_cav(
        &self,
        name: &str,
        purge: bool,
    ) -> Result<v1::DeleteCavResponse, Error> {
        let request = v1::DeleteCavRequest {
            name: name.to_owned(),
            purge,
        };
        let response = self.registry().delete_cav(request).await;
        Ok(response.map_err(|s| self.registry_failed(s))?.into_inner())
    }

    /// Brings one deleted version (`name@digest`) back or all (`name`); how many.
    ///
    /// # Errors
    /// If the registry has none.
    pub async fn undelete_cav(&self, name: &str) -> Result<u32, Error> {
        let request = v1::UndeleteCavRequest {
            name: name.to_owned(),
        };
        let response = self.registry().undelete_cav(request).await;
        let response = response.map_err(|s| self.registry_failed(s))?;
        Ok(response.into_inner().restored_count)
    }
}

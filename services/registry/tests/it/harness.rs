//! A running registry and calls on it.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures::StreamExt;
use sqlx::{Connection, SqliteConnection, sqlite::SqliteConnectOptions};
use steering_proto::v1::{self, feature_registry_service_client::FeatureRegistryServiceClient};
use steering_registry::Config;
use tempfile::TempDir;
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle};
use tonic::{Code, Status, transport::Channel};
use tonic_types::StatusExt;

use crate::database::Database;

pub(crate) type Client = FeatureRegistryServiceClient<Channel>;

pub(crate) const HOOK: &str = "blocks.1.hook_resid_post";
pub(crate) const MODEL: &str = "test/model";

/// A folder with everything of a registry, and its database if that is elsewhere.
pub(crate) struct Data {
    folder: TempDir,
    pub(crate) database: Option<Arc<Database>>,
}

impl Data {
    pub(crate) async fn new() -> Self {
        Self {
            folder: tempfile::tempdir().expect("folder"),
            database: Database::create().await.map(Arc::new),
        }
    }

    /// In the folder alone, whatever servers there are.
    pub(crate) fn in_folder(folder: TempDir) -> Self {
        Self {
            folder,
            database: None,
        }
    }

    /// For another registry over the same database; None where there is none.
    pub(crate) fn beside(&self) -> Option<Self> {
        Some(Self {
            folder: tempfile::tempdir().expect("folder"),
            database: Some(Arc::clone(self.database.as_ref()?)),
        })
    }

    /// Runs a statement on the database, wherever it is.
    pub(crate) async fn execute(&self, statement: &str) {
        if let Some(database) = &self.database {
            return database.execute(statement).await;
        }
        let options = SqliteConnectOptions::new().filename(self.path().join("registry.sqlite"));
        let connection = SqliteConnection::connect_with(&options).await;
        sqlx::raw_sql(sqlx::AssertSqlSafe(statement))
            .execute(&mut connection.expect("file"))
            .await
            .expect("statement");
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn config(&self) -> Config {
        Config {
            data: self.path().to_owned(),
            task: None,
            objects: None,
            object_cache: None,
            object_cache_bytes: 8 << 30,
            database: self.database.as_ref().map(|database| database.url()),
            database_connections: 4,
            listen: String::new(),
            import_roots: Vec::new(),
            hub_allow: Vec::new(),
            keep_deleted_days: 30,
            log: String::new(),
            security: Default::default(),
            operation: Default::default(),
        }
    }
}

/// A registry on its own data.
pub(crate) struct Server {
    pub(crate) client: Client,
    pub(crate) channel: Channel,
    pub(crate) data: Data,
    running: Running,
}

struct Running {
    stop: oneshot::Sender<()>,
    task: JoinHandle<steering_registry::Result<()>>,
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::start_with(Data::new().await, Vec::new()).await
    }

    pub(crate) async fn start_with(data: Data, import_roots: Vec<PathBuf>) -> Self {
        let config = Config {
            import_roots,
            ..data.config()
        };
        Self::start_configured(data, config).await
    }

    pub(crate) async fn start_configured(data: Data, config: Config) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("port");
        let address = listener.local_addr().expect("address");
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(steering_registry::run(config, listener, async {
            let _ = stopped.await;
        }));
        let endpoint = Channel::from_shared(format!("http://{address}")).expect("address");
        let channel = endpoint.connect_lazy();
        let mut client = Client::new(channel.clone()).max_decoding_message_size(64 << 20);
        // While its store opens it refuses requests.
        let asked = v1::ListSaesRequest::default();
        while let Err(status) = client.list_saes(asked.clone()).await
            && status.code() == Code::Unavailable
            && !task.is_finished()
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Self {
            client,
            channel,
            data,
            running: Running { stop, task },
        }
    }

    /// Stops in an orderly way and gives the data back.
    pub(crate) async fn stop(self) -> Data {
        let Self {
            client,
            channel,
            data,
            running: Running { stop, task },
        } = self;
        drop((client, channel));
        let _ = stop.send(());
        task.await.expect("task").expect("orderly end");
        data
    }

    pub(crate) async fn import(&mut self, path: &Path, name: &str) -> Result<v1::Sae, Status> {
        import_with(&mut self.client, path, options(name)).await
    }

    /// Imports labels from a text, in small chunks.
    pub(crate) async fn labels(
        &mut self,
        sae_id: &str,
        text: &[u8],
    ) -> Result<v1::ImportFeatureLabelsResponse, Status> {
        use v1::import_feature_labels_request::Content;
        let header = v1::LabelImportHeader {
            sae_id: sae_id.to_owned(),
            source: String::new(),
            shared_names: false,
        };
        let contents = std::iter::once(Content::Header(header)).chain(
            text.chunks(1000)
                .map(|chunk| Content::Chunk(chunk.to_vec())),
        );
        let messages: Vec<_> = contents
            .map(|content| v1::ImportFeatureLabelsRequest {
                content: Some(content),
            })
            .collect();
        let response = self
            .client
            .import_feature_labels(tokio_stream::iter(messages))
            .await?;
        Ok(response.into_inner())
    }

    /// Imports CAVs from a file's bytes, in small chunks.
    pub(crate) async fn cavs(
        &mut self,
        bytes: &[u8],
        header: v1::CavImportHeader,
    ) -> Result<Vec<v1::Cav>, Status> {
        use v1::import_cavs_request::Content;
        let contents = std::iter::once(Content::Header(header)).chain(
            bytes
                .chunks(1000)
                .map(|chunk| Content::Chunk(chunk.to_vec())),
        );
        let messages: Vec<_> = contents
            .map(|content| v1::ImportCavsRequest {
                content: Some(content),
            })
            .collect();
        let response = self
            .client
            .import_cavs(tokio_stream::iter(messages))
            .await?;
        Ok(response.into_inner().cavs)
    }

    /// Labels that match a text, on one page of up to 1000.
    pub(crate) async fn search(&mut self, query: &str) -> Result<Vec<v1::FeatureLabel>, Status> {
        let request = v1::SearchFeaturesRequest {
            query: query.to_owned(),
            page_size: 1000,
            ..v1::SearchFeaturesRequest::default()
        };
        let page = self.client.search_features(request).await?.into_inner();
        assert!(page.next_page_token.is_empty(), "one page");
        Ok(page.features)
    }

    pub(crate) async fn features(
        &mut self,
        features: Vec<v1::FeatureRef>,
    ) -> Result<Vec<v1::SaeFeature>, Status> {
        let response = self
            .client
            .get_features(v1::GetFeaturesRequest {
                features,
                ..Default::default()
            })
            .await?;
        Ok(response.into_inner().features)
    }

    pub(crate) async fn feature(&mut self, reference: v1::FeatureRef) -> v1::SaeFeature {
        self.features(vec![reference])
            .await
            .expect("feature")
            .remove(0)
    }

    /// Names of all SAEs.
    pub(crate) async fn sae_names(&mut self) -> Vec<String> {
        let request = v1::ListSaesRequest::default();
        let saes = self
            .client
            .list_saes(request)
            .await
            .expect("list")
            .into_inner()
            .saes;
        saes.into_iter().map(|sae| sae.sae_id).collect()
    }

    /// All files below `objects` and `staging`, but for checksums.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        let mut files = Vec::new();
        let mut folders = vec![
            self.data.path().join("objects"),
            self.data.path().join("staging"),
        ];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).into_iter().flatten() {
                let path = entry.expect("entry").path();
                if path.ends_with("objects/sums") {
                    continue;
                }
                if path.is_dir() {
                    folders.push(path);
                } else {
                    files.push(path);
                }
            }
        }
        files
    }
}

pub(crate) fn options(name: &str) -> v1::SaeImportOptions {
    v1::SaeImportOptions {
        sae_id: name.to_owned(),
        hook_name: HOOK.to_owned(),
        model_id: MODEL.to_owned(),
        activation_scale: None,
        provenance: None,
        new_version: false,
    }
}

pub(crate) fn delete(sae_id: &str, purge: bool) -> v1::DeleteSaeRequest {
    v1::DeleteSaeRequest {
        sae_id: sae_id.to_owned(),
        purge,
    }
}

pub(crate) async fn import_with(
    client: &mut Client,
    path: &Path,
    options: v1::SaeImportOptions,
) -> Result<v1::Sae, Status> {
    let source = v1::import_sae_request::Source::Path(path.display().to_string());
    let request = v1::ImportSaeRequest {
        source: Some(source),
        options: Some(options),
    };
    let mut events = client.import_sae(request).await?.into_inner();
    while let Some(event) = events.next().await {
        if let Some(v1::import_sae_response::Event::Sae(sae)) = event?.event {
            return Ok(sae);
        }
    }
    Err(Status::unknown("the stream ended without an SAE"))
}

pub(crate) fn by_index(sae_id: &str, index: u32) -> v1::FeatureRef {
    v1::FeatureRef {
        sae_id: sae_id.to_owned(),
        feature: Some(v1::feature_ref::Feature::FeatureIndex(index)),
    }
}

pub(crate) fn by_label(sae_id: &str, label: &str) -> v1::FeatureRef {
    v1::FeatureRef {
        sae_id: sae_id.to_owned(),
        feature: Some(v1::feature_ref::Feature::Label(label.to_owned())),
    }
}

/// The field that a refusal is about.
pub(crate) fn field(status: &Status) -> String {
    let bad = status
        .get_details_bad_request()
        .unwrap_or_else(|| panic!("no field: {status:?}"));
    bad.field_violations[0].field.clone()
}

//! Objects in an S3-compatible store, named as in a folder, below a prefix.
//!
//! An object is uploaded in parts straight to its name, which shows it when all parts are there.
//! Credentials and the endpoint come from the environment (`AWS_ACCESS_KEY_ID`, …) only.

use std::{io::Read, time::Duration};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use object_store::{
    ClientConfigKey, ObjectMeta, ObjectStore, ObjectStoreExt, RetryConfig, WriteMultipart,
    aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey},
    path::Path,
};
use sha2::{Digest, Sha256};
use steering_proto::payload::hex;
use tokio::sync::mpsc;

use super::{
    Stored,
    sums::{Sums, SumsBuilder},
    writer::StagedObject,
};
use crate::{
    blocking::blocking,
    error::{Error, Result},
};

/// Bytes of one part of an upload; S3 wants equal parts of at least 5 MiB.
const PART_LEN: usize = 8 << 20;
/// Parts on their way to the store at once.
const PARTS_MAX: usize = 4;
/// How long one request may take: a part at 0.3 MB/s.
const REQUEST_TIME: &str = "30s";
const CONNECT_TIME: &str = "3s";
/// How long, and how often, one that failed is tried again.
const RETRY_TIME: Duration = Duration::from_secs(10);
const RETRIES: usize = 4;

/// Objects in a bucket.
#[derive(Debug)]
pub struct Bucket {
    store: AmazonS3,
    prefix: Path,
}

impl Bucket {
    /// The bucket of `s3://BUCKET/PREFIX`.
    pub fn new(url: &str) -> Result<Self> {
        let bad = |text: &str| Error::NotAllowed(format!("--objects: {text}"));
        let place = url
            .strip_prefix("s3://")
            .ok_or_else(|| bad("must be s3://BUCKET or s3://BUCKET/PREFIX"))?;
        let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
        if bucket.is_empty() || bucket.contains(['@', ':', '?']) {
            return Err(bad(
                "must name a bucket and no credentials; these come from AWS_ACCESS_KEY_ID and \
                 AWS_SECRET_ACCESS_KEY",
            ));
        }
        let retry = RetryConfig {
            max_retries: RETRIES,
            retry_timeout: RETRY_TIME,
            ..RetryConfig::default()
        };
        let client = |key, value| (AmazonS3ConfigKey::Client(key), value);
        let store = [
            client(ClientConfigKey::Timeout, REQUEST_TIME),
            client(ClientConfigKey::ConnectTimeout, CONNECT_TIME),
        ]
        .into_iter()
        .fold(AmazonS3Builder::from_env(), |builder, (key, value)| {
            builder.with_config(key, value)
        })
        .with_bucket_name(bucket)
        .with_retry(retry)
        .build()
        .map_err(|error| bad(&error.to_string()))?;
        let prefix =
            Path::parse(prefix.trim_end_matches('/')).map_err(|error| bad(&error.to_string()))?;
        Ok(Self { store, prefix })
    }

    fn object_path(&self, digest: &str) -> Path {
        self.prefix
            .clone()
            .join("saes")
            .join(format!("{digest}.safetensors"))
    }

    fn sums_path(&self, digest: &str) -> Path {
        self.prefix
            .clone()
            .join("sums")
            .join(format!("{digest}.sums"))
    }

    /// Uploads an object. One that is there already is replaced: it is the same, or damaged.
    pub(super) async fn upload(&self, staged: &StagedObject) -> Result<()> {
        let StagedObject { path, sums, digest } = staged;
        self.put_sums(sums, digest).await?;
        let mut file = std::fs::File::open(path)?;
        let (sender, mut parts) = mpsc::channel::<Bytes>(1);
        let reading = blocking(move || {
            loop {
                let mut part = Vec::with_capacity(PART_LEN);
                let len = (&mut file).take(PART_LEN as u64).read_to_end(&mut part)?;
                if len == 0 || sender.blocking_send(part.into()).is_err() {
                    return Ok(());
                }
            }
        });
        let target = self.object_path(digest);
        let upload = self.store.put_multipart(&target).await?;
        let mut upload = WriteMultipart::new_with_chunk_size(upload, PART_LEN);
        let sending = async {
            while let Some(part) = parts.recv().await {
                if let Err(error) = upload.wait_for_capacity(PARTS_MAX).await {
                    return (upload, Err(error));
                }
                upload.put(part);
            }
            (upload, Ok(()))
        };
        let (read, (upload, sent)) = tokio::join!(reading, sending);
        if let Err(error) = read.and_then(|()| Ok(sent?)) {
            if let Err(error) = upload.abort().await {
                tracing::warn!(digest, %error, "parts of an upload could not be removed");
            }
            return Err(error);
        }
        upload.finish().await?;
        Ok(())
    }

    async fn put_sums(&self, sums: &Sums, digest: &str) -> Result<()> {
        let payload = sums.encode(digest).into();
        self.store.put(&self.sums_path(digest), payload).await?;
        Ok(())
    }

    /// An object's checksums; made from it where they are not there, or damaged.
    pub(super) async fn sums(&self, digest: &str) -> Result<Sums> {
        if let Some(sums) = self.kept_sums(digest).await? {
            return Ok(sums);
        }
        tracing::info!(digest, "reading directions once, for their checksums");
        let (found, sums) = self.examine(digest).await?;
        if found != digest {
            return Err(Error::DataLoss(format!("object {digest} is damaged")));
        }
        self.put_sums(&sums, digest).await?;
        Ok(sums)
    }

    /// An object's checksums; None if they are not there, or damaged.
    pub(super) async fn kept_sums(&self, digest: &str) -> Result<Option<Sums>> {
        match self.store.get(&self.sums_path(digest)).await {
            Ok(found) => Ok(Sums::decode(&found.bytes().await?, digest)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// SHA-256 (hex) and block checksums of an object as it is there.
    pub(super) async fn examine(&self, digest: &str) -> Result<(String, Sums)> {
        let mut examined = (Sha256::new(), SumsBuilder::default());
        let mut stream = self.stream(digest).await?;
        while let Some(bytes) = stream.try_next().await? {
            examined = blocking(move || {
                let (mut hasher, mut sums) = examined;
                hasher.update(&bytes);
                sums.update(&bytes);
                Ok((hasher, sums))
            })
            .await?;
        }
        let (hasher, sums) = examined;
        Ok((hex(&hasher.finalize()), sums.finish()))
    }

    /// An object from end to end, in parts that each are tried again if need be.
    pub(super) async fn stream(
        &self,
        digest: &str,
    ) -> Result<futures::stream::BoxStream<'_, Result<Bytes>>> {
        let path = self.object_path(digest);
        let len = self.store.head(&path).await?.size;
        let parts = (0..len).step_by(PART_LEN).map(move |start| {
            let path = path.clone();
            async move {
                let end = len.min(start + PART_LEN as u64);
                Ok(self.store.get_range(&path, start..end).await?)
            }
        });
        Ok(futures::stream::iter(parts).buffered(2).boxed())
    }

    /// A part of an object.
    pub(super) async fn get(&self, digest: &str, range: std::ops::Range<u64>) -> Result<Bytes> {
        Ok(self
            .store
            .get_range(&self.object_path(digest), range)
            .await?)
    }

    /// Objects that are there.
    pub(super) async fn list(&self) -> Result<Vec<Stored>> {
        let folder = self.prefix.clone().join("saes");
        let found: Vec<ObjectMeta> = self.store.list(Some(&folder)).try_collect().await?;
        Ok(found.iter().filter_map(stored).collect())
    }

    /// How long an object has been there; None if it is not.
    pub(super) async fn age(&self, digest: &str) -> Result<Option<Duration>> {
        match self.store.head(&self.object_path(digest)).await {
            Ok(found) => Ok(Some(age(&found))),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes an object; one that is not there is no error.
    pub(super) async fn delete(&self, digest: &str) -> Result<()> {
        for path in [self.object_path(digest), self.sums_path(digest)] {
            match self.store.delete(&path).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

fn stored(object: &ObjectMeta) -> Option<Stored> {
    let digest = object.location.filename()?.strip_suffix(".safetensors")?;
    Some(Stored {
        digest: digest.to_owned(),
        len: object.size,
        age: age(object),
    })
}

/// By the store's clock against ours; what is from the future is new.
fn age(object: &ObjectMeta) -> Duration {
    std::time::SystemTime::from(object.last_modified)
        .elapsed()
        .unwrap_or(Duration::ZERO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_are_not_understood_are_refused() {
        for url in [
            "",
            "objects",
            "http://x/y",
            "s3://",
            "s3:///x",
            "s3://key:secret@bucket",
            "s3://b?x",
        ] {
            let error = Bucket::new(url).expect_err(url).to_string();
            assert!(error.contains("--objects"), "{url}: {error}");
        }
    }
}

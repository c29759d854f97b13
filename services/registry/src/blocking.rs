//! Work that blocks, on threads that may.

use crate::error::{Error, Result};

/// Runs work that blocks on a thread for such work.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::Storage(Box::new(error)))?
}

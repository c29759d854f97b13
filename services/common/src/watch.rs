//! Files that are read again when they change.

use std::{io::Read, path::PathBuf, sync::Arc, time::Duration};

use tokio::sync::watch;

/// How often files are looked at. Contents are compared, not times: a Kubernetes
/// secret changes by a symbolic link to files of any age.
const INTERVAL: Duration = Duration::from_secs(1);
/// Largest file read: certificates and keys are small.
const FILE_LEN_MAX: u64 = 4 << 20;

/// The latest good reading of some files.
pub(crate) type Latest<T> = watch::Receiver<Arc<T>>;

/// Reads and parses files, and again whenever one of them changes. What cannot be
/// read or parsed later is logged, and the last good reading stays.
///
/// # Errors
/// If they cannot be read or parsed now.
pub(crate) fn follow<T, P>(paths: Vec<PathBuf>, parse: P) -> Result<Latest<T>, String>
where
    T: Send + Sync + 'static,
    P: Fn(&[Vec<u8>]) -> Result<T, String> + Send + 'static,
{
    let mut seen = read(&paths)?;
    let (sender, latest) = watch::channel(Arc::new(parse(&seen)?));
    tokio::spawn(async move {
        let mut complaint = String::new();
        loop {
            tokio::select! {
                () = tokio::time::sleep(INTERVAL) => {}
                () = sender.closed() => return,
            }
            let outcome = match read(&paths) {
                Ok(contents) if contents == seen => continue,
                Ok(contents) => {
                    seen = contents;
                    parse(&seen)
                }
                Err(error) => Err(error),
            };
            match outcome {
                Ok(value) => {
                    complaint.clear();
                    tracing::info!(files = ?paths, "changed files are in use");
                    sender.send_replace(Arc::new(value));
                }
                Err(error) if error == complaint => {}
                Err(error) => {
                    tracing::error!("{error}; what was read before stays in use");
                    complaint = error;
                    // A file that comes back as it was is a change from this one.
                    seen.clear();
                }
            }
        }
    });
    Ok(latest)
}

fn read(paths: &[PathBuf]) -> Result<Vec<Vec<u8>>, String> {
    let read_one = |path: &PathBuf| {
        let fail = |error| format!("{}: {error}", path.display());
        let file = std::fs::File::open(path).map_err(fail)?;
        let mut contents = Vec::new();
        let length = file.take(FILE_LEN_MAX + 1).read_to_end(&mut contents);
        match length.map_err(fail)? as u64 {
            0..=FILE_LEN_MAX => Ok(contents),
            _ => Err(format!(
                "{}: has more than {FILE_LEN_MAX} bytes",
                path.display()
            )),
        }
    };
    paths.iter().map(read_one).collect()
}

//! What the program does instead of serving.

use crate::{
    backup::backup,
    check::{Contents, Report, check},
    config::{Config, Task},
    error::{Error, Result},
    store::{Store, postgres::PostgresStore, sqlite::SqliteStore},
    vectors::{Bucket, Source},
};

/// Performs a task: prints what it finds, progress on stderr. False if something is wrong.
pub async fn perform(task: Task, config: &Config) -> Result<bool> {
    if let (Task::Backup { .. }, Some(_)) = (&task, &config.database) {
        let text = "backup copies a registry without --database: copy that with pg_dump, and \
                    then the objects, which are never changed";
        return Err(Error::NotAllowed(text.to_owned()));
    }
    let contents = open(config).await?;
    let say = |text: String| eprintln!("{text}");
    let report = match &task {
        Task::Check { .. } => check(&contents, &say).await,
        Task::Backup { to } => backup(&contents, to, &say).await,
    };
    contents.store.close().await;
    let report = report?;
    let sound = report.problems.is_empty();
    match task {
        Task::Check { json: true } => println!("{}", json(&report)),
        Task::Check { json: false } => print!("{}", report.table()),
        Task::Backup { to } if sound => print!("{}: {}", to.display(), report.table()),
        Task::Backup { .. } => {
            print!(
                "no backup was made, for its original is damaged: {}",
                report.table()
            );
        }
    }
    Ok(sound)
}

fn json(report: &Report) -> String {
    // Numbers and text only: cannot fail.
    serde_json::to_string(report).unwrap_or_default()
}

async fn open(config: &Config) -> Result<Contents> {
    let store: Box<dyn Store> = match &config.database {
        Some(url) => Box::new(PostgresStore::open_read_only(url).await?),
        None => {
            let path = config.data.join("registry.sqlite");
            Box::new(SqliteStore::open_read_only(&path).await?)
        }
    };
    let objects = match &config.objects {
        None => Source::folder(&config.data.join("objects")),
        Some(url) => Source::Bucket(Bucket::new(url)?),
    };
    Ok(Contents { store, objects })
}

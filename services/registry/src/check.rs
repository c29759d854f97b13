//! `steer-registry check`: is everything that was stored there, and as it was stored?

use std::{
    collections::{HashMap, HashSet},
    fmt::Write as _,
    time::Duration,
};

use serde::Serialize;

use crate::{
    cavs::numbers_digest,
    error::{Error, Result},
    store::{Address, SaeRecord, Store, Versions},
    vectors::{Source, Stored, YOUNG},
};

const PAGE: u32 = 200;
/// How long an object may be there before an import of another process has named it.
const NAMING: Duration = Duration::from_secs(2);

/// A registry's database and objects, to be read.
#[derive(Debug)]
pub struct Contents {
    /// The database.
    pub store: Box<dyn Store>,
    /// Directions.
    pub objects: Source,
}

/// What was found.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// Versions of SAEs looked at.
    pub saes: u64,
    /// Versions of CAVs looked at.
    pub cavs: u64,
    /// Objects read.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// What is wrong.
    pub problems: Vec<Problem>,
}

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// `database`, `sae`, `cav` or `object`.
    pub kind: &'static str,
    /// Name of the SAE or CAV.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Its digest.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub digest: String,
    /// What is wrong with it.
    pub problem: String,
}

/// Looks at everything. Reads only, and takes what others do meanwhile for no problem.
pub async fn check(contents: &Contents, say: &(dyn Fn(String) + Sync)) -> Result<Report> {
    let mut report = Report::default();
    // Before the rows: an object that one of these has not named is nobody's.
    let objects = contents.objects.list().await?;
    say("database".to_owned());
    for problem in contents.store.damage().await? {
        report.add("database", "", "", problem);
    }
    let named = contents.check_saes(&mut report, say).await?;
    contents.check_cavs(&mut report, say).await?;
    let unnamed = |object: &Stored| !named.contains(&object.digest);
    let unnamed = objects.into_iter().filter(unnamed).collect();
    contents.check_unnamed(unnamed, &mut report).await?;
    Ok(report)
}

impl Contents {
    /// Every version of every SAE, deleted ones too, which may be wanted back.
    pub async fn saes(&self) -> Result<Vec<SaeRecord>> {
        let (mut saes, mut after) = (Vec::new(), 0);
        loop {
            let page = self.store.list_sae_versions(Versions::All, after, PAGE);
            let page = page.await?;
            let Some((last, _)) = page.last() else {
                return Ok(saes);
            };
            after = *last;
            saes.extend(page.into_iter().map(|(_, sae)| sae));
        }
    }

    /// Returns the digests that SAEs have.
    async fn check_saes(
        &self,
        report: &mut Report,
        say: &(dyn Fn(String) + Sync),
    ) -> Result<HashSet<String>> {
        let saes = self.saes().await?;
        let mut known: HashMap<&str, Option<String>> = HashMap::new();
        for (i, sae) in saes.iter().enumerate() {
            let len = sae.layout.file_len();
            if !known.contains_key(sae.digest.as_str()) {
                let mb = len as f64 / 1e6;
                say(format!(
                    "SAE {} of {}: {} ({mb:.1} MB)",
                    i + 1,
                    saes.len(),
                    sae.name
                ));
                let problem = self.objects.problem(&sae.digest, len).await?;
                known.insert(&sae.digest, problem);
                report.objects += 1;
                report.bytes += len;
            }
            report.saes += 1;
            if let Some(Some(problem)) = known.get(sae.digest.as_str())
                && self.is_still_there(sae).await?
            {
                report.add("sae", &sae.name, &sae.digest, problem.clone());
            }
        }
        Ok(saes.into_iter().map(|sae| sae.digest).collect())
    }

    /// Whether an SAE was not purged while it was looked at.
    async fn is_still_there(&self, sae: &SaeRecord) -> Result<bool> {
        let address = Address::of(&sae.name, &sae.digest);
        let now = self.store.saes_at(&address, Versions::All).await?;
        Ok(now.iter().any(|now| now.key == sae.key))
    }

    async fn check_cavs(&self, report: &mut Report, say: &(dyn Fn(String) + Sync)) -> Result<()> {
        let mut after = (String::new(), String::new());
        loop {
            let page = self.store.cav_versions((&after.0, &after.1), PAGE).await?;
            let Some(last) = page.last() else {
                return Ok(());
            };
            after = last.clone();
            for (name, digest) in page {
                if let Some(problem) = self.cav_problem(&name, &digest).await? {
                    report.add("cav", &name, &digest, problem);
                }
                report.cavs += 1;
            }
            say(format!("{} CAVs", report.cavs));
        }
    }

    async fn cav_problem(&self, name: &str, digest: &str) -> Result<Option<String>> {
        let address = Address::of(name, digest);
        Ok(match self.store.cavs_at(&address, Versions::All).await {
            Err(Error::DataLoss(text)) => Some(text),
            found => {
                let cav = found?.into_iter().next();
                let found = cav.map(|cav| numbers_digest(&cav));
                found
                    .filter(|found| found != digest)
                    .map(|found| format!("its numbers have digest {found}"))
            }
        })
    }

    /// Objects that no SAE had when it was looked.
    async fn check_unnamed(&self, mut objects: Vec<Stored>, report: &mut Report) -> Result<()> {
        if let Source::Bucket(_) = self.objects {
            // Those stay for a while on purpose.
            objects.retain(|object| object.age >= YOUNG);
        }
        if objects.is_empty() {
            return Ok(());
        }
        tokio::time::sleep(NAMING).await;
        let there = self.objects.list().await?.into_iter();
        let there: HashSet<String> = there.map(|object| object.digest).collect();
        for Stored { digest, len, .. } in objects {
            if there.contains(&digest) && !self.store.has_digest(&digest).await? {
                let text =
                    format!("no SAE has it ({len} bytes); the registry removes it when it starts");
                report.add("object", "", &digest, text);
            }
        }
        Ok(())
    }
}

impl Report {
    fn add(&mut self, kind: &'static str, name: &str, digest: &str, problem: String) {
        self.problems.push(Problem {
            kind,
            name: name.to_owned(),
            digest: digest.to_owned(),
            problem,
        });
    }

    /// A table for people.
    pub fn table(&self) -> String {
        let Self {
            saes,
            cavs,
            objects,
            bytes,
            problems,
        } = self;
        let mb = *bytes as f64 / 1e6;
        let mut text = format!("{saes} SAEs, {objects} objects ({mb:.1} MB), {cavs} CAVs: ");
        text += &match problems.len() {
            0 => "nothing is wrong\n".to_owned(),
            1 => "1 problem\n".to_owned(),
            n => format!("{n} problems\n"),
        };
        let width = |of: fn(&Problem) -> &str| {
            let longest = problems.iter().map(|problem| of(problem).chars().count());
            longest.max().unwrap_or(0)
        };
        let names = width(|problem| &problem.name);
        for Problem {
            kind,
            name,
            digest,
            problem,
        } in problems
        {
            let short = digest.get(..12).unwrap_or(digest);
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{kind:8}  {name:names$}  {short:12}  {problem}");
        }
        text
    }
}

//! Which of the machine's files, and of the hub's repositories, an import may read.

use std::path::{Path, PathBuf};

use crate::format::{FormatError, SourceFile, malformed};

/// Folders that may be read.
#[derive(Debug, Clone)]
pub enum Access {
    /// Every path: for a registry that listens to its own machine only.
    Anywhere,
    /// Paths below one of these folders (canonical); symbolic links that lead out are refused.
    Roots(Vec<PathBuf>),
}

impl Access {
    /// Below these folders, which must exist. An error names the one that does not.
    pub fn roots(roots: &[PathBuf]) -> std::io::Result<Self> {
        let real = |root: &PathBuf| {
            let named = |error: std::io::Error| {
                let text = format!("{}: {error}", root.display());
                std::io::Error::new(error.kind(), text)
            };
            root.canonicalize().map_err(named)
        };
        Ok(Self::Roots(
            roots.iter().map(real).collect::<Result<_, _>>()?,
        ))
    }

    /// The real path behind `path`. Whether a path outside exists is not told.
    pub fn resolve(&self, path: &Path) -> Result<PathBuf, FormatError> {
        let missing = |error: std::io::Error| match error.kind() {
            std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory => {
                FormatError::Io(std::io::Error::new(
                    std::io::ErrorKind::NotFound,
                    format!(
                        "{} does not exist on the registry's machine",
                        path.display()
                    ),
                ))
            }
            kind => FormatError::Io(std::io::Error::new(
                kind,
                format!("{} cannot be read: {error}", path.display()),
            )),
        };
        let Self::Roots(roots) = self else {
            return path.canonicalize().map_err(missing);
        };
        let outside = || {
            malformed(format!(
                "{} is outside the folders that may be imported",
                path.display()
            ))
        };
        match path.canonicalize() {
            Ok(real) if roots.iter().any(|root| real.starts_with(root)) => Ok(real),
            Ok(_) => Err(outside()),
            Err(error) if roots.iter().any(|root| path.starts_with(root)) => Err(missing(error)),
            Err(_) => Err(outside()),
        }
    }

    /// Opens a regular file. Devices and pipes, which could block or never end, are refused.
    pub fn open(&self, path: &Path) -> Result<SourceFile, FormatError> {
        let real = self.resolve(path)?;
        if !real.metadata()?.is_file() {
            return Err(malformed(format!(
                "{} is not a regular file",
                path.display()
            )));
        }
        let name = path
            .file_name()
            .map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        Ok(SourceFile::new(std::fs::File::open(&real)?, name)?)
    }
}

/// An entry of the hub's list, as it is given.
///
/// # Errors
/// If it is neither `owner/name` nor `owner/*`.
pub fn hub_entry(text: &str) -> Result<String, String> {
    let plain = |part: &str| {
        let of_names = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        !part.is_empty() && part.chars().all(of_names) && !part.chars().all(|c| c == '.')
    };
    match text.split_once('/') {
        Some((owner, name)) if plain(owner) && (name == "*" || plain(name)) => Ok(text.to_owned()),
        _ => {
            let text =
                "must be \"owner/name\" or \"owner/*\", of letters, digits, '.', '_' and '-'";
            Err(text.to_owned())
        }
    }
}

/// Repositories of the model hub that may be imported.
#[derive(Debug, Clone, Default)]
pub enum HubAccess {
    /// Every one: for a registry that listens to its own machine only.
    #[default]
    Anything,
    /// `owner/name`, or `owner/*` for all of an owner.
    Listed(Vec<String>),
}

impl HubAccess {
    /// These; none given are all of them for callers on this machine, and none for others.
    pub fn new(listed: &[String], local: bool) -> Self {
        match listed {
            [] if local => Self::Anything,
            _ => Self::Listed(listed.to_owned()),
        }
    }

    /// Whether a repository (`owner/name`) may be imported. The hub takes no notice of case.
    pub fn allows(&self, repo_id: &str) -> bool {
        let Self::Listed(listed) = self else {
            return true;
        };
        let owner = |id: &str| id.split('/').next().unwrap_or_default().to_lowercase();
        listed.iter().any(|entry| {
            entry.eq_ignore_ascii_case(repo_id)
                || (entry.ends_with("/*") && owner(entry) == owner(repo_id))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hub_is_open_to_this_machine_and_listed_for_others() {
        let none = HubAccess::new(&[], true);
        assert!(none.allows("a/b"));
        let none = HubAccess::new(&[], false);
        assert!(!none.allows("a/b"));
        let listed = ["google/*".to_owned(), "a/b".to_owned()];
        let some = HubAccess::new(&listed, true);
        for allowed in ["google/gemma-scope", "Google/x", "a/b", "A/B"] {
            assert!(some.allows(allowed), "{allowed}");
        }
        for refused in ["googler/x", "a/bc", "a", "b/a", "x/google"] {
            assert!(!some.allows(refused), "{refused}");
        }
        for entry in listed {
            assert_eq!(hub_entry(&entry), Ok(entry.clone()));
        }
        for wrong in [
            "google", "*", "*/*", "a/b/c", "a/", "/b", "a/b*", "../x", "a/..", "a/b c",
        ] {
            assert!(hub_entry(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn links_and_dots_cannot_leave_the_roots() {
        let outer = tempfile::tempdir().expect("folder");
        let root = outer.path().join("root");
        std::fs::create_dir(&root).expect("root");
        std::fs::write(outer.path().join("secret"), "x").expect("file");
        std::fs::write(root.join("fine"), "x").expect("file");
        std::os::unix::fs::symlink(outer.path().join("secret"), root.join("link")).expect("link");
        std::os::unix::fs::symlink(root.join("fine"), root.join("inner")).expect("link");
        let access = Access::roots(std::slice::from_ref(&root)).expect("roots");
        assert!(access.open(&root.join("fine")).is_ok());
        assert!(access.open(&root.join("inner")).is_ok());
        for refused in [
            root.join("link"),
            root.join("../secret"),
            outer.path().join("none"),
            root.clone(),
        ] {
            assert!(access.open(&refused).is_err(), "{}", refused.display());
        }
        assert!(Access::Anywhere.open(&outer.path().join("secret")).is_ok());
    }
}

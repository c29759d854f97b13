//! Versions of SAEs and CAVs: their addresses, and whether they were deleted.

/// All versions of a name, or those whose digest has this beginning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// Name.
    pub name: String,
    /// Hex digits that the digest starts with.
    pub digest_prefix: Option<String>,
}

impl Address {
    /// One version.
    pub fn of(name: &str, digest: &str) -> Self {
        Self {
            name: name.to_owned(),
            digest_prefix: Some(digest.to_owned()),
        }
    }
}

/// Versions by whether they were deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Versions {
    /// Those that were not.
    Live,
    /// Those that were.
    Deleted,
    /// Both.
    All,
}

impl Versions {
    /// Both, or those that were not deleted.
    pub fn with_deleted(with: bool) -> Self {
        if with { Self::All } else { Self::Live }
    }
}

//! Lists that the registry serves in pages.

/// Entries of a list, from as many pages as it took.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Listing<T> {
    /// The entries.
    pub items: Vec<T>,
    /// Whether the registry has more than was asked for, or may have more than it looks at.
    pub truncated: bool,
}

/// Largest page the registry serves.
const PAGE_SIZE_MAX: usize = 1000;

/// Follows pages until the end or the limit. `fetch` takes a page size and token.
pub(crate) async fn follow<T, E>(
    limit: Option<usize>,
    mut fetch: impl AsyncFnMut(u32, String) -> Result<(Vec<T>, String), E>,
) -> Result<Listing<T>, E> {
    let limit = limit.unwrap_or(usize::MAX);
    let mut items = Vec::new();
    let mut token = String::new();
    loop {
        let wanted = limit.saturating_sub(items.len()).min(PAGE_SIZE_MAX);
        if wanted == 0 {
            let truncated = !token.is_empty() || limit == 0;
            return Ok(Listing { items, truncated });
        }
        let page_size = u32::try_from(wanted).unwrap_or(u32::MAX);
        let (page, next) = fetch(page_size, token.clone()).await?;
        items.extend(page);
        let truncated = items.len() > limit;
        items.truncate(limit);
        // A repeated token would never end.
        if truncated || next.is_empty() || next == token {
            return Ok(Listing { items, truncated });
        }
        token = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server of the numbers below `total`, at most three a page.
    async fn list(total: usize, limit: Option<usize>) -> (usize, bool, usize) {
        let mut calls = 0;
        let fetch = async |size: u32, token: String| {
            calls += 1;
            let start = token.parse().unwrap_or(0);
            let end = total.min(start + (size as usize).min(3));
            let next = if end < total {
                end.to_string()
            } else {
                String::new()
            };
            Ok::<_, ()>(((start..end).collect::<Vec<_>>(), next))
        };
        let listing = follow(limit, fetch).await.expect("no failure");
        assert!(listing.items.iter().copied().eq(0..listing.items.len()));
        (listing.items.len(), listing.truncated, calls)
    }

    #[tokio::test]
    async fn pages_are_followed_up_to_the_limit() {
        assert_eq!(list(7, None).await, (7, false, 3));
        assert_eq!(list(7, Some(7)).await, (7, false, 3));
        assert_eq!(list(7, Some(5)).await, (5, true, 2));
        assert_eq!(list(7, Some(3)).await, (3, true, 1));
        assert_eq!(list(0, None).await, (0, false, 1));
    }
}

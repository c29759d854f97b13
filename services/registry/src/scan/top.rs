//! The largest few of many.

/// Keeps the `limit` items of largest score; of equal ones those with the lower key.
#[derive(Debug, Clone)]
pub(super) struct Top<K> {
    limit: usize,
    /// Unordered, up to twice the limit before it is cut.
    items: Vec<(f32, K)>,
    /// Scores below this are not among the largest.
    floor: f32,
}

impl<K: Copy + Ord> Top<K> {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            items: Vec::new(),
            floor: f32::NEG_INFINITY,
        }
    }

    pub(super) fn push(&mut self, score: f32, key: K) {
        if score < self.floor {
            return;
        }
        self.items.push((score, key));
        if self.items.len() >= 2 * self.limit {
            self.cut();
        }
    }

    pub(super) fn merge(&mut self, other: Self) {
        for (score, key) in other.items {
            self.push(score, key);
        }
    }

    /// Largest first.
    pub(super) fn into_sorted(mut self) -> Vec<(f32, K)> {
        self.cut();
        self.items
    }

    fn cut(&mut self) {
        self.items
            .sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        if self.items.len() >= self.limit {
            self.items.truncate(self.limit);
            self.floor = self
                .items
                .last()
                .map_or(f32::NEG_INFINITY, |(score, _)| *score);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_are_kept_in_order() {
        let mut top = Top::new(3);
        let mut other = Top::new(3);
        for key in 0..100_u32 {
            let score = ((key * 37) % 100) as f32;
            if key % 2 == 0 { &mut top } else { &mut other }.push(score, key);
        }
        top.push(99.0, 1000);
        top.merge(other);
        let scores: Vec<f32> = top.into_sorted().iter().map(|item| item.0).collect();
        assert_eq!(scores, [99.0, 99.0, 98.0]);
    }

    #[test]
    fn ties_go_to_the_lower_key() {
        let mut top = Top::new(2);
        for key in [5, 3, 9, 1] {
            top.push(1.0, key);
        }
        let keys: Vec<i32> = top.into_sorted().iter().map(|item| item.1).collect();
        assert_eq!(keys, [1, 3]);
    }
}

//! Lists of labels, united and intersected while they are read.

use std::{cmp::Reverse, collections::BinaryHeap};

use crate::store::LabelIds;

/// Labels that are in any of several lists, ascending.
pub(super) struct AnyOf<'a> {
    lists: Vec<LabelIds<'a>>,
    /// The next label of each list that has one.
    next: BinaryHeap<Reverse<(i64, usize)>>,
}

impl<'a> AnyOf<'a> {
    pub(super) fn new(lists: impl Iterator<Item = LabelIds<'a>>) -> Self {
        let mut lists: Vec<LabelIds<'a>> = lists.collect();
        let next = lists
            .iter_mut()
            .enumerate()
            .filter_map(|(i, list)| Some(Reverse((list.next()?, i))));
        Self {
            next: next.collect(),
            lists,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.next.is_empty()
    }

    /// The first label from `key` on.
    fn at_least(&mut self, key: i64) -> Option<i64> {
        loop {
            let &Reverse((next, i)) = self.next.peek()?;
            if next >= key {
                return Some(next);
            }
            self.next.pop();
            if let Some(next) = self.lists[i].find(|&next| next >= key) {
                self.next.push(Reverse((next, i)));
            }
        }
    }
}

/// Adds labels behind `after` that are in all of the lists, until `found` has `most`.
pub(super) fn in_all(lists: &mut [AnyOf<'_>], after: i64, most: usize, found: &mut Vec<i64>) {
    let Some(mut at) = after.checked_add(1) else {
        return;
    };
    while found.len() < most {
        let Some(next) = lists.iter_mut().try_fold(at, |at, list| list.at_least(at)) else {
            return;
        };
        // Nobody went further, so that all have it.
        if next == at {
            found.push(at);
            at += 1;
        } else {
            at = next;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Small distances are their own encoding.
    fn list(ids: &[i64]) -> Vec<u8> {
        let mut at = 0;
        let distances = ids.iter().map(|&id| {
            let distance = id - at;
            at = id;
            u8::try_from(distance).expect("small")
        });
        distances.collect()
    }

    #[test]
    fn any_of_each_in_all() {
        let (a, b, c) = (
            list(&[1, 4, 6, 9, 50]),
            list(&[2, 4, 10, 60]),
            list(&[4, 5, 6, 10, 50, 60, 61]),
        );
        let search = |after, most| {
            let mut lists = [
                AnyOf::new([&a, &b].into_iter().map(|list| LabelIds::new(list))),
                AnyOf::new([LabelIds::new(&c)].into_iter()),
            ];
            let mut found = Vec::new();
            in_all(&mut lists, after, most, &mut found);
            found
        };
        assert_eq!(search(0, 100), [4, 6, 10, 50, 60]);
        assert_eq!(search(6, 2), [10, 50]);
        assert_eq!(search(60, 100), [0; 0]);
        let mut found = Vec::new();
        let mut lists = [
            AnyOf::new([LabelIds::new(&a)].into_iter()),
            AnyOf::new([].into_iter()),
        ];
        in_all(&mut lists, 0, 100, &mut found);
        assert!(found.is_empty());
    }
}

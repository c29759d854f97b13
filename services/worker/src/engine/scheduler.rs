//! Who takes part in the next step, and with how many tokens. Pure.

/// A sequence as the scheduler sees it.
#[derive(Debug, Clone, Copy)]
pub(super) struct View {
    /// Tokens not yet read, at least 1: more than one only in the prompt.
    pub(super) unread: usize,
    /// Whether its reader has room for what the step may produce.
    pub(super) runnable: bool,
}

/// A sequence's share of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Share {
    /// Index of the sequence.
    pub(super) sequence: usize,
    /// How many of its unread tokens to read.
    pub(super) tokens: usize,
}

/// Every runnable sequence that decodes gets its one token; prompts share
/// `prompt_budget` tokens, oldest first, so that a long prompt never stalls
/// those that decode. Shares come in order of sequence.
pub(super) fn plan(sequences: &[View], prompt_budget: usize) -> Vec<Share> {
    let mut budget = prompt_budget.max(1);
    sequences
        .iter()
        .enumerate()
        .filter(|(_, view)| view.runnable)
        .filter_map(|(sequence, view)| {
            if view.unread == 1 {
                return Some(Share {
                    sequence,
                    tokens: 1,
                });
            }
            let tokens = view.unread.min(budget);
            budget -= tokens;
            (tokens > 0).then_some(Share { sequence, tokens })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(unread: usize, runnable: bool) -> View {
        View { unread, runnable }
    }

    #[test]
    fn decoding_goes_on_beside_a_long_prompt() {
        let shares = plan(&[view(1000, true), view(1, true), view(300, true)], 512);
        let tokens: Vec<_> = shares.iter().map(|s| (s.sequence, s.tokens)).collect();
        assert_eq!(tokens, [(0, 512), (1, 1)]);
    }

    #[test]
    fn prompts_share_the_budget_and_parked_sequences_wait() {
        let shares = plan(&[view(200, true), view(1, false), view(400, true)], 512);
        let tokens: Vec<_> = shares.iter().map(|s| (s.sequence, s.tokens)).collect();
        assert_eq!(tokens, [(0, 200), (2, 312)]);
    }
}

//! How many tokens each sequence reads in the next step. Pure.

/// Sequences that read the same tokens in lockstep, or one alone.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Unit {
    /// The request it belongs to.
    pub(super) job: u64,
    /// Tokens it can read in one step, at least 1.
    pub(super) unread: usize,
    /// Cost of one of its tokens, in rows of the whole stack.
    pub(super) weight: f32,
    /// Whether it reads a token that it wrote.
    pub(super) decodes: bool,
}

/// Tokens per unit, 0 for those left out. Every unit that decodes reads its one
/// token. Prompts share `prompt_budget` rows evenly by request, and what a
/// short one leaves goes to the others, so that neither a long prompt nor a
/// request with many variants stalls anyone. Without a budget none is read.
pub(super) fn plan(units: &[Unit], prompt_budget: usize) -> Vec<usize> {
    let mut tokens: Vec<usize> = units.iter().map(|u| usize::from(u.decodes)).collect();
    if prompt_budget == 0 {
        return tokens;
    }
    let mut jobs = prompts_by_job(units);
    // Those that need least come first and leave the rest of their share.
    jobs.sort_by(|a, b| cost(units, a).total_cmp(&cost(units, b)));
    let mut budget = prompt_budget as f32;
    let n_jobs = jobs.len();
    for (served, members) in jobs.iter().enumerate() {
        let mut share = budget / (n_jobs - served) as f32;
        for &unit in members {
            let Unit { unread, weight, .. } = units[unit];
            let mut affordable = (share / weight).max(0.0) as usize;
            if affordable == 0 && share > 0.0 && budget >= weight {
                affordable = 1; // else the longest would get what is left of every share
            }
            tokens[unit] = unread.min(affordable);
            let spent = tokens[unit] as f32 * weight;
            share -= spent;
            budget -= spent;
        }
    }
    // A budget below one token must not stop the oldest prompt.
    let mut prompts = (0..units.len()).filter(|&unit| !units[unit].decodes);
    if let Some(oldest) = prompts.next()
        && tokens[oldest] == 0
        && prompts.all(|unit| tokens[unit] == 0)
    {
        tokens[oldest] = 1;
    }
    tokens
}

/// Units that read prompts, request by request.
fn prompts_by_job(units: &[Unit]) -> Vec<Vec<usize>> {
    let mut jobs: Vec<Vec<usize>> = Vec::new();
    for (index, unit) in units.iter().enumerate().filter(|(_, u)| !u.decodes) {
        match jobs.iter_mut().find(|job| units[job[0]].job == unit.job) {
            Some(job) => job.push(index),
            None => jobs.push(vec![index]),
        }
    }
    jobs
}

fn cost(units: &[Unit], members: &[usize]) -> f32 {
    let costs = members
        .iter()
        .map(|&unit| units[unit].unread as f32 * units[unit].weight);
    costs.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompt(job: u64, unread: usize) -> Unit {
        Unit {
            job,
            unread,
            weight: 1.0,
            decodes: false,
        }
    }

    fn decode(job: u64) -> Unit {
        Unit {
            decodes: true,
            ..prompt(job, 1)
        }
    }

    #[test]
    fn decoding_goes_on_beside_a_long_prompt() {
        assert_eq!(plan(&[prompt(0, 1000), decode(1)], 512), [512, 1]);
    }

    #[test]
    fn a_short_prompt_does_not_wait_behind_a_long_one() {
        let units = [prompt(0, 1000), prompt(1, 100), prompt(2, 1000)];
        assert_eq!(plan(&units, 500), [200, 100, 200]);
    }

    #[test]
    fn where_a_share_is_less_than_a_token_the_shortest_gets_it() {
        let units = [prompt(0, 500), prompt(1, 20), prompt(2, 100)];
        assert_eq!(plan(&units, 1), [0, 1, 0]);
        assert_eq!(plan(&units, 2), [0, 1, 1]);
    }

    #[test]
    fn requests_share_evenly_however_many_variants_they_have() {
        let many = [
            prompt(0, 100),
            prompt(0, 100),
            prompt(0, 100),
            prompt(1, 100),
        ];
        assert_eq!(plan(&many, 100), [50, 0, 0, 50]);
    }

    #[test]
    fn a_heavy_group_reads_fewer_tokens() {
        let group = Unit {
            weight: 4.0,
            ..prompt(0, 100)
        };
        assert_eq!(plan(&[group], 100), [25]);
    }

    #[test]
    fn the_oldest_prompt_always_moves() {
        let heavy = |job| Unit {
            weight: 4.0,
            ..prompt(job, 9)
        };
        assert_eq!(plan(&[heavy(0), heavy(1)], 2), [1, 0]);
        assert_eq!(plan(&[decode(0), heavy(1)], 1), [1, 1]);
        assert_eq!(plan(&[decode(0), prompt(1, 9)], 0), [1, 0]);
    }
}

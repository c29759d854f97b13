//! Which sequences read the same tokens in lockstep, and how much of the stack
//! they have in common.

use steering_proto::{HookPoint, Site, generate::Priority, intervention::Token};

use super::{scheduler::Unit, sequence::Sequence};
use crate::{
    model::{Chunk, Shared},
    text::TextCodec,
};

/// A lane of a running sequence, by index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) sequence: usize,
    pub(super) lane: usize,
}

/// Lanes that read the same tokens: the variants of a request at the same place
/// of its prompt, a variant and its twin, or one alone.
#[derive(Debug)]
pub(super) struct Group {
    members: Vec<Member>,
    decodes: bool,
    /// Of a request that lets interactive ones go first.
    bulk: bool,
}

/// A chunk of the batch and whose it is.
#[derive(Debug)]
pub(super) struct Placed {
    pub(super) member: Member,
    pub(super) chunk: Chunk,
    pub(super) tokens: Vec<Token>,
}

/// Groups the sequences whose readers have room.
pub(super) fn form(running: &[Sequence]) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for (index, sequence) in running.iter().enumerate() {
        if !sequence.link.has_room() {
            continue;
        }
        let lanes = (0..sequence.lanes.len()).map(|lane| Member {
            sequence: index,
            lane,
        });
        let same = |group: &&mut Group| {
            let other = &running[group.members[0].sequence];
            other.job == sequence.job && other.read == sequence.read && other.can_share()
        };
        match groups
            .iter_mut()
            .find(same)
            .filter(|_| sequence.can_share())
        {
            Some(group) => group.members.extend(lanes),
            None => groups.push(Group {
                members: lanes.collect(),
                decodes: sequence.decodes(),
                bulk: sequence.priority == Priority::Batch,
            }),
        }
    }
    groups
}

/// Sequences that read their prompt, as far as those who decode are to wait for
/// them: interactive ones do not wait for bulk work.
pub(super) fn crowd(groups: &[Group]) -> usize {
    let only_bulk = groups.iter().all(|group| group.bulk || !group.decodes);
    let counted = groups.iter().filter(|group| only_bulk || !group.bulk);
    counted.map(Group::prompt_rows).sum()
}

impl Group {
    /// Rows it adds to the step of those who decode.
    pub(super) fn decode_rows(&self) -> usize {
        if self.decodes { self.members.len() } else { 0 }
    }

    /// Sequences in it that still read their prompt.
    fn prompt_rows(&self) -> usize {
        if self.decodes { 0 } else { self.members.len() }
    }

    /// As the scheduler sees it. `horizon`: tokens that a step may read.
    pub(super) fn unit(
        &self,
        running: &[Sequence],
        horizon: usize,
        n_layers: usize,
        codec: &TextCodec,
    ) -> Unit {
        let first = &running[self.members[0].sequence];
        let unread = first.unread();
        let tokens = next_tokens(first, unread.min(horizon), codec);
        let (leader, shared) = self.share(running, &tokens, n_layers);
        let own = |(index, layers): (usize, &usize)| match index == leader {
            true => 1.0,
            false => 1.0 - *layers as f32 / n_layers as f32,
        };
        Unit {
            job: first.job,
            unread,
            weight: shared.iter().enumerate().map(own).sum(),
            decodes: self.decodes,
        }
    }

    /// Adds the group's chunks of the next `n` tokens to the batch.
    pub(super) fn place(
        &self,
        n: usize,
        running: &mut [Sequence],
        n_layers: usize,
        codec: &TextCodec,
        batch: &mut Vec<Placed>,
    ) {
        let tokens = next_tokens(&running[self.members[0].sequence], n, codec);
        let (leader, shared) = self.share(running, &tokens, n_layers);
        let leader_chunk = batch.len();
        let others = (0..self.members.len()).filter(|&index| index != leader);
        for index in std::iter::once(leader).chain(others) {
            let member = self.members[index];
            let layers = if index == leader { 0 } else { shared[index] };
            let sequence = &mut running[member.sequence];
            let in_prompt = sequence.prompt_len.saturating_sub(sequence.read).min(n);
            if layers == n_layers && member.lane == 0 {
                sequence.shared_tokens += in_prompt;
            }
            let logits = sequence.logits(n);
            let start = sequence.read;
            let lane = &mut sequence.lanes[member.lane];
            lane.first_edit = earliest([lane.first_edit, lane.program.first_edit(&tokens)]);
            let chunk = Chunk {
                slot: lane.slot,
                start,
                tokens: tokens.iter().map(|token| token.id).collect(),
                logits,
                shared: (layers > 0).then_some(Shared {
                    leader: leader_chunk,
                    layers,
                }),
            };
            batch.push(Placed {
                member,
                chunk,
                tokens: tokens.clone(),
            });
        }
    }

    /// The member that computes for the others, and for each member how many
    /// leading layers it need not compute itself.
    fn share(
        &self,
        running: &[Sequence],
        tokens: &[Token],
        n_layers: usize,
    ) -> (usize, Vec<usize>) {
        let edited: Vec<Option<HookPoint>> = self
            .members
            .iter()
            .map(|member| {
                let lane = &running[member.sequence].lanes[member.lane];
                earliest([lane.first_edit, lane.program.first_edit(tokens)])
            })
            .collect();
        let untouched = |&index: &usize| edited[index].map_or(n_layers, common_layers);
        // Of equals the first one leads.
        let leader = (0..edited.len()).rev().max_by_key(untouched).unwrap_or(0);
        let shared = self
            .members
            .iter()
            .zip(&edited)
            .map(|(member, &edited_at)| {
                let sequence = &running[member.sequence];
                let program = &sequence.lanes[member.lane].program;
                let read = program.first_read(tokens, sequence.prompt_len);
                let touched = earliest([edited[leader], edited_at, read]);
                touched.map_or(n_layers, common_layers).min(n_layers)
            });
        (leader, shared.collect())
    }
}

/// Layers that are done when nothing before this hook point differs: rows join
/// right before `hook_resid_post` of the last of them.
fn common_layers(point: HookPoint) -> usize {
    match point.site {
        Site::ResidPost => point.layer + 1,
        Site::ResidPre | Site::Z | Site::AttnOut | Site::MlpOut => point.layer,
    }
}

fn earliest<const N: usize>(points: [Option<HookPoint>; N]) -> Option<HookPoint> {
    points.into_iter().flatten().min()
}

fn next_tokens(sequence: &Sequence, n: usize, codec: &TextCodec) -> Vec<Token> {
    (sequence.read..sequence.read + n)
        .map(|index| sequence.token(index, codec))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interactive_work_does_not_wait_for_bulk_work() {
        let group = |decodes, bulk| Group {
            members: vec![
                Member {
                    sequence: 0,
                    lane: 0
                };
                3
            ],
            decodes,
            bulk,
        };
        let (decoding, reading) = (group(true, false), group(false, false));
        let (bulk, captures) = (group(true, true), group(false, true));
        assert_eq!(crowd(&[decoding, reading, captures]), 3);
        assert_eq!(crowd(&[bulk, group(false, false), group(false, true)]), 6);
    }
}

//! What a step says of the next tokens.

use candle_core::Result;

use super::{
    launch::Address,
    parameters::{Candidates, Simple},
    pass::Pass,
    products::Output,
    weights::Map,
};
use crate::model::{Scores, Top};

/// Blocks that look for the greatest of a row of logits.
pub(super) const PARTS: usize = 64;
/// Candidates that a row has room for. Where that is too little, or they are far from
/// the greatest, all logits are copied.
const MOST_CANDIDATES: usize = 1024;

/// The greatest of a row of logits, Σ exp(logit − greatest), and its token.
#[derive(Debug, Clone, Copy, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(super) struct Found {
    logit: f32,
    sum: f32,
    token: u32,
    unused: u32,
}

/// A token and its logit.
#[derive(Debug, Clone, Copy, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Candidate {
    token: u32,
    logit: f32,
}

/// Bytes of the numbers of candidates of so many rows, before the candidates.
fn found_bytes(rows: usize) -> u64 {
    (rows * size_of::<u32>()).next_multiple_of(16) as u64
}

/// Bytes for the candidates of so many rows.
pub(super) fn candidate_bytes(rows: usize) -> usize {
    found_bytes(rows) as usize + rows * MOST_CANDIDATES * size_of::<Candidate>()
}

impl Pass<'_> {
    /// Logits of the rows that ask for them, and the greatest of those that ask for
    /// no more.
    pub(super) fn score(&mut self, scores: &mut Scores) -> Result<()> {
        let (n_logits, n_top) = (self.batch.logit_rows().len(), self.batch.top_rows().len());
        let (n, vocabulary) = (n_logits + n_top, self.config.vocab_size);
        scores.logits.clear();
        scores.top.clear();
        if n == 0 {
            return Ok(());
        }
        let rows = self.tables.at(self.head_rows_at);
        self.gather(self.room.normed, rows, self.room.head_in, n, 1.0)?;
        let head = Map::without_bias(self.decoder.head);
        let shape = [vocabulary, self.config.d_model, n];
        self.product(
            Output::Logits,
            &head,
            self.room.head_in,
            self.room.logits,
            shape,
        )?;
        if n_top > 0 {
            let first = (n_logits * vocabulary * size_of::<f32>()) as u64;
            self.top(self.room.logits + first, &mut scores.top)?;
        }
        scores.logits.resize(n_logits * vocabulary, 0.0);
        self.decoder.gpu.read(self.room.logits, &mut scores.logits)
    }

    /// The greatest logits of rows from an address on.
    fn top(&self, logits: Address, top: &mut Vec<Top>) -> Result<()> {
        let counts = self.batch.top_counts();
        self.best(logits, counts.len())?;
        let several = counts.iter().any(|&n| n > 1);
        if several {
            self.candidates(logits, counts.len())?;
        }
        let gpu = &self.decoder.gpu;
        let mut best = vec![Found::default(); counts.len()];
        gpu.read(self.room.best, &mut best)?;
        let (mut found, mut candidates) = (Vec::new(), Vec::new());
        if several {
            found.resize(counts.len(), 0u32);
            candidates.resize(counts.len() * MOST_CANDIDATES, Candidate::default());
            gpu.read(self.room.candidates, &mut found)?;
            gpu.read(
                self.room.candidates + found_bytes(counts.len()),
                &mut candidates,
            )?;
        }
        let vocabulary = self.config.vocab_size as u32;
        for (row, (best, &n)) in best.iter().zip(&counts).enumerate() {
            let candidates = match found.get(row) {
                // Of logits that are no numbers none is the greatest: the first, as on the CPU.
                _ if n == 1 && best.token >= vocabulary => vec![(0, f32::NAN)],
                _ if n == 1 => vec![(best.token, best.logit)],
                Some(&found) if found as usize <= MOST_CANDIDATES => {
                    let here = &candidates[row * MOST_CANDIDATES..][..found as usize];
                    here.iter().map(|c| (c.token, c.logit)).collect()
                }
                _ => self.all(logits, row)?,
            };
            top.push(Top {
                candidates,
                log_sum_exp: best.logit + best.sum.ln(),
            });
        }
        Ok(())
    }

    /// All of a row's logits.
    fn all(&self, logits: Address, row: usize) -> Result<Vec<(u32, f32)>> {
        let mut values = vec![0.0f32; self.config.vocab_size];
        let from = row * self.config.vocab_size * size_of::<f32>();
        self.decoder.gpu.read(logits + from as u64, &mut values)?;
        Ok((0..).zip(values).collect())
    }

    fn candidates(&self, logits: Address, n: usize) -> Result<()> {
        let d = &*self.decoder;
        let candidates = Candidates {
            logits,
            best: self.room.best,
            wanted: self.tables.at(self.top_counts_at),
            out: self.room.candidates + found_bytes(n),
            found: self.room.candidates,
            width: self.config.vocab_size as u32,
            room: MOST_CANDIDATES as u32,
        };
        let shape = ((n as u32, 1, 1), 1024);
        d.gpu.launch(&d.kernels.candidates, shape, candidates)
    }

    fn best(&self, logits: Address, n: usize) -> Result<()> {
        let d = &*self.decoder;
        let parts = Simple {
            from: logits,
            out: self.room.parts,
            width: self.config.vocab_size as u32,
            ..Simple::default()
        };
        let shape = ((PARTS as u32, n as u32, 1), 256);
        d.gpu.launch(&d.kernels.best_of_parts, shape, parts)?;
        let best = Simple {
            from: self.room.parts,
            out: self.room.best,
            n: PARTS as u32,
            ..Simple::default()
        };
        d.gpu.launch(&d.kernels.best, ((n as u32, 1, 1), 32), best)
    }
}

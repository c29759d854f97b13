//! The greatest logits.

use steering_worker::{
    model::{Logits, argmax},
    steering::Program,
};

use super::{FAMILIES, Fixture, Part, gpu, load, step, tokens};

#[test]
fn the_greatest_logits_are_those_of_all() {
    let device = gpu();
    for family in FAMILIES {
        let fixture = Fixture::load(family);
        let gpu = load(&fixture, &device);
        let program = Program::default();
        let prompts: Vec<_> = (0..20).map(|seed| tokens(&gpu, 2, seed)).collect();
        // As many as are near, and more than are: then all come.
        let wanted = [
            Logits::Last,
            Logits::Top(1),
            Logits::Top(9),
            Logits::Top(300),
        ];
        let part = |(i, tokens)| Part {
            program: &program,
            tokens,
            logits: wanted[i % 4],
            shared: None,
        };
        let parts: Vec<_> = prompts
            .iter()
            .map(Vec::as_slice)
            .enumerate()
            .map(part)
            .collect();
        let all = parts.iter().map(|part| Part {
            logits: Logits::Last,
            ..*part
        });
        let (full, _) = step(&gpu, &all.collect::<Vec<_>>());
        let (mixed, _) = step(&gpu, &parts);
        let vocabulary = gpu.config().vocab_size;
        assert_eq!(mixed.logits.len(), 5 * vocabulary);
        let rows = full.logits.chunks_exact(vocabulary).zip(&parts);
        let mut tops = mixed.top.iter();
        for (row, part) in rows {
            let Logits::Top(n) = part.logits else {
                continue;
            };
            let top = tops.next().expect("one for each");
            let mut sorted = row.to_vec();
            sorted.sort_by(|a, b| b.total_cmp(a));
            let least = sorted[n as usize - 1];
            for (id, logit) in (0u32..).zip(row).filter(|(_, logit)| **logit >= least) {
                let is_first = n > 1 || !gpu.prefers_top() || id == argmax(row);
                let found = top.candidates.contains(&(id, *logit));
                assert_eq!(found, is_first, "{family}: {n}");
            }
            let mut given = top.candidates.iter();
            assert!(given.all(|(id, l)| row[*id as usize] == *l));
            let sum: f64 = row.iter().map(|v| f64::from(*v).exp()).sum();
            let off = f64::from(top.log_sum_exp) - sum.ln();
            assert!(off.abs() < 1e-3, "{family}: {off}");
        }
        assert!(tops.next().is_none());
    }
}

use super::super::isa::Portable;
use super::*;
use crate::model::kernels::tests::numbers;
use proptest::prelude::*;

/// The formula, in f64: `[n, n_heads * head_dim]`.
fn expected(rules: &Rules, sequence: &Sequence<'_>) -> Vec<f32> {
    let (d, width) = (rules.head_dim, rules.n_heads * rules.head_dim);
    let capacity = sequence.keys.len() / rules.n_kv_heads / d;
    let mut out = Vec::new();
    for (row, query) in sequence.queries.chunks(width).enumerate() {
        for (head, q) in query.chunks(d).enumerate() {
            let row_of =
                |position: usize| (head / rules.group() * capacity + position - sequence.first) * d;
            let seen = rules.visible(sequence.start + row);
            let scores: Vec<f64> = seen
                .clone()
                .map(|position| {
                    let k = &sequence.keys[row_of(position)..][..d];
                    let dot: f64 = q.iter().zip(k).map(|(q, k)| f64::from(q * k)).sum();
                    let score = dot * f64::from(rules.scale);
                    rules.softcap.map_or(score, |cap| {
                        f64::from(cap) * (score / f64::from(cap)).tanh()
                    })
                })
                .collect();
            let most = scores.iter().copied().fold(f64::MIN, f64::max);
            let weights: Vec<f64> = scores.iter().map(|s| (s - most).exp()).collect();
            let total: f64 = weights.iter().sum();
            out.extend((0..d).map(|i| {
                let sum: f64 = seen
                    .clone()
                    .zip(&weights)
                    .map(|(p, w)| w / total * f64::from(sequence.values[row_of(p) + i]))
                    .sum();
                sum as f32
            }));
        }
    }
    out
}

fn rules() -> impl Strategy<Value = Rules> {
    (
        1usize..4,
        1usize..6,
        1usize..80,
        prop::option::of(0.5f32..40.0),
        prop::option::of(1usize..90),
    )
        .prop_map(|(n_kv_heads, group, head_dim, softcap, window)| Rules {
            n_heads: n_kv_heads * group,
            n_kv_heads,
            head_dim,
            scale: 1.7,
            softcap,
            window,
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn it_is_the_formula_and_no_cut_of_the_rows_changes_a_bit(
        rules in rules(),
        start in 0usize..150,
        n in 1usize..40,
        spare in 0usize..5,
        cut: prop::sample::Index,
        seed: u64,
    ) {
        let width = rules.n_heads * rules.head_dim;
        let first = rules.visible(start).start.saturating_sub(spare);
        let rows = start + n - first + spare;
        let queries = numbers(n * width, seed);
        let keys = numbers(rows * rules.n_kv_heads * rules.head_dim, seed ^ 1);
        let values = numbers(rows * rules.n_kv_heads * rules.head_dim, seed ^ 2);
        let whole = Sequence { queries: &queries, start, keys: &keys, values: &values, first };
        let together = attention(&rules, &[whole]);
        for (ours, expected) in together.iter().zip(expected(&rules, &whole)) {
            prop_assert!((ours - expected).abs() <= 1e-5, "{} {}", ours, expected);
        }
        let cut = cut.index(n);
        let (head, tail) = queries.split_at(cut * width);
        let cut = [
            Sequence { queries: tail, start: start + cut, ..whole },
            Sequence { queries: head, ..whole },
        ];
        let (tail_out, head_out) = {
            let out = attention(&rules, &cut);
            let (tail, head) = out.split_at(tail.len());
            (tail.to_vec(), head.to_vec())
        };
        let bits = |v: &[f32]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        prop_assert_eq!(bits(&[head_out, tail_out].concat()), bits(&together));
    }

    #[test]
    fn without_a_fused_multiply_add_it_is_the_formula_too(
        head_dim in 1usize..40, n in 1usize..20, seed: u64,
    ) {
        let rules = Rules {
            n_heads: 1, n_kv_heads: 1, head_dim, scale: 0.5, softcap: Some(3.0), window: None,
        };
        let (queries, keys) = (numbers(n * head_dim, seed), numbers(n * head_dim, seed ^ 1));
        let values = numbers(n * head_dim, seed ^ 2);
        let mut out = vec![0.0; n * head_dim];
        Attend {
            rules: &rules,
            queries: &queries,
            keys: &keys,
            values: &values,
            visible: (0..n).map(|i| 0..i + 1).collect(),
            out: &mut out,
        }
        .run::<false>(Portable::<false>);
        let sequence =
            Sequence { queries: &queries, start: 0, keys: &keys, values: &values, first: 0 };
        for (ours, expected) in out.iter().zip(expected(&rules, &sequence)) {
            prop_assert!((ours - expected).abs() <= 1e-5, "{} {}", ours, expected);
        }
    }
}

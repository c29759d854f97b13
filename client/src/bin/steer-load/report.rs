//! What is printed: a table for people, one JSON document for machines.

use serde::Serialize;

use crate::{
    loops::{Joined, Swept},
    stats::{Summary, median},
};

/// Runs of a load, and of what it is compared with, in alternation.
#[derive(Debug, Serialize)]
pub(crate) struct Runs {
    pub(crate) mode: &'static str,
    pub(crate) model: String,
    pub(crate) device: String,
    pub(crate) runs: Vec<Summary>,
    pub(crate) against: Option<&'static str>,
    pub(crate) against_runs: Vec<Summary>,
}

/// Medians over rounds.
#[derive(Debug, Serialize)]
struct Medians {
    tokens_per_s: Option<f64>,
    time_to_first_token_p50_ms: Option<f64>,
    time_to_first_token_p99_ms: Option<f64>,
    time_per_token_p50_ms: Option<f64>,
    time_per_token_p99_ms: Option<f64>,
    token_gap_p99_ms: Option<f64>,
    fairness: Option<f64>,
}

#[derive(Serialize)]
struct Document<'a> {
    #[serde(flatten)]
    runs: &'a Runs,
    median: Medians,
    against_median: Option<Medians>,
    /// Ratio of the medians, load ÷ what it is compared with.
    throughput_ratio: Option<f64>,
}

impl Medians {
    fn of(runs: &[Summary]) -> Self {
        let median_of = |value: &dyn Fn(&Summary) -> Option<f64>| {
            median(&runs.iter().filter_map(value).collect::<Vec<_>>())
        };
        Self {
            tokens_per_s: median_of(&|run| Some(run.tokens_per_s)),
            time_to_first_token_p50_ms: median_of(&|run| run.time_to_first_token_ms.p50),
            time_to_first_token_p99_ms: median_of(&|run| run.time_to_first_token_ms.p99),
            time_per_token_p50_ms: median_of(&|run| run.time_per_token_ms.p50),
            time_per_token_p99_ms: median_of(&|run| run.time_per_token_ms.p99),
            token_gap_p99_ms: median_of(&|run| run.token_gap_ms.p99),
            fairness: median_of(&|run| run.fairness),
        }
    }

    fn cells(&self) -> [Option<f64>; 7] {
        [
            self.tokens_per_s,
            self.time_to_first_token_p50_ms,
            self.time_to_first_token_p99_ms,
            self.time_per_token_p50_ms,
            self.time_per_token_p99_ms,
            self.token_gap_p99_ms,
            self.fairness,
        ]
    }
}

impl Runs {
    fn document(&self) -> Document<'_> {
        let median = Medians::of(&self.runs);
        let against_median = self.against.map(|_| Medians::of(&self.against_runs));
        let against = against_median.as_ref().and_then(|m| m.tokens_per_s);
        let throughput_ratio = median.tokens_per_s.zip(against).map(|(a, b)| a / b);
        Document {
            runs: self,
            median,
            against_median,
            throughput_ratio,
        }
    }

    pub(crate) fn text(&self) -> String {
        let document = self.document();
        let heading = [
            "", "tok/s", "TTFT p50", "p99 ms", "TPOT p50", "p99 ms", "fairness",
        ];
        let mut lines = vec![
            format!("{} · {} · {}", self.mode, self.model, self.device),
            row(heading.map(str::to_owned)),
        ];
        let mut side = |name: &str, runs: &[Summary], median: &Medians| {
            for (i, run) in (1..).zip(runs) {
                let cells = Medians::of(std::slice::from_ref(run)).cells();
                lines.push(cells_row(&format!("{name} {i}"), cells));
            }
            lines.push(cells_row(&format!("{name} median"), median.cells()));
            let refused: usize = runs.iter().map(|run| run.refused).sum();
            if refused > 0 {
                lines.push(format!(
                    "{name}: {refused} requests refused, the queue being full"
                ));
            }
        };
        side("load", &self.runs, &document.median);
        if let (Some(name), Some(median)) = (self.against, &document.against_median) {
            side(name, &self.against_runs, median);
        }
        if let (Some(name), Some(ratio)) = (self.against, document.throughput_ratio) {
            lines.push(format!("throughput, load / {name}: {ratio:.3}"));
        }
        lines.join("\n")
    }

    pub(crate) fn json(&self) -> serde_json::Result<String> {
        serde_json::to_string(&self.document())
    }
}

fn cells_row(name: &str, cells: [Option<f64>; 7]) -> String {
    let mut texts = vec![name.to_owned()];
    texts.extend(cells.map(|cell| cell.map_or("-".to_owned(), |value| format!("{value:.3}"))));
    row(texts)
}

fn row(cells: impl IntoIterator<Item = String>) -> String {
    let pad = |(i, cell): (usize, String)| match i {
        0 => format!("{cell:<24}"),
        _ => format!("{cell:>11}"),
    };
    cells.into_iter().enumerate().map(pad).collect()
}

/// Rounds of a mode with numbers of its own.
#[derive(Debug, Serialize)]
pub(crate) struct Rounds<T> {
    pub(crate) mode: &'static str,
    pub(crate) model: String,
    pub(crate) device: String,
    pub(crate) rounds: Vec<T>,
    /// Of p99 ratios (join), or of speedups (sweep).
    pub(crate) median_ratio: Option<f64>,
}

impl Rounds<Joined> {
    pub(crate) fn text(&self) -> String {
        let mut lines = vec![format!("{} · {} · {}", self.mode, self.model, self.device)];
        for round in &self.rounds {
            let (before, during) = (round.before_ms, round.while_joining_ms);
            lines.push(format!(
                "time per token p50/p99: before {}/{} ms ({}), while joining {}/{} ms ({}); \
                 joined in {:.0} ms; p99 ratio {}",
                show(before.p50),
                show(before.p99),
                before.count,
                show(during.p50),
                show(during.p99),
                during.count,
                round.join_ms,
                show(round.p99_ratio)
            ));
        }
        lines.push(format!("median p99 ratio: {}", show(self.median_ratio)));
        lines.join("\n")
    }
}

impl Rounds<Swept> {
    pub(crate) fn text(&self) -> String {
        let mut lines = vec![format!("{} · {} · {}", self.mode, self.model, self.device)];
        lines.extend(self.rounds.iter().map(|round| {
            format!(
                "one request {:.3} s, sequential {:.3} s: {:.2} times faster",
                round.one_request_s, round.sequential_s, round.speedup
            )
        }));
        lines.push(format!("median speedup: {}", show(self.median_ratio)));
        lines.join("\n")
    }
}

fn show(value: Option<f64>) -> String {
    value.map_or("-".to_owned(), |value| format!("{value:.2}"))
}

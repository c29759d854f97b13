//! How many prompt tokens fit beside those who decode.

use std::time::Duration;

/// Weight of a new measurement in the running means.
const SMOOTHING: f64 = 0.2;
/// Prompt tokens beside decoding rows until both have been measured.
const CAUTIOUS: usize = 16;

/// Steps of both until one without prompts. What a prompt's rows cost is what a step
/// takes beyond that: where the machine has become slower since, few rows would look dear,
/// fewer would be read, and look dearer yet.
const REMEASURE: u32 = 8;

/// Most steps that only decode which a step of both has to wait for: a hiccup of the
/// machine does not keep prompts waiting.
const PATIENCE: f64 = 64.0;

/// Learns what steps cost, and bounds the prompt tokens of a step so that they
/// lengthen the step of those who decode by a given share at most.
///
/// What is measured decides how long a prompt takes. On the CPU it never decides what is
/// generated: a token's activations do not depend on how a prompt is cut into steps.
#[derive(Debug)]
pub(super) struct Pacer {
    /// Most prompt tokens in one step.
    max_tokens: usize,
    /// Share of a decode step by which prompts may lengthen it.
    max_stall: f64,
    /// Prompt rows that cost hardly more than one.
    grain: usize,
    /// Seconds of a step that only decodes, and its rows.
    decode: Option<(f64, f64)>,
    /// Seconds of one more prompt row.
    prompt_row: Option<f64>,
    /// Steps of both since the last that only decoded.
    mixed: u32,
    /// Seconds by which the last step of both was longer, less what steps that only
    /// decoded have paid for since.
    debt: f64,
}

/// What a step was made of.
#[derive(Debug, Clone, Copy)]
pub(super) struct StepCost {
    pub(super) decode_rows: usize,
    pub(super) prompt_rows: usize,
    pub(super) took: Duration,
}

impl Pacer {
    pub(super) fn new(max_tokens: usize, max_stall: f64, grain: usize) -> Self {
        Self {
            max_tokens,
            max_stall,
            grain: grain.clamp(1, max_tokens),
            decode: None,
            prompt_row: None,
            mixed: 0,
            debt: 0.0,
        }
    }

    /// Prompt rows for a step in which `decode_rows` sequences decode and
    /// `prompts` read. Where more wait for their first token than decode, they
    /// may hold those up in proportion and for longer in proportion: many should
    /// not wait for one. 0 where this step is to decode only.
    pub(super) fn prompt_budget(&self, decode_rows: usize, prompts: usize) -> usize {
        if decode_rows == 0 {
            return self.max_tokens;
        }
        if self.mixed >= REMEASURE {
            return 0;
        }
        let crowd = (prompts as f64 / decode_rows as f64).max(1.0);
        let (Some(decode), Some(row)) = (self.decode_cost(decode_rows), self.prompt_row) else {
            return CAUTIOUS.min(self.max_tokens);
        };
        let affordable = crowd * crowd * self.max_stall * decode / row.max(1e-9);
        if (affordable as usize) < self.grain {
            // As many as are worth it, once in a while.
            let paid = self.grain == 1 || self.debt <= 0.0;
            return if paid { self.grain } else { 0 };
        }
        (affordable as usize).clamp(1, self.max_tokens)
    }

    /// Learns from a step.
    pub(super) fn observe(&mut self, step: StepCost) {
        let StepCost {
            decode_rows,
            prompt_rows,
            took,
        } = step;
        let seconds = took.as_secs_f64();
        if let Some(decode) = self.decode_cost(decode_rows) {
            let (longer, paid) = ((seconds - decode).max(0.0), self.max_stall * decode);
            self.debt = match (decode_rows, prompt_rows) {
                (0, _) => 0.0, // nobody was held up
                (_, 0) => self.debt - paid,
                _ => longer.min(PATIENCE * paid) - paid,
            };
        }
        if prompt_rows == 0 {
            let rows = decode_rows as f64;
            self.decode = Some(match self.decode {
                // Another number of rows is another step: start afresh.
                Some((mean, known)) if known == rows => (smooth(mean, seconds), rows),
                _ => (seconds, rows),
            });
        } else if let Some(row) = self.row_cost(decode_rows, prompt_rows, seconds) {
            self.prompt_row = Some(self.prompt_row.map_or(row, |mean| smooth(mean, row)));
        }
        self.mixed = match (decode_rows, prompt_rows) {
            (1.., 1..) => self.mixed + 1,
            _ => 0,
        };
    }

    /// Seconds of a step that only decodes. More rows than were measured cost at
    /// least what a prompt's do.
    fn decode_cost(&self, rows: usize) -> Option<f64> {
        let (mean, known) = self.decode?;
        let row = self.prompt_row.unwrap_or_default();
        Some(mean + row * (rows as f64 - known).max(0.0))
    }

    fn row_cost(&self, decode_rows: usize, prompt_rows: usize, seconds: f64) -> Option<f64> {
        let base = match decode_rows {
            0 => 0.0,
            rows => self.decode_cost(rows)?,
        };
        Some((seconds - base).max(0.0) / prompt_rows as f64)
    }
}

fn smooth(mean: f64, new: f64) -> f64 {
    mean + SMOOTHING * (new - mean)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(decode_rows: usize, prompt_rows: usize, millis: u64) -> StepCost {
        StepCost {
            decode_rows,
            prompt_rows,
            took: Duration::from_millis(millis),
        }
    }

    #[test]
    fn prompts_alone_take_all_there_is() {
        assert_eq!(Pacer::new(512, 0.25, 1).prompt_budget(0, 1), 512);
    }

    #[test]
    fn beside_others_they_take_their_share_of_the_time() {
        let mut pacer = Pacer::new(512, 0.25, 1);
        assert_eq!(pacer.prompt_budget(16, 1), CAUTIOUS);
        pacer.observe(step(16, 0, 100));
        pacer.observe(step(16, 10, 120)); // 2 ms a row
        assert_eq!(pacer.prompt_budget(16, 1), 12); // 25 of 100 ms
        pacer.observe(step(0, 100, 100)); // 1 ms a row, a fifth of the mean
        assert_eq!(pacer.prompt_budget(16, 1), 13);
    }

    #[test]
    fn many_do_not_wait_for_one() {
        let mut pacer = Pacer::new(512, 0.25, 1);
        pacer.observe(step(2, 0, 100));
        pacer.observe(step(2, 10, 120)); // 2 ms a row
        assert_eq!(pacer.prompt_budget(2, 2), 12);
        assert_eq!(pacer.prompt_budget(2, 4), 50);
        assert_eq!(pacer.prompt_budget(2, 16), 512);
        assert_eq!(pacer.prompt_budget(12, 12), 15); // 10 rows more: 120 ms
    }

    #[test]
    fn a_slower_machine_does_not_starve_prompts() {
        let mut pacer = Pacer::new(512, 0.25, 1);
        pacer.observe(step(0, 100, 100)); // 1 ms a row
        pacer.observe(step(16, 0, 100));
        assert_eq!(pacer.prompt_budget(16, 1), 25);
        // Everything takes twice as long.
        for _ in 0..1000 {
            let rows = pacer.prompt_budget(16, 1);
            pacer.observe(step(16, rows, 200 + 2 * rows as u64));
        }
        assert!((24..=25).contains(&pacer.prompt_budget(16, 1)));
    }

    /// A step with any prompt takes 2 ms more, and 10 µs for each row.
    #[test]
    fn where_few_rows_cost_as_much_as_many_they_come_many_at_a_time() {
        let mut pacer = Pacer::new(512, 0.2, 128);
        let (mut steps, mut read, mut seconds) = (0, 0, 0.0);
        while read < 2000 {
            let rows = pacer.prompt_budget(16, 1);
            let micros = 2500 + if rows > 0 { 2000 + 10 * rows as u64 } else { 0 };
            pacer.observe(StepCost {
                decode_rows: 16,
                prompt_rows: rows,
                took: Duration::from_micros(micros),
            });
            read += rows;
            steps += 1;
            seconds += micros as f64 / 1e6;
        }
        assert!(steps < 150, "{steps} steps");
        assert!(seconds / f64::from(steps) < 1.3 * 2.5e-3, "{seconds} s");
    }

    #[test]
    fn prompts_wait_for_nobody_and_not_for_ever() {
        let mut pacer = Pacer::new(512, 0.2, 128);
        pacer.observe(step(16, 0, 3));
        for _ in 0..1000 {
            pacer.observe(step(0, 512, 10));
        }
        pacer.observe(step(16, 16, 5000)); // a hiccup
        let waited = (0..100).take_while(|_| {
            let waits = pacer.prompt_budget(16, 1) == 0;
            pacer.observe(step(16, 0, 3));
            waits
        });
        assert!(waited.count() <= PATIENCE as usize);
    }

    #[test]
    fn a_free_row_does_not_divide_by_zero() {
        let mut pacer = Pacer::new(512, 0.25, 1);
        pacer.observe(step(4, 0, 100));
        pacer.observe(step(4, 8, 90));
        assert_eq!(pacer.prompt_budget(4, 1), 512);
    }
}

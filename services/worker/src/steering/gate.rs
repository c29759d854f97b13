//! Gates: whether a conditional edit is open at a token.

use steering_proto::readout::GateMode;

/// A gate while the tokens of a sequence pass it, step after step.
#[derive(Debug, Clone, Default)]
pub(super) struct GateState {
    /// Positions at which its condition fired.
    firings: Vec<u32>,
    /// Tokens for which it stays open.
    remaining: u32,
    /// Whether it is open, for each token of the step that has been judged.
    open: Vec<bool>,
}

impl GateState {
    /// Forgets the last step's tokens, not what they did.
    pub(super) fn begin_step(&mut self) {
        self.open.clear();
    }

    /// Judges the step's next token.
    pub(super) fn judge(&mut self, position: u32, fired: bool, mode: GateMode) {
        if fired {
            self.firings.push(position);
        }
        let open = match mode {
            GateMode::While => fired,
            GateMode::Once => !self.firings.is_empty(),
            GateMode::ForTokens(n) => {
                if fired {
                    self.remaining = n;
                }
                let open = self.remaining > 0;
                self.remaining = self.remaining.saturating_sub(1);
                open
            }
        };
        self.open.push(open);
    }

    /// Positions at which its condition fired.
    pub(super) fn firings(&self) -> &[u32] {
        &self.firings
    }

    /// Goes on behind the first `len` tokens of a sequence in which it fired
    /// at these positions.
    pub(super) fn restore(&mut self, firings: &[u32], len: usize, mode: GateMode) {
        self.firings = firings
            .iter()
            .copied()
            .filter(|&position| (position as usize) < len)
            .collect();
        self.remaining = match (mode, self.firings.last()) {
            (GateMode::ForTokens(n), Some(&last)) => n.saturating_sub(len as u32 - last),
            _ => 0,
        };
    }

    /// Whether it is open at a token of the step. Every gate is read at, or
    /// before, the hook point of its edit, so the token has been judged.
    pub(super) fn is_open(&self, token: usize) -> bool {
        self.open.get(token).copied().unwrap_or(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(mode: GateMode, fired: &[bool]) -> Vec<bool> {
        let mut gate = GateState::default();
        for (position, &fired) in (0..).zip(fired) {
            gate.judge(position, fired, mode);
        }
        (0..fired.len()).map(|token| gate.is_open(token)).collect()
    }

    const FIRED: [bool; 7] = [false, true, false, false, true, true, false];
    const MODES: [GateMode; 3] = [GateMode::While, GateMode::Once, GateMode::ForTokens(2)];

    #[test]
    fn modes_differ_in_how_long_they_stay_open() {
        assert_eq!(opened(GateMode::While, &FIRED), FIRED);
        let once = [false, true, true, true, true, true, true];
        assert_eq!(opened(GateMode::Once, &FIRED), once);
        let two = [false, true, true, false, true, true, true];
        assert_eq!(opened(GateMode::ForTokens(2), &FIRED), two);
    }

    #[test]
    fn a_gate_goes_on_from_any_beginning_as_if_it_had_seen_it() {
        for mode in MODES {
            let whole = opened(mode, &FIRED);
            let firings: Vec<u32> = (0..).zip(FIRED).filter(|f| f.1).map(|f| f.0).collect();
            for len in 0..FIRED.len() {
                let mut gate = GateState::default();
                gate.restore(&firings, len, mode);
                gate.begin_step();
                for (position, fired) in (0..).zip(FIRED).skip(len) {
                    gate.judge(position, fired, mode);
                }
                for (index, expected) in whole[len..].iter().enumerate() {
                    assert_eq!(gate.is_open(index), *expected, "{mode:?} from {len}");
                }
                assert_eq!(gate.firings(), firings);
            }
        }
    }
}

//! What has happened to one sequence under its program.

use steering_proto::{HookPoint, capture::Pooling, intervention::Token};

use super::{Program, gate::GateState, program::ProgramDigest};

/// What one intervention has done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Tally {
    /// Tokens it was applied to.
    pub positions_touched: u64,
    /// Of these, tokens for which its delta was not zero.
    pub positions_changed: u64,
    /// Sum of ‖Δ‖ / ‖x‖ over the tokens touched.
    pub relative_delta_sum: f64,
    /// Tokens at which its gate's condition fired; none without a gate.
    pub gate_firings: Option<u64>,
}

impl Tally {
    fn of(touches: &[Touch]) -> Self {
        Self {
            positions_touched: touches.len() as u64,
            positions_changed: touches.iter().filter(|t| t.changed).count() as u64,
            relative_delta_sum: touches
                .iter()
                .fold(0.0, |sum, t| sum + f64::from(t.relative_delta)),
            gate_firings: None,
        }
    }

    /// Mean of ‖Δ‖ / ‖x‖ over the tokens touched; 0 if none.
    pub fn mean_relative_delta(&self) -> f32 {
        if self.positions_touched == 0 {
            return 0.0;
        }
        (self.relative_delta_sum / self.positions_touched as f64) as f32
    }
}

/// One intervention applied to one token. Kept one by one, not summed up, so
/// that any beginning of a sequence can be handed on with what was done to it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Touch {
    pub(super) position: u32,
    pub(super) changed: bool,
    pub(super) relative_delta: f32,
}

/// What was read and edited at one token.
#[derive(Debug, Clone, PartialEq)]
pub struct Reading {
    /// Its position.
    pub position: u32,
    /// Its id.
    pub token_id: u32,
    /// One value per probe, before the edits of its hook point.
    pub before: Vec<f32>,
    /// The same after them.
    pub after: Vec<f32>,
    /// ‖Δ‖ / ‖x‖ at each hook point edited here, if asked for.
    pub edit_norms: Vec<(HookPoint, f32)>,
}

/// Activations collected at a hook point.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Collected {
    /// Every token's activation, `[n, width]`, or their sum, `[width]`.
    pub values: Vec<f64>,
    /// Tokens in `values`.
    pub tokens: usize,
}

/// What has happened to one sequence under its program: mutable, and the only
/// thing that is.
#[derive(Debug)]
pub struct SteeringState {
    prompt_len: usize,
    /// For each intervention, the tokens it was applied to.
    pub(super) touches: Vec<Vec<Touch>>,
    pub(super) gates: Vec<GateState>,
    /// The stop condition that has fired.
    stopped: Option<usize>,
    /// Not yet taken, in order of position.
    readings: Vec<Reading>,
    /// For each token of the step, its place in `readings`.
    reading_of: Vec<Option<usize>>,
    collected: Collected,
}

/// What was done to the tokens of a sequence: kept with their keys and values
/// for a later sequence that begins in the same way.
#[derive(Debug, Clone, Default)]
pub struct SteeringMemory {
    touches: Vec<(ProgramDigest, Vec<Touch>)>,
    /// Positions at which gates fired.
    firings: Vec<(ProgramDigest, Vec<u32>)>,
}

impl SteeringState {
    /// The state before a sequence's first token.
    pub fn new(program: &Program, prompt_len: usize) -> Self {
        Self {
            prompt_len,
            touches: vec![Vec::new(); program.interventions.len()],
            gates: vec![GateState::default(); program.gates.len()],
            stopped: None,
            readings: Vec::new(),
            reading_of: Vec::new(),
            collected: Collected::default(),
        }
    }

    /// What each intervention has done.
    pub fn tallies(&self, program: &Program) -> Vec<Tally> {
        let of = program.interventions.iter().zip(&self.touches);
        of.map(|(intervention, touches)| Tally {
            gate_firings: intervention
                .gate
                .map(|g| self.gates[g].firings().len() as u64),
            ..Tally::of(touches)
        })
        .collect()
    }

    /// The stop condition that has fired, if any.
    pub fn stopped(&self) -> Option<usize> {
        self.stopped
    }

    /// Readings since the last call.
    pub fn take_readings(&mut self) -> Vec<Reading> {
        std::mem::take(&mut self.readings)
    }

    /// What was collected.
    pub fn take_collected(&mut self) -> Collected {
        std::mem::take(&mut self.collected)
    }

    /// What a later sequence with the same beginning needs.
    pub fn memory(&self, program: &Program) -> SteeringMemory {
        let touches = program.interventions.iter().zip(&self.touches);
        let gates = program.gates.iter().zip(&self.gates);
        SteeringMemory {
            touches: touches.map(|(i, t)| (i.digest, t.clone())).collect(),
            firings: gates
                .map(|(g, state)| (g.digest, state.firings().to_vec()))
                .collect(),
        }
    }

    /// Goes on from the first tokens of another sequence, to which the same was done.
    pub fn restore(&mut self, program: &Program, memory: &SteeringMemory, tokens: &[Token]) {
        for entry in program.all_entries() {
            let digest = &program.interventions[entry.intervention].digest;
            // The same edit may have been several interventions there, or be several
            // here: what it did to a token counts where it applies to that token.
            let applies = |touch: &&Touch| {
                let token = tokens.get(touch.position as usize);
                token.is_some_and(|token| entry.positions.contains(*token))
            };
            let same = memory.touches.iter().filter(|(other, _)| other == digest);
            let touches = &mut self.touches[entry.intervention];
            touches.extend(same.flat_map(|(_, touches)| touches).filter(applies));
            touches.sort_by_key(|touch| touch.position);
            touches.dedup_by_key(|touch| touch.position);
        }
        for (compiled, state) in program.gates.iter().zip(&mut self.gates) {
            let mut known = memory.firings.iter();
            let known = known.find(|(digest, _)| *digest == compiled.digest);
            let firings = known.map_or(&[][..], |(_, firings)| firings);
            state.restore(firings, tokens.len(), compiled.gate.mode);
        }
    }

    /// Prepares for the tokens of one step.
    pub(super) fn begin_step(&mut self, program: &Program, tokens: &[Token]) {
        for gate in &mut self.gates {
            gate.begin_step();
        }
        self.reading_of.clear();
        for token in tokens {
            let place = program
                .is_reported(token, self.prompt_len)
                .then_some(self.readings.len());
            if place.is_some() {
                self.readings.push(Reading {
                    position: token.position,
                    token_id: token.id,
                    before: vec![0.0; program.n_probes],
                    after: vec![0.0; program.n_probes],
                    edit_norms: Vec::new(),
                });
            }
            self.reading_of.push(place);
        }
    }

    /// The reading of a token of the step, if it gets one.
    pub(super) fn reading(&mut self, token: usize) -> Option<&mut Reading> {
        self.reading_of[token].map(|place| &mut self.readings[place])
    }

    /// Notes that a stop condition fired; the first one counts.
    pub(super) fn stop(&mut self, condition: usize) {
        self.stopped.get_or_insert(condition);
    }

    /// Collects a token's activation.
    pub(super) fn collect(&mut self, pooling: Pooling, token: Token, x: &[f32]) {
        let collected = &mut self.collected;
        match pooling {
            Pooling::PerToken => {
                collected.values.extend(x.iter().map(|&v| f64::from(v)));
                collected.tokens += 1;
            }
            Pooling::Mean { skip_tokens } if token.position as usize >= skip_tokens => {
                collected.values.resize(x.len(), 0.0);
                for (sum, &v) in collected.values.iter_mut().zip(x) {
                    *sum += f64::from(v);
                }
                collected.tokens += 1;
            }
            Pooling::Mean { .. } => {}
        }
    }
}

//! What is gathered of one feature.

use super::Sketch;

/// Contexts kept of a feature.
pub const CONTEXTS_MAX: usize = 5;

/// A token at which a feature fires.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Place {
    /// How strongly.
    pub activation: f32,
    /// Number of the text.
    pub text: u32,
    /// Number of the token in [`super::Corpus`].
    pub token: u32,
}

/// What is gathered of one feature.
#[derive(Debug, Clone, Default)]
pub struct Accumulator {
    count: u64,
    sum: f64,
    max: f32,
    sketch: Sketch,
    /// Strongest first, one of each text; the first `kept` are in use.
    places: [Place; CONTEXTS_MAX],
    kept: u8,
}

impl Accumulator {
    /// Counts an activation above 0. Texts come one after the other.
    pub fn add(&mut self, place: Place) {
        let activation = place.activation;
        self.count += 1;
        self.sum += f64::from(activation);
        self.max = self.max.max(activation);
        self.sketch.add(activation);
        self.keep(place);
    }

    /// Of equal activations, the earlier is kept.
    fn keep(&mut self, place: Place) {
        let kept = usize::from(self.kept);
        if kept == CONTEXTS_MAX && place.activation <= self.places[kept - 1].activation {
            return;
        }
        let own = self.places[..kept]
            .iter()
            .position(|other| other.text == place.text);
        let mut at = match own {
            Some(own) if place.activation <= self.places[own].activation => return,
            Some(own) => own,
            None if kept == CONTEXTS_MAX => kept - 1,
            None => {
                self.kept += 1;
                kept
            }
        };
        self.places[at] = place;
        while at > 0 && place.activation > self.places[at - 1].activation {
            self.places.swap(at, at - 1);
            at -= 1;
        }
    }

    /// Tokens counted.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The largest activation; 0 if there are none.
    pub fn max(&self) -> f32 {
        self.max
    }

    /// Mean activation; 0 if there are none.
    pub fn mean(&self) -> f32 {
        (self.sum / self.count.max(1) as f64) as f32
    }

    /// The activation at a share of all; never above the largest.
    pub fn percentile(&self, share: f64) -> f32 {
        self.sketch.percentile(share).min(self.max)
    }

    /// Where the feature fires most strongly, strongest first.
    pub fn places(&self) -> &[Place] {
        &self.places[..usize::from(self.kept)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_strongest_of_each_text_are_kept() {
        let mut gathered = Accumulator::default();
        let mut token = 0;
        for (text, activations) in [
            vec![1.0, 9.0, 3.0],
            vec![2.0],
            vec![8.0, 8.0],
            vec![4.0],
            vec![9.0],
            vec![0.5],
            vec![5.0, 7.0],
        ]
        .into_iter()
        .enumerate()
        {
            for activation in activations {
                gathered.add(Place {
                    activation,
                    text: text as u32,
                    token,
                });
                token += 1;
            }
        }
        let kept: Vec<(u32, u32, f32)> = gathered
            .places()
            .iter()
            .map(|place| (place.text, place.token, place.activation))
            .collect();
        let expected = [
            (0, 1, 9.0),
            (4, 7, 9.0),
            (2, 4, 8.0),
            (6, 10, 7.0),
            (3, 6, 4.0),
        ];
        assert_eq!(kept, expected);
        assert_eq!((gathered.count(), gathered.max()), (11, 9.0));
        assert!((gathered.mean() - 56.5 / 11.0).abs() < 1e-6);
    }
}

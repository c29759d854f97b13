//! Stop strings over streamed text.

/// What a [`StopMatcher`] lets out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Emit {
    /// Text that is certainly before any stop string.
    pub text: String,
    /// A stop string is complete; nothing more will come.
    pub stopped: bool,
}

/// Ends a text before the first stop string that completes in it.
///
/// First is the one whose last byte comes first; of two that end together, the
/// longer. So the cut does not depend on how the text is divided. Text that
/// could be the start of a stop string is held back, and nothing else is.
#[derive(Debug, Clone, Default)]
pub struct StopMatcher {
    stops: Vec<String>,
    held: String,
    stopped: bool,
}

impl StopMatcher {
    /// A matcher for these strings; empty ones are left out.
    pub fn new(stops: impl IntoIterator<Item = String>) -> Self {
        Self {
            stops: stops.into_iter().filter(|stop| !stop.is_empty()).collect(),
            held: String::new(),
            stopped: false,
        }
    }

    /// Takes the next text and returns what may go out.
    pub fn push(&mut self, text: &str) -> Emit {
        if self.stopped {
            return Emit {
                text: String::new(),
                stopped: true,
            };
        }
        if self.stops.is_empty() {
            return Emit {
                text: text.to_owned(),
                stopped: false,
            };
        }
        self.held.push_str(text);
        if let Some(start) = self.first_stop() {
            self.held.truncate(start);
            self.stopped = true;
            return Emit {
                text: std::mem::take(&mut self.held),
                stopped: true,
            };
        }
        let kept = self.longest_start_of_a_stop();
        let held = self.held.split_off(self.held.len() - kept);
        Emit {
            text: std::mem::replace(&mut self.held, held),
            stopped: false,
        }
    }

    /// The end of the text: what was held back.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Whether a stop string has been seen.
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    /// Where the first stop string in the held text starts.
    fn first_stop(&self) -> Option<usize> {
        self.stops
            .iter()
            .filter_map(|stop| {
                self.held
                    .find(stop)
                    .map(|start| (start + stop.len(), start))
            })
            .min()
            .map(|(_, start)| start)
    }

    /// Length of the longest end of the held text that begins a stop string.
    fn longest_start_of_a_stop(&self) -> usize {
        let held = self.held.as_bytes();
        let longest_of = |stop: &String| {
            let longest = held.len().min(stop.len() - 1);
            (1..=longest)
                .rev()
                .find(|&len| held.ends_with(&stop.as_bytes()[..len]))
        };
        self.stops.iter().filter_map(longest_of).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(stops: &[&str], chunks: &[&str]) -> (String, bool) {
        let mut matcher = StopMatcher::new(stops.iter().map(|s| (*s).to_owned()));
        let mut out = String::new();
        for chunk in chunks {
            out.push_str(&matcher.push(chunk).text);
        }
        out.push_str(&matcher.finish());
        (out, matcher.stopped())
    }

    #[test]
    fn a_stop_string_across_pieces_is_cut() {
        assert_eq!(run(&["\n\n"], &["a\n", "\nb"]), ("a".to_owned(), true));
        assert_eq!(run(&["🙂🙃"], &["x🙂", "🙂🙃 y"]), ("x🙂".to_owned(), true));
        assert_eq!(run(&[], &["a", "b"]), ("ab".to_owned(), false));
    }

    #[test]
    fn only_a_possible_start_is_held() {
        let mut matcher = StopMatcher::new(["STOP".to_owned()]);
        assert_eq!(matcher.push("text S").text, "text ");
        assert_eq!(matcher.push("T").text, "");
        assert_eq!(matcher.push("art").text, "STart");
        assert_eq!(matcher.push("ST").text, "");
        assert_eq!(matcher.finish(), "ST");
    }

    /// The definition, over the whole text.
    fn naive<'a>(stops: &[String], text: &'a str) -> (&'a str, bool) {
        for end in 0..=text.len() {
            let ended = stops
                .iter()
                .filter(|stop| text.as_bytes()[..end].ends_with(stop.as_bytes()))
                .map(String::len)
                .max();
            if let Some(len) = ended {
                return (&text[..end - len], true);
            }
        }
        (text, false)
    }

    proptest! {
        #[test]
        fn equals_a_search_over_the_whole_text(
            stops in prop::collection::vec("[abé🙂]{1,4}", 0..4),
            chunks in prop::collection::vec("[abé🙂]{0,3}", 0..12),
        ) {
            let mut matcher = StopMatcher::new(stops.clone());
            let mut out = String::new();
            for chunk in &chunks {
                let before = matcher.stopped();
                let emit = matcher.push(chunk);
                prop_assert!(!before || emit.text.is_empty());
                out.push_str(&emit.text);
            }
            out.push_str(&matcher.finish());
            let text = chunks.concat();
            prop_assert_eq!((out.as_str(), matcher.stopped()), naive(&stops, &text));
        }
    }
}

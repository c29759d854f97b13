//! What is seen while a generation runs.

use console::style;
use steering_client::{Transcript, generation::Event};

use crate::{columns::Columns, output};

/// How a generation is shown.
#[derive(Debug)]
pub(super) enum View {
    /// Nothing until the end.
    Silent,
    /// The text of the only variant, as it comes.
    Stream,
    /// Every variant under a heading, at the end.
    Sections,
    /// Side by side, as they come.
    Columns(Columns),
}

impl View {
    pub(super) fn for_run(json: bool, several_variants: bool) -> Self {
        match (json, several_variants) {
            (true, _) => Self::Silent,
            (false, false) => Self::Stream,
            (false, true) => Self::Sections,
        }
    }

    /// Shows an event that the transcript already has.
    pub(super) fn show(&mut self, event: &Event, transcript: &Transcript) -> std::io::Result<()> {
        if matches!((&self, event), (Self::Sections, Event::Started(_))) {
            let names: Vec<_> = transcript.variants.iter().map(|v| v.name.clone()).collect();
            if let Some(columns) = Columns::start(&names)? {
                *self = Self::Columns(columns);
            }
        }
        match (self, event) {
            (Self::Stream, Event::Token(token)) => output::text(&token.text),
            (Self::Stream, Event::Finished(finished)) => output::text(&finished.text),
            (Self::Columns(columns), _) => {
                columns.draw(transcript.variants.iter().map(|v| v.text.as_str()))
            }
            (Self::Silent | Self::Sections, _) | (Self::Stream, Event::Started(_)) => Ok(()),
        }
    }

    pub(super) fn finish(self, transcript: &Transcript) -> std::io::Result<()> {
        match self {
            Self::Silent => Ok(()),
            Self::Stream => output::line(""),
            Self::Columns(_) => output::line(""),
            Self::Sections => {
                for (i, variant) in transcript.variants.iter().enumerate() {
                    let gap = if i == 0 { "" } else { "\n" };
                    let heading = style(format!("== {} ==", variant.name)).bold();
                    output::line(format_args!("{gap}{heading}"))?;
                    output::text(&variant.text)?;
                    output::line("")?;
                }
                Ok(())
            }
        }
    }
}

//! One line a token: the token, how many features are active, the strongest ones.

use console::{Style, measure_text_width, pad_str, style, truncate_str};

use super::{Feature, Inspection, Token};
use crate::{output, series::number};

const PIECE_WIDTH_MAX: usize = 16;
/// Colours of the 256-colour palette, from weak to strong.
const SHADES: [u8; 6] = [240, 244, 180, 214, 208, 196];

pub(super) fn print(inspection: &Inspection) -> std::io::Result<()> {
    let piece = |token: &Token| output::printable(&token.text()).escape_debug().to_string();
    let pieces: Vec<String> = inspection.tokens.iter().map(piece).collect();
    let width = pieces.iter().map(|piece| measure_text_width(piece)).max();
    let width = width.unwrap_or(0).clamp(5, PIECE_WIDTH_MAX);
    let heading = format!(
        "{}  active  strongest features",
        pad_str("token", width, console::Alignment::Left, None)
    );
    output::line(style(heading).bold())?;
    let largest = inspection.largest();
    for (token, piece) in inspection.tokens.iter().zip(pieces) {
        let features = token
            .features
            .iter()
            .map(|feature| shaded(feature, largest));
        let line = format!(
            "{}  {:>6}  {}",
            pad_str(
                &truncate_str(&piece, width, "…"),
                width,
                console::Alignment::Left,
                None
            ),
            token.active_count,
            features.collect::<Vec<_>>().join("  ")
        );
        let line = match output::terminal_width() {
            Some(columns) => truncate_str(&line, columns, "…").into_owned(),
            None => line,
        };
        output::line(line.trim_end())?;
    }
    Ok(())
}

fn shaded(feature: &Feature, largest: f32) -> String {
    let share = (feature.activation / largest).clamp(0.0, 1.0);
    let shade = (share * SHADES.len() as f32) as usize;
    let shade = SHADES[shade.min(SHADES.len() - 1)];
    let text = format!(
        "{} {}",
        output::printable(&feature.name()).replace(['\n', '\t'], " "),
        number(f64::from(feature.activation))
    );
    Style::new().color256(shade).apply_to(text).to_string()
}

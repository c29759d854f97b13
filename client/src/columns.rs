//! Texts side by side, drawn again as they grow.

use console::{Alignment, Term, measure_text_width, pad_str, style};

use crate::output;

const SEPARATOR: &str = " │ ";
/// Narrower columns than this are not worth reading.
const COLUMN_WIDTH_MIN: usize = 16;

/// Columns on a terminal.
#[derive(Debug)]
pub(crate) struct Columns {
    term: Term,
    width: usize,
    drawn: Vec<String>,
}

impl Columns {
    /// Columns with headings; none where they would be too narrow.
    pub(crate) fn start(headings: &[String]) -> std::io::Result<Option<Self>> {
        let count = headings.len().max(1);
        let Some(total) = output::terminal_width() else {
            return Ok(None);
        };
        let separators = SEPARATOR.chars().count() * (count - 1);
        // The last cell stays empty: terminals wrap early when it is written.
        let width = total.saturating_sub(separators + 1) / count;
        if width < COLUMN_WIDTH_MIN {
            return Ok(None);
        }
        let cells = headings.iter().map(|heading| {
            let cell = console::truncate_str(heading, width, "…");
            style(pad_str(&cell, width, Alignment::Left, None))
                .bold()
                .to_string()
        });
        let term = Term::stdout();
        term.write_line(&cells.collect::<Vec<_>>().join(SEPARATOR))?;
        let rule = vec!["─".repeat(width); count];
        term.write_line(&style(rule.join("─┼─")).dim().to_string())?;
        Ok(Some(Self {
            term,
            width,
            drawn: Vec::new(),
        }))
    }

    /// Draws the texts as they are now; only rows that changed are written.
    pub(crate) fn draw<'a>(&mut self, texts: impl Iterator<Item = &'a str>) -> std::io::Result<()> {
        let rows = layout(texts, self.width);
        let same = self.drawn.iter().zip(&rows).take_while(|(a, b)| a == b);
        // Rows that have scrolled away cannot be written again.
        let height = usize::from(self.term.size().0).saturating_sub(1);
        let from = same.count().max(self.drawn.len().saturating_sub(height));
        let up = self.drawn.len().saturating_sub(from);
        if up > 0 {
            self.term.move_cursor_up(up)?;
            self.term.clear_to_end_of_screen()?;
        }
        for row in rows.get(from..).unwrap_or_default() {
            self.term.write_line(row)?;
        }
        self.drawn = rows;
        Ok(())
    }
}

/// Texts under headings, side by side in `total` cells, for a reader who is no terminal too.
pub(crate) fn side_by_side(headings: &[&str], texts: &[&str], total: usize) -> Vec<String> {
    let separators = SEPARATOR.chars().count() * headings.len().saturating_sub(1);
    let width = total.saturating_sub(separators) / headings.len().max(1);
    let width = width.max(COLUMN_WIDTH_MIN);
    let mut rows = layout(headings.iter().copied(), width);
    rows.push(vec!["─".repeat(width); headings.len()].join("─┼─"));
    rows.extend(layout(texts.iter().copied(), width));
    rows
}

/// The rows of texts side by side.
fn layout<'a>(texts: impl Iterator<Item = &'a str>, width: usize) -> Vec<String> {
    let columns: Vec<Vec<String>> = texts.map(|text| wrap(text, width)).collect();
    let height = columns.iter().map(Vec::len).max().unwrap_or(0);
    let row = |i: usize| {
        let cells = columns.iter().map(|column| {
            let cell = column.get(i).map_or("", String::as_str);
            pad_str(cell, width, Alignment::Left, None).into_owned()
        });
        let line = cells.collect::<Vec<_>>().join(SEPARATOR);
        line.trim_end().to_owned()
    };
    (0..height).map(row).collect()
}

/// Breaks text into lines of at most `width` cells, between words where it can.
pub(crate) fn wrap(text: &str, width: usize) -> Vec<String> {
    let text = output::printable(text).replace('\t', "    ");
    let mut lines = Vec::new();
    for paragraph in text.split('\n') {
        let mut line = String::new();
        let mut used = 0;
        for word in paragraph.split_inclusive(' ') {
            let word_width = measure_text_width(word.trim_end());
            if used > 0 && used + word_width > width {
                lines.push(std::mem::take(&mut line));
                used = 0;
            }
            push_word(word, width, &mut line, &mut used, &mut lines);
        }
        lines.push(line);
    }
    for line in &mut lines {
        line.truncate(line.trim_end().len());
    }
    lines
}

/// Appends a word that starts on this line, cutting it where it is longer than one.
fn push_word(
    word: &str,
    width: usize,
    line: &mut String,
    used: &mut usize,
    lines: &mut Vec<String>,
) {
    let mut buffer = [0; 4];
    for c in word.chars() {
        let cells = measure_text_width(c.encode_utf8(&mut buffer));
        if *used + cells > width {
            if c == ' ' {
                continue;
            }
            lines.push(std::mem::take(line));
            *used = 0;
        }
        line.push(c);
        *used += cells;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_kept_whole_where_they_fit() {
        assert_eq!(wrap("one two three", 8), ["one two", "three"]);
        assert_eq!(wrap("one two\n\nthree", 80), ["one two", "", "three"]);
        assert_eq!(wrap("", 8), [""]);
    }

    #[test]
    fn long_words_are_cut() {
        assert_eq!(wrap("a abcdefghij b", 4), ["a", "abcd", "efgh", "ij b"]);
    }

    #[test]
    fn wide_characters_take_two_cells() {
        assert_eq!(wrap("日本語日本", 4), ["日本", "語日", "本"]);
    }

    #[test]
    fn columns_are_filled_up() {
        let rows = layout(["a b", "1\n2\n3"].into_iter(), 3);
        assert_eq!(rows, ["a b │ 1", "    │ 2", "    │ 3"]);
        let rows = side_by_side(&["one", "two"], &["a", "b"], 35);
        let wide = |text: &str| format!("{text:16}");
        assert_eq!(rows[0], format!("{} │ two", wide("one")));
        assert_eq!(measure_text_width(&rows[1]), 35);
        assert_eq!(rows[2], format!("{} │ b", wide("a")));
    }
}

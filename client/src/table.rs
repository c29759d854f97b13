//! Tables and cards that fit the terminal.

use console::{measure_text_width, pad_str, style, truncate_str};

use crate::output;

/// Narrowest a column is cut to.
const COLUMN_WIDTH_MIN: usize = 8;
const GAP: &str = "  ";

/// Rows under headings.
#[derive(Debug)]
pub(crate) struct Table {
    headings: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(headings: &[&str]) -> Self {
        Self {
            headings: headings.iter().map(|&heading| heading.to_owned()).collect(),
            rows: Vec::new(),
        }
    }

    /// Adds a row; cells become one line each.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let clean = |cell: String| output::printable(&cell).replace(['\n', '\t'], " ");
        self.rows.push(cells.into_iter().map(clean).collect());
    }

    /// Writes the table to standard output, or says that there is nothing.
    pub(crate) fn print(&self, nothing: &str) -> std::io::Result<()> {
        if self.rows.is_empty() {
            output::dim(nothing);
            return Ok(());
        }
        let mut lines = self.render(output::terminal_width()).into_iter();
        if let Some(headings) = lines.next() {
            output::line(style(headings).bold())?;
        }
        lines.try_for_each(output::line)
    }

    /// Lines of text; a column with nothing in it is left out.
    fn render(&self, width: Option<usize>) -> Vec<String> {
        let shown: Vec<usize> = (0..self.headings.len())
            .filter(|&i| self.rows.iter().any(|row| !row[i].is_empty()))
            .collect();
        let headings: Vec<String> = shown.iter().map(|&i| self.headings[i].to_owned()).collect();
        let cells = |row: &Vec<String>| shown.iter().map(|&i| row[i].clone()).collect();
        let rows: Vec<Vec<String>> = self.rows.iter().map(cells).collect();
        let lines = || std::iter::once(&headings).chain(&rows);
        let mut widths: Vec<usize> = (0..headings.len())
            .map(|i| {
                lines()
                    .map(|row| measure_text_width(&row[i]))
                    .max()
                    .unwrap_or(0)
            })
            .collect();
        if let Some(width) = width {
            shrink(&mut widths, width);
        }
        lines().map(|row| join(row, &widths)).collect()
    }
}

/// Narrows the widest columns until the row fits.
fn shrink(widths: &mut [usize], available: usize) {
    let gaps = GAP.len() * widths.len().saturating_sub(1);
    loop {
        let total = widths.iter().sum::<usize>() + gaps;
        match widths.iter_mut().max() {
            Some(widest) if total > available && *widest > COLUMN_WIDTH_MIN => *widest -= 1,
            _ => return,
        }
    }
}

fn join(row: &[String], widths: &[usize]) -> String {
    let cells = row.iter().zip(widths).map(|(cell, &width)| {
        let cut = truncate_str(cell, width, "…");
        pad_str(&cut, width, console::Alignment::Left, None).into_owned()
    });
    let line = cells.collect::<Vec<_>>().join(GAP);
    line.trim_end().to_owned()
}

/// Writes names and values, one a line; lines without a value are left out.
pub(crate) fn print_card(fields: &[(&str, String)]) -> std::io::Result<()> {
    let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    for (name, value) in fields.iter().filter(|(_, value)| !value.is_empty()) {
        let name = pad_str(name, width, console::Alignment::Left, None);
        output::line(format_args!(
            "{}{GAP}{}",
            style(name).dim(),
            output::printable(value)
        ))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new(&["index", "label"]);
        table.row(["20175".to_owned(), "a label that goes on and on".to_owned()]);
        table.row(["7".to_owned(), "two\nlines".to_owned()]);
        table
    }

    #[test]
    fn nothing_is_cut_without_a_terminal() {
        let expected = [
            "index  label",
            "20175  a label that goes on and on",
            "7      two lines",
        ];
        assert_eq!(table().render(None), expected);
    }

    #[test]
    fn empty_columns_are_left_out() {
        let mut table = Table::new(&["index", "score", "label"]);
        table.row(["7", "", "a"].map(str::to_owned));
        assert_eq!(table.render(None), ["index  label", "7      a"]);
    }

    #[test]
    fn the_widest_column_is_cut_to_the_terminal() {
        let lines = table().render(Some(20));
        assert_eq!(lines[1], "20175  a label that…");
        assert!(lines.iter().all(|line| measure_text_width(line) <= 20));
    }

    #[test]
    fn very_narrow_terminals_keep_something() {
        assert_eq!(table().render(Some(1))[1], "20175  a label…");
    }
}

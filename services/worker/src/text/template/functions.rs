//! What `transformers` adds to Jinja for chat templates.

use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::{
    Error, ErrorKind, State, Value,
    value::{Kwargs, ValueKind},
};

/// Deepest nesting that [`tojson`] writes.
const MAX_DEPTH: usize = 64;

/// `tojson` as `json.dumps(x, ensure_ascii=False, indent=…)`: nothing is
/// escaped for HTML, and `, ` and `: ` separate.
#[expect(clippy::needless_pass_by_value, reason = "what a filter is given")]
pub(super) fn tojson(
    state: &State,
    value: &Value,
    indent: Option<usize>,
    options: Kwargs,
) -> Result<Value, Error> {
    let indent = match indent {
        Some(indent) => Some(indent),
        None => options.get::<Option<usize>>("indent")?,
    };
    let ensure_ascii = options.get::<Option<bool>>("ensure_ascii")?;
    let sort_keys = options.get::<Option<bool>>("sort_keys")?;
    options.assert_all_used()?;
    if ensure_ascii == Some(true) || sort_keys == Some(true) {
        return Err(problem("ensure_ascii and sort_keys are not supported"));
    }
    if indent.is_some_and(|spaces| spaces > 16) {
        return Err(problem("indent is at most 16"));
    }
    let mut json = Json {
        state,
        indent,
        out: String::new(),
    };
    json.write(value, 0)?;
    Ok(Value::from_safe_string(json.out))
}

fn problem(what: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("tojson: {what}"))
}

/// A JSON text under way.
struct Json<'a, 'b, 'c> {
    state: &'a State<'b, 'c>,
    indent: Option<usize>,
    out: String,
}

impl Json<'_, '_, '_> {
    fn write(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(problem("the value is nested too deeply"));
        }
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool | ValueKind::Number => self.out.push_str(&value.to_string()),
            ValueKind::String => self.write_string(value.as_str().unwrap_or_default())?,
            ValueKind::Seq | ValueKind::Iterable => {
                let depth = depth + 1;
                self.out.push('[');
                let mut is_empty = true;
                for item in value.try_iter()? {
                    self.start_item(is_empty, depth)?;
                    is_empty = false;
                    self.write(&item, depth)?;
                }
                self.end(is_empty, depth - 1, ']');
            }
            ValueKind::Map => {
                let depth = depth + 1;
                self.out.push('{');
                let mut is_empty = true;
                for key in value.try_iter()? {
                    self.start_item(is_empty, depth)?;
                    is_empty = false;
                    self.write_string(key.as_str().ok_or_else(|| problem("a key is not text"))?)?;
                    self.out.push_str(": ");
                    self.write(&value.get_item(&key)?, depth)?;
                }
                self.end(is_empty, depth - 1, '}');
            }
            _ => return Err(problem("the value is not JSON")),
        }
        Ok(())
    }

    fn write_string(&mut self, text: &str) -> Result<(), Error> {
        self.state.consume_fuel(text.len() as u64 / 64)?;
        let quoted = serde_json::to_string(text).map_err(|error| problem(&error.to_string()))?;
        self.out.push_str(&quoted);
        Ok(())
    }

    fn start_item(&mut self, is_first: bool, depth: usize) -> Result<(), Error> {
        self.state.consume_fuel(1)?;
        if !is_first {
            self.out.push(',');
            if self.indent.is_none() {
                self.out.push(' ');
            }
        }
        self.new_line(depth);
        Ok(())
    }

    fn end(&mut self, is_empty: bool, depth: usize, bracket: char) {
        if !is_empty {
            self.new_line(depth);
        }
        self.out.push(bracket);
    }

    fn new_line(&mut self, depth: usize) {
        if let Some(spaces) = self.indent {
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n(' ', spaces * depth));
        }
    }
}

/// The date and time now, in UTC: a template's output does not depend on where
/// the server stands.
pub(super) fn strftime_now(format: &str) -> Result<String, Error> {
    let seconds = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |elapsed| elapsed.as_secs());
    strftime(format, seconds)
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = [
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
];

/// Formats seconds since 1970 with the directives that templates use.
fn strftime(format: &str, unix_seconds: u64) -> Result<String, Error> {
    let days = unix_seconds / 86_400;
    let (year, month, day) = civil_date(days);
    let (hour, minute, second) = (
        unix_seconds / 3_600 % 24,
        unix_seconds / 60 % 60,
        unix_seconds % 60,
    );
    let month_name = MONTHS[month as usize - 1];
    let day_name = DAYS[(days as usize + 4) % 7];
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let part = match chars.next() {
            Some('Y') => format!("{year}"),
            Some('y') => format!("{:02}", year % 100),
            Some('m') => format!("{month:02}"),
            Some('d') => format!("{day:02}"),
            Some('e') => format!("{day:2}"),
            Some('B') => month_name.to_owned(),
            Some('b' | 'h') => month_name[..3].to_owned(),
            Some('A') => day_name.to_owned(),
            Some('a') => day_name[..3].to_owned(),
            Some('H') => format!("{hour:02}"),
            Some('I') => format!("{:02}", (hour + 11) % 12 + 1),
            Some('M') => format!("{minute:02}"),
            Some('S') => format!("{second:02}"),
            Some('p') => if hour < 12 { "AM" } else { "PM" }.to_owned(),
            Some('F') => format!("{year}-{month:02}-{day:02}"),
            Some('T') => format!("{hour:02}:{minute:02}:{second:02}"),
            Some('Z') => "UTC".to_owned(),
            Some('z') => "+0000".to_owned(),
            Some('%') => "%".to_owned(),
            Some('-') => match chars.next() {
                Some('d') => format!("{day}"),
                Some('m') => format!("{month}"),
                Some('H') => format!("{hour}"),
                Some('I') => format!("{}", (hour + 11) % 12 + 1),
                Some('M') => format!("{minute}"),
                other => return Err(unknown_directive('-', other)),
            },
            other => return Err(unknown_directive('%', other)),
        };
        out.push_str(&part);
    }
    Ok(out)
}

fn unknown_directive(after: char, directive: Option<char>) -> Error {
    let text = format!("strftime_now: {directive:?} after {after:?} is not supported");
    Error::new(ErrorKind::InvalidOperation, text)
}

/// Year, month and day of a day counted from 1970-01-01, in the proleptic
/// Gregorian calendar.
fn civil_date(days: u64) -> (u64, u64, u64) {
    // Years start in March here, so the leap day is a year's last.
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = (shifted_month + 2) % 12 + 1;
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_gregorian() {
        let format = "%Y-%m-%d %H:%M:%S %a %-d %B %I%p";
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00 Thu 1 January 12AM"),
            (951_782_400, "2000-02-29 00:00:00 Tue 29 February 12AM"),
            (1_722_000_000, "2024-07-26 13:20:00 Fri 26 July 01PM"),
            (4_107_542_399, "2100-02-28 23:59:59 Sun 28 February 11PM"),
            (4_107_542_400, "2100-03-01 00:00:00 Mon 1 March 12AM"),
        ] {
            assert_eq!(strftime(format, seconds).expect("known directives"), text);
        }
        assert!(strftime("%Q", 0).is_err());
    }
}

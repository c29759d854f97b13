//! The dose-response chart: one HTML file without scripts that needs no other.

use std::fmt::Write;

use super::{
    chart::{Panel, Stop, svg},
    measure::Point,
    report::{Sweep, cell, strength},
};
use crate::output::escape_html as escape;

/// Colours of probes; perplexity and repetition have their own.
const PROBE_COLORS: [&str; 4] = ["#2f6fde", "#0d9488", "#9333ea", "#be5a00"];
const PERPLEXITY_COLOR: &str = "#d97706";
const REPETITION_COLOR: &str = "#dc2650";

const STYLE: &str = "\
:root { color-scheme: light dark; --ink: #1c2230; --dim: #6b7385; --line: #dfe3ea; \
--back: #fff; --band: #2f6fde14; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9f0; --dim: #98a1b3; \
--line: #2c3343; --back: #12151d; --band: #7aa5ff22; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--back); \
max-width: 960px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; margin: 0; }
p { color: var(--dim); margin: .3rem 0; overflow-wrap: anywhere; }
svg { width: 100%; height: auto; display: block; margin: 1rem 0; }
svg text { fill: var(--ink); font: 12px system-ui, sans-serif; }
svg .head { font-size: 13px; font-weight: 600; }
svg .tick { fill: var(--dim); }
.grid { stroke: var(--line); }
.base { stroke: var(--dim); stroke-dasharray: 5 4; }
.curve { fill: none; stroke-width: 2; stroke-linejoin: round; }
.stop rect { fill: transparent; } .stop:hover rect { fill: var(--band); }
.stop line { stroke: none; } .stop:hover line { stroke: var(--dim); }
.stop circle { stroke: var(--back); stroke-width: 1.5; } .stop:hover circle { r: 5.5px; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: right; vertical-align: top; padding: .4rem .6rem; \
border-bottom: 1px solid var(--line); font-variant-numeric: tabular-nums; }
th { color: var(--dim); font-weight: 600; position: sticky; top: 0; background: var(--back); }
td:last-child, th:last-child { text-align: left; width: 60%; white-space: pre-wrap; \
overflow-wrap: anywhere; }
tr:target { background: var(--band); }";

/// The whole file.
pub(super) fn html(sweep: &Sweep<'_>, prompt: &str) -> String {
    let common = sweep.common();
    let swept = escape(&sweep.swept);
    let facts = format!(
        "{} · seed {} · {} prompt tokens · {} strengths",
        common.model_id,
        common.seed,
        common.prompt_token_ids.len(),
        sweep.points.len().saturating_sub(1)
    );
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n\
         <meta http-equiv=\"Content-Security-Policy\" \
         content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <title>Steer sweep: {swept}</title>\n<style>\n{STYLE}\n</style>\n</head>\n<body>\n\
         <h1>Dose-response of {swept}</h1>\n<p>“{}”</p>\n<p>{}</p>\n{}{}</body>\n</html>\n",
        escape(prompt),
        escape(&facts),
        chart(sweep),
        table(sweep)
    )
}

fn chart(sweep: &Sweep<'_>) -> String {
    let steered = || sweep.points.iter().filter(|point| point.strength.is_some());
    let baseline = sweep.points.iter().find(|point| point.strength.is_none());
    let panel =
        |heading: String, color, ratio_scale, value: &dyn Fn(&Point<'_>) -> Option<f64>| Panel {
            heading,
            color,
            values: steered().map(value).collect(),
            baseline: baseline.and_then(value),
            ratio_scale,
        };
    let probes = sweep.common().probe_names.iter().enumerate();
    let colors = PROBE_COLORS.iter().cycle();
    let mut panels: Vec<Panel> = probes
        .zip(colors)
        .map(|((i, name), color)| {
            let heading = format!("{name}: mean before the edits, generated tokens");
            panel(heading, color, false, &|point| {
                point.probe_means.get(i).copied().flatten()
            })
        })
        .collect();
    let heading = "perplexity under the unsteered model".to_owned();
    panels.push(panel(heading, PERPLEXITY_COLOR, true, &|point| {
        point.perplexity
    }));
    let heading = "repetition: share of 3-grams seen before".to_owned();
    panels.push(panel(heading, REPETITION_COLOR, false, &|point| {
        point.repetition
    }));
    let stops: Vec<Stop> = sweep
        .points
        .iter()
        .enumerate()
        .filter_map(|(i, point)| {
            Some(Stop {
                strength: f64::from(point.strength?),
                tooltip: tooltip(sweep, point),
                anchor: format!("p{i}"),
            })
        })
        .collect();
    svg(&panels, &stops, &format!("strength of {}", sweep.swept))
}

fn tooltip(sweep: &Sweep<'_>, point: &Point<'_>) -> String {
    let probes = sweep.common().probe_names.iter().zip(&point.probe_means);
    let probes: String = probes
        .map(|(name, &mean)| format!("{name} {}\n", cell(mean)))
        .collect();
    format!(
        "strength {}\n{probes}perplexity {}\nrepetition {}\n\n{}",
        strength(point),
        cell(point.perplexity),
        cell(point.repetition),
        point.variant.text.trim()
    )
}

fn table(sweep: &Sweep<'_>) -> String {
    let mut table = "<table>\n<thead><tr><th>strength</th>".to_owned();
    for name in &sweep.common().probe_names {
        let _ = write!(table, "<th>{}</th>", escape(name));
    }
    table.push_str("<th>perplexity</th><th>repetition</th><th>text</th></tr></thead>\n<tbody>\n");
    for (i, point) in sweep.points.iter().enumerate() {
        let _ = write!(table, "<tr id=\"p{i}\"><td>{}</td>", strength(point));
        let measured = point.probe_means.iter().copied();
        for value in measured.chain([point.perplexity, point.repetition]) {
            let _ = write!(table, "<td>{}</td>", cell(value));
        }
        let _ = writeln!(table, "<td>{}</td></tr>", escape(point.variant.text.trim()));
    }
    table.push_str("</tbody>\n</table>\n");
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use steering_client::{Transcript, VariantTranscript};

    #[test]
    fn nothing_that_a_model_writes_is_markup() {
        let hostile = "</td><script>alert('&')</script>\0\"";
        let variant = |name: &str| VariantTranscript {
            name: name.to_owned(),
            text: hostile.to_owned(),
            ..VariantTranscript::default()
        };
        let transcripts = [Transcript {
            model_id: hostile.to_owned(),
            probe_names: vec![hostile.to_owned()],
            variants: vec![variant("baseline"), variant("5")],
            ..Transcript::default()
        }];
        let point = |i: usize, strength| Point {
            strength,
            transcript: &transcripts[0],
            variant: &transcripts[0].variants[i],
            probe_means: vec![None],
            perplexity: Some(f64::INFINITY),
            repetition: Some(0.5),
        };
        let sweep = Sweep {
            swept: hostile.to_owned(),
            transcripts: &transcripts,
            points: &[point(0, None), point(1, Some(5.0))],
            warnings: &[],
        };
        let html = html(&sweep, hostile);
        assert!(!html.contains("<script") && !html.contains('\0'), "{html}");
        assert_eq!(html.matches("</td>").count(), html.matches("<td>").count());
        assert!(html.contains("&lt;script&gt;alert(&#39;&amp;&#39;)&lt;/script&gt;\u{fffd}&quot;"));
        for external in ["http://", "https://", "url(", "src="] {
            assert!(!html.contains(external), "{external}");
        }
    }
}

//! The picture: one HTML file without scripts that needs no other. The text once for each
//! of the strongest features, every token shaded by the feature's activation on it.

use std::fmt::Write;

use super::{Feature, Inspection, Token};
use crate::{output::escape_html as escape, series::number};

/// Features that get a text of their own.
const FEATURES_MAX: usize = 30;

const STYLE: &str = "\
:root { color-scheme: light dark; --ink: #1c2230; --dim: #6b7385; --line: #dfe3ea; \
--back: #fff; --glow: 235 110 30; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9f0; --dim: #98a1b3; \
--line: #2c3343; --back: #12151d; --glow: 255 140 50; } }
body { font: 15px/1.6 system-ui, sans-serif; color: var(--ink); background: var(--back); \
max-width: 960px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; margin: 0; } h2 { font-size: 1rem; margin: 1.4rem 0 .2rem; }
small, p.facts { color: var(--dim); font-weight: 400; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; border-top: 1px solid var(--line); \
padding-top: .3rem; }
.text span { border-radius: 3px; background: rgb(var(--glow) / var(--a, 0)); }
.text span:hover { outline: 1px solid var(--dim); }";

/// The whole file.
pub(super) fn page(inspection: &Inspection) -> String {
    let strongest = inspection.strongest();
    let shown = strongest.len().min(FEATURES_MAX);
    let mut body = String::new();
    let _ = write!(
        body,
        "<h2>All features <small>shaded by the strongest</small></h2>"
    );
    let largest = inspection.largest();
    text(&mut body, inspection, |token| {
        token
            .features
            .first()
            .map_or(0.0, |feature| feature.activation / largest)
    });
    for feature in &strongest[..shown] {
        section(&mut body, inspection, feature);
    }
    let facts = format!(
        "{} at {} · {} tokens · {shown} of {} features that are among the strongest of a token",
        inspection.sae_id,
        inspection.hook_name,
        inspection.tokens.len(),
        strongest.len()
    );
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n\
         <meta http-equiv=\"Content-Security-Policy\" \
         content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <title>Steer inspect</title>\n<style>\n{STYLE}\n</style>\n</head>\n<body>\n\
         <h1>Which features fire</h1>\n<p class=\"facts\">{}</p>\n{body}</body>\n</html>\n",
        escape(&facts)
    )
}

fn section(body: &mut String, inspection: &Inspection, feature: &Feature) {
    let index = feature.feature_index;
    let _ = write!(
        body,
        "<h2>{} <small>#{index} · largest {}</small></h2>",
        escape(&feature.name()),
        number(f64::from(feature.activation))
    );
    text(body, inspection, |token| {
        let own = token
            .features
            .iter()
            .find(|other| other.feature_index == index);
        own.map_or(0.0, |own| own.activation / feature.activation)
    });
}

/// The text, shaded by a share of each token.
fn text(body: &mut String, inspection: &Inspection, share: impl Fn(&Token) -> f32) {
    body.push_str("<div class=\"text\">");
    for token in &inspection.tokens {
        let alpha = share(token).clamp(0.0, 1.0) * 0.85;
        let fired = token.features.iter().map(|feature| {
            format!(
                "{} {}",
                feature.name(),
                number(f64::from(feature.activation))
            )
        });
        let title = fired.collect::<Vec<_>>().join("\n");
        let _ = write!(
            body,
            "<span style=\"--a:{alpha:.2}\" title=\"{}\">{}</span>",
            escape(&title),
            escape(&token.text())
        );
    }
    body.push_str("</div>\n");
}

#[cfg(test)]
mod tests {
    use super::{super::tests::inspection, page};

    #[test]
    fn the_page_escapes_what_it_shows_and_needs_nothing_else() {
        let page = page(&inspection());
        assert!(page.contains("hockey &lt;b&gt;") && page.contains(" goalie&lt;"));
        assert!(!page.contains("<b>") && !page.contains("<script") && !page.contains("src="));
        // Its own text: full on one token, nothing on the others.
        assert!(page.contains("--a:0.85") && page.contains("--a:0.00"));
    }
}

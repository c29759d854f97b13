//! Curves over one axis, as SVG.

use std::fmt::Write;

use crate::{output::escape_html as escape, series::number};

const WIDTH: f64 = 920.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 20.0;
const PANEL_HEIGHT: f64 = 150.0;
/// Above a panel: its heading.
const HEAD: f64 = 40.0;
/// Below the last panel: the axis.
const FOOT: f64 = 46.0;
/// Ratio of the largest to the smallest value from which an axis is logarithmic.
const LOG_RATIO: f64 = 30.0;

/// One panel: a quantity against the strength.
pub(super) struct Panel {
    pub(super) heading: String,
    /// CSS colour.
    pub(super) color: &'static str,
    /// One per point; none where there is nothing to draw.
    pub(super) values: Vec<Option<f64>>,
    pub(super) baseline: Option<f64>,
    /// May be drawn on a logarithmic axis.
    pub(super) ratio_scale: bool,
}

/// One strength.
pub(super) struct Stop {
    pub(super) strength: f64,
    /// What hovering says.
    pub(super) tooltip: String,
    /// Where a click leads.
    pub(super) anchor: String,
}

/// A linear or logarithmic map from values to pixels.
struct Axis {
    low: f64,
    high: f64,
    log: bool,
    /// Pixel of `low` and of `high`.
    ends: (f64, f64),
}

/// About so many steps between ticks, down and across.
const STEPS_DOWN: f64 = 4.0;
const STEPS_ACROSS: f64 = 8.0;

impl Axis {
    /// An axis of round ends that has all values.
    fn around(values: impl Iterator<Item = f64> + Clone, may_log: bool, ends: (f64, f64)) -> Self {
        let least = values.clone().fold(f64::INFINITY, f64::min);
        let most = values.fold(f64::NEG_INFINITY, f64::max);
        if !(least.is_finite() && most.is_finite()) {
            return Self {
                low: 0.0,
                high: 1.0,
                log: false,
                ends,
            };
        }
        if may_log && least > 0.0 && most / least > LOG_RATIO {
            let (low, high) = (least.log10().floor(), most.log10().ceil());
            return Self {
                low,
                high,
                log: true,
                ends,
            };
        }
        // Zero belongs to a scale of amounts.
        let (least, most) = (least.min(0.0), most.max(0.0));
        let step = round_step(most - least, STEPS_DOWN);
        let high = ((most / step).ceil() * step).max(least + step);
        let low = (least / step).floor() * step;
        Self {
            low,
            high,
            log: false,
            ends,
        }
    }

    fn at(&self, value: f64) -> f64 {
        let value = if self.log { value.log10() } else { value };
        let share = (value - self.low) / (self.high - self.low);
        self.ends.0 + share * (self.ends.1 - self.ends.0)
    }

    fn ticks(&self, steps: f64) -> Vec<f64> {
        let step = if self.log {
            ((self.high - self.low) / steps).ceil()
        } else {
            round_step(self.high - self.low, steps)
        };
        let count = ((self.high - self.low) / step + 1e-6).floor() as u32;
        let tick = |i: u32| self.low + f64::from(i) * step;
        let power = |tick: f64| if self.log { 10f64.powf(tick) } else { tick };
        (0..=count).map(tick).map(power).collect()
    }
}

/// 1, 2 or 5 times a power of ten, of which the range has at most about `steps`.
fn round_step(range: f64, steps: f64) -> f64 {
    let rough = if range > 0.0 { range } else { 1.0 } / steps;
    let power = 10f64.powf(rough.log10().floor());
    let round = [1.0, 2.0, 5.0]
        .into_iter()
        .find(|n| n * power >= rough * 0.999);
    round.unwrap_or(10.0) * power
}

/// The panels below each other, over one axis of strengths.
pub(super) fn svg(panels: &[Panel], stops: &[Stop], x_label: &str) -> String {
    let height = panels.len() as f64 * (HEAD + PANEL_HEIGHT) + FOOT;
    let x = x_axis(stops);
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"dose-response chart\">\n"
    );
    let mut y_axes = Vec::new();
    for (i, panel) in panels.iter().enumerate() {
        let top = i as f64 * (HEAD + PANEL_HEIGHT) + HEAD;
        let values = panel.values.iter().chain([&panel.baseline]);
        let finite = values.flatten().copied().filter(|value| value.is_finite());
        let y = Axis::around(finite, panel.ratio_scale, (top + PANEL_HEIGHT, top));
        draw_panel(&mut svg, panel, stops, &x, &y);
        y_axes.push(y);
    }
    draw_x_axis(&mut svg, &x, height, x_label);
    for (i, stop) in stops.iter().enumerate() {
        draw_stop(&mut svg, i, stop, stops, panels, (&x, &y_axes), height);
    }
    svg.push_str("</svg>\n");
    svg
}

fn x_axis(stops: &[Stop]) -> Axis {
    let strengths = || stops.iter().map(|stop| stop.strength);
    let low = strengths().fold(f64::INFINITY, f64::min);
    let high = strengths().fold(f64::NEG_INFINITY, f64::max);
    // One strength alone sits in the middle.
    let pad = if high > low { 0.0 } else { 1.0 };
    Axis {
        low: low - pad,
        high: high + pad,
        log: false,
        ends: (LEFT + 10.0, WIDTH - RIGHT - 10.0),
    }
}

fn draw_panel(svg: &mut String, panel: &Panel, stops: &[Stop], x: &Axis, y: &Axis) {
    let Panel { heading, color, .. } = panel;
    let right = WIDTH - RIGHT;
    let top = y.ends.1 - 14.0;
    let log = if y.log { " (log)" } else { "" };
    let heading = escape(heading);
    // Writing to a string cannot fail.
    let _ = writeln!(
        svg,
        "<text class=\"head\" x=\"{LEFT}\" y=\"{top}\">{heading}{log}</text>"
    );
    for tick in y.ticks(STEPS_DOWN) {
        let (at, label) = (y.at(tick), number(tick));
        let _ = writeln!(
            svg,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
             <text class=\"tick\" x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
            LEFT - 8.0,
            at + 4.0
        );
    }
    if let Some(baseline) = panel.baseline.filter(|value| value.is_finite()) {
        let at = y.at(baseline);
        let _ = writeln!(
            svg,
            "<line class=\"base\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
             <text class=\"tick\" x=\"{right}\" y=\"{:.1}\" text-anchor=\"end\">baseline {}</text>",
            at - 5.0,
            number(baseline)
        );
    }
    let mut path = String::new();
    let mut pen_up = true;
    for (stop, value) in stops.iter().zip(&panel.values) {
        let Some(value) = value.filter(|value| value.is_finite()) else {
            pen_up = true;
            continue;
        };
        let command = if pen_up { 'M' } else { 'L' };
        let _ = write!(
            path,
            "{command}{:.1} {:.1}",
            x.at(stop.strength),
            y.at(value)
        );
        pen_up = false;
    }
    let _ = writeln!(
        svg,
        "<path class=\"curve\" stroke=\"{color}\" d=\"{path}\"/>"
    );
}

fn draw_x_axis(svg: &mut String, x: &Axis, height: f64, label: &str) {
    let y = height - FOOT + 20.0;
    for tick in x.ticks(STEPS_ACROSS) {
        let _ = writeln!(
            svg,
            "<text class=\"tick\" x=\"{:.1}\" y=\"{y}\" text-anchor=\"middle\">{}</text>",
            x.at(tick),
            number(tick)
        );
    }
    let _ = writeln!(
        svg,
        "<text class=\"head\" x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
        (x.ends.0 + x.ends.1) / 2.0,
        height - 6.0,
        escape(label)
    );
}

/// A strength's points over all panels, in a band that reacts to the pointer.
fn draw_stop(
    svg: &mut String,
    index: usize,
    stop: &Stop,
    stops: &[Stop],
    panels: &[Panel],
    (x, y_axes): (&Axis, &[Axis]),
    height: f64,
) {
    let at = x.at(stop.strength);
    let next = |i: Option<usize>, edge: f64| {
        let neighbour = i.and_then(|i| stops.get(i));
        neighbour.map_or(edge, |other| f64::midpoint(at, x.at(other.strength)))
    };
    let from = next(index.checked_sub(1), LEFT);
    let to = next(Some(index + 1), WIDTH - RIGHT);
    let bottom = height - FOOT;
    let _ = write!(
        svg,
        "<a href=\"#{}\" class=\"stop\"><title>{}</title>\
         <rect x=\"{from:.1}\" y=\"{HEAD}\" width=\"{:.1}\" height=\"{:.1}\"/>\
         <line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{HEAD}\" y2=\"{bottom:.1}\"/>",
        escape(&stop.anchor),
        escape(&stop.tooltip),
        to - from,
        bottom - HEAD
    );
    for (panel, y) in panels.iter().zip(y_axes) {
        let value = panel.values.get(index).copied().flatten();
        if let Some(value) = value.filter(|value| value.is_finite()) {
            let (color, y) = (panel.color, y.at(value));
            let _ = write!(
                svg,
                "<circle cx=\"{at:.1}\" cy=\"{y:.1}\" r=\"3.5\" fill=\"{color}\"/>"
            );
        }
    }
    svg.push_str("</a>\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn axis(values: &[f64], may_log: bool) -> Axis {
        Axis::around(values.iter().copied(), may_log, (100.0, 0.0))
    }

    #[test]
    fn axes_have_round_ends() {
        assert_eq!(
            axis(&[0.0, 47.0], false).ticks(STEPS_DOWN),
            [0.0, 20.0, 40.0, 60.0]
        );
        assert_eq!(
            axis(&[-1.0, 3.0], false).ticks(STEPS_DOWN),
            [-1.0, 0.0, 1.0, 2.0, 3.0]
        );
        assert_eq!(
            axis(&[2.0, 900.0], true).ticks(STEPS_DOWN),
            [1.0, 10.0, 100.0, 1000.0]
        );
        let flat = axis(&[0.0, 0.0], false);
        assert!(flat.ticks(STEPS_DOWN).len() > 1 && flat.at(0.0) == 100.0);
        assert_eq!(axis(&[], false).at(1.0), 0.0);
    }

    #[test]
    fn gaps_break_the_curve() {
        let stop = |strength| Stop {
            strength,
            tooltip: "<b>".to_owned(),
            anchor: "p0".to_owned(),
        };
        let panel = Panel {
            heading: "a & b".to_owned(),
            color: "red",
            values: vec![Some(1.0), None, Some(f64::NAN), Some(2.0)],
            baseline: Some(f64::INFINITY),
            ratio_scale: true,
        };
        let stops: Vec<Stop> = [0.0, 1.0, 2.0, 3.0].map(stop).into();
        let svg = svg(&[panel], &stops, "strength");
        assert_eq!(svg.matches("<circle").count(), 2);
        assert!(svg.contains("a &amp; b") && svg.contains("&lt;b&gt;"));
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        let path = svg.split(" d=\"").nth(1).expect("a path");
        assert_eq!(
            path.split('"')
                .next()
                .expect("its end")
                .matches('M')
                .count(),
            2
        );
    }
}

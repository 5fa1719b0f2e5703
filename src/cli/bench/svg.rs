//! Latency over time as a drawing: the whole run above, the costliest rollout close up below.
//!
//! Plain SVG without scripts or fonts of its own; it follows the reader's light or dark scheme and stays
//! below 60 kB whatever was measured.

use std::fmt::Write as _;

use super::driver::{Cycle, Span};
use super::load::Sample;
use super::swap_report::Run;

pub(super) const WIDTH: f64 = 960.0;
pub(super) const LEFT: f64 = 64.0;
pub(super) const RIGHT: f64 = 944.0;
const OVERVIEW: Panel = Panel { top: 78.0, bottom: 258.0 };
const CLOSE_UP: Panel = Panel { top: 334.0, bottom: 534.0 };
const HEIGHT: f64 = 622.0;
/// Intervals of the overview at most, and how many requests each should have for its quantiles to mean something.
const BUCKETS: usize = 220;
const BUCKET_FILL: usize = 25;
const MAX_POINTS: usize = 1600;
const COLOURS: usize = 8;

pub(super) const STYLE: &str = "\
svg{color-scheme:light dark;font:12px system-ui,sans-serif;--bg:#fff;--ink:#1f2328;--dim:#656d76;--grid:#d8dee4;--p50:#0969da;--band:#54aeff;--max:#bc4c00;--bad:#cf222e;--sw:#8250df;\
--c0:#57606a;--c1:#0969da;--c2:#bf8700;--c3:#1a7f37;--c4:#8250df;--c5:#0f8a8a;--c6:#bf3989;--c7:#953800}\
@media(prefers-color-scheme:dark){svg{--bg:#0d1117;--ink:#e6edf3;--dim:#9198a1;--grid:#30363d;--p50:#58a6ff;--band:#1f6feb;--max:#f0883e;--bad:#ff7b72;--sw:#bc8cff;\
--c0:#9198a1;--c1:#58a6ff;--c2:#e3b341;--c3:#56d364;--c4:#bc8cff;--c5:#39c5cf;--c6:#f778ba;--c7:#f0883e}}\
text{fill:var(--ink)}.d{fill:var(--dim)}.h{font-size:15px;font-weight:600}.e{text-anchor:end}.m{text-anchor:middle}\
.g{stroke:var(--grid);fill:none}.f{stroke:var(--dim);fill:none}.q{fill:var(--band);fill-opacity:.35}.l{fill:none;stroke:var(--p50);stroke-width:1.5}\
.x{fill:none;stroke:var(--max);stroke-width:2.4;stroke-linecap:round}.o{fill:none;stroke:var(--p50);stroke-width:2.4;stroke-linecap:round;stroke-opacity:.7}\
.b{fill:none;stroke:var(--bad);stroke-width:3}.s{stroke:var(--sw);stroke-width:1;fill:none}.r{fill:var(--c0);fill-opacity:.14}";

/// A plot's vertical extent.
#[derive(Clone, Copy)]
struct Panel {
    top: f64,
    bottom: f64,
}

/// Time to x and latency to y.
struct Axes {
    panel: Panel,
    from: u64,
    to: u64,
    /// Decimal logarithms of milliseconds.
    low: f64,
    high: f64,
}

impl Axes {
    fn x(&self, at: u64) -> f64 {
        let share = at.saturating_sub(self.from) as f64 / (self.to - self.from).max(1) as f64;
        LEFT + share.min(1.0) * (RIGHT - LEFT)
    }

    fn y(&self, ms: f64) -> f64 {
        let share = (ms.max(1e-6).log10() - self.low) / (self.high - self.low);
        self.panel.bottom - share.clamp(0.0, 1.0) * (self.panel.bottom - self.panel.top)
    }
}

fn ms(sample: &Sample) -> f64 {
    sample.latency() as f64 / 1e6
}

/// What a drawing is of.
#[derive(Debug)]
pub(super) struct Words {
    pub(super) title: String,
    /// Under the title.
    pub(super) line: String,
    /// For those who do not see it: what comes before what all drawings show.
    pub(super) description: String,
    /// What each sample is, in the singular.
    pub(super) sample: &'static str,
}

impl Words {
    /// Of requests.
    pub(super) fn of_requests(run: &Run) -> Words {
        let failed = run.recording.samples.iter().filter(|sample| !sample.outcome.ok()).count();
        Words {
            title: format!("{}: latency over {} switches under load", run.model, run.switched().count()),
            line: format!("{:.0} requests a second, latency from the intended start, {failed} failed", run.rate),
            description: format!(
                "{:.0} requests a second for {:.0} seconds, {} requests, {failed} failed.",
                run.rate,
                (run.until - run.steady_from) as f64 / 1e9,
                run.recording.samples.len(),
            ),
            sample: "request",
        }
    }
}

/// The drawing of a run; one without a single answer has empty plots.
pub(super) fn draw(run: &Run, words: &Words) -> String {
    let measured: Vec<&Sample> = run.measured().collect();
    let (low, high) = extent(&measured);
    let axes = |panel, from, to| Axes { panel, from, to, low, high };
    let mut svg = String::with_capacity(48 << 10);
    head(&mut svg, words);
    overview(&mut svg, run, &measured, &axes(OVERVIEW, run.steady_from, run.until));
    match costliest(run, &measured) {
        Some((number, cycle)) => {
            // A little of the time before and after, to compare with.
            let length = cycle.settled.max(cycle.answered) - cycle.asked;
            let from = cycle.asked.saturating_sub(length / 5).max(run.steady_from);
            let to = (cycle.settled.max(cycle.answered) + length / 8).min(run.until);
            let title = format!(
                "Close up: switch {number}, {} → {}, the one with the slowest {}",
                cycle.from, cycle.to, words.sample
            );
            close_up(&mut svg, (&title, cycle), &measured, &axes(CLOSE_UP, from, to));
        }
        None => text(&mut svg, LEFT, CLOSE_UP.top, "d", "no switch was completed"),
    }
    svg.push_str("</svg>\n");
    svg
}

fn head(svg: &mut String, Words { title, line, description, sample }: &Words) {
    let description = format!(
        "{description} Above, the whole run: median, band from median to 99th percentile, and slowest {sample} in each interval on \
         a logarithmic scale; rollouts are shaded and switches are lines. Below, every {sample} of the rollout with the slowest \
         one, its phases shaded."
    );
    push(
        svg,
        format_args!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-labelledby=\"t d\">\
         <title id=\"t\">{}</title><desc id=\"d\">{}</desc><style>{STYLE}</style>\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" style=\"fill:var(--bg)\"/>\n",
            escape(title),
            escape(&description),
        ),
    );
    text(svg, LEFT, 24.0, "h", title);
    text(svg, LEFT, 42.0, "d", line);
}

/// Decades that hold every answer, at least one.
fn extent(samples: &[&Sample]) -> (f64, f64) {
    let answered = || samples.iter().filter(|sample| sample.outcome.ok()).map(|sample| ms(sample).max(1e-3));
    let least = answered().fold(f64::INFINITY, f64::min);
    let most = answered().fold(0.0, f64::max);
    if !least.is_finite() {
        return (0.0, 1.0);
    }
    let low = grid_lines().rev().find(|line| *line <= least).unwrap_or(1e-3);
    let high = grid_lines().find(|line| *line >= most && *line >= low * 4.0).unwrap_or(1e6);
    (low.log10(), high.log10())
}

/// Milliseconds at which a line may stand: 1, 2 and 5 in every decade from a microsecond to a quarter of an hour.
fn grid_lines() -> impl DoubleEndedIterator<Item = f64> {
    (-3..=6).flat_map(|decade| [1.0, 2.0, 5.0].map(|digit| digit * 10_f64.powi(decade)))
}

fn frame(svg: &mut String, axes: &Axes) {
    let Panel { top, bottom } = axes.panel;
    let mut grid = String::new();
    for value in grid_lines().filter(|line| (axes.low - 1e-9..=axes.high + 1e-9).contains(&line.log10())) {
        let y = axes.y(value);
        push(&mut grid, format_args!("M{LEFT} {y:.1}H{RIGHT}"));
        let label = if value >= 1000.0 { format!("{} s", value / 1000.0) } else { format!("{} ms", tidy(value)) };
        text(svg, LEFT - 6.0, y + 4.0, "d e", &label);
    }
    let seconds = (axes.to - axes.from) as f64 / 1e9;
    let step = tick(seconds);
    let mut at = 0.0;
    while at <= seconds {
        let x = axes.x(axes.from + (at * 1e9) as u64);
        push(&mut grid, format_args!("M{x:.1} {top}V{bottom}"));
        let label = if step < 1.0 { format!("{:.0} ms", at * 1e3) } else { format!("{at:.0} s") };
        text(svg, x, bottom + 16.0, "d m", &label);
        at += step;
    }
    push(
        svg,
        format_args!("<path class=\"g\" d=\"{grid}\"/><path class=\"f\" d=\"M{LEFT} {top}V{bottom}H{RIGHT}\"/>\n"),
    );
}

fn tidy(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A round step that gives about eight ticks.
fn tick(seconds: f64) -> f64 {
    let raw = (seconds / 8.0).max(0.001);
    let power = 10_f64.powf(raw.log10().floor());
    let factor = [1.0, 2.0, 5.0, 10.0].into_iter().find(|factor| factor * power >= raw).unwrap_or(10.0);
    factor * power
}

fn overview(svg: &mut String, run: &Run, measured: &[&Sample], axes: &Axes) {
    let Panel { top, bottom } = axes.panel;
    let (mut shade, mut lines) = (String::new(), String::new());
    for cycle in run.switched() {
        let (from, to) = (axes.x(cycle.asked), axes.x(cycle.settled.max(cycle.answered)));
        push(&mut shade, format_args!("M{from:.1} {top}H{to:.1}V{bottom}H{from:.1}z"));
        push(&mut lines, format_args!("M{:.1} {top}V{bottom}", axes.x(cycle.answered)));
    }
    push(svg, format_args!("<path class=\"r\" d=\"{shade}\"/>\n"));
    frame(svg, axes);
    push(svg, format_args!("<path class=\"s\" d=\"{lines}\"/>\n"));
    let (mut middle, mut upper, mut most) = (Vec::new(), Vec::new(), String::new());
    for bucket in buckets(measured, axes) {
        let (x, p50, p99, max) = (bucket.x, axes.y(bucket.p50), axes.y(bucket.p99), axes.y(bucket.max));
        middle.push(format!("{x:.0} {p50:.1}"));
        upper.push(format!("{x:.0} {p99:.1}"));
        push(&mut most, format_args!("M{x:.0} {max:.1}h0"));
    }
    let line = middle.join("L");
    upper.extend(middle.into_iter().rev());
    if !upper.is_empty() {
        let band = upper.join("L");
        push(svg, format_args!("<path class=\"q\" d=\"M{band}z\"/><path class=\"l\" d=\"M{line}\"/>"));
        push(svg, format_args!("<path class=\"x\" d=\"{most}\"/>\n"));
    }
    failures(svg, measured, axes);
    legend(svg);
}

fn legend(svg: &mut String) {
    let y = 62.0;
    let mut x = LEFT;
    for (mark, label) in [
        ("<path class=\"l\" d=\"M0 0h16\"/>", "median"),
        ("<path class=\"q\" d=\"M0 -5h16v10h-16z\"/>", "median to p99"),
        ("<path class=\"x\" d=\"M8 0h0\"/>", "slowest"),
        ("<path class=\"b\" d=\"M8 -5v10\"/>", "failed"),
        ("<path class=\"r\" d=\"M0 -5h16v10h-16z\"/>", "rollout"),
        ("<path class=\"s\" d=\"M8 -6v12\"/>", "switch"),
    ] {
        push(svg, format_args!("<g transform=\"translate({x:.0} {:.0})\">{mark}</g>", y - 4.0));
        text(svg, x + 22.0, y, "", label);
        x += 40.0 + 6.6 * label.len() as f64;
    }
}

struct Bucket {
    x: f64,
    p50: f64,
    p99: f64,
    max: f64,
}

fn buckets(measured: &[&Sample], axes: &Axes) -> Vec<Bucket> {
    let count = (measured.len() / BUCKET_FILL).clamp(20, BUCKETS);
    let width = ((axes.to - axes.from) / count as u64).max(1);
    let mut columns: Vec<Vec<f64>> = vec![Vec::new(); count + 1];
    for sample in measured.iter().filter(|sample| sample.outcome.ok()) {
        let column = (sample.intended.saturating_sub(axes.from) / width) as usize;
        if let Some(latencies) = columns.get_mut(column) {
            latencies.push(ms(sample));
        }
    }
    let bucket = |(index, mut latencies): (usize, Vec<f64>)| {
        latencies.sort_by(f64::total_cmp);
        let at = |share: f64| {
            latencies.get(((latencies.len() as f64 * share) as usize).min(latencies.len().saturating_sub(1)))
        };
        let (p50, p99, max) = (*at(0.5)?, *at(0.99)?, *latencies.last()?);
        Some(Bucket { x: axes.x(axes.from + width * index as u64 + width / 2), p50, p99, max })
    };
    columns.into_iter().enumerate().filter_map(bucket).collect()
}

/// The cycle during which the slowest request began, and its number.
fn costliest<'a>(run: &'a Run, measured: &[&Sample]) -> Option<(usize, &'a Cycle)> {
    let slowest_in = |cycle: &Cycle| {
        let within = |sample: &&&Sample| (cycle.asked..cycle.settled.max(cycle.answered)).contains(&sample.intended);
        measured.iter().filter(within).map(|sample| sample.latency()).max()
    };
    run.switched().enumerate().max_by_key(|(_, cycle)| slowest_in(cycle)).map(|(index, cycle)| (index + 1, cycle))
}

fn close_up(svg: &mut String, (title, cycle): (&str, &Cycle), measured: &[&Sample], axes: &Axes) {
    let Panel { top, bottom } = axes.panel;
    text(svg, LEFT, top - 28.0, "h", title);
    let names = phase_names(&cycle.spans);
    for span in &cycle.spans {
        let (from, to) = (axes.x(span.from), axes.x(span.to));
        let colour = names.iter().position(|name| *name == span.phase).unwrap_or_default() % COLOURS;
        push(
            svg,
            format_args!(
                "<path style=\"fill:var(--c{colour});fill-opacity:.16\" d=\"M{from:.1} {top}H{to:.1}V{bottom}H{from:.1}z\"/>"
            ),
        );
        if to - from > 6.8 * span.phase.len() as f64 {
            text(svg, f64::midpoint(from, to), top - 6.0, "d m", &span.phase);
        }
    }
    frame(svg, axes);
    let within: Vec<&Sample> =
        measured.iter().filter(|sample| (axes.from..axes.to).contains(&sample.intended)).copied().collect();
    let mut points = String::new();
    for sample in thin(&within, axes) {
        push(&mut points, format_args!("M{:.1} {:.1}h0", axes.x(sample.intended), axes.y(ms(sample))));
    }
    push(svg, format_args!("<path class=\"o\" d=\"{points}\"/>\n"));
    failures(svg, &within, axes);
    let x = axes.x(cycle.answered);
    push(svg, format_args!("<path class=\"s\" style=\"stroke-width:2\" d=\"M{x:.1} {top}V{bottom}\"/>"));
    text(svg, x + 5.0, top + 14.0, "", "promote answered");
    phase_legend(svg, &cycle.spans, &names);
}

fn phase_names(spans: &[Span]) -> Vec<&str> {
    let mut names: Vec<&str> = Vec::new();
    for span in spans {
        if !names.contains(&span.phase.as_str()) {
            names.push(&span.phase);
        }
    }
    names
}

/// Every phase with its colour and how long it took, also those too short for a label of their own.
fn phase_legend(svg: &mut String, spans: &[Span], names: &[&str]) {
    let (mut x, mut y) = (LEFT, CLOSE_UP.bottom + 42.0);
    for (index, name) in names.iter().take(24).enumerate() {
        let took: u64 =
            spans.iter().filter(|span| span.phase == *name).map(|span| span.to.saturating_sub(span.from)).sum();
        let label = format!("{name} {}", super::super::output::human_ms(took as f64 / 1e6));
        let width = 30.0 + 6.8 * label.chars().count() as f64;
        if x + width > RIGHT {
            (x, y) = (LEFT, y + 18.0);
        }
        let colour = index % COLOURS;
        push(
            svg,
            format_args!(
                "<rect x=\"{x:.0}\" y=\"{:.0}\" width=\"12\" height=\"12\" style=\"fill:var(--c{colour});fill-opacity:.55\"/>",
                y - 10.0
            ),
        );
        text(svg, x + 17.0, y, "", &label);
        x += width;
    }
}

/// At most so many points: where they are too many, the slowest and one other of each column.
fn thin<'a>(samples: &[&'a Sample], axes: &Axes) -> Vec<&'a Sample> {
    let answered: Vec<&Sample> = samples.iter().filter(|sample| sample.outcome.ok()).copied().collect();
    if answered.len() <= MAX_POINTS {
        return answered;
    }
    let width = ((axes.to - axes.from) / (MAX_POINTS as u64 / 2)).max(1);
    let mut kept: Vec<&Sample> = Vec::with_capacity(MAX_POINTS);
    for column in answered.chunk_by(|a, b| (a.intended - axes.from) / width == (b.intended - axes.from) / width) {
        kept.push(column[column.len() / 2]);
        kept.extend(column.iter().max_by_key(|sample| sample.latency()));
    }
    kept
}

/// Failed requests stand at the top, one mark a pixel.
fn failures(svg: &mut String, samples: &[&Sample], axes: &Axes) {
    let mut marks: Vec<i64> = samples
        .iter()
        .filter(|sample| !sample.outcome.ok())
        .map(|sample| axes.x(sample.intended).round() as i64)
        .collect();
    marks.dedup();
    if marks.is_empty() {
        return;
    }
    let top = axes.panel.top;
    let path: String = marks.iter().map(|x| format!("M{x} {top}v9")).collect();
    push(svg, format_args!("<path class=\"b\" d=\"{path}\"/>\n"));
}

pub(super) fn text(svg: &mut String, x: f64, y: f64, class: &str, words: &str) {
    let words = escape(words);
    if class.is_empty() {
        push(svg, format_args!("<text x=\"{x:.0}\" y=\"{y:.0}\">{words}</text>"));
    } else {
        push(svg, format_args!("<text x=\"{x:.0}\" y=\"{y:.0}\" class=\"{class}\">{words}</text>"));
    }
}

pub(super) fn push(into: &mut String, what: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _written = into.write_fmt(what);
}

/// Text for XML; control characters, which it cannot hold, are shown as what they are.
pub(super) fn escape(text: &str) -> String {
    let text: String = super::super::output::printable(text).chars().take(600).collect();
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
#[path = "svg_tests.rs"]
mod tests;

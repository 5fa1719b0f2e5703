//! Plots as SVG, drawn by `plotters`: the answers' latency over time, and how much two versions agree. Pure.
//!
//! Colours are names of the page's style, which knows light from dark: what is drawn in one of `PALETTE`'s stand-ins
//! becomes a `var(--…)`.

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::rollout::Sample;

/// Pixels, where nothing else is asked for; letters are of one size in all of them.
const WIDTH: u32 = 720;
const NARROWEST: u32 = 280;
const WIDEST: u32 = 1440;
const HEIGHT: u32 = 240;
/// A label of the time axis has so much room at least.
const LABEL: u32 = 110;
/// At least so much time is shown.
const SHORTEST_S: f64 = 60.0;
/// A pause that is longer parts a line.
const PAUSE_MS: i64 = 3_500;
/// Points of one line; more are thinned out, the worst of each few kept.
const POINTS: usize = 300;

const INK: RGBColor = RGBColor(1, 0, 1);
const GRID: RGBColor = RGBColor(1, 0, 2);
const P50: RGBColor = RGBColor(1, 0, 3);
const P99: RGBColor = RGBColor(1, 0, 4);
const SWITCH: RGBColor = RGBColor(1, 0, 5);
const CANDIDATE: RGBColor = RGBColor(1, 0, 6);

const PALETTE: [(&str, &str); 6] = [
    ("\"#010001\"", "\"var(--muted)\""),
    ("\"#010002\"", "\"var(--line)\""),
    ("\"#010003\"", "\"var(--p50)\""),
    ("\"#010004\"", "\"var(--p99)\""),
    ("\"#010005\"", "\"var(--switch)\""),
    ("\"#010006\"", "\"var(--candidate)\""),
];

pub(super) type Error = Box<dyn std::error::Error + Send + Sync>;

/// Median and 99th percentile of each second, of the live version and of a candidate that has a share, with a line where
/// the live version changed. Empty samples are an empty plot.
pub(super) fn latency(samples: &[Sample], now_ms: i64, width: Option<u32>) -> Result<String, Error> {
    let oldest = samples.first().map_or(now_ms, |sample| sample.at_ms);
    let span = ((now_ms - oldest) as f64 / 1e3).max(SHORTEST_S);
    let highest = samples.iter().filter_map(|sample| sample.p99_ms).fold(0.0, f64::max);
    let top = if highest > 0.0 { highest * 1.15 } else { 1.0 };
    let ago = |sample: &Sample| (sample.at_ms - now_ms) as f64 / 1e3;
    draw(width, |area| {
        let mut chart = ChartBuilder::on(area)
            .margin(8)
            .x_label_area_size(26)
            .y_label_area_size(58)
            .build_cartesian_2d(-span..0.0, 0.0..top)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(GRID)
            .axis_style(GRID)
            .label_style(("sans-serif", 13).into_font().color(&INK))
            .x_labels((wide(width) / LABEL).clamp(2, 5) as usize)
            .y_labels(4)
            .x_label_formatter(&|seconds| format!("{:.0} s", seconds))
            .y_label_formatter(&|ms| if top < 5.0 { format!("{ms:.1} ms") } else { format!("{ms:.0} ms") })
            .draw()?;
        for role in ["live", "candidate"] {
            let line = |of: fn(&Sample) -> Option<f64>| lines(samples, role, of);
            let colours = if role == "live" { (P99, P50) } else { (CANDIDATE, CANDIDATE) };
            for (lines, colour) in [(line(|s| s.p99_ms), colours.0), (line(|s| s.p50_ms), colours.1)] {
                for line in lines {
                    let points = thinned(&line).into_iter().map(|(at, ms)| ((at - now_ms) as f64 / 1e3, ms));
                    chart.draw_series(LineSeries::new(points, colour.stroke_width(2)))?;
                }
            }
        }
        let live: Vec<&Sample> = samples.iter().filter(|sample| sample.role == "live").collect();
        for pair in live.windows(2).filter(|pair| pair[0].generation != pair[1].generation) {
            let at = ago(pair[1]);
            chart.draw_series(LineSeries::new([(at, 0.0), (at, top)], SWITCH.stroke_width(2)))?;
            let short: String = pair[1].version.chars().take(16).collect();
            // Where there is room for it.
            let side = if at > -span / 2.0 { HPos::Right } else { HPos::Left };
            let style = ("sans-serif", 13).into_font().color(&SWITCH).pos(Pos::new(side, VPos::Top));
            let label = Text::new(format!(" → {short} "), (at, top), style);
            chart.draw_series([label])?;
        }
        Ok(())
    })
}

/// How many answers agreed how much: bars of equal width from 0 to 1.
pub(super) fn agreement(bars: &[u64], width: Option<u32>) -> Result<String, Error> {
    let top = bars.iter().copied().max().unwrap_or(0).max(1) as f64 * 1.1;
    let each = 1.0 / bars.len().max(1) as f64;
    draw(width, |area| {
        let mut chart = ChartBuilder::on(area)
            .margin(8)
            .x_label_area_size(26)
            .y_label_area_size(58)
            .build_cartesian_2d(0.0..1.0, 0.0..top)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(GRID)
            .axis_style(GRID)
            .label_style(("sans-serif", 13).into_font().color(&INK))
            .x_labels(6)
            .y_labels(4)
            .x_label_formatter(&|share| format!("{share:.1}"))
            .y_label_formatter(&|count| format!("{count:.0}"))
            .draw()?;
        let bar = |(at, count): (usize, &u64)| {
            let left = at as f64 * each;
            Rectangle::new([(left + each * 0.08, 0.0), (left + each * 0.92, *count as f64)], P50.filled())
        };
        chart.draw_series(bars.iter().enumerate().map(bar))?;
        Ok(())
    })
}

fn wide(width: Option<u32>) -> u32 {
    width.unwrap_or(WIDTH).clamp(NARROWEST, WIDEST)
}

fn draw(
    width: Option<u32>,
    on: impl FnOnce(&DrawingArea<SVGBackend<'_>, Shift>) -> Result<(), Error>,
) -> Result<String, Error> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (wide(width), HEIGHT)).into_drawing_area();
        on(&area)?;
        area.present()?;
    }
    Ok(PALETTE.iter().fold(svg, |svg, (stand_in, name)| svg.replace(stand_in, name)))
}

/// A line for each stretch of one generation in one role without a pause: milliseconds since 1970, and the value.
fn lines(samples: &[Sample], role: &str, of: fn(&Sample) -> Option<f64>) -> Vec<Vec<(i64, f64)>> {
    let mut lines: Vec<Vec<(i64, f64)>> = Vec::new();
    let mut last: Option<&Sample> = None;
    for sample in samples.iter().filter(|sample| sample.role == role) {
        let Some(value) = of(sample) else { continue };
        let goes_on =
            last.is_some_and(|last| last.generation == sample.generation && sample.at_ms - last.at_ms <= PAUSE_MS);
        match lines.last_mut().filter(|_| goes_on) {
            Some(line) => line.push((sample.at_ms, value)),
            None => lines.push(vec![(sample.at_ms, value)]),
        }
        last = Some(sample);
    }
    lines
}

fn thinned(line: &[(i64, f64)]) -> Vec<(i64, f64)> {
    let each = line.len().div_ceil(POINTS).max(1);
    line.chunks(each).filter_map(|few| few.iter().copied().max_by(|a, b| a.1.total_cmp(&b.1))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(second: i64, version: &str, generation: u64, p99_ms: Option<f64>) -> Sample {
        let p50_ms = p99_ms.map(|p99| p99 / 2.0);
        let (at_ms, version) = (second * 1000, version.into());
        Sample { at_ms, role: "live", version, generation, requests: 1, blamed: 0, p50_ms, p99_ms }
    }

    #[test]
    fn a_switch_is_marked_and_no_name_becomes_markup() {
        let hostile = "<script>&\"";
        let before = (0..30).map(|at| sample(at, "v1", 1, Some(2.0)));
        let all: Vec<Sample> = before.chain((30..60).map(|at| sample(at, hostile, 2, Some(3.0)))).collect();
        let svg = latency(&all, 60_000, None).unwrap();
        assert!(svg.contains("var(--switch)") && svg.contains("→ &lt;script&gt;&amp;"), "{svg}");
        assert!(!svg.contains("<script") && !svg.contains("#0100"), "{svg}");
        let quiet = latency(&all[..30], 30_000, Some(320)).unwrap();
        assert!(!quiet.contains("var(--switch)") && quiet.contains("var(--p99)"));
        assert!(svg.contains("width=\"720\"") && quiet.contains("width=\"320\""), "{quiet}");
        assert!(latency(&[], 0, Some(u32::MAX)).unwrap().contains("width=\"1440\""));
    }

    #[test]
    fn pauses_and_other_generations_part_lines_and_long_lines_are_thinned() {
        let all = [
            sample(1, "a", 1, Some(1.0)),
            sample(2, "a", 1, None),
            sample(3, "a", 1, Some(1.0)),
            sample(4, "b", 2, Some(1.0)),
            sample(40, "b", 2, Some(1.0)),
        ];
        let lengths: Vec<usize> = lines(&all, "live", |s| s.p99_ms).iter().map(Vec::len).collect();
        assert_eq!(lengths, [2, 1, 1]);
        let long: Vec<(i64, f64)> = (0..1000).map(|at| (at, if at == 501 { 9.0 } else { 1.0 })).collect();
        let short = thinned(&long);
        assert!(short.len() <= POINTS && short.iter().any(|(_, value)| *value == 9.0));
    }

    #[test]
    fn plots_of_nothing_are_plots() {
        assert!(latency(&[], 0, None).unwrap().contains("</svg>"));
        assert!(agreement(&[], None).unwrap().contains("</svg>"));
        assert!(agreement(&[0, 3, 9], Some(0)).unwrap().contains("var(--p50)"));
    }
}

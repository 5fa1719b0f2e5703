//! What a server took over a soak's switches, as a drawing: a small plot for each quantity, in the style of the others.

use super::super::output::human_bytes;
use super::reading::{Quantity, Reading};
use super::soak_report::{Trend, Verdict};
use super::svg::{LEFT, RIGHT, STYLE, WIDTH, escape, push, text};

const TOP: f64 = 64.0;
const PLOT: f64 = 44.0;
const STRIDE: f64 = 78.0;
/// Where plots begin: names and extents stand before them.
const FROM: f64 = LEFT + 150.0;

pub(super) fn draw(model: &str, readings: &[Reading], trends: &[(Quantity, Trend)]) -> String {
    let switches = readings.last().map_or(0, |reading| reading.switches);
    let title = format!("{model}: what the server takes over {switches} switches under load");
    let height = TOP + STRIDE * trends.len() as f64 + 16.0;
    let mut svg = String::with_capacity(8 << 10);
    push(
        &mut svg,
        format_args!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-labelledby=\"t d\">\
             <title id=\"t\">{0}</title><desc id=\"d\">One plot a quantity, from the least to the most of it; the first quarter, \
             shaded, is warm-up.</desc><style>{STYLE}</style>\
             <rect width=\"{WIDTH}\" height=\"{height}\" style=\"fill:var(--bg)\"/>\n",
            escape(&title),
        ),
    );
    text(&mut svg, LEFT, 24.0, "h", &title);
    text(&mut svg, LEFT, 42.0, "d", "each from its least to its most; the first quarter, shaded, is warm-up");
    for (place, (quantity, trend)) in trends.iter().enumerate() {
        plot(&mut svg, TOP + STRIDE * place as f64, readings, (*quantity, trend));
    }
    svg.push_str("</svg>\n");
    svg
}

fn plot(svg: &mut String, top: f64, readings: &[Reading], (quantity, trend): (Quantity, &Trend)) {
    let points: Vec<(u32, u64)> =
        readings.iter().filter_map(|reading| Some((reading.switches, *reading.of.get(&quantity)?))).collect();
    let (Some(least), Some(most)) = (points.iter().map(|at| at.1).min(), points.iter().map(|at| at.1).max()) else {
        return;
    };
    let last = points.last().map_or(1, |at| at.0).max(1);
    let x = |switches: u32| FROM + f64::from(switches) / f64::from(last) * (RIGHT - FROM);
    let bottom = top + PLOT;
    // What never changes is a line through the middle.
    let y = |value: u64| match most - least {
        0 => top + PLOT / 2.0,
        span => bottom - (value - least) as f64 / span as f64 * PLOT,
    };
    let warm = x(last / 4);
    push(svg, format_args!("<path class=\"r\" d=\"M{FROM} {top}H{warm:.1}V{bottom}H{FROM}z\"/>"));
    push(svg, format_args!("<path class=\"f\" d=\"M{FROM} {top}V{bottom}H{RIGHT}\"/>"));
    let line: Vec<String> = points.iter().map(|(at, value)| format!("{:.1} {:.1}", x(*at), y(*value))).collect();
    push(svg, format_args!("<path class=\"l\" d=\"M{}\"/>\n", line.join("L")));
    let shown = |value: u64| if quantity.is_bytes() { human_bytes(value) } else { value.to_string() };
    text(svg, LEFT, top + 12.0, "", quantity.name());
    let verdict = match trend.verdict {
        Verdict::Flat => "flat",
        Verdict::NotFlat => "NOT FLAT",
        Verdict::Unknown | Verdict::Told => "",
    };
    text(svg, LEFT, top + 28.0, "d", verdict);
    text(svg, FROM - 6.0, top + 10.0, "d e", &shown(most));
    if most != least {
        text(svg, FROM - 6.0, bottom, "d e", &shown(least));
    }
    text(svg, FROM, bottom + 14.0, "d m", "0");
    text(svg, RIGHT, bottom + 14.0, "d e", &format!("{last} switches"));
}

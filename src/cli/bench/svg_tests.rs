//! The drawing of a swap bench stays small, well formed and readable whatever was measured.

use super::super::load::{Outcome, Recording};
use super::*;

fn drawn(run: &Run) -> String {
    draw(run, &Words::of_requests(run))
}

const MS: u64 = 1_000_000;

/// A run of so many switches of 900 ms each, one a second, with requests every `every` ns.
fn run(switches: u64, every: u64) -> Run {
    let until = (switches + 2) * 1000 * MS;
    let sample = |number: u64| {
        let intended = number * every;
        let slow = if number.is_multiple_of(997) { 40 * MS } else { MS + number % 13 * MS / 10 };
        let outcome = if number % 1009 == 1 { Outcome::Status(503) } else { Outcome::Status(200) };
        Sample { intended, started: intended, ended: intended + slow, stamp: 0, outcome }
    };
    let cycle = |number: u64| {
        let at = |ms: u64| ((number + 1) * 1000 + ms) * MS;
        let span = |phase: &str, from, to| Span { phase: phase.into(), from: at(from), to: at(to) };
        let spans = vec![
            span("reserving", 0, 1),
            span("loading", 1, 200),
            span("warming", 200, 300),
            span("validating", 300, 500),
            span("observing", 500, 800),
            span("reclaiming", 800, 900),
        ];
        let (from, to) = ("v1 <b>&\u{1b}".to_owned(), "v2".to_owned());
        Cycle { from, to, asked: at(0), answered: at(500), settled: at(900), spans, ..Cycle::default() }
    };
    Run {
        model: "digits".into(),
        rate: 1e9 / every as f64,
        capacity: None,
        steady_from: 0,
        until,
        generator_cpu: None,
        wanted: switches as u32,
        cycles: (0..switches).map(cycle).collect(),
        epochs: Vec::new(),
        recording: Recording { samples: (0..until / every).map(sample).collect(), ..Recording::default() },
    }
}

#[test]
fn a_long_run_stays_below_60_kb_and_is_well_formed() {
    let svg = drawn(&run(50, 250_000));
    assert!(svg.len() < 60_000, "{} bytes", svg.len());
    assert_well_formed(&svg);
    for part in ["<title", "<desc", "prefers-color-scheme:dark", "promote answered", ">loading<", "reserving 1.00 ms"] {
        assert!(svg.contains(part), "{part}");
    }
    assert!(!svg.contains("NaN") && !svg.contains("inf"));
}

#[test]
fn a_run_without_answers_or_switches_is_drawn_empty() {
    for mut run in [run(0, 10 * MS), run(1, 10 * MS)] {
        run.recording.samples.clear();
        let svg = drawn(&run);
        assert_well_formed(&svg);
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }
    assert!(drawn(&run(0, 10 * MS)).contains("no switch was completed"));
}

#[test]
fn names_cannot_break_out_of_the_drawing() {
    let svg = drawn(&run(1, MS));
    assert!(svg.contains("v1 &lt;b&gt;&amp;\\u{1b}") && !svg.contains("<b>"));
}

/// Every element that opens closes, in order.
fn assert_well_formed(svg: &str) {
    let mut open: Vec<&str> = Vec::new();
    for tag in svg.split('<').skip(1).map(|rest| rest.split('>').next().unwrap()) {
        let name = tag.trim_start_matches('/').split([' ', '/']).next().unwrap();
        if tag.starts_with('/') {
            assert_eq!(open.pop(), Some(name), "{tag}");
        } else if !tag.ends_with('/') {
            open.push(name);
        }
    }
    assert!(open.is_empty(), "{open:?}");
}

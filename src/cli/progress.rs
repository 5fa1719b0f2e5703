//! Telling how a rollout goes: bars on a terminal, plain lines elsewhere, nothing beside `--json`.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::output::{human_bytes, human_ms, note, printable};
use super::rollout::{Bytes, Rollout};

/// Progress goes to standard error, so that standard output holds the result only.
#[derive(Debug)]
pub(super) struct Narrator {
    style: Style,
    phase: String,
    since: Instant,
}

#[derive(Debug)]
enum Style {
    Bar(ProgressBar),
    Lines(Lines),
    Quiet,
}

impl Narrator {
    pub(super) fn new(json: bool) -> Self {
        let style = if json {
            Style::Quiet
        } else if std::io::stderr().is_terminal() {
            let bar = ProgressBar::new_spinner().with_style(spinner());
            bar.enable_steady_tick(Duration::from_millis(100));
            Style::Bar(bar)
        } else {
            Style::Lines(Lines::default())
        };
        Narrator { style, phase: String::new(), since: Instant::now() }
    }

    pub(super) fn tell(&mut self, rollout: &Rollout) {
        let entered = rollout.phase != self.phase;
        let ended = entered.then(|| std::mem::replace(&mut self.phase, rollout.phase.clone()));
        let took = self.since.elapsed();
        if entered {
            self.since = Instant::now();
        }
        match &mut self.style {
            Style::Quiet => {}
            Style::Bar(bar) => {
                if let Some(phase) = ended.filter(|phase| !phase.is_empty()) {
                    bar.println(format!("  {:<12} {}", printable(&phase), human_ms(took.as_secs_f64() * 1e3)));
                    bar.reset_elapsed();
                }
                draw(bar, rollout);
            }
            Style::Lines(lines) => {
                if let Some(line) = lines.line(rollout, Instant::now()) {
                    note(&line);
                }
            }
        }
    }

    pub(super) fn finish(self) {
        if let Style::Bar(bar) = self.style {
            bar.finish_and_clear();
        }
    }
}

fn draw(bar: &ProgressBar, rollout: &Rollout) {
    bar.set_message(printable(&rollout.phase));
    match rollout.progress {
        Some(Bytes { done, total }) if total > 0 => {
            if bar.length() != Some(total) {
                bar.set_style(with_bytes());
                bar.set_length(total);
            }
            bar.set_position(done.min(total));
        }
        _ => {
            if bar.length().is_some() {
                bar.set_style(spinner());
                bar.unset_length();
            }
        }
    }
}

fn spinner() -> ProgressStyle {
    ProgressStyle::with_template("{spinner} {msg:<12} {elapsed}").unwrap_or_else(|_| ProgressStyle::default_spinner())
}

fn with_bytes() -> ProgressStyle {
    let template = "{spinner} {msg:<12} [{bar:32}] {binary_bytes}/{binary_total_bytes} {elapsed}";
    ProgressStyle::with_template(template).map_or_else(|_| ProgressStyle::default_bar(), |s| s.progress_chars("=> "))
}

/// One line a phase, and within one no more than one each tenth or five seconds.
#[derive(Debug, Default)]
struct Lines {
    last: Option<(String, u64, Instant)>,
}

impl Lines {
    const EVERY: Duration = Duration::from_secs(5);

    fn line(&mut self, rollout: &Rollout, now: Instant) -> Option<String> {
        let tenth = rollout.progress.and_then(|p| (p.done.min(p.total) * 10).checked_div(p.total)).unwrap_or(0);
        if let Some((phase, told, at)) = &self.last
            && *phase == rollout.phase
            && (*told == tenth || (tenth < 10 && now.duration_since(*at) < Self::EVERY))
        {
            return None;
        }
        self.last = Some((rollout.phase.clone(), tenth, now));
        let phase = printable(&rollout.phase);
        Some(match rollout.progress {
            Some(Bytes { done, total }) if total > 0 => {
                format!("{phase} {} of {}", human_bytes(done), human_bytes(total))
            }
            _ => phase,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(phase: &str, done: u64, total: u64) -> Rollout {
        Rollout { phase: phase.into(), progress: Some(Bytes { done, total }), ..Rollout::default() }
    }

    #[test]
    fn plain_lines_tell_each_phase_once_and_bytes_now_and_then() {
        let mut lines = Lines::default();
        let start = Instant::now();
        let later = |s| start + Duration::from_secs(s);
        assert_eq!(lines.line(&at("reserving", 0, 0), start).as_deref(), Some("reserving"));
        assert_eq!(lines.line(&at("reserving", 0, 0), later(60)), None);
        assert_eq!(lines.line(&at("loading", 0, 2048), later(60)).as_deref(), Some("loading 0 B of 2.00 KiB"));
        assert_eq!(lines.line(&at("loading", 1024, 2048), later(61)), None);
        assert_eq!(lines.line(&at("loading", 1024, 2048), later(66)).as_deref(), Some("loading 1.00 KiB of 2.00 KiB"));
        assert_eq!(lines.line(&at("loading", 2048, 2048), later(66)).as_deref(), Some("loading 2.00 KiB of 2.00 KiB"));
        assert_eq!(lines.line(&at("warming", 0, 0), later(66)).as_deref(), Some("warming"));
    }
}

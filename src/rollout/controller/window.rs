//! The observation window: looking once a second and on every fault, and acting on what is seen.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;

use super::super::gate::Findings;
use super::super::judge::{Against, FALSE_ALARMS, Judge, Verdict};
use super::super::recheck;
use super::super::state::{Event, Phase};
use super::calm::Baseline;
use super::{Controller, Report, Window};
use crate::repository::{Limit, ObserveConfig};

pub(super) const LOOK: Duration = Duration::from_secs(1);
/// How often the ledger is told what has been seen: so much of it a crash may cost.
const KEEP: Duration = Duration::from_secs(10);
/// After an answer that may prove a version slow: a few of them are judged together.
pub(super) const SOON: Duration = Duration::from_millis(20);

impl Controller {
    /// Opens the window, or ends it at once when there is nothing to go back to or it was not wanted.
    pub(super) fn start_window(&mut self) -> Option<Event> {
        let active = self.active.as_mut()?;
        let length = active.options.observe.unwrap_or(active.config.observe.window);
        if self.previous.is_none() || length.is_zero() {
            return Some(Event::WindowOver);
        }
        let now = Instant::now();
        let previous = self.slot.route().and_then(|route| route.previous.clone());
        let calm = previous.as_ref().zip(self.calm.as_ref()).and_then(|(previous, calm)| calm.before(previous));
        let (before, earlier) = match calm {
            Some(Baseline { before, earlier }) => (Some(before), earlier),
            None => (self.previous.as_ref().map(|previous| previous.stats.recently()), None),
        };
        let rules = ObserveConfig { window: length, ..active.config.observe.clone() };
        if let Some(p99) = before.as_ref().and_then(|before| before.quantile(0.99)) {
            active.recorder.figure("baseline_p99_ms", p99.as_secs_f64() * 1e3);
        }
        if let Some(live) = &self.live {
            // Of no window yet.
            let _ = live.stats.accused();
        }
        let mut rules_that_hold = rules.rules();
        if active.cold_rollback {
            // Being slower than what was gone back from is no reason to go there again.
            rules_that_hold.retain(|rule| !matches!(rule.limit, Limit::Times(_)));
        }
        let judge = Judge::new(rules_that_hold, FALSE_ALARMS);
        active.window = Some(Window {
            since: now,
            until: now + length,
            judge: match earlier {
                Some(earlier) => judge.and_earlier(earlier),
                None => judge,
            },
            before,
            next_look: now + LOOK,
            next_told: now,
            hastened: None,
            next_golden: (!rules.golden_every.is_zero()).then(|| now + rules.golden_every),
            golden_runs: 0,
        });
        self.begin_shadow();
        None
    }

    /// The window is as long as was asked later; one that has lasted so long already ends at the next look.
    pub(super) async fn observe_for(&mut self, length: Duration) {
        let Some(window) = self.active.as_mut().and_then(|active| active.window.as_mut()) else { return };
        let until = window.since + length;
        if until == window.until {
            return;
        }
        window.until = until;
        let note = self.audit("observe", json!({ "window_ms": length.as_millis() as u64 }));
        self.ctx.journal.note(note).await;
    }

    /// Looks after the rollout: progress while it loads, the rules while it is observed.
    pub(super) async fn look(&mut self, fault: bool) {
        let Some(active) = &mut self.active else { return };
        if active.state.phase == Phase::Loading && !fault {
            // `sleep_until` in the loop spaces these.
            active.tell_progress();
            return;
        }
        let told = active.looked + LOOK > Instant::now();
        if !told {
            active.looked = Instant::now();
            self.tell_shadow();
            self.keep();
        }
        let Some(active) = &mut self.active else { return };
        if matches!(active.state.phase, Phase::Ready | Phase::Canary | Phase::Experiment) {
            return self.look_at_candidate(told).await;
        }
        let (Some(window), Some(live)) = (&mut active.window, &self.live) else { return };
        // Asked for first: what is blamed after this is judged at the next look, which it calls for.
        let accused = live.stats.accused();
        let now = Instant::now();
        let seen = live.stats.observed();
        let seen = match &active.shadow {
            Some(run) => run.seen().add_to(seen),
            None => seen,
        };
        let against = window.before.as_ref().map_or(Against::Nothing, Against::Before);
        let breach = window.judge.look(now.duration_since(window.since), &seen, against);
        live.stats.watch_for(window.judge.leaning());
        let over = now >= window.until;
        window.next_look = now + LOOK;
        let hastened = window.hastened.take();
        let golden = match window.next_golden {
            Some(at) if at <= now => {
                // Set again when its result is in: one run at a time.
                window.next_golden = None;
                true
            }
            _ => false,
        };
        if fault || over || breach.is_some() || window.next_told <= now {
            window.next_told = now + LOOK;
            let since = live.stats.window();
            active.recorder.figure(
                "window",
                json!({
                    "answered": since.answered, "blamed": since.blamed, "nonfinite": since.nonfinite,
                    "failovers": since.failovers, "unexplained": since.unexplained,
                    "p50_ms": since.p50.map(|d| d.as_secs_f64() * 1e3), "p99_ms": since.p99.map(|d| d.as_secs_f64() * 1e3),
                    "golden_runs": window.golden_runs,
                }),
            );
            let verdicts = window.judge.verdicts(&seen, against);
            active.recorder.figure("verdicts", verdicts.iter().map(Verdict::to_json).collect::<Vec<_>>());
            if breach.is_none() {
                active.recorder.publish();
            }
        }
        let apart = active.shadow.as_ref().and_then(|run| run.seen().breach());
        if golden && !over && breach.is_none() {
            self.run_golden();
        }
        match (breach, apart) {
            (Some(breach), _) => self.broken(&breach, accused.or(hastened).unwrap_or(now)).await,
            (None, Some(apart)) => self.disagrees(&apart).await,
            (None, None) if over => self.feed_late(Event::WindowOver).await,
            (None, None) => {}
        }
    }

    /// Has the ledger know what has been seen of a rollout that may last, now and then. Nobody waits for it.
    fn keep(&mut self) {
        let Some(active) = self.active.as_mut().filter(|active| active.kept.elapsed() >= KEEP) else { return };
        active.kept = Instant::now();
        let (journal, record) = (self.ctx.journal.clone(), active.recorder.record());
        tokio::spawn(async move {
            if let Err(error) = journal.with(move |ledger| ledger.refresh_rollout(&record)).await {
                tracing::warn!(%error, "what was seen of a rollout is not in the ledger yet");
            }
        });
    }

    /// Goes back at once, and tells of it then. `since` is when the sample was there that proves it.
    pub(super) async fn broken(&mut self, breach: &Verdict, since: Instant) {
        let reason = format!("a rule was broken: {breach}");
        if let Some(active) = &mut self.active {
            active.recorder.figure("verdict", breach.to_json());
            active.proven = Some(since);
        }
        self.feed_late(Event::Breach(reason)).await;
        // What is told says itself that it is of a rule.
        self.alert("breach", &breach.to_string()).await;
    }

    /// An answer was slow, of a version that is likely to be found slow: it is looked at soon.
    pub(super) fn hasten(&mut self) {
        let now = Instant::now();
        let Some(active) = &mut self.active else { return };
        if let Some(sharing) = &mut active.sharing {
            return sharing.hasten(now);
        }
        let Some(window) = &mut active.window else { return };
        window.hastened.get_or_insert(now);
        window.next_look = window.next_look.min(now + SOON);
    }

    fn run_golden(&mut self) {
        let Some(active) = &self.active else { return };
        let Some(watched) = active.watched.clone() else { return };
        let (ctx, reporter, rollout) = (Arc::clone(&self.ctx), self.reporter.clone(), active.id.clone());
        tokio::spawn(async move {
            let findings = recheck::recheck(ctx, watched).await;
            let _ = reporter.send(Report::Golden { rollout, findings });
        });
    }

    /// Takes the result of golden cases run again; a failing one is a breach, whose reason is returned.
    pub(super) fn golden_seen(&mut self, findings: Option<Findings>) -> Option<String> {
        let active = self.active.as_mut()?;
        let every = active.config.observe.golden_every;
        let window = active.window.as_mut()?;
        window.next_golden = Some(Instant::now() + every);
        let findings = findings?;
        window.golden_runs += 1;
        if findings.failed() == 0 {
            return None;
        }
        let total = findings.checks.len();
        let failed = findings.failed();
        active.recorder.gate(findings.checks.into_iter().filter(|check| !check.passed).collect());
        Some(format!("{failed} of {total} golden checks failed in the window"))
    }

    /// Something that a person should hear of.
    pub(super) async fn alert(&self, what: &str, reason: &str) {
        let to = self.active.as_ref().map(|active| active.recorder.view().record.to.clone());
        let note = self.audit("alert", json!({ "what": what, "reason": reason, "to": to }));
        self.ctx.journal.note(note).await;
    }
}

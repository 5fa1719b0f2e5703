//! What a crash cut off, ended in the ledger at the next start by what the ledger says of it.
//!
//! Must not know what is served then: that is what the ledger says is live.

use serde::Deserialize;
use serde_json::json;

use super::super::journal::{event, now_ms};
use super::super::state::{Ending, Phase};
use super::Controller;
use crate::error::Result;
use crate::ledger::{Event, Filter, Ledger, Live, NewEvent, RolloutRecord};

/// What the ledger has of a rollout that is open in it, and that nobody is working on.
struct Left {
    record: RolloutRecord,
    /// Its version is what is live. What is live is written down with the switch, or with going back; the rollout's own record
    /// follows, and a disk that was full may never have got it.
    is_live: bool,
    /// A fault of the version was written down before the process ended.
    fault: bool,
    /// The version was taken back already, or its share of requests was.
    taken_back: Option<Event>,
    /// What it had come to, written when only memory was still awaited.
    ending: Option<Ending>,
}

/// How it ends.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// Its version ended the process: the one before it is live again.
    Guilty,
    /// It had come to an end, and only memory was still awaited, which went with the process.
    Was(Ending),
    /// It had come to none.
    Cut(String),
}

/// How a version is taken back that ended the process.
const COLD: &str = "cold";

fn reason_of(event: &Event) -> Option<String> {
    event.body["reason"].as_str().map(str::to_owned)
}

impl Left {
    fn of(ledger: &Ledger, record: RolloutRecord) -> Result<Left> {
        let id = &record.id;
        let shares = ledger.rollout_events(id, "share")?.into_iter().filter(|share| share.body["taken_back"] == true);
        let taken_back = ledger.rollout_events(id, "rolled_back")?.into_iter().chain(shares).next();
        let live = ledger.live(&record.model)?;
        let is_live = live.is_some_and(|live| live.rollout.as_ref() == Some(id) && live.version == record.to);
        let fault = !ledger.rollout_events(id, "fault")?.is_empty();
        let phases = ledger.rollout_events(id, "phase")?;
        let ending = phases.iter().rev().find_map(|phase| {
            let ends = Phase::deserialize(phase.body.get("ends")?).ok()?;
            Some(Ending { phase: ends, reason: reason_of(phase) })
        });
        Ok(Left { record, is_live, fault, taken_back, ending })
    }

    fn end(&self) -> End {
        let to = &self.record.to;
        match &self.taken_back {
            _ if self.is_live && self.fault && self.record.from.is_some() => End::Guilty,
            Some(event) if !self.is_live => End::Was(Ending { phase: Phase::RolledBack, reason: reason_of(event) }),
            _ => match &self.ending {
                Some(ending) => End::Was(ending.clone()),
                None if self.is_live => End::Cut(format!("the process died in the window; '{to}' stays live")),
                None => End::Cut(format!("the process died while it was {}", self.record.phase)),
            },
        }
    }

    /// How the version was taken back, where it was: also by an earlier start that died before it had written that down.
    fn kind(&self, end: &End) -> Option<String> {
        match (end, &self.taken_back) {
            (End::Guilty, _) => Some(COLD.to_owned()),
            (End::Was(Ending { phase: Phase::RolledBack, .. }), Some(event)) => {
                Some(event.body["kind"].as_str().unwrap_or("instant").to_owned())
            }
            _ => self.record.kind.clone(),
        }
    }
}

impl Controller {
    /// Ends, in the ledger, what a crash cut off. Says whether a version was taken back for having crashed.
    pub(super) async fn end_interrupted(&self) -> Result<bool> {
        let filter = Filter { model: Some(self.slot.name().to_owned()), limit: 100, open_only: true };
        let left = self.ctx.journal.with(move |ledger| {
            let open = ledger.rollouts(&filter)?.into_iter();
            open.map(|record| Left::of(ledger, record)).collect::<Result<Vec<_>>>()
        });
        let mut crashed = false;
        for left in left.await? {
            let end = left.end();
            crashed |= end == End::Guilty;
            let kind = left.kind(&end);
            self.end_one(RolloutRecord { kind, ..left.record }, end).await?;
        }
        Ok(crashed)
    }

    async fn end_one(&self, record: RolloutRecord, end: End) -> Result<()> {
        let (from, to) = (record.from.clone(), record.to.clone());
        let (phase, reason, kind, body) = match &end {
            // As of every way back: from the version that is given up.
            End::Guilty => {
                let body = json!({ "reason": "crash", "from": to, "to": from, "kind": COLD });
                (Phase::RolledBack, Some("crash".to_owned()), "rolled_back", body)
            }
            // That it was taken back is told already; this is its end.
            End::Was(Ending { phase, reason }) => {
                (*phase, reason.clone(), "phase", json!({ "phase": phase, "to": to, "reason": reason }))
            }
            End::Cut(reason) => {
                let body = json!({ "reason": reason, "from": from, "to": to });
                (Phase::Interrupted, Some(reason.clone()), "interrupted", body)
            }
        };
        let (model, rollout) = (&record.model, &record.id);
        tracing::warn!(model, rollout, phase = phase.name(), reason, "ended what a crash cut off");
        let note = event(model, Some(rollout), kind, body);
        let record = closed(record, phase, reason);
        match end {
            End::Guilty => self.back_to_the_one_before(record, note).await,
            End::Was(_) | End::Cut(_) => {
                // What was live stays so, written down already: that this cannot be (a full disk) is no reason not to serve it.
                let id = record.id.clone();
                if let Err(error) = self.ctx.journal.save(record, note).await {
                    tracing::error!(%error, rollout = id, "the end of a rollout could not be written to the ledger");
                }
                Ok(())
            }
        }
    }

    async fn back_to_the_one_before(&self, record: RolloutRecord, note: NewEvent) -> Result<()> {
        let (model, version) = (record.model.clone(), record.from.clone().unwrap_or_default());
        let manifest = {
            let (model, version) = (model.clone(), version.clone());
            self.ctx.journal.with(move |ledger| ledger.manifest(&model, &version)).await?
        };
        let digest = manifest.and_then(|m| m["digest"].as_str().map(str::to_owned)).unwrap_or_default();
        let rollout = Some(record.id.clone());
        let live = Live { model, version, digest, rollout, since_ms: now_ms(), previous: None };
        self.ctx.journal.commit(live, note).await?;
        self.ctx.journal.count(&record);
        self.ctx.journal.with(move |ledger| ledger.save_rollout(&record)).await
    }
}

fn closed(mut record: RolloutRecord, phase: Phase, reason: Option<String>) -> RolloutRecord {
    record.phase = phase.name().into();
    record.ended_ms = Some(now_ms());
    // Whoever promoted may have said why.
    let given = if reason.is_some() { record.reason.take() } else { None };
    record.figures.extend(given.map(|given| ("promote_reason".to_owned(), given.into())));
    record.reason = reason.or(record.reason);
    record
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn left(phase: &str, from: Option<&str>) -> Left {
        let record = RolloutRecord {
            phase: phase.into(),
            from: from.map(str::to_owned),
            to: "v2".into(),
            ..RolloutRecord::default()
        };
        Left { record, is_live: false, fault: false, taken_back: None, ending: None }
    }

    fn taken_back(reason: Value) -> Option<Event> {
        Some(Event {
            seq: 7,
            prev_hash: String::new(),
            hash: String::new(),
            model: "m".into(),
            rollout: None,
            kind: "rolled_back".into(),
            at_ms: 0,
            actor: None,
            body: json!({ "reason": reason }),
        })
    }

    #[test]
    fn what_was_cut_off_ends_as_what_it_had_come_to() {
        let back = || taken_back(json!("error_rate 0.5 > 0.01"));
        let was = |phase, reason: Option<&str>| End::Was(Ending { phase, reason: reason.map(str::to_owned) });
        let rolled_back = was(Phase::RolledBack, Some("error_rate 0.5 > 0.01"));
        // The record is as it was in the window: what is in force was written, its record was not.
        assert_eq!(Left { taken_back: back(), ..left("observing", Some("v1")) }.end(), rolled_back);
        let canary = Left { taken_back: back(), ..left("canary", Some("v1")) };
        assert_eq!((canary.kind(&canary.end()).as_deref(), canary.end()), (Some("instant"), rolled_back));
        let live = |phase, from| Left { is_live: true, ..left(phase, from) };
        let come_to = |phase, reason: Option<&str>| Some(Ending { phase, reason: reason.map(str::to_owned) });
        let settled = Left { ending: come_to(Phase::Settled, None), ..live("reclaiming", Some("v1")) };
        assert_eq!(settled.end(), was(Phase::Settled, None));
        for phase in [Phase::Refused, Phase::Failed, Phase::Aborted] {
            let left = Left { ending: come_to(phase, Some("so it is")), ..left("reclaiming", Some("v1")) };
            assert_eq!(left.end(), was(phase, Some("so it is")));
        }
        assert_eq!(Left { fault: true, ..live("observing", Some("v1")) }.end(), End::Guilty);
        let guilty = Left { fault: true, ..live("reclaiming", Some("v1")) };
        assert_eq!((guilty.kind(&End::Guilty).as_deref(), guilty.end()), (Some("cold"), End::Guilty));
        // The start that took it back died before the rollout had its end.
        let mut event = taken_back(json!("crash"));
        event.as_mut().unwrap().body["kind"] = json!(COLD);
        let twice = Left { taken_back: event, fault: true, ..left("observing", Some("v1")) };
        assert_eq!(twice.kind(&twice.end()).as_deref(), Some("cold"));
        // With nothing to go back to, a fault is nobody's end.
        for (left, words) in [
            (Left { fault: true, ..live("observing", None) }, "in the window; 'v2' stays live"),
            (live("warming", Some("v1")), "in the window; 'v2' stays live"),
            (left("loading", Some("v1")), "died while it was loading"),
            (Left { fault: true, ..left("validating", Some("v1")) }, "died while it was validating"),
        ] {
            assert!(matches!(left.end(), End::Cut(reason) if reason.contains(words)), "{words}");
        }
    }
}

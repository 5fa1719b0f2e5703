//! What is worth telling, from the events that the ledger records.
//!
//! Pure: an event in, an alert or nothing out. It must not know who is told, or how.

use super::config::Cause;
use crate::ledger::Event;

/// One thing that a person should hear of.
#[derive(Debug, Clone, PartialEq)]
pub struct Alert {
    /// The event's number in the ledger: the same however often it is told. 0 of a test, below 0 of what the ledger could not take.
    pub seq: i64,
    pub cause: Cause,
    /// `breach`, `not_serving`, `rolled_back`: of an alert what raised it, else the cause itself.
    pub what: String,
    pub model: String,
    /// The version that it is about.
    pub version: Option<String>,
    pub rollout: Option<String>,
    /// One sentence.
    pub message: String,
    /// Unix time in milliseconds.
    pub at_ms: i64,
    /// An operator asked for it.
    pub asked: bool,
    /// Nothing has happened: somebody wants to know whether it would be heard.
    pub test: bool,
}

impl Alert {
    /// What an event tells, if anything.
    pub fn of(event: &Event) -> Option<Alert> {
        let text = |field: &str| event.body[field].as_str().map(str::to_owned);
        let (from, to, reason) = (text("from"), text("to"), text("reason"));
        let (cause, version) = match event.kind.as_str() {
            "alert" => (Cause::Alert, to.clone()),
            // It tells which way it went: from the version that is given up.
            "rolled_back" => (Cause::RolledBack, from.clone()),
            // Before it was live.
            "share" if event.body["taken_back"] == true => (Cause::RolledBack, from.clone()),
            "interrupted" => (Cause::Interrupted, to.clone()),
            "switched" => (Cause::Switched, to.clone()),
            "phase" => match text("phase")?.as_str() {
                "refused" => (Cause::Refused, to.clone()),
                "failed" => (Cause::Failed, to.clone()),
                "aborted" => (Cause::Aborted, to.clone()),
                "settled" => (Cause::Settled, to.clone()),
                _ => return None,
            },
            _ => return None,
        };
        let named = |version: &Option<String>| version.clone().unwrap_or_else(|| "a version".to_owned());
        let said = match cause {
            Cause::Alert if event.body["what"] == "not_serving" => "it does not serve".to_owned(),
            Cause::Alert => "a rule was broken".to_owned(),
            Cause::RolledBack => match &to {
                Some(to) => format!("{} was rolled back to {to}", named(&from)),
                None => format!("{} was rolled back", named(&from)),
            },
            Cause::Refused => format!("{} was refused", named(&to)),
            Cause::Failed => format!("{} could not be brought up", named(&to)),
            Cause::Aborted => format!("the rollout of {} was aborted", named(&to)),
            Cause::Interrupted => format!("the process died in the rollout of {}", named(&to)),
            Cause::Switched => format!("{} is live", named(&to)),
            Cause::Settled => format!("{} has settled", named(&to)),
        };
        let reason = reason.map_or_else(String::new, |reason| format!(": {reason}"));
        Some(Alert {
            seq: event.seq,
            cause,
            what: text("what").filter(|_| cause == Cause::Alert).unwrap_or_else(|| cause.name().to_owned()),
            model: event.model.clone(),
            version,
            rollout: event.rollout.clone(),
            message: format!("{}: {said}{reason}", event.model),
            at_ms: event.at_ms,
            asked: event.body["asked"] == true,
            test: false,
        })
    }

    /// One that says that it is none.
    pub fn test(at_ms: i64) -> Alert {
        Alert {
            seq: 0,
            cause: Cause::Alert,
            what: "test".to_owned(),
            model: "cutover".to_owned(),
            version: None,
            rollout: None,
            message: "cutover: this is a test, nothing has happened".to_owned(),
            at_ms,
            asked: false,
            test: true,
        }
    }

    /// `critical`, `warning` or `info`, as receivers sort them.
    pub fn severity(&self) -> &'static str {
        match self.cause {
            _ if self.test => "info",
            Cause::RolledBack if self.asked => "warning",
            Cause::Alert | Cause::RolledBack | Cause::Interrupted => "critical",
            Cause::Refused | Cause::Failed => "warning",
            Cause::Aborted | Cause::Switched | Cause::Settled => "info",
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use serde_json::{Value, json};

    pub(in super::super) fn event(kind: &str, body: Value) -> Event {
        Event {
            seq: 7,
            prev_hash: String::new(),
            hash: String::new(),
            model: "digits".to_owned(),
            rollout: Some("digits-3".to_owned()),
            kind: kind.to_owned(),
            at_ms: 1_700_000_000_123,
            actor: None,
            body,
        }
    }

    #[test]
    fn what_a_person_should_hear_of_is_told_with_its_reason_and_the_rest_is_not() {
        for (kind, body, what, version, message) in [
            (
                "alert",
                json!({"what": "breach", "reason": "p99 is 9 ms"}),
                "breach",
                None,
                "digits: a rule was broken: p99 is 9 ms",
            ),
            (
                "alert",
                json!({"what": "not_serving", "reason": "its folder is gone", "to": null}),
                "not_serving",
                None,
                "digits: it does not serve: its folder is gone",
            ),
            (
                "rolled_back",
                json!({"from": "v2", "to": "v1", "reason": "as asked"}),
                "rolled_back",
                Some("v2"),
                "digits: v2 was rolled back to v1: as asked",
            ),
            (
                "share",
                json!({"percent": 0, "taken_back": true, "from": "v2", "to": "v1", "reason": "a rule"}),
                "rolled_back",
                Some("v2"),
                "digits: v2 was rolled back to v1: a rule",
            ),
            (
                "phase",
                json!({"phase": "refused", "to": "v3", "reason": "6 of 45 failed"}),
                "refused",
                Some("v3"),
                "digits: v3 was refused: 6 of 45 failed",
            ),
            (
                "phase",
                json!({"phase": "failed", "to": "v3"}),
                "failed",
                Some("v3"),
                "digits: v3 could not be brought up",
            ),
            ("switched", json!({"from": "v1", "to": "v2"}), "switched", Some("v2"), "digits: v2 is live"),
            (
                "interrupted",
                json!({"reason": "the process died while it was loading"}),
                "interrupted",
                None,
                "digits: the process died in the rollout of a version: the process died while it was loading",
            ),
        ] {
            let alert = Alert::of(&event(kind, body)).unwrap();
            assert_eq!(
                (alert.what.as_str(), alert.version.as_deref(), alert.message.as_str()),
                (what, version, message)
            );
        }
        for (kind, body) in [
            ("phase", json!({"phase": "loading", "to": "v2"})),
            ("phase", json!({})),
            ("manifest", json!({"version": "v1"})),
            ("observe", json!({"window_ms": 1})),
            ("share", json!({"percent": 25, "step": 1})),
        ] {
            assert_eq!(Alert::of(&event(kind, body)), None, "{kind}");
        }
    }

    #[test]
    fn going_back_as_asked_wakes_nobody() {
        for (asked, severity) in [(true, "warning"), (false, "critical")] {
            let body = json!({"from": "v2", "to": "v1", "reason": "as said", "asked": asked});
            assert_eq!(Alert::of(&event("rolled_back", body)).unwrap().severity(), severity);
        }
    }
}

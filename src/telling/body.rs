//! An alert as each kind of receiver takes it, and how it is signed.
//!
//! Pure. Sources: Slack, "Sending messages using incoming webhooks" and "Formatting text" (what is escaped); Alertmanager's
//! `api/v2/openapi.yaml` (`postableAlerts`); the signature is Stripe's scheme ("Verify webhook signatures manually"): the time is
//! signed with the body, so that what was overheard cannot be sent again later.

use std::time::Duration;

use ring::hmac;
use serde_json::{Value, json};

use super::alert::Alert;
use super::config::Kind;
use crate::ledger::rfc3339;

/// Holds `t=<Unix time in seconds>,v1=<HMAC-SHA256 of "<t>.<body>" in hexadecimal>`.
pub(super) const SIGNATURE: &str = "x-cutover-signature";
/// The same for every attempt to tell one alert.
pub(super) const DELIVERY: &str = "x-cutover-delivery";

/// What is posted. `firing`: how long Alertmanager is to hold it for one that goes on.
pub(super) fn body(kind: Kind, alert: &Alert, firing: Duration) -> Value {
    match kind {
        Kind::Json => plain(alert),
        Kind::Slack => slack(alert),
        Kind::Alertmanager => alertmanager(alert, firing),
    }
}

fn plain(alert: &Alert) -> Value {
    json!({
        "id": alert.seq, "what": alert.what, "severity": alert.severity(), "model": alert.model,
        "version": alert.version, "rollout": alert.rollout, "message": alert.message,
        "at": rfc3339(alert.at_ms), "at_ms": alert.at_ms, "test": alert.test,
    })
}

fn slack(alert: &Alert) -> Value {
    // The only three that mean something there.
    let escaped = |text: &str| text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let place = alert.rollout.as_ref().map_or_else(String::new, |rollout| format!(" (rollout {})", escaped(rollout)));
    json!({ "text": format!("[{}] {}{place}", alert.severity(), escaped(&alert.message)) })
}

/// Labels say what it is and are all that it is told apart by; so no label holds what differs from one to the next by itself.
fn alertmanager(alert: &Alert, firing: Duration) -> Value {
    let mut labels = json!({
        "alertname": alertname(&alert.what), "severity": alert.severity(), "service": "cutover", "model": alert.model,
    });
    for (name, value) in [("version", &alert.version), ("rollout", &alert.rollout)] {
        if let Some(value) = value {
            labels[name] = json!(value);
        }
    }
    let ends = alert.at_ms.saturating_add(i64::try_from(firing.as_millis()).unwrap_or(i64::MAX));
    json!([{
        "labels": labels, "annotations": { "summary": alert.message },
        "startsAt": rfc3339(alert.at_ms), "endsAt": rfc3339(ends),
    }])
}

/// `rolled_back` as `CutoverRolledBack`.
fn alertname(what: &str) -> String {
    let words = what.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    let named = words.map(|word| word[..1].to_ascii_uppercase() + &word[1..]);
    format!("Cutover{}", named.collect::<String>())
}

/// The header's value for a body that is sent at this time, in seconds.
pub(super) fn signature(secret: &[u8], at: u64, body: &[u8]) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
    let mut context = hmac::Context::with_key(&key);
    context.update(at.to_string().as_bytes());
    context.update(b".");
    context.update(body);
    let hex: String = context.sign().as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("t={at},v1={hex}")
}

#[cfg(test)]
mod tests {
    use super::super::alert::tests::event;
    use super::*;

    fn rolled_back() -> Alert {
        Alert::of(&event("rolled_back", json!({"from": "v2", "to": "v1", "reason": "a < b & c > d"}))).unwrap()
    }

    #[test]
    fn each_kind_of_receiver_gets_what_it_takes() {
        let (alert, hour) = (rolled_back(), Duration::from_secs(3600));
        assert_eq!(
            body(Kind::Json, &alert, hour),
            json!({
                "id": 7, "what": "rolled_back", "severity": "critical", "model": "digits", "version": "v2",
                "rollout": "digits-3", "message": "digits: v2 was rolled back to v1: a < b & c > d",
                "at": "2023-11-14T22:13:20.123Z", "at_ms": 1_700_000_000_123i64, "test": false,
            })
        );
        assert_eq!(
            body(Kind::Slack, &alert, hour),
            json!({"text": "[critical] digits: v2 was rolled back to v1: a &lt; b &amp; c &gt; d (rollout digits-3)"})
        );
        assert_eq!(
            body(Kind::Alertmanager, &alert, hour),
            json!([{
                "labels": {"alertname": "CutoverRolledBack", "severity": "critical", "service": "cutover", "model": "digits",
                           "version": "v2", "rollout": "digits-3"},
                "annotations": {"summary": "digits: v2 was rolled back to v1: a < b & c > d"},
                "startsAt": "2023-11-14T22:13:20.123Z", "endsAt": "2023-11-14T23:13:20.123Z",
            }])
        );
        assert_eq!(body(Kind::Json, &Alert::test(0), hour)["test"], true);
    }

    /// Made with `printf '1700000000.{"a":1}' | openssl dgst -sha256 -hmac secret`.
    #[test]
    fn a_signature_is_what_openssl_makes_of_the_time_and_the_body() {
        let expected = "t=1700000000,v1=49f24e537407743fa4a0242bb63b94b9a47ee99cbbe071ccd8a22550ae411686";
        assert_eq!(signature(b"secret", 1_700_000_000, br#"{"a":1}"#), expected);
    }
}

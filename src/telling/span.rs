//! A span: something that took a while, in a trace that may have begun elsewhere.
//!
//! Pure but for chance and the clock, which `Begun` asks when it begins. Sources: OpenTelemetry's tracing API; W3C Trace Context,
//! level 1 (`traceparent`).

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::ledger::RolloutRecord;

/// A value of an attribute.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Text(String),
    Number(i64),
    Yes(bool),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Value::Text(text.to_owned())
    }
}

/// As OpenTelemetry numbers them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SpanKind {
    Internal = 1,
    Server = 2,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Span {
    pub(super) trace: u128,
    pub(super) id: u64,
    pub(super) parent: Option<u64>,
    pub(super) name: String,
    pub(super) kind: SpanKind,
    /// Nanoseconds since 1970.
    pub(super) from_ns: u64,
    pub(super) to_ns: u64,
    pub(super) attributes: Vec<(&'static str, Value)>,
    pub(super) error: Option<String>,
}

/// Which trace a request is part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Parent {
    pub(super) trace: u128,
    pub(super) span: u64,
    pub(super) sampled: bool,
}

impl Parent {
    /// Reads a `traceparent` header; none where it is not one, as the standard says: `00-<32 hex>-<16 hex>-<2 hex>`.
    pub(super) fn read(text: &str) -> Option<Parent> {
        let mut parts = text.split('-');
        let mut part = |len: usize| {
            let part = parts.next()?;
            let lower = part.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
            (part.len() == len && lower).then_some(part)
        };
        let (version, trace, span, flags) = (part(2)?, part(32)?, part(16)?, part(2)?);
        // Later versions may say more; of this one there is no more.
        if version == "ff" || version == "00" && parts.next().is_some() {
            return None;
        }
        let trace = u128::from_str_radix(trace, 16).ok().filter(|trace| *trace != 0)?;
        let span = u64::from_str_radix(span, 16).ok().filter(|span| *span != 0)?;
        Some(Parent { trace, span, sampled: u8::from_str_radix(flags, 16).ok()? & 1 == 1 })
    }
}

/// A request whose span has begun.
#[derive(Debug)]
pub struct Begun {
    trace: u128,
    id: u64,
    parent: Option<u64>,
    at: SystemTime,
    began: Instant,
}

/// What is known of a request once its answer has begun.
#[derive(Debug)]
pub struct Ended {
    pub method: String,
    pub route: String,
    pub status: u16,
    pub request_id: String,
    /// The model and the version that answered, or that an order was about.
    pub version: Option<(String, String)>,
    /// Which answered.
    pub generation: Option<u64>,
}

impl Begun {
    pub(super) fn new(parent: Option<Parent>) -> Begun {
        Begun {
            trace: parent.map_or_else(fresh_trace, |parent| parent.trace),
            id: fresh_span(),
            parent: parent.map(|parent| parent.span),
            at: SystemTime::now(),
            began: Instant::now(),
        }
    }

    pub(super) fn end(self, ended: Ended) -> Span {
        let Ended { method, route, status, request_id, version, generation } = ended;
        let name = format!("{method} {route}");
        let mut attributes = vec![
            ("http.request.method", Value::Text(method)),
            ("http.route", Value::Text(route)),
            ("http.response.status_code", Value::Number(status.into())),
            ("cutover.request_id", Value::Text(request_id)),
        ];
        if let Some((model, version)) = version {
            attributes.push(("cutover.model", Value::Text(model)));
            attributes.push(("cutover.version", Value::Text(version)));
        }
        if let Some(generation) = generation {
            attributes.push(("cutover.generation", Value::Number(generation as i64)));
        }
        let from_ns = nanos(self.at);
        Span {
            trace: self.trace,
            id: self.id,
            parent: self.parent,
            name,
            kind: SpanKind::Server,
            from_ns,
            to_ns: from_ns.saturating_add(self.began.elapsed().as_nanos() as u64),
            attributes,
            // Of a server's spans, only its own faults are errors.
            error: (status >= 500).then(|| format!("status {status}")),
        }
    }
}

/// A rollout that has ended, and each of its phases below it.
pub(super) fn of_rollout(record: &RolloutRecord) -> Vec<Span> {
    let ns = |ms: i64| u64::try_from(ms).unwrap_or(0).saturating_mul(1_000_000);
    let (trace, root) = (fresh_trace(), fresh_span());
    let (from_ns, to_ns) = (ns(record.started_ms), ns(record.ended_ms.unwrap_or(record.started_ms)));
    let told = || {
        let mut attributes: Vec<(&'static str, Value)> = vec![
            ("cutover.model", record.model.as_str().into()),
            ("cutover.version", record.to.as_str().into()),
            ("cutover.rollout", record.id.as_str().into()),
        ];
        if let Some(from) = &record.from {
            attributes.push(("cutover.from", from.as_str().into()));
        }
        attributes
    };
    let bad = matches!(record.phase.as_str(), "refused" | "failed" | "rolled_back" | "interrupted");
    let mut whole = told();
    whole.push(("cutover.phase", record.phase.as_str().into()));
    whole.push(("cutover.settled", Value::Yes(record.phase == "settled")));
    if let Some(reason) = &record.reason {
        whole.push(("cutover.reason", reason.as_str().into()));
    }
    let mut spans = vec![Span {
        trace,
        id: root,
        parent: None,
        name: format!("rollout {}", record.model),
        kind: SpanKind::Internal,
        from_ns,
        to_ns,
        attributes: whole,
        error: bad.then(|| record.reason.clone().unwrap_or_else(|| record.phase.clone())),
    }];
    let mut at = record.started_ms;
    for phase in &record.phases {
        let next = at.saturating_add(i64::try_from(phase.ms).unwrap_or(i64::MAX));
        // The last one is the end, which takes no time.
        if phase.phase != record.phase {
            let mut attributes = told();
            attributes.push(("cutover.phase", phase.phase.as_str().into()));
            spans.push(Span {
                trace,
                id: fresh_span(),
                parent: Some(root),
                name: phase.phase.clone(),
                kind: SpanKind::Internal,
                from_ns: ns(at),
                to_ns: ns(next),
                attributes,
                error: None,
            });
        }
        at = next;
    }
    spans
}

fn fresh_trace() -> u128 {
    rand::random::<u128>().max(1)
}

fn fresh_span() -> u64 {
    rand::random::<u64>().max(1)
}

fn nanos(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_nanos() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::PhaseAt;
    use proptest::prelude::*;

    #[test]
    fn a_request_joins_the_trace_that_it_comes_with() {
        let parent = Parent::read("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01").unwrap();
        assert_eq!(
            (parent.trace, parent.span, parent.sampled),
            (0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736, 0x00f0_67aa_0ba9_02b7, true)
        );
        assert!(!Parent::read("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00").unwrap().sampled);
        assert!(Parent::read("01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more").is_some());
        for bad in [
            "",
            "00",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01",
        ] {
            assert_eq!(Parent::read(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_rollout_is_a_span_and_its_phases_are_spans_below_it_without_gaps() {
        let phase = |name: &str, ms| PhaseAt { phase: name.into(), at: String::new(), ms };
        let record = RolloutRecord {
            id: "digits-3".into(),
            model: "digits".into(),
            from: Some("v1".into()),
            to: "v2".into(),
            phase: "settled".into(),
            started_ms: 1_000,
            ended_ms: Some(1_060),
            phases: vec![phase("loading", 20), phase("observing", 40), phase("settled", 0)],
            ..RolloutRecord::default()
        };
        let spans = of_rollout(&record);
        let names: Vec<_> = spans.iter().map(|span| (span.name.as_str(), span.from_ns, span.to_ns)).collect();
        let ms = 1_000_000;
        assert_eq!(
            names,
            [
                ("rollout digits", 1_000 * ms, 1_060 * ms),
                ("loading", 1_000 * ms, 1_020 * ms),
                ("observing", 1_020 * ms, 1_060 * ms)
            ]
        );
        for span in &spans[1..] {
            assert_eq!((span.trace, span.parent), (spans[0].trace, Some(spans[0].id)));
        }
        assert!(spans.iter().all(|span| span.attributes.contains(&("cutover.version", "v2".into()))));
        assert_eq!(spans[0].error, None);
        let refused = RolloutRecord { phase: "refused".into(), reason: Some("6 failed".into()), ..record };
        assert_eq!(of_rollout(&refused)[0].error.as_deref(), Some("6 failed"));
    }

    proptest! {
        #[test]
        fn whatever_a_header_holds_it_is_a_parent_or_none(text in ".{0,80}") {
            if let Some(parent) = Parent::read(&text) {
                prop_assert!(parent.trace != 0 && parent.span != 0);
            }
        }
    }
}

//! Spans as a collector takes them: OTLP over HTTP, in JSON.
//!
//! Pure. Source: the OpenTelemetry Protocol specification 1.x ("JSON Protobuf Encoding": identifiers in hexadecimal, 64-bit integers as
//! strings, enumerations as numbers) and `opentelemetry/proto/trace/v1/trace.proto`.

use serde_json::{Value as Json, json};

use super::span::{Span, Value};

/// A request for `/v1/traces` with these spans.
pub(super) fn request(spans: &[Span]) -> Json {
    let version = env!("CARGO_PKG_VERSION");
    json!({ "resourceSpans": [{
        "resource": { "attributes": [
            attribute("service.name", &"cutover".into()), attribute("service.version", &version.into()),
        ] },
        "scopeSpans": [{
            "scope": { "name": "cutover", "version": version },
            "spans": spans.iter().map(span).collect::<Vec<_>>(),
        }],
    }] })
}

fn span(span: &Span) -> Json {
    let mut told = json!({
        "traceId": format!("{:032x}", span.trace), "spanId": format!("{:016x}", span.id),
        "name": span.name, "kind": span.kind as i32,
        "startTimeUnixNano": span.from_ns.to_string(), "endTimeUnixNano": span.to_ns.to_string(),
        "attributes": span.attributes.iter().map(|(key, value)| attribute(key, value)).collect::<Vec<_>>(),
    });
    if let Some(parent) = span.parent {
        told["parentSpanId"] = json!(format!("{parent:016x}"));
    }
    if let Some(error) = &span.error {
        // STATUS_CODE_ERROR
        told["status"] = json!({ "code": 2, "message": error });
    }
    told
}

fn attribute(key: &str, value: &Value) -> Json {
    let value = match value {
        Value::Text(text) => json!({ "stringValue": text }),
        Value::Number(number) => json!({ "intValue": number.to_string() }),
        Value::Yes(yes) => json!({ "boolValue": yes }),
    };
    json!({ "key": key, "value": value })
}

#[cfg(test)]
mod tests {
    use super::super::span::{Parent, SpanKind};
    use super::*;

    #[test]
    fn spans_are_written_as_the_specification_has_them() {
        let parent = Parent::read("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01").unwrap();
        let span = Span {
            trace: parent.trace,
            id: 0xabc,
            parent: Some(parent.span),
            name: "POST /models/{ref}/infer".into(),
            kind: SpanKind::Server,
            from_ns: 1_700_000_000_000_000_001,
            to_ns: 1_700_000_000_000_000_002,
            attributes: vec![("cutover.version", "v2".into()), ("cutover.generation", Value::Number(7))],
            error: Some("status 500".into()),
        };
        let told = request(&[span]);
        assert_eq!(
            told["resourceSpans"][0]["scopeSpans"][0]["spans"][0],
            json!({
                "traceId": "4bf92f3577b34da6a3ce929d0e0e4736", "spanId": "0000000000000abc",
                "name": "POST /models/{ref}/infer", "kind": 2,
                "startTimeUnixNano": "1700000000000000001", "endTimeUnixNano": "1700000000000000002",
                "attributes": [
                    {"key": "cutover.version", "value": {"stringValue": "v2"}},
                    {"key": "cutover.generation", "value": {"intValue": "7"}},
                ],
                "parentSpanId": "00f067aa0ba902b7", "status": {"code": 2, "message": "status 500"},
            })
        );
        let resource = &told["resourceSpans"][0]["resource"]["attributes"][0];
        assert_eq!(*resource, json!({"key": "service.name", "value": {"stringValue": "cutover"}}));
    }
}

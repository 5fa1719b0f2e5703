//! How commands end: failures, their exit codes, and text that is safe to show on a terminal.

use std::io::{self, Write};
use std::process::ExitCode;

use serde_json::{Value, json};

use super::rollout;

/// Why a command did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The server answered with an error.
    #[error("{}", .0.message)]
    Refused(Box<Refusal>),
    /// No answer, or not one in HTTP.
    #[error("cannot reach {url}: {reason}")]
    Unreachable { url: String, reason: String },
    /// The connection broke before the answer was whole.
    #[error(
        "the connection to {url} broke ({reason}): what was ordered may have happened, or go on; `cutover status` and \
         `cutover history` say"
    )]
    Lost { url: String, reason: String },
    /// The server answered with something that this client does not understand.
    #[error("unexpected answer from {url}: {reason}")]
    Protocol { url: String, reason: String },
    /// Arguments that only make no sense together or here; like clap's own complaints.
    #[error("{0}")]
    Usage(String),
    #[error("{0}")]
    Failed(String),
    /// Whoever gave the command left, and what was ordered goes on; what to do about it.
    #[error("{0}")]
    Left(String),
    /// The command's report is already on standard output and says what failed.
    #[error("failed")]
    Reported,
    #[error("cannot write: {0}")]
    Write(#[from] io::Error),
}

/// An error body of the server (DESIGN §7), with its status.
#[derive(Debug, Clone, PartialEq)]
pub struct Refusal {
    pub status: u16,
    pub kind: String,
    pub message: String,
    pub details: Value,
}

impl Refusal {
    /// Reads `{"error": {"kind", "message", "details"}}`; anything else is told as it came.
    pub fn read(status: u16, body: &[u8]) -> Self {
        let parsed: Value = serde_json::from_slice(body).unwrap_or(Value::Null);
        let error = &parsed["error"];
        match error["message"].as_str() {
            Some(message) => Refusal {
                status,
                kind: error["kind"].as_str().unwrap_or("unknown").to_owned(),
                message: message.to_owned(),
                details: error["details"].clone(),
            },
            None => {
                let text = String::from_utf8_lossy(&body[..body.len().min(300)]);
                let text = if text.trim().is_empty() { "no body" } else { text.trim() };
                Refusal {
                    status,
                    kind: "unknown".to_owned(),
                    message: format!("status {status}: {text}"),
                    details: Value::Null,
                }
            }
        }
    }

    fn body(&self) -> Value {
        json!({ "error": { "kind": self.kind, "message": self.message, "details": self.details } })
    }
}

impl Failure {
    /// Tells the failure where it belongs and says which code the process ends with.
    pub fn report(&self, json: bool, out: &mut dyn Write, err: &mut dyn Write) -> ExitCode {
        // A reader that went away (`| head`) is not a failure of the command.
        if let Failure::Write(e) = self
            && e.kind() == io::ErrorKind::BrokenPipe
        {
            return ExitCode::SUCCESS;
        }
        // What cannot be written any more cannot be told either, so these results are dropped.
        let _told = match self {
            Failure::Reported => Ok(()),
            Failure::Left(what) => writeln!(err, "{}", printable(what)),
            Failure::Refused(refusal) if json => writeln!(out, "{}", refusal.body())
                .and_then(|()| writeln!(err, "error: {}", printable(&refusal.message))),
            Failure::Refused(refusal) => writeln!(err, "error: {}", printable(&refusal.message))
                .and_then(|()| rollout::write_details(&refusal.message, &refusal.details, err)),
            other => writeln!(err, "error: {}", printable(&other.to_string())),
        };
        match self {
            Failure::Usage(_) => ExitCode::from(2),
            // As of a shell's command that SIGINT ended.
            Failure::Left(_) => ExitCode::from(130),
            _ => ExitCode::FAILURE,
        }
    }
}

/// A line on standard error about how things go. A lost one is no reason to stop what it tells about.
pub(super) fn note(text: &str) {
    let _lost = writeln!(io::stderr(), "{}", printable(text));
}

/// Text from elsewhere with its control characters made visible, so that it cannot steer a terminal.
pub(super) fn printable(text: &str) -> String {
    if !text.chars().any(char::is_control) {
        return text.to_owned();
    }
    text.chars().map(|c| if c.is_control() { c.escape_default().to_string() } else { c.to_string() }).collect()
}

/// Bytes for people: `512 B`, `1.5 MiB`.
pub(super) fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = if value < 10.0 { 2 } else { 1 };
    format!("{value:.digits$} {}", UNITS[unit])
}

/// Milliseconds for people: `0.042 ms`, `12.3 ms`, `4.50 s`.
pub(super) fn human_ms(ms: f64) -> String {
    match ms {
        ms if !ms.is_finite() => "-".to_owned(),
        0.0 => "0 ms".to_owned(),
        ms if ms < 1.0 => format!("{ms:.3} ms"),
        ms if ms < 10.0 => format!("{ms:.2} ms"),
        ms if ms < 1_000.0 => format!("{ms:.1} ms"),
        ms if ms < 120_000.0 => format!("{:.2} s", ms / 1_000.0),
        ms => format!("{:.1} min", ms / 60_000.0),
    }
}

/// A JSON value in one cell: text bare, numbers short, the rest as JSON.
pub(super) fn human_value(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => printable(text),
        Value::Number(number) => match (number.as_i64(), number.as_f64()) {
            (None, Some(float)) => human_float(float),
            _ => number.to_string(),
        },
        other => printable(&other.to_string()),
    }
}

fn human_float(value: f64) -> String {
    let size = value.abs();
    if value != 0.0 && !(1e-4..1e7).contains(&size) {
        return format!("{value:.3e}");
    }
    let text = format!("{value:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A field of the server's memory or figures, told in the unit that its name says.
pub(super) fn human_field(name: &str, value: &Value) -> String {
    match value.as_u64() {
        Some(bytes) if is_bytes(name) => human_bytes(bytes),
        _ if name.ends_with("_ms") => value.as_f64().map_or_else(|| human_value(value), human_ms),
        _ => human_value(value),
    }
}

/// Whether a field of this name counts bytes: it says so, or its last word is one that memory is told in.
pub(super) fn is_bytes(name: &str) -> bool {
    const WORDS: [&str; 16] = [
        "bytes",
        "budget",
        "reserved",
        "used",
        "free",
        "exclusive",
        "shared",
        "rss",
        "resident",
        "allocated",
        "capacity",
        "peak",
        "workspace",
        "weights",
        "measured",
        "available",
    ];
    name.split(['_', ' ']).next_back().is_some_and(|last| WORDS.contains(&last)) || name.ends_with("_bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_body_is_read_and_anything_else_is_told_as_it_came() {
        let refusal = Refusal::read(409, br#"{"error":{"kind":"conflict","message":"busy","details":{"id":"7"}}}"#);
        assert_eq!((refusal.kind.as_str(), refusal.message.as_str()), ("conflict", "busy"));
        assert_eq!(refusal.details["id"], "7");
        assert_eq!(Refusal::read(502, b"<h1>proxy</h1>").message, "status 502: <h1>proxy</h1>");
        assert_eq!(Refusal::read(500, b"").message, "status 500: no body");
    }

    #[test]
    fn a_terminal_cannot_be_steered_by_what_a_server_says() {
        assert_eq!(printable("a\u{1b}[31mb\n"), "a\\u{1b}[31mb\\n");
        assert_eq!(printable("grün"), "grün");
    }

    #[test]
    fn a_closed_pipe_is_no_failure_but_a_full_disk_is() {
        let code = |kind| {
            let failure = Failure::Write(io::Error::from(kind));
            format!("{:?}", failure.report(false, &mut Vec::new(), &mut Vec::new()))
        };
        assert_eq!(code(io::ErrorKind::BrokenPipe), format!("{:?}", ExitCode::SUCCESS));
        assert_eq!(code(io::ErrorKind::StorageFull), format!("{:?}", ExitCode::FAILURE));
    }

    #[test]
    fn numbers_are_told_in_their_unit() {
        assert_eq!(human_bytes(0), "0 B");
        assert_eq!(human_bytes(1023), "1023 B");
        assert_eq!(human_bytes(1536), "1.50 KiB");
        assert_eq!(human_bytes(90 << 20), "90.0 MiB");
        assert_eq!(human_ms(0.0421), "0.042 ms");
        assert_eq!(human_ms(4500.0), "4.50 s");
        assert_eq!(human_value(&json!(0.98000)), "0.98");
        assert_eq!(human_value(&json!(0.00001)), "1.000e-5");
        assert_eq!(human_value(&json!(12)), "12");
        assert_eq!(human_field("weight_bytes", &json!(2048)), "2.00 KiB");
        assert_eq!(human_field("reserved", &json!(2048)), "2.00 KiB");
        assert_eq!(human_field("downtime_ms", &json!(0.5)), "0.500 ms");
        assert_eq!(human_field("requests", &json!(2048)), "2048");
    }
}

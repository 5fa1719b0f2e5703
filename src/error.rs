//! Every failure, as facts; its kind; and the one match from fact to kind.
//!
//! A leaf. Rooms return `Error` variants that carry facts; nothing parses an error's text.
//! How a kind looks in a dialect (status, body) is the `http` room's table.

use std::time::Duration;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, with the facts that a person or a program needs.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    // what a client may get wrong
    #[error("{}", line(.message))]
    BadRequest { message: String, param: Option<String> },
    #[error("{what} is {got}, the limit is {limit}{}", limited_by(.what))]
    TooLarge { what: &'static str, got: u64, limit: u64 },
    /// `message` has the numbers.
    #[error("{message}")]
    ContextExceeded { message: String, param: Option<&'static str> },
    #[error("{}", line(.reason))]
    Unsupported { reason: String },
    #[error("{reason}")]
    Unauthorised { reason: String },
    #[error("{reason}")]
    Forbidden { reason: String },
    #[error("no model or version is called '{}'{}", line(.reference), known_list(.known))]
    Unknown { reference: String, known: Vec<String> },
    #[error(
        "'{model}' has no version yet: put the folder of one beside its model.toml (models/fetch brings those of the models that come with Cutover)"
    )]
    NoVersions { model: String },
    #[error("no {what} '{}'", line(.id))]
    NotFound { what: &'static str, id: String },
    #[error("no model for the task '{task}'{}", known_list(.known))]
    NoModelFor { task: String, known: Vec<String> },
    #[error("'{reference}' is ambiguous: it could be {}", .candidates.join(", "))]
    Ambiguous { reference: String, candidates: Vec<String> },
    #[error("{message}")]
    Conflict { message: String, details: serde_json::Value },

    // what a version may get wrong
    #[error("{}: {}", line(.file), line(.reason))]
    Unloadable { file: String, reason: String },
    #[error("the gate refused {version}: {failed} of {checks} checks failed{}", first_failed(.details))]
    Gate { version: String, failed: usize, checks: usize, details: serde_json::Value },

    // what the moment may not allow
    #[error("the queue of '{model}' is full ({limit} inputs)")]
    Overloaded { model: String, limit: usize, retry_after: Duration },
    #[error("'{model}' is not serving: {reason}")]
    NotServing { model: String, reason: String, retry_after: Duration },
    #[error("{reason}")]
    Busy { reason: String, retry_after: Duration },
    #[error("the request was not answered within its deadline of {} ms", .limit.as_millis())]
    Deadline { limit: Duration },
    #[error("no room: {sum}")]
    NoRoom { sum: String, details: serde_json::Value },

    // what this server or a model may get wrong
    #[error("version '{version}' returned non-finite values")]
    NonFinite { version: String },
    #[error("the forward pass of '{version}' panicked: {message}")]
    ForwardPanicked { version: String, message: String },
    #[error("the forward pass of '{version}' failed: {message}")]
    ForwardFailed { version: String, message: String },
    /// `key` is empty where it is about the whole file.
    #[error("configuration: {}: {}{}", line(.file), keyed(.key), line(.reason))]
    Config { file: String, key: String, reason: String },
    #[error("ledger: {reason}")]
    Ledger { reason: String },
    #[error("internal: {message}")]
    Internal { message: String },
}

/// The small set that statuses and dialects are made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    BadRequest,
    Unsupported,
    Unauthorised,
    Forbidden,
    NotFound,
    Conflict,
    TooLarge,
    Refused,
    Overloaded,
    NotServing,
    Deadline,
    NoRoom,
    Internal,
}

impl Kind {
    /// The stable name in error bodies.
    pub fn name(self) -> &'static str {
        match self {
            Kind::BadRequest => "bad_request",
            Kind::Unsupported => "unsupported",
            Kind::Unauthorised => "unauthorised",
            Kind::Forbidden => "forbidden",
            Kind::NotFound => "not_found",
            Kind::Conflict => "conflict",
            Kind::TooLarge => "too_large",
            Kind::Refused => "refused",
            Kind::Overloaded => "overloaded",
            Kind::NotServing => "not_serving",
            Kind::Deadline => "deadline",
            Kind::NoRoom => "no_room",
            Kind::Internal => "internal",
        }
    }
}

impl Error {
    /// The one match from facts to kind.
    pub fn kind(&self) -> Kind {
        match self {
            Error::BadRequest { .. } | Error::ContextExceeded { .. } => Kind::BadRequest,
            Error::TooLarge { .. } => Kind::TooLarge,
            Error::Unsupported { .. } => Kind::Unsupported,
            Error::Unauthorised { .. } => Kind::Unauthorised,
            Error::Forbidden { .. } => Kind::Forbidden,
            Error::Unknown { .. } | Error::NoVersions { .. } | Error::NotFound { .. } | Error::NoModelFor { .. } => {
                Kind::NotFound
            }
            Error::Ambiguous { .. } | Error::Conflict { .. } => Kind::Conflict,
            Error::Unloadable { .. } | Error::Gate { .. } | Error::Config { .. } => Kind::Refused,
            Error::Overloaded { .. } => Kind::Overloaded,
            Error::NotServing { .. } | Error::Busy { .. } => Kind::NotServing,
            Error::Deadline { .. } => Kind::Deadline,
            Error::NoRoom { .. } => Kind::NoRoom,
            Error::NonFinite { .. }
            | Error::ForwardPanicked { .. }
            | Error::ForwardFailed { .. }
            | Error::Ledger { .. }
            | Error::Internal { .. } => Kind::Internal,
        }
    }

    /// A fault of the model that failover may mend on the previous generation (promise 7).
    pub fn is_model_fault(&self) -> bool {
        matches!(self, Error::NonFinite { .. } | Error::ForwardPanicked { .. } | Error::ForwardFailed { .. })
    }

    /// How long a client should wait before it asks again, where that makes sense.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Error::Overloaded { retry_after, .. }
            | Error::NotServing { retry_after, .. }
            | Error::Busy { retry_after, .. } => Some(*retry_after),
            _ => None,
        }
    }

    /// Facts for a program, beside the message; null where there are none.
    pub fn details(&self) -> serde_json::Value {
        use serde_json::json;
        match self {
            Error::BadRequest { param: Some(param), .. } => json!({ "param": param }),
            Error::ContextExceeded { param: Some(param), .. } => json!({ "param": param }),
            Error::TooLarge { what, got, limit } => json!({ "what": what, "got": got, "limit": limit }),
            Error::Unknown { known, .. } => json!({ "known": known }),
            Error::Ambiguous { candidates, .. } => json!({ "candidates": candidates }),
            Error::Unloadable { file, reason } => json!({ "file": file, "reason": reason }),
            Error::Conflict { details, .. } | Error::Gate { details, .. } | Error::NoRoom { details, .. } => {
                details.clone()
            }
            _ => serde_json::Value::Null,
        }
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Error::BadRequest { message: message.into(), param: None }
    }

    pub fn bad_param(param: impl Into<String>, message: impl Into<String>) -> Self {
        Error::BadRequest { message: message.into(), param: Some(param.into()) }
    }

    pub fn conflict(message: impl Into<String>) -> Self {
        Error::Conflict { message: message.into(), details: serde_json::Value::Null }
    }

    /// A version (or one of its files) that cannot be loaded; `file` is relative to the repository.
    pub fn unloadable(file: impl std::fmt::Display, reason: impl std::fmt::Display) -> Self {
        Error::Unloadable { file: file.to_string(), reason: reason.to_string() }
    }

    pub fn internal(message: impl std::fmt::Display) -> Self {
        Error::Internal { message: message.to_string() }
    }
}

/// What strangers may have written, as one line that is no page: errors go to logs, terminals and clients.
fn line(text: &str) -> String {
    const LONGEST: usize = 2_000;
    let text = text.trim_end();
    let mut line = String::new();
    for c in text.chars().take(LONGEST) {
        match c {
            '\n' | '\r' | '\t' => line.push(' '),
            c if c.is_control() => line.extend(c.escape_default()),
            c => line.push(c),
        }
    }
    if text.chars().nth(LONGEST).is_some() {
        line.push('…');
    }
    line
}

fn keyed(key: &str) -> String {
    if key.is_empty() { String::new() } else { format!("{}: ", line(key)) }
}

/// Which key of `model.toml` a limit is, where it is one.
fn limited_by(what: &str) -> &'static str {
    match what {
        "number of inputs" => " ([limits] max_inputs)",
        "number of inputs or answers" => " ([limits] queue)",
        "text in bytes" => " ([limits] max_text_bytes)",
        _ => "",
    }
}

/// The first check that failed, in words: who only hears of it in a log looks nowhere else.
fn first_failed(details: &serde_json::Value) -> String {
    const LONGEST: usize = 240;
    let Some(check) = details["failed"].get(0) else { return String::new() };
    let text = |field: &str| check[field].as_str().unwrap_or_default();
    let case = check["case"].as_str().map_or(String::new(), |case| format!(" of '{case}'"));
    let told = line(&format!("{}{case}: {}", text("check"), text("message")));
    let shown: String = told.chars().take(LONGEST).collect();
    format!("; the first: {shown}{}", if shown.len() < told.len() { "…" } else { "" })
}

fn known_list(known: &[String]) -> String {
    if known.is_empty() { String::new() } else { format!("; known here: {}", known.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_model_is_for_is_told_beside_those_that_are_there() {
        let known = vec!["digits (image-classify)".into(), "minilm (embed)".into()];
        let error = Error::NoModelFor { task: "classify".into(), known };
        let told = "no model for the task 'classify'; known here: digits (image-classify), minilm (embed)";
        assert_eq!((error.to_string().as_str(), error.kind()), (told, Kind::NotFound));
    }
}

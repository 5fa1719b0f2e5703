//! The one table from error kinds to statuses and bodies, a column for each dialect.

use axum::Json;
use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::error::{Error, Kind};
use crate::generation::Stamp;

/// Who is spoken to: the same kinds, other codes and bodies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    Native,
    OpenAi,
    /// text-embeddings-inference's.
    Tei,
    /// The Open Inference Protocol's.
    Oip,
    /// The same over gRPC.
    Grpc,
}

impl Dialect {
    pub fn name(self) -> &'static str {
        match self {
            Dialect::Native => "native",
            Dialect::OpenAi => "openai",
            Dialect::Tei => "tei",
            Dialect::Oip => "oip",
            Dialect::Grpc => "grpc",
        }
    }

    /// The dialect whose error bodies a path's clients read.
    pub fn of(path: &str) -> Self {
        match path {
            _ if path.starts_with("/inference.") || path.starts_with("/grpc.") => Dialect::Grpc,
            "/" | "/embed" | "/predict" | "/rerank" | "/info" => Dialect::Tei,
            "/tokenize" | "/detokenize" => Dialect::OpenAi,
            _ if path.starts_with("/v1/") => Dialect::OpenAi,
            // Whether the server is there is told as everywhere.
            _ if path.starts_with("/v2/health/") => Dialect::Native,
            _ if path == "/v2" || path.starts_with("/v2/") => Dialect::Oip,
            _ => Dialect::Native,
        }
    }
}

/// DESIGN section 7: one status a kind.
///
/// Clients of text-embeddings-inference know two of them by other statuses.
pub(super) fn status(dialect: Dialect, kind: Kind) -> StatusCode {
    match kind {
        Kind::BadRequest if dialect == Dialect::Tei => StatusCode::UNPROCESSABLE_ENTITY,
        Kind::Internal if dialect == Dialect::Tei => StatusCode::FAILED_DEPENDENCY,
        Kind::BadRequest => StatusCode::BAD_REQUEST,
        Kind::Unsupported => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        Kind::Unauthorised => StatusCode::UNAUTHORIZED,
        Kind::Forbidden => StatusCode::FORBIDDEN,
        Kind::NotFound => StatusCode::NOT_FOUND,
        Kind::Conflict => StatusCode::CONFLICT,
        Kind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        Kind::Refused => StatusCode::UNPROCESSABLE_ENTITY,
        Kind::Overloaded => StatusCode::TOO_MANY_REQUESTS,
        Kind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        Kind::NotServing => StatusCode::SERVICE_UNAVAILABLE,
        Kind::Deadline => StatusCode::GATEWAY_TIMEOUT,
        Kind::NoRoom => StatusCode::INSUFFICIENT_STORAGE,
    }
}

/// OpenAI's `type` and `code` for a kind (platform documentation, "Error codes").
fn openai_words(kind: Kind) -> (&'static str, Option<&'static str>) {
    match kind {
        Kind::BadRequest | Kind::Unsupported | Kind::TooLarge | Kind::Refused => ("invalid_request_error", None),
        Kind::Unauthorised => ("invalid_request_error", Some("invalid_api_key")),
        Kind::Forbidden => ("permission_error", None),
        Kind::NotFound => ("invalid_request_error", Some("model_not_found")),
        Kind::Conflict => ("conflict_error", Some("conflict")),
        Kind::Overloaded => ("rate_limit_error", Some("rate_limit_exceeded")),
        Kind::NotServing => ("server_error", Some("not_serving")),
        Kind::Deadline => ("server_error", Some("timeout")),
        Kind::Internal | Kind::NoRoom => ("server_error", None),
    }
}

/// OpenAI's `code` where that of the kind says less, or speaks of models.
fn openai_code(error: &Error) -> Option<&'static str> {
    match error {
        Error::NotFound { what: ROUTE, .. } => Some("unknown_url"),
        Error::NotFound { .. } => Some("not_found"),
        // Clients shorten their conversation by it.
        Error::ContextExceeded { .. } => Some("context_length_exceeded"),
        _ => None,
    }
}

/// text-embeddings-inference's `error_type` for a kind.
fn tei_word(kind: Kind) -> &'static str {
    match kind {
        Kind::Overloaded => "Overloaded",
        Kind::NotServing => "Unhealthy",
        Kind::Internal | Kind::Deadline | Kind::NoRoom => "Backend",
        Kind::BadRequest
        | Kind::Unsupported
        | Kind::Unauthorised
        | Kind::Forbidden
        | Kind::NotFound
        | Kind::Conflict
        | Kind::TooLarge
        | Kind::Refused => "Validation",
    }
}

/// gRPC's code for a kind (google.rpc.Code, and its HTTP mapping where it has one).
fn grpc_code(kind: Kind) -> tonic::Code {
    match kind {
        Kind::BadRequest | Kind::TooLarge => tonic::Code::InvalidArgument,
        Kind::Unsupported => tonic::Code::Unimplemented,
        Kind::Unauthorised => tonic::Code::Unauthenticated,
        Kind::Forbidden => tonic::Code::PermissionDenied,
        Kind::NotFound => tonic::Code::NotFound,
        Kind::Conflict | Kind::Refused => tonic::Code::FailedPrecondition,
        Kind::Overloaded | Kind::NoRoom => tonic::Code::ResourceExhausted,
        Kind::NotServing => tonic::Code::Unavailable,
        Kind::Deadline => tonic::Code::DeadlineExceeded,
        Kind::Internal => tonic::Code::Internal,
    }
}

const PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");

/// What is not found where nothing answers a path.
const ROUTE: &str = "route";

/// An error on its way out, in the words of a dialect, with the stamp where the generation is known.
pub(super) struct Failure {
    pub(super) error: Error,
    pub(super) dialect: Dialect,
    pub(super) stamp: Option<Stamp>,
}

/// What an order was about: for its span, where no version answered.
#[derive(Debug, Clone)]
pub(super) struct About {
    pub(super) model: String,
    pub(super) version: String,
}

impl Failure {
    pub(super) fn new(dialect: Dialect, error: Error) -> Self {
        Failure { error, dialect, stamp: None }
    }

    pub(super) fn native(error: Error) -> Self {
        Failure::new(Dialect::Native, error)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let (kind, message, details) = told(&self.error);
        let mut response = match self.dialect {
            // Always 200; the code is in a header (gRPC over HTTP/2, "Trailers-Only").
            Dialect::Grpc => tonic::Status::new(grpc_code(kind), message).into_http::<Body>(),
            dialect => {
                let mut body = body(dialect, kind, &message, details);
                if dialect == Dialect::OpenAi
                    && let Some(code) = openai_code(&self.error)
                {
                    body["error"]["code"] = code.into();
                }
                (status(dialect, kind), Json(body)).into_response()
            }
        };
        let headers = response.headers_mut();
        if let Some(wait) = self.error.retry_after() {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(wait.as_secs().max(1)));
            if self.dialect == Dialect::Grpc {
                // Clients with a retry policy of their own know this one (gRPC proposal A6).
                headers.insert(PUSHBACK, HeaderValue::from(wait.as_millis() as u64));
            }
        }
        if kind == Kind::Unauthorised {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if kind == Kind::Unsupported {
            // What is taken instead (RFC 9110, 12.5.3).
            headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        }
        if let Some(stamp) = &self.stamp {
            put_stamp(&mut response, stamp);
        }
        response.extensions_mut().insert(kind);
        response
    }
}

/// What a client is told of an error.
pub(super) fn told(error: &Error) -> (Kind, String, Value) {
    match error.kind() {
        // What went wrong inside is for the log; the request id leads there.
        Kind::Internal => {
            tracing::error!(%error, "a request failed inside");
            let message = "internal error; the log has the details under this request's id".to_owned();
            (Kind::Internal, message, Value::Null)
        }
        kind => (kind, error.to_string(), error.details()),
    }
}

/// The error body of a dialect.
pub(super) fn body(dialect: Dialect, kind: Kind, message: &str, details: Value) -> Value {
    match dialect {
        Dialect::Native => json!({ "error": { "kind": kind.name(), "message": message, "details": details } }),
        Dialect::OpenAi => {
            let (class, code) = openai_words(kind);
            let param = details.get("param").cloned().unwrap_or(Value::Null);
            json!({ "error": { "message": message, "type": class, "param": param, "code": code } })
        }
        Dialect::Tei => json!({ "error": message, "error_type": tei_word(kind) }),
        Dialect::Oip | Dialect::Grpc => json!({ "error": message }),
    }
}

/// Says on a response which generation made it (promise 2).
pub(super) fn put_stamp(response: &mut Response, stamp: &Stamp) {
    const MODEL: HeaderName = HeaderName::from_static("x-cutover-model");
    const VERSION: HeaderName = HeaderName::from_static("x-cutover-version");
    const GENERATION: HeaderName = HeaderName::from_static("x-cutover-generation");
    response.headers_mut().insert(MODEL, header_text(&stamp.model));
    response.headers_mut().insert(VERSION, header_text(&stamp.version));
    response.headers_mut().insert(GENERATION, HeaderValue::from(stamp.generation.0));
    response.extensions_mut().insert(stamp.clone());
}

/// Names are free text; what a header cannot carry is percent-encoded.
fn header_text(text: &str) -> HeaderValue {
    let plain = text.is_ascii().then(|| HeaderValue::from_str(text).ok()).flatten();
    plain.unwrap_or_else(|| {
        let encoded: String = text
            .bytes()
            .map(|byte| match byte {
                b' '..=b'~' if byte != b'%' => char::from(byte).to_string(),
                other => format!("%{other:02X}"),
            })
            .collect();
        HeaderValue::from_str(&encoded).unwrap_or(HeaderValue::from_static("?"))
    })
}

pub(super) async fn not_found(uri: Uri) -> Response {
    let error = Error::NotFound { what: ROUTE, id: uri.path().to_owned() };
    match Dialect::of(uri.path()) {
        // Clients ask again elsewhere, or do without (gRPC status codes).
        Dialect::Grpc => {
            let reason = format!("there is no method {}", uri.path());
            Failure::new(Dialect::Grpc, Error::Unsupported { reason }).into_response()
        }
        dialect => Failure::new(dialect, error).into_response(),
    }
}

pub(super) async fn method_not_allowed(method: Method, uri: Uri) -> Response {
    let dialect = Dialect::of(uri.path());
    let message = format!("{method} is not possible on {}", uri.path());
    let body = body(dialect, Kind::BadRequest, &message, Value::Null);
    (StatusCode::METHOD_NOT_ALLOWED, Json(body)).into_response()
}

/// A handler that panicked: a defect of this server, told like any internal error.
pub(super) fn panicked(payload: Box<dyn std::any::Any + Send>) -> Response {
    let message = crate::engine::panic_text(payload.as_ref());
    Failure::native(Error::internal(format!("a handler panicked: {message}"))).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_dialect_has_its_own_error_body() {
        let native = body(Dialect::Native, Kind::NotFound, "no", json!({"known": ["a"]}));
        assert_eq!(native["error"]["kind"], "not_found");
        assert_eq!(native["error"]["details"]["known"][0], "a");
        let openai = body(Dialect::OpenAi, Kind::NotFound, "no", Value::Null);
        assert_eq!(openai["error"]["code"], "model_not_found");
        assert!(openai["error"]["param"].is_null());
    }

    #[test]
    fn names_that_a_header_cannot_carry_are_encoded() {
        assert_eq!(header_text("v1"), "v1");
        assert_eq!(header_text("v\u{e9}").to_str().unwrap(), "v%C3%A9");
        assert_eq!(header_text("a\nb").to_str().unwrap(), "a%0Ab");
    }
}

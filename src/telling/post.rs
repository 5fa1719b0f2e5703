//! One request to a receiver, and what is wrong when it does not take it.
//!
//! Nothing is sent on: a redirect is an error that names where it leads, so that neither body nor credentials go to another host. An
//! address may be a secret, so no error holds more of it than its host. It must not know what is sent.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, LOCATION, RETRY_AFTER};
use reqwest::{Client, StatusCode, Url};

const CONNECT: Duration = Duration::from_secs(5);
/// Of an answer, for an error.
const LONGEST_ANSWER: usize = 200;
const LONGEST_SECRET: u64 = 64 << 10;

/// Somebody to whom something is posted.
#[derive(Debug, Clone)]
pub(super) struct Receiver {
    client: Client,
    url: Url,
    token: Option<HeaderValue>,
}

/// How a receiver is reached. Errors name the key that is wrong.
pub(super) struct Address<'a> {
    pub(super) url: Url,
    pub(super) ca_file: Option<&'a Path>,
    /// For the `Authorization` header.
    pub(super) token: Option<&'a str>,
    /// For one request.
    pub(super) timeout: Duration,
}

/// Why it was not taken.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Refusal {
    /// It led elsewhere.
    Redirects {
        status: u16,
        to: String,
    },
    Status {
        status: u16,
        answer: String,
        retry_after: Option<Duration>,
    },
    TimedOut(Duration),
    /// No answer, or none in HTTP.
    Unreachable(String),
}

impl Refusal {
    /// Whether it may be taken later: not what is wrong with the address or with what is sent.
    pub(super) fn is_worth_a_retry(&self) -> bool {
        match self {
            Refusal::Redirects { .. } => false,
            Refusal::Status { status, .. } => matches!(status, 408 | 425 | 429) || *status >= 500,
            Refusal::TimedOut(_) | Refusal::Unreachable(_) => true,
        }
    }

    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Refusal::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    pub(super) fn status(&self) -> Option<u16> {
        match self {
            Refusal::Redirects { status, .. } | Refusal::Status { status, .. } => Some(*status),
            _ => None,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Redirects { status, to } => {
                write!(f, "it redirects ({status}) to {to}, which is not followed: configure the address where it ends")
            }
            Refusal::Status { status, answer, .. } if answer.is_empty() => write!(f, "it answered {status}"),
            Refusal::Status { status, answer, .. } => write!(f, "it answered {status}: {answer}"),
            Refusal::TimedOut(after) => write!(f, "it did not answer within {} s", after.as_secs_f64()),
            Refusal::Unreachable(reason) => write!(f, "it cannot be reached: {reason}"),
        }
    }
}

impl Receiver {
    /// # Errors
    /// The key that is wrong, and why.
    pub(super) fn new(address: Address<'_>) -> Result<Receiver, (&'static str, String)> {
        // Another part of the process may have installed one already; any will do.
        let _already = rustls::crypto::ring::default_provider().install_default();
        let mut builder = Client::builder()
            .user_agent(concat!("cutover/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT)
            .timeout(address.timeout)
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .no_proxy();
        if address.url.scheme() == "http" {
            // Plain HTTP must work where no root certificates are installed.
            builder = builder.tls_certs_only(std::iter::empty());
        } else if let Some(path) = address.ca_file {
            let wrong = |reason: String| ("ca_file", reason);
            let pem = std::fs::read(path).map_err(|e| wrong(format!("{}: {e}", path.display())))?;
            let found = reqwest::Certificate::from_pem_bundle(&pem).map_err(|e| wrong(chain(&e)))?;
            if found.is_empty() {
                return Err(wrong(format!("{}: holds no certificate in PEM", path.display())));
            }
            builder = builder.tls_certs_only(found);
        }
        let client = builder.build().map_err(|e| ("url", format!("no client for it: {}", chain(&e))))?;
        let token = match address.token {
            None => None,
            Some(token) => {
                let value = HeaderValue::from_str(&format!("Bearer {token}"));
                let mut value = value.map_err(|_| ("secret_file", "no header can carry what it holds".to_owned()))?;
                value.set_sensitive(true);
                Some(value)
            }
        };
        Ok(Receiver { client, url: address.url, token })
    }

    /// The host, and the port where it is said.
    pub(super) fn host(&self) -> String {
        host(&self.url)
    }

    /// Posts JSON. What was answered, when it was taken.
    pub(super) async fn post(
        &self,
        body: Vec<u8>,
        headers: impl IntoIterator<Item = (&'static str, HeaderValue)>,
        timeout: Duration,
    ) -> Result<u16, Refusal> {
        let mut request = self.client.post(self.url.clone()).header(CONTENT_TYPE, "application/json");
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, token.clone());
        }
        for (name, value) in headers {
            request = request.header(HeaderName::from_static(name), value);
        }
        let response = request.body(body).send().await.map_err(|e| refusal(e, timeout))?;
        let status = response.status();
        if status.is_success() {
            return Ok(status.as_u16());
        }
        if status.is_redirection() {
            return Err(Refusal::Redirects { status: status.as_u16(), to: self.leads(response.headers()) });
        }
        let retry_after = retry_after(status, response.headers());
        let answer = beginning(response).await;
        Err(Refusal::Status { status: status.as_u16(), answer, retry_after })
    }

    /// Where a redirect leads: the host alone.
    fn leads(&self, headers: &HeaderMap) -> String {
        let location = headers.get(LOCATION).and_then(|value| value.to_str().ok());
        match location.map(|location| self.url.join(location)) {
            Some(Ok(url)) if url.host_str().is_some() => {
                let same = host(&url) == host(&self.url) && url.scheme() == self.url.scheme();
                if same {
                    "another path of the same host".to_owned()
                } else {
                    format!("{}://{}", url.scheme(), host(&url))
                }
            }
            _ => "nowhere".to_owned(),
        }
    }
}

fn host(url: &Url) -> String {
    let name = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| name.to_owned(), |port| format!("{name}:{port}"))
}

fn refusal(error: reqwest::Error, timeout: Duration) -> Refusal {
    match error.is_timeout() && !error.is_connect() {
        true => Refusal::TimedOut(timeout),
        // Its address would be told otherwise.
        false => Refusal::Unreachable(chain(&error.without_url())),
    }
}

/// Only seconds: the other form, a date, is as good as none.
fn retry_after(status: StatusCode, headers: &HeaderMap) -> Option<Duration> {
    let asks = matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    asks.then(|| Duration::from_secs(seconds))
}

/// As much of an answer as a log line holds; a receiver that goes on for ever is not listened to.
async fn beginning(mut response: reqwest::Response) -> String {
    let mut bytes = Vec::new();
    while bytes.len() < LONGEST_ANSWER {
        match response.chunk().await {
            Ok(Some(chunk)) => bytes.extend_from_slice(&chunk),
            Ok(None) | Err(_) => break,
        }
    }
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(LONGEST_ANSWER)]).into_owned();
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect::<String>().trim().to_owned()
}

/// An error and what lies under it; reqwest's own text leaves out the cause.
fn chain(error: &dyn std::error::Error) -> String {
    let (mut text, mut source) = (error.to_string(), error.source());
    while let Some(cause) = source {
        let told = cause.to_string();
        if !text.contains(&told) {
            text = format!("{text}: {told}");
        }
        source = cause.source();
    }
    text
}

/// The one secret that a file holds, without the line's end.
///
/// # Errors
/// Why there is none, without any of it.
pub(super) fn secret(path: &Path) -> Result<String, String> {
    let told = |why: &dyn fmt::Display| format!("{}: {why}", path.display());
    let meta = std::fs::metadata(path).map_err(|e| told(&e))?;
    if !meta.is_file() || meta.len() > LONGEST_SECRET {
        return Err(told(&"expected a file that holds one secret, and nothing else"));
    }
    let text = std::fs::read_to_string(path).map_err(|e| told(&e))?;
    let text = text.trim();
    if text.is_empty() || text.contains(char::is_whitespace) {
        return Err(told(&"expected one secret, and nothing else"));
    }
    Ok(text.to_owned())
}

//! `cutover.toml` as it is written: its sections and keys, none of them judged against the command line.

use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::cli::LogFormat;
use crate::error::{Error, Result};
use crate::repository::{duration, size};
use crate::telling::{AlertTarget, TelemetryTarget};

/// Read when `--config` names no other.
const DEFAULT_FILE: &str = "cutover.toml";

/// `cutover.toml`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct File {
    pub(super) server: Server,
    pub(super) limits: Limits,
    pub(super) device: Device,
    pub(super) log: Log,
    pub(super) ledger: LedgerFile,
    pub(super) tei: Tei,
    pub(super) alerts: Vec<AlertTarget>,
    pub(super) telemetry: TelemetryTarget,
    pub(super) faults: Vec<crate::faults::Fault>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Server {
    pub(super) models: Option<PathBuf>,
    pub(super) state: Option<PathBuf>,
    #[serde(deserialize_with = "optional_address")]
    pub(super) listen: Option<SocketAddr>,
    #[serde(deserialize_with = "optional_address")]
    pub(super) admin_listen: Option<SocketAddr>,
    #[serde(deserialize_with = "optional_address")]
    pub(super) grpc_listen: Option<SocketAddr>,
    pub(super) admin_token_file: Option<PathBuf>,
    pub(super) tls_cert: Option<PathBuf>,
    pub(super) tls_key: Option<PathBuf>,
    #[serde(alias = "api_key_file")]
    pub(super) api_key_files: OneOrMany,
    #[serde(deserialize_with = "optional_size")]
    pub(super) max_body_bytes: Option<usize>,
    #[serde(deserialize_with = "optional_duration")]
    pub(super) read_timeout: Option<Duration>,
    #[serde(deserialize_with = "optional_duration")]
    pub(super) drain_timeout: Option<Duration>,
    #[serde(deserialize_with = "optional_duration")]
    pub(super) lame_duck: Option<Duration>,
}

/// What connections may cost.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Limits {
    #[serde(deserialize_with = "optional_whole")]
    pub(super) max_connections: Option<usize>,
    #[serde(deserialize_with = "optional_size")]
    pub(super) max_buffered_bytes: Option<usize>,
    #[serde(deserialize_with = "optional_duration")]
    pub(super) keep_alive: Option<Duration>,
    #[serde(deserialize_with = "optional_duration")]
    pub(super) write_timeout: Option<Duration>,
    #[serde(deserialize_with = "optional_duration")]
    pub(super) handshake_timeout: Option<Duration>,
}

/// A path, or a list of them.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "a path, or a list of paths")]
pub(super) enum OneOrMany {
    One(PathBuf),
    Many(Vec<PathBuf>),
}

impl Default for OneOrMany {
    fn default() -> Self {
        OneOrMany::Many(Vec::new())
    }
}

impl OneOrMany {
    pub(super) fn into_vec(self) -> Vec<PathBuf> {
        match self {
            OneOrMany::One(path) => vec![path],
            OneOrMany::Many(paths) => paths,
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Device {
    pub(super) device: Option<String>,
    #[serde(deserialize_with = "optional_whole")]
    pub(super) threads: Option<usize>,
    #[serde(deserialize_with = "optional_bytes")]
    pub(super) memory: Option<u64>,
    #[serde(deserialize_with = "optional_whole")]
    pub(super) batch_tokens: Option<usize>,
    pub(super) graphs: Option<bool>,
    #[serde(deserialize_with = "optional_duration")]
    pub(super) stall_after: Option<Duration>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Log {
    pub(super) format: Option<LogFormat>,
    pub(super) filter: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct LedgerFile {
    #[serde(deserialize_with = "optional_whole")]
    pub(super) keep_rollouts: Option<usize>,
    #[serde(deserialize_with = "optional_whole")]
    pub(super) keep_events: Option<usize>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Tei {
    pub(super) model: Option<String>,
}

/// An address with its port, or a name of this machine with one: `localhost:8080`.
///
/// # Errors
/// Text for people.
pub(crate) fn parse_address(text: &str) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let expected = |e: std::io::Error| format!("expected an address such as 127.0.0.1:8080 or localhost:8080 ({e})");
    let found: Vec<SocketAddr> = text.to_socket_addrs().map_err(expected)?.collect();
    // Of a name with both, the one that clients try on every machine.
    let first = found.iter().find(|address| address.is_ipv4()).or(found.first());
    first.copied().ok_or_else(|| format!("'{text}' has no address"))
}

fn optional_address<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<SocketAddr>, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse_address(&text).map(Some).map_err(serde::de::Error::custom)
}

fn optional_duration<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    duration::deserialize(deserializer).map(Some)
}

fn optional_bytes<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    size::deserialize(deserializer).map(Some)
}

fn optional_size<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<usize>, D::Error> {
    size::deserialize(deserializer).and_then(size::fits).map(Some)
}

fn optional_whole<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<usize>, D::Error> {
    size::whole_usize(deserializer).map(Some)
}

impl File {
    /// What must not be nothing: the key, and what was expected of it.
    pub(super) fn check_some(&self) -> Result<(), (&'static str, &'static str)> {
        let Limits { max_connections, keep_alive, write_timeout, handshake_timeout, .. } = &self.limits;
        for (key, number) in [
            ("server.max_body_bytes", self.server.max_body_bytes),
            ("limits.max_connections", *max_connections),
            ("device.batch_tokens", self.device.batch_tokens),
        ] {
            if number == Some(0) {
                return Err((key, "at least 1"));
            }
        }
        for (key, duration) in [
            ("server.read_timeout", self.server.read_timeout),
            ("limits.keep_alive", *keep_alive),
            ("limits.write_timeout", *write_timeout),
            ("limits.handshake_timeout", *handshake_timeout),
            ("device.stall_after", self.device.stall_after),
        ] {
            if duration == Some(Duration::ZERO) {
                return Err((key, "more than 0s"));
            }
        }
        Ok(())
    }
}

/// The file that was named, or the default one where it is there; and what it is called.
pub(super) fn read_file(named: Option<&Path>) -> Result<(File, String)> {
    let (path, must) = match named {
        Some(path) => (path, true),
        None => (Path::new(DEFAULT_FILE), false),
    };
    let label = path.display().to_string();
    let wrong = |key: &str, reason: String| Error::Config { file: label.clone(), key: key.into(), reason };
    match std::fs::read_to_string(path) {
        Ok(text) => {
            let file = toml::from_str(&text).map_err(|e| wrong(&key_of(&text, &e), without_value(e.message())))?;
            Ok((file, label))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !must => Ok((File::default(), label)),
        Err(error) => Err(wrong("", format!("could not be read: {error}"))),
    }
}

/// Where an error points, as the line and the key that a person looks for, and no value: that may be a secret.
fn key_of(text: &str, error: &toml::de::Error) -> String {
    let Some(span) = error.span() else { return String::new() };
    let before = text.get(..span.start).unwrap_or(text);
    let number = before.matches('\n').count() + 1;
    let line = text.lines().nth(number - 1).unwrap_or("").trim();
    match named(line) {
        Some(name) => format!("line {number} ({name})"),
        None => format!("line {number}"),
    }
}

/// What a line is about: the key before its `=`, or the table that it begins.
fn named(line: &str) -> Option<&str> {
    let name = match line.split_once('=') {
        _ if line.starts_with('[') => &line[..=line.rfind(']')?],
        // What ends with it may be base64.
        Some((key, value)) if !value.trim_matches(['=', ' ']).is_empty() => key.trim_end(),
        _ => return None,
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.[] ".contains(c);
    // Anything else is a piece of a value that goes over several lines, or no key at all.
    (!name.is_empty() && name.chars().all(plain)).then_some(name)
}

/// What serde says is wrong, without the value that it found: what stands where something else was expected may be a secret.
fn without_value(message: &str) -> String {
    for (found, end) in [("string \"", "\", expected"), ("unknown variant `", "`, expected")] {
        if let Some((before, rest)) = message.split_once(found)
            && let Some(at) = rest.rfind(end)
        {
            let found = &found[..found.len() - 2];
            return format!("{before}{found}{}", &rest[at + 1..]);
        }
    }
    message.to_owned()
}

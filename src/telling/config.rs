//! `[[alerts]]` and `[telemetry]` of `cutover.toml`, as they are written and what must fit together in them.
//!
//! Files of secrets are named here and read by whoever opens a target.

use std::path::PathBuf;
use std::time::Duration;

use reqwest::Url;
use serde::Deserialize;

use crate::repository::duration;

/// What a receiver understands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A JSON object, signed where there is a secret.
    Json,
    /// An incoming webhook of Slack, or of whatever takes the same (Mattermost, Rocket.Chat).
    Slack,
    /// Version 2 of Alertmanager's API.
    Alertmanager,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::Json => "json",
            Kind::Slack => "slack",
            Kind::Alertmanager => "alertmanager",
        }
    }
}

/// What may be told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// Whatever a window's rules raise, and a model that does not serve.
    Alert,
    RolledBack,
    /// The gate said no.
    Refused,
    Failed,
    Aborted,
    /// The process died in a rollout.
    Interrupted,
    Switched,
    Settled,
}

impl Cause {
    pub fn name(self) -> &'static str {
        match self {
            Cause::Alert => "alert",
            Cause::RolledBack => "rolled_back",
            Cause::Refused => "refused",
            Cause::Failed => "failed",
            Cause::Aborted => "aborted",
            Cause::Interrupted => "interrupted",
            Cause::Switched => "switched",
            Cause::Settled => "settled",
        }
    }
}

/// What somebody wants to hear of who does not say it: what is not as it should be.
const UNSAID: [Cause; 5] = [Cause::Alert, Cause::RolledBack, Cause::Refused, Cause::Failed, Cause::Interrupted];

/// One `[[alerts]]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AlertTarget {
    /// In logs, metrics and `alerts test`; its kind and number where it is not said.
    pub name: Option<String>,
    pub kind: Kind,
    pub url: Option<String>,
    /// In place of `url`, where the address itself is the secret, as Slack's is.
    pub url_file: Option<PathBuf>,
    /// Of `json` what bodies are signed with, of `alertmanager` a bearer token.
    pub secret_file: Option<PathBuf>,
    /// The authority that vouches for the receiver, in PEM, in place of those that this machine trusts.
    pub ca_file: Option<PathBuf>,
    #[serde(default)]
    pub on: Option<Vec<Cause>>,
    /// For one attempt.
    #[serde(default = "ten_seconds", deserialize_with = "duration::deserialize")]
    pub timeout: Duration,
    /// The same of the same rollout is told once in so long.
    #[serde(default = "an_hour", deserialize_with = "duration::deserialize")]
    pub repeat: Duration,
    /// How long it is tried to tell one.
    #[serde(default = "fifteen_minutes", deserialize_with = "duration::deserialize")]
    pub give_up_after: Duration,
}

fn ten_seconds() -> Duration {
    Duration::from_secs(10)
}

fn an_hour() -> Duration {
    Duration::from_secs(3600)
}

fn fifteen_minutes() -> Duration {
    Duration::from_secs(900)
}

impl AlertTarget {
    pub fn causes(&self) -> &[Cause] {
        self.on.as_deref().unwrap_or(&UNSAID)
    }

    /// What it goes by, the `number`th of the file.
    pub fn called(&self, number: usize) -> String {
        self.name.clone().unwrap_or_else(|| format!("{}-{number}", self.kind.name()))
    }

    /// That its keys fit together.
    ///
    /// # Errors
    /// The key, and what was expected of it.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        match (&self.url, &self.url_file) {
            (Some(url), None) => drop(parse_url(url).map_err(|reason| ("url", reason))?),
            (None, Some(_)) => {}
            (Some(_), Some(_)) => return Err(("url_file", "expected either url or url_file, found both".to_owned())),
            (None, None) => return Err(("url", "is missing, and so is url_file".to_owned())),
        }
        if self.name.as_deref().is_some_and(|name| name.is_empty() || name.len() > 64) {
            return Err(("name", "expected 1 to 64 bytes".to_owned()));
        }
        if self.kind == Kind::Slack && self.secret_file.is_some() {
            return Err(("secret_file", "is for kind = \"json\" and kind = \"alertmanager\" only".to_owned()));
        }
        if self.on.as_ref().is_some_and(Vec::is_empty) {
            return Err(("on", "expected at least one thing to tell of".to_owned()));
        }
        for (key, length) in [("timeout", self.timeout), ("give_up_after", self.give_up_after)] {
            if length.is_zero() {
                return Err((key, "expected more than 0s".to_owned()));
            }
        }
        Ok(())
    }
}

/// `[telemetry]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TelemetryTarget {
    /// The base address of a collector that takes OTLP over HTTP: `/v1/traces` is put behind it.
    pub otlp: Option<String>,
    /// Of the requests that do not come with a trace of their own, the share that is traced.
    pub sample: f64,
    pub secret_file: Option<PathBuf>,
    pub ca_file: Option<PathBuf>,
    #[serde(deserialize_with = "duration::deserialize")]
    pub timeout: Duration,
}

impl Default for TelemetryTarget {
    fn default() -> Self {
        TelemetryTarget { otlp: None, sample: 1.0, secret_file: None, ca_file: None, timeout: ten_seconds() }
    }
}

impl TelemetryTarget {
    /// That its keys fit together.
    ///
    /// # Errors
    /// The key, and what was expected of it.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        if let Some(url) = &self.otlp {
            parse_url(url).map_err(|reason| ("otlp", reason))?;
        }
        if !(0.0..=1.0).contains(&self.sample) {
            return Err(("sample", format!("expected a number from 0 to 1, found {}", self.sample)));
        }
        if self.timeout.is_zero() {
            return Err(("timeout", "expected more than 0s".to_owned()));
        }
        Ok(())
    }
}

/// An address that something may be posted to. What it refuses it does not repeat: an address may be a secret.
pub(super) fn parse_url(text: &str) -> Result<Url, String> {
    let expected = "expected http://HOST/… or https://HOST/…";
    let url = Url::parse(text).map_err(|e| format!("{expected} ({e})"))?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err(format!("{expected}, found the scheme {:?}", url.scheme()));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("credentials do not belong in an address; use secret_file".to_owned());
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(lines: &str) -> Result<AlertTarget, toml::de::Error> {
        toml::from_str(lines)
    }

    #[test]
    fn what_is_not_said_has_a_sensible_value() {
        let target = target("kind = 'slack'\nurl = 'https://hooks.example/x'").unwrap();
        target.check().unwrap();
        assert_eq!(target.called(2), "slack-2");
        assert!(target.causes().contains(&Cause::RolledBack) && !target.causes().contains(&Cause::Switched));
        assert!(target.give_up_after > target.timeout);
    }

    #[test]
    fn what_cannot_be_meant_names_its_key_and_what_was_expected() {
        for (lines, key, part) in [
            ("kind = 'json'", "url", "is missing"),
            ("kind = 'json'\nurl = 'http://a'\nurl_file = 'f'", "url_file", "either"),
            ("kind = 'json'\nurl = 'ftp://a'", "url", "expected http://HOST"),
            ("kind = 'json'\nurl = 'a/b'", "url", "expected http://HOST"),
            ("kind = 'json'\nurl = 'http://u:p@a'", "url", "secret_file"),
            ("kind = 'slack'\nurl = 'http://a'\nsecret_file = 'f'", "secret_file", "json"),
            ("kind = 'json'\nurl = 'http://a'\non = []", "on", "at least one"),
            ("kind = 'json'\nurl = 'http://a'\ntimeout = '0'", "timeout", "more than 0s"),
            ("kind = 'json'\nurl = 'http://a'\nname = ''", "name", "1 to 64"),
        ] {
            let (found, reason) = target(lines).unwrap().check().unwrap_err();
            assert!(found == key && reason.contains(part), "{lines}: {found}: {reason}");
        }
        for (lines, part) in [
            (
                "kind = 'pager'\nurl = 'http://a'",
                "unknown variant `pager`, expected one of `json`, `slack`, `alertmanager`",
            ),
            ("kind = 'json'\nurl = 'http://a'\non = ['noise']", "unknown variant `noise`, expected one of `alert`"),
            ("kind = 'json'\nurl = 'http://a'\nsecret = 'x'", "unknown field `secret`"),
        ] {
            let message = target(lines).unwrap_err().message().to_owned();
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn an_address_that_is_refused_is_not_repeated() {
        let message = parse_url("secret-token-in-a-bad-address").unwrap_err();
        assert!(!message.contains("secret-token"), "{message}");
    }

    #[test]
    fn a_share_of_requests_is_one() {
        for (sample, fits) in [("0.0", true), ("1", true), ("1.5", false), ("-0.1", false), ("nan", false)] {
            let target: TelemetryTarget = toml::from_str(&format!("sample = {sample}")).unwrap();
            assert_eq!(target.check().is_ok(), fits, "{sample}");
        }
    }
}

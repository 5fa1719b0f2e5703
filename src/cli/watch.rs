//! `watch`: events as they happen, going on after a lost connection where it stopped. On a terminal, below them, what goes on now.

mod panel;

use std::io::{IsTerminal as _, Write};
use std::time::Duration;

use clap::Args;
use serde_json::Value;
use tokio::time::Instant;

use super::client::{Api, ClientArgs, Events, model_path};
use super::output::{Failure, human_field, note, printable};
use panel::Panel;

/// A server that stays away this long is not coming back by itself.
const GIVE_UP_AFTER: Duration = Duration::from_secs(60);
const RETRY_FROM: Duration = Duration::from_millis(200);
const RETRY_TO: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Args)]
pub struct WatchArgs {
    /// Only this model's events
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
    #[command(flatten)]
    pub client: ClientArgs,
}

pub(super) async fn watch(args: &WatchArgs, out: &mut dyn Write) -> Result<(), Failure> {
    let api = Api::new(&args.client.connection)?;
    let panel = (!args.client.json && std::io::stdout().is_terminal()).then(Panel::new);
    let mut follower = Follower { args, panel };
    if let Some(model) = &args.model {
        // Else nothing would be told of it for ever.
        api.get(&model_path(model, "")).await?;
    }
    // The first connection must succeed: a wrong address or token is a mistake, not an outage.
    let mut stream = api.events("/admin/events", None).await?;
    loop {
        let mut now = match &follower.panel {
            Some(_) => Some(api.events("/admin/live", None).await?),
            None => None,
        };
        let lost = loop {
            let (told, of_now) = tokio::select! {
                told = stream.next() => (told, false),
                told = next_of(&mut now) => (told, true),
            };
            match told {
                Ok(Some(overview)) if of_now => follower.overview(&overview)?,
                Ok(Some(event)) => follower.show(&event, out)?,
                Ok(None) => break "the server ended the stream".to_owned(),
                Err(Failure::Unreachable { reason, .. } | Failure::Lost { reason, .. }) => break reason,
                Err(failure) => return Err(failure),
            }
        };
        follower.note(&format!("{lost}; connecting again"))?;
        stream = reconnect(&api, stream.last_id()).await?;
    }
}

/// The next of a stream; none comes of none.
async fn next_of(stream: &mut Option<Events>) -> Result<Option<super::sse::Event>, Failure> {
    match stream {
        Some(stream) => stream.next().await,
        None => std::future::pending().await,
    }
}

struct Follower<'a> {
    args: &'a WatchArgs,
    /// On a terminal.
    panel: Option<Panel>,
}

impl Follower<'_> {
    fn show(&mut self, event: &super::sse::Event, out: &mut dyn Write) -> Result<(), Failure> {
        let body: Value = serde_json::from_str(&event.data)
            .map_err(|e| Failure::Failed(format!("an event that is not JSON: {e}")))?;
        if self.args.model.as_deref().is_some_and(|model| body["model"].as_str() != Some(model)) {
            return Ok(());
        }
        match &self.panel {
            Some(panel) => panel.pass(&line(&event.event, &body))?,
            None if self.args.client.json => writeln!(out, "{body}")?,
            None => writeln!(out, "{}", line(&event.event, &body))?,
        }
        out.flush()?;
        Ok(())
    }

    fn overview(&mut self, event: &super::sse::Event) -> Result<(), Failure> {
        let overview = serde_json::from_str(&event.data)
            .map_err(|e| Failure::Failed(format!("an overview that is not JSON: {e}")))?;
        if let Some(panel) = &mut self.panel {
            panel.show(&overview, self.args.model.as_deref());
        }
        Ok(())
    }

    fn note(&self, text: &str) -> Result<(), Failure> {
        match &self.panel {
            Some(panel) => panel.pass(&printable(text))?,
            None => note(text),
        }
        Ok(())
    }
}

async fn reconnect(api: &Api, last_id: Option<&str>) -> Result<super::client::Events, Failure> {
    let began = Instant::now();
    let mut pause = RETRY_FROM;
    loop {
        tokio::time::sleep(pause).await;
        match api.events("/admin/events", last_id).await {
            Err(failure @ (Failure::Unreachable { .. } | Failure::Lost { .. })) if began.elapsed() > GIVE_UP_AFTER => {
                return Err(failure);
            }
            Err(Failure::Unreachable { .. } | Failure::Lost { .. }) => pause = (pause * 2).min(RETRY_TO),
            other => return other,
        }
    }
}

/// `12:00:01.250Z digits switched from=v1 to=v2`.
fn line(kind: &str, event: &Value) -> String {
    let kind = event["kind"].as_str().unwrap_or(kind);
    let mut line = match event["at_ms"].as_i64() {
        Some(at_ms) => time_of_day(at_ms),
        None => "-".to_owned(),
    };
    line.push_str(&format!(" {} {}", event["model"].as_str().unwrap_or("-"), kind));
    match &event["body"] {
        Value::Object(facts) => {
            for (name, value) in facts.iter().filter(|(_, value)| !value.is_null()) {
                line.push_str(&format!(" {name}={}", human_field(name, value)));
            }
        }
        Value::Null => {}
        other => line.push_str(&format!(" {}", human_field("", other))),
    }
    printable(&line)
}

/// The time of day in UTC of a Unix time in milliseconds.
fn time_of_day(at_ms: i64) -> String {
    let ms = at_ms.rem_euclid(86_400_000);
    let (hours, minutes, seconds) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1_000 % 60);
    format!("{hours:02}:{minutes:02}:{seconds:02}.{:03}Z", ms % 1_000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_event_is_one_line() {
        let event = json!({"seq": 3, "at_ms": 1_700_000_000_123_i64, "model": "digits", "rollout": "r1", "kind": "phase",
            "body": {"phase": "loading", "took_ms": 12.5, "note": null, "text": "a\nb"}});
        assert_eq!(line("phase", &event), "22:13:20.123Z digits phase phase=loading took_ms=12.5 ms text=a\\nb");
    }
}

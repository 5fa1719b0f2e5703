//! What happens, as server-sent events: each event of the ledger, and everything at once for whoever looks on.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::response::sse::{Event as SseEvent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt, stream};
use serde::Deserialize;
use serde_json::json;

use crate::error::Result;
use crate::http::App;
use crate::http::reply::Failure;
use crate::http::routes::Asked;
use crate::ledger::{Event, Ledger};
use crate::rollout::Journal;
use crate::telling::Feed;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Since {
    /// Events after this sequence number come first, unless `Last-Event-ID` names another.
    after: Option<i64>,
}

/// Events as they happen. `Last-Event-ID` or `?after=` brings those that were missed, from the ledger.
pub(super) async fn events(State(app): State<Arc<App>>, Asked(since): Asked<Since>, request: Request) -> Response {
    let last = request.headers().get("last-event-id").and_then(|value| value.to_str().ok()?.parse().ok());
    // A browser that connects again does so to the address that it was given once: what it says itself is newer.
    let (after, feed) = match feed(app.supervisor.journal(), last.or(since.after)).await {
        Ok(feed) => feed,
        Err(error) => return Failure::native(error).into_response(),
    };
    // An id alone is no event, and yet what a client goes on from that loses the connection before the first.
    let begun = stream::once(std::future::ready(SseEvent::default().id(after.to_string())));
    // A server that stops does not wait for its listeners: they get what happened, and then the end.
    let events = stream::unfold((feed, app.closing.subscribe()), |(mut feed, mut closing)| async move {
        Some((feed.next_until(&mut closing).await?, (feed, closing)))
    });
    let sent = begun.chain(events.map(|event| sent(&event))).map(Ok::<_, Infallible>);
    Sse::new(sent).keep_alive(KeepAlive::new().interval(Duration::from_secs(15))).into_response()
}

/// What has happened after an event that is known, and which that is; with none, what happens from now on.
async fn feed(journal: &Journal, known: Option<i64>) -> Result<(i64, Feed)> {
    let newest = journal.with(Ledger::last_seq).await?;
    // A number that has not been given yet is of another ledger, and is no reason to be told nothing.
    let after = known.map_or(newest, |known| known.min(newest));
    Ok((after, journal.feed(after).with_missed().await?))
}

/// Only what the ledger has bears an id: a client could not go on from another.
fn sent(event: &Event) -> SseEvent {
    let data = serde_json::to_string(event).unwrap_or_default();
    let sent = SseEvent::default().event(&event.kind).data(data);
    if event.is_written() { sent.id(event.seq.to_string()) } else { sent }
}

/// Everything at one moment: at once, then each second and after each event.
pub(super) async fn live(State(app): State<Arc<App>>) -> Response {
    let told = app.supervisor.overviews();
    let first = app.supervisor.overview().await;
    let new = stream::unfold((told, app.closing.subscribe()), |(mut told, mut closing)| async move {
        tokio::select! {
            biased;
            changed = told.changed() => changed.ok()?,
            _ = closing.wait_for(|closing| *closing) => return None,
        }
        // Who reads slowly gets the newest.
        let overview = Arc::clone(&told.borrow_and_update());
        Some((overview, (told, closing)))
    });
    let all = stream::once(std::future::ready(Arc::from(json!(first).to_string()))).chain(new);
    let events =
        all.map(|overview: Arc<str>| Ok::<_, Infallible>(SseEvent::default().event("overview").data(overview)));
    Sse::new(events).keep_alive(KeepAlive::new().interval(Duration::from_secs(15))).into_response()
}

//! What happens, as server-sent events: each event of the ledger, and everything at once for whoever looks on.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::response::sse::{Event as SseEvent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, StreamExt, stream};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::sync::watch;

use crate::http::App;
use crate::http::reply::Failure;
use crate::http::routes::Asked;
use crate::ledger::Event;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Since {
    /// Events after this sequence number come first.
    after: Option<i64>,
}

/// Events as they happen. `Last-Event-ID` or `?after=` brings those that were missed, from the ledger.
pub(super) async fn events(State(app): State<Arc<App>>, Asked(since): Asked<Since>, request: Request) -> Response {
    let last = request.headers().get("last-event-id").and_then(|value| value.to_str().ok()?.parse().ok());
    // Subscribe before reading, so that nothing falls between.
    let live = app.supervisor.journal().subscribe();
    let missed = match since.after.or(last) {
        Some(after) => match app.supervisor.events_after(after, 10_000).await {
            Ok(events) => events,
            Err(error) => return Failure::native(error).into_response(),
        },
        None => Vec::new(),
    };
    let newest = missed.last().map_or(i64::MIN, |event| event.seq);
    let old = stream::iter(missed);
    let new = subscription(live, app.closing.subscribe()).filter(move |event| std::future::ready(event.seq > newest));
    let stream = old.chain(new).map(|event| {
        let data = serde_json::to_string(&event).unwrap_or_default();
        Ok::<_, Infallible>(SseEvent::default().id(event.seq.to_string()).event(event.kind).data(data))
    });
    Sse::new(stream).keep_alive(KeepAlive::new().interval(Duration::from_secs(15))).into_response()
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

/// A listener that falls too far behind goes on with what is newest; its ids show the hole. A server that stops does
/// not wait for its listeners: they get what happened, and then the end.
fn subscription(live: broadcast::Receiver<Event>, closing: watch::Receiver<bool>) -> impl Stream<Item = Event> {
    stream::unfold((live, closing), |(mut live, mut closing)| async move {
        loop {
            let event = tokio::select! {
                biased;
                event = live.recv() => event,
                _ = closing.wait_for(|closing| *closing) => return None,
            };
            match event {
                Ok(event) => return Some((event, (live, closing))),
                Err(RecvError::Lagged(missed)) => tracing::warn!(missed, "an event listener fell behind"),
                Err(RecvError::Closed) => return None,
            }
        }
    })
}

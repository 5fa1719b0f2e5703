//! The end of the server, while texts are being written.

use std::time::{Duration, Instant};

use super::common::streams::{Streamed, begun, order};
use super::common::{Server, Site, until};

/// A text of a minute that has begun, on a server with these settings.
async fn writing(settings: &str) -> (Site, Server, tokio::task::JoinHandle<Streamed>) {
    let site = Site::new().fault("version = 'tiny@a'\nkind = 'delay'\ndelay = '300ms'").config(settings);
    site.add_writer("tiny");
    site.model("tiny", "task = 'generate'\nlive = 'a'\n");
    let server = site.start().await;
    let text = begun(&server, order("tiny", "a", 200)).await;
    (site, server, text)
}

async fn was_cut(mut server: Server, text: tokio::task::JoinHandle<Streamed>) {
    let began = Instant::now();
    assert_eq!(server.ended().await, 0, "{}", server.log());
    assert!(began.elapsed() < Duration::from_secs(30), "all of it was written");
    let text = text.await.unwrap();
    assert_eq!((text.reason.as_deref(), text.done, &text.error), (Some("length"), true, &None));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_still_written_after_the_drain_timeout_ends_where_it_is() {
    let (_site, server, text) = writing("[server]\ndrain_timeout = '1s'\n").await;
    server.terminate();
    was_cut(server, text).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_is_not_waited_after() {
    let (_site, server, text) = writing("[server]\ndrain_timeout = '10m'\n").await;
    server.terminate();
    until("it has heard the first", async || server.log().contains("stopping").then_some(())).await;
    server.terminate();
    was_cut(server, text).await;
}

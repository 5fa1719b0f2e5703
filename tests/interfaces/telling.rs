//! What a running server tells others: alerts to webhooks, traces to a collector. The receivers are in this process.

use std::fs;
use std::process::{Command, Output};
use std::time::Duration;

use crate::common::inputs::digit;
use crate::common::{PATIENCE, Server, Site, disk};
use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

/// A request that was received.
#[derive(Debug)]
struct Told {
    path: String,
    headers: HeaderMap,
    body: Value,
}

/// A server that takes whatever it is told, or refuses it.
struct Receiving {
    url: String,
    told: mpsc::UnboundedReceiver<Told>,
}

impl Receiving {
    async fn start(answer: StatusCode) -> Receiving {
        let (tell, told) = mpsc::unbounded_channel();
        let app = Router::new().fallback(move |request: Request| {
            let tell = tell.clone();
            async move {
                let (parts, body) = request.into_parts();
                let body = axum::body::to_bytes(body, 1 << 24).await.unwrap();
                let body = serde_json::from_slice(&body).unwrap();
                // The test may have seen enough.
                let _ = tell.send(Told { path: parts.uri.path().to_owned(), headers: parts.headers, body });
                answer
            }
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, app).await });
        Receiving { url, told }
    }

    async fn next(&mut self) -> Told {
        tokio::time::timeout(PATIENCE, self.told.recv()).await.expect("nothing came").unwrap()
    }
}

/// Waits until the metrics have such a line: what was told is counted once the receiver has answered.
async fn told_in_metrics(server: &Server, line: &str) {
    let began = std::time::Instant::now();
    loop {
        let page = server.get("/metrics").await.body.as_str().unwrap().to_owned();
        if page.contains(line) {
            return;
        }
        assert!(began.elapsed() < PATIENCE, "no {line}: {page}");
        // The page says when it is there, and nothing else does.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// `cutover alerts test` against a server.
fn test_alerts(server: &Server, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cutover"));
    command.args(["alerts", "test", "--url", &server.url]).args(more).output().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happens_in_rollouts_is_told_to_every_kind_of_receiver() {
    let mut receiving = Receiving::start(StatusCode::OK).await;
    let site = Site::digits();
    let secret = site.path().join("secret");
    fs::write(&secret, "sesame-opens").unwrap();
    let url = &receiving.url;
    let site = site.config(&format!(
        "[[alerts]]\nkind = 'json'\nurl = '{url}/json'\nsecret_file = '{}'\non = ['refused', 'rolled_back', 'switched']\n\
         [[alerts]]\nkind = 'slack'\nurl = '{url}/slack'\non = ['refused']\n\
         [[alerts]]\nname = 'pager'\nkind = 'alertmanager'\nurl = '{url}'\non = ['refused']\n",
        secret.display()
    ));
    let server = site.start().await;
    server.promote("v3", json!({})).await.expect(422);
    let mut first = [receiving.next().await, receiving.next().await, receiving.next().await];
    first.sort_by(|a, b| a.path.cmp(&b.path));
    let [pager, plain, slack] = first;
    assert_eq!(
        (pager.path.as_str(), &pager.body[0]["labels"]["alertname"]),
        ("/api/v2/alerts", &json!("CutoverRefused"))
    );
    assert_eq!((&plain.body["what"], &plain.body["version"]), (&json!("refused"), &json!("v3")), "{plain:?}");
    assert!(plain.headers["x-cutover-signature"].to_str().unwrap().starts_with("t="), "{plain:?}");
    assert!(!plain.headers.contains_key("authorization"));
    let text = slack.body["text"].as_str().unwrap();
    assert!(text.starts_with("[warning] digits: v3 was refused") && text.contains("checks"), "{text}");

    let promoted = server.promote("v2", json!({})).await.expect(200).id();
    assert_eq!(receiving.next().await.body["what"], "switched");
    server.post("/admin/rollback", json!({ "reason": "as planned" })).await.expect(200);
    let back = receiving.next().await.body;
    assert_eq!(
        (&back["what"], &back["severity"], &back["version"]),
        (&json!("rolled_back"), &json!("warning"), &json!("v2"))
    );
    assert_eq!(back["message"], "digits: v2 was rolled back to v1: as planned");
    // The same event as the ledger has.
    let id = back["id"].as_i64().unwrap();
    let mut events = server.stream(reqwest::Method::GET, &format!("/admin/events?after={}", id - 1), Value::Null).await;
    assert_eq!(events.next().await.unwrap().name, "rolled_back");
    // From a share of the requests too, once its memory is back.
    crate::common::until("it is over", async || {
        (server.rollout(&promoted).await["phase"] == "rolled_back").then_some(())
    })
    .await;
    let canary = json!({ "canary": [50], "canary_step": "10m", "wait": "none" });
    let id = server.promote("v2", canary).await.expect(202).id();
    crate::common::until("a canary", async || (server.rollout(&id).await["phase"] == "canary").then_some(())).await;
    server.post("/admin/rollback", json!({ "reason": "not that one" })).await.expect(200);
    assert_eq!(receiving.next().await.body["message"], "digits: v2 was rolled back to v1: not that one");
    for target in ["slack-2", "pager"] {
        told_in_metrics(&server, &format!("cutover_alerts_total{{target=\"{target}\",outcome=\"delivered\"}} 1\n"))
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_test_tells_which_receivers_would_hear_and_why_the_others_would_not() {
    let mut receiving = Receiving::start(StatusCode::OK).await;
    let broken = Receiving::start(StatusCode::INTERNAL_SERVER_ERROR).await;
    let site = Site::digits().config(&format!(
        "[[alerts]]\nname = 'good'\nkind = 'json'\nurl = '{}/good'\n[[alerts]]\nname = 'bad'\nkind = 'slack'\nurl = '{}/secret-path'\n",
        receiving.url, broken.url
    ));
    let server = site.start().await;
    let tested = test_alerts(&server, &[]);
    let shown = String::from_utf8(tested.stdout).unwrap();
    assert_eq!(tested.status.code(), Some(1), "{shown}");
    assert!(
        shown.contains("good") && shown.contains("delivered (200)") && shown.contains("FAILED: it answered 500"),
        "{shown}"
    );
    assert!(!shown.contains("secret-path"), "{shown}");
    let told = receiving.next().await.body;
    assert_eq!((&told["test"], &told["severity"]), (&json!(true), &json!("info")));
    let tested = test_alerts(&server, &["--target", "good", "--json"]);
    assert_eq!(tested.status.code(), Some(0));
    let told: Value = serde_json::from_slice(&tested.stdout).unwrap();
    assert_eq!((told["alerts"].as_array().unwrap().len(), &told["alerts"][0]["delivered"]), (1, &json!(true)));
    let unknown = server.post("/admin/alerts/test", json!({ "target": "nobody" })).await.expect(400);
    assert!(unknown.message().contains("expected one of good, bad"), "{}", unknown.body);
    let silent = Site::digits().start().await;
    let nobody = silent.post("/admin/alerts/test", json!({})).await.expect(409);
    assert!(nobody.message().contains("[[alerts]]"), "{}", nobody.body);
}

/// A rollout takes what it takes, whatever becomes of what is told of it.
#[tokio::test(flavor = "multi_thread")]
async fn receivers_that_hang_delay_no_rollout_and_are_given_up_with_a_line_in_the_log() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let accepting = tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            held.push(stream);
        }
    });
    let mut receiving = Receiving::start(StatusCode::OK).await;
    let site = Site::digits().config(&format!(
        "[[alerts]]\nname = 'deaf'\nkind = 'json'\nurl = '{url}/secret-path'\ntimeout = '200ms'\ngive_up_after = '2s'\non = ['switched']\n\
         [[alerts]]\nname = 'other'\nkind = 'json'\nurl = '{}'\non = ['switched']\n",
        receiving.url
    ));
    let server = site.start().await;
    server.promote("v2", json!({ "observe": "0s", "wait": "settled" })).await.expect(200);
    assert_eq!(receiving.next().await.body["what"], "switched");
    let log = server.says("an alert was not told").await;
    assert!(
        log.contains("it did not answer within 0.2 s") && log.contains("deaf") && !log.contains("secret-path"),
        "{log}"
    );
    told_in_metrics(&server, "cutover_alerts_total{target=\"deaf\",outcome=\"given_up\"} 1").await;
    accepting.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_that_cannot_be_written_down_is_told_all_the_same() {
    if !disk::can_be_filled() {
        return;
    }
    let mut receiving = Receiving::start(StatusCode::OK).await;
    let alerts =
        format!("[[alerts]]\nname = 'pager'\nkind = 'json'\nurl = '{}'\non = ['rolled_back']\n", receiving.url);
    let server = Site::digits().wrapped(disk::WRAPPER).config(&alerts).start().await;
    server.promote("v2", json!({})).await.expect(200);
    disk::fill(&server, true);
    server.post("/admin/rollback", json!({ "reason": "a drill" })).await.expect(200);
    let told = receiving.next().await.body;
    assert_eq!(
        (&told["what"], &told["message"]),
        (&json!("rolled_back"), &json!("digits: v2 was rolled back to v1: a drill"))
    );
    assert!(told["id"].as_i64() < Some(0), "it has no number in the ledger: {told}");
    disk::fill(&server, false);
    // Once it is written it is no news.
    told_in_metrics(&server, "cutover_alerts_total{target=\"pager\",outcome=\"duplicate\"} 1\n").await;
    told_in_metrics(&server, "cutover_alerts_total{target=\"pager\",outcome=\"delivered\"} 1\n").await;
}

/// Prometheus takes a series that begins with 1 for one that has not risen, and one that falls for one that began anew.
#[tokio::test(flavor = "multi_thread")]
async fn counters_that_rules_watch_begin_with_nothing_and_count_this_process_alone() {
    let site = Site::digits().config(
        "[ledger]\nkeep_rollouts = 1\n[[alerts]]\nname = 'pager'\nkind = 'json'\nurl = 'http://127.0.0.1:9'\non = ['failed']\n",
    );
    let has = async |server: &Server, lines: &[&str]| {
        let page = server.get("/metrics").await.expect(200).body.as_str().unwrap().to_owned();
        for line in lines {
            assert!(page.contains(&format!("{line}\n")), "no {line}: {page}");
        }
    };
    let nothing = [
        "cutover_alerts_total{target=\"pager\",outcome=\"given_up\"} 0",
        "cutover_alerts_total{target=\"pager\",outcome=\"dropped\"} 0",
        "cutover_failovers_total{model=\"digits\"} 0",
        "cutover_rollouts_total 0",
        "cutover_switches_total 0",
        "cutover_rollbacks_total 0",
    ];
    let back_and_forth = async |server: &Server| {
        server.promote("v2", json!({})).await.expect(200);
        server.post("/admin/rollback", json!({ "wait": "settled" })).await.expect(200);
    };
    let server = site.start().await;
    has(&server, &nothing).await;
    back_and_forth(&server).await;
    back_and_forth(&server).await;
    has(&server, &["cutover_rollouts_total 2", "cutover_switches_total 2", "cutover_rollbacks_total 2"]).await;
    // One of both is kept, from then on, and both are counted.
    let kept = async || server.get("/admin/rollouts").await.expect(200).body["figures"]["rollbacks"].clone();
    crate::common::until("old history is gone", async || (kept().await == 1).then_some(())).await;
    has(&server, &["cutover_rollouts_total 2", "cutover_switches_total 2", "cutover_rollbacks_total 2"]).await;
    drop(server);
    // Neither is news.
    let server = site.start().await;
    assert_eq!(server.get("/admin/rollouts").await.expect(200).body["figures"]["rollbacks"], 1);
    has(&server, &nothing).await;
    back_and_forth(&server).await;
    has(&server, &["cutover_rollbacks_total 1"]).await;
}

/// What happened while the process died is told by the next one.
#[tokio::test(flavor = "multi_thread")]
async fn a_crash_in_a_rollout_is_told_by_the_next_start() {
    let mut receiving = Receiving::start(StatusCode::OK).await;
    let site =
        Site::digits().config(&format!("[[alerts]]\nkind = 'json'\nurl = '{}'\non = ['interrupted']\n", receiving.url));
    let mut server = site.start().await;
    server.promote("v2", json!({})).await.expect(200);
    server.kill();
    let _server = site.start().await;
    let told = receiving.next().await.body;
    assert_eq!((&told["what"], &told["version"]), (&json!("interrupted"), &json!("v2")), "{told}");
    assert!(told["message"].as_str().unwrap().contains("'v2' stays live"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_does_not_come_up_is_told() {
    let mut receiving = Receiving::start(StatusCode::OK).await;
    let site = Site::digits().config(&format!("[[alerts]]\nkind = 'json'\nurl = '{}'\n", receiving.url));
    drop(site.start().await);
    std::fs::rename(site.models().join("digits/v1"), site.path().join("aside")).unwrap();
    let server = site.start().await;
    let told = receiving.next().await.body;
    assert_eq!((&told["what"], &told["severity"]), (&json!("not_serving"), &json!("critical")), "{told}");
    assert!(told["message"].as_str().unwrap().starts_with("digits: it does not serve: "), "{told}");
    told_in_metrics(&server, "cutover_model_serving{model=\"digits\"} 0\n").await;
}

#[test]
fn a_configuration_that_cannot_be_meant_is_refused_with_its_file_and_key() {
    for (text, parts) in [
        ("[[alerts]]\nkind = 'json'\n", ["cutover.toml", "alerts[1].url", "is missing"]),
        ("[[alerts]]\nkind = 'carrier-pigeon'\nurl = 'http://a'\n", ["cutover.toml", "kind", "expected one of"]),
        (
            "[[alerts]]\nkind = 'json'\nurl = 'http://a'\nsecret_file = 'none'\n",
            ["cutover.toml", "alerts[1].secret_file", "No such"],
        ),
        ("[telemetry]\notlp = 'collector:4318'\n", ["cutover.toml", "telemetry.otlp", "expected http://HOST"]),
        ("[telemetry]\notlp = 'http://c'\nsample = 7.0\n", ["cutover.toml", "telemetry.sample", "from 0 to 1"]),
    ] {
        let (code, said) = Site::digits().config(text).refused();
        assert_eq!(code, 1, "{said}");
        assert!(parts.iter().all(|part| said.contains(part)), "{text}: {said}");
    }
}

/// The spans of a collector's requests, until there are such ones.
async fn spans_until(collector: &mut Receiving, enough: impl Fn(&[Value]) -> bool) -> Vec<Value> {
    let mut spans = Vec::new();
    while !enough(&spans) {
        let told = collector.next().await;
        assert_eq!(told.path, "/v1/traces");
        let resource = &told.body["resourceSpans"][0];
        assert_eq!(
            resource["resource"]["attributes"][0],
            json!({"key": "service.name", "value": {"stringValue": "cutover"}})
        );
        spans.extend(resource["scopeSpans"][0]["spans"].as_array().unwrap().clone());
    }
    spans
}

fn attribute<'a>(span: &'a Value, key: &str) -> Option<&'a str> {
    let attributes = span["attributes"].as_array().unwrap();
    let value = &attributes.iter().find(|attribute| attribute["key"] == key)?["value"];
    value["stringValue"].as_str().or(value["intValue"].as_str())
}

fn named<'a>(spans: &'a [Value], name: &str) -> Vec<&'a Value> {
    spans.iter().filter(|span| span["name"] == name).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_and_rollouts_are_traced_with_the_version_on_every_span() {
    let mut collector = Receiving::start(StatusCode::OK).await;
    let site = Site::digits().config(&format!("[telemetry]\notlp = '{}'\n", collector.url));
    let server = site.start().await;
    let (infer, promote) = ("POST /models/{ref}/infer", "POST /models/{ref}/promote");
    let ask = |traceparent: &str| {
        let request = server.request(reqwest::Method::POST, "/models/digits/infer");
        request.header("content-type", "image/png").header("traceparent", traceparent).body(digit(7))
    };
    let (trace, parent) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
    ask(&format!("00-{trace}-{parent}-01")).header("x-request-id", "mine").send().await.unwrap();
    // Whoever began the trace did not want it.
    ask(&format!("00-{trace}-{parent}-00")).header("x-request-id", "unwanted").send().await.unwrap();
    let rollout = server.promote("v2", json!({ "observe": "0s", "wait": "settled" })).await.expect(200);
    server.image("digits", &digit(3)).await.expect(200);
    let spans = spans_until(&mut collector, |spans| {
        named(spans, infer).len() >= 2 && ["rollout digits", promote].iter().all(|name| !named(spans, name).is_empty())
    })
    .await;

    let asked = named(&spans, infer);
    let first = asked.iter().find(|span| attribute(span, "cutover.request_id") == Some("mine")).unwrap();
    assert_eq!((&first["traceId"], &first["parentSpanId"], &first["kind"]), (&json!(trace), &json!(parent), &json!(2)));
    assert_eq!((attribute(first, "cutover.model"), attribute(first, "cutover.version")), (Some("digits"), Some("v1")));
    assert_eq!(
        (attribute(first, "cutover.generation"), attribute(first, "http.response.status_code")),
        (Some("1"), Some("200"))
    );
    let second = asked.iter().find(|span| attribute(span, "cutover.version") == Some("v2")).unwrap();
    assert_ne!(second["traceId"], first["traceId"]);
    assert!(second.get("parentSpanId").is_none());
    assert!(!spans.iter().any(|span| attribute(span, "cutover.request_id") == Some("unwanted")));
    // No version answers an order; it bears the one that it is about.
    let order = named(&spans, promote)[0];
    assert_eq!((attribute(order, "cutover.version"), attribute(order, "cutover.generation")), (Some("v2"), None));

    let whole = named(&spans, "rollout digits")[0];
    assert_eq!(attribute(whole, "cutover.rollout"), Some(rollout.id().as_str()));
    let phases: Vec<&Value> = spans.iter().filter(|span| span["parentSpanId"] == whole["spanId"]).collect();
    let names: Vec<&str> = phases.iter().map(|span| span["name"].as_str().unwrap()).collect();
    for name in ["loading", "validating", "observing", "reclaiming"] {
        assert!(names.contains(&name), "{names:?}");
    }
    for span in phases.iter().copied().chain([whole]) {
        assert_eq!(
            (attribute(span, "cutover.version"), attribute(span, "cutover.from")),
            (Some("v2"), Some("v1")),
            "{span}"
        );
        assert_eq!(span["traceId"], whole["traceId"]);
        let ns = |field: &str| span[field].as_str().unwrap().parse::<u64>().unwrap();
        assert!(ns("startTimeUnixNano") <= ns("endTimeUnixNano"), "{span}");
    }
    told_in_metrics(&server, "cutover_spans_total{outcome=\"delivered\"}").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_streamed_answer_is_traced_until_its_end() {
    let mut collector = Receiving::start(StatusCode::OK).await;
    let server = Site::digits().config(&format!("[telemetry]\notlp = '{}'\n", collector.url)).start().await;
    let (infer, events) = ("POST /models/{ref}/infer", "GET /admin/events");
    let stream = server.stream(reqwest::Method::GET, "/admin/events", Value::Null).await;
    let began = std::time::Instant::now();
    server.image("digits", &digit(7)).await.expect(200);
    let before = spans_until(&mut collector, |spans| !named(spans, infer).is_empty()).await;
    assert!(named(&before, events).is_empty(), "it goes on: {before:?}");
    let lasted = began.elapsed();
    drop(stream);
    let after = spans_until(&mut collector, |spans| !named(spans, events).is_empty()).await;
    let span = named(&after, events)[0];
    let ns = |field: &str| span[field].as_str().unwrap().parse::<u64>().unwrap();
    assert!(u128::from(ns("endTimeUnixNano") - ns("startTimeUnixNano")) >= lasted.as_nanos(), "{span}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_away_costs_spans_and_nothing_else() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let site = Site::digits().config(&format!("[telemetry]\notlp = '{url}'\n"));
    let mut server = site.start().await;
    for number in 0..20 {
        server.image("digits", &digit(number % 10)).await.expect(200);
    }
    server.terminate();
    assert_eq!(server.ended().await, 0);
    assert!(server.log().contains("spans were not taken and are lost"), "{}", server.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_traced_unless_it_is_asked_for() {
    let server = Site::digits().start().await;
    server.image("digits", &digit(7)).await.expect(200);
    let page = server.get("/metrics").await.body.as_str().unwrap().to_owned();
    assert!(!page.contains("cutover_spans_total{"), "{page}");
}

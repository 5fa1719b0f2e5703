use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::broadcast;

use super::super::alert::tests::event;
use super::*;
use crate::ledger::{Event, Ledger, NewEvent};

/// Longer than anything takes on a busy machine; only a defect waits for it.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server that is told, and answers as it is made to.
struct Receiving {
    url: String,
    told: mpsc::UnboundedReceiver<(HeaderMap, Value)>,
}

impl Receiving {
    /// `answer` gets the number of the request, from 0.
    async fn start(answer: impl Fn(usize) -> Response + Clone + Send + Sync + 'static) -> Receiving {
        let (tell, told) = mpsc::unbounded_channel();
        let asked = Arc::new(AtomicUsize::new(0));
        let app = Router::new().fallback(move |request: Request| {
            let (tell, asked, answer) = (tell.clone(), Arc::clone(&asked), answer.clone());
            async move {
                let (parts, body) = request.into_parts();
                let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
                let _ = tell.send((parts.headers, serde_json::from_slice(&body).unwrap()));
                answer(asked.fetch_add(1, Ordering::SeqCst))
            }
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, app).await });
        Receiving { url, told }
    }

    async fn next(&mut self) -> (HeaderMap, Value) {
        tokio::time::timeout(PATIENCE, self.told.recv()).await.unwrap().unwrap()
    }
}

/// Receivers that are told, and the ledger whose events they are told of.
struct Teller {
    telling: Telling,
    events: broadcast::Sender<Event>,
    ledger: Arc<Ledger>,
    counts: Arc<Mutex<BTreeMap<String, usize>>>,
    changed: Arc<tokio::sync::Notify>,
    _dir: tempfile::TempDir,
}

impl Teller {
    fn start(targets: &str) -> Teller {
        #[derive(serde::Deserialize)]
        struct File {
            alerts: Vec<AlertTarget>,
        }
        let file: File = toml::from_str(targets).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let ledger = Arc::new(Ledger::open(&dir.path().join("ledger.sqlite")).unwrap());
        let (events, live) = broadcast::channel(1024);
        let counts: Arc<Mutex<BTreeMap<String, usize>>> = Arc::default();
        let changed = Arc::new(tokio::sync::Notify::new());
        let count: Count = {
            let (counts, changed) = (Arc::clone(&counts), Arc::clone(&changed));
            Arc::new(move |target: &str, outcome| {
                *counts.lock().unwrap().entry(format!("{target} {outcome}")).or_default() += 1;
                changed.notify_one();
            })
        };
        let feed = Feed::new(live, Arc::clone(&ledger), 0);
        let telling = Telling::start(Targets::open(&file.alerts, "c.toml").unwrap(), feed, count);
        Teller { telling, events, ledger, counts, changed, _dir: dir }
    }

    /// Something happens in a rollout.
    fn happens(&self, rollout: &str, kind: &str, body: Value) {
        let Event { model, at_ms, .. } = event(kind, json!({}));
        let kind = kind.to_owned();
        let new = NewEvent { model, rollout: Some(rollout.to_owned()), kind, at_ms, actor: None, body };
        self.events.send(self.ledger.append(&new).unwrap()).unwrap();
    }

    fn rolls_back(&self, rollout: &str) {
        self.happens(rollout, "rolled_back", json!({"from": "v2", "to": "v1", "reason": "as asked"}));
    }

    fn count(&self, what: &str) -> usize {
        self.counts.lock().unwrap().get(what).copied().unwrap_or(0)
    }

    async fn counted(&self, what: &str, times: usize) {
        let waited = tokio::time::timeout(PATIENCE, async {
            while self.count(what) < times {
                self.changed.notified().await;
            }
        });
        assert!(waited.await.is_ok(), "{what}: {:?}", self.counts.lock().unwrap());
    }
}

fn ok(_: usize) -> Response {
    StatusCode::OK.into_response()
}

/// A receiver that takes connections and says nothing.
async fn hanging() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            held.push(stream);
        }
    });
    url
}

#[tokio::test]
async fn a_receiver_is_told_what_it_wants_to_hear_and_can_verify_who_says_it() {
    let mut receiving = Receiving::start(ok).await;
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("secret");
    std::fs::write(&secret, "sesame-opens\n").unwrap();
    let teller = Teller::start(&format!(
        "[[alerts]]\nkind = 'json'\nurl = '{}/hook'\nsecret_file = '{}'\non = ['rolled_back']",
        receiving.url,
        secret.display()
    ));
    teller.happens("r1", "switched", json!({"from": "v1", "to": "v2"}));
    teller.rolls_back("r1");
    let (headers, body) = receiving.next().await;
    assert_eq!((&body["what"], &body["rollout"], &body["id"]), (&json!("rolled_back"), &json!("r1"), &json!(2)));
    let header = headers[SIGNATURE].to_str().unwrap();
    let at: u64 = header.strip_prefix("t=").unwrap().split(',').next().unwrap().parse().unwrap();
    // Bodies are written from the same value, so the same bytes.
    assert_eq!(header, body::signature(b"sesame-opens", at, body.to_string().as_bytes()));
    teller.counted("json-1 delivered", 1).await;
}

#[tokio::test]
async fn what_is_not_taken_is_sent_again_until_it_is_and_is_the_same() {
    let answers = |number: usize| match number {
        0 => StatusCode::SERVICE_UNAVAILABLE.into_response(),
        1 => (StatusCode::TOO_MANY_REQUESTS, [("retry-after", "0")]).into_response(),
        _ => StatusCode::NO_CONTENT.into_response(),
    };
    let mut receiving = Receiving::start(answers).await;
    let teller = Teller::start(&format!("[[alerts]]\nkind = 'json'\nurl = '{}'", receiving.url));
    teller.rolls_back("r1");
    let first = receiving.next().await;
    for _ in 0..2 {
        let again = receiving.next().await;
        assert_eq!((&again.1, &again.0[DELIVERY]), (&first.1, &first.0[DELIVERY]));
    }
    teller.counted("json-1 delivered", 1).await;
    assert_eq!(teller.count("json-1 given_up"), 0);
}

#[tokio::test]
async fn the_same_of_one_rollout_is_told_once() {
    let mut receiving = Receiving::start(ok).await;
    let teller = Teller::start(&format!("[[alerts]]\nkind = 'json'\nurl = '{}'\non = ['alert']", receiving.url));
    for rollout in ["r1", "r1", "r2", "r1"] {
        teller.happens(rollout, "alert", json!({"what": "breach", "reason": "p99"}));
    }
    let told = [receiving.next().await.1, receiving.next().await.1];
    assert_eq!(told.map(|body| body["rollout"].clone()), [json!("r1"), json!("r2")]);
    teller.counted("json-1 duplicate", 2).await;
    teller.counted("json-1 delivered", 2).await;
}

#[tokio::test]
async fn a_rule_that_was_broken_is_told_once_by_what_it_led_to() {
    let mut receiving = Receiving::start(ok).await;
    let teller = Teller::start(&format!("[[alerts]]\nkind = 'json'\nurl = '{}'", receiving.url));
    for rollout in ["r1", "r2"] {
        teller.rolls_back(rollout);
        teller.happens(rollout, "alert", json!({"what": "breach", "reason": "p99"}));
    }
    for rollout in ["r1", "r2"] {
        let told = receiving.next().await.1;
        assert_eq!((&told["what"], &told["rollout"]), (&json!("rolled_back"), &json!(rollout)));
    }
    teller.counted("json-1 delivered", 2).await;
}

#[tokio::test]
async fn a_receiver_that_hangs_holds_up_nobody_else_and_is_given_up() {
    let mut receiving = Receiving::start(ok).await;
    let teller = Teller::start(&format!(
        "[[alerts]]\nname = 'deaf'\nkind = 'json'\nurl = '{}'\ntimeout = '100ms'\ngive_up_after = '1s'\n\
         [[alerts]]\nkind = 'slack'\nurl = '{}'",
        hanging().await,
        receiving.url
    ));
    teller.rolls_back("r1");
    assert!(receiving.next().await.1["text"].as_str().unwrap().starts_with("[critical] digits: v2 was rolled back"));
    assert_eq!(teller.count("deaf given_up"), 0, "it is still being tried");
    teller.counted("deaf given_up", 1).await;
    let tried = teller.telling.test(Some("deaf"), 0).await.unwrap().remove(0);
    assert_eq!((tried.delivered, tried.error.as_deref()), (false, Some("it did not answer within 0.1 s")));
}

#[tokio::test]
async fn a_redirect_is_an_error_and_nothing_goes_to_where_it_leads() {
    let mut elsewhere = Receiving::start(ok).await;
    for status in [StatusCode::TEMPORARY_REDIRECT, StatusCode::PERMANENT_REDIRECT, StatusCode::FOUND] {
        let to = format!("{}/take/this?token=secret", elsewhere.url);
        let mut receiving = Receiving::start(move |_| (status, [("location", to.clone())]).into_response()).await;
        let teller = Teller::start(&format!("[[alerts]]\nkind = 'json'\nurl = '{}'", receiving.url));
        teller.rolls_back("r1");
        receiving.next().await;
        teller.counted("json-1 given_up", 1).await;
        let tried = teller.telling.test(None, 0).await.unwrap().remove(0);
        let expected = format!(
            "it redirects ({}) to {}, which is not followed: configure the address where it ends",
            status.as_u16(),
            elsewhere.url
        );
        assert_eq!((tried.status, tried.error), (Some(status.as_u16()), Some(expected)));
    }
    assert!(elsewhere.told.try_recv().is_err(), "the redirect was followed");
}

#[tokio::test]
async fn what_would_never_be_taken_is_not_tried_again() {
    let refuses = |_| (StatusCode::NOT_FOUND, "no_such\nhook").into_response();
    let mut receiving = Receiving::start(refuses).await;
    let teller = Teller::start(&format!("[[alerts]]\nkind = 'slack'\nurl = '{}'", receiving.url));
    teller.rolls_back("r1");
    receiving.next().await;
    teller.counted("slack-1 given_up", 1).await;
    assert!(receiving.told.try_recv().is_err());
    let tried = teller.telling.test(None, 0).await.unwrap().remove(0);
    assert_eq!(tried.error.as_deref(), Some("it answered 404: no_such hook"));
}

#[tokio::test]
async fn an_alertmanager_gets_its_path_and_its_token() {
    let mut receiving = Receiving::start(ok).await;
    let dir = tempfile::tempdir().unwrap();
    let token = dir.path().join("token");
    std::fs::write(&token, "bearer-of-news").unwrap();
    let teller = Teller::start(&format!(
        "[[alerts]]\nkind = 'alertmanager'\nurl = '{}/am/'\nsecret_file = '{}'",
        receiving.url,
        token.display()
    ));
    let target = &teller.telling.targets[0];
    assert!(format!("{:?}", target.receiver).contains("/am/api/v2/alerts"));
    assert!(!format!("{:?}", target.receiver).contains("bearer-of-news"), "a secret in debug output");
    teller.rolls_back("r1");
    let (headers, body) = receiving.next().await;
    assert_eq!(headers["authorization"], "Bearer bearer-of-news");
    assert_eq!(body[0]["labels"]["alertname"], "CutoverRolledBack");
}

#[tokio::test]
async fn what_waits_is_sent_once_more_when_the_server_stops() {
    let answers = |number: usize| if number == 0 { StatusCode::BAD_GATEWAY } else { StatusCode::OK }.into_response();
    let mut receiving = Receiving::start(answers).await;
    let teller = Teller::start(&format!("[[alerts]]\nkind = 'json'\nurl = '{}'", receiving.url));
    teller.rolls_back("r1");
    receiving.next().await;
    teller.rolls_back("r2");
    teller.telling.stop(PATIENCE).await;
    assert_eq!((teller.count("json-1 delivered"), teller.count("json-1 given_up")), (2, 0));
}

#[tokio::test]
async fn more_than_a_queue_holds_is_dropped_and_counted() {
    let teller = Teller::start(&format!(
        "[[alerts]]\nname = 'deaf'\nkind = 'json'\nurl = '{}'\ntimeout = '1h'",
        hanging().await
    ));
    for number in 0..QUEUE + 10 {
        teller.rolls_back(&format!("r{number}"));
    }
    // One is being sent, so one more than the queue has found room.
    teller.counted("deaf dropped", 9).await;
}

#[tokio::test]
async fn who_is_not_vouched_for_is_not_told() {
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            // Who does not trust it ends the handshake.
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut head = [0; 4096];
            let _ = stream.read(&mut head).await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await;
            let _ = stream.shutdown().await;
        }
    });
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca.pem");
    std::fs::write(&ca, certified.cert.pem()).unwrap();
    let target = |name: &str, more: &str| {
        format!("[[alerts]]\nname = '{name}'\nkind = 'json'\nurl = 'https://localhost:{port}/hook'\n{more}\n")
    };
    let vouched = format!("ca_file = '{}'", ca.display());
    let teller = Teller::start(&(target("stranger", "") + &target("known", &vouched)));
    let tried = teller.telling.test(None, 0).await.unwrap();
    let error = tried[0].error.as_deref().unwrap();
    assert!(!tried[0].delivered && error.contains("certificate"), "{error}");
    assert!(tried[1].delivered, "{:?}", tried[1]);
}

#[test]
fn a_target_that_cannot_be_used_names_its_file_and_key() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        std::fs::write(dir.path().join(name), text).unwrap();
        dir.path().join(name).display().to_string()
    };
    let (empty, url) = (write("empty", "\n"), write("url", "ftp://secret-place"));
    for (lines, part) in [
        (
            "kind = 'json'\nurl = 'http://a'\nsecret_file = '/nowhere'".to_owned(),
            "alerts[2].secret_file: /nowhere: No such file",
        ),
        (format!("kind = 'json'\nurl = 'http://a'\nsecret_file = '{empty}'"), "expected one secret"),
        (format!("kind = 'slack'\nurl_file = '{url}'"), "alerts[2].url_file: expected http://HOST"),
        (format!("kind = 'json'\nurl = 'https://a'\nca_file = '{empty}'"), "alerts[2].ca_file"),
        (
            "name = 'json-1'\nkind = 'json'\nurl = 'http://b'".to_owned(),
            "alerts[2].name: 'json-1' is the name of another",
        ),
    ] {
        let first = toml::from_str("kind = 'json'\nurl = 'http://a'").unwrap();
        let Err(error) = Targets::open(&[first, toml::from_str(&lines).unwrap()], "c.toml") else { panic!("{lines}") };
        let error = error.to_string();
        assert!(error.contains("c.toml") && error.contains(part), "{lines}: {error}");
        assert!(!error.contains("secret-place"), "{error}");
    }
}

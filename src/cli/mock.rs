//! A server that speaks the bodies of DESIGN §7, for tests of its clients. It has faults to order.

use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Json;
use axum::Router;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use serde_json::{Value, json};
use tokio::time::Instant;

/// What goes wrong, and how long things take.
#[derive(Debug, Clone, Default)]
pub(super) struct Faults {
    /// How long an inference takes.
    pub service: Duration,
    /// Every so many requests one is answered with 503.
    pub fail_every: Option<u64>,
    /// One request (by number) makes everything wait so long.
    pub stall: Option<(u64, Duration)>,
    /// The old version goes on answering so long after promote answered.
    pub stale_for: Duration,
    /// The gate refuses every candidate.
    pub refuse: bool,
    /// The gate refuses this version, which every model has besides.
    pub refused: Option<&'static str>,
    /// Bytes that the process grows by with each switch.
    pub leak: u64,
    /// Threads that each switch leaves behind.
    pub stray: u64,
    /// The answers of `v2` are computed with `v1`'s weights.
    pub mixed_up: bool,
    /// The token that admin routes ask for.
    pub token: Option<&'static str>,
    /// The event stream ends after so many events.
    pub events_end_after: Option<i64>,
}

#[derive(Debug, Clone)]
pub(super) struct Mock {
    address: std::net::SocketAddr,
    state: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    faults: Faults,
    requests: AtomicU64,
    connections: AtomicU64,
    switches: AtomicU64,
    stalled_until: Mutex<Option<Instant>>,
    slots: Mutex<Vec<Slot>>,
    /// Every admin request as `METHOD path body`.
    asked: Mutex<Vec<String>>,
}

#[derive(Debug, Clone)]
struct Slot {
    name: &'static str,
    task: &'static str,
    versions: &'static [&'static str],
    live: (String, u64),
    previous: Option<(String, u64)>,
    switched: Option<Instant>,
}

impl Mock {
    pub(super) async fn start(faults: Faults) -> Mock {
        let slot = |name, task, versions: &'static [&'static str]| Slot {
            name,
            task,
            versions,
            live: (versions[0].to_owned(), 1),
            previous: None,
            switched: None,
        };
        let slots =
            vec![slot("minilm", "embed", &["f32", "f16"]), slot("digits", "image-classify", &["v1", "v2", "v3"])];
        let state = Arc::new(Inner {
            faults,
            requests: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            switches: AtomicU64::new(0),
            stalled_until: Mutex::default(),
            slots: Mutex::new(slots),
            asked: Mutex::default(),
        });
        let admin = Router::new()
            .route("/models/{reference}/promote", post(promote))
            .route("/models/{reference}/stage", post(promote))
            .route("/models/{reference}/diff", get(diff))
            .route("/models/{reference}", delete(release))
            .route("/admin/rollback", post(rollback))
            .route("/admin/settle", post(settle))
            .route("/admin/rollouts", get(rollouts))
            .route("/admin/rollouts/{id}", get(one_rollout))
            .route("/admin/rollouts/{id}/abort", post(one_rollout))
            .route("/admin/memory", get(memory))
            .route("/admin/events", get(events))
            .layer(axum::middleware::from_fn_with_state(state.clone(), admin_only));
        let app = Router::new()
            .route("/metrics", get(metrics))
            .route("/models", get(models))
            .route("/models/{reference}", get(model))
            .route("/models/{reference}/infer", post(infer))
            .route("/v1/embeddings", post(embeddings))
            .merge(admin)
            .with_state(state.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let listener = Counting { listener, state: state.clone() };
        tokio::spawn(async move { axum::serve(listener, app).await });
        Mock { address, state }
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(super) fn connections(&self) -> u64 {
        self.state.connections.load(Ordering::Relaxed)
    }

    pub(super) fn asked(&self) -> Vec<String> {
        self.state.asked.lock().unwrap().clone()
    }
}

struct Counting {
    listener: tokio::net::TcpListener,
    state: Arc<Inner>,
}

impl axum::serve::Listener for Counting {
    type Io = tokio::net::TcpStream;
    type Addr = std::net::SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        let accepted = self.listener.accept().await.unwrap();
        self.state.connections.fetch_add(1, Ordering::Relaxed);
        // Without it Nagle's algorithm holds the second event of a stream back for 40 ms.
        accepted.0.set_nodelay(true).unwrap();
        accepted
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

fn error(status: StatusCode, kind: &str, message: &str, details: Value) -> Response {
    (status, Json(json!({"error": {"kind": kind, "message": message, "details": details}}))).into_response()
}

async fn admin_only(State(state): State<Arc<Inner>>, request: Request, next: axum::middleware::Next) -> Response {
    let token = request.headers().get("authorization").and_then(|value| value.to_str().ok());
    if state.faults.token.is_some_and(|wanted| token != Some(&format!("Bearer {wanted}"))) {
        return error(StatusCode::UNAUTHORIZED, "unauthorised", "a token is needed", Value::Null);
    }
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
    let last_id = parts.headers.get("last-event-id").map_or("", |id| id.to_str().unwrap());
    let told = format!("{} {} {}{last_id}", parts.method, parts.uri, String::from_utf8_lossy(&body));
    state.asked.lock().unwrap().push(told);
    next.run(Request::from_parts(parts, body.into())).await
}

fn find(slots: &[Slot], reference: &str) -> Option<(usize, Option<String>)> {
    let (name, version) = reference.split_once('@').map_or((reference, None), |(name, version)| (name, Some(version)));
    if let Some(at) = slots.iter().position(|slot| slot.name == name) {
        return Some((at, version.map(str::to_owned)));
    }
    let at = slots.iter().position(|slot| slot.versions.contains(&reference))?;
    Some((at, Some(reference.to_owned())))
}

fn unknown(reference: &str) -> Response {
    let message = format!("no model or version is called '{reference}'");
    error(StatusCode::NOT_FOUND, "not_found", &message, json!({"known": ["digits", "minilm"]}))
}

fn describe(slot: &Slot) -> Value {
    let role = |(version, generation): &(String, u64), phase: &str| json!({"version": version, "generation": generation, "phase": phase});
    json!({
        "name": slot.name, "task": slot.task, "live": role(&slot.live, "live"), "candidate": null,
        "previous": slot.previous.as_ref().map(|previous| role(previous, "previous")), "versions": slot.versions,
    })
}

async fn models(State(state): State<Arc<Inner>>) -> Json<Value> {
    let slots = state.slots.lock().unwrap();
    Json(json!({"models": slots.iter().map(describe).collect::<Vec<_>>()}))
}

async fn model(State(state): State<Arc<Inner>>, Path(reference): Path<String>) -> Response {
    let slots = state.slots.lock().unwrap();
    match find(&slots, &reference) {
        Some((at, _)) => Json(describe(&slots[at])).into_response(),
        None => unknown(&reference),
    }
}

/// Decides the version at admission, as the server does, then takes its time.
async fn admit(state: &Inner, reference: &str) -> Result<(String, u64, &'static str), Response> {
    let number = state.requests.fetch_add(1, Ordering::Relaxed) + 1;
    let (version, generation, task) = {
        let slots = state.slots.lock().unwrap();
        let Some((at, _)) = find(&slots, reference) else { return Err(unknown(reference)) };
        let slot = &slots[at];
        let late = slot.switched.is_some_and(|at| at.elapsed() < state.faults.stale_for);
        let (version, generation) = slot.previous.clone().filter(|_| late).unwrap_or_else(|| slot.live.clone());
        (version, generation, slot.task)
    };
    let wait = {
        let mut until = state.stalled_until.lock().unwrap();
        if let Some((_, length)) = state.faults.stall.filter(|(at, _)| *at == number) {
            *until = Some(Instant::now() + length);
        }
        *until
    };
    if let Some(until) = wait {
        tokio::time::sleep_until(until).await;
    }
    if !state.faults.service.is_zero() {
        tokio::time::sleep(state.faults.service).await;
    }
    match state.faults.fail_every {
        Some(every) if number.is_multiple_of(every) => {
            Err(error(StatusCode::SERVICE_UNAVAILABLE, "not_serving", "not now", Value::Null))
        }
        _ => Ok((version, generation, task)),
    }
}

fn stamped(version: &str, generation: u64, body: Value) -> Response {
    let headers = [("x-cutover-version", version.to_owned()), ("x-cutover-generation", generation.to_string())];
    (headers, Json(body)).into_response()
}

/// A number that depends on the input and on the version, as an answer does.
fn feature(input: &[u8], version: &str) -> f64 {
    let sum: u64 = input.iter().chain(version.as_bytes()).map(|&byte| u64::from(byte)).sum();
    (sum % 97) as f64 / 97.0
}

async fn infer(
    State(state): State<Arc<Inner>>,
    Path(reference): Path<String>,
    headers: HeaderMap,
    body: axum::body::Bytes,
) -> Response {
    let (version, generation, task) = match admit(&state, &reference).await {
        Ok(admitted) => admitted,
        Err(refused) => return refused,
    };
    let weights = if state.faults.mixed_up && generation > 2 { "v1" } else { &version };
    let count = match headers["content-type"].to_str().unwrap() {
        "image/png" => 1,
        "application/json" => serde_json::from_slice::<Value>(&body).unwrap()["inputs"].as_array().unwrap().len(),
        other => panic!("unexpected content type {other}"),
    };
    let score = feature(&body, weights);
    let output = match task {
        "embed" => json!({"embedding": [score, 1.0 - score]}),
        _ => json!({"labels": [{"label": "7", "score": score}, {"label": "1", "score": 1.0 - score}]}),
    };
    stamped(&version, generation, json!({"model": "m", "version": version, "outputs": vec![output; count]}))
}

async fn embeddings(State(state): State<Arc<Inner>>, Json(body): Json<Value>) -> Response {
    let (version, generation, _) = match admit(&state, body["model"].as_str().unwrap()).await {
        Ok(admitted) => admitted,
        Err(refused) => return refused,
    };
    let inputs = body["input"].as_array().unwrap();
    let item = |input: &Value| json!({"embedding": [feature(input.as_str().unwrap().as_bytes(), &version)]});
    stamped(&version, generation, json!({"data": inputs.iter().map(item).collect::<Vec<_>>()}))
}

fn rollout(slot: &Slot, from: &str, to: &str, phase: &str) -> Value {
    json!({
        "id": format!("r{}", slot.live.1), "model": slot.name, "from": from, "to": to, "phase": phase, "reason": null, "kind": null,
        "started": "2026-01-01T00:00:00.000Z", "phases": [{"phase": phase, "at": "2026-01-01T00:00:00.000Z", "ms": 0}],
        "gate": [{"check": "golden", "passed": true, "measure": 0.99, "limit": 0.5, "case": "seven"}], "figures": {"downtime_ms": 0.0},
    })
}

async fn promote(State(state): State<Arc<Inner>>, Path(reference): Path<String>, request: Request) -> Response {
    let streams = request.headers()["accept"].to_str().unwrap().contains("text/event-stream");
    let stages = request.uri().path().ends_with("/stage");
    let (at, to, slot) = {
        let slots = state.slots.lock().unwrap();
        match find(&slots, &reference) {
            Some((at, Some(version)))
                if slots[at].versions.contains(&version.as_str()) || state.faults.refused == Some(version.as_str()) =>
            {
                (at, version, slots[at].clone())
            }
            _ => return unknown(&reference),
        }
    };
    if slot.previous.is_some() {
        return error(StatusCode::CONFLICT, "conflict", "a rollout is under way", json!({"rollout": "r1"}));
    }
    if stages && !streams {
        let body = json!({"model": slot.name, "version": to, "parked": true, "digest": "d", "bytes": 2048, "unchanged": false});
        return Json(body).into_response();
    }
    if !streams {
        return (StatusCode::ACCEPTED, Json(rollout(&slot, &slot.live.0, &to, "reserving"))).into_response();
    }
    let (sender, receiver) = tokio::sync::mpsc::channel::<Result<Event, Infallible>>(4);
    tokio::spawn(async move {
        let from = slot.live.0.clone();
        let send = async |kind: &str, body: Value| {
            let _gone = sender.send(Ok(Event::default().event(kind).data(body.to_string()))).await;
        };
        for (step, phase) in ["reserving", "loading", "loading", "validating"].into_iter().enumerate() {
            let mut body = rollout(&slot, &from, &to, phase);
            body["progress"] = json!({"done": step * 512, "total": if phase == "loading" { 1024 } else { 0 }});
            send("progress", body).await;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        if state.faults.refuse || state.faults.refused == Some(to.as_str()) {
            let gate = json!([
                {"check": "golden", "passed": true, "measure": 0.9, "limit": 0.5, "case": "seven"},
                {"check": "golden", "passed": false, "measure": 0.1, "limit": 0.5, "case": "nine"}
            ]);
            let body =
                json!({"error": {"kind": "refused", "message": "the gate refused it", "details": {"gate": gate}}});
            return send("error", body).await;
        }
        if stages {
            return send("done", rollout(&slot, &from, &to, "ready")).await;
        }
        let body = {
            let mut slots = state.slots.lock().unwrap();
            let slot = &mut slots[at];
            let generation = slot.live.1 + 1;
            slot.previous = Some(std::mem::replace(&mut slot.live, (to.clone(), generation)));
            slot.switched = Some(Instant::now());
            state.switches.fetch_add(1, Ordering::Relaxed);
            rollout(slot, &from, &to, "observing")
        };
        send("done", body).await;
    });
    Sse::new(tokio_stream::wrappers::ReceiverStream::new(receiver)).into_response()
}

async fn diff(Path(reference): Path<String>) -> Json<Value> {
    let labels =
        json!({"what": "labels", "severity": "breaking", "message": "2 of 10 labels are others", "from": [], "to": []});
    Json(json!({
        "from": "digits@v1", "to": format!("digits@{reference}"), "compatible": false, "differences": [labels],
        "same": ["task"], "incomparable": [],
    }))
}

async fn rollback(State(state): State<Arc<Inner>>, Json(order): Json<Value>) -> Json<Value> {
    let mut slots = state.slots.lock().unwrap();
    if let Some(slot) = slots.iter_mut().find(|slot| order["model"] == slot.name)
        && let Some(previous) = slot.previous.take()
    {
        slot.live = previous;
    }
    let mut body = rollout(&slots[1], "v1", "v2", "rolled_back");
    body["kind"] = json!("instant");
    Json(body)
}

async fn settle(State(state): State<Arc<Inner>>, Json(body): Json<Value>) -> Response {
    let mut slots = state.slots.lock().unwrap();
    let at = slots.iter().position(|slot| body["model"] == slot.name).unwrap_or(1);
    let slot = &mut slots[at];
    match slot.previous.take() {
        Some((from, _)) => Json(rollout(slot, &from, &slot.live.0, "settled")).into_response(),
        None => error(StatusCode::CONFLICT, "conflict", "nothing to settle", Value::Null),
    }
}

async fn rollouts(State(state): State<Arc<Inner>>) -> Json<Value> {
    let slots = state.slots.lock().unwrap();
    let all = [rollout(&slots[1], "v1", "v2", "settled"), rollout(&slots[0], "f32", "f16", "refused")];
    Json(json!({"rollouts": all, "kept": all.len() + 232, "figures": {"deployments": 2, "success_rate": 0.5}}))
}

async fn one_rollout(State(state): State<Arc<Inner>>) -> Json<Value> {
    Json(rollout(&state.slots.lock().unwrap()[1], "v1", "v2", "aborted"))
}

async fn release(State(state): State<Arc<Inner>>, Path(reference): Path<String>) -> Json<Value> {
    match reference.as_str() {
        "v2" => one_rollout(State(state)).await,
        other => Json(json!({ "model": "digits", "version": other, "resident": false, "unchanged": true })),
    }
}

async fn memory(State(state): State<Arc<Inner>>) -> Json<Value> {
    let generations =
        state.slots.lock().unwrap().iter().map(|slot| 1 + u64::from(slot.previous.is_some())).sum::<u64>();
    Json(json!({"devices": [{"device": "cpu", "reserved": generations << 20, "budget": 1_u64 << 30}]}))
}

async fn metrics(State(state): State<Arc<Inner>>) -> String {
    let switches = state.switches.load(Ordering::Relaxed);
    let Faults { leak, stray, .. } = state.faults;
    format!(
        "process_resident_memory_bytes {}\nprocess_threads {}\nprocess_open_fds 20\ncutover_ledger_bytes {}\n\
         cutover_process_allocated_bytes 10485760\ncutover_memory_reserved_bytes 2097152\n",
        (20 << 20) + leak * switches,
        12 + stray * switches,
        4096 * switches,
    )
}

async fn events(State(state): State<Arc<Inner>>, headers: HeaderMap) -> Response {
    let after: i64 = headers.get("last-event-id").map_or(0, |id| id.to_str().unwrap().parse().unwrap());
    let until = after + state.faults.events_end_after.unwrap_or(3);
    let event = |seq: i64| {
        let model = if seq % 2 == 0 { "minilm" } else { "digits" };
        let body = json!({"seq": seq, "at_ms": seq, "model": model, "rollout": "r1", "kind": "phase", "body": {"phase": "loading"}});
        Ok::<_, Infallible>(Event::default().event("phase").id(seq.to_string()).data(body.to_string()))
    };
    Sse::new(tokio_stream::iter((after + 1..=until).map(event))).into_response()
}

//! Requests with any headers and any body, to the routes of every dialect that ask a model, as a listener takes them.
//!
//! An input is a request as it is written down: a line with the path, lines of headers, an empty line, the body. The
//! models are the seeds of `config`, of a few hundred bytes; they are loaded once, and their folders gone then.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::response::Parts;
use axum::http::{HeaderName, HeaderValue, Request, Response};
use http_body_util::BodyExt as _;
use serde_json::Value;
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use tower::ServiceExt as _;

use super::config::TOKENIZER;
use super::files::{File, split, write};
use super::safetensors::completed;
use crate::device::{self, Budget, DeviceSpec, Health, Processors};
use crate::engine::{Engine, EngineConfig};
use crate::error::{Error, Kind, Result};
use crate::http::{Access, App, Guard, HttpLimits, Room, Serves, Stage, grpc_router, router};
use crate::ledger::{Keep, Ledger};
use crate::ops::Machine;
use crate::repository::Repository;
use crate::rollout::{Journal, Supervisor, SupervisorConfig};
use crate::slot::Registry;
use crate::telemetry::Metrics;
use crate::telling::Telling;

/// Each is served under its name.
const MODELS: [(&str, &[u8]); 4] = [
    ("classify", include_bytes!("../../fuzz/seeds/config/classify")),
    ("embed", include_bytes!("../../fuzz/seeds/config/embed")),
    ("rerank", include_bytes!("../../fuzz/seeds/config/rerank")),
    ("vit", include_bytes!("../../fuzz/seeds/config/vit")),
];

/// What asks a model, of any dialect. Each may end with the name of a model, and its version.
const ROUTES: [&str; 8] = ["/models/", "/v1/embeddings", "/v2/models/", "/embed", "/predict", "/rerank", "/", GRPC];
/// Of the methods of the listener for gRPC.
const GRPC: &str = "/inference.GRPCInferenceService/";

/// Small, so that inputs reach it.
const MOST_BODY: usize = 4_096;
/// A body is here at once, and nothing else takes as long.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) fn check(data: &[u8]) -> Result<()> {
    let request = request(data).ok_or_else(|| Error::bad_request("not a request"))?;
    let served = &*SERVED;
    served.runtime.block_on(async {
        match request.uri().path().starts_with(GRPC) {
            true => {
                let Ok(response) = served.grpc.clone().oneshot(request).await;
                judged_grpc(response).await
            }
            false => {
                let Ok(response) = served.router.clone().oneshot(request).await;
                judged(response).await
            }
        }
    })
}

/// The request that is written down, where one can be sent.
fn request(data: &[u8]) -> Option<Request<Body>> {
    let (path, mut rest) = line(data)?;
    let asks =
        |route: &&&str| path == **route || (route.len() > 1 && route.ends_with('/') && path.starts_with(**route));
    ROUTES.iter().find(asks)?;
    let mut request = Request::post(path);
    while let Some((header, more)) = line(rest) {
        rest = more;
        if header.is_empty() {
            break;
        }
        let (name, value) = header.split_once(": ")?;
        let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
        request = request.header(name, HeaderValue::from_str(value).ok()?);
    }
    request.body(Body::from(rest.to_vec())).ok()
}

fn line(data: &[u8]) -> Option<(&str, &[u8])> {
    let at = data.iter().position(|byte| *byte == b'\n')?;
    Some((std::str::from_utf8(&data[..at]).ok()?, &data[at + 1..]))
}

/// Nothing that a client sends is this server's fault, and every answer is what its dialect promises: one of a model says
/// of which, a refusal says why.
async fn judged(response: Response<Body>) -> Result<()> {
    let (parts, body) = response.into_parts();
    let bytes = body.collect().await.map_err(Error::internal)?.to_bytes();
    let told = String::from_utf8_lossy(&bytes).into_owned();
    let kind = clients_fault(&parts, &told);
    if parts.status.is_success() {
        for header in ["x-cutover-model", "x-cutover-version", "x-cutover-generation", "x-request-id"] {
            assert!(parts.headers.contains_key(header), "no {header}");
        }
        let json = match parts.headers.get("inference-header-content-length") {
            Some(length) => &bytes[..length.to_str().unwrap().parse().unwrap()],
            None => &bytes[..],
        };
        assert!(serde_json::from_slice::<Value>(json).is_ok(), "{told}");
        return Ok(());
    }
    assert!(parts.status.is_client_error() || kind == Some(Kind::Deadline), "{}: {told}", parts.status);
    let refusal: Value = serde_json::from_slice(&bytes).unwrap();
    let reason = &refusal["error"];
    assert!(reason.is_string() || reason["message"].is_string(), "{told}");
    Err(Error::bad_request("refused"))
}

/// The same over gRPC, whose own status is beside that of HTTP.
async fn judged_grpc(response: Response<Body>) -> Result<()> {
    let (parts, body) = response.into_parts();
    let told = format!("{:?}", parts.headers);
    let kind = clients_fault(&parts, &told);
    let bytes = body.collect().await.map_err(Error::internal)?.to_bytes();
    assert!(parts.status.is_success() || parts.status.is_client_error(), "{}: {told}", parts.status);
    if kind.is_some() {
        assert!(parts.headers.get("grpc-status").is_some_and(|status| status != "0"), "{told}");
        return Err(Error::bad_request("refused"));
    }
    // One message, and nothing behind it.
    let (prefix, message) = bytes.split_first_chunk::<5>().unwrap();
    assert_eq!(prefix[..], [&[0][..], &(message.len() as u32).to_be_bytes()].concat());
    Ok(())
}

/// The kind of a refusal, which no client brings about unless it is the client's own fault.
fn clients_fault(parts: &Parts, told: &str) -> Option<Kind> {
    let kind = parts.extensions.get::<Kind>().copied();
    assert!(!matches!(kind, Some(Kind::Internal | Kind::NotServing | Kind::NoRoom)), "{kind:?}: {told}");
    kind
}

struct Served {
    runtime: Runtime,
    router: Router,
    grpc: Router,
}

static SERVED: LazyLock<Served> = LazyLock::new(|| {
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (router, grpc) = runtime.block_on(start()).unwrap();
    Served { runtime, router, grpc }
});

/// What `cutover serve` puts together, but for the doors.
async fn start() -> Result<(Router, Router)> {
    let folder = TempDir::new().unwrap();
    for (name, files) in MODELS {
        let root = folder.path().join("models").join(name);
        let mut files: Vec<File> = split(files).into_iter().map(completed).collect();
        files.push(File { name: "tokenizer.json".into(), body: TOKENIZER.into() });
        let (mut model, version): (Vec<File>, Vec<File>) =
            files.into_iter().partition(|file| file.name == "model.toml");
        model.iter_mut().for_each(|file| file.body.extend(b"\nlive = 'v1'\n"));
        write(&root, &model);
        write(&root.join("v1"), &version);
    }
    let registry = Arc::new(Registry::default());
    let on_stall = Box::new(|stall| unreachable!("{stall:?}"));
    let (engine, _) = Engine::start(EngineConfig {
        processors: Processors::of(1),
        machine: Machine::Cpu,
        health: Health::default(),
        stall_after: PATIENCE,
        on_stall,
    })?;
    let opened = device::open(DeviceSpec::Cpu)?;
    let parts = SupervisorConfig {
        repository: Arc::new(Repository::open(folder.path().join("models"))?),
        only: Vec::new(),
        budget: Budget::new(opened.name(), 1 << 30),
        machine: Machine::Cpu,
        opened,
        default_batch_tokens: 512,
        graphs: false,
        last_generation: 0,
        faults: Vec::new(),
    };
    let journal = Journal::new(Arc::new(Ledger::open(&folder.path().join("ledger.sqlite"))?), Keep::ALL);
    let (supervisor, starting) = Supervisor::start(parts, engine, journal, Arc::clone(&registry)).await?;
    for up in starting {
        up.await.map_err(Error::internal)?;
    }
    assert!(registry.slots().values().all(|slot| slot.route().is_some()), "not every model came up");
    let (_, stage) = watch::channel(Stage::Open);
    let app = Arc::new(App {
        registry,
        supervisor,
        metrics: Arc::new(Metrics::new()),
        telling: Arc::new(Telling::none()),
        traces: None,
        limits: HttpLimits { max_body_bytes: MOST_BODY, read_timeout: PATIENCE, room: Room::new(MOST_BODY) },
        tei_model: Some("embed".into()),
        stage,
        started: AtomicBool::new(true),
        closing: watch::Sender::new(false),
    });
    let guard = Guard { loopback: false, access: Access::new(None, None) };
    Ok((router(Arc::clone(&app), Serves::Inference, guard.clone()), grpc_router(app, Serves::Inference, guard)))
}

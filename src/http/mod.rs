//! HTTP: routes, what every request passes through, and one file a dialect.
//!
//! A dialect turns its bodies into an `Ask`, admits it to a slot, and turns the `Answer` into its own body; it
//! sees slots and generations, nothing behind them. Only `admin` knows the supervisor. `reply` is the one table
//! from error kinds to each dialect's statuses and bodies; `guard` and `auth` decide who may come in. `openapi` describes it all,
//! and is held against the `routes` that are mounted. `page` is what people look at.

mod admin;
mod auth;
mod body;
mod experiments;
mod guard;
mod listen;
mod native;
mod oip;
mod openai;
mod openapi;
mod ops;
mod page;
mod received;
mod reply;
mod request;
mod rollout_reply;
mod routes;
mod tei;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware;
use tokio::sync::watch;

pub use auth::{Access, ApiKeys};
pub use body::Room;
pub use guard::Guard;
pub use listen::{Door, ListenLimits, Protocol, Stage, Tls};
pub use reply::Dialect;

/// What fuzzers reach of the dialects.
#[cfg(any(test, fuzzing))]
pub(crate) use oip::fuzzing;

use self::routes::Routes;
use crate::rollout::Supervisor;
use crate::slot::Registry;
use crate::telemetry::Metrics;
use crate::telling::{Telling, Traces};

/// What handlers share.
pub struct App {
    pub registry: Arc<Registry>,
    pub supervisor: Arc<Supervisor>,
    pub metrics: Arc<Metrics>,
    pub telling: Arc<Telling>,
    /// Where requests are traced.
    pub traces: Option<Arc<Traces>>,
    pub limits: HttpLimits,
    /// Answers text-embeddings-inference's routes, which name no model.
    pub tei_model: Option<String>,
    /// Readiness turns false with the first sign of the end.
    pub stage: watch::Receiver<Stage>,
    /// Set when all models were brought up once.
    pub started: AtomicBool,
    /// Told once every rollout has ended and the server only waits for its connections: streams that would go on
    /// for ever end then.
    pub closing: watch::Sender<bool>,
}

#[derive(Debug, Clone)]
pub struct HttpLimits {
    /// Largest request body of any model; each model's own limit holds as well. Bytes.
    pub max_body_bytes: usize,
    /// A request whose head or body comes slower than this is dropped.
    pub read_timeout: Duration,
    /// For the bodies of all requests together.
    pub room: Room,
}

impl HttpLimits {
    /// For a body of at most so many bytes.
    fn bounds(&self, bytes: usize) -> body::Bounds<'_> {
        body::Bounds { bytes, patience: self.read_timeout, room: &self.room }
    }
}

impl App {
    pub fn is_ready(&self) -> bool {
        self.started.load(Ordering::Acquire) && *self.stage.borrow() == Stage::Open && self.supervisor.is_ready()
    }
}

/// Which routes a listener answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Serves {
    Everything,
    /// Inference, lists and health; changes are made elsewhere.
    Inference,
    /// Changes, and what tells of them.
    Admin,
}

/// The routes of one listener, behind its guard.
pub fn router(app: Arc<App>, serves: Serves, guard: Guard) -> Router {
    let asks = openapi::Asks {
        key: guard.access.asks_for_key(),
        token: guard.access.asks_for_token(),
        lists: lists_ask(serves, &guard),
    };
    guarded(openapi::described(routes(serves, &guard), asks), app, guard)
}

/// The methods of a listener for gRPC, behind its guard.
pub fn grpc_router(app: Arc<App>, serves: Serves, guard: Guard) -> Router {
    let shared = Arc::new(guard.clone());
    let key = middleware::from_fn_with_state(Arc::clone(&shared), auth::inference);
    let mut methods = oip::grpc::health();
    if serves != Serves::Admin {
        methods = methods.merge(oip::grpc::routes().behind(|router| router.route_layer(key)));
    }
    if serves != Serves::Inference {
        let token = middleware::from_fn_with_state(shared, auth::admin);
        methods = methods.merge(oip::grpc::orders().behind(|router| router.route_layer(token)));
    }
    guarded(methods, app, guard)
}

/// What every request passes through, whatever it asks for.
fn guarded(routes: Routes, app: Arc<App>, guard: Guard) -> Router {
    routes
        .into_router()
        .fallback(reply::not_found)
        .method_not_allowed_fallback(reply::method_not_allowed)
        // The limit is checked where bodies are read, so that the error has the dialect's form.
        .layer(DefaultBodyLimit::disable())
        .layer(middleware::from_fn_with_state(Arc::new(guard), guard::origin))
        .layer(middleware::from_fn_with_state(Arc::clone(&app), request::observe))
        .layer(tower_http::catch_panic::CatchPanicLayer::custom(reply::panicked))
        .with_state(app)
}

/// What a listener answers, but for the description of it.
fn routes(serves: Serves, guard: &Guard) -> Routes {
    let guard = Arc::new(guard.clone());
    let mut routes = ops::routes().merge(page::routes());
    let listing = middleware::from_fn_with_state(Arc::clone(&guard), auth::lists);
    routes = routes.merge(match lists_ask(serves, &guard) {
        true => admin::lists().behind(|router| router.route_layer(listing)),
        false => admin::lists(),
    });
    if serves != Serves::Admin {
        let asking = native::routes().merge(openai::routes()).merge(tei::routes()).merge(oip::routes());
        let asking = asking.merge(experiments::asking());
        let key = middleware::from_fn_with_state(Arc::clone(&guard), auth::inference);
        routes = routes.merge(asking.behind(|router| router.route_layer(key)));
    }
    if serves != Serves::Inference {
        let token = middleware::from_fn_with_state(guard, auth::admin);
        let orders = admin::routes().merge(experiments::routes()).merge(oip::repository::orders()).merge(page::plots());
        routes = routes.merge(orders.behind(|router| router.route_layer(token)));
    }
    routes
}

/// Whether the lists of models ask who it is. An admin listener that asks for no token can be reached by those only who
/// may change everything.
fn lists_ask(serves: Serves, guard: &Guard) -> bool {
    guard.access.asks_for_key() && (serves != Serves::Admin || guard.access.asks_for_token())
}

/// Whether an address can be reached from this machine only.
pub fn is_loopback(address: &SocketAddr) -> bool {
    address.ip().is_loopback()
}

//! `cutover serve`: puts the rooms together, opens the doors, and closes them in order.
//!
//! Order of the end: readiness turns false, listeners stop accepting, rollouts end, admitted requests finish,
//! the engine stops. A stall of the device ends the process at once instead, for its supervisor to start anew.

use std::io::Write as _;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Handle};
use tokio::sync::watch;

use super::ServeArgs;
use super::banner::{self, Doorway};
use crate::config::Config;
use crate::device::{self, Budget};
use crate::engine::{Engine, EngineConfig, Stall};
use crate::error::{Error, Result};
use crate::http::{self, App, Guard, HttpLimits, Serves};
use crate::ledger::{Ledger, NewEvent};
use crate::repository::Repository;
use crate::rollout::{Journal, Supervisor, SupervisorConfig, now_ms};
use crate::slot::Registry;
use crate::telemetry::{self, Metrics};

/// The device stalled or failed; a supervisor should start the process anew (sysexits.h, EX_SOFTWARE).
const EXIT_DEVICE: i32 = 70;
/// For answers to leave after the device has failed.
const LAST_WORDS: Duration = Duration::from_secs(2);

pub(super) fn run(args: ServeArgs) -> ExitCode {
    let outcome = Config::load(args).and_then(|config| {
        telemetry::start_logs(config.log, &config.log_filter)?;
        let failed = |e: std::io::Error| Error::internal(format!("could not start the runtime: {e}"));
        let clients = Builder::new_multi_thread().thread_name("http").enable_all().build().map_err(failed)?;
        // What a rollout does takes a processor for longer than most requests do. On threads of its own it does not keep
        // the connections of a worker from being served (promise 5).
        let control = Builder::new_multi_thread().thread_name("control").worker_threads(1).enable_all().build();
        let control = control.map_err(failed)?;
        clients.block_on(serve(config, control.handle()))
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cutover: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Serves until a signal ends it.
async fn serve(config: Config, control: &Handle) -> Result<()> {
    let repository = Arc::new(Repository::open(&config.models)?);
    let ledger = open_ledger(&config).await?;
    let last_generation = ledger.last_seq()?.max(0) as u64;
    // Listening comes before loading: health is answered, and a taken port is told at once.
    let listeners = Listeners::bind(&config).await?;
    let opened = device::open(config.device)?;
    let registry = Arc::new(Registry::default());
    let (engine, engine_thread) = Engine::start(EngineConfig {
        threads: config.threads,
        stall_after: config.stall_after,
        on_stall: on_stall(Arc::clone(&ledger), Arc::clone(&registry)),
    })?;
    let journal = Journal::new(ledger);
    let parts = SupervisorConfig {
        repository,
        only: config.only.clone(),
        budget: Budget::new(opened.name.clone(), config.memory),
        opened,
        default_batch_tokens: config.batch_tokens,
        last_generation,
        faults: config.faults.clone(),
    };
    let starting = Supervisor::start(parts, engine.clone(), journal, Arc::clone(&registry));
    let (supervisor, starting) = control
        .spawn(starting)
        .await
        .map_err(|e| Error::internal(format!("the supervisor could not start: {e}")))??;
    let (stop, stopped) = watch::channel(false);
    let app = Arc::new(App {
        registry,
        supervisor: Arc::clone(&supervisor),
        metrics: Arc::new(Metrics::new()),
        limits: HttpLimits { max_body_bytes: config.max_body_bytes, read_timeout: config.read_timeout },
        stop: stopped.clone(),
        started: AtomicBool::new(false),
        closing: watch::Sender::new(false),
    });
    let doorway = listeners.doorway(&config);
    let doors = listeners.open(&app, &config, stopped);
    let announce = announce(Arc::clone(&app), starting, doorway);
    tokio::pin!(announce);
    let reason = tokio::select! {
        reason = signal() => reason,
        reason = engine.fatal() => {
            tracing::error!(reason, "the device failed; ending the process for its supervisor");
            stop.send_replace(true);
            app.closing.send_replace(true);
            // A forward pass that never returns cannot be stopped any other way. Those who waited for it have
            // their errors now; they go out first.
            if tokio::time::timeout(LAST_WORDS, doors.closed()).await.is_err() {
                tracing::warn!("some connections were still open");
            }
            std::process::exit(EXIT_DEVICE)
        }
        never = async { (&mut announce).await; std::future::pending::<&'static str>().await } => never,
    };
    tracing::info!(reason, "stopping");
    stop.send_replace(true);
    supervisor.shut_down().await;
    app.closing.send_replace(true);
    if tokio::time::timeout(config.drain_timeout, doors.closed()).await.is_err() {
        tracing::warn!("connections were still open after the drain timeout");
    }
    engine.stop();
    tokio::task::spawn_blocking(move || engine_thread.join().is_ok())
        .await
        .map_err(|e| Error::internal(format!("waiting for the engine failed: {e}")))?;
    tracing::info!("stopped");
    Ok(())
}

async fn open_ledger(config: &Config) -> Result<Arc<Ledger>> {
    std::fs::create_dir_all(&config.state).map_err(|e| Error::Ledger {
        reason: format!("the state folder {} could not be made: {e}", config.state.display()),
    })?;
    let ledger = Ledger::open(&config.state.join("ledger.sqlite"))?;
    match ledger.prune(config.keep_rollouts, config.keep_events) {
        Ok(pruned) => tracing::debug!(?pruned, "ledger opened"),
        // A full disk: what was live can be served all the same.
        Err(error) => tracing::error!(%error, "old history stays in the ledger"),
    }
    Ok(Arc::new(ledger))
}

/// Records, on the watchdog's thread, which generation stalled, so that the next start knows.
fn on_stall(ledger: Arc<Ledger>, registry: Arc<Registry>) -> Box<dyn Fn(Stall) + Send> {
    Box::new(move |stall| {
        tracing::error!(generation = stall.generation.0, after = ?stall.after, "a forward pass stalled; the process ends");
        for slot in registry.slots().values() {
            let Some(route) = slot.route() else { continue };
            let of = |generation: &Arc<crate::generation::Generation>| generation.id() == stall.generation;
            let guilty = [Some(&route.live), route.previous.as_ref(), route.standby.as_ref()];
            let Some(generation) = guilty.into_iter().flatten().find(|generation| of(generation)) else { continue };
            let in_window = of(&route.live) && route.previous.is_some();
            let rollout = ledger
                .rollouts(&crate::ledger::Filter { model: Some(slot.name().into()), limit: 1, open_only: true })
                .ok()
                .and_then(|open| open.into_iter().next())
                .filter(|_| in_window)
                .map(|record| record.id);
            let event = NewEvent {
                model: slot.name().to_owned(),
                rollout,
                kind: "fault".into(),
                at_ms: now_ms(),
                actor: None,
                body: serde_json::json!({
                    "what": "stall", "generation": stall.generation, "version": generation.version(),
                    "after_ms": stall.after.as_millis() as u64,
                }),
            };
            if let Err(error) = ledger.append(&event) {
                tracing::error!(%error, "the stall could not be written to the ledger");
            }
        }
    })
}

/// Says when everything is up, and what to try.
async fn announce(app: Arc<App>, starting: Vec<tokio::sync::oneshot::Receiver<()>>, doorway: Doorway) {
    for up in starting {
        // An error means that the controller ended first: the server is stopping.
        let _ = up.await;
    }
    app.started.store(true, Ordering::Release);
    // Nobody reading standard output is no reason to stop serving.
    let _ = writeln!(std::io::stdout(), "{}", banner::text(&app.registry.slots(), &doorway));
}

async fn signal() -> &'static str {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
        tracing::error!("signals cannot be listened to; only killing ends this process");
        return std::future::pending().await;
    };
    tokio::select! {
        _ = term.recv() => "SIGTERM",
        _ = int.recv() => "SIGINT",
    }
}

/// Sockets that are bound and not served yet.
struct Listeners {
    main: TcpListener,
    admin: Option<TcpListener>,
}

struct Doors {
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Listeners {
    async fn bind(config: &Config) -> Result<Listeners> {
        let bind = async |address: SocketAddr| {
            TcpListener::bind(address).await.map_err(|e| Error::Config {
                file: "command line".into(),
                key: "--listen".into(),
                reason: format!("{address} cannot be listened on: {e}"),
            })
        };
        let main = bind(config.listen).await?;
        let admin = match config.admin_listen {
            Some(address) => Some(bind(address).await?),
            None => None,
        };
        Ok(Listeners { main, admin })
    }

    /// Where clients connect: with port 0 in the configuration, the port that the system chose.
    fn doorway(&self, config: &Config) -> Doorway {
        let clients = self.main.local_addr().unwrap_or(config.listen);
        let admin = self.admin.as_ref().and_then(|admin| admin.local_addr().ok());
        Doorway { clients, admin: admin.unwrap_or(clients), token: config.admin_token.is_some() }
    }

    fn open(self, app: &Arc<App>, config: &Config, stopped: watch::Receiver<bool>) -> Doors {
        let token = config.admin_token.as_deref();
        let guard = |address: SocketAddr| Guard::new(http::is_loopback(&address), token);
        let serves = if self.admin.is_some() { Serves::Inference } else { Serves::Everything };
        let main = http::router(Arc::clone(app), serves, guard(config.listen));
        let mut tasks = vec![tokio::spawn(accept(self.main, main, config.read_timeout, stopped.clone()))];
        if let (Some(listener), Some(address)) = (self.admin, config.admin_listen) {
            let admin = http::router(Arc::clone(app), Serves::Admin, guard(address));
            tasks.push(tokio::spawn(accept(listener, admin, config.read_timeout, stopped)));
        }
        Doors { tasks }
    }
}

impl Doors {
    /// Resolves when every connection has finished what it was doing.
    async fn closed(self) {
        for task in self.tasks {
            if let Err(error) = task.await {
                tracing::error!(%error, "a listener ended badly");
            }
        }
    }
}

/// Resolves when the sender says stop, or is gone.
async fn told(stopped: &mut watch::Receiver<bool>) {
    drop(stopped.wait_for(|stop| *stop).await);
}

/// Accepts until told to stop, then lets connections finish.
async fn accept(
    listener: TcpListener,
    router: axum::Router,
    read_timeout: Duration,
    mut stopped: watch::Receiver<bool>,
) {
    let graceful = GracefulShutdown::new();
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(read_timeout);
    loop {
        let stream: TcpStream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of descriptors, mostly: those in use will be freed.
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
            () = told(&mut stopped) => break,
        };
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "no TCP_NODELAY");
        }
        let service = TowerToHyperService::new(router.clone());
        let connection = builder.serve_connection(TokioIo::new(stream), service);
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection ended with an error");
            }
        });
    }
    drop(listener);
    graceful.shutdown().await;
}

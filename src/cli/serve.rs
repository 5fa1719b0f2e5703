//! `cutover serve`: puts the rooms together and opens the doors.
//!
//! Order of the end: readiness turns false, clients have a while to look away (`lame_duck`), listeners stop accepting, and
//! `ending` sees to the rest. A stall of the device ends the process at once instead, for its supervisor to start anew.

use std::io::Write as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::runtime::{Builder, Handle};
use tokio::sync::watch;

use super::ServeArgs;
use super::banner::{self, Doorway};
use super::doors::{Listeners, Secrets};
use super::ending::{Ending, device_failed};
use super::renew::keep_fresh;
use super::signals::Signals;
use crate::config::Config;
use crate::device::{self, Budget, DeviceSpec, HostMemory, Kind, Opened, Processors};
use crate::engine::{Engine, EngineConfig, Stall};
use crate::error::{Error, Result};
use crate::http::{App, HttpLimits, Room, Stage};
use crate::ledger::{Ledger, NewEvent};
use crate::ops::Machine;
use crate::repository::Repository;
use crate::rollout::{Journal, Supervisor, SupervisorConfig, now_ms};
use crate::slot::Registry;
use crate::telemetry::{self, Metrics};
use crate::telling::{Collector, Targets, Telling, Traces};

/// Bytes of a GPU that are left to its driver.
const DRIVER: u64 = 256 << 20;
/// For threads that nobody joins to let go of a GPU.
const LAST_THREADS: Duration = Duration::from_secs(10);

pub(super) fn run(args: ServeArgs) -> ExitCode {
    let outcome = Config::load(args).and_then(|config| {
        telemetry::start_logs(config.log, &config.log_filter).map_err(|e| config.places.log_filter.blame(e))?;
        let failed = |e: std::io::Error| Error::internal(format!("could not start the runtime: {e}"));
        let (opened, machine) = ready(config.device).map_err(|e| config.places.device.blame(e))?;
        let workers = http_workers(opened.kind(), std::thread::available_parallelism().map_or(1, usize::from));
        let clients = Builder::new_multi_thread().thread_name("http").worker_threads(workers).enable_all().build();
        let clients = clients.map_err(failed)?;
        // What a rollout does takes a processor for longer than most requests do. On threads of its own it does not keep
        // the connections of a worker from being served (promise 5).
        let control = Builder::new_multi_thread().thread_name("control").worker_threads(1).enable_all().build();
        let control = control.map_err(failed)?;
        let released = opened.released();
        let served = clients.block_on(serve(config, (opened, machine), control.handle()));
        drop((control, clients));
        // Threads at the lowest priority of the machine may still be on their way out (a comparison that was given up, a load).
        if !released.within(LAST_THREADS) {
            tracing::warn!("the GPU is still held by a thread that does not end; the driver takes back what it has");
        }
        served
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cutover: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The device that serves, with whatever passes need there. A GPU that nobody named and that has a driver, but not the libraries or the memory
/// that it takes to compute, is as none: the CPU serves, and the log says why.
fn ready(spec: DeviceSpec) -> Result<(Opened, Machine)> {
    let opened = device::open(spec)?;
    let machine = match (Machine::start(&opened), opened.kind(), spec) {
        (Err(error), Kind::Cuda, DeviceSpec::Auto) => {
            tracing::warn!(device = "cpu", gpu = opened.name(), reason = %error, "the GPU cannot compute: serving from the cpu");
            return Ok((Opened::Cpu, Machine::start(&Opened::Cpu)?));
        }
        (machine, ..) => machine?,
    };
    if opened.kind() == Kind::Cuda {
        tracing::info!(device = opened.name(), "serving from a GPU");
    }
    Ok((opened, machine))
}

/// How many threads serve connections, of a machine with so many processors.
///
/// Beside forward passes that keep every processor busy, half as many: each thread more that wakes up for an answer takes a
/// processor from a pass whose other threads wait for it. On two processors one in place of two gave 5 to 10 % more answers
/// of digits, and took 15 % less time a text of minilm.
fn http_workers(device: Kind, processors: usize) -> usize {
    match device {
        Kind::Cpu => (processors / 2).max(1),
        Kind::Cuda => processors.max(1),
    }
}

/// Serves until a signal ends it.
async fn serve(config: Config, (opened, machine): (Opened, Machine), control: &Handle) -> Result<()> {
    let secrets = Secrets::read(&config)?;
    let targets = Targets::open(&config.alerts, &config.file)?;
    let collector = Collector::open(&config.telemetry, &config.file)?;
    let repository = Arc::new(Repository::open(&config.models)?);
    warn_of_faults(&config, &repository);
    let ledger = open_ledger(&config).await?;
    let last_generation = ledger.last_seq()?.max(0) as u64;
    // Listening comes before loading models: health is answered, and a taken port is told at once.
    let listeners = Listeners::bind(&config)?;
    let budget = budget(&config, &opened)?;
    let registry = Arc::new(Registry::default());
    let (engine, engine_thread) = Engine::start(EngineConfig {
        processors: Processors::of(config.threads),
        machine: machine.clone(),
        health: opened.health(),
        stall_after: config.stall_after,
        on_stall: on_stall(Arc::clone(&ledger), Arc::clone(&registry)),
    })?;
    let journal = Journal::new(Arc::clone(&ledger), config.keep);
    let metrics = Arc::new(Metrics::new());
    targets.names().for_each(|target| metrics.expect_alerts(target));
    // Listening comes before anything can happen.
    let feed = || journal.feed(last_generation as i64);
    let telling = Arc::new(Telling::start(targets, feed(), {
        let metrics = Arc::clone(&metrics);
        Arc::new(move |target, outcome| metrics.alert(target, outcome))
    }));
    let traces = collector.map(|collector| {
        let metrics = Arc::clone(&metrics);
        Arc::new(Traces::start(collector, feed(), Arc::new(move |_, outcome| metrics.span(outcome))))
    });
    let parts = SupervisorConfig {
        repository,
        only: config.only.clone(),
        budget,
        opened,
        machine,
        default_batch_tokens: config.batch_tokens,
        graphs: config.graphs,
        last_generation,
        faults: config.faults.clone(),
    };
    let starting = Supervisor::start(parts, engine.clone(), journal, Arc::clone(&registry));
    let (supervisor, starting) = control
        .spawn(starting)
        .await
        .map_err(|e| Error::internal(format!("the supervisor could not start: {e}")))??;
    let (stage, staged) = watch::channel(Stage::Open);
    let app = Arc::new(App {
        registry,
        supervisor,
        metrics,
        telling,
        traces,
        limits: HttpLimits {
            max_body_bytes: config.max_body_bytes,
            read_timeout: config.read_timeout,
            room: Room::new(config.max_buffered_bytes),
        },
        tei_model: config.tei_model.clone(),
        stage: staged.clone(),
        started: AtomicBool::new(false),
        closing: watch::Sender::new(false),
    });
    let doorway = listeners.doorway(&config);
    let doors = listeners.open(&app, &config, &secrets, staged);
    let renewing = tokio::spawn(keep_fresh(secrets.renewed()));
    let announce = announce(Arc::clone(&app), starting, doorway);
    let closed = doors.closed();
    let mut signals = Signals::listen();
    tokio::pin!(announce, closed);
    let reason = tokio::select! {
        reason = asked_to_stop(&mut signals, &stage, config.lame_duck) => reason,
        reason = engine.fatal() => {
            stage.send_replace(Stage::Closed);
            device_failed(&app, &reason, &mut closed).await
        }
        never = async { (&mut announce).await; std::future::pending::<&'static str>().await } => never,
    };
    tracing::info!(reason, "stopping");
    renewing.abort();
    stage.send_replace(Stage::Closed);
    let ending = Ending { app, engine, engine_thread, ledger, drain_timeout: config.drain_timeout };
    ending.run(&mut signals, closed).await?;
    tracing::info!("stopped");
    Ok(())
}

/// Until somebody asks this process to end, and then for as long as clients are given to look away; what asked.
async fn asked_to_stop(signals: &mut Signals, stage: &watch::Sender<Stage>, lame_duck: Duration) -> &'static str {
    let reason = signals.next().await;
    stage.send_replace(Stage::Leaving);
    if !lame_duck.is_zero() {
        tracing::info!(reason, ?lame_duck, "not ready any more, and still serving");
        tokio::select! {
            () = tokio::time::sleep(lame_duck) => {}
            again = signals.next() => tracing::info!(reason = again, "stopping sooner"),
        }
    }
    reason
}

/// What generations may take: as configured, else most of the machine's memory, or what is free of a GPU's when the server
/// starts, less what its driver may yet need.
fn budget(config: &Config, opened: &Opened) -> Result<Arc<Budget>> {
    let capacity = match (config.memory, opened.kind()) {
        (Some(configured), _) => configured,
        (None, Kind::Cpu) => HostMemory::read().map_or(u64::MAX / 2, |memory| memory.total / 5 * 4),
        (None, Kind::Cuda) => opened.available()?.unwrap_or_default().saturating_sub(DRIVER),
    };
    Ok(Budget::new(opened.name(), capacity))
}

/// A server that fails on purpose says so.
fn warn_of_faults(config: &Config, repository: &Repository) {
    for fault in &config.faults {
        let (version, kind, at, rate) = (&fault.version, fault.kind, fault.at, fault.rate);
        tracing::warn!(version, ?kind, ?at, rate, "a fault on purpose is armed (--allow-faults)");
        let there = version.split_once('@').is_some_and(|(model, name)| repository.version_dir(model, name).is_ok());
        if !there {
            tracing::warn!(version, "there is no such version for the fault on purpose to strike");
        }
    }
}

async fn open_ledger(config: &Config) -> Result<Arc<Ledger>> {
    std::fs::create_dir_all(&config.state).map_err(|e| Error::Ledger {
        reason: format!("the state folder {} could not be made: {e}", config.state.display()),
    })?;
    let ledger = Ledger::open(&config.state.join("ledger.sqlite"))?;
    match ledger.prune(config.keep) {
        Ok(pruned) => tracing::debug!(?pruned, "ledger opened"),
        // A full disk: what was live can be served all the same.
        Err(error) => tracing::error!(%error, "old history stays in the ledger"),
    }
    Ok(Arc::new(ledger))
}

/// Records, on the watchdog's thread, which generation stalled, so that the next start knows.
fn on_stall(ledger: Arc<Ledger>, registry: Arc<Registry>) -> Box<dyn Fn(Stall) + Send> {
    Box::new(move |stall| {
        let generation = stall.generation.map(|generation| generation.0);
        match &stall.fault {
            Some(fault) => tracing::error!(generation, fault, "the device failed; the process ends"),
            None => tracing::error!(generation, after = ?stall.after, "a forward pass stalled; the process ends"),
        }
        // Nobody's pass, nobody's fault.
        let Some(guilty) = stall.generation else { return };
        for slot in registry.slots().values() {
            let Some(route) = slot.route() else { continue };
            let of = |generation: &Arc<crate::generation::Generation>| generation.id() == guilty;
            let resident = [Some(&route.live), route.previous.as_ref(), route.standby.as_ref()];
            let Some(generation) = resident.into_iter().flatten().find(|generation| of(generation)) else { continue };
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
                    "what": if stall.fault.is_some() { "device" } else { "stall" }, "generation": stall.generation, "version": generation.version(),
                    "after_ms": stall.after.as_millis() as u64, "fault": stall.fault,
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
    // Starting takes room that serving does not need: files of tokenizers as text, for one.
    device::trim_everything();
    app.started.store(true, Ordering::Release);
    if let Some(name) = app.tei_model.as_deref().filter(|name| app.registry.resolve(name).is_err()) {
        tracing::warn!(
            "[tei] model is '{name}' in cutover.toml, and there is no such model: its routes will answer nobody"
        );
    }
    // Nobody reading standard output is no reason to stop serving.
    let _ = writeln!(std::io::stdout(), "{}", banner::text(&app.registry.slots(), &doorway));
}

//! Logs and metrics: their names, their form, and how they leave the process.
//!
//! A leaf but for `Metrics::text`, which asks the supervisor for figures at the moment of a scrape; nothing is
//! gathered in between, so an idle server does no work for metrics.

mod traffic;
mod writers;

use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::sync::atomic::Ordering;
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, text::encode};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use tracing_subscriber::EnvFilter;

use crate::cli::LogFormat;
use crate::device::{Pooled, open_files, process_processor_time, resident_bytes, threads};
use crate::error::{Error, Result};
use crate::generation::Stamp;
use crate::http::Dialect;
use crate::rollout::{Reclaimed, Supervisor};
use crate::telling::OUTCOMES;

/// Starts writing logs to standard error.
///
/// # Errors
/// A filter that cannot be read.
pub fn start_logs(format: LogFormat, filter: &str) -> Result<()> {
    let wrong = |reason: String| Error::Config { file: "CUTOVER_LOG".into(), key: "log.filter".into(), reason };
    let filter = EnvFilter::try_new(filter).map_err(|e| wrong(e.to_string()))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // Colours are for people: in a file or a pipe they are noise.
    let builder = builder.with_ansi(std::io::stderr().is_terminal());
    let started = match format {
        LogFormat::Text => builder.with_target(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).with_current_span(true).with_span_list(false).try_init(),
    };
    started.map_err(|e| wrong(e.to_string()))?;
    std::panic::set_hook(Box::new(log_panic));
    Ok(())
}

/// A panic is a log line like any other: what, where, on which thread.
///
/// Without a backtrace: symbols that it reads stay cached for the life of the process, and would be counted as the
/// memory of the version in whose loading it happened.
fn log_panic(info: &std::panic::PanicHookInfo<'_>) {
    let message = crate::engine::panic_text(info.payload());
    let location = info.location().map(ToString::to_string).unwrap_or_default();
    let thread = std::thread::current();
    tracing::error!(location, thread = thread.name().unwrap_or("unnamed"), "panicked: {message}");
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    route: String,
    dialect: &'static str,
    /// The name of the API key; empty where none was asked for or none was good. As many as there are keys.
    key: String,
    model: String,
    version: String,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VersionLabels {
    model: String,
    version: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AlertLabels {
    target: String,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SpanLabels {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ModelLabels {
    model: String,
}

/// A request that was answered.
#[derive(Debug)]
pub struct Answered<'a> {
    pub route: &'a str,
    pub dialect: Dialect,
    /// The name of the API key, or nothing.
    pub key: &'a str,
    pub stamp: Option<&'a Stamp>,
    pub status: u16,
    pub took: Duration,
}

#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    latency: Family<VersionLabels, Histogram, fn() -> Histogram>,
    failovers: Family<ModelLabels, Counter>,
    alerts: Family<AlertLabels, Counter>,
    spans: Family<SpanLabels, Counter>,
}

/// From half a millisecond to half a minute.
fn latency_buckets() -> Histogram {
    Histogram::new(exponential_buckets(0.000_5, 2.0, 17))
}

impl Metrics {
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("cutover");
        let requests = Family::default();
        registry.register("requests", "requests answered, by route and status", requests.clone());
        let latency = Family::new_with_constructor(latency_buckets as fn() -> Histogram);
        registry.register(
            "request_duration_seconds",
            "from the request's head to its answer, by the version that answered",
            latency.clone(),
        );
        let failovers = Family::default();
        registry.register(
            "failovers",
            "requests that the previous version answered for the live one",
            failovers.clone(),
        );
        let alerts = Family::default();
        registry.register("alerts", "what became of alerts, by the receiver", alerts.clone());
        let spans = Family::default();
        registry.register("spans", "what became of the spans of traces", spans.clone());
        Metrics { registry, requests, latency, failovers, alerts, spans }
    }

    pub fn request(&self, answered: &Answered<'_>) {
        let Answered { route, dialect, key, stamp, status, took } = *answered;
        let model = stamp.map_or_else(String::new, |stamp| stamp.model.to_string());
        let version = stamp.map_or_else(String::new, |stamp| stamp.version.to_string());
        if stamp.is_some() {
            let labels = VersionLabels { model: model.clone(), version: version.clone() };
            self.latency.get_or_create(&labels).observe(took.as_secs_f64());
        }
        let (route, key) = (route.to_owned(), key.to_owned());
        let labels = RequestLabels { route, dialect: dialect.name(), key, model, version, status };
        self.requests.get_or_create(&labels).inc();
    }

    pub fn failed_over(&self, model: &str) {
        self.failovers.get_or_create(&ModelLabels { model: model.to_owned() }).inc();
    }

    /// A receiver of alerts is there. Its counts are from now on: of a series that begins with 1 Prometheus' `increase` is 0, and
    /// the first alert that was not told would go unnoticed.
    pub fn expect_alerts(&self, target: &str) {
        for outcome in OUTCOMES {
            self.alerts.get_or_create(&AlertLabels { target: target.to_owned(), outcome }).inc_by(0);
        }
    }

    /// The same of a model that may have to be answered for by its previous version.
    fn expect_failovers(&self, model: String) {
        self.failovers.get_or_create(&ModelLabels { model }).inc_by(0);
    }

    /// One of `OUTCOMES`.
    pub fn alert(&self, target: &str, outcome: &'static str) {
        self.alerts.get_or_create(&AlertLabels { target: target.to_owned(), outcome }).inc();
    }

    /// `delivered`, `given_up`, `dropped`.
    pub fn span(&self, outcome: &'static str) {
        self.spans.get_or_create(&SpanLabels { outcome }).inc();
    }

    /// Everything in OpenMetrics text (openmetrics.io, 1.0).
    pub async fn text(&self, supervisor: &Supervisor) -> Result<String> {
        for (model, _) in supervisor.phases().await {
            self.expect_failovers(model);
        }
        let mut text = String::new();
        encode(&mut text, &self.registry).map_err(Error::internal)?;
        let end = text.rfind("# EOF").unwrap_or(text.len());
        text.truncate(end);
        let mut page = Page { text, prefix: "cutover_" };
        engine(&mut page, supervisor);
        generations(&mut page, supervisor).await;
        writers::add(&mut page, supervisor).await;
        traffic::add(&mut page, supervisor).await;
        memory(&mut page, supervisor).await?;
        rollouts(&mut page, supervisor).await?;
        page.prefix = "";
        process(&mut page);
        page.text.push_str("# EOF\n");
        Ok(page.text)
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// Gauges and counters that are read off their owners at the moment of a scrape.
struct Page {
    text: String,
    /// What every name begins with.
    prefix: &'static str,
}

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string cannot fail.
        let prefix = self.prefix;
        let _ = writeln!(self.text, "# HELP {prefix}{name} {help}.\n# TYPE {prefix}{name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        let escape = |value: &str| value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let labels: Vec<String> = labels.iter().map(|(key, value)| format!("{key}=\"{}\"", escape(value))).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let _ = writeln!(self.text, "{}{name}{labels} {value}", self.prefix);
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, value: f64) {
        self.family(name, kind, help);
        let suffix = if kind == "counter" { "_total" } else { "" };
        self.sample(&format!("{name}{suffix}"), &[], value);
    }
}

fn engine(page: &mut Page, supervisor: &Supervisor) {
    let counters = supervisor.engine_counters();
    let read = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed) as f64;
    page.one("queue_inputs", "gauge", "inputs that wait for the engine", read(&counters.waiting));
    page.one("batches", "counter", "batches that the engine ran for clients", read(&counters.batches));
    page.one("batch_inputs", "counter", "inputs in those batches", read(&counters.inputs));
    page.one("batch_tokens", "counter", "tokens in those batches", read(&counters.tokens));
    page.one("cancelled_inputs", "counter", "inputs dropped because their client left", read(&counters.cancelled));
    let seconds = |nanos: f64| nanos / 1e9;
    let client = seconds(read(&counters.client_nanos));
    page.one("engine_client_seconds", "counter", "engine time for clients", client);
    let background = seconds(read(&counters.background_nanos));
    page.one("engine_background_seconds", "counter", "engine time for validation and shadow work", background);
    page.family("batch_size", "histogram", "inputs per batch");
    let mut total = 0.0;
    for (at, bucket) in counters.batch_sizes.iter().enumerate() {
        total += read(bucket);
        let bound =
            if at + 1 == counters.batch_sizes.len() { "+Inf".into() } else { format!("{:?}", f64::from(1u32 << at)) };
        page.sample("batch_size_bucket", &[("le", &bound)], total);
    }
    page.sample("batch_size_count", &[], total);
    page.sample("batch_size_sum", &[], read(&counters.inputs));
}

async fn generations(page: &mut Page, supervisor: &Supervisor) {
    let all = supervisor.generations().await;
    page.family("generation_info", "gauge", "resident generations and their role");
    for (role, stamp, ..) in &all {
        let id = stamp.generation.to_string();
        let labels = [("model", &*stamp.model), ("version", &*stamp.version), ("generation", &id), ("role", role)];
        page.sample("generation_info", &labels, 1.0);
    }
    type Read = fn(&crate::generation::Snapshot, usize) -> f64;
    let rows: [(&str, &str, &str, Read); 6] = [
        ("generation_answered", "counter", "requests answered through the route", |s, _| s.answered as f64),
        ("generation_faults", "counter", "requests failed by the generation's own fault", |s, _| s.blamed as f64),
        ("generation_nonfinite", "counter", "of those, for non-finite outputs", |s, _| s.nonfinite as f64),
        ("generation_unexplained", "counter", "requests that nobody could answer", |s, _| s.unexplained as f64),
        ("generation_lane_inputs", "gauge", "inputs in the generation's lane", |_, waiting| waiting as f64),
        ("generation_p99_seconds", "gauge", "p99 of the last minutes", |s, _| {
            s.p99.map_or(f64::NAN, |d| d.as_secs_f64())
        }),
    ];
    for (name, kind, help, read) in rows {
        page.family(name, kind, help);
        let suffix = if kind == "counter" { "_total" } else { "" };
        for (_, stamp, snapshot, waiting) in &all {
            let id = stamp.generation.to_string();
            let labels = [("model", &*stamp.model), ("version", &*stamp.version), ("generation", id.as_str())];
            page.sample(&format!("{name}{suffix}"), &labels, read(snapshot, *waiting));
        }
    }
}

async fn memory(page: &mut Page, supervisor: &Supervisor) -> Result<()> {
    let memory = supervisor.memory().await?;
    page.one("memory_capacity_bytes", "gauge", "bytes that generations may take", memory.capacity as f64);
    page.one("memory_reserved_bytes", "gauge", "bytes that are reserved", memory.reserved as f64);
    page.one("memory_abandoned_bytes", "gauge", "bytes that hanging threads may still touch", memory.abandoned as f64);
    if let Some(vram) = memory.vram {
        page.one("vram_free_bytes", "gauge", "bytes of the GPU that nobody holds", vram.free as f64);
        page.one("vram_total_bytes", "gauge", "bytes of the GPU", vram.total as f64);
    }
    if !memory.pools.is_empty() {
        pools(page, &memory.pools);
    }
    type Reclaim = (&'static str, &'static str, fn(&Reclaimed) -> u64);
    let reclaims: [Reclaim; 2] = [
        (
            "last_reclaim_promised_bytes",
            "weights of the last version that was reclaimed, which had to come back",
            |r| r.promised,
        ),
        ("last_reclaim_returned_bytes", "what was measured to have come back of it", |r| r.returned),
    ];
    for (name, help, bytes) in reclaims {
        page.family(name, "gauge", help);
        for (model, reclaim) in &memory.last_reclaims {
            page.sample(name, &[("model", model)], bytes(reclaim) as f64);
        }
    }
    if let Some(allocated) = memory.process_allocated {
        page.one("process_allocated_bytes", "gauge", "live allocations of the process", allocated as f64);
    }
    page.family("parked_bytes", "gauge", "host memory of versions that wait in it, or are on their way there");
    for parked in &memory.parked {
        let labels = [("model", parked.model.as_str()), ("version", parked.version.as_str())];
        page.sample("parked_bytes", &labels, parked.bytes as f64);
    }
    page.family("generation_weight_bytes", "gauge", "weights held, exclusive or shared with another generation");
    for generation in &memory.generations {
        let id = generation.generation.to_string();
        let model = generation.model.as_deref().unwrap_or("");
        let version = generation.version.as_deref().unwrap_or("");
        for (kind, bytes) in [("exclusive", generation.held.exclusive), ("shared", generation.held.shared)] {
            let labels = [("model", model), ("version", version), ("generation", id.as_str()), ("kind", kind)];
            page.sample("generation_weight_bytes", &labels, bytes as f64);
        }
    }
    Ok(())
}

fn pools(page: &mut Page, pools: &[Pooled]) {
    type Bytes = (&'static str, &'static str, fn(&Pooled) -> u64);
    let families: [Bytes; 2] = [
        ("vram_pool_used_bytes", "allocated of a pool", |pool| pool.used),
        ("vram_pool_reserved_bytes", "held for a pool", |pool| pool.reserved),
    ];
    for (name, help, bytes) in families {
        page.family(name, "gauge", help);
        for pool in pools {
            let generation = pool.owner.generation.map(|id| id.to_string()).unwrap_or_default();
            page.sample(name, &[("holder", &pool.owner.holder), ("generation", &generation)], bytes(pool) as f64);
        }
    }
}

/// What any process tells, under the names that Prometheus' own clients give it, so that dashboards know it.
fn process(page: &mut Page) {
    if let Some(time) = process_processor_time() {
        page.one("process_cpu_seconds", "counter", "processor time, user and system", time.as_secs_f64());
    }
    if let Some(bytes) = resident_bytes() {
        page.one("process_resident_memory_bytes", "gauge", "physical memory", bytes as f64);
    }
    if let Some(files) = open_files() {
        page.one("process_open_fds", "gauge", "open file descriptors", files as f64);
    }
    if let Some(threads) = threads() {
        page.one("process_threads", "gauge", "threads", threads as f64);
    }
}

async fn rollouts(page: &mut Page, supervisor: &Supervisor) -> Result<()> {
    page.family("rollout_phase", "gauge", "1 for the phase that a model's rollout is in");
    for (model, phase) in supervisor.phases().await {
        let phase = phase.map_or("idle", |phase| phase.name());
        page.sample("rollout_phase", &[("model", &model), ("phase", phase)], 1.0);
    }
    page.family("model_serving", "gauge", "1 where a model serves, 0 where it should and does not");
    for (model, serves) in supervisor.serving() {
        page.sample("model_serving", &[("model", &model)], f64::from(u8::from(serves)));
    }
    let what = "1 where the folder of the version that serves is there, 0 where a restart will not find it";
    page.family("live_version_on_disk", "gauge", what);
    for (model, version, there) in supervisor.live_on_disk() {
        page.sample("live_version_on_disk", &[("model", &model), ("version", &version)], f64::from(u8::from(there)));
    }
    let counts = supervisor.counts();
    page.one("rollouts", "counter", "deployments that have ended, however they did", counts.deployments as f64);
    page.one("switches", "counter", "deployments that went live", counts.switches as f64);
    page.one("rollbacks", "counter", "times that the version before was made live again", counts.rollbacks as f64);
    let (writable, what) =
        (supervisor.ledger_can_be_written().await?, "1 where what happens can be written to the ledger");
    page.one("ledger_writable", "gauge", what, f64::from(u8::from(writable)));
    let ledger = supervisor.ledger_bytes().await?;
    page.one("ledger_bytes", "gauge", "the ledger on disk, with what waits to be merged into it", ledger as f64);
    Ok(())
}

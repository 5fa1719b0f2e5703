//! Metrics of models that write, one series a generation. Names are vLLM's where it has one for the same thing
//! (`vllm/v1/metrics/loggers.py`: `vllm:num_requests_running` and so on), with our prefix.

use super::Page;
use crate::engine::{Metered, TimesMetered};
use crate::generation::Stamp;
use crate::rollout::Supervisor;

/// Name, kind, help, and how it is read.
type Row = (&'static str, &'static str, &'static str, fn(&Metered) -> f64);

const ROWS: [Row; 8] = [
    ("num_requests_running", "gauge", "texts that are being written", |m| m.scheduler.running as f64),
    ("num_requests_waiting", "gauge", "texts that wait for a place or for blocks, preempted ones among them", |m| {
        m.scheduler.waiting as f64
    }),
    ("kv_cache_usage_perc", "gauge", "share of the key-value cache's blocks that are held, 1 for all", |m| {
        let s = &m.scheduler;
        s.blocks_used as f64 / (s.blocks_used + s.blocks_cached + s.blocks_free).max(1) as f64
    }),
    ("prefix_cache_queries", "counter", "tokens of prompts that were looked for in the cache", |m| {
        m.scheduler.prefix_asked as f64
    }),
    ("prefix_cache_hits", "counter", "of those, tokens that were found and so not computed", |m| {
        m.scheduler.prefix_hits as f64
    }),
    ("num_preemptions", "counter", "times that a text gave up its blocks, to be computed again", |m| {
        m.scheduler.preemptions as f64
    }),
    ("prompt_tokens", "counter", "tokens of prompts that were begun, found ones too", |m| m.prompt_tokens as f64),
    ("generation_tokens", "counter", "tokens that were written", |m| m.written_tokens as f64),
];

/// Name, help, and how it is read.
type Histogram = (&'static str, &'static str, fn(&Metered) -> &TimesMetered);

const HISTOGRAMS: [Histogram; 2] = [
    ("time_to_first_token_seconds", "from a prompt's arrival at the engine to its first token", |m| &m.first),
    ("inter_token_latency_seconds", "from a token of a text to its next", |m| &m.between),
];

/// Adds nothing where no model writes.
pub(super) async fn add(page: &mut Page, supervisor: &Supervisor) {
    let all = supervisor.writers().await;
    let with_id = |(stamp, metered): (Stamp, Metered)| (stamp.generation.to_string(), stamp, metered);
    let all: Vec<(String, Stamp, Metered)> = all.into_iter().map(with_id).collect();
    if all.is_empty() {
        return;
    }
    for (name, kind, help, read) in ROWS {
        page.family(name, kind, help);
        let suffix = if kind == "counter" { "_total" } else { "" };
        for (id, stamp, metered) in &all {
            page.sample(&format!("{name}{suffix}"), &labels(stamp, id), read(metered));
        }
    }
    page.family(
        "kv_cache_blocks",
        "gauge",
        "blocks of the key-value cache: held, idle but found again if asked for, free",
    );
    for (id, stamp, metered) in &all {
        let s = &metered.scheduler;
        for (state, blocks) in [("used", s.blocks_used), ("cached", s.blocks_cached), ("free", s.blocks_free)] {
            page.sample("kv_cache_blocks", &[&labels(stamp, id)[..], &[("state", state)]].concat(), blocks as f64);
        }
    }
    for (name, help, read) in HISTOGRAMS {
        page.family(name, "histogram", help);
        for (id, stamp, metered) in &all {
            times(page, name, &labels(stamp, id), read(metered));
        }
    }
}

fn labels<'a>(stamp: &'a Stamp, id: &'a str) -> [(&'static str, &'a str); 3] {
    [("model", &*stamp.model), ("version", &*stamp.version), ("generation", id)]
}

fn times(page: &mut Page, name: &str, labels: &[(&str, &str)], times: &TimesMetered) {
    for (bound, count) in &times.buckets {
        let bound = if bound.is_finite() { format!("{bound:?}") } else { "+Inf".into() };
        page.sample(&format!("{name}_bucket"), &[labels, &[("le", &bound)]].concat(), *count as f64);
    }
    page.sample(&format!("{name}_count"), labels, times.count() as f64);
    page.sample(&format!("{name}_sum"), labels, times.seconds);
}

//! What a server takes at one moment: of the kernel where it runs on this machine, else in its own words.

use std::collections::BTreeMap;

use super::super::client::Api;
use super::super::output::Failure;
use super::machine;

/// What is looked at, under the name that a report has for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Quantity {
    Resident,
    /// Live allocations.
    Allocated,
    /// Promised to generations.
    Reserved,
    Threads,
    Files,
    Ledger,
}

impl Quantity {
    pub(super) const ALL: [Quantity; 6] = [
        Quantity::Resident,
        Quantity::Allocated,
        Quantity::Reserved,
        Quantity::Threads,
        Quantity::Files,
        Quantity::Ledger,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Quantity::Resident => "resident size",
            Quantity::Allocated => "allocated",
            Quantity::Reserved => "reserved",
            Quantity::Threads => "threads",
            Quantity::Files => "open files",
            Quantity::Ledger => "ledger on disk",
        }
    }

    pub(super) fn is_bytes(self) -> bool {
        !matches!(self, Quantity::Threads | Quantity::Files)
    }
}

/// After so many switches.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Reading {
    pub(super) switches: u32,
    /// Those that could be had.
    pub(super) of: BTreeMap<Quantity, u64>,
}

impl Reading {
    pub(super) async fn take(api: &Api, pid: Option<u32>, switches: u32) -> Result<Reading, Failure> {
        let metrics = api.get_text("/metrics").await?;
        let told = |name: &str| metric(&metrics, name);
        let local = |read: fn(u32) -> Option<u64>| pid.and_then(read);
        let of = Quantity::ALL.into_iter().filter_map(|quantity| {
            let value = match quantity {
                Quantity::Resident => local(machine::resident_bytes).or_else(|| told("process_resident_memory_bytes")),
                Quantity::Allocated => told("cutover_process_allocated_bytes"),
                Quantity::Reserved => told("cutover_memory_reserved_bytes"),
                Quantity::Threads => local(machine::threads).or_else(|| told("process_threads")),
                Quantity::Files => local(machine::open_files).or_else(|| told("process_open_fds")),
                Quantity::Ledger => told("cutover_ledger_bytes"),
            };
            Some((quantity, value?))
        });
        Ok(Reading { switches, of: of.collect() })
    }
}

/// A gauge without labels in Prometheus' text.
fn metric(text: &str, name: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    value.trim().parse::<f64>().ok().filter(|value| *value >= 0.0).map(|value| value as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_found_by_its_whole_name() {
        let text = "# TYPE process_threads gauge\nprocess_threads_max 99\nprocess_threads 12\nbytes 1.5e9\nx{a=\"b\"} 3\nn NaN\n";
        assert_eq!(metric(text, "process_threads"), Some(12));
        assert_eq!(metric(text, "bytes"), Some(1_500_000_000));
        assert_eq!((metric(text, "x"), metric(text, "process"), metric(text, "n")), (None, None, None));
    }
}

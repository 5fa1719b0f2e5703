//! What the kernel says about processes: what the server takes, processor time of the generator. Linux only; elsewhere
//! there is nothing to tell.

use std::fs;
use std::time::{Duration, Instant};

/// `/proc` counts processor time in these, on every Linux that we run on.
const TICKS_PER_SECOND: u64 = 100;

/// Resident bytes of a process; `None` when there is no such process or no `/proc`.
pub(super) fn resident_bytes(pid: u32) -> Option<u64> {
    parse_resident(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?)
}

/// Whether a process looks like a server of ours, whose figures may then be had.
pub(super) fn check_server(pid: u32) -> Result<(), String> {
    let line = fs::read(format!("/proc/{pid}/cmdline")).map_err(|_| "there is no such process".to_owned())?;
    if !is_server(&line) {
        return Err("that process is no `cutover serve`".to_owned());
    }
    open_files(pid).map(drop).ok_or_else(|| "what it takes cannot be read: it is another user's".to_owned())
}

/// By its command line, whose words end in zeros: a program, and `serve` at once after it.
fn is_server(line: &[u8]) -> bool {
    let mut words = line.split(|byte| *byte == 0);
    let program = words.next().and_then(|program| program.rsplit(|byte| *byte == b'/').next());
    program.is_some_and(|program| program.starts_with(b"cutover")) && words.next() == Some(b"serve")
}

/// Threads of a process.
pub(super) fn threads(pid: u32) -> Option<u64> {
    entries(&format!("/proc/{pid}/task"))
}

/// File descriptors of a process of the same user.
pub(super) fn open_files(pid: u32) -> Option<u64> {
    entries(&format!("/proc/{pid}/fd"))
}

fn entries(folder: &str) -> Option<u64> {
    fs::read_dir(folder).ok().map(|entries| entries.count() as u64)
}

fn parse_resident(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// Measures how much of one processor this process has used since it was started.
#[derive(Debug)]
pub(super) struct OwnCost {
    since: Instant,
    used: Option<Duration>,
}

impl OwnCost {
    pub(super) fn start() -> Self {
        OwnCost { since: Instant::now(), used: own_time() }
    }

    /// 1.0 is one processor, all the time.
    pub(super) fn share(&self) -> Option<f64> {
        let used = own_time()?.checked_sub(self.used?)?;
        Some(used.as_secs_f64() / self.since.elapsed().as_secs_f64().max(1e-9))
    }
}

fn own_time() -> Option<Duration> {
    parse_time(&fs::read_to_string("/proc/self/stat").ok()?)
}

/// User and system time. The command's name stands in brackets and may hold anything, so fields count from after it.
fn parse_time(stat: &str) -> Option<Duration> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let user: u64 = fields.nth(11)?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(Duration::from_millis((user + system) * 1000 / TICKS_PER_SECOND))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_files_are_read() {
        assert_eq!(parse_resident("Name:\tx\nVmHWM:\t 9 kB\nVmRSS:\t    2048 kB\n"), Some(2 << 20));
        assert_eq!(parse_resident("Name: kthread\n"), None);
        for (line, is) in [
            (&b"/usr/bin/cutover\0serve\0--listen\0"[..], true),
            (b"cutover\0serve\0", true),
            (b"cutover\0bench\0swap\0", false),
            (b"/sbin/init\0serve\0", false),
            (b"", false),
        ] {
            assert_eq!(is_server(line), is, "{}", String::from_utf8_lossy(line));
        }
        assert!(check_server(u32::MAX).unwrap_err().contains("no such process"));
        assert!(check_server(std::process::id()).unwrap_err().contains("no `cutover serve`"));
        let stat = "12 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0 20 0";
        assert_eq!(parse_time(stat), Some(Duration::from_secs(2)));
    }
}

//! What the operating system says of this process and machine. Linux reads `/proc`; elsewhere unknown is `None`.

#![allow(unsafe_code)]

use std::cell::Cell;
use std::fs;
use std::path::Path;
use std::time::Duration;

/// Memory of the machine, bytes, as `/proc/meminfo` and the control group say.
#[derive(Debug, Clone, Copy)]
pub struct HostMemory {
    pub total: u64,
    pub available: u64,
}

impl HostMemory {
    /// `None` where the operating system does not say.
    pub fn read() -> Option<Self> {
        let text = fs::read_to_string("/proc/meminfo").ok()?;
        let field = |name: &str| -> Option<u64> {
            let line = text.lines().find(|line| line.starts_with(name))?;
            line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
        };
        let memory = HostMemory { total: field("MemTotal:")?, available: field("MemAvailable:")? };
        Some(match control_group(Path::new("/sys/fs/cgroup")) {
            Some((limit, used)) => HostMemory {
                total: memory.total.min(limit),
                available: memory.available.min(limit.saturating_sub(used)),
            },
            None => memory,
        })
    }
}

/// The version 2 control group's limit, where there is one, and what of it is in use. Bytes.
///
/// `memory.current` has the page cache in it, also what of files nobody has touched for long (`inactive_file` of
/// `memory.stat`): that is dropped as soon as somebody needs the room. It is not counted here, as Kubernetes does not count it
/// in a container's working set. (Linux, Documentation/admin-guide/cgroup-v2.rst, "Memory Interface Files".)
fn control_group(dir: &Path) -> Option<(u64, u64)> {
    let read = |file: &str| fs::read_to_string(dir.join(file)).ok();
    let number = |file: &str| read(file)?.trim().parse::<u64>().ok();
    let (limit, current) = (number("memory.max")?, number("memory.current")?);
    let dropped = read("memory.stat").and_then(|stat| {
        let line = stat.lines().find_map(|line| line.strip_prefix("inactive_file "))?;
        line.trim().parse::<u64>().ok()
    });
    Some((limit, current.saturating_sub(dropped.unwrap_or(0))))
}

/// Physical memory of this process, bytes (`/proc/self/statm`, second field, in pages).
pub fn resident_bytes() -> Option<u64> {
    let text = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = text.split_whitespace().nth(1)?.parse().ok()?;
    // SAFETY: sysconf takes a constant and touches no memory of ours.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(page).ok().map(|page| pages * page)
}

/// File descriptors that this process holds, but for the one that it takes to look.
pub fn open_files() -> Option<usize> {
    fs::read_dir("/proc/self/fd").ok().map(|entries| entries.count().saturating_sub(1))
}

/// Threads of this process.
pub fn threads() -> Option<usize> {
    fs::read_dir("/proc/self/task").ok().map(|entries| entries.count())
}

/// Lets this process open as many files as it may be allowed to without privilege, and says how many that is. The limit
/// that processes begin with is kept low for old programs that use select(2), which there is none of here.
pub fn allow_open_files() -> Option<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid rlimit that the call may write.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return None;
    }
    let raised = libc::rlimit { rlim_cur: limit.rlim_max, ..limit };
    // SAFETY: `raised` is a valid rlimit and outlives the call.
    let code = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) };
    // macOS refuses to raise it beyond a number that it does not tell here: it stays as it was.
    Some(if code == 0 { raised.rlim_cur } else { limit.rlim_cur })
}

/// Processors that the machine has for its processes, whatever this one may use of them.
pub(super) fn online_processors() -> Option<usize> {
    // SAFETY: sysconf takes a constant and touches no memory of ours.
    let count = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) };
    usize::try_from(count).ok().filter(|count| *count > 0)
}

/// Processor time of the calling thread since it began; `None` where the operating system does not say.
pub fn thread_processor_time() -> Option<Duration> {
    clock(libc::CLOCK_THREAD_CPUTIME_ID)
}

/// Processor time of all threads of this process, those that have ended among them.
pub fn process_processor_time() -> Option<Duration> {
    clock(libc::CLOCK_PROCESS_CPUTIME_ID)
}

fn clock(which: libc::clockid_t) -> Option<Duration> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid timespec that the call may write.
    let code = unsafe { libc::clock_gettime(which, &raw mut time) };
    let (seconds, nanos) = (u64::try_from(time.tv_sec).ok()?, u32::try_from(time.tv_nsec).ok()?);
    (code == 0).then(|| Duration::new(seconds, nanos))
}

/// Gives the calling thread the lowest scheduling priority, so that what it does yields to live traffic.
/// A thread cannot raise itself again without privilege: only threads that end with their work may call this.
///
/// On Linux that is the idle policy (sched(7), SCHED_IDLE): whoever wakes up takes the processor from it at once, where
/// a nice value alone would let it finish its slice of some milliseconds. Elsewhere, nice 19.
pub fn lower_thread_priority() {
    #[cfg(target_os = "linux")]
    let code = {
        let idle = libc::sched_param { sched_priority: 0 };
        // SAFETY: `idle` is a valid sched_param and outlives the call; 0 is the calling thread.
        unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const idle) }
    };
    #[cfg(not(target_os = "linux"))]
    // SAFETY: plain integers in, no memory involved.
    let code = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 19) };
    if code != 0 {
        tracing::debug!(error = %std::io::Error::last_os_error(), "could not lower a thread's priority");
    }
    background_arena();
}

thread_local! {
    static LOWERED: Cell<bool> = const { Cell::new(false) };
}

/// Whether the calling thread gave itself the lowest priority. The threads that it starts have it too (sched(7)), and do not
/// know it.
pub(super) fn is_lowered() -> bool {
    LOWERED.get()
}

/// Has a thread of the lowest priority allocate apart from live traffic.
pub(super) fn background_arena() {
    LOWERED.set(true);
    if let Err(error) = super::arena::leave_arenas_of_live_traffic() {
        tracing::debug!(%error, "a background thread shares its arena with live traffic");
    }
}

/// Gives the calling thread real-time priority (sched(7), SCHED_FIFO), so that it runs as soon as it has something to do.
///
/// # Errors
/// Where that is not allowed, and where there is no such policy.
pub fn raise_thread_priority() -> std::io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        // Low among real-time priorities (1 to 99): the kernel's own threads have 50.
        let first = libc::sched_param { sched_priority: 5 };
        // SAFETY: `first` is a valid sched_param and outlives the call; 0 is the calling thread.
        match unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const first) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    }
    #[cfg(not(target_os = "linux"))]
    Err(std::io::Error::from(std::io::ErrorKind::Unsupported))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn the_machine_and_this_process_are_seen() {
        let memory = HostMemory::read().unwrap();
        assert!(memory.available <= memory.total && memory.total > 0);
        assert!(resident_bytes().unwrap() > 1 << 20);
        assert!(open_files().unwrap() >= 3);
        assert!(allow_open_files().unwrap() >= open_files().unwrap() as u64);
        assert!(threads().unwrap() >= 2, "the harness has one, and this test");
        assert!(process_processor_time().unwrap() >= thread_processor_time().unwrap());
    }

    #[test]
    fn of_a_control_group_what_files_left_in_memory_is_free() {
        let dir = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| fs::write(dir.path().join(file), text).unwrap();
        assert_eq!(control_group(dir.path()), None, "no such files");
        write("memory.max", "max\n");
        write("memory.current", "3000000000\n");
        assert_eq!(control_group(dir.path()), None, "no limit");
        write("memory.max", "4000000000\n");
        assert_eq!(control_group(dir.path()), Some((4_000_000_000, 3_000_000_000)), "without its statistics");
        write("memory.stat", "anon 100\nfile 2600000000\nactive_file 600000000\ninactive_file 2000000000\nslab 5\n");
        assert_eq!(control_group(dir.path()), Some((4_000_000_000, 1_000_000_000)));
        // Read one after the other, they need not agree.
        write("memory.current", "1000000000\n");
        assert_eq!(control_group(dir.path()), Some((4_000_000_000, 0)));
    }

    #[test]
    fn a_threads_processor_time_is_its_work_and_not_its_waiting() {
        let began = thread_processor_time().unwrap();
        std::thread::sleep(Duration::from_millis(50));
        let waited = thread_processor_time().unwrap() - began;
        assert!(waited < Duration::from_millis(25), "{waited:?}");
        while thread_processor_time().unwrap() - began < Duration::from_millis(30) {
            std::hint::spin_loop();
        }
    }
}

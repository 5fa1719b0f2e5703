//! A pool of host memory for one generation's weights, so that what it holds can be measured to the byte.
//!
//! jemalloc lets a thread allocate from an arena of its own. A loader enters one, everything that it
//! allocates there is counted by the allocator itself (`stats.arenas.<i>.*.allocated`), and when the
//! generation is dropped, on whichever thread, the arena's count falls and its pages are purged back
//! to the operating system. This is to the CPU what a `CUmemoryPool` is to a GPU.
//!
//! Source: jemalloc(3), `arenas.create`, `thread.arena`, `arena.<i>.purge`, `stats.arenas.<i>`.
//! The binary must use jemalloc as its global allocator (`main.rs` does); elsewhere every count reads zero.

#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char, c_void};
use std::sync::Mutex;

use tikv_jemalloc_sys::{extent_hooks_t, mallctl};

use super::extents::{HUGE_PAGES, LARGE, discard, keeping_holes};
use crate::error::{Error, Result};

/// Arenas that nobody holds. jemalloc has no more than 4,095, so they are used anew and never piled up.
static FREE: Mutex<Vec<Free>> = Mutex::new(Vec::new());

#[derive(Clone, Copy)]
struct Free {
    index: u32,
    huge: bool,
}

/// The arena of background work, once there was some.
static BACKGROUND: Mutex<Option<u32>> = Mutex::new(None);

/// One arena, held by one generation (or one load that may still fail).
#[derive(Debug)]
pub struct Arena {
    index: u32,
    /// Its memory comes in huge pages.
    huge: bool,
}

impl Arena {
    /// An empty arena, to hold about `bytes`.
    pub fn acquire(bytes: u64) -> Result<Self> {
        let huge = bytes >= LARGE;
        let mut free = FREE.lock().unwrap_or_else(|e| e.into_inner());
        // An arena whose memory lingers (tensors that another generation shares) is not used again until it is empty.
        refresh()?;
        let empty = |free: &Free| free.huge == huge && counted(free.index).is_ok_and(|bytes| bytes == 0);
        if let Some(at) = free.iter().position(empty) {
            return Ok(Arena { index: free.swap_remove(at).index, huge });
        }
        drop(free);
        Ok(Arena { index: if huge { create(&HUGE_PAGES)? } else { read("arenas.create")? }, huge })
    }

    /// Runs `work` with this thread's allocations coming from the arena, then purges what it left dirty.
    pub fn enter<T>(&self, work: impl FnOnce() -> T) -> Result<T> {
        let before: u32 = read("thread.arena")?;
        write("thread.arena", self.index)?;
        keeping_holes(|| {
            let guard = Restore(before);
            let result = work();
            drop(guard);
            // What this thread allocates from here on must not come from what it kept of the arena.
            flush()?;
            self.trim()?;
            Ok(result)
        })
    }

    /// Bytes that live allocations of this arena take.
    pub fn used(&self) -> Result<u64> {
        refresh()?;
        counted(self.index)
    }

    /// Bytes that live allocations of each arena take, in one snapshot: taking one looks at every arena of the process.
    pub fn used_by<'a>(arenas: impl IntoIterator<Item = &'a Arena>) -> Result<Vec<u64>> {
        refresh()?;
        arenas.into_iter().map(|arena| counted(arena.index)).collect()
    }

    /// Bytes of this arena that are resident in physical memory, used or not.
    pub fn resident(&self) -> Result<u64> {
        refresh()?;
        Ok(read::<usize>(&format!("stats.arenas.{}.resident", self.index))? as u64)
    }

    /// Returns unused pages to the operating system.
    pub fn trim(&self) -> Result<()> {
        call(&format!("arena.{}.purge", self.index))
    }
}

/// Bytes that live allocations of the whole process take; `None` where the allocator does not say.
pub fn allocated_bytes() -> Option<u64> {
    refresh().and_then(|()| read::<usize>("stats.allocated")).ok().map(|bytes| bytes as u64)
}

/// Has the calling thread allocate from an arena that only threads of background work use.
///
/// An arena has a lock. A thread of the lowest priority that was interrupted while it holds one would make live traffic
/// wait until the processor comes back to it.
pub(super) fn leave_arenas_of_live_traffic() -> Result<()> {
    let mut background = BACKGROUND.lock().unwrap_or_else(|e| e.into_inner());
    let index = match *background {
        Some(index) => index,
        None => *background.insert(read("arenas.create")?),
    };
    write("thread.arena", index)
}

/// The arena that the calling thread allocates from.
#[cfg(test)]
pub(super) fn of_this_thread() -> u32 {
    read("thread.arena").unwrap()
}

/// Stands for all arenas at once (jemalloc(3), `MALLCTL_ARENAS_ALL`).
const ALL: u32 = 4096;

/// Returns unused pages of all arenas to the operating system; by itself that happens only where an arena goes on being
/// used. For moments without live traffic, which would pay a page fault for each page that it takes again.
pub fn trim_everything() {
    if let Err(error) = call(&format!("arena.{ALL}.purge")) {
        tracing::warn!(%error, "memory that is not used stays resident");
    }
}

/// Returns unused pages of background work to the operating system: nobody else's allocations would.
pub fn trim_background() {
    let index = *BACKGROUND.lock().unwrap_or_else(|e| e.into_inner());
    if let Some(index) = index
        && let Err(error) = call(&format!("arena.{index}.purge"))
    {
        tracing::warn!(%error, "memory of background work stays resident");
    }
}

/// Hands back what this thread keeps of freed small allocations, so that their arenas count them as freed, and so that
/// it does not use them for something of its own that lives longer. A failure is logged: memory that is free would count
/// as held, and nothing else would be wrong.
pub fn flush_thread_cache() {
    if let Err(error) = flush() {
        tracing::warn!(%error, "freed memory may be counted as held");
    }
}

fn flush() -> Result<()> {
    // A name that has to be allocated would take a piece of what is to be handed back, and keep it.
    call_named(c"thread.tcache.flush")
}

impl Drop for Arena {
    fn drop(&mut self) {
        if let Err(error) = self.trim() {
            tracing::warn!(%error, "could not purge an arena");
        }
        // Where tensors live on in another generation, the holes between them stay as well.
        if self.huge && self.used().is_ok_and(|bytes| bytes == 0) {
            // SAFETY: it is empty, and whoever held it is gone: only its holder allocates from it.
            unsafe { discard(self.index) };
        }
        FREE.lock().unwrap_or_else(|e| e.into_inner()).push(Free { index: self.index, huge: self.huge });
    }
}

/// Puts the thread back on its own arena, also when the work panics.
struct Restore(u32);

impl Drop for Restore {
    fn drop(&mut self) {
        if let Err(error) = write("thread.arena", self.0) {
            tracing::warn!(%error, "could not leave an arena");
        }
    }
}

/// What the last snapshot says.
fn counted(index: u32) -> Result<u64> {
    let small: usize = read(&format!("stats.arenas.{index}.small.allocated"))?;
    let large: usize = read(&format!("stats.arenas.{index}.large.allocated"))?;
    Ok((small + large) as u64)
}

/// Statistics are snapshots: writing the epoch takes a new one.
fn refresh() -> Result<()> {
    write("epoch", 1u64)
}

fn name_of(name: &str) -> Result<CString> {
    CString::new(name).map_err(Error::internal)
}

fn check(name: &str, code: i32) -> Result<()> {
    if code == 0 { Ok(()) } else { Err(Error::internal(format!("mallctl {name} failed with code {code}"))) }
}

fn read<T: Copy + Default>(name: &str) -> Result<T> {
    let key = name_of(name)?;
    let mut value = T::default();
    let mut size = size_of::<T>();
    // SAFETY: `key` is NUL-terminated; `value` is writable for `size` bytes and plain data (integers only, by
    // the callers in this file); jemalloc checks that `size` is the size it would write.
    let code = unsafe {
        mallctl(key.as_ptr() as *const c_char, (&raw mut value) as *mut c_void, &raw mut size, std::ptr::null_mut(), 0)
    };
    check(name, code)?;
    Ok(value)
}

/// A new arena that gets its memory from `hooks`.
fn create(hooks: &'static extent_hooks_t) -> Result<u32> {
    let mut hooks = std::ptr::from_ref(hooks).cast_mut();
    let (mut index, mut size) = (0u32, size_of::<u32>());
    // SAFETY: the name is NUL-terminated; `index` is writable for `size` bytes, and `hooks` readable for its own, as the
    // call asks. jemalloc reads the hooks as long as the process runs, and writes none of them.
    let code = unsafe {
        mallctl(
            c"arenas.create".as_ptr(),
            (&raw mut index).cast(),
            &raw mut size,
            (&raw mut hooks).cast(),
            size_of::<*mut extent_hooks_t>(),
        )
    };
    check("arenas.create", code)?;
    Ok(index)
}

fn write<T: Copy>(name: &str, mut value: T) -> Result<()> {
    let key = name_of(name)?;
    // SAFETY: `key` is NUL-terminated; `value` is readable for its size, which jemalloc checks.
    let code = unsafe {
        mallctl(
            key.as_ptr() as *const c_char,
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            (&raw mut value) as *mut c_void,
            size_of::<T>(),
        )
    };
    check(name, code)
}

fn call(name: &str) -> Result<()> {
    call_named(&name_of(name)?)
}

fn call_named(key: &CStr) -> Result<()> {
    // SAFETY: `key` is NUL-terminated, and the calls made through here take and return nothing.
    let code = unsafe {
        mallctl(key.as_ptr() as *const c_char, std::ptr::null_mut(), std::ptr::null_mut(), std::ptr::null_mut(), 0)
    };
    check(&key.to_string_lossy(), code)
}

#[cfg(test)]
mod tests {
    use std::sync::{MutexGuard, PoisonError};

    use super::*;

    /// Large arenas are used anew across threads, so only one test at a time may look at what becomes of one.
    fn alone() -> MutexGuard<'static, ()> {
        static ALONE: Mutex<()> = Mutex::new(());
        ALONE.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[test]
    fn an_arena_counts_what_is_loaded_into_it_and_gives_it_back_from_any_thread() {
        let _alone = alone();
        for bytes in [0, 32 << 20] {
            it_counts_and_gives_back(bytes);
        }
    }

    fn it_counts_and_gives_back(expected: u64) {
        let arena = Arena::acquire(expected).unwrap();
        let empty = arena.used().unwrap();
        let big = arena.enter(|| vec![1u8; 32 << 20]).unwrap();
        let held = arena.used().unwrap() - empty;
        assert!((32 << 20..33 << 20).contains(&held), "{held}");
        assert!(arena.resident().unwrap() >= 32 << 20);
        std::thread::spawn(move || drop(big)).join().unwrap();
        assert_eq!(arena.used().unwrap(), empty);
        arena.trim().unwrap();
        assert!(arena.resident().unwrap() < 8 << 20);
        // What was given back can be had again.
        let again = arena.enter(|| vec![2u8; 48 << 20]).unwrap();
        assert!(again.iter().all(|byte| *byte == 2) && arena.used().unwrap() >= empty + (48 << 20));
    }

    #[test]
    fn an_arena_is_used_anew_for_its_kind_only() {
        let _alone = alone();
        let small = Arena::acquire(0).unwrap().index;
        let large = Arena::acquire(LARGE).unwrap();
        assert!(large.huge && large.index != small);
        let zeros = large.enter(|| vec![0u8; 64 << 20]).unwrap();
        assert!(zeros.iter().all(|byte| *byte == 0));
    }

    /// KiB resident, and of them in huge pages, of the mappings that hold these addresses.
    #[cfg(target_os = "linux")]
    fn mapped(addresses: &[usize]) -> (u64, u64) {
        let (mut inside, mut resident, mut huge) = (false, 0, 0);
        for line in std::fs::read_to_string("/proc/self/smaps").unwrap().lines() {
            let mut words = line.split_ascii_whitespace();
            let (first, second) = (words.next().unwrap(), words.next().unwrap_or_default());
            match (first, first.split_once('-')) {
                (_, Some((from, to))) if !first.ends_with(':') => {
                    let [from, to] = [from, to].map(|at| usize::from_str_radix(at, 16).unwrap());
                    inside = addresses.iter().any(|at| (from..to).contains(at));
                }
                ("Rss:", _) if inside => resident += second.parse::<u64>().unwrap(),
                ("AnonHugePages:", _) if inside => huge += second.parse::<u64>().unwrap(),
                _ => {}
            }
        }
        (resident, huge)
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn weights_of_odd_sizes_stay_in_huge_pages_and_leave_nothing_behind() {
        let _alone = alone();
        // How often the system had no huge page for somebody who asked.
        let refused = || {
            let counters = std::fs::read_to_string("/proc/vmstat").unwrap_or_default();
            counters.lines().find_map(|line| line.strip_prefix("thp_fault_fallback ")).map(str::to_owned)
        };
        let before = refused();
        let arena = Arena::acquire(64 << 20).unwrap();
        // jemalloc makes room for 640 KiB and keeps the rest.
        let tensors = arena.enter(|| (0..100).map(|_| vec![1u8; 576 << 10]).collect::<Vec<_>>()).unwrap();
        let addresses: Vec<usize> = tensors.iter().map(|tensor| tensor.as_ptr().addr()).collect();
        let (resident, huge) = mapped(&addresses);
        assert!(resident >= 100 * 576, "{resident} KiB");
        // Where the system has huge pages for those who ask, and has not run out of them.
        let asked = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
        let none = asked.is_empty() || asked.contains("[never]") || refused() != before;
        assert!(none || huge * 10 >= resident * 8, "{huge} of {resident} KiB");
        drop(tensors);
        flush_thread_cache();
        drop(arena);
        let (resident, _) = mapped(&addresses);
        assert!(resident < 1024, "{resident} KiB");
    }

    #[test]
    fn allocations_after_leaving_are_not_counted() {
        let arena = Arena::acquire(0).unwrap();
        arena.enter(|| drop(vec![1u8; 40])).unwrap();
        let before = arena.used().unwrap();
        let (large, small) = (vec![1u8; 4 << 20], vec![1u8; 40]);
        assert_eq!(arena.used().unwrap(), before);
        drop((large, small));
    }
}

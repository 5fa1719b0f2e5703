//! Where an arena of weights gets its memory: address space in huge pages, where the operating system has them.
//!
//! A pass reads all weights, tens of megabytes and more; with pages of 4 KiB every panel of them costs a walk of the
//! page table, and two threads of one core share the table of recent walks. Only arenas of large weights are worth it:
//! a huge page that is touched is resident whole. Must not know what is kept in it.
//!
//! Source: jemalloc(3), `extent_hooks_t`; madvise(2), `MADV_HUGEPAGE`.

#![allow(unsafe_code)]

use std::cell::Cell;
use std::ffi::{c_uint, c_void};
use std::ptr::null_mut;
use std::sync::{Mutex, PoisonError};

use tikv_jemalloc_sys::extent_hooks_t;

/// A huge page of the processors that this serves on, bytes; elsewhere no more than an alignment.
const HUGE: usize = 2 << 20;

/// Weights below this many bytes gain nothing that is worth the last huge page's rest.
pub(super) const LARGE: u64 = 16 << 20;

/// A hole that is smaller stays in its huge page while weights are loaded: what it holds is worth less than the page.
const HOLE: usize = 512 << 10;

/// Every extent that was mapped in huge pages, with its arena. They stay mapped.
static MAPPED: Mutex<Vec<Mapped>> = Mutex::new(Vec::new());

struct Mapped {
    arena: c_uint,
    /// Address and bytes.
    start: usize,
    size: usize,
}

thread_local! {
    static KEEPS_HOLES: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work` without small holes being given back on this thread. jemalloc leaves one behind every tensor, whose size
/// it rounds, and a huge page with a hole is one no more: every walk of the page table would be back.
pub(super) fn keeping_holes<T>(work: impl FnOnce() -> T) -> T {
    /// Puts back what was, also when the work panics.
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            KEEPS_HOLES.set(self.0);
        }
    }
    let _restore = Restore(KEEPS_HOLES.replace(true));
    work()
}

/// Gives back everything that an arena mapped in huge pages, holes too.
///
/// # Safety
/// The arena is empty, and nobody allocates from it meanwhile.
pub(super) unsafe fn discard(arena: c_uint) {
    #[cfg(target_os = "linux")]
    for mapped in MAPPED.lock().unwrap_or_else(PoisonError::into_inner).iter().filter(|mapped| mapped.arena == arena) {
        let start = std::ptr::with_exposed_provenance_mut::<c_void>(mapped.start);
        // SAFETY: mapped by `alloc` and never unmapped; nothing in it is in use, says the caller. A failure leaves pages
        // resident and nothing else.
        unsafe { libc::madvise(start, mapped.size, libc::MADV_DONTNEED) };
    }
}

/// What jemalloc calls. Memory that it does not need any more stays mapped (no `dalloc`) without pages behind it.
pub(super) static HUGE_PAGES: extent_hooks_t = extent_hooks_t {
    alloc: Some(alloc),
    dalloc: None,
    destroy: None,
    commit: None,
    decommit: None,
    purge_lazy: None,
    purge_forced: Some(purge),
    split: Some(split),
    merge: Some(merge),
};

/// Maps `size` bytes at a multiple of `alignment`; null where that is impossible.
unsafe extern "C" fn alloc(
    _hooks: *mut extent_hooks_t,
    wanted: *mut c_void,
    size: usize,
    alignment: usize,
    zero: *mut bool,
    commit: *mut bool,
    arena: c_uint,
) -> *mut c_void {
    if !wanted.is_null() {
        return null_mut();
    }
    let aligned = alignment.max(HUGE);
    let Some(mapped) = size.checked_add(aligned) else { return null_mut() };
    let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a new private mapping, which touches nothing that exists.
    let start = unsafe { libc::mmap(null_mut(), mapped, access, kind, -1, 0) };
    if start == libc::MAP_FAILED {
        return null_mut();
    }
    let before = start.addr().next_multiple_of(aligned) - start.addr();
    let after = mapped - before - size;
    // SAFETY: both ends and the middle lie in the mapping just made, in whole pages, since jemalloc asks for whole
    // pages at powers of two; nobody else knows of it yet. `zero` and `commit` are jemalloc's to be written.
    unsafe {
        let extent = start.byte_add(before);
        if before > 0 {
            libc::munmap(start, before);
        }
        if after > 0 {
            libc::munmap(extent.byte_add(size), after);
        }
        // jemalloc asks for what it notes about an arena at this very alignment, and for memory to give out at a page's.
        #[cfg(target_os = "linux")]
        if alignment < HUGE {
            // Where there are none, common pages do.
            libc::madvise(extent, size, libc::MADV_HUGEPAGE);
            let mapped = Mapped { arena, start: extent.expose_provenance(), size };
            MAPPED.lock().unwrap_or_else(PoisonError::into_inner).push(mapped);
        }
        *zero = true;
        *commit = true;
        extent
    }
}

/// Gives the pages of a part back; it reads as zero afterwards. True where that failed, or is not to be.
unsafe extern "C" fn purge(
    _hooks: *mut extent_hooks_t,
    extent: *mut c_void,
    _size: usize,
    offset: usize,
    length: usize,
    _arena: c_uint,
) -> bool {
    // Elsewhere the call does not promise zeros, and jemalloc has to write them.
    if !cfg!(target_os = "linux") || KEEPS_HOLES.get() && length < HOLE {
        return true;
    }
    // SAFETY: a part of an extent that `alloc` mapped, and that jemalloc does not use now.
    unsafe { libc::madvise(extent.byte_add(offset), length, libc::MADV_DONTNEED) != 0 }
}

/// A mapping can be cut anywhere: never refused.
unsafe extern "C" fn split(
    _hooks: *mut extent_hooks_t,
    _extent: *mut c_void,
    _size: usize,
    _first: usize,
    _second: usize,
    _committed: bool,
    _arena: c_uint,
) -> bool {
    false
}

/// Neighbouring mappings are one as soon as they are called one: never refused.
unsafe extern "C" fn merge(
    _hooks: *mut extent_hooks_t,
    _first: *mut c_void,
    _first_size: usize,
    _second: *mut c_void,
    _second_size: usize,
    _committed: bool,
    _arena: c_uint,
) -> bool {
    false
}

//! Memory of the process that a GPU copies from and to by itself, at the speed of the bus.
//!
//! Pinning stops live traffic for as long as it takes (a millisecond for each MiB and more), so what is needed is pinned at
//! the start.

use std::sync::Arc;

use cudarc::driver::{result, sys};

use super::Cuda;
use crate::error::Result;

#[derive(Debug)]
pub struct Pinned {
    cuda: Arc<Cuda>,
    start: *mut u8,
    bytes: usize,
}

// SAFETY: plain memory with one owner; whoever has it may be on any thread.
unsafe impl Send for Pinned {}
// SAFETY: shared, it is only read.
unsafe impl Sync for Pinned {}

impl Pinned {
    /// `bytes`, at least one, all zero, on a page's border.
    pub fn new(cuda: &Arc<Cuda>, bytes: usize) -> Result<Pinned> {
        cuda.bind()?;
        let bytes = bytes.max(1);
        // SAFETY: freed once, when dropped. Not write-combined: digests read it.
        let start = unsafe { result::malloc_host(bytes, sys::CU_MEMHOSTALLOC_PORTABLE) };
        let start = cuda.check("cuMemHostAlloc", start)?.cast::<u8>();
        // SAFETY: just allocated, that long.
        unsafe { start.write_bytes(0, bytes) };
        Ok(Pinned { cuda: Arc::clone(cuda), start, bytes })
    }

    pub fn bytes(&self) -> &[u8] {
        // SAFETY: allocated and written in `new`; `self` is borrowed.
        unsafe { std::slice::from_raw_parts(self.start, self.bytes) }
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and borrowed by nobody else.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.bytes) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if self.cuda.bind().is_err() {
            return;
        }
        // SAFETY: allocated in `new`, freed once.
        let answer = unsafe { result::free_host(self.start.cast()) };
        if let Err(error) = self.cuda.check("cuMemFreeHost", answer) {
            tracing::warn!(%error, bytes = self.bytes, "pinned memory stays");
        }
    }
}

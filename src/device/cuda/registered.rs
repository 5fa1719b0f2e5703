//! Memory of the process that is pinned while live traffic goes on: filled first, then registered piece by piece.
//!
//! Whatever pins memory stops the device's traffic for as long as it takes. Pages that were touched before take least, and
//! a MiB of them 0.4 ms, where 4 MiB take 3.6 (measured on an H100: `benches/results/gpu/README.md`). So nothing here
//! registers, or lets go of, more than one piece in a call; how long to rest between two is the caller's to know.
//!
//! It comes from the operating system and goes back there whole, so that it is no allocator's to keep.

use std::ptr::null_mut;
use std::sync::Arc;

use cudarc::driver::sys;

use super::Cuda;
use crate::error::{Error, Result};

/// Bytes that are registered at a time. A copy lies within one piece: what was registered apart is not one to the driver.
pub const PIECE: usize = 1 << 20;

#[derive(Debug)]
pub struct Registered {
    cuda: Arc<Cuda>,
    start: *mut u8,
    bytes: usize,
    /// From the start on; a whole number of pieces, or everything.
    registered: usize,
}

// SAFETY: plain memory with one owner; whoever has it may be on any thread.
unsafe impl Send for Registered {}
// SAFETY: shared, it is only read.
unsafe impl Sync for Registered {}

impl Registered {
    /// Room for `bytes`, at least one, all zero, on a page's border; nothing of it is touched or registered yet.
    pub fn room(cuda: &Arc<Cuda>, bytes: usize) -> Result<Registered> {
        let bytes = bytes.max(1);
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new private mapping, which touches nothing that exists.
        let start = unsafe { libc::mmap(null_mut(), bytes, access, kind, -1, 0) };
        if start == libc::MAP_FAILED {
            let sum =
                format!("{bytes} bytes of host memory, which the system refused: {}", std::io::Error::last_os_error());
            return Err(Error::NoRoom { sum, details: serde_json::json!({ "bytes": bytes }) });
        }
        Ok(Registered { cuda: Arc::clone(cuda), start: start.cast(), bytes, registered: 0 })
    }

    pub fn bytes(&self) -> &[u8] {
        // SAFETY: mapped in `room`, zero where nobody wrote; `self` is borrowed.
        unsafe { std::slice::from_raw_parts(self.start, self.bytes) }
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and borrowed by nobody else.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.bytes) }
    }

    /// Where the next piece to register ends; none when all of them are.
    pub fn next_end(&self) -> Option<usize> {
        (self.registered < self.bytes).then(|| self.bytes.min(self.registered + PIECE))
    }

    /// Registers the next piece, whose pages should have been touched; says how many bytes it has.
    pub fn register_next(&mut self) -> Result<usize> {
        let Some(end) = self.next_end() else { return Ok(0) };
        let piece = end - self.registered;
        self.cuda.bind()?;
        // SAFETY: the piece lies in the mapping, which stays until it was unregistered.
        let answer = unsafe {
            let at = self.start.add(self.registered);
            sys::cuMemHostRegister_v2(at.cast(), piece, sys::CU_MEMHOSTREGISTER_PORTABLE)
        };
        self.cuda.check("cuMemHostRegister", answer.result())?;
        self.registered = end;
        Ok(piece)
    }

    /// Lets go of the last piece that is registered; false when there is none. Copies from it must be over.
    pub fn unregister_last(&mut self) -> bool {
        if self.registered == 0 {
            return false;
        }
        let at = (self.registered - 1) / PIECE * PIECE;
        self.registered = at;
        if self.cuda.bind().is_err() {
            return true;
        }
        // SAFETY: registered in `register_next`, and not let go of since.
        let answer = unsafe { sys::cuMemHostUnregister(self.start.add(at).cast()) };
        if let Err(error) = self.cuda.check("cuMemHostUnregister", answer.result()) {
            tracing::warn!(%error, "host memory stays registered");
        }
        true
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        while self.unregister_last() {}
        // SAFETY: mapped in `room`, unmapped once, and no copy from it goes on.
        if unsafe { libc::munmap(self.start.cast(), self.bytes) } != 0 {
            let error = std::io::Error::last_os_error();
            tracing::warn!(%error, bytes = self.bytes, "host memory stays mapped");
        }
    }
}

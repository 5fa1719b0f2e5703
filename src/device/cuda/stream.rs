//! Order on a GPU: streams, whose work runs one piece after the other, and events, which mark how far one has come.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;

use cudarc::driver::{result, sys};

use super::{Buffer, Cuda};
use crate::error::Result;

/// Which of two streams' waiting work goes first. A hint: nothing that runs is interrupted, and copies know none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Priority {
    /// Live traffic.
    High,
    /// Copies and whatever gives way.
    Low,
}

/// A stream of its own, never the default one: that would wait for all others.
#[derive(Debug)]
pub struct Stream {
    cuda: Arc<Cuda>,
    raw: sys::CUstream,
}

// SAFETY: the driver takes calls on a stream from any thread that has bound its context.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Stream {
    pub fn new(cuda: &Arc<Cuda>, priority: Priority) -> Result<Arc<Stream>> {
        cuda.bind()?;
        let (low, high) = cuda.check("cuCtxGetStreamPriorityRange", result::stream::get_priority_range())?;
        let priority = match priority {
            Priority::High => high,
            Priority::Low => low,
        };
        let raw = result::stream::create_with_priority(result::stream::StreamKind::NonBlocking, priority);
        let raw = cuda.check("cuStreamCreateWithPriority", raw)?;
        Ok(Arc::new(Stream { cuda: Arc::clone(cuda), raw }))
    }

    pub fn cuda(&self) -> &Arc<Cuda> {
        &self.cuda
    }

    /// For calls that take a stream; its context is bound to the calling thread.
    pub fn bound(&self) -> Result<sys::CUstream> {
        self.cuda.bind()?;
        Ok(self.raw)
    }

    /// Waits until everything that was queued has run. What went wrong in it is told here at the latest.
    pub fn synchronize(&self) -> Result<()> {
        let raw = self.bound()?;
        // SAFETY: the stream lives as long as `self`.
        self.cuda.check("cuStreamSynchronize", unsafe { result::stream::synchronize(raw) })
    }

    /// What is queued from here on runs after what the event marks.
    pub fn wait_for(&self, event: &Event) -> Result<()> {
        let raw = self.bound()?;
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: both live, and the driver keeps what it needs of the event.
        self.cuda.check("cuStreamWaitEvent", unsafe { result::stream::wait_event(raw, event.raw, flags) })
    }

    /// Queues zeros for all of a buffer that is used on this stream only.
    pub fn clear(&self, buffer: &Buffer) -> Result<()> {
        let (raw, bytes) = (self.bound()?, buffer.bytes());
        // SAFETY: the buffer has these bytes, and lives until the stream has come past this: it is freed in order.
        let answer = unsafe { result::memset_d8_async(buffer.address(), 0, bytes, raw) };
        self.cuda.check("cuMemsetD8Async", answer)
    }

    /// Queues a copy from memory of the process.
    ///
    /// # Safety
    /// `to` has room for `from`, and is not used by other streams meanwhile. Pinned memory stays as it is until the stream has
    /// come past this; any other is read before this returns.
    pub unsafe fn copy_up(&self, to: sys::CUdeviceptr, from: &[u8]) -> Result<()> {
        let raw = self.bound()?;
        // SAFETY: the caller's promise.
        self.cuda.check("cuMemcpyHtoDAsync", unsafe { result::memcpy_htod_async(to, from, raw) })
    }

    /// Queues a copy to memory of the process.
    ///
    /// # Safety
    /// `from` has as many bytes, and `to` is read and freed only once the stream has come past this.
    pub unsafe fn copy_down(&self, to: &mut [u8], from: sys::CUdeviceptr) -> Result<()> {
        let raw = self.bound()?;
        // SAFETY: the caller's promise.
        self.cuda.check("cuMemcpyDtoHAsync", unsafe { result::memcpy_dtoh_async(to, from, raw) })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let Ok(raw) = self.bound() else { return };
        // SAFETY: made in `new`, destroyed once. Work that is queued still runs.
        if let Err(error) = self.cuda.check("cuStreamDestroy", unsafe { result::stream::destroy(raw) }) {
            tracing::warn!(%error, "a stream stays");
        }
    }
}

/// A mark in a stream.
#[derive(Debug)]
pub struct Event {
    cuda: Arc<Cuda>,
    raw: sys::CUevent,
}

// SAFETY: as for streams.
unsafe impl Send for Event {}
// SAFETY: as for streams.
unsafe impl Sync for Event {}

impl Event {
    /// Waiting for it gives the processor to others; it keeps no time.
    pub fn new(cuda: &Arc<Cuda>) -> Result<Event> {
        Self::made(cuda, sys::CUevent_flags::CU_EVENT_BLOCKING_SYNC as u32)
    }

    /// Waiting for it keeps the processor, and ends sooner for it.
    pub fn spinning(cuda: &Arc<Cuda>) -> Result<Event> {
        Self::made(cuda, 0)
    }

    /// As `new`, and it keeps the time.
    pub fn timed(cuda: &Arc<Cuda>) -> Result<Event> {
        Self::with(cuda, sys::CUevent_flags::CU_EVENT_BLOCKING_SYNC as u32)
    }

    fn made(cuda: &Arc<Cuda>, how: u32) -> Result<Event> {
        Self::with(cuda, how | sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32)
    }

    fn with(cuda: &Arc<Cuda>, how: u32) -> Result<Event> {
        cuda.bind()?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: `raw` is where the driver writes the event, and the flags are its own.
        cuda.check("cuEventCreate", unsafe { sys::cuEventCreate(&raw mut raw, how) }.result())?;
        Ok(Event { cuda: Arc::clone(cuda), raw })
    }

    /// Marks where the stream is now.
    pub fn record(&self, stream: &Stream) -> Result<()> {
        let on = stream.bound()?;
        // SAFETY: both live.
        self.cuda.check("cuEventRecord", unsafe { result::event::record(self.raw, on) })
    }

    /// Milliseconds from what `earlier` marks to what this one does: of timed events that streams have come past.
    pub fn since(&self, earlier: &Event) -> Result<f32> {
        self.cuda.bind()?;
        // SAFETY: both live; what they cannot tell is an error.
        self.cuda.check("cuEventElapsedTime", unsafe { result::event::elapsed(earlier.raw, self.raw) })
    }

    /// Whether the stream has come there; what went wrong before is told here too.
    pub fn is_done(&self) -> Result<bool> {
        self.cuda.bind()?;
        // SAFETY: the event lives as long as `self`.
        match unsafe { result::event::query(self.raw) } {
            Err(error) if error.0 == sys::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            answer => self.cuda.check("cuEventQuery", answer).map(|()| true),
        }
    }

    /// Waits until the stream has come there; not at all for an event that was never recorded.
    pub fn synchronize(&self) -> Result<()> {
        self.cuda.bind()?;
        // SAFETY: the event lives as long as `self`.
        self.cuda.check("cuEventSynchronize", unsafe { result::event::synchronize(self.raw) })
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.cuda.bind().is_err() {
            return;
        }
        // SAFETY: made in `new`, destroyed once.
        if let Err(error) = self.cuda.check("cuEventDestroy", unsafe { result::event::destroy(self.raw) }) {
            tracing::warn!(%error, "an event stays");
        }
    }
}

/// Does `work`, and then waits for what it began: also where it panics, since what it began goes on, in memory that may be freed.
pub fn waited_for<T, W>(work: impl FnOnce() -> T, wait: impl FnOnce() -> W) -> (T, W) {
    let done = catch_unwind(AssertUnwindSafe(work));
    let waited = wait();
    match done {
        Ok(done) => (done, waited),
        Err(panic) => resume_unwind(panic),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_begun_is_waited_for_after_a_panic_too() {
        let waits = std::cell::Cell::new(0);
        let wait = || {
            waits.set(waits.get() + 1);
            waits.get()
        };
        assert_eq!(waited_for(|| "done", wait), ("done", 1));
        let reader = || -> () { resume_unwind(Box::new("a reader")) };
        let panicked = catch_unwind(AssertUnwindSafe(|| waited_for(reader, wait)));
        assert_eq!(panicked.unwrap_err().downcast_ref(), Some(&"a reader"));
        assert_eq!(waits.get(), 2);
    }
}

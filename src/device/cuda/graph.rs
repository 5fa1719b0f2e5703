//! Work that was recorded once, and is queued again by one call: the driver's graphs.
//!
//! A stream that records runs nothing. What is recorded has its addresses and sizes in it: whoever queues it again keeps the
//! memory there, and says by what lies in it what is computed. Source: CUDA driver API, "Stream management" (capture), "Graph
//! management", "Graph object thread safety".

use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::{result, sys};

use super::{Cuda, Stream};
use crate::error::{Error, Result};

/// Something recorded, ready to be queued.
#[derive(Debug)]
pub struct Graph {
    cuda: Arc<Cuda>,
    /// The driver wants calls on one graph to come one after the other.
    raw: Mutex<Raw>,
}

#[derive(Debug)]
struct Raw(sys::CUgraphExec);

// SAFETY: the driver takes calls on a graph from any thread that has bound its context, one at a time.
unsafe impl Send for Raw {}

impl Graph {
    /// Records what `work` queues on a stream that nobody else uses. What fails in it records nothing, and the stream is then as
    /// before.
    ///
    /// Other threads are not kept from anything meanwhile; this one must not wait for the GPU, nor take memory from it.
    pub fn record<T>(stream: &Stream, work: impl FnOnce() -> Result<T>) -> Result<(T, Graph)> {
        let raw = stream.bound()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives.
        stream.cuda().check("cuStreamBeginCapture", unsafe { result::stream::begin_capture(raw, mode) })?;
        let recording = Recording { stream, raw };
        let made = work();
        // Ended first, also where the work failed.
        let drawn = recording.end();
        let made = made?;
        Ok((made, drawn?.instantiate()?))
    }

    /// Brings to the device what the driver keeps of it there, so that its first launch does not.
    pub fn upload(&self, stream: &Stream) -> Result<()> {
        let on = stream.bound()?;
        let raw = self.raw.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: both live.
        self.cuda.check("cuGraphUpload", unsafe { result::graph::upload(raw.0, on) })
    }

    /// Queues all of it.
    ///
    /// # Safety
    /// Whatever it was recorded with is still there, and is used by nothing but this stream until that has come past it.
    pub unsafe fn launch(&self, stream: &Stream) -> Result<()> {
        let on = stream.bound()?;
        let raw = self.raw.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: both live; the rest is the caller's promise.
        self.cuda.check("cuGraphLaunch", unsafe { result::graph::launch(raw.0, on) })
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.cuda.bind().is_err() {
            return;
        }
        let raw = self.raw.get_mut().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: made in `instantiate`, destroyed once. A launch that is queued still runs.
        let answer = unsafe { result::graph::exec_destroy(raw.0) };
        if let Err(error) = self.cuda.check("cuGraphExecDestroy", answer) {
            tracing::warn!(%error, "a graph stays");
        }
    }
}

/// A stream that records, until this is dropped.
struct Recording<'a> {
    stream: &'a Stream,
    raw: sys::CUstream,
}

impl<'a> Recording<'a> {
    fn end(self) -> Result<Drawn<'a>> {
        let stream = self.stream;
        // SAFETY: the stream lives, and records since `record`; it is ended only once, here.
        let answer = unsafe { result::stream::end_capture(self.raw) };
        std::mem::forget(self);
        match stream.cuda().check("cuStreamEndCapture", answer)? {
            raw if raw.is_null() => Err(Error::internal("a stream recorded, and there is no graph")),
            raw => Ok(Drawn { cuda: stream.cuda(), raw }),
        }
    }
}

impl Drop for Recording<'_> {
    /// Only where the work panicked.
    fn drop(&mut self) {
        // SAFETY: as in `end`.
        if let Ok(raw) = unsafe { result::stream::end_capture(self.raw) }
            && !raw.is_null()
        {
            drop(Drawn { cuda: self.stream.cuda(), raw });
        }
    }
}

/// A graph that nobody can queue yet.
struct Drawn<'a> {
    cuda: &'a Arc<Cuda>,
    raw: sys::CUgraph,
}

impl Drawn<'_> {
    fn instantiate(self) -> Result<Graph> {
        // SAFETY: the graph is whole, and nobody else's.
        let made = unsafe { result::graph::instantiate(self.raw, sys::CUgraphInstantiate_flags(0)) };
        let raw = self.cuda.check("cuGraphInstantiate", made)?;
        Ok(Graph { cuda: Arc::clone(self.cuda), raw: Mutex::new(Raw(raw)) })
    }
}

impl Drop for Drawn<'_> {
    fn drop(&mut self) {
        // SAFETY: made by the end of a recording, destroyed once; what was instantiated from it has its own copy.
        if let Err(error) = self.cuda.check("cuGraphDestroy", unsafe { result::graph::destroy(self.raw) }) {
            tracing::warn!(%error, "the draft of a graph stays");
        }
    }
}

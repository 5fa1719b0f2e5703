//! Opening a device, and knowing exactly what its memory holds.
//!
//! The rightmost room: it knows bytes and devices, and must not know tensors' names, models or versions.
//! `budget` promises room before a byte is read; `arena` measures what a load really took and gave back, and `extents` is where it gets memory;
//! `host` asks the operating system, `host_room` promises what is pinned of the machine's memory, and `processors` keeps to a budget of its time. On the CPU an arena plays the part that a
//! memory pool plays on a GPU.

mod arena;
mod budget;
#[cfg(feature = "cuda")]
pub mod cuda;
mod extents;
mod host;
mod host_room;
mod memory;
mod processors;

use std::convert::Infallible;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

pub use arena::{Arena, allocated_bytes, flush_thread_cache, trim_background, trim_everything};
pub use budget::{Budget, Claim, Held, Reservation};
pub use host::{
    HostMemory, allow_open_files, lower_thread_priority, open_files, process_processor_time, raise_thread_priority,
    resident_bytes, thread_processor_time, threads,
};
pub use host_room::{HostRoom, Pinning, Promise};
pub use memory::{Count, Measured, Memory, Owner, Pooled};
pub use processors::{Pass, Processors, company, give_way, rested};

use crate::error::{Error, Result};

/// Which device to serve from, as `--device` names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceSpec {
    /// The first GPU that this build and machine have, else the CPU.
    Auto,
    Cpu,
    Cuda(usize),
}

impl std::str::FromStr for DeviceSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(DeviceSpec::Auto),
            "cpu" => Ok(DeviceSpec::Cpu),
            "cuda" => Ok(DeviceSpec::Cuda(0)),
            _ => text
                .strip_prefix("cuda:")
                .and_then(|n| n.parse().ok())
                .map(DeviceSpec::Cuda)
                .ok_or_else(|| format!("'{text}' is not a device: expected auto, cpu or cuda:N")),
        }
    }
}

/// What computes: which instructions, and whose memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Cpu,
    Cuda,
}

/// Bytes of a GPU, as its driver tells them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Vram {
    pub free: u64,
    pub total: u64,
}

/// Whether a device still works: once it has failed for good, why.
#[derive(Debug, Clone, Default)]
pub struct Health(std::sync::Arc<std::sync::OnceLock<String>>);

impl Health {
    pub fn fault(&self) -> Option<&str> {
        self.0.get().map(String::as_str)
    }

    /// Whether this is the first that is heard of it.
    pub(crate) fn lost(&self, why: String) -> bool {
        self.0.set(why).is_ok()
    }
}

/// An opened device.
#[derive(Debug, Clone)]
pub enum Opened {
    Cpu,
    #[cfg(feature = "cuda")]
    Cuda(std::sync::Arc<cuda::Cuda>),
}

impl Opened {
    pub fn kind(&self) -> Kind {
        match self {
            Opened::Cpu => Kind::Cpu,
            #[cfg(feature = "cuda")]
            Opened::Cuda(_) => Kind::Cuda,
        }
    }

    pub fn health(&self) -> Health {
        match self {
            Opened::Cpu => Health::default(),
            #[cfg(feature = "cuda")]
            Opened::Cuda(cuda) => cuda.health().clone(),
        }
    }

    /// As it is told: `cpu`, or `cuda:0 (NVIDIA H200)`.
    pub fn name(&self) -> String {
        match self {
            Opened::Cpu => "cpu".into(),
            #[cfg(feature = "cuda")]
            Opened::Cuda(cuda) => format!("cuda:{} ({})", cuda.ordinal(), cuda.name()),
        }
    }

    /// For whoever wants to know when everybody has let go of it.
    pub fn released(&self) -> Released {
        match self {
            Opened::Cpu => Released(None),
            #[cfg(feature = "cuda")]
            Opened::Cuda(cuda) => Released(Some(cuda.released())),
        }
    }

    /// A GPU's memory, as its driver tells it.
    pub fn vram(&self) -> Result<Option<Vram>> {
        match self {
            Opened::Cpu => Ok(None),
            #[cfg(feature = "cuda")]
            Opened::Cuda(cuda) => cuda.memory().map(Some),
        }
    }

    /// What is held together of a GPU's memory, by whom it is held for.
    pub fn pools(&self) -> Result<Vec<Pooled>> {
        match self {
            Opened::Cpu => Ok(Vec::new()),
            #[cfg(feature = "cuda")]
            Opened::Cuda(cuda) => cuda.pools(),
        }
    }

    /// Bytes that could be taken right now, as the system or the driver says.
    pub fn available(&self) -> Result<Option<u64>> {
        match self {
            Opened::Cpu => Ok(HostMemory::read().map(|memory| memory.available)),
            #[cfg(feature = "cuda")]
            Opened::Cuda(cuda) => cuda.memory().map(|memory| Some(memory.free)),
        }
    }
}

/// Waits until a GPU was let go of, by threads also that nobody joins. It does not hold the GPU itself.
#[derive(Debug)]
pub struct Released(Option<Receiver<Infallible>>);

impl Released {
    /// Whether it was, after at most so long.
    pub fn within(&self, patience: Duration) -> bool {
        let Some(released) = &self.0 else { return true };
        match released.recv_timeout(patience) {
            Ok(never) => match never {},
            Err(error) => error == RecvTimeoutError::Disconnected,
        }
    }
}

/// Opens the device that serves. `auto` says in the log which one it chose, and why not a GPU.
pub fn open(spec: DeviceSpec) -> Result<Opened> {
    match spec {
        DeviceSpec::Cpu => Ok(Opened::Cpu),
        DeviceSpec::Auto => Ok(gpu(0).unwrap_or_else(|reason| {
            tracing::info!(device = "cpu", reason, "serving from the cpu");
            Opened::Cpu
        })),
        DeviceSpec::Cuda(ordinal) => gpu(ordinal).map_err(|reason| Error::Config {
            file: "command line".into(),
            key: "--device".into(),
            reason: format!("{reason}; use --device cpu or auto"),
        }),
    }
}

#[cfg(feature = "cuda")]
fn gpu(ordinal: usize) -> Result<Opened, String> {
    let cuda = cuda::Cuda::open(ordinal)?;
    let (major, minor) = cuda.capability();
    tracing::debug!(device = ordinal, name = cuda.name(), capability = format!("{major}.{minor}"), "opened a GPU");
    Ok(Opened::Cuda(cuda))
}

#[cfg(not(feature = "cuda"))]
fn gpu(_: usize) -> Result<Opened, String> {
    Err("this build has no cuda support".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_and_others_refused() {
        assert_eq!("auto".parse(), Ok(DeviceSpec::Auto));
        assert_eq!("cpu".parse(), Ok(DeviceSpec::Cpu));
        assert_eq!("cuda".parse(), Ok(DeviceSpec::Cuda(0)));
        assert_eq!("cuda:3".parse(), Ok(DeviceSpec::Cuda(3)));
        for bad in ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "CPU"] {
            assert!(bad.parse::<DeviceSpec>().is_err(), "{bad}");
        }
    }

    #[test]
    #[cfg(not(feature = "cuda"))]
    fn a_build_without_cuda_says_so() {
        assert!(open(DeviceSpec::Cuda(0)).unwrap_err().to_string().contains("no cuda support"));
    }
}

//! Opening a device, and knowing exactly what its memory holds.
//!
//! The rightmost room: it knows bytes and devices, and must not know tensors' names, models or versions.
//! `budget` promises room before a byte is read; `arena` measures what a load really took and gave back, and `extents` is where it gets memory;
//! `host` asks the operating system, and `processors` keeps to a budget of its time. On the CPU an arena plays the part that a
//! memory pool plays on a GPU.

mod arena;
mod budget;
mod extents;
mod host;
mod processors;

pub use arena::{Arena, allocated_bytes, flush_thread_cache, trim_background, trim_everything};
pub use budget::{Budget, Claim, Held, Reservation};
pub use host::{
    HostMemory, allow_open_files, lower_thread_priority, open_files, process_processor_time, raise_thread_priority,
    resident_bytes, thread_processor_time, threads,
};
pub use processors::{Pass, Processors, give_way, rested};

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

/// An opened device.
#[derive(Debug, Clone)]
pub struct Opened {
    pub device: candle_core::Device,
    pub name: String,
}

/// Opens the device that serves. `auto` says in the log which one it chose.
pub fn open(spec: DeviceSpec) -> Result<Opened> {
    match spec {
        DeviceSpec::Cpu => Ok(cpu()),
        DeviceSpec::Auto => {
            tracing::info!(device = "cpu", "this build serves from the cpu");
            Ok(cpu())
        }
        DeviceSpec::Cuda(_) => Err(Error::Config {
            file: "command line".into(),
            key: "--device".into(),
            reason: "this build has no cuda support; use --device cpu or auto".into(),
        }),
    }
}

fn cpu() -> Opened {
    Opened { device: candle_core::Device::Cpu, name: "cpu".into() }
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
    fn a_build_without_cuda_says_so() {
        assert!(open(DeviceSpec::Cuda(0)).unwrap_err().to_string().contains("no cuda support"));
    }
}

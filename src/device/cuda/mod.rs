//! One NVIDIA GPU through its driver: the context, and what lives in it.
//!
//! `stream` orders work, `graph` is work that was recorded, `pool` is where memory comes from and returns to, to the byte, `pinned` is memory of the process that
//! the GPU copies from and to by itself, `registered` the same where it is pinned beside live traffic. Nothing here knows kernels or tensors. The driver is looked for when a device is
//! opened, so the same binary starts where there is none.
//!
//! Every call binds the context to its thread first: what was allocated by one thread may be freed by another. An error that
//! the context does not survive (*sticky*, CUDA driver API, `CUresult`) is kept in [`Cuda::health`]: from then on nothing works
//! any more, of any generation, and the process has to end.
//!
//! Source: CUDA driver API 13.0, through cudarc's bindings.

#![allow(unsafe_code)]

mod graph;
mod pinned;
mod pool;
mod registered;
mod staging;
mod stream;

use std::cell::Cell;
use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use cudarc::driver::{DriverError, result, sys};

pub use self::graph::Graph;
pub use self::pinned::Pinned;
pub use self::pool::{Buffer, Pool};
pub use self::registered::{PIECE, Registered};
pub use self::staging::{Convoy, Piece, Staging};
pub use self::stream::{Event, Priority, Stream, waited_for};
use super::{Health, Pooled, Vram};
use crate::error::{Error, Result};

/// A GPU whose primary context this process holds.
#[derive(Debug)]
pub struct Cuda {
    /// Never the same for two of them, also where the second has the first one's context.
    number: u64,
    ordinal: usize,
    name: String,
    device: sys::CUdevice,
    context: sys::CUcontext,
    capability: (i32, i32),
    shared: u32,
    health: Health,
    /// Those that live, in the order in which they were made.
    pools: Mutex<Vec<Weak<Pool>>>,
    /// Dropped last, when the context was let go of: who waits for that sees the other ends close.
    held: Mutex<Vec<Sender<Infallible>>>,
}

// SAFETY: a context may be used from any thread that has bound it, which every call here does.
unsafe impl Send for Cuda {}
// SAFETY: as above; the driver's calls are safe to make from several threads at once.
unsafe impl Sync for Cuda {}

/// The oldest architecture that kernels are built for: Ampere's, whose tensor cores know bf16.
const OLDEST: (i32, i32) = (8, 0);

thread_local! {
    /// Whose context the thread has bound.
    static BOUND: Cell<u64> = const { Cell::new(0) };
}

impl Cuda {
    /// Opens a GPU by its number.
    ///
    /// The error says what is missing: a driver, its libraries, a device, or one that is new enough.
    pub fn open(ordinal: usize) -> Result<Arc<Cuda>, String> {
        static NUMBERS: AtomicU64 = AtomicU64::new(1);
        // SAFETY: only looks whether the library can be opened; what it runs on loading is the vendor's.
        if !unsafe { sys::is_culib_present() } {
            return Err("there is no NVIDIA driver: libcuda.so.1 cannot be opened".into());
        }
        result::init().map_err(|error| told("the driver does not start", error))?;
        let count = result::device::get_count().map_err(|error| told("devices cannot be counted", error))?;
        let device = i32::try_from(ordinal).ok().filter(|ordinal| *ordinal < count);
        let device = device.ok_or_else(|| match count {
            0 => "the driver knows no device".to_owned(),
            1 => "there is one device, cuda:0".to_owned(),
            _ => format!("there are {count} devices, cuda:0 to cuda:{}", count - 1),
        })?;
        let device = result::device::get(device).map_err(|error| told("the device cannot be had", error))?;
        let name = result::device::get_name(device).map_err(|error| told("the device has no name", error))?;
        use sys::CUdevice_attribute as Attribute;
        let attribute = |which| {
            // SAFETY: the device was just given by the driver.
            unsafe { result::device::get_attribute(device, which) }.map_err(|error| told(&name, error))
        };
        let capability = (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        );
        if capability < OLDEST {
            let ((major, minor), (least, _)) = (capability, OLDEST);
            return Err(format!("{name} has compute capability {major}.{minor}, at least {least}.0 is needed"));
        }
        if attribute(Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED)? == 0 {
            return Err(format!("{name}'s driver has no memory pools"));
        }
        let shared = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
        let shared = u32::try_from(shared).unwrap_or(0);
        // SAFETY: as above; released once, when this is dropped.
        let context = unsafe { result::primary_ctx::retain(device) };
        let context = context.map_err(|error| told(&format!("{name} cannot be taken into use"), error))?;
        let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
        let (health, pools, held) = Default::default();
        Ok(Arc::new(Cuda { number, ordinal, name, device, context, capability, shared, health, pools, held }))
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn ordinal(&self) -> usize {
        self.ordinal
    }

    /// Major and minor.
    pub fn capability(&self) -> (i32, i32) {
        self.capability
    }

    /// Bytes of shared memory that a block may have where its kernel was allowed them.
    pub fn shared_per_block(&self) -> u32 {
        self.shared
    }

    pub fn health(&self) -> &Health {
        &self.health
    }

    /// Disconnected once nobody holds the device any more and its context was let go of.
    pub fn released(&self) -> Receiver<Infallible> {
        let (held, released) = channel();
        self.held.lock().unwrap_or_else(PoisonError::into_inner).push(held);
        released
    }

    pub fn memory(&self) -> Result<Vram> {
        self.bind()?;
        let (free, total) = self.check("cuMemGetInfo", result::mem_get_info())?;
        Ok(Vram { free: free as u64, total: total as u64 })
    }

    /// Returns to the driver what its graphs took beside pools. What is recorded here takes nothing: then this asks, and no more.
    pub fn trim_graphs(&self) -> Result<()> {
        self.bind()?;
        let mut held = 0u64;
        let which = sys::CUgraphMem_attribute::CU_GRAPH_MEM_ATTR_RESERVED_MEM_CURRENT;
        // SAFETY: the attribute is 64 bits wide.
        let answer = unsafe { sys::cuDeviceGetGraphMemAttribute(self.device, which, (&raw mut held).cast()) };
        self.check("cuDeviceGetGraphMemAttribute", answer.result())?;
        if held == 0 {
            return Ok(());
        }
        tracing::warn!(bytes = held, "graphs took memory of their own");
        // SAFETY: the device is in use.
        self.check("cuDeviceGraphMemTrim", unsafe { sys::cuDeviceGraphMemTrim(self.device) }.result())
    }

    /// What every pool holds.
    pub fn pools(&self) -> Result<Vec<Pooled>> {
        let pools: Vec<Arc<Pool>> = self.known().iter().filter_map(Weak::upgrade).collect();
        pools.iter().map(|pool| pool.told()).collect()
    }

    fn know(&self, pool: &Arc<Pool>) {
        let mut known = self.known();
        known.retain(|pool| pool.strong_count() > 0);
        known.push(Arc::downgrade(pool));
    }

    fn known(&self) -> MutexGuard<'_, Vec<Weak<Pool>>> {
        self.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the context the calling thread's. Nothing else in this process ever changes a thread's context.
    pub fn bind(&self) -> Result<()> {
        if BOUND.get() == self.number {
            return Ok(());
        }
        // SAFETY: the context is retained as long as `self` lives.
        self.check("cuCtxSetCurrent", unsafe { result::ctx::set_current(self.context) })?;
        BOUND.set(self.number);
        Ok(())
    }

    /// A driver call's answer, where `what` is the call. Notes an error that the context does not survive.
    pub fn check<T>(&self, what: &str, answer: Result<T, DriverError>) -> Result<T> {
        answer.map_err(|error| {
            let told = told(what, error);
            if is_sticky(error.0) && self.health.lost(told.clone()) {
                tracing::error!(device = self.ordinal, error = told, "the GPU's context is lost");
            }
            match error.0 {
                sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => Error::NoRoom {
                    sum: format!("{} is out of memory ({what})", self.name),
                    details: serde_json::json!({ "device": self.name, "call": what }),
                },
                _ => Error::internal(told),
            }
        })
    }

    /// Properties of memory that is this device's.
    fn location(&self) -> sys::CUmemLocation {
        sys::CUmemLocation { type_: sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE, id: self.device }
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        // SAFETY: retained once, in `open`; whatever lives in the context holds an `Arc` of this.
        if let Err(error) = unsafe { result::primary_ctx::release(self.device) } {
            tracing::warn!(error = told("cuDevicePrimaryCtxRelease", error), "a GPU was not let go of");
        }
    }
}

fn told(what: &str, error: DriverError) -> String {
    let text = |text: Result<&std::ffi::CStr, DriverError>| text.map(|text| text.to_string_lossy().into_owned());
    let name = text(error.error_name()).unwrap_or_else(|_| format!("error {}", error.0 as u32));
    match text(error.error_string()) {
        Ok(meaning) => format!("{what}: {name}, {meaning}"),
        Err(_) => format!("{what}: {name}"),
    }
}

/// After these the context cannot be used any more, or "the process is left in an inconsistent state and any further CUDA work
/// will return the same error", or it "must be terminated and relaunched" (CUDA driver API 13.0, `CUresult`). Of memory that could not
/// be corrected nothing is said there; what has lain in it is lost all the same.
fn is_sticky(code: sys::CUresult) -> bool {
    use sys::CUresult as Code;
    matches!(
        code,
        Code::CUDA_ERROR_ECC_UNCORRECTABLE
            | Code::CUDA_ERROR_CONTAINED
            | Code::CUDA_ERROR_ILLEGAL_ADDRESS
            | Code::CUDA_ERROR_LAUNCH_TIMEOUT
            | Code::CUDA_ERROR_ASSERT
            | Code::CUDA_ERROR_HARDWARE_STACK_ERROR
            | Code::CUDA_ERROR_ILLEGAL_INSTRUCTION
            | Code::CUDA_ERROR_MISALIGNED_ADDRESS
            | Code::CUDA_ERROR_INVALID_ADDRESS_SPACE
            | Code::CUDA_ERROR_INVALID_PC
            | Code::CUDA_ERROR_LAUNCH_FAILED
            | Code::CUDA_ERROR_TENSOR_MEMORY_LEAK
            | Code::CUDA_ERROR_CONTEXT_IS_DESTROYED
            | Code::CUDA_ERROR_MPS_CLIENT_TERMINATED
            | Code::CUDA_ERROR_EXTERNAL_DEVICE
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_that_only_its_call_fails_with_is_not_the_end_of_the_context() {
        use sys::CUresult as Code;
        // Out of resources, not permitted, a capture that was broken, an image for another device.
        for code in [
            Code::CUDA_ERROR_OUT_OF_MEMORY,
            Code::CUDA_ERROR_INVALID_VALUE,
            Code::CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES,
            Code::CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE,
            Code::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED,
            Code::CUDA_ERROR_NO_BINARY_FOR_GPU,
            Code::CUDA_ERROR_NOT_READY,
        ] {
            assert!(!is_sticky(code), "{code:?}");
        }
        let sticky = [214, 226, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 721, 810, 911];
        let found = [
            Code::CUDA_ERROR_ECC_UNCORRECTABLE,
            Code::CUDA_ERROR_CONTAINED,
            Code::CUDA_ERROR_ILLEGAL_ADDRESS,
            Code::CUDA_ERROR_LAUNCH_TIMEOUT,
            Code::CUDA_ERROR_CONTEXT_IS_DESTROYED,
            Code::CUDA_ERROR_ASSERT,
            Code::CUDA_ERROR_HARDWARE_STACK_ERROR,
            Code::CUDA_ERROR_ILLEGAL_INSTRUCTION,
            Code::CUDA_ERROR_MISALIGNED_ADDRESS,
            Code::CUDA_ERROR_INVALID_ADDRESS_SPACE,
            Code::CUDA_ERROR_INVALID_PC,
            Code::CUDA_ERROR_LAUNCH_FAILED,
            Code::CUDA_ERROR_TENSOR_MEMORY_LEAK,
            Code::CUDA_ERROR_MPS_CLIENT_TERMINATED,
            Code::CUDA_ERROR_EXTERNAL_DEVICE,
        ];
        for (code, number) in found.into_iter().zip(sticky) {
            assert!(is_sticky(code) && code as u32 == number, "{code:?}");
        }
    }
}

//! Memory of a GPU: a pool for what belongs together, and buffers in it.
//!
//! A pool's driver counts what is used and what is held for it, exactly, whatever others allocate beside it. Frees are
//! queued on a stream as everything else is, and count as free once the process has waited for that: then a trim returns
//! everything to the driver (`benches/results/gpu/README.md`: to the MiB). A pool grows by 32 MiB.

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::{result, sys};

use super::{Cuda, Stream};
use crate::device::{Count, Owner, Pooled};
use crate::error::{Error, Result};

/// Memory for one purpose, which is counted and returned by itself.
#[derive(Debug)]
pub struct Pool {
    cuda: Arc<Cuda>,
    raw: sys::CUmemoryPool,
    owner: Owner,
}

// SAFETY: the driver takes calls on a pool from any thread that has bound its context.
unsafe impl Send for Pool {}
// SAFETY: as above.
unsafe impl Sync for Pool {}

impl Pool {
    /// An empty pool. What is freed in it stays with it until it is trimmed: live traffic never pays for a return.
    pub fn new(cuda: &Arc<Cuda>, owner: Owner) -> Result<Arc<Pool>> {
        cuda.bind()?;
        // SAFETY: all zero is what the driver asks of the fields that are not set.
        let mut wanted: sys::CUmemPoolProps = unsafe { std::mem::zeroed() };
        wanted.allocType = sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED;
        wanted.location = cuda.location();
        // SAFETY: `wanted` is whole, and read before this returns.
        let raw = cuda.check("cuMemPoolCreate", unsafe { result::mem_pool::create(&raw const wanted) })?;
        let pool = Arc::new(Pool { cuda: Arc::clone(cuda), raw, owner });
        use sys::CUmemPool_attribute as Attribute;
        pool.set(Attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, u64::MAX)?;
        // Else an allocation may be made to wait for a stream that frees.
        pool.set(Attribute::CU_MEMPOOL_ATTR_REUSE_ALLOW_INTERNAL_DEPENDENCIES, 0i32)?;
        cuda.know(&pool);
        Ok(pool)
    }

    /// `bytes`, at least one, of undefined content, to be used on `stream` and, once somebody has waited for it, on others.
    pub fn allocate(self: &Arc<Self>, bytes: usize, stream: &Arc<Stream>) -> Result<Buffer> {
        self.allocate_for((stream, stream), bytes)
    }

    /// The same, to be used on one stream and, once somebody has waited for that, on another, where it will be freed.
    pub fn allocate_for(
        self: &Arc<Self>,
        (first, stream): (&Arc<Stream>, &Arc<Stream>),
        bytes: usize,
    ) -> Result<Buffer> {
        let on = first.bound()?;
        let bytes = bytes.max(1);
        // SAFETY: pool and stream live; nobody reads what is not written.
        let address = unsafe { result::mem_pool::alloc_async(self.raw, bytes, on) };
        let address = self.cuda.check("cuMemAllocFromPoolAsync", address)?;
        Ok(Buffer { pool: Arc::clone(self), stream: Arc::clone(stream), address, bytes })
    }

    /// Bytes of buffers that were not freed.
    pub fn used(&self) -> Result<u64> {
        self.get(sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT)
    }

    /// Bytes that the driver holds for the pool.
    pub fn reserved(&self) -> Result<u64> {
        self.get(sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT)
    }

    pub(in crate::device) fn count(&self) -> Result<Count> {
        Ok(Count { used: self.used()?, held: self.reserved()? })
    }

    pub(super) fn told(&self) -> Result<Pooled> {
        Ok(Pooled { owner: self.owner.clone(), used: self.used()?, reserved: self.reserved()? })
    }

    /// Returns what is not used to the driver, of what was freed before somebody waited for it.
    pub fn trim(&self) -> Result<()> {
        self.cuda.bind()?;
        // SAFETY: the pool lives.
        self.cuda.check("cuMemPoolTrimTo", unsafe { result::mem_pool::trim_to(self.raw, 0) })
    }

    pub fn cuda(&self) -> &Arc<Cuda> {
        &self.cuda
    }

    fn get(&self, which: sys::CUmemPool_attribute) -> Result<u64> {
        self.cuda.bind()?;
        let mut value = 0u64;
        // SAFETY: the attributes that are asked for here are 64 bits wide.
        let answer = unsafe { result::mem_pool::get_attribute(self.raw, which, (&raw mut value).cast::<c_void>()) };
        self.cuda.check("cuMemPoolGetAttribute", answer)?;
        Ok(value)
    }

    fn set<T: Copy>(&self, which: sys::CUmemPool_attribute, mut value: T) -> Result<()> {
        // SAFETY: the callers give each attribute its type.
        let answer = unsafe { result::mem_pool::set_attribute(self.raw, which, (&raw mut value).cast::<c_void>()) };
        self.cuda.check("cuMemPoolSetAttribute", answer)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if self.cuda.bind().is_err() {
            return;
        }
        // SAFETY: made in `new`, destroyed once; no buffer of it is left, since each holds it.
        if let Err(error) = self.cuda.check("cuMemPoolDestroy", unsafe { result::mem_pool::destroy(self.raw) }) {
            tracing::warn!(%error, "a memory pool stays");
        }
    }
}

/// Bytes on a GPU. Freed when dropped, in the order of its stream: work that was queued there before may still use them.
#[derive(Debug)]
pub struct Buffer {
    pool: Arc<Pool>,
    stream: Arc<Stream>,
    address: sys::CUdeviceptr,
    bytes: usize,
}

impl Buffer {
    pub fn address(&self) -> sys::CUdeviceptr {
        self.address
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The stream that it is used on in the end, and will be freed on.
    pub fn stream(&self) -> &Arc<Stream> {
        &self.stream
    }

    pub fn cuda(&self) -> &Arc<Cuda> {
        &self.pool.cuda
    }

    /// The address of `bytes` bytes from `at` on; an error where they are not all of this buffer.
    pub fn part(&self, at: usize, bytes: usize) -> Result<sys::CUdeviceptr> {
        match at.checked_add(bytes) {
            Some(end) if end <= self.bytes => Ok(self.address + at as u64),
            _ => Err(Error::internal(format!("{bytes} bytes from {at} on, of a buffer of {}", self.bytes))),
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let Ok(on) = self.stream.bound() else { return };
        // SAFETY: allocated in `allocate`, freed once.
        let answer = unsafe { result::free_async(self.address, on) };
        if let Err(error) = self.pool.cuda.check("cuMemFreeAsync", answer) {
            tracing::warn!(%error, bytes = self.bytes, "memory of a GPU was not freed");
        }
    }
}

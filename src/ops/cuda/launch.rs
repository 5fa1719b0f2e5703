//! How a kernel is launched: with how many threads, and with what. It must not know what a kernel computes.

use std::ffi::c_void;

use candle_core::DType;
use cudarc::driver::{result, sys};

use super::Tensor;
use super::kernels::{Kernel, attention_block, paged_block};
use crate::device::cuda::Stream;
use crate::error::{Error, Result};

/// How many threads: blocks, and threads in each; and bytes of shared memory that a block takes beside what it declares.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub(super) grid: (u32, u32, u32),
    pub(super) block: u32,
    pub(super) shared: u32,
}

impl Shape {
    /// For kernels that go over values in any number of steps: a thread for each eight of them.
    pub(super) fn each(count: usize) -> Shape {
        const THREADS: usize = 256;
        const MOST: usize = 1 << 16;
        Shape { grid: (count.div_ceil(8 * THREADS).min(MOST) as u32, 1, 1), block: THREADS as u32, shared: 0 }
    }

    /// Warps of all blocks.
    pub(super) fn warps(&self) -> usize {
        self.grid.0 as usize * self.block as usize / 32
    }

    /// For kernels in which a warp does a row, four to a block (`kernels/rows.cuh`).
    pub(super) fn warp_each(rows: usize) -> Shape {
        Shape { grid: (rows.div_ceil(4) as u32, 1, 1), block: 128, shared: 0 }
    }

    /// For `embed_tokens`: as `warp_each`, but two rows to a warp where they share one (`kernels/README.md`).
    pub(super) fn embedding(rows: usize, width: usize, dtype: DType) -> Shape {
        let half = 16 * 16 / dtype.size_in_bytes();
        let shared = width <= 512 && width.is_multiple_of(half) && !(width / half).is_multiple_of(2);
        Self::warp_each(if shared { rows.div_ceil(2) } else { rows })
    }

    /// For `patches`: a block for each.
    pub(super) fn patches(count: usize) -> Shape {
        Shape { grid: (count as u32, 1, 1), block: 128, shared: 0 }
    }

    /// For `pool`: blocks of 512 threads for each sequence, which share its columns.
    pub(super) fn pool(sequences: usize, width: usize) -> Shape {
        Shape { grid: (sequences as u32, width.div_ceil(128).clamp(1, 64) as u32, 1), block: 512, shared: 0 }
    }

    /// For `rms_norm`, in which a team of threads does a row (`kernels/rms_norm.cu`).
    pub(super) fn team_each(rows: usize, width: usize, dtype: DType) -> Shape {
        const THREADS: usize = 256;
        let vector = 16 / dtype.size_in_bytes();
        let mut team = 32;
        while team < THREADS && 4 * team * vector < width {
            team *= 2;
        }
        Shape { grid: ((rows * team).div_ceil(THREADS) as u32, 1, 1), block: THREADS as u32, shared: 0 }
    }

    /// For `few_rows`: a block for every sixteen outputs.
    pub(super) fn outputs(columns: usize) -> Shape {
        Shape { grid: (columns.div_ceil(16) as u32, 1, 1), block: 256, shared: 0 }
    }

    /// For `likeliest` and `likely`: so many blocks for each row.
    pub(super) fn parts(blocks: usize, rows: usize) -> Shape {
        Shape { grid: (blocks as u32, rows as u32, 1), block: 256, shared: 0 }
    }

    /// For `logit_of`: a thread for each row.
    pub(super) fn thread_each(rows: usize) -> Shape {
        Shape { grid: (rows.div_ceil(256) as u32, 1, 1), block: 256, shared: 0 }
    }

    /// For `take_rows`: a block for each row.
    pub(super) fn block_each(rows: usize) -> Shape {
        Shape { grid: (rows as u32, 1, 1), block: 128, shared: 0 }
    }

    /// For `place_heads`, over so many values: a lane for each sixteen bytes of both halves of a head.
    pub(super) fn halves(count: usize, dtype: DType) -> Shape {
        const MOST: usize = 1 << 16;
        let of_block = 2 * 128 * (16 / dtype.size_in_bytes());
        Shape { grid: (count.div_ceil(of_block).min(MOST) as u32, 1, 1), block: 128, shared: 0 }
    }

    /// For attention to a cache: so many blocks for each head of the cache.
    pub(super) fn paged(kernel: Kernel, blocks: usize, kv_heads: usize, width: usize) -> Shape {
        let (block, shared) = paged_block(kernel, width);
        Shape { grid: (blocks as u32, kv_heads as u32, 1), block, shared }
    }

    /// For attention over so many tiles, and which of its kernels has heads of this width: one that `check_heads` lets pass.
    pub(super) fn attention(tiles: usize, heads: usize, each: usize, dtype: DType) -> (Kernel, Shape) {
        let kernel = match each {
            32 => Kernel::Attention32,
            64 => Kernel::Attention64,
            128 => Kernel::Attention128,
            _ => Kernel::AttentionAny,
        };
        let (block, shared) = attention_block(each, dtype);
        (kernel, Shape { grid: (tiles as u32, heads as u32, 1), block, shared })
    }
}

/// What a kernel is called with, in the order of its parameters.
#[derive(Default)]
pub(super) struct Arguments {
    values: Vec<u64>,
    /// A size that is no `int`.
    beyond: Option<usize>,
}

impl Arguments {
    /// Beginning with a tensor.
    pub(super) fn new(x: &Tensor) -> Self {
        Arguments::default().address(x.address())
    }

    /// An address, which may be null.
    pub(super) fn address(mut self, address: u64) -> Self {
        self.values.push(address);
        self
    }

    /// Rows, columns and the like: an `int`.
    pub(super) fn size(mut self, size: usize) -> Self {
        match i32::try_from(size) {
            Ok(size) => self.values.push(u64::from(size as u32)),
            Err(_) => self.beyond = Some(size),
        }
        self
    }

    /// An `int` of which every bit counts.
    pub(super) fn bits(mut self, bits: u32) -> Self {
        self.values.push(u64::from(bits));
        self
    }

    pub(super) fn count(mut self, count: usize) -> Self {
        self.values.push(count as u64);
        self
    }

    pub(super) fn float(mut self, value: f32) -> Self {
        self.values.push(u64::from(value.to_bits()));
        self
    }
}

/// Queues a kernel.
///
/// # Safety
/// The arguments are those that the kernel declares, every address has as much memory behind it as the kernel reads or writes
/// there, and nothing else on other streams uses what it writes.
#[allow(unsafe_code)]
pub(super) unsafe fn launch(
    stream: &Stream,
    function: sys::CUfunction,
    Shape { grid, block, shared }: Shape,
    mut arguments: Arguments,
) -> Result<()> {
    if grid.0 == 0 || grid.1 == 0 || grid.2 == 0 {
        return Ok(());
    }
    if let Some(size) = arguments.beyond {
        return Err(Error::internal(format!("{size} is too large for a kernel")));
    }
    let raw = stream.bound()?;
    // Values of fewer than eight bytes lie in the first of them: GPUs are served from little-endian machines only.
    let mut parameters: Vec<*mut c_void> = arguments.values.iter_mut().map(|value| (&raw mut *value).cast()).collect();
    // SAFETY: the caller's promise; parameters are read before this returns.
    let answer = unsafe { result::launch_kernel(function, grid, (block, 1, 1), shared, raw, &mut parameters) };
    stream.cuda().check("cuLaunchKernel", answer)
}

//! Matrix products by cublasLt, with a bias, an activation or a residual applied to the product while it is at hand.
//!
//! Which algorithm suits a product is asked once for each width and each power of two of rows, and kept: asking takes
//! longer than many products do. It can be asked before the first of them is needed ([`Blas::look_up`]); then those of many rows
//! are tried, and the fastest is kept (`trial`).
//!
//! What was kept is never changed, and belongs to the process: generations with products of the same shape, format and ending have
//! the same algorithms for as long as they live, and so the same bits for the same weights and the same batch. From one process to
//! another that holds for products of up to 512 rows, with the same library and device; of more rows time decides, and another
//! process may sum in another order. Answers are then alike to the precision of their format, no further.
//!
//! Source: cuBLAS 13.0, "Using the cublasLt API".

#![allow(unsafe_code)]

use std::collections::HashMap;
use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use candle_core::DType;
use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys::{
    cublasLtHandle_t, cublasLtMatmulAlgo_t, cublasLtMatmulAlgoGetHeuristic as ask,
    cublasLtMatmulHeuristicResult_t as Found, cublasStatus_t as Status, is_culib_present,
};
use cudarc::driver::sys::CUstream;

use super::product::{Compute, Described, Product, Then, WORKSPACE, failed};
use super::trial::{CANDIDATES, Tally, Trial, is_worth};
use crate::device::cuda::{Buffer, Cuda, Event, Pool, Stream};
use crate::error::{Error, Result};

#[derive(Debug)]
pub(super) struct Blas {
    handle: cublasLtHandle_t,
    /// Of products on the stream of passes, one after the other.
    workspace: Buffer,
    /// Of those that are tried beside them.
    aside: Buffer,
    chosen: Mutex<Chosen>,
    /// Trials that nobody has told of.
    tally: Mutex<Tally>,
}

/// Entries are added, and stay as they are.
#[derive(Debug, Default)]
struct Chosen {
    of_classes: HashMap<Choice, cublasLtMatmulAlgo_t>,
    /// Of products that the algorithm of their class does not take, by their very number of rows.
    apart: HashMap<Choice, cublasLtMatmulAlgo_t>,
}

// SAFETY: a handle may be used from any thread; what it is used with is guarded.
unsafe impl Send for Blas {}
// SAFETY: as above.
unsafe impl Sync for Blas {}

/// Products that one algorithm is chosen for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Choice {
    dtype: DType,
    result: DType,
    compute: Compute,
    rows: usize,
    inner: usize,
    columns: usize,
    stride: usize,
    added: bool,
    then: Then,
    /// The same for all of a shape, but where something begins in the middle of what was taken.
    alignment: u32,
}

impl Choice {
    /// The same for all rows up to the next power of two: which algorithm is best changes slowly with them.
    fn of(product: &Product) -> Choice {
        let Product { dtype, result, compute, inner, columns, stride, then, .. } = *product;
        let (rows, added) = (product.rows.next_power_of_two(), product.residual.is_some());
        let alignment = product.alignment();
        Choice { dtype, result, compute, rows, inner, columns, stride, added, then, alignment }
    }

    /// For these rows only.
    fn exactly(product: &Product) -> Choice {
        Choice { rows: product.rows, ..Choice::of(product) }
    }
}

impl Blas {
    pub(super) fn start(cuda: &Arc<Cuda>, pool: &Arc<Pool>, stream: &Arc<Stream>) -> Result<Blas> {
        // SAFETY: only looks whether the library can be opened.
        if !unsafe { is_culib_present() } {
            return Err(Error::internal("libcublasLt.so.13 cannot be opened: CUDA's libraries are not installed"));
        }
        cuda.bind()?;
        let handle = result::create_handle().map_err(|error| failed("cublasLtCreate", &error))?;
        let room = || pool.allocate(WORKSPACE, stream);
        let blas = |(workspace, aside)| {
            let (chosen, tally) = Default::default();
            Blas { handle, workspace, aside, chosen, tally }
        };
        room().and_then(|first| Ok((first, room()?))).map(blas).inspect_err(|_| {
            // SAFETY: just made, and used by nobody.
            let _ = unsafe { result::destroy_handle(handle) };
        })
    }

    /// Queues a product.
    ///
    /// # Safety
    /// Every address has as much memory behind it as its shape says, and what is written is used on this stream only.
    pub(super) unsafe fn multiply(&self, stream: &Stream, product: &Product) -> Result<()> {
        if product.rows == 0 || product.columns == 0 {
            return Ok(());
        }
        let raw = stream.bound()?;
        let described = Described::of(product)?;
        let algorithm = self.algorithm(product, &described)?;
        let workspace = &self.workspace;
        // SAFETY: the caller's promise.
        match unsafe { self.run(raw, product, (&described, &algorithm), workspace) } {
            // Chosen for another number of rows, which it takes and these it does not.
            Err(error) if is_refusal(&error) => {
                let first = self.first(&described)?;
                let algorithm = *self.chosen().apart.entry(Choice::exactly(product)).or_insert(first);
                // SAFETY: as above.
                unsafe { self.run(raw, product, (&described, &algorithm), workspace) }
            }
            answer => answer,
        }
        .map_err(|error| failed("cublasLtMatmul", &error))
    }

    /// Asks for a product's algorithm where nobody has yet, and tries those that are offered where that is worth it. The product
    /// is queued at least once, so that what the library loads for it is there before it is needed, or recorded.
    ///
    /// # Safety
    /// As for [`Blas::multiply`]; and products are looked up on one stream only.
    pub(super) unsafe fn look_up(&self, stream: &Stream, product: &Product) -> Result<()> {
        if product.rows == 0 || product.columns == 0 {
            return Ok(());
        }
        let raw = stream.bound()?;
        let described = Described::of(product)?;
        let choice = Choice::of(product);
        if self.chosen().of_classes.contains_key(&choice) {
            return Ok(());
        }
        let fastest = match is_worth(product.rows) {
            // SAFETY: the caller's promise.
            true => unsafe { self.fastest(stream, product, &described) }?,
            false => self.first(&described)?,
        };
        // Somebody may have asked meanwhile, and uses what was found.
        let algorithm = *self.chosen().of_classes.entry(choice).or_insert(fastest);
        // SAFETY: the caller's promise.
        let queued = match unsafe { self.run(raw, product, (&described, &algorithm), &self.aside) } {
            // That was found for another number of rows; what was found here takes these. SAFETY: as above.
            Err(error) if is_refusal(&error) => unsafe { self.run(raw, product, (&described, &fastest), &self.aside) },
            queued => queued,
        };
        queued.map_err(|error| failed("cublasLtMatmul", &error))
    }

    /// The fastest of the algorithms that are offered for a product, by running it.
    ///
    /// # Safety
    /// As for [`Blas::look_up`].
    unsafe fn fastest(
        &self,
        stream: &Stream,
        product: &Product,
        described: &Described,
    ) -> Result<cublasLtMatmulAlgo_t> {
        let (began, raw) = (Instant::now(), stream.bound()?);
        let (start, end) = (Event::timed(stream.cuda())?, Event::timed(stream.cuda())?);
        let found = self.ask(described, CANDIDATES)?;
        let mut trial = Trial::of(found.len());
        while let Some(turn) = trial.next(began.elapsed()) {
            let way = (described, &found[turn.candidate]);
            start.record(stream)?;
            // SAFETY: the caller's promise. Results are written over each other.
            let ran = (0..turn.runs).try_for_each(|_| unsafe { self.run(raw, product, way, &self.aside) });
            end.record(stream).and_then(|()| end.synchronize())?;
            match ran {
                Ok(()) => trial.took(&turn, Some(end.since(&start)?)),
                Err(error) if is_refusal(&error) => trial.took(&turn, None),
                Err(error) => return Err(failed("cublasLtMatmul", &error)),
            }
        }
        let chosen =
            trial.choice().ok_or_else(|| Error::internal("no algorithm that was offered takes its product"))?;
        if found.len() > 1 {
            let mut tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
            tally.products += 1;
            tally.changed += usize::from(chosen > 0);
            tally.took += began.elapsed();
        }
        Ok(found[chosen])
    }

    /// What trials came to since this was last asked.
    pub(super) fn tried(&self) -> Tally {
        std::mem::take(&mut *self.tally.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// # Safety
    /// As for [`Blas::multiply`].
    unsafe fn run(
        &self,
        raw: CUstream,
        product: &Product,
        (described, algorithm): (&Described, &cublasLtMatmulAlgo_t),
        workspace: &Buffer,
    ) -> Result<(), CublasError> {
        let (one, beta) = (1f32, if product.residual.is_some() { 1f32 } else { 0f32 });
        let pointer = |address: u64| address as *const c_void;
        let out = product.out as *mut c_void;
        let Described { product: what, weight, x, out: to, .. } = described;
        // SAFETY: descriptors live until this returns, operands by the caller's promise, and scalars are read at once.
        unsafe {
            result::matmul(
                self.handle,
                what.0,
                (&raw const one).cast(),
                (&raw const beta).cast(),
                pointer(product.weight),
                weight.0,
                pointer(product.x),
                x.0,
                product.residual.map_or(out.cast_const(), pointer),
                to.0,
                out,
                to.0,
                algorithm,
                workspace.address() as *mut c_void,
                workspace.bytes(),
                raw.cast(),
            )
        }
    }

    fn chosen(&self) -> MutexGuard<'_, Chosen> {
        self.chosen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn algorithm(&self, product: &Product, described: &Described) -> Result<cublasLtMatmulAlgo_t> {
        let choice = Choice::of(product);
        let known = {
            let Chosen { of_classes, apart } = &*self.chosen();
            let apart = if apart.is_empty() { None } else { apart.get(&Choice::exactly(product)) };
            apart.or_else(|| of_classes.get(&choice)).copied()
        };
        if let Some(algorithm) = known {
            return Ok(algorithm);
        }
        // Not under the lock: live traffic must not wait for what a candidate asks.
        let algorithm = self.first(described)?;
        Ok(*self.chosen().of_classes.entry(choice).or_insert(algorithm))
    }

    /// What cublasLt takes to be the fastest.
    fn first(&self, described: &Described) -> Result<cublasLtMatmulAlgo_t> {
        self.ask(described, 1).map(|found| found[0])
    }

    /// At least one, at most so many, those before the others that cublasLt takes to be faster.
    fn ask(&self, described: &Described, most: usize) -> Result<Vec<cublasLtMatmulAlgo_t>> {
        let Described { product, weight, x, out, .. } = described;
        let (preference, mut count) = (described.preference()?, 0);
        let mut found: Vec<MaybeUninit<Found>> = vec![MaybeUninit::uninit(); most];
        // SAFETY: everything that is told of lives; there is room for as many answers as are asked for.
        let answer = unsafe {
            let (first, asked) = (found.as_mut_ptr().cast(), most as i32);
            let (handle, to) = (self.handle, out.0);
            ask(handle, product.0, weight.0, x.0, to, to, preference.0, asked, first, &raw mut count).result()
        };
        answer.map_err(|error| failed("cublasLtMatmulAlgoGetHeuristic", &error))?;
        let count = usize::try_from(count).unwrap_or(0);
        // SAFETY: so many answers were written.
        let found = found.into_iter().take(count).map(|found| unsafe { found.assume_init() });
        let good: Vec<_> = found.filter(|found| found.state == Status::CUBLAS_STATUS_SUCCESS).collect();
        if good.is_empty() {
            let error = CublasError(Status::CUBLAS_STATUS_NOT_SUPPORTED);
            return Err(failed("cublasLtMatmulAlgoGetHeuristic", &error));
        }
        Ok(good.iter().map(|found| found.algo).collect())
    }
}

/// Whether an algorithm does not take a product, rather than that something broke: one that needs more workspace for it than
/// there is, is called a wrong value.
fn is_refusal(CublasError(status): &CublasError) -> bool {
    matches!(status, Status::CUBLAS_STATUS_NOT_SUPPORTED | Status::CUBLAS_STATUS_INVALID_VALUE)
}

impl Drop for Blas {
    fn drop(&mut self) {
        // SAFETY: made in `start`, destroyed once; whatever was queued goes on without it.
        if let Err(error) = unsafe { result::destroy_handle(self.handle) } {
            tracing::warn!(?error, "a cublasLt handle stays");
        }
    }
}

//! Matrix products by cublasLt, with a bias, an activation or a residual applied to the product while it is at hand.
//!
//! Which algorithm suits a product is asked once for each width and each power of two of rows, and kept: asking takes
//! longer than many products do. It can be asked before the first of them is needed ([`Blas::look_up`]).
//!
//! Source: cuBLAS 13.0, "Using the cublasLt API".

#![allow(unsafe_code)]

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::DType;
use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys::{
    cublasComputeType_t as ComputeType, cublasLtEpilogue_t as Ending, cublasLtHandle_t, cublasLtMatmulAlgo_t,
    cublasLtMatmulDesc_t, cublasLtMatmulDescAttributes_t as Attribute,
    cublasLtMatmulPreferenceAttributes_t as Preference, cublasLtMatrixLayout_t, cublasStatus_t as Status,
    cudaDataType as Format, is_culib_present,
};

use cudarc::driver::sys::CUstream;

use crate::device::cuda::{Buffer, Cuda, Pool, Stream};
use crate::error::{Error, Result};

/// What algorithms may use beside operands; NVIDIA recommends this much for Hopper.
const WORKSPACE: usize = 32 << 20;
/// Products of more rows are not tried when they are looked up: they take the GPU's time.
const TRIED_ROWS: usize = 512;

/// `CUBLAS_OP_T` of `cublas_api.h`, which cudarc has elsewhere.
const TRANSPOSED: i32 = 1;

/// What becomes of a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Then {
    Nothing,
    /// Adds a bias to each row.
    Bias,
    /// And applies the tanh form of GELU.
    BiasGeluTanh,
    BiasRelu,
}

/// What numbers are multiplied as; sums are f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Compute {
    /// As they are.
    Full,
    /// Of f32 the ten bits after the first, which tensor cores take.
    Tf32,
}

/// `d = x · weightᵀ`, then [`Then`]: `[rows, inner] · [columns, inner]ᵀ`, all of one format but perhaps the result.
pub(super) struct Product {
    pub(super) dtype: DType,
    /// Of the result and what is added to it: the same, or f32.
    pub(super) result: DType,
    pub(super) compute: Compute,
    pub(super) rows: usize,
    pub(super) inner: usize,
    pub(super) columns: usize,
    pub(super) x: u64,
    pub(super) weight: u64,
    /// `[columns]`; what it is does not matter where nothing is added.
    pub(super) bias: u64,
    /// `[rows, columns]`, added to the product.
    pub(super) residual: Option<u64>,
    pub(super) then: Then,
    pub(super) out: u64,
    /// Values from a row of the result to the next, and of what is added to it.
    pub(super) stride: usize,
}

#[derive(Debug)]
pub(super) struct Blas {
    handle: cublasLtHandle_t,
    /// Of products on the stream of passes, one after the other.
    workspace: Buffer,
    /// Of those that are tried beside them.
    aside: Buffer,
    chosen: Mutex<HashMap<Choice, cublasLtMatmulAlgo_t>>,
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
}

impl Choice {
    /// The same for all rows up to the next power of two: which algorithm is best changes slowly with them.
    fn of(product: &Product) -> Choice {
        let Product { dtype, result, compute, inner, columns, stride, then, .. } = *product;
        let (rows, added) = (product.rows.next_power_of_two(), product.residual.is_some());
        Choice { dtype, result, compute, rows, inner, columns, stride, added, then }
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
        let blas = |(workspace, aside)| Blas { handle, workspace, aside, chosen: Mutex::default() };
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
        let (algorithm, _) = self.algorithm(Choice::of(product), &described)?;
        let workspace = &self.workspace;
        // SAFETY: the caller's promise.
        match unsafe { self.run(raw, product, (&described, &algorithm), workspace) } {
            // Chosen for another number of rows, which it takes and these it does not.
            Err(CublasError(Status::CUBLAS_STATUS_NOT_SUPPORTED)) => {
                let algorithm = self.ask(&described)?;
                // SAFETY: as above.
                unsafe { self.run(raw, product, (&described, &algorithm), workspace) }
            }
            answer => answer,
        }
        .map_err(|error| failed("cublasLtMatmul", &error))
    }

    /// Asks for a product's algorithm where nobody has yet. A small one is then queued once, so that what the library loads for
    /// it is there before it is needed, or recorded.
    ///
    /// # Safety
    /// As for [`Blas::multiply`]; and products are looked up on one stream only.
    pub(super) unsafe fn look_up(&self, stream: &Stream, product: &Product) -> Result<()> {
        if product.rows == 0 || product.columns == 0 {
            return Ok(());
        }
        let raw = stream.bound()?;
        let described = Described::of(product)?;
        let (algorithm, asked) = self.algorithm(Choice::of(product), &described)?;
        if !asked || product.rows > TRIED_ROWS {
            return Ok(());
        }
        // SAFETY: the caller's promise.
        let queued = unsafe { self.run(raw, product, (&described, &algorithm), &self.aside) };
        queued.map_err(|error| failed("cublasLtMatmul", &error))
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
        let Described { product: what, weight, x, out: to } = described;
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

    /// And whether it had to be asked for.
    fn algorithm(&self, choice: Choice, described: &Described) -> Result<(cublasLtMatmulAlgo_t, bool)> {
        let chosen = || self.chosen.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(algorithm) = chosen().get(&choice) {
            return Ok((*algorithm, false));
        }
        // Not under the lock: live traffic must not wait for what a candidate asks.
        let algorithm = self.ask(described)?;
        Ok((*chosen().entry(choice).or_insert(algorithm), true))
    }

    /// What cublasLt takes to be the fastest.
    fn ask(&self, described: &Described) -> Result<cublasLtMatmulAlgo_t> {
        let Described { product, weight, x, out } = described;
        let preference =
            result::create_matmul_pref().map_err(|error| failed("cublasLtMatmulPreferenceCreate", &error))?;
        let most = WORKSPACE;
        // SAFETY: the preference was just made; everything else lives; the value is read at once and has the attribute's type.
        let answer = unsafe {
            let which = Preference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
            let set =
                result::set_matmul_pref_attribute(preference, which, (&raw const most).cast(), size_of_val(&most));
            let found = set.and_then(|()| {
                result::get_matmul_algo_heuristic(self.handle, product.0, weight.0, x.0, out.0, out.0, preference)
            });
            let _ = result::destroy_matmul_pref(preference);
            found
        };
        Ok(answer.map_err(|error| failed("cublasLtMatmulAlgoGetHeuristic", &error))?.algo)
    }
}

impl Drop for Blas {
    fn drop(&mut self) {
        // SAFETY: made in `start`, destroyed once; whatever was queued goes on without it.
        if let Err(error) = unsafe { result::destroy_handle(self.handle) } {
            tracing::warn!(?error, "a cublasLt handle stays");
        }
    }
}

/// A product as cublasLt is told of it. It thinks in columns, so it is told of the transposed one: `dᵀ = weight · xᵀ`, where
/// a row of ours is a column of its.
struct Described {
    product: Description,
    weight: Layout,
    x: Layout,
    out: Layout,
}

impl Described {
    fn of(product: &Product) -> Result<Described> {
        let format = |dtype: DType| match dtype {
            DType::F16 => Format::CUDA_R_16F,
            DType::BF16 => Format::CUDA_R_16BF,
            _ => Format::CUDA_R_32F,
        };
        let (given, result) = (format(product.dtype), format(product.result));
        let Product { rows, inner, columns, stride, .. } = *product;
        let description = Description::new(product)?;
        Ok(Described {
            product: description,
            weight: Layout::new(given, (inner, columns), inner)?,
            x: Layout::new(given, (inner, rows), inner)?,
            out: Layout::new(result, (columns, rows), stride)?,
        })
    }
}

struct Description(cublasLtMatmulDesc_t);

impl Description {
    fn new(product: &Product) -> Result<Description> {
        let compute = match product.compute {
            Compute::Full => ComputeType::CUBLAS_COMPUTE_32F,
            Compute::Tf32 => ComputeType::CUBLAS_COMPUTE_32F_FAST_TF32,
        };
        let made = result::create_matmul_desc(compute, Format::CUDA_R_32F);
        let description = Description(made.map_err(|error| failed("cublasLtMatmulDescCreate", &error))?);
        description.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, TRANSPOSED)?;
        let ending = match product.then {
            Then::Nothing => return Ok(description),
            Then::Bias => Ending::CUBLASLT_EPILOGUE_BIAS,
            Then::BiasGeluTanh => Ending::CUBLASLT_EPILOGUE_GELU_BIAS,
            Then::BiasRelu => Ending::CUBLASLT_EPILOGUE_RELU_BIAS,
        };
        description.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, ending)?;
        description.set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, product.bias)?;
        Ok(description)
    }

    fn set<T: Copy>(&self, which: Attribute, value: T) -> Result<()> {
        // SAFETY: the description lives, and the value is read at once; callers give each attribute its type.
        let answer = unsafe {
            result::set_matmul_desc_attribute(self.0, which, (&raw const value).cast::<c_void>(), size_of::<T>())
        };
        answer.map_err(|error| failed("cublasLtMatmulDescSetAttribute", &error))
    }
}

impl Drop for Description {
    fn drop(&mut self) {
        // SAFETY: made once, destroyed once.
        let _ = unsafe { result::destroy_matmul_desc(self.0) };
    }
}

struct Layout(cublasLtMatrixLayout_t);

impl Layout {
    /// Of a matrix that lies column by column, so many values from one to the next.
    fn new(format: Format, (rows, columns): (usize, usize), stride: usize) -> Result<Layout> {
        let made = result::create_matrix_layout(format, rows as u64, columns as u64, stride as i64);
        made.map(Layout).map_err(|error| failed("cublasLtMatrixLayoutCreate", &error))
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: made once, destroyed once.
        let _ = unsafe { result::destroy_matrix_layout(self.0) };
    }
}

fn failed(what: &str, error: &CublasError) -> Error {
    Error::internal(format!("{what}: {error}"))
}

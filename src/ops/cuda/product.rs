//! A matrix product, and how cublasLt is told of it.
//!
//! It must not know which algorithm is chosen, nor where a product runs.
//!
//! Source: cuBLAS 13.0, "Using the cublasLt API".

#![allow(unsafe_code)]

use std::ffi::c_void;

use candle_core::DType;
use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys::{
    cublasComputeType_t as ComputeType, cublasLtEpilogue_t as Ending, cublasLtMatmulDesc_t,
    cublasLtMatmulDescAttributes_t as Attribute, cublasLtMatmulPreference_t,
    cublasLtMatmulPreferenceAttributes_t as Wish, cublasLtMatrixLayout_t, cudaDataType as Format,
};

use crate::error::{Error, Result};

/// What algorithms may use beside operands; NVIDIA recommends this much for Hopper.
pub(super) const WORKSPACE: usize = 32 << 20;

/// `CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE` of `cublasLt.h`: parts of a sum are kept in the workspace as f32, and added up in one
/// order.
const REDUCTION: u32 = 2;

/// Bytes that what tensor cores read and write is a multiple of. More is not asked for, so that products of a part of a matrix
/// have the algorithm of all others.
const ALIGNMENT: u32 = 16;

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

impl Product {
    /// Bytes that every address of it is a multiple of, at most [`ALIGNMENT`].
    pub(super) fn alignment(&self) -> u32 {
        let all = self.x | self.weight | self.out | self.residual.unwrap_or(0) | u64::from(ALIGNMENT);
        1 << all.trailing_zeros()
    }
}

/// A product as cublasLt is told of it. It thinks in columns, so it is told of the transposed one: `dᵀ = weight · xᵀ`, where
/// a row of ours is a column of its.
pub(super) struct Described {
    pub(super) product: Description,
    pub(super) weight: Layout,
    pub(super) x: Layout,
    pub(super) out: Layout,
    alignment: u32,
}

impl Described {
    pub(super) fn of(product: &Product) -> Result<Described> {
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
            alignment: product.alignment(),
        })
    }

    /// What an algorithm for it must keep to.
    pub(super) fn preference(&self) -> Result<Preference> {
        let made = result::create_matmul_pref();
        let preference = Preference(made.map_err(|error| failed("cublasLtMatmulPreferenceCreate", &error))?);
        preference.set(Wish::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, WORKSPACE)?;
        // Anything is allowed by default, and sums of f16 are then rounded on the way.
        preference.set(Wish::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, REDUCTION)?;
        // 256 by default, which the first address of a room has and no other.
        for matrix in [
            Wish::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
            Wish::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
            Wish::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
            Wish::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
        ] {
            preference.set(matrix, self.alignment)?;
        }
        Ok(preference)
    }
}

pub(super) struct Description(pub(super) cublasLtMatmulDesc_t);

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

pub(super) struct Layout(pub(super) cublasLtMatrixLayout_t);

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

pub(super) struct Preference(pub(super) cublasLtMatmulPreference_t);

impl Preference {
    fn set<T: Copy>(&self, which: Wish, value: T) -> Result<()> {
        // SAFETY: the preference lives, and the value is read at once; each attribute is given its type above.
        let answer = unsafe {
            result::set_matmul_pref_attribute(self.0, which, (&raw const value).cast::<c_void>(), size_of::<T>())
        };
        answer.map_err(|error| failed("cublasLtMatmulPreferenceSetAttribute", &error))
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: made once, destroyed once.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}

pub(super) fn failed(what: &str, error: &CublasError) -> Error {
    Error::internal(format!("{what}: {error}"))
}

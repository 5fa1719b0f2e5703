//! The kernels of `kernels/`, loaded once. How one is launched is told in `launch`.
//!
//! `build.rs` compiles each file for every architecture that is served; all of them are loaded when a device is opened, so
//! that no request and no swap ever waits for that.

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::sync::Arc;

use candle_core::DType;
use cudarc::driver::{result, sys};

use super::quantized::Functions;
use crate::device::cuda::Cuda;
use crate::error::{Error, Result};

/// One file of `kernels/`, compiled, and the kernels in it.
struct Image {
    file: &'static str,
    bytes: &'static [u8],
}

macro_rules! images {
    ($($file:literal),* $(,)?) => {
        &[$(Image { file: $file, bytes: include_bytes!(concat!(env!("OUT_DIR"), "/", $file, ".fatbin")) }),*]
    };
}

const IMAGES: &[Image] = images![
    "activate",
    "arrange",
    "attention",
    "cast",
    "embed_tokens",
    "few_rows",
    "finite",
    "gated",
    "layer_norm",
    "likeliest",
    "likely",
    "paged_attention",
    "patches",
    "place_heads",
    "pool",
    "quantized_rows",
    "rms_norm",
    "spell_out",
    "take_rows",
];

macro_rules! kernels {
    ($($name:ident: $file:literal $symbol:literal),* $(,)?) => {
        /// A kernel, for each of [`FORMATS`].
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(super) enum Kernel { $($name),* }

        impl Kernel {
            const ALL: &[(Kernel, &str, &str)] = &[$((Kernel::$name, $file, $symbol)),*];
        }
    };
}

kernels! {
    EmbedTokens: "embed_tokens" "embed_tokens",
    LayerNorm: "layer_norm" "layer_norm",
    Activate: "activate" "activate",
    BiasActivate: "activate" "bias_activate",
    AttentionAny: "attention" "attention_any",
    Attention32: "attention" "attention_32",
    Attention64: "attention" "attention_64",
    Attention128: "attention" "attention_128",
    Pool: "pool" "pool",
    L2Normalize: "pool" "l2_normalize",
    Patches: "patches" "patches",
    EmbedPatches: "patches" "embed_patches",
    Finite: "finite" "finite",
    Land: "finite" "land",
    RmsNorm: "rms_norm" "rms_norm",
    Gated: "gated" "gated",
    TakeRows: "take_rows" "take_rows",
    PlaceHeads: "place_heads" "place_heads",
    Paged128: "paged_attention" "paged_128",
    Paged256: "paged_attention" "paged_256",
    Decode64: "paged_attention" "paged_decode_64",
    Decode128: "paged_attention" "paged_decode_128",
    Prefill64: "paged_attention" "paged_prefill_64",
    Prefill128: "paged_attention" "paged_prefill_128",
    Rows8: "few_rows" "rows_8",
    Rows16: "few_rows" "rows_16",
    Rows32: "few_rows" "rows_32",
    Rows8ToF32: "few_rows" "rows_8_to_f32",
    Rows16ToF32: "few_rows" "rows_16_to_f32",
    Rows32ToF32: "few_rows" "rows_32_to_f32",
}

/// Attention to a cache: its kernels, and the widest head that each takes.
const PAGED: [(Kernel, usize); 6] = [
    (Kernel::Paged128, 128),
    (Kernel::Paged256, 256),
    (Kernel::Decode64, 64),
    (Kernel::Decode128, 128),
    (Kernel::Prefill64, 64),
    (Kernel::Prefill128, 128),
];

impl Kernel {
    /// Tensor cores take numbers of 16 bits.
    pub(super) fn is_there_for(self, dtype: DType) -> bool {
        let on_tensor_cores =
            matches!(self, Kernel::Decode64 | Kernel::Decode128 | Kernel::Prefill64 | Kernel::Prefill128)
                || matches!(self, Kernel::Rows8 | Kernel::Rows16 | Kernel::Rows32)
                || matches!(self, Kernel::Rows8ToF32 | Kernel::Rows16ToF32 | Kernel::Rows32ToF32);
        !on_tensor_cores || dtype != DType::F32
    }
}

/// The number formats that activations and weights are kept in on a GPU.
pub(crate) const FORMATS: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

pub(super) fn suffix(dtype: DType) -> Option<&'static str> {
    match dtype {
        DType::F32 => Some("f32"),
        DType::F16 => Some("f16"),
        DType::BF16 => Some("bf16"),
        _ => None,
    }
}

#[derive(Debug)]
pub(super) struct Kernels {
    cuda: Arc<Cuda>,
    modules: Vec<sys::CUmodule>,
    /// By kernel, then by format.
    functions: Vec<[sys::CUfunction; FORMATS.len()]>,
    /// From one format to another.
    casts: HashMap<(DType, DType), sys::CUfunction>,
    /// Of f32 only, these four.
    turns: sys::CUfunction,
    likeliest: sys::CUfunction,
    likely: sys::CUfunction,
    logit_of: sys::CUfunction,
    quantized: Functions,
}

#[allow(unsafe_code)]
// SAFETY: modules and functions are used by any thread that has bound their context.
unsafe impl Send for Kernels {}
#[allow(unsafe_code)]
// SAFETY: as above; nothing of it changes after it was made.
unsafe impl Sync for Kernels {}

impl Kernels {
    pub(super) fn load(cuda: &Arc<Cuda>) -> Result<Kernels> {
        cuda.bind()?;
        let mut kernels = Kernels {
            cuda: Arc::clone(cuda),
            modules: Vec::new(),
            functions: Vec::new(),
            casts: HashMap::new(),
            turns: std::ptr::null_mut(),
            likeliest: std::ptr::null_mut(),
            likely: std::ptr::null_mut(),
            logit_of: std::ptr::null_mut(),
            quantized: Functions::default(),
        };
        let mut by_file = HashMap::new();
        for image in IMAGES {
            #[allow(unsafe_code)]
            // SAFETY: a whole fat binary, which says itself how long it is, and lives as long as the program.
            let module = unsafe { result::module::load_data(image.bytes.as_ptr().cast::<c_void>()) };
            let module = cuda.check(&format!("the kernels of {} do not load", image.file), module)?;
            kernels.modules.push(module);
            by_file.insert(image.file, module);
        }
        let module = |file: &str| {
            by_file.get(file).copied().ok_or_else(|| Error::internal(format!("no kernels called {file} were built")))
        };
        for (kernel, file, symbol) in Kernel::ALL {
            debug_assert_eq!(*kernel as usize, kernels.functions.len());
            let mut functions = [std::ptr::null_mut(); FORMATS.len()];
            for (function, dtype) in functions.iter_mut().zip(FORMATS).filter(|(_, dtype)| kernel.is_there_for(*dtype))
            {
                let name = format!("{symbol}_{}", suffix(dtype).unwrap_or_default());
                *function = find(cuda, module(file)?, &name)?;
            }
            kernels.functions.push(functions);
        }
        for (kernel, width) in ATTENTION {
            for dtype in FORMATS {
                // As much as there is, where that is less: wider heads are refused (`check_heads`).
                let wanted = attention_block(width, dtype).1.min(cuda.shared_per_block());
                allow_shared(cuda, kernels.get(kernel, dtype)?, wanted)?;
            }
        }
        for (kernel, width) in PAGED {
            for dtype in FORMATS.into_iter().filter(|dtype| kernel.is_there_for(*dtype)) {
                allow_shared(cuda, kernels.get(kernel, dtype)?, paged_block(kernel, width).1)?;
            }
        }
        kernels.turns = find(cuda, module("place_heads")?, "turns_f32")?;
        kernels.likeliest = find(cuda, module("likeliest")?, "likeliest_f32")?;
        kernels.logit_of = find(cuda, module("likeliest")?, "logit_of_f32")?;
        kernels.likely = find(cuda, module("likely")?, "likely_f32")?;
        kernels.quantized = Functions::load(|file, name| find(cuda, module(file)?, name))?;
        for from in FORMATS.into_iter().chain([DType::F64]) {
            for to in FORMATS.into_iter().filter(|to| *to != from && (from != DType::F64 || *to == DType::F32)) {
                let from_name = suffix(from).unwrap_or("f64");
                let name = format!("cast_{from_name}_{}", suffix(to).unwrap_or_default());
                kernels.casts.insert((from, to), find(cuda, module("cast")?, &name)?);
            }
        }
        Ok(kernels)
    }

    pub(super) fn get(&self, kernel: Kernel, dtype: DType) -> Result<sys::CUfunction> {
        let format = FORMATS.iter().position(|format| *format == dtype);
        let found = self.functions.get(kernel as usize).zip(format).map(|(functions, format)| functions[format]);
        let found = found.filter(|_| kernel.is_there_for(dtype));
        found.ok_or_else(|| Error::internal(format!("no kernel {kernel:?} for {}", dtype.as_str())))
    }

    pub(super) fn turns(&self) -> sys::CUfunction {
        self.turns
    }

    pub(super) fn likeliest(&self) -> sys::CUfunction {
        self.likeliest
    }

    pub(super) fn likely(&self) -> sys::CUfunction {
        self.likely
    }

    pub(super) fn logit_of(&self) -> sys::CUfunction {
        self.logit_of
    }

    pub(super) fn quantized(&self) -> &Functions {
        &self.quantized
    }

    pub(super) fn cast(&self, from: DType, to: DType) -> Result<sys::CUfunction> {
        let found = self.casts.get(&(from, to)).copied();
        found.ok_or_else(|| Error::internal(format!("no cast from {} to {}", from.as_str(), to.as_str())))
    }
}

fn find(cuda: &Cuda, module: sys::CUmodule, name: &str) -> Result<sys::CUfunction> {
    let symbol = CString::new(name).map_err(Error::internal)?;
    #[allow(unsafe_code)]
    // SAFETY: the module was loaded and is not unloaded while `Kernels` lives.
    let function = unsafe { result::module::get_function(module, symbol) };
    cuda.check(&format!("the kernel {name}"), function)
}

/// Lets a kernel take so many bytes of shared memory as a launch asks for; without it, 48 KiB.
fn allow_shared(cuda: &Cuda, function: sys::CUfunction, bytes: u32) -> Result<()> {
    let which = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    #[allow(unsafe_code)]
    // SAFETY: a function of a module that is loaded.
    let answer = unsafe { result::function::set_function_attribute(function, which, bytes as i32) };
    cuda.check("cuFuncSetAttribute", answer)
}

/// The kernels of attention, and the widest head that each takes.
const ATTENTION: [(Kernel, usize); 4] =
    [(Kernel::Attention32, 32), (Kernel::Attention64, 64), (Kernel::Attention128, 128), (Kernel::AttentionAny, 256)];

/// Threads of a block, and bytes of shared memory that it takes, for heads of this width (`kernels/README.md`).
pub(super) fn attention_block(width: usize, dtype: DType) -> (u32, u32) {
    if dtype != DType::F32 && matches!(width, 32 | 64 | 128) {
        // On tensor cores: two buffers of 64 keys and two of as many values.
        return (128, (4 * 64 * width * dtype.size_in_bytes()) as u32);
    }
    let (queries, keys) = (64, if width <= 64 { 64 } else { 32 });
    let row = width.next_multiple_of(4) + 4;
    let values = (queries + 2 * keys) * row + queries * (keys + 4);
    (256, (values * size_of::<f32>()) as u32)
}

/// The same for attention to a cache.
pub(super) fn paged_block(kernel: Kernel, width: usize) -> (u32, u32) {
    if !kernel.is_there_for(DType::F32) {
        // Two buffers of 64 keys and as many values.
        return (128, (4 * 64 * width * size_of::<u16>()) as u32);
    }
    let (queries, keys) = (16, 32);
    let row = width.next_multiple_of(4) + 4;
    (128, (((queries + 2 * keys) * row + queries * keys) * size_of::<f32>()) as u32)
}

/// Whether blocks of a device have room for heads of this width, as an error that says what is missing.
pub(super) fn check_heads(each: usize, dtype: DType, shared: u32) -> Result<(), String> {
    if !(1..=256).contains(&each) {
        return Err(format!("heads of {each} numbers: at most 256 on a GPU"));
    }
    let (_, needed) = attention_block(each, dtype);
    if needed > shared {
        return Err(format!(
            "heads of {each} numbers need {needed} bytes of a block's shared memory, this GPU has {shared}"
        ));
    }
    Ok(())
}

impl Drop for Kernels {
    fn drop(&mut self) {
        if self.cuda.bind().is_err() {
            return;
        }
        for module in self.modules.drain(..) {
            #[allow(unsafe_code)]
            // SAFETY: loaded in `load`, unloaded once.
            let answer = unsafe { result::module::unload(module) };
            if let Err(error) = self.cuda.check("cuModuleUnload", answer) {
                tracing::warn!(%error, "kernels stay loaded");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_refused_where_a_block_has_no_room_for_them() {
        // Compute capability 9.0, 8.0, and 8.6, 8.9 and 12.
        for (shared, widest) in [(232_448, 256), (166_912, 256), (101_376, 176)] {
            for dtype in FORMATS {
                for each in 1..=300 {
                    assert_eq!(check_heads(each, dtype, shared).is_ok(), each <= widest, "{each} of {shared}");
                }
            }
        }
        let told = check_heads(200, DType::BF16, 101_376).unwrap_err();
        assert!(told.contains("200") && told.contains("101376"), "{told}");
        assert!(check_heads(0, DType::F32, 232_448).is_err());
    }
}

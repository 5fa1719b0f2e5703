//! A tensor, wherever it lies: in the process's memory, or on a GPU.
//!
//! On a CPU it is candle's. What a GPU holds is ours ([`super::cuda`]): candle is not used there, since every pass is made of
//! this room's own kernels and of matrix products, and its memory must be known to the byte. Must not know models.

use candle_core::{CustomOp1, CustomOp2, CustomOp3, DType, Result, Shape, WithDType, bail};

use crate::device::{Memory, Opened};
use crate::error;

/// How a kind of device keeps a model: which of them it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keeping {
    /// f32, weights of linear layers in panels.
    Cpu,
    /// In this format, as checkpoints have it.
    Cuda(DType),
}

/// A device that is ready to compute, for every generation.
#[derive(Debug, Clone)]
pub enum Machine {
    Cpu,
    #[cfg(feature = "cuda")]
    Cuda(std::sync::Arc<super::cuda::Gpu>),
}

impl Machine {
    /// Makes ready whatever a pass would else wait for.
    pub fn start(opened: &Opened) -> error::Result<Machine> {
        match opened {
            Opened::Cpu => Ok(Machine::Cpu),
            #[cfg(feature = "cuda")]
            Opened::Cuda(cuda) => super::cuda::Gpu::start(cuda).map(Machine::Cuda),
        }
    }

    /// Where a generation computes whose memory this is, and whose passes take `workspace` bytes of it.
    pub fn device(&self, memory: &Memory, (workspace, keeping): (u64, Keeping)) -> error::Result<Device> {
        match (self, keeping) {
            (Machine::Cpu, _) => {
                // What passes take on a CPU comes from the process as it is needed.
                let _ = (memory, workspace);
                Ok(Device::Cpu)
            }
            #[cfg(feature = "cuda")]
            (Machine::Cuda(gpu), Keeping::Cuda(dtype)) => {
                let pool = memory.pool().ok_or_else(|| error::Error::internal("memory that is not of a GPU"))?;
                super::cuda::Place::new(gpu, pool, workspace, dtype).map(Device::Cuda)
            }
            #[cfg(feature = "cuda")]
            (Machine::Cuda(_), Keeping::Cpu) => Err(error::Error::internal("a model for a CPU, and a GPU to run it")),
        }
    }

    /// Waits for whatever was queued, frees among it.
    pub fn synchronize(&self) -> error::Result<()> {
        match self {
            Machine::Cpu => Ok(()),
            #[cfg(feature = "cuda")]
            Machine::Cuda(gpu) => gpu.stream().synchronize(),
        }
    }
}

/// Where ops run, and what they allocate from.
#[derive(Debug, Clone)]
pub enum Device {
    Cpu,
    #[cfg(feature = "cuda")]
    Cuda(super::cuda::Place),
}

impl Device {
    pub fn is_cpu(&self) -> bool {
        matches!(self, Device::Cpu)
    }

    /// Whether [`super::self_attention`] takes heads of so many numbers here; why not.
    pub fn check_heads(&self, each: usize) -> error::Result<(), String> {
        match self {
            Device::Cpu => {
                let _ = each;
                Ok(())
            }
            #[cfg(feature = "cuda")]
            Device::Cuda(place) => place.check_heads(each),
        }
    }

    pub fn keeping(&self) -> Keeping {
        match self {
            Device::Cpu => Keeping::Cpu,
            #[cfg(feature = "cuda")]
            Device::Cuda(place) => Keeping::Cuda(place.dtype()),
        }
    }
}

#[derive(Debug, Clone)]
pub enum Tensor {
    Host(candle_core::Tensor),
    #[cfg(feature = "cuda")]
    Cuda(super::cuda::Tensor),
}

impl Tensor {
    /// Row-major `values` on `device`.
    pub fn from_vec<T: WithDType>(values: Vec<T>, shape: impl Into<Shape>, device: &Device) -> Result<Self> {
        match device {
            Device::Cpu => candle_core::Tensor::from_vec(values, shape, &candle_core::Device::Cpu).map(Tensor::Host),
            #[cfg(feature = "cuda")]
            Device::Cuda(place) => place.upload(&values, shape.into().dims()).map(Tensor::Cuda),
        }
    }

    /// Numbers that came as f32, in the format that a model computes with on `device`.
    pub fn activations(self, device: &Device) -> Result<Self> {
        match (self, device) {
            #[cfg(feature = "cuda")]
            (Tensor::Cuda(values), Device::Cuda(place)) => place.activations(values).map(Tensor::Cuda),
            (values, _) => Ok(values),
        }
    }

    /// A stand-in of a shape, which takes no memory: views of a single zero.
    pub fn stand_in(shape: impl Into<Shape>) -> Result<Self> {
        let zero = candle_core::Tensor::zeros((), DType::F32, &candle_core::Device::Cpu)?;
        zero.broadcast_as(shape).map(Tensor::Host)
    }

    /// Whether it is the other one, and not one that is equal: a clone is.
    pub fn is_same(&self, other: &Tensor) -> bool {
        match (self, other) {
            (Tensor::Host(this), Tensor::Host(other)) => this.id() == other.id(),
            #[cfg(feature = "cuda")]
            (Tensor::Cuda(this), Tensor::Cuda(other)) => this.is_same(other),
            #[cfg(feature = "cuda")]
            (Tensor::Host(_), Tensor::Cuda(_)) | (Tensor::Cuda(_), Tensor::Host(_)) => false,
        }
    }

    pub fn dims(&self) -> &[usize] {
        match self {
            Tensor::Host(tensor) => tensor.dims(),
            #[cfg(feature = "cuda")]
            Tensor::Cuda(tensor) => tensor.dims(),
        }
    }

    /// Of a matrix: rows and columns.
    pub fn dims2(&self) -> Result<(usize, usize)> {
        match self.dims() {
            &[rows, columns] => Ok((rows, columns)),
            dims => bail!("a tensor of shape {dims:?}, expected a matrix"),
        }
    }

    pub fn dtype(&self) -> DType {
        match self {
            Tensor::Host(tensor) => tensor.dtype(),
            #[cfg(feature = "cuda")]
            Tensor::Cuda(tensor) => tensor.dtype(),
        }
    }

    pub fn elem_count(&self) -> usize {
        self.dims().iter().product()
    }

    /// Whether it lies where ops of `device` can read it.
    pub fn is_on(&self, device: &Device) -> bool {
        match (self, device) {
            (Tensor::Host(_), Device::Cpu) => true,
            #[cfg(feature = "cuda")]
            (Tensor::Cuda(tensor), Device::Cuda(place)) => tensor.is_on(place),
            #[cfg(feature = "cuda")]
            _ => false,
        }
    }

    /// Rows `first..first + count`, without a copy.
    pub fn narrow_rows(&self, first: usize, count: usize) -> Result<Self> {
        match self {
            Tensor::Host(tensor) => tensor.narrow(0, first, count).map(Tensor::Host),
            #[cfg(feature = "cuda")]
            Tensor::Cuda(tensor) => tensor.narrow_rows(first, count).map(Tensor::Cuda),
        }
    }

    /// Columns `first..first + count` of a matrix, without a copy. On a GPU few ops take them: they are said where they are.
    pub fn narrow_columns(&self, first: usize, count: usize) -> Result<Self> {
        match self {
            Tensor::Host(tensor) => tensor.narrow(1, first, count).map(Tensor::Host),
            #[cfg(feature = "cuda")]
            Tensor::Cuda(tensor) => tensor.narrow_columns(first, count).map(Tensor::Cuda),
        }
    }

    /// Room for as many values beside them, with nothing in it: what stands in for a result where nothing is computed. On a GPU.
    pub fn beside_it(&self) -> Result<Self> {
        match self {
            Tensor::Host(_) => bail!("a tensor in the process's memory needs no room on a GPU"),
            #[cfg(feature = "cuda")]
            Tensor::Cuda(tensor) => tensor.beside(tensor.dims(), tensor.dtype()).map(Tensor::Cuda),
        }
    }

    /// The same values in another shape.
    pub fn reshape(&self, shape: impl Into<Shape>) -> Result<Self> {
        match self {
            Tensor::Host(tensor) => tensor.reshape(shape.into()).map(Tensor::Host),
            #[cfg(feature = "cuda")]
            Tensor::Cuda(tensor) => tensor.reshape(shape.into().dims()).map(Tensor::Cuda),
        }
    }

    /// One below the other; on a CPU, where threads compute rows of their own.
    pub fn stack_rows(parts: &[Tensor]) -> Result<Self> {
        let parts = parts.iter().map(Tensor::host).collect::<Result<Vec<_>>>()?;
        candle_core::Tensor::cat(&parts, 0).map(Tensor::Host)
    }

    /// The rows of a matrix, on their way to the process's memory.
    pub fn landing(self) -> Result<Landing> {
        match self {
            Tensor::Host(tensor) => Ok(Landing::Here(tensor)),
            #[cfg(feature = "cuda")]
            Tensor::Cuda(tensor) => super::cuda::Landing::of(&tensor).map(Landing::Coming).map_err(super::cuda::failed),
        }
    }

    /// The rows of a matrix as f32, once whatever computes them is done.
    pub fn to_rows(&self) -> Result<Vec<Vec<f32>>> {
        self.clone().landing()?.wait().map(|landed| landed.rows)
    }

    /// Every value, row by row, of f32; from a GPU once it has computed them.
    pub fn to_values(&self) -> Result<Vec<f32>> {
        match self {
            Tensor::Host(tensor) => tensor.flatten_all()?.to_vec1(),
            #[cfg(feature = "cuda")]
            Tensor::Cuda(tensor) => tensor.to_values(),
        }
    }

    /// As candle knows it; an error where it lies elsewhere.
    pub fn host(&self) -> Result<&candle_core::Tensor> {
        match self {
            Tensor::Host(tensor) => Ok(tensor),
            #[cfg(feature = "cuda")]
            Tensor::Cuda(_) => bail!("a tensor on a GPU where one in the process's memory is needed"),
        }
    }

    /// As a GPU has it; an error where it lies elsewhere. `what`: its name in that.
    #[cfg(feature = "cuda")]
    pub(super) fn on_gpu(&self, what: &str) -> Result<&super::cuda::Tensor> {
        match self {
            Tensor::Cuda(tensor) => Ok(tensor),
            Tensor::Host(_) => bail!("{what} is not on the GPU"),
        }
    }

    pub(super) fn apply1(&self, op: &impl CustomOp1) -> Result<Self> {
        self.host()?.apply_op1_no_bwd(op).map(Tensor::Host)
    }

    pub(super) fn apply2(&self, second: &Tensor, op: &impl CustomOp2) -> Result<Self> {
        self.host()?.apply_op2_no_bwd(second.host()?, op).map(Tensor::Host)
    }

    pub(super) fn apply3(&self, (second, third): (&Tensor, &Tensor), op: &impl CustomOp3) -> Result<Self> {
        self.host()?.apply_op3_no_bwd(second.host()?, third.host()?, op).map(Tensor::Host)
    }
}

/// Rows that have come to the process.
#[derive(Debug)]
pub struct Landed {
    pub rows: Vec<Vec<f32>>,
    /// Whether every value is a number: a GPU says so of what it computed, on a CPU it was looked at here.
    pub finite: bool,
}

/// Rows that a device may still be computing.
#[derive(Debug)]
pub enum Landing {
    Here(candle_core::Tensor),
    #[cfg(feature = "cuda")]
    Coming(super::cuda::Landing),
}

impl Landing {
    /// Whether `wait` would return at once.
    pub fn is_here(&self) -> error::Result<bool> {
        match self {
            Landing::Here(_) => Ok(true),
            #[cfg(feature = "cuda")]
            Landing::Coming(landing) => landing.is_here(),
        }
    }

    /// The rows as f32.
    pub fn wait(self) -> Result<Landed> {
        match self {
            Landing::Here(tensor) => {
                let rows = tensor.to_dtype(DType::F32)?.to_vec2::<f32>()?;
                let finite = rows.iter().flatten().all(|value| value.is_finite());
                Ok(Landed { rows, finite })
            }
            #[cfg(feature = "cuda")]
            Landing::Coming(landing) => landing.wait().map_err(super::cuda::failed),
        }
    }
}

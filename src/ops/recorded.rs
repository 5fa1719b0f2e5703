//! Passes that a device records before they are needed, where it can: then each is one call for it, not one for every op.
//!
//! A pass whose sizes never change can be recorded, so batches are filled up to a few sizes ([`Segments::filled_up`]). What it was
//! made of must live as long as its recording, and stay where it is. On a CPU there is nothing to record.

use candle_core::{DType, Result, WithDType};

use super::{Device, Segments, Tensor};

/// What passes have in common that one recording is for.
#[derive(Debug)]
pub struct Form {
    pub segments: Segments,
    /// Of what a pass begins with.
    pub shape: Vec<usize>,
    pub dtype: DType,
}

/// Makes recordings, while nothing else runs on its device's part.
#[derive(Debug)]
pub enum Recorder {
    #[cfg(feature = "cuda")]
    Cuda(super::cuda::Recorder),
}

/// A recorded pass.
#[derive(Debug)]
pub enum Recorded {
    #[cfg(feature = "cuda")]
    Cuda(super::cuda::Recorded),
}

impl Device {
    /// What passes are looked up with here, whoever holds some of its memory already; nothing where there is nothing to look up.
    /// What lies there may be overwritten.
    pub fn looking_up(&self) -> Result<Option<Recorder>> {
        match self {
            Device::Cpu => Ok(None),
            #[cfg(feature = "cuda")]
            Device::Cuda(place) => {
                super::cuda::Recorder::looking_up(place).map(|recorder| Some(Recorder::Cuda(recorder)))
            }
        }
    }

    /// What records passes here; nothing where that would gain nothing.
    pub fn recorder(&self) -> Result<Option<Recorder>> {
        match self {
            Device::Cpu => Ok(None),
            #[cfg(feature = "cuda")]
            Device::Cuda(place) => super::cuda::Recorder::of(place).map(|recorder| Some(Recorder::Cuda(recorder))),
        }
    }
}

impl Recorder {
    /// Goes through a pass without running it, so that whatever it has to look up is known.
    pub fn look_up(&self, form: &Form, pass: impl FnOnce(Tensor, &Segments) -> Result<Tensor>) -> Result<()> {
        let _ = (form, &pass);
        match *self {
            #[cfg(feature = "cuda")]
            Recorder::Cuda(ref recorder) => recorder.look_up(form, pass),
        }
    }

    /// Records what `pass` queues; it must not wait for any of it.
    pub fn record(&self, form: &Form, pass: impl FnOnce(Tensor, &Segments) -> Result<Tensor>) -> Result<Recorded> {
        let _ = (form, &pass);
        match *self {
            #[cfg(feature = "cuda")]
            Recorder::Cuda(ref recorder) => recorder.record(form, pass).map(Recorded::Cuda),
        }
    }
}

impl Recorded {
    /// Queues the pass for numbers in the order of their form's shape, in parts; its rows come back.
    pub fn run<T: WithDType>(&self, segments: &Segments, parts: &[&[T]]) -> Result<Tensor> {
        let _ = (segments, parts);
        match *self {
            #[cfg(feature = "cuda")]
            Recorded::Cuda(ref recorded) => recorded.run(segments, parts).map(Tensor::Cuda),
        }
    }
}

//! Passes and steps that a device records before they are needed, where it can: then each is one call for it, not one for every op.
//!
//! A pass whose sizes never change can be recorded, so batches are filled up to a few sizes ([`Segments::filled_up`]). What it was
//! made of must live as long as its recording, and stay where it is. On a CPU there is nothing to record.

use candle_core::{DType, Result, WithDType};

use super::{Device, KvCache, Likeliest, Rotary, Runs, Segments, Tensor, Told};

/// What passes have in common that one recording is for.
#[derive(Debug)]
pub struct Form {
    pub segments: Segments,
    /// Of what a pass begins with.
    pub shape: Vec<usize>,
    pub dtype: DType,
}

/// What all steps of a decoder have in common.
#[derive(Debug, Clone, Copy)]
pub struct StepForm<'a> {
    pub rotary: &'a Rotary,
    /// Query heads for each head of the cache, and the window of every layer.
    pub heads: (usize, &'a [Option<usize>]),
    /// Tokens that a sequence has at most.
    pub context: usize,
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

/// A recorded step of one token for each of some sequences: of at most as many as it has rows.
#[derive(Debug)]
pub enum RecordedStep {
    #[cfg(feature = "cuda")]
    Cuda(super::cuda::RecordedStep),
}

/// A recorded step on its way, of which each row's likeliest token is asked.
#[derive(Debug)]
pub enum Begun {
    #[cfg(feature = "cuda")]
    Cuda(super::cuda::Begun),
    /// Of models that tests make up.
    #[cfg(test)]
    Here(Result<Vec<Likeliest>>),
}

impl Begun {
    /// What is told of each row, once it is here.
    pub fn wait(self) -> Result<Vec<Likeliest>> {
        match self {
            #[cfg(feature = "cuda")]
            Begun::Cuda(begun) => begun.wait(),
            #[cfg(test)]
            Begun::Here(told) => told,
        }
    }

    /// Waits until it has ended, whatever it tells: what it reads and writes is the caller's again.
    pub fn abandon(self) {
        match self {
            // Whoever drops it waits.
            #[cfg(feature = "cuda")]
            Begun::Cuda(begun) => drop(begun),
            #[cfg(test)]
            Begun::Here(_) => {}
        }
    }
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

impl Recorder {
    /// Records a step of so many rows over a model's cache, which `step` queues without waiting for any of it: it gives logits of all
    /// rows. Nothing where such steps cannot be recorded. Of what the cache has in its slab nothing is used beside it.
    pub fn record_step(
        &self,
        rows: usize,
        (form, cache): (&StepForm<'_>, &mut KvCache),
        step: impl FnOnce(&Runs<'_>, &mut KvCache) -> Result<Tensor>,
    ) -> Result<Option<RecordedStep>> {
        let _ = (rows, form, &cache, &step);
        match *self {
            #[cfg(feature = "cuda")]
            Recorder::Cuda(ref recorder) => {
                let held = held(form, cache)?;
                let pass = |planned| {
                    let runs = Runs::recorded(rows, planned, form.rotary);
                    let logits = step(&runs, cache)?;
                    let planned = runs.into_planned();
                    planned
                        .map(|planned| (planned, logits))
                        .ok_or_else(|| candle_core::Error::msg("a step without tables"))
                };
                Ok(recorder.record_step(rows, held, pass)?.map(RecordedStep::Cuda))
            }
        }
    }
}

#[cfg(feature = "cuda")]
fn held<'a>(form: &'a StepForm<'a>, cache: &KvCache) -> Result<super::cuda::Held<'a>> {
    let Some(there) = cache.on_gpu() else { candle_core::bail!("a cache in the process's memory") };
    Ok(super::cuda::Held { cache: (there.address(), cache.blocks()), spec: *cache.spec(), form })
}

impl RecordedStep {
    /// Runs it for these rows: what was asked of their logits. Nothing where it is not for such a step, or memory that it needs is
    /// somebody's.
    pub fn run(&self, runs: &Runs<'_>, (form, cache): (&StepForm<'_>, &KvCache)) -> Result<Option<Told>> {
        let _ = (runs, form, cache);
        match *self {
            #[cfg(feature = "cuda")]
            RecordedStep::Cuda(ref recorded) => {
                let Some((found, logits)) = recorded.run(runs.of_step(), held(form, cache)?)? else { return Ok(None) };
                super::told::put_together(&Tensor::Cuda(logits), &runs.given().asks, found).map(Some)
            }
        }
    }
}

impl RecordedStep {
    /// Queues it for these rows, of each of which the likeliest token is asked, and waits for nothing. `after`: the step that was begun
    /// last, of as many rows, whose tokens these rows go on with, whatever ids they were given; nothing else was queued on this part of
    /// the device since. Nothing as in `run`.
    pub fn begin(
        &self,
        runs: &Runs<'_>,
        after: Option<&mut Begun>,
        (form, cache): (&StepForm<'_>, &KvCache),
    ) -> Result<Option<Begun>> {
        let _ = (runs, &after, form, cache);
        match *self {
            #[cfg(feature = "cuda")]
            RecordedStep::Cuda(ref recorded) => {
                let after = match after {
                    Some(Begun::Cuda(begun)) => Some(begun),
                    #[cfg(test)]
                    Some(Begun::Here(_)) => return Ok(None),
                    None => None,
                };
                Ok(recorded.begin(runs.of_step(), held(form, cache)?, after)?.map(Begun::Cuda))
            }
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

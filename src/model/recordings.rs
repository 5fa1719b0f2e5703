//! The passes that a model has recorded, and when one of them runs instead of the model's own ops.
//!
//! They are made once, before the model serves, and only ever save time: where none fits, or none could be made, a pass runs as it
//! would without them, and gives the same rows.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use candle_core::{Result, WithDType};

use super::frames::{Frame, Lengths};
use super::pass::Stages;
use crate::device::give_way;
use crate::ops::{Device, Form, Recorded, Segments, Tensor};
use crate::weights::Progress;

/// What making ready came to.
#[derive(Debug, Clone, Default)]
pub struct Warmth {
    /// Passes that are recorded.
    pub recorded: usize,
    pub took: Duration,
    /// Why there are no more of them.
    pub failed: Option<String>,
}

/// Of a model that takes inputs of some kind.
pub(super) struct Recordings<I> {
    lengths: Lengths,
    /// An input of one token, which batches are filled up with.
    filler: Option<I>,
    kept: Passes,
}

pub(super) type Passes = BTreeMap<Frame, Kept>;

pub(super) struct Kept {
    recorded: Recorded,
    /// It has failed once, and is not tried again.
    broken: AtomicBool,
}

impl<I> Recordings<I> {
    /// None yet.
    pub(super) fn of(lengths: Lengths, filler: Option<I>) -> Self {
        Recordings { lengths, filler, kept: Passes::new() }
    }

    /// Looks up what a model's passes need and, where `records` says so, records small ones, as many as its device can. Nothing
    /// else may run on its part of that meanwhile.
    pub(super) fn make<S: Stages<I>>(&self, model: &S, device: &Device, how: (bool, &Progress)) -> (Passes, Warmth) {
        let (began, mut made) = (Instant::now(), Passes::new());
        let failed = self.make_all(model, device, how, &mut made).err().map(|error| error.to_string());
        let warmth = Warmth { recorded: made.len(), took: began.elapsed(), failed };
        (made, warmth)
    }

    pub(super) fn keep(&mut self, made: Passes) {
        self.kept = made;
    }

    fn make_all<S: Stages<I>>(
        &self,
        model: &S,
        device: &Device,
        (records, progress): (bool, &Progress),
        made: &mut Passes,
    ) -> Result<()> {
        let Some(recorder) = device.recorder()? else { return Ok(()) };
        let pass = |given: Tensor, segments: &Segments| model.rows(given, segments);
        let go_on = || {
            give_way();
            !progress.is_cancelled()
        };
        for frame in self.lengths.representatives().into_iter().take_while(|_| go_on()) {
            recorder.look_up(&self.form(model, frame)?, pass)?;
        }
        let recorded = if records { self.lengths.frames() } else { Vec::new() };
        for frame in recorded.into_iter().take_while(|_| go_on()) {
            let recorded = recorder.record(&self.form(model, frame)?, pass)?;
            made.insert(frame, Kept { recorded, broken: AtomicBool::new(false) });
        }
        Ok(())
    }

    fn form<S: Stages<I>>(&self, model: &S, Frame { tokens, inputs }: Frame) -> Result<Form> {
        let each = match self.lengths {
            Lengths::UpTo(_) => 1,
            Lengths::Of(each) => each,
        };
        let segments = Segments::filled_up(std::iter::repeat_n(each, inputs), (inputs, tokens))?;
        Ok(Form { segments, shape: model.shape(inputs, tokens), dtype: <S::Number as WithDType>::DTYPE })
    }

    /// The rows of a batch by the recording that holds it. Nothing where there is none, or it fails.
    pub(super) fn run<S: Stages<I>>(&self, model: &S, batch: &[&I], lengths: &[usize]) -> Option<Result<Tensor>> {
        let (tokens, inputs) = (lengths.iter().sum(), batch.len());
        let whole = self.kept.iter().filter(|(_, kept)| !kept.broken.load(Ordering::Relaxed));
        let frame = self.lengths.fitting(whole.map(|(frame, _)| *frame), Frame { tokens, inputs })?;
        let kept = self.kept.get(&frame)?;
        let run = || {
            let segments = Segments::filled_up(lengths.iter().copied(), (frame.inputs, frame.tokens))?;
            let added = self.filler.iter().cycle().take(frame.tokens - tokens);
            let filled: Vec<&I> = batch.iter().copied().chain(added).collect();
            let parts = model.pack(&filled);
            kept.recorded.run(&segments, &parts.iter().map(|part| &**part).collect::<Vec<_>>())
        };
        match run() {
            Ok(rows) => Some(rows.narrow_rows(0, inputs)),
            Err(error) => {
                kept.broken.store(true, Ordering::Relaxed);
                tracing::warn!(%error, ?frame, "a recorded pass fails; such batches run op by op");
                None
            }
        }
    }
}

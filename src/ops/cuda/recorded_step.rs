//! A decoder's steps that are recorded before it writes, one for each of some numbers of rows.
//!
//! As with passes (`recorded`), addresses are in a recording: those of weights, of the cache, and of one piece of the slab, which is
//! what is left beside the cache. Its tables begin where they did; what a step is of is said by what lies in them. Rows that a
//! step lacks are nobody's: they go through products with the others, put no keys anywhere, attend to nothing, and are not asked.

use std::sync::Arc;

use candle_core::{Result, bail};

use super::likeliest::Answers;
use super::paged::Planned;
use super::recorded::{Recorder, locked};
use super::step::{Heads, OfStep, Step, parts_bytes, table_words};
use super::tensor::Spot;
use super::{Place, Tensor, bytes_of, failed};
use crate::device::cuda::Graph;
use crate::error::Error;
use crate::ops::likely::Found;
use crate::ops::{self, Given, KvSpec, StepForm};

/// What steps have in common, whatever they are of.
#[derive(Debug, Clone, Copy)]
pub(in crate::ops) struct Held<'a> {
    /// Where the cache begins, and of how many blocks it is.
    pub(in crate::ops) cache: (u64, usize),
    pub(in crate::ops) spec: KvSpec,
    pub(in crate::ops) form: &'a StepForm<'a>,
}

impl Held<'_> {
    fn heads(&self) -> Heads<'_> {
        let &StepForm { heads: (group, windows), rotary, .. } = self.form;
        Heads { spec: &self.spec, group, windows, frequencies: rotary.inverse_frequencies() }
    }

    /// Tokens that a sequence has at most.
    fn longest(&self) -> usize {
        self.form.context.min(self.cache.1.saturating_mul(KvSpec::BLOCK_TOKENS))
    }
}

/// A step of so many rows that is ready to run.
#[derive(Debug)]
pub struct RecordedStep {
    /// Gone before the slab that it writes to.
    graph: Graph,
    place: Place,
    rows: usize,
    /// All that it uses of the slab.
    piece: (usize, usize),
    /// Words for tables, and how many values of parts there is room for.
    table: Spot,
    parts: usize,
    /// What is told of logits, and logits themselves.
    answers: Spot,
    logits: Spot,
    cache: (u64, usize),
}

impl Recorder {
    /// Records a step of so many rows over a cache; nothing where such heads are not recorded. `pass` queues it, and gives logits of
    /// every row; it must not wait for any of it.
    pub(in crate::ops) fn record_step(
        &self,
        rows: usize,
        held: Held<'_>,
        pass: impl FnOnce(Planned) -> Result<(Planned, ops::Tensor)>,
    ) -> Result<Option<RecordedStep>> {
        let nobody = OfStep { runs: &[], given: &Given::default() };
        let (heads, longest) = (held.heads(), held.longest());
        let Some(step) = Step::filled_up(nobody, heads, (rows, longest)) else { return Ok(None) };
        let place = self.place();
        let stream = locked(&place.gpu.aside);
        let Some(piece) = place.scratch.largest() else { bail!("nothing of the slab is free") };
        let aside = Place { scratch: place.scratch.piece_on(&stream, piece), ..place.clone() };
        let sizes = (table_words(rows, longest, heads), parts_bytes(&held.spec, longest) as usize / size_of::<f32>());
        let rotary = held.form.rotary;
        let planned = Planned::room(step, sizes, rotary, &aside)?;
        let (table, parts) = (planned.table.spot()?, planned.parts.count());
        let work = || {
            planned.turn(rotary)?;
            let (planned, logits) = pass(planned)?;
            let logits = logits.on_gpu("a step's logits")?;
            Result::Ok((planned.ask(logits, true)?.words.spot()?, logits.spot()?))
        };
        let ((answers, logits), graph) = Graph::record(&stream, || work().map_err(Error::internal)).map_err(failed)?;
        graph.upload(&stream).and_then(|()| stream.synchronize()).map_err(failed)?;
        let (place, cache) = (place.clone(), held.cache);
        Ok(Some(RecordedStep { graph, place, rows, piece, table, parts, answers, logits, cache }))
    }
}

impl RecordedStep {
    /// Runs it for a step of at most as many rows: what was found of each, and all logits. Nothing where it is not for such a step, or
    /// somebody has some of its memory.
    pub(in crate::ops) fn run(&self, of: OfStep<'_>, held: Held<'_>) -> Result<Option<(Vec<Found>, Tensor)>> {
        let RecordedStep { graph, place, rows, piece, table, parts, answers, logits, cache } = self;
        let Some(step) = Step::filled_up(of, held.heads(), (*rows, held.longest())) else { return Ok(None) };
        let fits = size_of_val(step.words.as_slice()) <= table.bytes() && step.parts <= *parts;
        if held.cache != *cache || !fits {
            return Ok(None);
        }
        let Some(all) = place.scratch.take_piece(*piece) else { return Ok(None) };
        place.send(&[(&table.beginning(step.words.len()), &[bytes_of(&step.words)?])])?;
        #[allow(unsafe_code)]
        // SAFETY: it was recorded with this piece of the slab, all of which was just taken, with weights of the model that holds it and
        // with the cache that it was now called with. Tables are of blocks that the cache has, and of no more than there is room for.
        unsafe { graph.launch(place.scratch.stream()) }.map_err(failed)?;
        let all = Arc::new(all);
        let there = |spot: &Spot| Tensor::within(place, Arc::clone(&all), spot);
        let vocabulary = logits.columns();
        let found = Answers::of(there(answers), (*rows, vocabulary)).read(&of.given.asks)?;
        let Some(all) = Arc::into_inner(all) else { bail!("a step's memory that somebody has") };
        // Whoever takes the rest now queues after it.
        let kept = Arc::new(all.only((logits.at, logits.bytes())));
        Ok(Some((found, Tensor::within(place, kept, logits))))
    }
}

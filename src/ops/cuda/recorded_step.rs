//! A decoder's steps that are recorded before it writes, one for each of some numbers of rows.
//!
//! As with passes (`recorded`), addresses are in a recording: those of weights, of the cache, and of one piece of the slab, which is
//! what is left beside the cache. Its tables begin where they did; what a step is of is said by what lies in them. Rows that a
//! step lacks are nobody's: they go through products with the others, put no keys anywhere, attend to nothing, and are not asked.

use std::sync::Arc;

use candle_core::{DType, Result, bail};

use super::kernels::Kernel;
use super::landing::Copied;
use super::launch::{Arguments, Shape};
use super::likeliest::{Answers, DRAWS};
use super::paged::Planned;
use super::recorded::{Recorder, locked};
use super::step::{Heads, OfStep, Step, parts_bytes, table_words};
use super::tensor::Spot;
use super::{Place, Tensor, bytes_of, failed};
use crate::device::cuda::Graph;
use crate::error::Error;
use crate::ops::likely::Found;
use crate::ops::{self, Given, KvSpec, Likeliest, StepForm};

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
            Result::Ok((planned.ask(logits, DRAWS)?.words.spot()?, logits.spot()?))
        };
        let ((answers, logits), graph) = Graph::record(&stream, || work().map_err(Error::internal)).map_err(failed)?;
        graph.upload(&stream).and_then(|()| stream.synchronize()).map_err(failed)?;
        let (place, cache) = (place.clone(), held.cache);
        Ok(Some(RecordedStep { graph, place, rows, piece, table, parts, answers, logits, cache }))
    }
}

/// A step of which each row's likeliest token is asked, on its way.
#[derive(Debug)]
pub struct Begun {
    coming: Copied,
    /// What is told, and with it all memory of the step: whoever goes on after it takes it over.
    words: Option<Tensor>,
    rows: usize,
}

impl Begun {
    /// What was found of each row, once it is there.
    pub(in crate::ops) fn wait(mut self) -> Result<Vec<Likeliest>> {
        let bytes = self.coming.wait().map_err(failed)?;
        let words: Vec<u32> = bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect();
        Answers::read_greedy(&words)
    }
}

impl RecordedStep {
    /// Tables of a step, where it is for such a one.
    fn tables(&self, of: OfStep<'_>, held: Held<'_>) -> Option<Step> {
        let step = Step::filled_up(of, held.heads(), (self.rows, held.longest()))?;
        let fits = size_of_val(step.words.as_slice()) <= self.table.bytes() && step.parts <= self.parts;
        (held.cache == self.cache && fits).then_some(step)
    }

    fn send(&self, step: &Step) -> Result<()> {
        self.place.send(&[(&self.table.beginning(step.words.len()), &[bytes_of(&step.words)?])])
    }

    /// Queues it, once its tables were sent.
    ///
    /// # Safety
    /// All of its piece of the slab is the caller's, and tables are of blocks of the cache that it was recorded with.
    #[allow(unsafe_code)]
    unsafe fn launch(&self) -> Result<()> {
        // SAFETY: it was recorded with this piece, with that cache, and with weights of the model that holds it.
        unsafe { self.graph.launch(self.place.scratch.stream()) }.map_err(failed)
    }

    /// Queues it for a step of at most as many rows, of each of which the likeliest token is asked, and waits for nothing. `after`: the
    /// step that was queued before, of as many rows, each of which goes on with the token that it is told by that one; nobody else has
    /// queued anything in this slab since. Nothing where it is not for such a step, or somebody has some of its memory.
    pub(in crate::ops) fn begin(
        &self,
        of: OfStep<'_>,
        held: Held<'_>,
        after: Option<&mut Begun>,
    ) -> Result<Option<Begun>> {
        let (place, rows) = (&self.place, of.runs.len());
        let bytes = Answers::words_of_greedy(rows) * size_of::<u32>();
        let (Some(step), Some(mut coming)) = (self.tables(of, held), Copied::room(&place.gpu, bytes)) else {
            return Ok(None);
        };
        let follows = after.is_some();
        let words = match after {
            Some(before) => before.words.take_if(|words| before.rows == rows && self.answers_there(words)),
            None => {
                let all = place.scratch.take_piece(self.piece);
                all.map(|all| Tensor::within(place, Arc::new(all), &self.answers))
            }
        };
        let Some(words) = words else { return Ok(None) };
        self.send(&step)?;
        if follows {
            self.take_tokens(&step, &words, rows)?;
        }
        #[allow(unsafe_code)]
        // SAFETY: the piece was just taken, or taken over from the same step, all of which was queued before. Runs are of the cache.
        unsafe { self.launch() }?;
        coming.queue(&words, bytes).map_err(failed)?;
        Ok(Some(Begun { coming, words: Some(words), rows }))
    }

    /// Whether these are this step's own answers, so that all memory of it is held with them.
    fn answers_there(&self, words: &Tensor) -> bool {
        let is_here = words.scratch().is_ok_and(|scratch| Arc::ptr_eq(scratch, &self.place.scratch));
        let at = words.place_in_slab().map(|(_, at)| at);
        is_here && at.is_ok_and(|at| at == self.answers.at) && words.bytes() == self.answers.bytes()
    }

    /// Puts the tokens that the step before told where this one reads its own.
    fn take_tokens(&self, step: &Step, words: &Tensor, rows: usize) -> Result<()> {
        let table = self.place.scratch.slab().address() + self.table.at as u64;
        let at = |section: usize| table + (section * size_of::<u32>()) as u64;
        let function = words.gpu().kernels.get(Kernel::TakeRows, DType::F32).map_err(failed)?;
        let arguments = Arguments::new(words).address(at(step.told)).size(1).address(at(step.ids));
        #[allow(unsafe_code)]
        // SAFETY: `take_rows_f32(const float*, const unsigned*, int, float*)`, which copies words as they are: tables have a number of a
        // word and room for an id for each row. What it copies is below the vocabulary (`likeliest.cu`), whatever that step computed.
        unsafe {
            words.launch(function, Shape::block_each(rows), arguments)
        }
    }

    /// Runs it for a step of at most as many rows: what was found of each, and all logits. Nothing where it is not for such a step, or
    /// somebody has some of its memory.
    pub(in crate::ops) fn run(&self, of: OfStep<'_>, held: Held<'_>) -> Result<Option<(Vec<Found>, Tensor)>> {
        let RecordedStep { place, rows, piece, answers, logits, .. } = self;
        let Some(step) = self.tables(of, held) else { return Ok(None) };
        let Some(all) = place.scratch.take_piece(*piece) else { return Ok(None) };
        self.send(&step)?;
        #[allow(unsafe_code)]
        // SAFETY: the piece was just taken; runs are of the cache.
        unsafe { self.launch() }?;
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

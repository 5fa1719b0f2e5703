//! Passes that are recorded before a generation serves, and then run by one launch each.
//!
//! A recording is made on a stream of its own, by whoever loads the generation, beside live traffic. It has addresses in it: those
//! of weights, which live as long as their model, and those of blocks of the generation's slab. A pass begins with all of the slab
//! free, whether it is recorded or run; so what a recording is given, and the rows that it gives, lie at the same place whenever
//! it runs, and it runs only when it can take the whole slab.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{Result, bail};

use super::plan::{self, Plan};
use super::tensor::Spot;
use super::trial::Tally;
use super::{Place, Tensor, bytes_of, failed};
use crate::device::cuda::{Event, Graph, Stream, waited_for};
use crate::error::Error;
use crate::ops::{self, Form, Segments};

/// Makes recordings for a place, while nobody computes there.
#[derive(Debug)]
pub struct Recorder {
    /// Where they will run.
    place: Place,
    /// The same memory, on the stream that records.
    aside: Place,
    /// And where nothing runs.
    dry: Place,
}

impl Recorder {
    pub(in crate::ops) fn of(place: &Place) -> Result<Recorder> {
        // It fails where somebody computes there.
        drop(place.scratch.take_all().map_err(failed)?);
        Self::looking_up(place)
    }

    /// The same where somebody has some of the place for good, and nothing there that is still needed: only to look up.
    pub(in crate::ops) fn looking_up(place: &Place) -> Result<Recorder> {
        let stream = locked(&place.gpu.aside);
        // The slab is there for the stream of passes; for others once they have waited for that.
        let allocated = Event::new(&place.gpu.cuda).map_err(failed)?;
        allocated.record(place.scratch.stream()).and_then(|()| stream.wait_for(&allocated)).map_err(failed)?;
        let aside = Place { scratch: place.scratch.on(&stream), ..place.clone() };
        let dry = Place { scratch: place.scratch.dry(&stream), ..place.clone() };
        Ok(Recorder { place: place.clone(), aside, dry })
    }

    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    /// Goes through a pass of a form without running it: what it would have to look up is looked up now.
    pub(in crate::ops) fn look_up(
        &self,
        form: &Form,
        pass: impl FnOnce(ops::Tensor, &Segments) -> Result<ops::Tensor>,
    ) -> Result<()> {
        let stream = locked(&self.place.gpu.aside);
        let (plan, given) = room(form, &self.dry)?;
        // Also after a pass that failed or panicked: products that were tried write to the slab.
        let (went, done) = waited_for(
            || pass(ops::Tensor::Cuda(given), &form.segments.clone().planned(plan)).map(drop),
            || stream.synchronize().map_err(failed),
        );
        went.and(done)
    }

    pub(in crate::ops) fn record(
        &self,
        form: &Form,
        pass: impl FnOnce(ops::Tensor, &Segments) -> Result<ops::Tensor>,
    ) -> Result<Recorded> {
        let stream = locked(&self.place.gpu.aside);
        let (plan, given) = room(form, &self.aside)?;
        let (table_spot, given_spot) = (plan.table().spot()?, given.spot()?);
        let segments = form.segments.clone().planned(plan);
        let work = || {
            let rows = pass(ops::Tensor::Cuda(given), &segments)?;
            rows.on_gpu("a pass's rows")?.spot()
        };
        let (rows, graph) = Graph::record(&stream, || work().map_err(Error::internal)).map_err(failed)?;
        graph.upload(&stream).and_then(|()| stream.synchronize()).map_err(failed)?;
        Ok(Recorded { graph, place: self.place.clone(), table: table_spot, given: given_spot, rows })
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        let Tally { products, changed, took } = self.place.gpu.blas.tried();
        if products > 0 {
            let ms = took.as_secs_f64() * 1e3;
            tracing::info!(
                products,
                changed,
                ms,
                "products of many rows were tried with every algorithm that is offered"
            );
        }
    }
}

pub(super) fn locked(stream: &Mutex<Arc<Stream>>) -> MutexGuard<'_, Arc<Stream>> {
    stream.lock().unwrap_or_else(PoisonError::into_inner)
}

fn room(form: &Form, place: &Place) -> Result<(Plan, Tensor)> {
    Plan::room(&form.segments, (plan::table(&form.segments).len(), &form.shape, form.dtype), place)
}

/// A pass of one form that is ready to run.
#[derive(Debug)]
pub struct Recorded {
    /// Gone before the slab that it writes to.
    graph: Graph,
    place: Place,
    table: Spot,
    given: Spot,
    rows: Spot,
}

impl Recorded {
    /// Queues it for segments that were filled up to its form, and the numbers that it begins with, in parts.
    pub(in crate::ops) fn run<T: candle_core::WithDType>(&self, segments: &Segments, parts: &[&[T]]) -> Result<Tensor> {
        let Recorded { graph, place, table, given, rows } = self;
        if T::DTYPE != given.dtype {
            bail!("numbers of {} for a pass that begins with {}", T::DTYPE.as_str(), given.dtype.as_str());
        }
        let whole = place.scratch.take_all().map_err(failed)?;
        let parts = parts.iter().map(|part| bytes_of(part)).collect::<Result<Vec<_>>>()?;
        place.send(&[(table, &[bytes_of(&plan::table(segments))?]), (given, &parts)])?;
        #[allow(unsafe_code)]
        // SAFETY: it was recorded with this slab, all of which was just taken, and with weights of the model that holds it. What is
        // queued after it runs on the same stream.
        unsafe { graph.launch(place.scratch.stream()) }.map_err(failed)?;
        // Whoever takes the rest now queues after it.
        Ok(Tensor::within(place, Arc::new(whole.only((rows.at, rows.bytes()))), rows))
    }
}

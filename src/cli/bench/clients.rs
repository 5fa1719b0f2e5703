//! What a server could answer if HTTP, tokenizing and JSON cost nothing: a loop that has the requests of so many clients.
//!
//! Each client has a request waiting at all times. Batches are cut by the server's own batcher and run as the engine runs
//! them: cut when the device has nothing to do, and begun before the rows of the one before are read; clients whose answers came
//! with those ask again while it runs. All ask at once, so batches are as large as a server's with the same clients get.

use std::collections::HashMap;
use std::hint::spin_loop;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::super::output::human_ms;
use super::report::round;
use crate::error::{Error, Result};
use crate::model::{Input, Model, Packed, Pending};
use crate::schedule::{Batch, BatchLimits, Batcher, Nanos, Queued};

pub(super) struct Crowd<'a> {
    /// Those of all requests, one request's after another's, used in turn.
    pub(super) texts: &'a [Input],
    pub(super) clients: usize,
    /// Texts of a request.
    pub(super) batch: usize,
    pub(super) limits: BatchLimits,
}

/// What they were answered.
#[derive(Debug)]
pub(super) struct Served {
    clients: usize,
    batch: usize,
    requests: usize,
    seconds: f64,
    passes: usize,
    texts: usize,
    p50_ms: f64,
}

/// A request that is not answered yet.
struct Asked {
    at: Nanos,
    missing: usize,
}

/// A batch on its way through the device.
struct Flight {
    pending: Pending,
    batch: Batch,
    began: Nanos,
}

struct Round<'a> {
    crowd: &'a Crowd<'a>,
    epoch: Instant,
    batcher: Batcher,
    asked: HashMap<u64, Asked>,
    next: u64,
    /// When it began and ended, and when its answer came.
    answered: Vec<(Nanos, Nanos)>,
    /// When a pass ended, and its texts.
    passes: Vec<(Nanos, usize)>,
}

impl Crowd<'_> {
    pub(super) fn run(&self, model: &mut Model, (warmup, duration): (Duration, Duration)) -> Result<Served> {
        let mut round = Round {
            crowd: self,
            epoch: Instant::now(),
            batcher: Batcher::new(self.limits),
            asked: HashMap::new(),
            next: 0,
            answered: Vec::new(),
            passes: Vec::new(),
        };
        (0..self.clients).for_each(|_| round.ask());
        let end = (warmup + duration).as_nanos() as Nanos;
        let mut flying: Option<Flight> = None;
        while round.now() < end || round.answered.is_empty() {
            let begun = round.begin(model)?;
            if let Some(before) = flying.take() {
                round.land(before)?;
            }
            if let Some(flight) = &begun {
                while !flight.pending.is_done()? {
                    spin_loop();
                }
                let took = round.now().saturating_sub(flight.began);
                round.batcher.observe(flight.batch.tokens, took);
            }
            flying = begun;
        }
        if let Some(last) = flying {
            last.pending.wait()?;
        }
        Ok(round.judged(warmup.as_nanos() as Nanos))
    }
}

impl Round<'_> {
    fn now(&self) -> Nanos {
        self.epoch.elapsed().as_nanos() as Nanos
    }

    /// A client asks; the keys of its texts are those of the corpus, counted on.
    fn ask(&mut self) {
        let (at, batch) = (self.now(), self.crowd.batch as u64);
        let request = self.next;
        self.next += 1;
        for key in request * batch..(request + 1) * batch {
            let tokens = self.text(key).cost(1);
            self.batcher.push(Queued { key, tokens, arrived: at, urgent: false });
        }
        self.asked.insert(request, Asked { at, missing: self.crowd.batch });
    }

    fn text(&self, key: u64) -> &Input {
        &self.crowd.texts[(key % self.crowd.texts.len() as u64) as usize]
    }

    /// Cuts what waits and queues it on the device.
    fn begin(&mut self, model: &mut Model) -> Result<Option<Flight>> {
        let began = self.now();
        let Some(batch) = self.batcher.plan(began) else { return Ok(None) };
        let packed = Packed::new(batch.items.iter().map(|item| self.text(item.key).clone()).collect())?;
        Ok(Some(Flight { pending: model.forward(&packed, packed.all())?, batch, began }))
    }

    /// Reads the rows; whoever has all of its own asks again.
    fn land(&mut self, flight: Flight) -> Result<()> {
        let rows = flight.pending.wait()?;
        if rows.len() != flight.batch.items.len() {
            return Err(Error::internal(format!("{} rows for {} inputs", rows.len(), flight.batch.items.len())));
        }
        let now = self.now();
        self.passes.push((now, rows.len()));
        for item in &flight.batch.items {
            let request = item.key / self.crowd.batch as u64;
            let Some(asked) = self.asked.get_mut(&request) else { continue };
            asked.missing -= 1;
            if asked.missing == 0 {
                self.answered.push((asked.at, now));
                self.asked.remove(&request);
                self.ask();
            }
        }
        Ok(())
    }

    /// What ended after the warm-up; all of it where nothing did.
    fn judged(&self, warm: Nanos) -> Served {
        let warm = if self.answered.iter().any(|(_, came)| *came > warm) { warm } else { 0 };
        let passes = || self.passes.iter().filter(|(ended, _)| *ended > warm);
        let last = self.passes.last().map_or(warm + 1, |(ended, _)| *ended);
        let mut took: Vec<Nanos> =
            self.answered.iter().filter(|(_, came)| *came > warm).map(|(at, came)| came - at).collect();
        took.sort_unstable();
        Served {
            clients: self.crowd.clients,
            batch: self.crowd.batch,
            requests: took.len(),
            seconds: (last - warm) as f64 / 1e9,
            passes: passes().count(),
            texts: passes().map(|(_, texts)| texts).sum(),
            p50_ms: took.get(took.len() / 2).map_or(0.0, |nanos| *nanos as f64 / 1e6),
        }
    }
}

impl Served {
    pub(super) fn json(&self) -> Value {
        json!({
            "clients": self.clients, "batch": self.batch, "requests": self.requests, "seconds": round(self.seconds),
            "requests_per_s": round(self.requests as f64 / self.seconds), "texts_per_s": round(self.texts as f64 / self.seconds),
            "passes": self.passes, "texts_a_pass": round(self.texts_a_pass()), "p50_ms": round(self.p50_ms),
        })
    }

    pub(super) fn cells(&self) -> [String; 5] {
        [
            self.clients.to_string(),
            format!("{:.1}", self.requests as f64 / self.seconds),
            format!("{:.1}", self.texts as f64 / self.seconds),
            format!("{:.1}", self.texts_a_pass()),
            human_ms(self.p50_ms),
        ]
    }

    fn texts_a_pass(&self) -> f64 {
        self.texts as f64 / self.passes.max(1) as f64
    }
}

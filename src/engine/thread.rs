//! The engine's thread: takes what was sent, chooses whose turn it is, runs it, tells.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

use super::decoding::{Decoding, How};
use super::gaps::Gaps;
use super::resident::{Flight, Resident};
use super::store::Store;
use super::{Message, Piece, Shared, Timed, Written};
use crate::device::{Pass, Processors, flush_thread_cache};
use crate::error::Error;
use crate::generation::GenerationId;
use crate::model::{Decoder, KvCache, Model, Packed, Pending, Scoring, StepInput};
use crate::ops::Machine;
use crate::schedule::{Choice, Class, Nanos, Turns};

struct Thread<'a> {
    epoch: Instant,
    shared: &'a Arc<Shared>,
    processors: &'a Processors,
    machine: &'a Machine,
    pool: Option<rayon::ThreadPool>,
    residents: HashMap<GenerationId, Resident>,
    store: Store,
    validation: VecDeque<Piece>,
    shadow: VecDeque<Piece>,
    turns: Turns,
    gaps: Gaps,
    /// The batch whose rows were not read yet. While they are, the device runs the next one.
    flying: Option<Flying<'a>>,
    stopping: bool,
}

/// A batch of a generation, and what says that it runs for as long as it does.
struct Flying<'a> {
    generation: GenerationId,
    flight: Flight,
    running: Option<Running<'a>>,
}

pub(super) fn run(
    inbox: Receiver<Message>,
    epoch: Instant,
    shared: &Arc<Shared>,
    (processors, machine): (&Processors, &Machine),
) {
    let mut thread = Thread {
        epoch,
        shared,
        processors,
        machine,
        pool: pool(processors.threads()),
        residents: HashMap::new(),
        store: Store::default(),
        validation: VecDeque::new(),
        shadow: VecDeque::new(),
        turns: Turns::new(0),
        gaps: Gaps::default(),
        flying: None,
        stopping: false,
    };
    loop {
        match inbox.try_recv() {
            Ok(message) => {
                thread.handle(message);
                continue;
            }
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => thread.stopping = true,
        }
        // What arrives meanwhile goes into the next batch: it is cut when the device has nothing to do, and not before.
        if thread.is_computing() {
            std::hint::spin_loop();
            continue;
        }
        match thread.choose() {
            Choice::Client(generation) => thread.client(generation),
            _ if thread.flying.is_some() => thread.land(),
            _ if thread.on_its_way(None).is_some() => thread.land_steps(None),
            Choice::Background(class) => thread.background(class),
            Choice::Wait(None) if thread.stopping => return,
            Choice::Wait(at) => match wait(&inbox, at.map(|at| at.saturating_sub(thread.now()))) {
                Ok(Some(message)) => thread.handle(message),
                Ok(None) => {}
                Err(()) => thread.stopping = true,
            },
        }
    }
}

/// Waits for a message, or until `nanos` have passed.
fn wait(inbox: &Receiver<Message>, nanos: Option<Nanos>) -> Result<Option<Message>, ()> {
    match nanos {
        None => inbox.recv().map(Some).map_err(|_| ()),
        Some(nanos) => match inbox.recv_timeout(Duration::from_nanos(nanos)) {
            Ok(message) => Ok(Some(message)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(()),
        },
    }
}

/// The threads of forward passes on a CPU, this one among them.
fn pool(threads: usize) -> Option<rayon::ThreadPool> {
    let built = rayon::ThreadPoolBuilder::new()
        .num_threads(threads.max(1))
        .thread_name(|n| format!("forward-{n}"))
        .use_current_thread()
        .build();
    built.inspect_err(|error| tracing::error!(%error, "no thread pool; forward passes use the global one")).ok()
}

impl Thread<'_> {
    fn now(&self) -> Nanos {
        self.epoch.elapsed().as_nanos() as Nanos
    }

    fn handle(&mut self, message: Message) {
        // Whoever asked may have gone; then nobody minds that the answer is not taken.
        match message {
            Message::Submit(submission) => match self.residents.get_mut(&submission.generation) {
                Some(resident) => {
                    let waiting = submission.inputs.len() as u64;
                    resident.submit(submission);
                    self.shared.counters.waiting.fetch_add(waiting, Ordering::Relaxed);
                }
                None => {
                    debug_assert!(false, "work for a generation that is not resident");
                    let error = Error::internal(format!("generation {} is not resident", submission.generation));
                    let _ = submission.reply.send(Err(error));
                }
            },
            Message::Write(generation, commission) => {
                match self.residents.get_mut(&generation).and_then(|resident| resident.decoding.as_mut()) {
                    Some(decoding) => decoding.submit(*commission),
                    None => {
                        let error = Error::internal(format!("generation {generation} writes nothing here"));
                        let _ = commission.reader.send(Written::Failed(error));
                    }
                }
            }
            Message::CutShort(which) => {
                let of = |id: &GenerationId| which.is_none_or(|which| which == *id);
                let writing = self.residents.iter_mut().filter(|(id, _)| of(id));
                writing.filter_map(|(_, resident)| resident.decoding.as_mut()).for_each(Decoding::cut_short);
            }
            Message::Background(piece) => match piece.class {
                Class::Shadow => self.shadow.push_back(*piece),
                Class::Client | Class::Validation => self.validation.push_back(*piece),
            },
            Message::Lookup { generation, keys, reply } => {
                let _ = reply.send(self.store.lookup(generation, keys));
            }
            Message::Keep { generation, tensors, reply } => {
                self.store.keep(generation, tensors);
                // The list came out of the generation's arena, and must not be used here for something else.
                flush_thread_cache();
                let _ = reply.send(());
            }
            Message::Install(install, work, reply) => {
                self.residents.insert(install.generation, Resident::new(*install, work));
                let _ = reply.send(());
            }
            Message::Retire { generation, rest, reply } => {
                // Whoever asked for it was answered; its rows may have to be let go of still.
                self.land();
                self.land_steps(None);
                drop(rest);
                self.validation.retain(|piece| piece.generation != generation);
                self.shadow.retain(|piece| piece.generation != generation);
                drop(self.residents.remove(&generation));
                let held = self.store.release(generation);
                // What it held came out of its arena, and must not be used here for something that lives on.
                flush_thread_cache();
                self.store.shrink();
                // Frees count once they were waited for; only then is there something to measure.
                if let Err(error) = self.machine.synchronize() {
                    tracing::error!(%error, "what a generation held may be counted as held still");
                }
                let _ = reply.send(held);
            }
            Message::Memory(reply) => {
                let _ = reply.send(self.store.held());
            }
            Message::Gap { from, to, reply } => {
                let _ = reply.send(self.gaps.longest(from, to));
            }
            Message::Stop => self.stopping = true,
        }
        self.count_waiting();
    }

    fn count_waiting(&self) {
        let of = |resident: &Resident| resident.batcher.len() + resident.decoding.as_ref().map_or(0, Decoding::waiting);
        let waiting: usize = self.residents.values().map(of).sum();
        self.shared.counters.waiting.store(waiting as u64, Ordering::Relaxed);
    }

    fn choose(&mut self) -> Choice<GenerationId> {
        let now = self.now();
        let lanes = self.residents.iter().filter_map(|(id, resident)| {
            let (ready, oldest) = match &resident.decoding {
                Some(decoding) => decoding.turn()?,
                None => (resident.batcher.ready_at()?, resident.batcher.oldest()?),
            };
            Some((*id, ready, oldest))
        });
        let background = match (self.validation.is_empty(), self.shadow.is_empty()) {
            (false, _) => Some(Class::Validation),
            (true, false) => Some(Class::Shadow),
            (true, true) => None,
        };
        self.turns.choose(now, lanes, background)
    }

    fn client(&mut self, generation: GenerationId) {
        if self.residents.get(&generation).is_some_and(|resident| resident.decoding.is_some()) {
            return self.step(generation);
        }
        self.land_steps(None);
        let now = self.now();
        let Some(resident) = self.residents.get_mut(&generation) else { return };
        let (cut, cancelled) = resident.cut(now);
        self.shared.counters.cancelled.fetch_add(cancelled, Ordering::Relaxed);
        // An error was told to those whom it concerns.
        if let Some(Ok(cut)) = cut {
            let started = self.epoch.elapsed().as_nanos() as Nanos;
            self.gaps.begins(started, cut.oldest);
            let running = Some(Running::begin((self.shared, self.processors), generation, started));
            let flight = resident.begin(cut, started, &|model, packed, part| forward(&self.pool, model, packed, part));
            let before = self.flying.replace(Flying { generation, flight, running });
            // Its rows are there: the device works on while they are read.
            if let Some(before) = before {
                self.finish(before);
            }
            if !self.is_computing() {
                self.land();
            }
        }
        self.count_waiting();
    }

    /// One step of what a generation writes. Where nobody waits on others, the step after it is begun too.
    fn step(&mut self, generation: GenerationId) {
        // Rows of other generations do not wait for it.
        self.land();
        self.land_steps(Some(generation));
        let waits = |resident: &Resident| {
            !resident.batcher.is_empty() || resident.decoding.as_ref().is_some_and(|decoding| decoding.waiting() > 0)
        };
        let is_alone = !self.residents.iter().any(|(id, resident)| *id != generation && waits(resident));
        self.take_step(generation, is_alone);
    }

    /// A generation, but for this one, that has a step on its way.
    fn on_its_way(&self, but: Option<GenerationId>) -> Option<GenerationId> {
        let has = |resident: &Resident| resident.decoding.as_ref().is_some_and(Decoding::is_on_its_way);
        self.residents.iter().find(|(id, resident)| Some(**id) != but && has(resident)).map(|(id, _)| *id)
    }

    /// Ends what is on its way of all generations but this one.
    fn land_steps(&mut self, but: Option<GenerationId>) {
        while let Some(generation) = self.on_its_way(but) {
            self.take_step(generation, false);
        }
    }

    fn take_step(&mut self, generation: GenerationId, goes_ahead: bool) {
        let now = self.now();
        let others = self.residents.iter().filter(|(id, _)| **id != generation);
        let elsewhere = others.filter_map(|(_, resident)| resident.decoding.as_ref()?.pace()).max();
        let Some(Resident { model: Model::Decoder(model, cache), decoding: Some(decoding), .. }) =
            self.residents.get_mut(&generation)
        else {
            return;
        };
        let oldest = decoding.turn().map_or(now, |(_, oldest)| oldest);
        let (due, left) = decoding.plan(elsewhere);
        self.shared.counters.cancelled.fetch_add(left, Ordering::Relaxed);
        if let Some(due) = due {
            let started = self.epoch.elapsed().as_nanos() as Nanos;
            self.gaps.begins(started, oldest);
            let running = Running::begin((self.shared, self.processors), generation, started);
            let pool = &self.pool;
            let spread = |work: &mut (dyn FnMut() + Send)| on(pool, work);
            let step =
                |model: &mut dyn Decoder, input: &StepInput, cache: &mut KvCache| on(pool, || model.step(input, cache));
            let how = How { step: &step, spread: &spread, goes_ahead };
            let stepped = decoding.step((model.as_mut(), cache), due, started, how);
            drop(running);
            let ended = self.epoch.elapsed().as_nanos() as Nanos;
            decoding.stepped_at(ended);
            self.gaps.worked_until(ended);
            self.turns.ran(Class::Client, started, ended);
            self.shared.counters.ran(stepped.sequences, stepped.tokens, ended - started);
        }
        self.count_waiting();
    }

    /// Whether the device is at work. Once it is not any more, that is written down.
    fn is_computing(&mut self) -> bool {
        let Some(Flying { generation, flight, running }) = &mut self.flying else { return false };
        if running.is_none() {
            return false;
        }
        if !flight.is_done() {
            return true;
        }
        *running = None;
        let ended = self.epoch.elapsed().as_nanos() as Nanos;
        let (cut, started) = (&flight.cut, flight.started);
        if let Some(resident) = self.residents.get_mut(generation) {
            resident.ended(flight);
            resident.batcher.observe(cut.tokens, ended - started);
        }
        self.gaps.worked_until(ended);
        self.turns.ran(Class::Client, started, ended);
        self.shared.counters.ran(cut.places.len(), cut.tokens, ended - started);
        false
    }

    /// Ends the batch that is on its way, if there is one; waits for it where it is not done.
    fn land(&mut self) {
        while self.is_computing() {
            std::hint::spin_loop();
        }
        if let Some(flying) = self.flying.take() {
            self.finish(flying);
        }
    }

    fn finish(&mut self, flying: Flying<'_>) {
        let Flying { generation, flight, .. } = flying;
        // The batch after it is watched already, where there is one.
        let next = self.flying.as_ref().is_some_and(|flying| flying.running.is_some());
        let watched = || {
            let now = self.epoch.elapsed().as_nanos() as Nanos;
            (!next).then(|| Running::begin((self.shared, self.processors), generation, now))
        };
        if let Some(resident) = self.residents.get_mut(&generation) {
            resident.finish(flight, &|model, packed, part| forward(&self.pool, model, packed, part), watched);
        }
    }

    /// One turn of a piece: all of it, or as much of a text as clients may be kept waiting for.
    fn background(&mut self, class: Class) {
        let queue = if class == Class::Shadow { &mut self.shadow } else { &mut self.validation };
        let Some(mut piece) = queue.pop_front() else { return };
        if piece.reply.is_closed() {
            return;
        }
        let pace = self.residents.values().filter_map(|resident| resident.decoding.as_ref()?.pace()).max();
        let started = self.now();
        let answer = match self.residents.get_mut(&piece.generation) {
            Some(resident) => {
                let _running = Running::begin((self.shared, self.processors), piece.generation, started);
                let pool = &self.pool;
                let score =
                    |model: &mut Model, scoring: &mut Scoring, tokens| on(pool, || model.go_on(scoring, tokens));
                resident
                    .background((&mut piece, pace), (&|model, packed, part| forward(pool, model, packed, part), &score))
            }
            None => Err(Error::internal(format!("generation {} is not resident", piece.generation))),
        };
        let ended = self.now();
        self.gaps.worked_until(ended);
        self.turns.ran(class, started, ended);
        self.shared.counters.background_nanos.fetch_add(ended - started, Ordering::Relaxed);
        piece.took += ended - started;
        let took = Duration::from_nanos(piece.took);
        match answer.transpose() {
            // Before whatever waits behind it: what it has computed takes memory.
            None if class == Class::Shadow => self.shadow.push_front(piece),
            None => self.validation.push_front(piece),
            Some(answer) => {
                let _ = piece.reply.send(answer.map(|rows| Timed { rows, took }));
            }
        }
    }
}

/// Runs `work` with the device's threads at hand.
fn on<R: Send>(pool: &Option<rayon::ThreadPool>, work: impl FnOnce() -> R + Send) -> R {
    match pool {
        Some(pool) => pool.install(work),
        None => work(),
    }
}

fn forward(
    pool: &Option<rayon::ThreadPool>,
    model: &mut Model,
    packed: &Packed,
    part: Range<usize>,
) -> crate::error::Result<Pending> {
    on(pool, || model.forward(packed, part))
}

/// Tells the watchdog what runs, and those who work beside it that it does, for as long as it lives.
struct Running<'a> {
    shared: &'a Shared,
    _pass: Pass<'a>,
}

impl<'a> Running<'a> {
    fn begin((shared, processors): (&'a Shared, &'a Processors), generation: GenerationId, now: Nanos) -> Self {
        // Once the device is lost, this stays what was running then: a pass that begins later is not to blame.
        if shared.health.fault().is_none() {
            shared.since.store(now, Ordering::Release);
            shared.running.store(generation.0 + 1, Ordering::Release);
        }
        Running { shared, _pass: processors.pass() }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if self.shared.health.fault().is_none() {
            self.shared.running.store(0, Ordering::Release);
        }
    }
}

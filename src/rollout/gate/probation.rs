//! A thread of its own for a model's first forward passes, away from the engine and, in a rollout, at the lowest priority.
//!
//! What hangs here hangs alone: it is abandoned with whatever it holds, and live traffic never noticed.

use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::super::quiet::{Late, Urgency, within};
use super::super::residents::ThreadLife;
use super::SoftError;
use super::pace::Pace;
use crate::device::{Processors, flush_thread_cache, rested, thread_processor_time, trim_background};
use crate::engine::{Engine, Timed, guarded};
use crate::error::{Error, Result};
use crate::faults::{At, Faults, Strike};
use crate::model::{Input, Model, Packed};
use crate::repository::GateConfig;
use crate::weights::Progress;

enum Order {
    Run(Vec<Input>, oneshot::Sender<Ran>),
    Leave(oneshot::Sender<Model>),
}

/// What a forward pass came to, the processor time that it took (beside live traffic a pass mostly waits), and how long it
/// gave way.
struct Ran {
    answer: Result<Timed>,
    worked: Duration,
    rested: Duration,
}

/// A model before its first forward pass.
pub(in crate::rollout) struct Trial {
    /// `model@version`
    pub(in crate::rollout) name: String,
    pub(in crate::rollout) model: Model,
    pub(in crate::rollout) faults: Faults,
    pub(in crate::rollout) urgency: Urgency,
    pub(in crate::rollout) processors: Arc<Processors>,
    /// Whose live traffic it gives way to.
    pub(in crate::rollout) beside: Option<Engine>,
    /// When this is cancelled, nothing more is run.
    pub(in crate::rollout) progress: Arc<Progress>,
}

pub(in crate::rollout) struct Probation {
    name: String,
    orders: mpsc::Sender<Order>,
    /// How long one forward pass may take.
    patience: Duration,
    /// When all of it must be over.
    until: Instant,
    progress: Arc<Progress>,
    thread: ThreadLife,
    pace: Option<Pace>,
    /// Processor time of the last pass, which the next one rests for first, and how long that one rested by itself.
    worked: Duration,
    rested: Duration,
}

impl Probation {
    pub(in crate::rollout) fn start(trial: Trial, rules: &GateConfig) -> Result<Probation> {
        let Trial { name, model, faults, urgency, processors, beside, progress } = trial;
        let (orders, inbox) = mpsc::channel();
        let thread_name = name.clone();
        // The thread is a pool of its own, so that ops that ask rayon for parallelism find one of a single thread. (A pool
        // that takes over a thread that is there already never frees what it knows of it.)
        let thread = rayon::ThreadPoolBuilder::new()
            .num_threads(1)
            .thread_name(|_| "probation".into())
            .start_handler(move |_| urgency.take(&processors))
            .exit_handler(|_| {
                flush_thread_cache();
                trim_background();
            })
            .panic_handler(|_| tracing::error!("a probation thread panicked; whoever waits for it is told"))
            .build()
            .map_err(|e| Error::internal(format!("could not start a probation thread: {e}")))?;
        // Ends when its work has; dropping the pool does not wait for that.
        let (running, life) = ThreadLife::begin();
        thread.spawn(move || {
            serve(&thread_name, model, &faults, &inbox);
            flush_thread_cache();
            drop(running);
        });
        let (patience, until) = (rules.case_timeout, Instant::now() + rules.probation_timeout);
        let pace = beside.map(Pace::beside);
        let (worked, rested) = (Duration::ZERO, Duration::ZERO);
        Ok(Probation { name, orders, patience, until, progress, thread: life, pace, worked, rested })
    }

    /// One forward pass, after the rest that the one before it calls for; abandons the thread when it takes too long.
    pub(super) async fn run(&mut self, inputs: Vec<Input>) -> Result<Result<Timed>, SoftError> {
        if self.progress.is_cancelled() {
            return Err(SoftError(Error::conflict("cancelled")));
        }
        if let Some(pace) = &mut self.pace {
            // What is rested is no time of the candidate's.
            self.until += tokio::select! {
                rested = pace.rest(self.worked, self.rested) => rested,
                () = self.progress.cancelled() => return Err(SoftError(Error::conflict("cancelled"))),
            };
        }
        let (reply, answer) = oneshot::channel();
        self.send(Order::Run(inputs, reply))?;
        let patience = self.patience.min(self.until.saturating_duration_since(Instant::now()));
        match within(patience, &self.progress, answer).await {
            Ok(Ok(Ran { answer, worked, rested })) => {
                (self.worked, self.rested) = (worked, rested);
                self.until += rested;
                Ok(answer)
            }
            Ok(Err(_)) => Err(SoftError(Error::internal("the probation thread ended"))),
            Err(late) => {
                let message = match late {
                    Late::Out => format!("hung: a forward pass took longer than {} s", patience.as_secs_f64()),
                    Late::Cancelled => "the gate was cancelled and its forward pass did not end".to_owned(),
                };
                Err(SoftError(Error::ForwardFailed { version: self.name.clone(), message }))
            }
        }
    }

    /// Ends the thread and takes the model back. An abandoned one does not answer within its patience.
    pub(in crate::rollout) async fn leave(self) -> Option<Model> {
        let (reply, answer) = oneshot::channel();
        self.orders.send(Order::Leave(reply)).ok()?;
        tokio::time::timeout(self.patience, answer).await.ok()?.ok()
    }

    /// Whether the thread has ended, when it was abandoned.
    pub(in crate::rollout) fn thread(&self) -> ThreadLife {
        self.thread.clone()
    }

    fn send(&self, order: Order) -> Result<()> {
        self.orders.send(order).map_err(|_| Error::internal("the probation thread ended"))
    }
}

fn serve(name: &str, mut model: Model, faults: &Faults, inbox: &mpsc::Receiver<Order>) {
    while let Ok(order) = inbox.recv() {
        match order {
            Order::Run(inputs, reply) => {
                let (began, processor, before) = (Instant::now(), thread_processor_time(), rested());
                let answer = Packed::new(inputs).and_then(|packed| {
                    let count = packed.len();
                    guarded(name, || {
                        let strike = faults.strike(At::Gate)?;
                        let mut rows = model.forward(&packed, 0..count)?.wait()?;
                        if strike == Strike::Poison {
                            rows.iter_mut().flatten().for_each(|value| *value = f32::NAN);
                        }
                        Ok(rows)
                    })
                });
                // Nobody listens when this run was abandoned.
                let took = began.elapsed();
                let worked =
                    thread_processor_time().zip(processor).map_or(took, |(now, then)| now.saturating_sub(then));
                let answer = answer.map(|rows| Timed { rows, took });
                let _ = reply.send(Ran { answer, worked, rested: rested() - before });
            }
            Order::Leave(reply) => {
                let _ = reply.send(model);
                return;
            }
        }
    }
}

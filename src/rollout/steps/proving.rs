//! The steps that prove a candidate: its first forward pass, the gate, and its place on the engine.
//!
//! What is judged, and by which rule, is `gate`'s; here is only where it runs, and what becomes of the candidate.

use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};

use super::super::Context;
use super::super::gate::{self, Findings, Prepared, Probation, Runner, SoftError, Trial};
use super::super::quiet::Urgency;
use super::super::residents::Resident;
use super::super::state::Event;
use super::{Candidate, Done, Notes, abandon};
use crate::device::Kind;
use crate::engine::Install;
use crate::error::{Error, Result};
use crate::faults::Faults;
use crate::generation::{Generation, Parts, Stamp};
use crate::ledger::GateCheck;
use crate::model::{Input, Model};
use crate::process::Processor;
use crate::repository::{ModelConfig, ObserveConfig};
use crate::schedule::BatchLimits;
use crate::weights::Progress;

/// The first forward pass. On a CPU it runs on probation, so that a hang or a crash is nobody else's.
pub(in crate::rollout) async fn warm(ctx: Arc<Context>, mut candidate: Candidate) -> Done {
    let began = Instant::now();
    let prepared = candidate.processor().and_then(|processor| processor.example());
    let (model, example) = match (candidate.model().take(), prepared) {
        (Some(model), Ok(example)) => (model, example),
        (model, Err(error)) => {
            *candidate.model() = model;
            return candidate.failed(error);
        }
        (None, Ok(_)) => return candidate.failed(Error::internal("nothing was loaded")),
    };
    let runner = match ctx.opened.kind() {
        Kind::Cpu => {
            let (name, progress) = (candidate.reference(), Arc::clone(&candidate.progress));
            let (faults, urgency) = (Faults::of(&ctx.faults, &name), candidate.urgency);
            let beside = (urgency == Urgency::Quiet).then(|| ctx.engine.clone());
            let processors = Arc::clone(ctx.engine.processors());
            let trial = Trial { name, model, faults, urgency, processors, beside, progress };
            Probation::start(trial, &candidate.config.gate).map(Runner::Probation)
        }
        Kind::Cuda => {
            let (engine, generation) = (ctx.engine.clone(), candidate.id);
            install(&ctx, &mut candidate, model).await.map(|()| Runner::Gated { engine, generation })
        }
    };
    let mut runner = match runner {
        Ok(runner) => runner,
        Err(error) => return candidate.failed(error),
    };
    let first = runner.run(vec![example]).await;
    candidate.runner = Some(runner);
    let figures = vec![("first_pass_ms", json!(began.elapsed().as_secs_f64() * 1e3))];
    match first {
        Ok(Ok(timed)) if timed.rows.iter().flatten().all(|value| value.is_finite()) => {
            Done { candidate, event: Event::Warmed, notes: Notes { figures, ..Notes::default() } }
        }
        Ok(Ok(_)) => {
            let error = Error::NonFinite { version: candidate.reference() };
            candidate.refused(fault_findings("finite", &error), figures)
        }
        Ok(Err(error)) => candidate.refused(fault_findings("first-pass", &error), figures),
        Err(SoftError(error)) => ended(&ctx, candidate, "first-pass", error, figures),
    }
}

/// A gate run that could not go on: a hang is the version's fault, anything else a failure.
fn ended(
    ctx: &Context,
    mut candidate: Candidate,
    check: &str,
    error: Error,
    figures: Vec<(&'static str, Value)>,
) -> Done {
    if error.is_model_fault() {
        if let Some(Runner::Probation(probation)) = &candidate.runner {
            let thread = probation.thread();
            abandon(ctx, &mut candidate, thread);
        }
        return candidate.refused(fault_findings(check, &error), figures);
    }
    candidate.failed(error)
}

fn fault_findings(check: &str, error: &Error) -> Findings {
    Findings {
        checks: vec![GateCheck {
            check: check.to_owned(),
            passed: false,
            measure: json!(error.kind().name()),
            limit: json!("an answer"),
            case: None,
            message: Some(error.to_string()),
        }],
    }
}

fn engine_runner(ctx: &Context, candidate: &Candidate) -> Runner {
    Runner::Engine { engine: ctx.engine.clone(), generation: candidate.id }
}

/// The gate. `live`: what it is compared with.
pub(in crate::rollout) async fn validate(
    ctx: Arc<Context>,
    mut candidate: Candidate,
    live: Option<Arc<Generation>>,
) -> Done {
    let began = Instant::now();
    let rules = candidate.config.gate.clone();
    let cases = Arc::clone(&candidate.cases);
    let (Ok(processor), Some(mut runner)) = (candidate.processor(), candidate.runner.take()) else {
        return candidate.failed(Error::internal("the gate ran before the first pass"));
    };
    let progress = Arc::clone(&candidate.progress);
    let correctness = match &runner {
        // It looks after its thread itself.
        Runner::Probation(_) => gate::correctness(&mut runner, &cases, &processor, &rules).await,
        _ => unless_cancelled(&progress, gate::correctness(&mut runner, &cases, &processor, &rules)).await,
    };
    candidate.runner = Some(runner);
    let mut findings = match correctness {
        Ok(findings) => findings,
        Err(SoftError(error)) => return ended(&ctx, candidate, "golden", error, Vec::new()),
    };
    if findings.failed() > 0 {
        return candidate.refused(findings, vec![("gate_ms", json!(began.elapsed().as_secs_f64() * 1e3))]);
    }
    if let Err(error) = settle_on_engine(&ctx, &mut candidate).await {
        return candidate.failed(error);
    }
    let mut ours = engine_runner(&ctx, &candidate);
    if let Err(SoftError(error)) = unless_cancelled(&progress, warm_engine(&mut ours, &cases, &processor)).await {
        return candidate.failed(error);
    }
    if let Some(live) = live {
        let mut theirs = Runner::Engine { engine: ctx.engine.clone(), generation: live.id() };
        let agreement = gate::agreement((&mut ours, &processor), &mut theirs, &cases, &live, &rules);
        match unless_cancelled(&progress, agreement).await {
            Ok(agreement) => findings.checks.extend(agreement.checks),
            Err(SoftError(error)) => return candidate.failed(error),
        }
        let latency = gate::latency(&mut ours, &mut theirs, &cases, &live, &rules);
        match unless_cancelled(&progress, latency).await {
            Ok(latency) => findings.checks.extend(latency.checks),
            Err(SoftError(error)) => return candidate.failed(error),
        }
    }
    let figures = vec![("gate_ms", json!(began.elapsed().as_secs_f64() * 1e3))];
    match findings.failed() {
        0 => {
            let notes = Notes { figures, checks: findings.checks, ..Notes::default() };
            Done { candidate, event: Event::GatePassed, notes }
        }
        _ => candidate.refused(findings, figures),
    }
}

/// Does what takes the engine's background many turns, unless the rollout is given up meanwhile: beside busy clients the rest of
/// a gate takes minutes, and whoever aborts waits for its end. A pass that runs already ends by itself.
async fn unless_cancelled<T>(
    progress: &Progress,
    work: impl Future<Output = Result<T, SoftError>>,
) -> Result<T, SoftError> {
    tokio::select! {
        biased;
        () = progress.cancelled() => Err(SoftError(Error::conflict("cancelled"))),
        done = work => done,
    }
}

/// Touches the shapes that traffic will bring, as background work: one input, and a batch as small as batches get, since
/// live traffic waits for each of them.
async fn warm_engine(runner: &mut Runner, cases: &[Prepared], processor: &Processor) -> Result<(), SoftError> {
    let mut inputs: Vec<Input> = cases.iter().flat_map(Prepared::inputs).take(2).cloned().collect();
    if inputs.is_empty() {
        inputs.push(processor.example()?);
    }
    for batch in [vec![inputs[0].clone()], inputs] {
        runner.run(batch).await?.map_err(SoftError)?;
    }
    Ok(())
}

/// Ends probation, and makes the model resident on the engine.
async fn settle_on_engine(ctx: &Context, candidate: &mut Candidate) -> Result<()> {
    match candidate.runner.take() {
        Some(Runner::Probation(probation)) => match probation.leave().await {
            Some(model) => install(ctx, candidate, model).await,
            None => Err(Error::internal("the probation thread did not give the model back")),
        },
        Some(runner @ (Runner::Engine { .. } | Runner::Gated { .. } | Runner::Observed { .. })) => {
            candidate.runner = Some(runner);
            Ok(())
        }
        None => Err(Error::internal("the model is nowhere")),
    }
}

/// Makes the model resident, and the candidate a generation.
async fn install(ctx: &Context, candidate: &mut Candidate, model: Model) -> Result<()> {
    let inspected = candidate.inspected()?;
    let processor = candidate.processor()?;
    let config = &candidate.config;
    let install = Install {
        generation: candidate.id,
        name: candidate.reference(),
        model,
        batch: batch_limits(ctx, config),
        queue: config.limits.queue,
        tokens_per_image: inspected.tokens_per_image,
        faults: Faults::of(&ctx.faults, &candidate.reference()),
    };
    let lane = ctx.engine.install(install).await?;
    let digest = candidate.digest.clone().unwrap_or_default();
    let stamp = Stamp {
        model: candidate.model_name.as_str().into(),
        version: candidate.version.as_str().into(),
        generation: candidate.id,
    };
    let contract = inspected.contract.clone();
    let limits = config.limits.clone();
    let preparing = ctx.engine.processors().threads();
    let parts = Parts { stamp, digest, contract: contract.clone(), processor, lane, limits, preparing };
    let (generation, drained) = Generation::new(parts);
    let room = candidate.room.take().ok_or_else(|| Error::internal("a generation without room"))?;
    let stats = Arc::clone(&generation.stats);
    let ObserveConfig { drain_timeout, on_drain_timeout, .. } = config.observe;
    candidate.resident = Some(Resident {
        id: candidate.id,
        version: candidate.version.clone(),
        contract,
        stats,
        room,
        drained,
        drain_timeout,
        on_drain_timeout,
    });
    candidate.generation = Some(generation);
    Ok(())
}

fn batch_limits(ctx: &Context, config: &ModelConfig) -> BatchLimits {
    BatchLimits {
        max_tokens: config.batch.max_tokens.unwrap_or(ctx.default_batch_tokens),
        max_items: config.batch.max_items.unwrap_or(usize::MAX),
        max_wait: config.batch.max_wait.as_nanos() as u64,
    }
}

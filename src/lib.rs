//! Cutover: a model server that changes models without missing a beat.
//!
//! One process serves a model over HTTP, loads the next version beside it, proves it, redirects traffic to it with
//! one pointer store, watches it, goes back with the same store when it misbehaves, and gives the old version's
//! memory back.
//!
//! # The code map
//!
//! A module uses only what stands to its right:
//!
//! ```text
//! main → cli → http → rollout → slot → generation → engine → { schedule, model, process } → { weights, ops } → device
//! ```
//!
//! (`weights` asks `ops` how a weight is arranged for its kernels, so that the loader writes it there at once.)
//!
//! Leaves that anyone may use: [`repository`], [`gguf`], [`ledger`], [`config`], [`error`], [`telemetry`], [`telling`],
//! [`value`], [`faults`].
//!
//! | room | what it is for |
//! | --- | --- |
//! | [`cli`] | the command line: `serve` puts the rooms together; the other commands are clients of the HTTP interface |
//! | [`http`] | routes, guards, and one file a dialect; only `admin` knows the supervisor |
//! | [`rollout`] | one controller a model: pure state machine, steps, gate, window rules, reclaim |
//! | [`slot`] | the route behind one atomic pointer; `admit` decides, `serve` answers and fails over |
//! | [`generation`] | one version made resident once: processor, lane, counters, drain signal |
//! | [`engine`] | the one thread that owns the device, all models, and the order of forward passes |
//! | [`schedule`] | batches, turns, and the steps of language models as pure decisions |
//! | [`process`] | tokenizers and image preparation |
//! | [`model`], [`ops`] | architectures on shared layers; operations, and the matrix products under them |
//! | [`weights`] | the tensors of safetensors and GGUF files, digests, loading, sharing |
//! | [`gguf`] | that file format: metadata and where tensors lie |
//! | [`device`] | opening a device; budget, reservations, arenas and pools: memory that is measured; the GPU's driver |
//! | [`repository`] | versions on disk: `model.toml`, spec, contract, golden cases, fingerprints |
//! | [`ledger`] | the durable, hash-chained history in SQLite |
//! | [`telling`] | alerts to webhooks and traces to a collector, from the ledger's events; nothing waits for it |
//!
//! # One request
//!
//! `http::native` reads the body → `slot::Registry::resolve` finds the slot → `Slot::admit` loads the route (the one
//! decision) → `Admission::answer` takes a lane permit, has the generation's processor prepare the inputs, submits
//! them to the engine, and has the processor read the rows; a fault of the model is run again on the previous
//! generation → `http` writes the body and the stamp.
//!
//! # One text that is written
//!
//! `http::openai` reads the body → `Slot::admit` → `Admission::write` makes token ids of the prompt and begins a task an
//! answer → the engine's decode loop (`engine::decoding`) plans a step (`schedule::decode`), runs it (`model::Decoder` over a
//! `KvCache`), draws (`process::sampling`), and tells the task → the task makes text of tokens, looks for stop strings and
//! calls of tools, goes on elsewhere when the generation fails, and lets it go with the last token → `http::openai::stream`
//! sends what there is.
//!
//! # One promote
//!
//! `http::admin` → `rollout::Supervisor` → the model's controller, which feeds `rollout::state::next` and performs its
//! actions: reserve (`device::Budget`), load (`weights` on a loader thread), warm and validate (`rollout::gate`, on a
//! probation thread and then the engine), switch (ledger first, then `Slot::swap`), the window (`rollout::judge`),
//! and reclaim (`rollout::residents`: wait for the drain signal, drop on the engine, purge, measure).
//!
//! # Invariants, and what is deliberately absent
//!
//! - No lock round a model, and none held while a request is admitted: one thread owns the device, others send messages.
//! - A request holds its `Arc<Generation>` exactly as long as it needs it; nothing counts in-flight requests by hand.
//! - `schedule`, `rollout::state` and `rollout::judge` know no clock, runtime, channel or device: time and events are arguments.
//! - No memory map of weights: a mapped file that changes under a running model is undefined behaviour.
//! - On a GPU (feature `cuda`) candle is not used: `ops::cuda` has our kernels and cublasLt, on one stream, in memory that is a
//!   generation's own. Nothing of CUDA is linked; its libraries are looked for when a device is opened.
//! - No global state but the allocator's arenas (`device::arena`) and request ids.
//! - Parts of a batch that run side by side meet only at its end; no thread waits for another between two layers of
//!   such a part, and a row's numbers do not depend on its neighbours, to the bit.
//! - The environment is read in [`config`] (and by the command line's own parser) only.

#![cfg_attr(any(test, fuzzing), allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod cli;
pub mod config;
pub mod device;
pub mod engine;
pub mod error;
pub mod faults;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
pub mod generation;
pub mod gguf;
pub mod http;
pub mod ledger;
pub mod model;
pub mod ops;
pub mod process;
pub mod repository;
pub mod rollout;
pub mod schedule;
pub mod slot;
pub mod telemetry;
pub mod telling;
pub mod value;
pub mod weights;

/// Unit tests measure arenas, so they use the binary's allocator.
#[cfg(test)]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

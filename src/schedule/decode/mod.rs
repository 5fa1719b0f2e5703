//! Continuous batching of the sequences that a language model writes: which tokens of which sequences a step computes,
//! and in which blocks of the cache their keys and values lie. Pure: nothing here knows a clock, a device, a channel, a
//! thread or a tensor, and what happens depends on the order of the calls only.
//!
//! Built after vLLM's v1 scheduler (`vllm/v1/core/sched/scheduler.py` and `vllm/v1/core/block_pool.py`): there is no phase
//! of prompts and none of decoding. Each sequence has tokens, and so many of them were computed; a step lets the computed
//! ones catch up within a budget of tokens, which makes chunks of long prompts by itself.
//!
//! A step is `plan`, the model's pass, `apply`; or `discard` where the pass failed. One plan is out at a time, or two where a device
//! is to have its next step before anybody reads what the last one told: see [`DecodeScheduler::plan_ahead`].
//!
//! # A plan
//!
//! 1. Running sequences that lack one token get it. Where blocks run out, the sequence that is last in rank gives up its own
//!    and goes back to the waiting line with all that it wrote, to be computed again (preemption by recomputation).
//! 2. What is left of the budget goes to prompts of running sequences, in rank, in chunks; or as much of it as the caller allows, so that
//!    who writes does not wait long ([`Chunks`]).
//! 3. Then the waiting line is admitted from, as far as budget, places and blocks reach, and only by a plan that preempted
//!    nobody. All blocks of a prompt are taken at admission, and one is left for each running sequence that may still grow,
//!    so that a new one does not at once preempt or get preempted. One whose next block is just being computed by another
//!    sequence waits for it: eight answers to one prompt compute that prompt once.
//!
//! # Ranks, and why nobody starves
//!
//! The order is (urgent, priority, was preempted, arrival), in the line and among those that run, with one exception for
//! each. In the line, whoever arrived first is overtaken by at most three admissions (`line::OVERTAKES`); then nothing
//! is admitted before it. Among those that run, whoever arrived first ranks first.
//!
//! So the oldest that runs is in every plan and never preempted (it fits alone: `push` refused it otherwise), and ends.
//! While the line waits for its oldest nothing else is admitted, and those that run end one after the other, or are
//! preempted, until there is room for it. Once admitted it is the oldest that runs or behind older ones that end. By
//! induction over arrival everyone ends, whatever arrives later and however urgent it is.
//!
//! # Invariants
//!
//! - A block is in exactly one of three states, and they add up: used (held by as many sequences as its count says), cached
//!   (held by nobody, its content findable), free. Nothing is used when nothing runs.
//! - A block is findable only if it is full and all of it was computed by a step that was applied. It is found by its whole
//!   chain: the parent block and the tokens are compared, the hash only leads there.
//! - What a sequence that failed computed, and what it read that no token was ever chosen after, cannot be found: see
//!   [`DecodeScheduler::condemn`].
//! - A step writes only into blocks that one running sequence holds alone and that are not findable.
//! - A plan ahead is of the same sequences as the one before it. What it writes for one that has ended lies behind all of it that can be
//!   found, in blocks that are nobody else's before both plans are back.
//! - Whoever holds a findable block holds its parent; a cached parent is evicted after its children.
//! - A scheduler belongs to one generation, as its cache does: keys of another version cannot be found, since they were never
//!   put in.
//! - A sequence's tokens are its prompt and what was sampled for it, whatever chunks, hits, preemptions and failed steps
//!   there were. Each row of a scored prompt is wanted by exactly one applied run.
//! - No plan has more tokens than `step_tokens`, none more sequences than `sequences`; each running sequence that lacks one
//!   token is in every plan.

mod apply;
mod blocks;
mod chunks;
mod idle;
mod line;
mod plan;
mod scheduler;
mod sequence;
mod types;

pub use chunks::Chunks;
pub use scheduler::DecodeScheduler;
pub use types::{BlockId, DecodeLimits, Effect, Figures, Finish, Plan, Prompted, Refusal, Run, Sampled, Wants};

#[cfg(test)]
mod conformance;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

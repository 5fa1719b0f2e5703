//! What a model that writes makes of a text that is there already: how likely each of its tokens is.
//!
//! Passes over whole sequences, in a cache of its own that is gone afterwards, and in turns as short as is wanted: whoever writes meanwhile is not touched,
//! and nothing of it can be found by a prompt. It is how a version is judged before it writes for anybody.

use std::collections::VecDeque;
use std::sync::Arc;

use super::KvCache;
use super::decoder::{Decoder, ROWS_PER_STEP, StepInput, StepSequence, TOKENS_PER_STEP, Wants};
use super::input::Tokens;
use super::pass::{Pending, failed};
use crate::error::{Error, Result};
use crate::ops::Scored;

/// Tokens of one sequence that a step of scoring computes: each of them makes a row as wide as the vocabulary, where it is computed.
const PIECE: usize = 128;

/// Texts that are scored, and how far that has come: what a turn of it leaves stays here for the next.
///
/// Two numbers for each token of an input that is scored: the logarithm of its probability after all that stands before it, and
/// that of the likeliest token there. They are equal where the model would itself have gone on so. Scored are the tokens of type
/// 1 or, where there are none, all but the first. Inputs run side by side as far as there is room, so that a row that depended on
/// its neighbours would show.
pub struct Scoring {
    /// What was not begun.
    left: VecDeque<Tokens>,
    /// What runs side by side, in a cache of its own.
    together: Option<(Vec<Case>, KvCache)>,
    rows: Vec<Vec<f32>>,
    /// Tokens.
    computed: usize,
}

impl Scoring {
    /// Errors: [`Error::BadRequest`] for an input of fewer than two tokens, and for one that is longer than the device has room for.
    pub(super) fn new(model: &dyn Decoder, batch: &[Tokens]) -> Result<Scoring> {
        let (each, room) = (model.kv().block_tokens, model.blocks_to_score());
        if batch.iter().any(|input| input.ids.len() < 2) {
            return Err(Error::bad_request("a text of one token has nothing that could be scored"));
        }
        if let Some(input) = batch.iter().find(|input| input.ids.len().div_ceil(each) > room) {
            let (found, most) = (input.ids.len(), room * each);
            return Err(Error::bad_request(format!("a text of {found} tokens, the model scores {most} on its device")));
        }
        Ok(Scoring {
            left: batch.iter().cloned().collect(),
            together: None,
            rows: Vec::with_capacity(batch.len()),
            computed: 0,
        })
    }

    /// Computes so many tokens more, at most, and says whether that was all.
    ///
    /// Errors: whatever [`Decoder::step`] says.
    pub(super) fn go_on(&mut self, model: &mut dyn Decoder, tokens: usize) -> Result<bool> {
        if self.together.is_none() && !self.left.is_empty() {
            self.together = Some(self.begin(model)?);
        }
        if let Some((cases, cache)) = &mut self.together {
            self.computed += step(model, cases, cache, tokens.clamp(1, TOKENS_PER_STEP))?;
        }
        if let Some((cases, _)) = self.together.take_if(|(cases, _)| !cases.iter().any(Case::is_open)) {
            self.rows.extend(cases.into_iter().map(|case| case.row));
        }
        Ok(self.together.is_none() && self.left.is_empty())
    }

    /// Tokens that were computed so far.
    pub fn computed(&self) -> usize {
        self.computed
    }

    /// Those of the inputs that were not begun which fit one cache, and that.
    fn begin(&mut self, model: &dyn Decoder) -> Result<(Vec<Case>, KvCache)> {
        let (spec, room) = (model.kv(), model.blocks_to_score());
        let mut cases = Vec::new();
        let mut blocks = 0u32;
        while let Some(input) = self.left.front() {
            let needed = u32::try_from(input.ids.len().div_ceil(spec.block_tokens)).map_err(Error::internal)?;
            if blocks.saturating_add(needed) as usize > room {
                break;
            }
            let first = input.type_ids.iter().position(|kind| *kind == 1).unwrap_or(1).max(1);
            let held = Arc::new((blocks..blocks + needed).collect());
            cases.extend(self.left.pop_front().map(|input| Case {
                input,
                first,
                blocks: held,
                at: 0,
                row: Vec::new(),
            }));
            blocks += needed;
        }
        let cache = KvCache::new(&spec, blocks as usize, model.device()).map_err(failed)?;
        Ok((cases, cache))
    }

    /// Of the inputs, in their order, once they are all computed.
    pub fn into_rows(self) -> Vec<Vec<f32>> {
        self.rows
    }
}

/// Scores a batch at once.
///
/// Errors: as [`Scoring`]'s.
pub(super) fn score(model: &mut dyn Decoder, batch: &[Tokens]) -> Result<Pending> {
    let mut scoring = Scoring::new(model, batch)?;
    while !scoring.go_on(model, TOKENS_PER_STEP)? {}
    // Rows of different lengths are no matrix.
    Pending::of_rows(scoring.into_rows())
}

struct Case {
    input: Tokens,
    /// The first token that is scored.
    first: usize,
    blocks: Arc<Vec<u32>>,
    /// Tokens that were computed.
    at: usize,
    row: Vec<f32>,
}

impl Case {
    /// What the last token would be followed by is of no use.
    fn is_open(&self) -> bool {
        self.at + 1 < self.input.ids.len()
    }

    /// What comes next of it, if there is room for so many tokens and rows.
    fn next(&self, tokens: usize, rows: usize) -> Option<StepSequence> {
        let left = self.input.ids.len() - 1 - self.at;
        // Up to where rows begin to be wanted, none are.
        let is_scored = self.first - 1 <= self.at;
        let most = if is_scored { left.min(rows) } else { self.first - 1 - self.at };
        let count = left.min(most).min(tokens).min(PIECE);
        let wants = match self.input.ids.get(self.at + count) {
            Some(next) if is_scored => Wants::Scored { next: *next },
            _ => Wants::Nothing,
        };
        let tokens = self.input.ids[self.at..self.at + count].to_vec();
        (count > 0).then(|| StepSequence { tokens, from: self.at, blocks: self.blocks.clone(), wants })
    }

    fn take(&mut self, sequence: &StepSequence, rows: &mut impl Iterator<Item = Scored>) {
        self.row.extend(rows.take(sequence.wants.rows(sequence.tokens.len())).flat_map(|row| row.logarithms()));
        self.at += sequence.tokens.len();
    }
}

/// How many tokens that were.
fn step(model: &mut dyn Decoder, cases: &mut [Case], cache: &mut KvCache, mut tokens: usize) -> Result<usize> {
    let most = tokens;
    let mut rows = ROWS_PER_STEP;
    let (mut sequences, mut whose) = (Vec::new(), Vec::new());
    for (at, case) in cases.iter().enumerate().filter(|(_, case)| case.is_open()) {
        let Some(sequence) = case.next(tokens, rows) else { continue };
        tokens -= sequence.tokens.len();
        rows -= sequence.wants.rows(sequence.tokens.len());
        sequences.push(sequence);
        whose.push(at);
    }
    let input = StepInput { sequences };
    let logits = model.step(&input, cache)?;
    let mut rows = logits.scored().iter().copied();
    for (at, sequence) in whose.into_iter().zip(&input.sequences) {
        cases[at].take(sequence, &mut rows);
    }
    Ok(most - tokens)
}

//! What chats and completions ask for alike, and how it becomes an order to write.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;

use crate::error::{Error, Result};
use crate::http::App;
use crate::http::reply::{Dialect, Failure};
use crate::process::{RawPrompt, SamplingOptions, Writer};
use crate::slot::{Answers, WriteAsk};
use crate::value::Task;

/// Answers of one request.
const MOST_ANSWERS: usize = 128;

/// How an answer is drawn and where it ends. Fields of OpenAI's that are not here are taken and have no effect.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
pub(in crate::http) struct Shape {
    /// Tokens to write at most.
    #[schema(minimum = 1)]
    max_tokens: Option<i64>,
    /// The newer name of the same.
    #[schema(minimum = 1)]
    max_completion_tokens: Option<i64>,
    /// 0 always takes the likeliest token.
    #[schema(minimum = 0, maximum = 2)]
    temperature: Option<f32>,
    #[schema(minimum = 0, maximum = 1)]
    top_p: Option<f32>,
    /// Not OpenAI's; 0 or -1 is no limit.
    top_k: Option<i64>,
    /// Not OpenAI's.
    #[schema(minimum = 0, maximum = 1)]
    min_p: Option<f32>,
    #[schema(minimum = -2, maximum = 2)]
    presence_penalty: Option<f32>,
    #[schema(minimum = -2, maximum = 2)]
    frequency_penalty: Option<f32>,
    /// Not OpenAI's; 1 is none.
    repetition_penalty: Option<f32>,
    /// By token id.
    #[schema(value_type = Option<Object>)]
    logit_bias: Option<HashMap<String, f32>>,
    /// The same seed, prompt and version give the same answer.
    seed: Option<i64>,
    /// How many answers.
    #[schema(minimum = 1)]
    n: Option<i64>,
    #[schema(schema_with = crate::http::openapi::openai_stop)]
    stop: Option<Stop>,
    /// Not OpenAI's: go on beyond tokens that would end the answer.
    #[serde(default)]
    ignore_eos: bool,
    /// Not OpenAI's: lower goes first, as vLLM has it.
    #[serde(default)]
    priority: i32,
    #[serde(default)]
    pub(super) stream: Option<bool>,
    #[schema(inline)]
    pub(super) stream_options: Option<StreamOptions>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(untagged, expecting = "stop is a string or a list of strings")]
enum Stop {
    One(String),
    Several(Vec<String>),
}

#[derive(Debug, Clone, Copy, Default, Deserialize, ToSchema)]
pub(super) struct StreamOptions {
    /// A last chunk tells what was used.
    #[serde(default)]
    pub(super) include_usage: bool,
}

impl Shape {
    pub(super) fn streams(&self) -> bool {
        self.stream.unwrap_or(false)
    }

    /// How many are asked for.
    pub(super) fn answers(&self) -> i64 {
        self.n.unwrap_or(1)
    }

    pub(super) fn tells_usage(&self) -> bool {
        self.stream_options.is_some_and(|options| options.include_usage)
    }

    /// `default_most`: tokens, where nothing is said. `logprobs`: how many alternatives of each token are told.
    pub(super) fn ask(
        &self,
        writer: &Writer,
        prompt: RawPrompt,
        (default_most, logprobs): (Option<usize>, Option<usize>),
    ) -> Result<WriteAsk> {
        let count = whole("n", self.answers(), 1)?;
        if count > MOST_ANSWERS {
            return Err(Error::bad_param("n", format!("n is {count}; at most {MOST_ANSWERS} are possible")));
        }
        let most = match (self.max_completion_tokens, self.max_tokens) {
            (Some(most), _) => Some(whole("max_completion_tokens", most, 1)?),
            (None, Some(most)) => Some(whole("max_tokens", most, 1)?),
            (None, None) => default_most,
        };
        let stop = match self.stop.clone() {
            None => Vec::new(),
            Some(Stop::One(stop)) => vec![stop],
            Some(Stop::Several(stops)) => stops,
        };
        let sampling = self.sampling(writer.defaults(), logprobs)?;
        sampling.validate(writer.vocabulary())?;
        // Lower goes first there, higher here.
        let priority = self.priority.saturating_neg();
        Ok(WriteAsk {
            prompt,
            count,
            max_new: most,
            sampling,
            stop,
            ignore_ends: self.ignore_eos,
            priority,
            deadline: None,
        })
    }

    /// What the version's own settings say, where the request says nothing.
    fn sampling(&self, defaults: &SamplingOptions, logprobs: Option<usize>) -> Result<SamplingOptions> {
        let mut options = defaults.clone();
        options.temperature = self.temperature.unwrap_or(options.temperature);
        options.top_p = self.top_p.unwrap_or(options.top_p);
        options.min_p = self.min_p.unwrap_or(options.min_p);
        options.presence_penalty = self.presence_penalty.unwrap_or(options.presence_penalty);
        options.frequency_penalty = self.frequency_penalty.unwrap_or(options.frequency_penalty);
        options.repetition_penalty = self.repetition_penalty.unwrap_or(options.repetition_penalty);
        options.top_k = self.top_k.unwrap_or(options.top_k);
        options.seed = self.seed.map_or_else(rand::random, |seed| seed as u64);
        options.logprobs = logprobs;
        options.logit_bias = self.logit_bias.iter().flatten().map(bias).collect::<Result<_>>()?;
        Ok(options)
    }
}

fn bias((id, value): (&String, &f32)) -> Result<(u32, f32)> {
    let wrong = |_| Error::bad_param("logit_bias", format!("logit_bias has {id:?} for a token id"));
    Ok((id.parse().map_err(wrong)?, *value))
}

fn whole(name: &'static str, value: i64, least: usize) -> Result<usize> {
    match usize::try_from(value) {
        Ok(value) if value >= least => Ok(value),
        _ => Err(Error::bad_param(name, format!("{name} is {value}; {least} or more is possible"))),
    }
}

/// Refuses what a client would miss if it had no effect.
pub(super) fn refuse(field: &'static str, value: &Option<Value>) -> Result<()> {
    match value {
        None | Some(Value::Null) => Ok(()),
        Some(_) => Err(Error::bad_param(field, format!("{field} is not supported"))),
    }
}

/// Admits, and begins to write. Of a request that was refused nobody need know more than why.
pub(super) fn begin(
    app: &App,
    (reference, body_bytes): (&str, usize),
    ask: impl FnOnce(&Writer) -> Result<WriteAsk>,
) -> Result<Answers, Box<Failure>> {
    let plain = |error| Box::new(Failure::new(Dialect::OpenAi, error));
    let target = app.registry.resolve(reference).map_err(plain)?;
    super::does(Task::Generate, "write text")(&target).map_err(plain)?;
    let admission = target.slot.admit(target.version.as_deref()).map_err(plain)?;
    let generation = admission.generation();
    let stamp = generation.stamp.clone();
    let stamped = |error| Box::new(Failure { error, dialect: Dialect::OpenAi, stamp: Some(stamp.clone()) });
    let limit = generation.limits.max_body_bytes;
    if body_bytes as u64 > limit {
        return Err(stamped(Error::TooLarge { what: "request body in bytes", got: body_bytes as u64, limit }));
    }
    let ask = generation.processor.writer().and_then(ask).map_err(stamped)?;
    admission.write(ask).map_err(stamped)
}

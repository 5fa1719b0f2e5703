//! What chats and completions ask for alike, and how it becomes an order to write.

use std::time::Duration;

use serde::Deserialize;
use utoipa::ToSchema;

use super::fields::{Biases, Stop};
use super::others::{Others, unsupported};
use crate::error::{Error, Result};
use crate::http::App;
use crate::http::body::Object;
use crate::http::received::Received;
use crate::http::reply::{Dialect, Failure};
use crate::http::request::no_larger;
use crate::process::{RawPrompt, SamplingOptions, Writer};
use crate::slot::{Answers, Most, WriteAsk};
use crate::value::Task;

/// Answers of one request.
const MOST_ANSWERS: usize = 128;

/// How an answer is drawn and where it ends. Fields that would be missed if they had no effect are refused by name; others that are not
/// here are taken and have none.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
pub(in crate::http) struct Shape {
    /// Tokens to write at most.
    #[schema(minimum = 1)]
    pub(in crate::http) max_tokens: Option<i64>,
    /// The newer name of the same.
    #[schema(minimum = 1)]
    pub(in crate::http) max_completion_tokens: Option<i64>,
    /// 0 always takes the likeliest token.
    #[schema(minimum = 0, maximum = 2)]
    pub(in crate::http) temperature: Option<f32>,
    #[schema(minimum = 0, maximum = 1)]
    pub(in crate::http) top_p: Option<f32>,
    /// Not OpenAI's; 0 or -1 is no limit.
    pub(in crate::http) top_k: Option<i64>,
    /// Not OpenAI's.
    #[schema(minimum = 0, maximum = 1)]
    pub(in crate::http) min_p: Option<f32>,
    #[schema(minimum = -2, maximum = 2)]
    pub(in crate::http) presence_penalty: Option<f32>,
    #[schema(minimum = -2, maximum = 2)]
    pub(in crate::http) frequency_penalty: Option<f32>,
    /// Not OpenAI's; 1 is none.
    pub(in crate::http) repetition_penalty: Option<f32>,
    /// By token id, of at most 1024.
    #[schema(value_type = Option<Object>)]
    pub(in crate::http) logit_bias: Option<Biases>,
    /// The same seed, prompt and version give the same answer; -1 is none.
    pub(in crate::http) seed: Option<i64>,
    /// How many answers.
    #[schema(minimum = 1)]
    pub(in crate::http) n: Option<i64>,
    #[schema(schema_with = crate::http::openapi::openai_stop)]
    pub(in crate::http) stop: Option<Stop>,
    /// Not OpenAI's: go on beyond tokens that would end the answer.
    pub(in crate::http) ignore_eos: Option<bool>,
    /// Not OpenAI's: lower goes first, as vLLM has it.
    pub(in crate::http) priority: Option<i32>,
    /// Not OpenAI's: milliseconds that the whole answer may take.
    #[schema(schema_with = crate::http::openapi::deadline)]
    pub(in crate::http) deadline_ms: Option<u64>,
    #[serde(default)]
    pub(in crate::http) stream: Option<bool>,
    #[schema(inline)]
    pub(in crate::http) stream_options: Option<StreamOptions>,
    /// Only text.
    #[schema(value_type = Option<Object>)]
    pub(in crate::http) response_format: Option<ResponseFormat>,
    /// What else was sent.
    #[serde(skip)]
    pub(in crate::http) others: Others,
}

/// How an answer is to be formed.
#[derive(Debug, Clone, Deserialize)]
pub(in crate::http) struct ResponseFormat {
    #[serde(rename = "type")]
    kind: Option<String>,
}

#[derive(Debug, Clone, Copy, Default, Deserialize, ToSchema)]
pub(in crate::http) struct StreamOptions {
    /// A last chunk tells what was used.
    pub(in crate::http) include_usage: Option<bool>,
    /// Not supported: every chunk would tell it.
    #[schema(ignore)]
    pub(in crate::http) continuous_usage_stats: Option<bool>,
}

/// What a route has of its own.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::http) struct Rules {
    /// Tokens to write at most where nothing is said; what the context leaves when this says nothing either.
    pub(in crate::http) default_most: Option<usize>,
    /// Nothing may be asked to be written.
    pub(in crate::http) may_be_none: bool,
    /// How many alternatives of each token are told.
    pub(in crate::http) logprobs: Option<usize>,
}

impl Shape {
    /// What a request says of it, among what else it says.
    pub(super) fn of(request: &Object) -> Result<Shape> {
        Ok(Shape { others: request.read()?, ..request.read()? })
    }

    pub(super) fn streams(&self) -> bool {
        self.stream.unwrap_or(false)
    }

    /// How many are asked for.
    pub(super) fn answers(&self) -> i64 {
        self.n.unwrap_or(1)
    }

    pub(super) fn tells_usage(&self) -> bool {
        self.stream_options.and_then(|options| options.include_usage).unwrap_or(false)
    }

    pub(in crate::http) fn ask(self, writer: &Writer, prompts: Vec<RawPrompt>, rules: Rules) -> Result<WriteAsk> {
        self.refuse_others()?;
        let count = whole("n", self.answers(), 1)?;
        if count > MOST_ANSWERS {
            return Err(Error::bad_param("n", format!("n is {count}; at most {MOST_ANSWERS} are possible")));
        }
        let least = usize::from(!rules.may_be_none);
        let most = match (self.max_completion_tokens, self.max_tokens) {
            (Some(most), _) => Some(("max_completion_tokens", most)),
            (None, most) => most.map(|most| ("max_tokens", most)),
        };
        let most =
            most.map(|(field, most)| whole(field, most, least).map(|tokens| Most { tokens, field })).transpose()?;
        let sampling = self.sampling(writer.defaults(), rules.logprobs)?;
        sampling.validate(writer.vocabulary())?;
        // Lower goes first there, higher here.
        let priority = self.priority.unwrap_or(0).saturating_neg();
        Ok(WriteAsk {
            prompts,
            count,
            max_new: most,
            usual_new: rules.default_most,
            sampling,
            stop: self.stop.map_or_else(Vec::new, |Stop(stops)| stops),
            calls: None,
            ignore_ends: self.ignore_eos.unwrap_or(false),
            priority,
            deadline: self.deadline_ms.map(Duration::from_millis),
        })
    }

    fn refuse_others(&self) -> Result<()> {
        self.others.refuse()?;
        if self.response_format.as_ref().is_some_and(|format| format.kind.as_deref() != Some("text")) {
            return Err(unsupported("response_format"));
        }
        match self.stream_options.and_then(|options| options.continuous_usage_stats) {
            Some(true) => {
                let message =
                    "stream_options.continuous_usage_stats is not supported; the last chunk tells what was used";
                Err(Error::bad_param("stream_options", message))
            }
            _ => Ok(()),
        }
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
        // Of vLLM and llama.cpp: no seed.
        options.seed = self.seed.filter(|seed| *seed != -1).map_or_else(rand::random, |seed| seed as u64);
        options.logprobs = logprobs;
        options.logit_bias = self.logit_bias.as_ref().map(Biases::by_token).transpose()?.unwrap_or_default();
        Ok(options)
    }
}

fn whole(name: &'static str, value: i64, least: usize) -> Result<usize> {
    match usize::try_from(value) {
        Ok(value) if value >= least => Ok(value),
        _ => Err(Error::bad_param(name, format!("{name} is {value}; {least} or more is possible"))),
    }
}

/// Admits, and begins to write. Of a request that was refused nobody need know more than why.
pub(in crate::http) async fn begin(
    app: &App,
    dialect: Dialect,
    (reference, received): (&str, Received),
    ask: impl FnOnce(&Writer) -> Result<WriteAsk>,
) -> Result<Answers, Box<Failure>> {
    let plain = |error| Box::new(Failure::new(dialect, error));
    let target = app.registry.resolve(reference).map_err(plain)?;
    super::does(Task::Generate, "write text")(&target).map_err(plain)?;
    let admission = target.slot.admit(target.version.as_deref(), Some(&received)).map_err(plain)?;
    let generation = admission.generation();
    let stamp = generation.stamp.clone();
    let stamped = |error| Box::new(Failure { error, dialect, stamp: Some(stamp.clone()) });
    no_larger(received.body.len(), generation).map_err(stamped)?;
    drop(received);
    let ask = generation.processor.writer().and_then(ask).map_err(stamped)?;
    admission.write(ask).await.map_err(stamped)
}

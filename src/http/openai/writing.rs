//! What chats and completions ask for alike, and how it becomes an order to write.

use std::collections::HashMap;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::error::{Error, Result};
use crate::http::App;
use crate::http::received::Received;
use crate::http::reply::{Dialect, Failure};
use crate::process::{RawPrompt, SamplingOptions, Writer};
use crate::slot::{Answers, WriteAsk};
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
    /// By token id.
    #[schema(value_type = Option<Object>)]
    pub(in crate::http) logit_bias: Option<HashMap<String, f32>>,
    /// The same seed, prompt and version give the same answer.
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
    /// What else was sent.
    #[serde(flatten)]
    #[schema(ignore)]
    pub(in crate::http) others: Map<String, Value>,
}

/// What clients of OpenAI's and of other servers would miss if it had no effect. Any other field is taken and has none.
const UNSUPPORTED: [&str; 32] = [
    "allowed_token_ids",
    "audio",
    "bad_words",
    "chat_template",
    "documents",
    "dry_multiplier",
    "echo",
    "format",
    "function_call",
    "functions",
    "grammar",
    "guided_choice",
    "guided_grammar",
    "guided_json",
    "guided_regex",
    "include_stop_str_in_output",
    "json_schema",
    "logits_processors",
    "min_tokens",
    "mirostat",
    "prediction",
    "prompt_logprobs",
    "return_token_ids",
    "return_tokens_as_token_ids",
    "stop_token_ids",
    "structured_outputs",
    "thinking_token_budget",
    "truncate_prompt_tokens",
    "typical_p",
    "use_beam_search",
    "web_search_options",
    "xtc_probability",
];

/// What other servers call what is called otherwise here.
const OTHER_NAMES: [(&str, &str); 8] = [
    ("max_length", "max_tokens"),
    ("max_new_tokens", "max_tokens"),
    ("n_predict", "max_tokens"),
    ("n_probs", "logprobs"),
    ("num_predict", "max_tokens"),
    ("options", "its fields by themselves"),
    ("repeat_penalty", "repetition_penalty"),
    ("stop_sequences", "stop"),
];

#[derive(Debug, Clone, Deserialize)]
#[serde(untagged, expecting = "expected a string or a list of strings")]
pub(in crate::http) enum Stop {
    One(String),
    Several(Vec<String>),
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

    pub(in crate::http) fn ask(&self, writer: &Writer, prompts: Vec<RawPrompt>, rules: Rules) -> Result<WriteAsk> {
        self.refuse_others()?;
        let count = whole("n", self.answers(), 1)?;
        if count > MOST_ANSWERS {
            return Err(Error::bad_param("n", format!("n is {count}; at most {MOST_ANSWERS} are possible")));
        }
        let least = usize::from(!rules.may_be_none);
        let most = match (self.max_completion_tokens, self.max_tokens) {
            (Some(most), _) => Some(whole("max_completion_tokens", most, least)?),
            (None, Some(most)) => Some(whole("max_tokens", most, least)?),
            (None, None) => None,
        };
        let stop = match self.stop.clone() {
            None => Vec::new(),
            Some(Stop::One(stop)) => vec![stop],
            Some(Stop::Several(stops)) => stops,
        };
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
            stop,
            calls: None,
            ignore_ends: self.ignore_eos.unwrap_or(false),
            priority,
            deadline: self.deadline_ms.map(Duration::from_millis),
        })
    }

    fn refuse_others(&self) -> Result<()> {
        // An empty schema asks for JSON, too.
        let is_schema = |field: &str, value: &Value| field.ends_with("json") && value.is_object();
        for field in UNSUPPORTED {
            let asked = self.others.get(field).filter(|value| asks(value) || is_schema(field, value));
            refuse(field, &asked.cloned())?;
        }
        for (field, here) in OTHER_NAMES {
            if self.others.get(field).is_some_and(asks) {
                return Err(Error::bad_param(field, format!("{field} means nothing here; what is known is {here}")));
            }
        }
        if self.others.get("skip_special_tokens") == Some(&Value::Bool(false)) {
            let message = "skip_special_tokens is always true: special tokens are never in what is written";
            return Err(Error::bad_param("skip_special_tokens", message));
        }
        if self.stream_options.is_some_and(|options| options.continuous_usage_stats == Some(true)) {
            let message = "stream_options.continuous_usage_stats is not supported; the last chunk tells what was used";
            return Err(Error::bad_param("stream_options", message));
        }
        let text = |wanted: &Value| wanted.as_array().is_some_and(|all| all.iter().all(|one| one == "text"));
        refuse("modalities", &self.others.get("modalities").filter(|wanted| !text(wanted)).cloned())
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

/// Whether a value asks for anything: clients send what they have no wish for as well.
fn asks(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::Array(all) => !all.is_empty(),
        Value::Object(all) => !all.is_empty(),
        // Of a call: that none is made, or that the model may choose where there are none.
        Value::String(word) => !matches!(word.as_str(), "" | "none" | "auto"),
        Value::Bool(true) => true,
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
    let limit = generation.limits.max_body_bytes;
    let got = received.body.len() as u64;
    drop(received);
    if got > limit {
        return Err(stamped(Error::TooLarge { what: "request body in bytes", got, limit }));
    }
    let ask = generation.processor.writer().and_then(ask).map_err(stamped)?;
    admission.write(ask).await.map_err(stamped)
}

//! `model.toml`: what an operator says about a model, and what holds when they say nothing.
//!
//! It knows the file's keys, their defaults and their ranges, and names the key that is wrong. It
//! must not know what the values are used for.

use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use toml::de::DeTable;

use super::fields::{
    at_least_one, at_least_one_byte, at_least_one_byte_usize, at_least_one_u64, longer_than_zero, one_of, positive,
    positive_f32, share, some_at_least_one, some_positive, some_text, some_version,
};
use super::rules::{Metric, RuleConfig};
use super::toml_keys::key_at;
use super::{CanaryConfig, LoadThrottle, ShadowConfig, duration, files, size};
use crate::error::{Error, Result};
use crate::value::Task;

/// A larger `model.toml` is a mistake, not a configuration.
const MAX_BYTES: u64 = 1 << 20;

/// One model's `model.toml`. Every section may be left out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    #[serde(deserialize_with = "one_of")]
    pub task: Task,
    /// The architecture; `model_type` of a version's `config.json` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "some_text")]
    pub family: Option<String>,
    /// The version that seeds an empty ledger.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "some_version")]
    pub live: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    #[serde(default)]
    pub limits: Limits,
    #[serde(default)]
    pub gate: GateConfig,
    #[serde(default)]
    pub observe: ObserveConfig,
    #[serde(default)]
    pub canary: CanaryConfig,
    #[serde(default)]
    pub shadow: ShadowConfig,
    #[serde(default)]
    pub batch: BatchConfig,
    #[serde(default)]
    pub rollout: RolloutConfig,
    #[serde(default)]
    pub gpu: GpuConfig,
    #[serde(default)]
    pub generate: GenerateConfig,
}

/// What one request may ask for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Inputs in one request.
    #[serde(deserialize_with = "at_least_one")]
    pub max_inputs: usize,
    /// Tokens of one input; may only lower what the model itself takes.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "some_at_least_one")]
    pub max_tokens: Option<usize>,
    /// Bytes of one text. Tokenizing takes time in proportion, however little of it the model can take.
    #[serde(deserialize_with = "at_least_one_byte_usize")]
    pub max_text_bytes: usize,
    #[serde(deserialize_with = "at_least_one_byte")]
    pub max_body_bytes: u64,
    /// Inputs waiting for the engine, or answers that are being written.
    #[serde(deserialize_with = "at_least_one")]
    pub queue: usize,
    /// Of a request, or of its first token where a model writes.
    #[serde(serialize_with = "duration::serialize", deserialize_with = "longer_than_zero")]
    pub deadline: Duration,
    /// Pixels of one image, judged from its header before it is decoded.
    #[serde(deserialize_with = "at_least_one_u64")]
    pub max_image_pixels: u64,
}

/// What a candidate must pass before it may serve.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GateConfig {
    /// Share of the golden cases that must pass, 0 to 1.
    #[serde(deserialize_with = "share")]
    pub min_pass: f64,
    /// The candidate's latency over the live version's.
    #[serde(deserialize_with = "positive")]
    pub max_latency_ratio: f64,
    /// The same of one token after a prompt, of models that write; as above where nothing is said.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "some_positive")]
    pub max_token_latency_ratio: Option<f64>,
    /// How far the logarithms of golden texts' tokens may lie from the live version's on average, of models that write.
    #[serde(deserialize_with = "positive")]
    pub max_logprob_gap: f64,
    /// The perplexity of all golden texts together over the live version's, of models that write.
    #[serde(deserialize_with = "positive")]
    pub max_perplexity_ratio: f64,
    /// Which share of what the live version would itself write of a golden text the candidate must, 0 to 1.
    #[serde(deserialize_with = "share")]
    pub min_greedy_agreement: f64,
    /// Rounds of a few forward passes of each version, at most: they end when they agree.
    #[serde(deserialize_with = "at_least_one")]
    pub latency_rounds: usize,
    /// One golden case.
    #[serde(serialize_with = "duration::serialize", deserialize_with = "longer_than_zero")]
    pub case_timeout: Duration,
    /// How far an output may move with the batch it is in, relative to the output's scale.
    #[serde(deserialize_with = "positive_f32")]
    pub invariance_max_abs: f32,
    /// All correctness cases together, on the probation thread.
    #[serde(serialize_with = "duration::serialize", deserialize_with = "longer_than_zero")]
    pub probation_timeout: Duration,
}

/// The rules of the observation window.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ObserveConfig {
    /// Zero settles at once.
    #[serde(with = "duration")]
    pub window: Duration,
    /// Below this many requests the rates are not judged.
    #[serde(deserialize_with = "size::whole")]
    pub min_requests: u64,
    /// A rate of faults that is shown to be above this is a breach.
    #[serde(deserialize_with = "share")]
    pub max_error_rate: f64,
    /// More answers of NaN than this are one.
    #[serde(deserialize_with = "size::whole")]
    pub max_nonfinite: u64,
    /// And a p99 that is shown to be above so many times the previous version's.
    #[serde(deserialize_with = "positive")]
    pub max_p99_ratio: f64,
    /// The same of the median; as above where nothing is said.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "some_positive")]
    pub max_p50_ratio: Option<f64>,
    /// How often the golden cases are run again.
    #[serde(serialize_with = "duration::serialize", deserialize_with = "longer_than_zero")]
    pub golden_every: Duration,
    /// How long reclaim waits for requests that are still on the previous version.
    #[serde(with = "duration")]
    pub drain_timeout: Duration,
    /// And what is done about texts that are still being written on it then.
    #[serde(deserialize_with = "one_of")]
    pub on_drain_timeout: OnDrainTimeout,
    /// Rules written out, beside those of the keys above.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rule: Vec<RuleConfig>,
}

/// What becomes of what a version still writes when it has to go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnDrainTimeout {
    /// It is written to its end.
    #[default]
    Wait,
    /// It ends where it is, as at its greatest length.
    Length,
}

/// How inputs are put together; what is absent is chosen by the server.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BatchConfig {
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "some_at_least_one")]
    pub max_tokens: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "some_at_least_one")]
    pub max_items: Option<usize>,
    /// How long an idle engine waits for company; zero, the default, never waits.
    #[serde(with = "duration")]
    pub max_wait: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RolloutConfig {
    #[serde(deserialize_with = "one_of")]
    pub mode: Mode,
    /// A load that reads nothing for this long hangs, and is abandoned.
    #[serde(serialize_with = "duration::serialize", deserialize_with = "longer_than_zero")]
    pub load_timeout: Duration,
    /// How fast it may be read beside live traffic.
    pub throttle: LoadThrottle,
    /// Whether weights go past the page cache on their way to a GPU. On a CPU this means nothing.
    pub direct_reads: bool,
    /// Where the version that was live before is kept once its memory on the device is given back.
    #[serde(deserialize_with = "one_of")]
    pub park: Park,
}

/// Where a version waits that is not on the device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Park {
    /// On disk alone.
    #[default]
    None,
    /// In pinned host memory too, from where it comes back to a GPU without being read. On a CPU this means nothing.
    Host,
}

/// How a model writes text.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GenerateConfig {
    /// Tokens whose keys and values are kept, of all sequences together; the server's choice where it is absent.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "some_at_least_one")]
    pub cache_tokens: Option<usize>,
}

/// How a GPU computes; on a CPU this means nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GpuConfig {
    #[serde(deserialize_with = "one_of")]
    pub f32_matmul: F32Matmul,
}

/// What numbers are multiplied as in matrix products of f32. Weights in f16 or bf16 are multiplied as they are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum F32Matmul {
    /// As they are.
    #[default]
    F32,
    /// By tensor cores, rounded to ten bits after the first; sums stay f32.
    Tf32,
}

impl F32Matmul {
    pub fn name(self) -> &'static str {
        match self {
            F32Matmul::F32 => "f32",
            F32Matmul::Tf32 => "tf32",
        }
    }
}

/// Where the candidate is loaded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Beside the live version, which goes on serving.
    #[default]
    Beside,
    /// In its place, after it was drained: for models of which two do not fit.
    Replace,
}

/// The deadline of a request, where it is not said.
const REQUEST: Duration = Duration::from_secs(30);

/// The deadline of the first token, where it is not said: a prompt as long as a context of 8,192 tokens takes a CPU more than
/// half a minute, and nobody is served by an end just before the answer begins.
const FIRST_TOKEN: Duration = Duration::from_secs(5 * 60);

/// Inputs that may wait, where it is not said. One that waits is held as pixels, or is written for meanwhile.
const QUEUE: usize = 1024;
/// Where it is a text: several requests of as many inputs as one may have.
const QUEUE_OF_TEXTS: usize = 8192;

impl Limits {
    /// What holds where nothing is said.
    fn of(task: Task) -> Self {
        let (queue, deadline) = match task {
            Task::Embed | Task::Classify | Task::Rerank => (QUEUE_OF_TEXTS, REQUEST),
            Task::ImageClassify => (QUEUE, REQUEST),
            Task::Generate => (QUEUE, FIRST_TOKEN),
        };
        Limits { queue, deadline, ..Limits::default() }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            max_inputs: 2048,
            max_tokens: None,
            max_text_bytes: 256 << 10,
            max_body_bytes: 32 << 20,
            queue: QUEUE,
            deadline: REQUEST,
            max_image_pixels: 50_000_000,
        }
    }
}

impl Default for RolloutConfig {
    fn default() -> Self {
        let (mode, load_timeout) = (Mode::Beside, Duration::from_secs(60));
        RolloutConfig { mode, load_timeout, throttle: LoadThrottle::Auto, direct_reads: false, park: Park::None }
    }
}

impl Default for GateConfig {
    fn default() -> Self {
        GateConfig {
            min_pass: 1.0,
            max_latency_ratio: 1.5,
            latency_rounds: 12,
            case_timeout: Duration::from_secs(30),
            invariance_max_abs: 1e-4,
            max_token_latency_ratio: None,
            max_logprob_gap: 1.0,
            max_perplexity_ratio: 1.5,
            min_greedy_agreement: 0.0,
            probation_timeout: Duration::from_secs(120),
        }
    }
}

impl Default for ObserveConfig {
    fn default() -> Self {
        ObserveConfig {
            window: Duration::from_secs(5 * 60),
            min_requests: 20,
            // Of 400 requests with 2 % faults, 96 times of 100, as many prove this as are needed (`rollout::judge`).
            max_error_rate: 0.0005,
            max_nonfinite: 0,
            // Far enough below 1.5 that this is proven by 2,000 requests.
            max_p99_ratio: 1.2,
            max_p50_ratio: None,
            golden_every: Duration::from_secs(30),
            drain_timeout: Duration::from_secs(60),
            on_drain_timeout: OnDrainTimeout::Wait,
            rule: Vec::new(),
        }
    }
}

impl ModelConfig {
    /// What a `model.toml` with nothing but a task says.
    pub fn new(task: Task) -> Self {
        ModelConfig {
            task,
            family: None,
            live: None,
            description: None,
            limits: Limits::of(task),
            gate: GateConfig::default(),
            observe: ObserveConfig::default(),
            canary: CanaryConfig::default(),
            shadow: ShadowConfig::default(),
            batch: BatchConfig::default(),
            rollout: RolloutConfig::default(),
            gpu: GpuConfig::default(),
            generate: GenerateConfig::default(),
        }
    }

    /// Reads the file at `path`; `label` is what errors call it (`minilm/model.toml`).
    ///
    /// Errors: [`Error::Config`] with the file, the dotted key and what was expected.
    pub fn read(path: &Path, label: &str) -> Result<Self> {
        let refused = |reason: String| config_error(label, "(file)", reason);
        let text = files::read_text(path, MAX_BYTES).map_err(refused)?;
        Self::parse(&text.ok_or_else(|| refused("is missing".to_owned()))?, label)
    }

    /// As [`ModelConfig::read`], from text.
    pub fn parse(text: &str, label: &str) -> Result<Self> {
        let table = DeTable::parse(text).map_err(|e| {
            let line = e.span().map_or(1, |span| line_of(text, span.start));
            config_error(label, &format!("(line {line})"), format!("not valid TOML: {}", one_line(e.message())))
        })?;
        if !table.get_ref().contains_key("task") {
            let tasks = "one of embed, classify, rerank, generate, image-classify";
            return Err(config_error(label, "task", format!("is missing, expected {tasks}")));
        }
        let mut config: ModelConfig = toml::from_str(text).map_err(|e| {
            let span = e.span().unwrap_or(0..0);
            let key = key_at(table.get_ref(), span.start).unwrap_or_else(|| "(file)".to_owned());
            let line = line_of(text, span.start);
            config_error(label, &key, format!("{} (line {line})", one_line(e.message())))
        })?;
        let limits = table.get_ref().get("limits").and_then(|limits| limits.get_ref().as_table());
        let says = |key: &str| limits.is_some_and(|limits| limits.contains_key(key));
        let usual = Limits::of(config.task);
        if !says("deadline") {
            config.limits.deadline = usual.deadline;
        }
        if !says("queue") {
            config.limits.queue = usual.queue;
        }
        config.observe.check().map_err(|(key, reason)| config_error(label, &key, reason))?;
        config.check_mode().map_err(|(key, reason)| config_error(label, key, reason))?;
        Ok(config)
    }

    /// What takes two versions beside each other cannot be had where one replaces the other.
    fn check_mode(&self) -> Result<(), (&'static str, String)> {
        let refused = |key, expected| {
            Err((key, format!("{expected} with [rollout] mode = \"replace\": there is one version at a time")))
        };
        match self.rollout.mode {
            Mode::Replace if !self.canary.steps.is_empty() => refused("canary.steps", "expected none"),
            Mode::Replace if self.shadow.share > 0.0 => refused("shadow.share", "expected 0"),
            Mode::Replace | Mode::Beside => Ok(()),
        }
    }

    /// Whether some rule is about what a shadow sees.
    pub fn judges_agreement(&self) -> bool {
        let rules = self.observe.rules();
        self.shadow.min_agreement.is_some() || rules.iter().any(|rule| rule.metric == Metric::ShadowAgreement)
    }
}

fn config_error(file: &str, key: &str, reason: String) -> Error {
    Error::Config { file: file.to_owned(), key: key.to_owned(), reason }
}

fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn line_of(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|b| *b == b'\n').count()
}

#[cfg(test)]
#[path = "model_toml_tests.rs"]
mod tests;

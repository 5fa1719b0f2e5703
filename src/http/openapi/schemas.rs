//! Every body: requests by the types that read them, answers by the mirrors here of what other rooms write.
//!
//! Mirrors, so that those rooms need not know of this document; the tests hold them against real answers, where a field
//! too many or too few fails.
#![expect(dead_code, reason = "mirrors are described, never made")]

pub(super) mod inputs;
mod memory;
pub(super) mod oip;
mod rollouts;
mod sharing;
mod tei;
mod writing;

use serde_json::Value;
use utoipa::openapi::schema::ArrayBuilder;
use utoipa::openapi::{ComponentsBuilder, RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use crate::http::oip::repository::{IndexOrder, RepositoryOrder};
use crate::http::{admin, experiments, native, openai, tei as asked};
use rollouts::{Begun, Comparison, Event, Outcome, Released, Rollout, Rollouts, StageOrder, Staged, TestedAlerts};

pub(super) fn components() -> ComponentsBuilder {
    let mut all = Vec::new();
    add::<native::InferRequest>(&mut all);
    add::<InferResponse>(&mut all);
    add::<openai::EmbeddingsRequest>(&mut all);
    add::<Embeddings>(&mut all);
    add_flat::<openai::ChatRequest, openai::Shape>(&mut all);
    add::<writing::ChatCompletion>(&mut all);
    add_flat::<openai::CompletionRequest, openai::Shape>(&mut all);
    add::<writing::Completion>(&mut all);
    add::<openai::TokenizeRequest>(&mut all);
    add::<writing::Tokenized>(&mut all);
    add::<openai::DetokenizeRequest>(&mut all);
    add::<writing::Detokenized>(&mut all);
    add::<OpenAiModels>(&mut all);
    add::<OpenAiModel>(&mut all);
    add::<OpenAiError>(&mut all);
    add::<asked::EmbedRequest>(&mut all);
    add::<asked::PredictRequest>(&mut all);
    add::<asked::RerankRequest>(&mut all);
    add::<tei::TeiRequest>(&mut all);
    add::<tei::TeiAnswer>(&mut all);
    add::<tei::TeiInfo>(&mut all);
    add::<tei::TeiError>(&mut all);
    add::<oip::OipError>(&mut all);
    add::<oip::OipServer>(&mut all);
    add::<oip::OipModels>(&mut all);
    add::<oip::OipReady>(&mut all);
    add::<oip::OipModel>(&mut all);
    add::<oip::OipConfig>(&mut all);
    add::<oip::OipStatistics>(&mut all);
    add::<oip::OipRequest>(&mut all);
    add::<oip::OipResponse>(&mut all);
    add::<oip::OipIndex>(&mut all);
    add::<IndexOrder>(&mut all);
    add::<RepositoryOrder>(&mut all);
    add::<Error>(&mut all);
    add::<StreamedError>(&mut all);
    add::<Models>(&mut all);
    add::<Model>(&mut all);
    add::<admin::Order>(&mut all);
    add::<experiments::ExperimentOrder>(&mut all);
    add::<experiments::Feedback>(&mut all);
    add::<sharing::Experiments>(&mut all);
    add::<sharing::Shadow>(&mut all);
    add::<sharing::Counted>(&mut all);
    add::<StageOrder>(&mut all);
    add::<Outcome>(&mut all);
    add::<Staged>(&mut all);
    add::<Begun>(&mut all);
    add::<Released>(&mut all);
    add::<Rollout>(&mut all);
    add::<Rollouts>(&mut all);
    add::<Comparison>(&mut all);
    add::<admin::TestOrder>(&mut all);
    add::<TestedAlerts>(&mut all);
    add::<Event>(&mut all);
    add::<memory::Memory>(&mut all);
    add::<Live>(&mut all);
    add::<Ready>(&mut all);
    ComponentsBuilder::new().schemas_from_iter(all)
}

/// A schema, and those that it refers to.
fn add<T: ToSchema>(all: &mut Vec<(String, RefOr<Schema>)>) {
    T::schemas(all);
    all.push((T::name().into_owned(), T::schema()));
}

/// A schema whose type has another's fields among its own: as one object, since two that are both closed allow nothing.
fn add_flat<T: ToSchema, Inside: PartialSchema>(all: &mut Vec<(String, RefOr<Schema>)>) {
    let (RefOr::T(Schema::Object(mut whole)), RefOr::T(Schema::Object(inside))) = (T::schema(), Inside::schema())
    else {
        return add::<T>(all);
    };
    whole.properties.extend(inside.properties);
    whole.required.extend(inside.required);
    all.push((T::name().into_owned(), RefOr::T(Schema::Object(whole))));
}

/// One input, as the model's task takes it.
#[derive(ToSchema)]
#[serde(untagged)]
pub(in crate::http) enum Input {
    /// A text.
    Text(String),
    /// Two texts that are judged together.
    Pair(Pair),
    /// Token ids, taken literally.
    Tokens(Tokens),
    /// A text, or two.
    Named(NamedInput),
    Image(ImageInput),
}

pub(in crate::http) struct Pair;

impl PartialSchema for Pair {
    fn schema() -> RefOr<Schema> {
        let pair = ArrayBuilder::new().items(String::schema()).min_items(Some(2)).max_items(Some(2));
        pair.description(Some("Two texts")).into()
    }
}

impl ToSchema for Pair {}

pub(in crate::http) struct Tokens;

impl PartialSchema for Tokens {
    fn schema() -> RefOr<Schema> {
        ArrayBuilder::new().items(inputs::token()).min_items(Some(1)).description(Some("Token ids")).into()
    }
}

impl ToSchema for Tokens {}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct NamedInput {
    text: String,
    pair: Option<String>,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct ImageInput {
    /// A PNG or JPEG file in base64, with or without a `data:` prefix.
    image: String,
}

#[derive(ToSchema)]
struct InferResponse {
    model: String,
    version: String,
    outputs: Vec<Output>,
}

/// By the model's task.
#[derive(ToSchema)]
#[serde(untagged)]
enum Output {
    Embedding {
        embedding: Vec<f32>,
    },
    /// Every label, the highest score first.
    Labels {
        labels: Vec<LabelScore>,
    },
    Score {
        score: f32,
    },
    /// What was written after the input.
    Written {
        text: String,
        /// `stop` or `length`
        finish_reason: String,
        tokens: usize,
    },
}

#[derive(ToSchema)]
struct LabelScore {
    label: String,
    score: f32,
}

#[derive(ToSchema)]
struct Embeddings {
    #[schema(pattern = "^list$")]
    object: String,
    data: Vec<EmbeddingItem>,
    model: String,
    usage: Usage,
}

#[derive(ToSchema)]
struct EmbeddingItem {
    #[schema(pattern = "^embedding$")]
    object: String,
    index: usize,
    embedding: EmbeddingValue,
}

/// Numbers, or base64 of little-endian f32, as was asked.
#[derive(ToSchema)]
#[serde(untagged)]
enum EmbeddingValue {
    Float(Vec<f32>),
    Base64(String),
}

#[derive(ToSchema)]
struct Usage {
    prompt_tokens: u64,
    total_tokens: u64,
}

#[derive(ToSchema)]
struct OpenAiModels {
    #[schema(pattern = "^list$")]
    object: String,
    data: Vec<OpenAiModel>,
}

#[derive(ToSchema)]
struct OpenAiModel {
    id: String,
    #[schema(pattern = "^model$")]
    object: String,
    /// When the live one came to be in memory; seconds since 1970, and 0 where there is none.
    created: u64,
    owned_by: String,
    task: Task,
    /// The live one.
    #[schema(required)]
    version: Option<String>,
    /// Tokens of prompt and answer together, where the live one writes; only there.
    max_model_len: Option<u64>,
}

#[derive(ToSchema)]
struct OpenAiError {
    #[schema(inline)]
    error: OpenAiErrorFacts,
}

#[derive(ToSchema)]
struct OpenAiErrorFacts {
    message: String,
    r#type: String,
    /// Which field was wrong, where one was.
    #[schema(required)]
    param: Option<String>,
    #[schema(required)]
    code: Option<String>,
}

#[derive(ToSchema)]
struct Error {
    error: Facts,
}

/// The last event of a stream that came to nothing.
#[derive(ToSchema)]
struct StreamedError {
    error: Facts,
    rollout: Rollout,
}

#[derive(ToSchema)]
struct Facts {
    kind: Kind,
    /// For people.
    message: String,
    /// For programs: what depends on the kind; null where there is nothing to add.
    details: Value,
}

#[derive(ToSchema)]
#[serde(rename_all = "snake_case")]
enum Kind {
    BadRequest,
    Unauthorised,
    Forbidden,
    NotFound,
    Conflict,
    TooLarge,
    Refused,
    Overloaded,
    NotServing,
    Deadline,
    NoRoom,
    Internal,
}

#[derive(ToSchema)]
#[serde(rename_all = "kebab-case")]
enum Task {
    Embed,
    Classify,
    Rerank,
    Generate,
    ImageClassify,
}

#[derive(ToSchema)]
struct Models {
    models: Vec<Model>,
}

#[derive(ToSchema)]
struct Model {
    name: String,
    /// Absent while its `model.toml` cannot be read.
    #[schema(nullable = false)]
    task: Option<Task>,
    #[schema(required)]
    live: Option<Place>,
    #[schema(required)]
    candidate: Option<Place>,
    /// The one that going back leads to at once.
    #[schema(required)]
    previous: Option<Place>,
    versions: Vec<String>,
    /// Why it serves nothing, where it does not.
    #[schema(nullable = false)]
    not_serving: Option<String>,
}

/// A version in memory.
#[derive(ToSchema)]
struct Place {
    version: String,
    generation: u64,
    phase: Phase,
    /// The rollout that goes on.
    #[schema(nullable = false)]
    rollout: Option<String>,
}

#[derive(ToSchema)]
#[serde(rename_all = "snake_case")]
enum Phase {
    Draining,
    Reserving,
    Loading,
    Warming,
    Validating,
    Ready,
    Canary,
    Experiment,
    Observing,
    Reclaiming,
    Settled,
    Refused,
    Failed,
    Aborted,
    RolledBack,
    Interrupted,
}

#[derive(ToSchema)]
struct Live {
    live: bool,
}

#[derive(ToSchema)]
struct Ready {
    ready: bool,
    #[schema(nullable = false)]
    not_serving: Option<Vec<NotServing>>,
}

#[derive(ToSchema)]
struct NotServing {
    model: String,
    reason: String,
}

//! What text-embeddings-inference's routes take and answer.
#![expect(dead_code, reason = "mirrors are described, never made")]

use serde_json::Value;
use utoipa::openapi::schema::AnyOfBuilder;
use utoipa::openapi::{Ref, RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use super::LabelScore;
use crate::http::tei::{EmbedRequest, PredictRequest, RerankRequest};

/// By the model's task. Some are fit for two of them, so it is any of these and not one.
pub(super) struct TeiRequest;

impl PartialSchema for TeiRequest {
    fn schema() -> RefOr<Schema> {
        let names = [EmbedRequest::name(), PredictRequest::name(), RerankRequest::name()];
        let any = names.into_iter().fold(AnyOfBuilder::new(), |any, name| any.item(Ref::from_schema_name(name)));
        RefOr::T(Schema::AnyOf(any.description(Some("By the model's task")).build()))
    }
}

impl ToSchema for TeiRequest {}

/// By the model's task.
#[derive(ToSchema)]
#[serde(untagged)]
pub(super) enum TeiAnswer {
    Embeddings(TeiEmbeddings),
    Predictions(TeiPredictions),
    Ranks(TeiRanks),
}

/// One embedding for each input, in their order.
#[derive(ToSchema)]
pub(super) struct TeiEmbeddings(Vec<Vec<f32>>);

/// Every label, the highest score first; for a batch one such list for each input.
#[derive(ToSchema)]
#[serde(untagged)]
pub(super) enum TeiPredictions {
    One(Vec<LabelScore>),
    Batch(Vec<Vec<LabelScore>>),
}

/// The highest score first.
#[derive(ToSchema)]
pub(super) struct TeiRanks(Vec<TeiRank>);

#[derive(ToSchema)]
struct TeiRank {
    /// Of the text in the request.
    index: usize,
    #[schema(nullable = false)]
    text: Option<String>,
    score: f32,
}

#[derive(ToSchema)]
pub(super) struct TeiInfo {
    model_id: String,
    served_model_name: String,
    /// Digest of the version's files.
    model_sha: String,
    /// `embedding`, `classifier` or `reranker`, as the name of its only field.
    model_type: Value,
    /// Tokens.
    max_input_length: u64,
    max_client_batch_size: u64,
    auto_truncate: bool,
    /// Of this server.
    version: String,
}

#[derive(ToSchema)]
pub(super) struct TeiError {
    error: String,
    error_type: TeiErrorType,
}

#[derive(ToSchema)]
enum TeiErrorType {
    Unhealthy,
    Backend,
    Overloaded,
    Validation,
    Empty,
}

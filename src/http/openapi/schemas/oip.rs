//! What the Open Inference Protocol's routes take and answer.
#![expect(dead_code, reason = "mirrors are described, never made")]

use std::collections::BTreeMap;

use serde_json::Value;
use utoipa::openapi::schema::ArrayBuilder;
use utoipa::openapi::{Ref, RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

#[derive(ToSchema)]
pub(super) struct OipError {
    error: String,
}

#[derive(ToSchema)]
pub(super) struct OipServer {
    name: String,
    version: String,
    extensions: Vec<String>,
}

#[derive(ToSchema)]
pub(super) struct OipModels {
    models: Vec<String>,
}

#[derive(ToSchema)]
pub(super) struct OipReady {
    name: String,
    ready: bool,
}

#[derive(ToSchema)]
pub(super) struct OipModel {
    name: String,
    /// Those that can be asked now.
    versions: Vec<String>,
    platform: String,
    inputs: Vec<OipTensor>,
    outputs: Vec<OipTensor>,
}

#[derive(ToSchema)]
pub(super) struct OipTensor {
    name: String,
    datatype: String,
    /// -1 is any size.
    shape: Vec<i64>,
}

#[derive(ToSchema)]
pub(super) struct OipConfig {
    name: String,
    platform: String,
    backend: String,
    max_batch_size: u64,
    input: Vec<OipConfigured>,
    output: Vec<OipConfigured>,
}

#[derive(ToSchema)]
pub(super) struct OipConfigured {
    name: String,
    data_type: String,
    dims: Vec<i64>,
}

#[derive(ToSchema)]
pub(super) struct OipStatistics {
    model_stats: Vec<OipModelStatistics>,
}

#[derive(ToSchema)]
pub(super) struct OipModelStatistics {
    name: String,
    version: String,
    /// Milliseconds since 1970; 0 before the first.
    last_inference: u64,
    /// Inputs that were run.
    inference_count: u64,
    /// Forward passes in which they were.
    execution_count: u64,
    inference_stats: OipInferenceStatistics,
}

#[derive(ToSchema)]
pub(super) struct OipInferenceStatistics {
    success: OipDuration,
    fail: OipDuration,
    /// From submission to the pass.
    queue: OipDuration,
    /// Tokenizing texts, decoding images.
    compute_input: OipDuration,
    /// The passes that requests were in, each in full.
    compute_infer: OipDuration,
    /// From rows to outputs.
    compute_output: OipDuration,
}

/// How often, and how long in all.
#[derive(ToSchema)]
pub(super) struct OipDuration {
    count: u64,
    /// Nanoseconds.
    ns: u64,
}

#[derive(ToSchema)]
pub(super) struct OipRequest {
    id: Option<String>,
    #[schema(nullable = false)]
    parameters: Option<OipParameters>,
    #[schema(min_items = 1)]
    inputs: Vec<OipInput>,
    outputs: Option<Vec<OipWanted>>,
}

/// Others are ignored.
#[derive(ToSchema)]
pub(super) struct OipParameters {
    /// Outputs as bytes behind the JSON, where they do not say it themselves.
    binary_data_output: Option<bool>,
    /// Microseconds; 0 is no limit of the client's own.
    #[schema(minimum = 0)]
    timeout: Option<i64>,
    /// Cut an input that is too long (the default), rather than refuse it.
    truncate: Option<bool>,
    /// Only so many numbers of an embedding.
    #[schema(minimum = 1)]
    dimensions: Option<i64>,
    /// Embeddings of length 1, or as the model gives them.
    normalize: Option<bool>,
    /// Logits instead of probabilities.
    raw_scores: Option<bool>,
    #[serde(flatten)]
    others: BTreeMap<String, Value>,
}

#[derive(ToSchema)]
pub(super) struct OipInput {
    name: String,
    #[schema(schema_with = super::inputs::shape)]
    shape: Vec<i64>,
    /// Models here take texts and files: `BYTES`, and none of the protocol's numbers.
    #[schema(pattern = "^BYTES$")]
    datatype: String,
    #[schema(nullable = false)]
    parameters: Option<OipInputParameters>,
    /// Elements, nested or not; none where their bytes follow the JSON (`binary_data_size`).
    #[schema(value_type = Option<Vec<Value>>)]
    data: Option<Value>,
}

/// Others are ignored.
#[derive(ToSchema)]
pub(super) struct OipInputParameters {
    /// The input's bytes, which follow the JSON.
    #[schema(nullable = false, minimum = 0)]
    binary_data_size: Option<i64>,
    #[serde(flatten)]
    others: BTreeMap<String, Value>,
}

#[derive(ToSchema)]
pub(super) struct OipWanted {
    name: String,
    #[schema(nullable = false)]
    parameters: Option<OipWantedParameters>,
}

/// Others are ignored.
#[derive(ToSchema)]
pub(super) struct OipWantedParameters {
    /// As bytes behind the JSON.
    binary_data: Option<bool>,
    #[serde(flatten)]
    others: BTreeMap<String, Value>,
}

/// Others are ignored (`unload_dependents`), but for `config` and files: versions are folders below the model's.
#[derive(ToSchema)]
pub(in crate::http) struct RepositoryParameters {
    /// Which one to load or unload, unless the path says it (`model@version`).
    #[schema(nullable = false)]
    version: Option<String>,
    #[serde(flatten)]
    others: BTreeMap<String, Value>,
}

#[derive(ToSchema)]
pub(super) struct OipResponse {
    #[schema(nullable = false)]
    id: Option<String>,
    model_name: String,
    model_version: String,
    outputs: Vec<OipOutput>,
}

#[derive(ToSchema)]
pub(super) struct OipOutput {
    name: String,
    datatype: String,
    shape: Vec<u64>,
    /// Row-major.
    #[schema(value_type = Vec<Value>)]
    data: Value,
}

#[derive(ToSchema)]
pub(super) struct OipVersion {
    name: String,
    version: String,
    /// `READY`, `LOADING` or `UNAVAILABLE`.
    state: String,
    /// Why it is not ready.
    reason: String,
}

/// Every version of every model.
pub(super) struct OipIndex;

impl PartialSchema for OipIndex {
    fn schema() -> RefOr<Schema> {
        ArrayBuilder::new().items(Ref::from_schema_name(OipVersion::name())).into()
    }
}

impl ToSchema for OipIndex {
    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas.push((OipVersion::name().into_owned(), OipVersion::schema()));
    }
}

//! What is told of the server, its models and their versions, in the protocol's messages.
//!
//! It knows slots and generations, and neither HTTP nor gRPC: both tell the same.

use super::infer;
use super::messages::{
    DataType, Duration, InferStatistics, ModelConfig, ModelInput, ModelMetadata, ModelOutput, ModelStatistics,
    ServerMetadata, Statistics, TensorMetadata,
};
use crate::engine::Worked;
use crate::generation::{Spent, Stage};
use crate::http::App;
use crate::slot::{Admission, Slot};

/// What the metadata of the server claims, no more than works.
const EXTENSIONS: [&str; 5] =
    ["binary_tensor_data", "parameters", "model_configuration", "model_repository", "statistics"];

const NAME: &str = "cutover";

pub(super) fn server() -> ServerMetadata {
    ServerMetadata {
        name: NAME.into(),
        version: env!("CARGO_PKG_VERSION").into(),
        extensions: EXTENSIONS.map(str::to_owned).to_vec(),
    }
}

pub(super) fn metadata(slot: &Slot, admission: &Admission) -> ModelMetadata {
    let contract = &admission.generation().contract;
    let tensors = |all: Vec<infer::Told>| {
        let one = |told: infer::Told| TensorMetadata {
            name: told.name.into(),
            datatype: told.datatype.into(),
            shape: told.shape,
        };
        all.into_iter().map(one).collect()
    };
    ModelMetadata {
        name: slot.name().into(),
        versions: slot.route().iter().flat_map(|route| route.versions()).map(|version| (*version).to_owned()).collect(),
        platform: NAME.into(),
        inputs: tensors(infer::inputs_of(contract.task)),
        outputs: tensors(infer::outputs_of(contract)),
    }
}

pub(super) fn config(slot: &Slot, admission: &Admission) -> ModelConfig {
    let contract = &admission.generation().contract;
    let kind = |datatype| (if datatype == "BYTES" { DataType::String } else { DataType::Fp32 }) as i32;
    let input =
        |told: infer::Told| ModelInput { name: told.name.into(), data_type: kind(told.datatype), dims: told.shape };
    let output =
        |told: infer::Told| ModelOutput { name: told.name.into(), data_type: kind(told.datatype), dims: told.shape };
    ModelConfig {
        name: slot.name().into(),
        platform: NAME.into(),
        backend: NAME.into(),
        max_batch_size: 0,
        input: infer::inputs_of(contract.task).into_iter().map(input).collect(),
        output: infer::outputs_of(contract).into_iter().map(output).collect(),
    }
}

/// Of every model that serves, what its live version did.
pub(super) fn all_statistics(app: &App) -> Statistics {
    let slots = app.registry.slots();
    let live = slots.values().filter_map(|slot| Some(statistics_of(slot, &slot.admit(None, None).ok()?)));
    Statistics { model_stats: live.collect() }
}

pub(super) fn statistics(slot: &Slot, admission: &Admission) -> Statistics {
    Statistics { model_stats: vec![statistics_of(slot, admission)] }
}

/// What a generation did since it began.
fn statistics_of(slot: &Slot, admission: &Admission) -> ModelStatistics {
    let generation = admission.generation();
    let Worked { passes, inputs, requests, queued_nanos, ran_nanos } = generation.lane.worked();
    let spent = |stage| {
        let Spent { times, nanos } = generation.stats.spent(stage);
        Some(Duration { count: times, ns: nanos })
    };
    ModelStatistics {
        name: slot.name().into(),
        version: generation.version().into(),
        last_inference: generation.stats.last_ms(),
        inference_count: inputs,
        execution_count: passes,
        inference_stats: Some(InferStatistics {
            success: spent(Stage::Answered),
            fail: spent(Stage::Failed),
            queue: Some(Duration { count: requests, ns: queued_nanos }),
            compute_input: spent(Stage::Prepared),
            compute_infer: Some(Duration { count: requests, ns: ran_nanos }),
            compute_output: spent(Stage::Finished),
        }),
    }
}

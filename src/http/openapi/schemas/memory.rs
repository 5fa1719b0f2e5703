//! `GET /admin/memory`: what is promised, what is held, and what came back. As `rollout::supervisor::reports` has them.

use std::collections::BTreeMap;

use utoipa::ToSchema;

/// Bytes, all of them.
#[derive(ToSchema)]
pub(super) struct Memory {
    device: String,
    capacity: u64,
    reserved: u64,
    reservations: Vec<Reservation>,
    generations: Vec<GenerationMemory>,
    /// What hanging threads may still touch.
    abandoned: u64,
    #[schema(required)]
    process_resident: Option<u64>,
    /// What live allocations take of it.
    #[schema(required)]
    process_allocated: Option<u64>,
    #[schema(required)]
    host_available: Option<u64>,
    /// Where models are served from a GPU.
    #[schema(nullable = false)]
    vram: Option<Vram>,
    /// Where models are served from a GPU.
    #[schema(required = false)]
    pools: Vec<Pool>,
    /// Versions that wait in host memory, or are on their way there.
    parked: Vec<ParkedMemory>,
    /// By model.
    last_reclaims: BTreeMap<String, Reclaimed>,
}

#[derive(ToSchema)]
struct ParkedMemory {
    model: String,
    version: String,
    /// Pinned, or promised to be.
    bytes: u64,
    /// A load may take it from there.
    ready: bool,
}

#[derive(ToSchema)]
struct Reservation {
    holder: String,
    bytes: u64,
}

/// Weights by who holds them.
#[derive(ToSchema)]
struct GenerationMemory {
    generation: u64,
    #[schema(nullable = false)]
    model: Option<String>,
    #[schema(nullable = false)]
    version: Option<String>,
    exclusive: u64,
    /// With other generations.
    shared: u64,
}

/// Bytes of a GPU, as its driver counts them: of the generation's pool, and free whoever uses the rest.
#[derive(ToSchema)]
struct Measured {
    used: u64,
    reserved: u64,
    free: u64,
}

/// Bytes of a GPU, as its driver counts them.
#[derive(ToSchema)]
struct Vram {
    free: u64,
    total: u64,
}

/// What is held together of a GPU, by its driver's count: a generation's weights and activations, or what none of them owns.
#[derive(ToSchema)]
struct Pool {
    /// `model@version`, or `shared by all`.
    holder: String,
    #[schema(nullable = false)]
    generation: Option<u64>,
    /// Bytes that are allocated.
    used: u64,
    /// Bytes that the driver holds for it.
    reserved: u64,
}

/// What a reclaim promised, and what it measured.
#[derive(ToSchema)]
struct Reclaimed {
    generation: u64,
    promised: u64,
    returned: u64,
    kept_shared: u64,
    #[schema(required)]
    resident_before: Option<u64>,
    #[schema(required)]
    resident_after: Option<u64>,
    #[schema(nullable = false)]
    vram_before: Option<Measured>,
    #[schema(nullable = false)]
    vram_after: Option<Measured>,
    drain_ms: f64,
    free_ms: f64,
}

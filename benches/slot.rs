//! The one decision and the one store: `cargo bench --bench slot`.
//!
//! Targets: `Slot::admit` under 50 ns uncontended, under 100 ns where requests are shared; the store under 1 µs.
#![allow(clippy::expect_used)]

mod support;

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use cutover::device::{Health, Processors};
use cutover::engine::{Engine, EngineConfig, Install};
use cutover::faults::Faults;
use cutover::generation::{Generation, GenerationId, Parts, Stamp};
use cutover::model::family;
use cutover::ops::Machine;
use cutover::repository::Sticky;
use cutover::schedule::BatchLimits;
use cutover::slot::{Asker, Route, Share, Slot, Split, Tally};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

async fn generation(engine: &Engine, version: &str, id: u64) -> Arc<Generation> {
    let loaded = support::loaded("digits", version).expect("the bundled model loads");
    let tokens_per_image = family(&loaded.spec).ok().and_then(|family| family.tokens_per_image);
    let tokens_per_image = tokens_per_image.map_or(1, |count| count(&loaded.spec).expect("a count"));
    let install = Install {
        generation: GenerationId(id),
        name: format!("digits@{version}"),
        model: loaded.model,
        batch: BatchLimits { max_tokens: 512, max_items: 64, max_wait: 0 },
        queue: 1024,
        tokens_per_image,
        faults: Faults::default(),
    };
    let lane = engine.install(install).await.expect("installed");
    let parts = Parts {
        stamp: Stamp { model: "digits".into(), version: version.into(), generation: GenerationId(id) },
        digest: String::new(),
        contract: loaded.contract,
        processor: Arc::new(loaded.processor),
        lane,
        limits: loaded.config.limits,
        preparing: 1,
    };
    Generation::new(parts).0
}

/// A client that shows what it is known by.
struct Client;

impl Asker for Client {
    fn header(&self, _: &str) -> Option<&[u8]> {
        Some(b"user-8c1f2a")
    }

    fn api_key(&self) -> Option<&str> {
        Some("search-team")
    }

    fn body(&self) -> &[u8] {
        &[b'x'; 200]
    }

    fn id(&self) -> Option<&str> {
        Some("19ad3c5f0b2-1f4")
    }
}

fn slot(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let processors = Processors::of(1);
    let config = EngineConfig {
        processors,
        machine: Machine::Cpu,
        health: Health::default(),
        stall_after: Duration::from_secs(60),
        on_stall: Box::new(|_| ()),
    };
    let (engine, _thread) = Engine::start(config).expect("an engine");
    let (blue, green) =
        runtime.block_on(async { (generation(&engine, "v1", 1).await, generation(&engine, "v2", 2).await) });
    let slot = Arc::new(Slot::new("digits"));
    slot.swap(Arc::new(Route::new(Arc::clone(&blue))));

    criterion.bench_function("admit, uncontended", |b| b.iter(|| black_box(slot.admit(None, None).is_ok())));
    criterion.bench_function("admit by version", |b| b.iter(|| black_box(slot.admit(Some("v1"), None).is_ok())));

    for (by, sticky) in [
        ("a header", Sticky::Header("x-user".into())),
        ("the API key", Sticky::ApiKey),
        ("the request, 200 bytes", Sticky::Request),
    ] {
        let split = |tally| Split {
            to: Arc::clone(&green),
            share: Share::of(0.25),
            sticky: sticky.clone(),
            salt: Split::salt("digits-1"),
            failover: true,
            tally,
        };
        for (tally, counted) in [(None, ""), (Some(Arc::new(Tally::new())), ", counted")] {
            slot.swap(Arc::new(Route { split: Some(split(tally)), ..Route::new(Arc::clone(&blue)) }));
            let name = format!("admit, shared by {by}{counted}");
            criterion.bench_function(&name, |b| b.iter(|| black_box(slot.admit(None, Some(&Client)).is_ok())));
        }
    }

    let routes = [Arc::new(Route::new(blue)), Arc::new(Route::new(green))];
    let mut turn = 0;
    criterion.bench_function("store, nobody reading", |b| {
        b.iter(|| {
            turn += 1;
            black_box(slot.swap(Arc::clone(&routes[turn % 2])));
        });
    });

    let stop = Arc::new(AtomicBool::new(false));
    let reader = {
        let (slot, stop) = (Arc::clone(&slot), Arc::clone(&stop));
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                black_box(slot.admit(None, None).is_ok());
            }
        })
    };
    criterion.bench_function("store, one thread admitting all the time", |b| {
        b.iter(|| {
            turn += 1;
            black_box(slot.swap(Arc::clone(&routes[turn % 2])));
        });
    });
    criterion.bench_function("admit, one thread admitting all the time", |b| {
        b.iter(|| black_box(slot.admit(None, None).is_ok()));
    });
    stop.store(true, Ordering::Relaxed);
    reader.join().expect("the reader ends");
}

criterion_group!(benches, slot);
criterion_main!(benches);

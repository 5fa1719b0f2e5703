//! Attention of heads of every width that has a kernel of its own, as a server launches it, and of those that a device has no room for.

use candle_core::DType;
use serde_json::json;

use super::common::Site;
use super::common::fake_gpu::{nothing_is_left, on_fake_gpu};
use super::common::inputs::{distance, embedding};
use super::common::random_models::{LONGEST, add_encoder};

/// So many words, each of which is a token beside the first and the last.
fn words(count: usize) -> String {
    const WORDS: [&str; 6] = ["a", "boat", "in", "the", "harbour", "river"];
    (0..count).map(|at| WORDS[(at * at + at / 5) % WORDS.len()]).collect::<Vec<_>>().join(" ")
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_of_every_width_are_those_of_the_cpu() {
    const HEADS: [(&str, (usize, usize)); 3] = [("heads-32", (2, 32)), ("heads-64", (2, 64)), ("heads-128", (2, 128))];
    // In f32 by the plain kernels of each width, in f16 by those on tensor cores.
    for (dtype, most) in [(DType::F32, 1e-4), (DType::F16, 1e-2)] {
        let site = || {
            let site = Site::new();
            HEADS.iter().for_each(|(name, heads)| drop(add_encoder(&site, name, *heads, dtype)));
            site
        };
        let cpu = site().start().await;
        // What loads try beyond what is asked here takes the processor long.
        let (site, report) = on_fake_gpu(site().variable("FAKE_GPU_COLUMNS_COMPUTED", "512"));
        let gpu = site.start().await;
        // Recorded and op by op; of one tile of 64 queries, of one and a bit, and of as many as there are; and side by side.
        let texts = [1, 20, 62, 63, 90, LONGEST - 2].map(words);
        for (name, (heads, each)) in HEADS {
            let mut wanted = Vec::new();
            for text in &texts {
                let want = embedding(&cpu.texts(name, &[text]).await.expect(200).body);
                let got = embedding(&gpu.texts(name, &[text]).await.expect(200).body);
                assert_eq!(want.len(), heads * each);
                let far = distance(&want, &got);
                assert!(far < most, "{name} in {}, {} words: {far}", dtype.as_str(), text.split(' ').count());
                wanted.push(want);
            }
            let apart = distance(&wanted[0], &wanted[4]);
            assert!(apart > 3.0 * most, "answers tell texts apart: {apart}");
            let all: Vec<&str> = texts.iter().map(String::as_str).collect();
            let body = gpu.texts(name, &all).await.expect(200).body;
            for (number, want) in wanted.iter().enumerate() {
                let far = distance(want, &embedding(&json!({ "outputs": [body["outputs"][number]] })));
                assert!(far < most, "{name} in {}, text {number} of a batch: {far}", dtype.as_str());
            }
        }
        nothing_is_left(gpu, &report).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_whose_blocks_have_less_room_serves_what_fits_and_says_why_the_rest_does_not() {
    let site = || {
        let site = Site::new();
        for (name, each) in [("fits", 176), ("wide", 180)] {
            add_encoder(&site, name, (1, each), DType::F32);
        }
        site
    };
    let cpu = site().start().await;
    // As GPUs of compute capability 8.6, 8.9 and 12 have it.
    let small = site().variable("FAKE_GPU_SHARED_OPTIN", "101376").variable("FAKE_GPU_COLUMNS_COMPUTED", "512");
    let (site, report) = on_fake_gpu(small);
    let gpu = site.start().await;
    let text = words(70);
    let want = embedding(&cpu.texts("fits", &[&text]).await.expect(200).body);
    let far = distance(&want, &embedding(&gpu.texts("fits", &[&text]).await.expect(200).body));
    assert!(far < 1e-4, "{far}");
    cpu.texts("wide", &[&text]).await.expect(200);
    let refused = gpu.promote("wide@v", json!({})).await.expect(422).body.to_string();
    for told in ["num_attention_heads", "heads of 180 numbers", "103424 bytes", "101376"] {
        assert!(refused.contains(told), "{told}: {refused}");
    }
    nothing_is_left(gpu, &report).await;
}

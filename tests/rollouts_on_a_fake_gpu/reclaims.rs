//! What comes back of a version's memory, wherever it lies.

use serde_json::{Value, json};

use super::common::fake_gpu::{nothing_is_left, on_fake_gpu};
use super::common::fixture;
use super::{embedding, make_others, pools, texts};

/// All of what was promised is back with the driver: nothing of it is used or held any more, and as much is free.
pub(super) fn assert_came_back(reclaim: &Value) {
    let (held, left) = (&reclaim["vram_before"], &reclaim["vram_after"]);
    assert_eq!((&left["used"], &left["reserved"]), (&json!(0), &json!(0)), "{reclaim:#}");
    let of = |measured: &Value, what: &str| measured[what].as_u64().unwrap();
    assert_eq!(of(left, "free") - of(held, "free"), of(held, "reserved"), "{reclaim:#}");
    let (promised, returned) = (of(reclaim, "promised"), of(reclaim, "returned"));
    assert!(promised > 0 && (promised..=of(held, "used")).contains(&returned), "{reclaim:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn weights_that_were_taken_over_come_back_with_the_last_who_holds_them() {
    let site = texts();
    // Nothing of it is the tuned one's, whose second layer is another than the first one's: that of this one is not.
    let other = site.version("texts", "other", &fixture("bert-embed-mean"));
    make_others(&other, ".");
    make_others(&other, "layer.1.");
    let (site, report) = on_fake_gpu(site);
    let server = site.start().await;
    let settled = async |version: &str| {
        let body = server.promote(version, json!({ "observe": "0s", "wait": "settled" })).await.expect(200).body;
        body["figures"].clone()
    };
    let tuned = settled("tuned").await;
    // What the first loaded and both have stays in its pool, and is counted for it as its driver holds it.
    let (mean, bytes) = (&tuned["reclaim"], |value: &Value| value.as_u64().unwrap());
    assert_eq!(mean["kept_shared"], tuned["shared_bytes"], "{mean:#}");
    assert_eq!(mean["vram_after"]["used"].as_u64().map(|used| used >= bytes(&mean["kept_shared"])), Some(true));
    let memory = server.memory().await;
    let lingering = pools(&memory).into_iter().find(|pool| pool.0 == "texts@mean").unwrap();
    let reservations = memory["reservations"].as_array().unwrap().iter();
    let holder = |held: &&Value| held["holder"].as_str().unwrap().starts_with("texts@mean, retired");
    let reservation = reservations.clone().find(holder).unwrap();
    assert_eq!(bytes(&reservation["bytes"]), lingering.2, "{memory:#}");

    let other = settled("other").await;
    let (reclaim, whole) = (&other["reclaim"], bytes(&other["loaded_bytes"]));
    assert_eq!((bytes(&reclaim["promised"]), bytes(&reclaim["kept_shared"])), (whole, 0), "{reclaim:#}");
    assert_came_back(reclaim);
    // Both pools are gone, the one that lingered too.
    let memory = server.memory().await;
    let holders: Vec<String> = pools(&memory).into_iter().map(|pool| pool.0).collect();
    assert_eq!(holders, ["shared by all", "texts@other"], "{memory:#}");
    assert_eq!(memory["reservations"].as_array().unwrap().len(), 1, "{memory:#}");
    assert!(!server.log().contains("less memory came back"), "{}", server.log());
    embedding(&server).await;
    nothing_is_left(server, &report).await;
}

//! The HTTP routes under schemathesis, by the server's own `/openapi.json`: the short run of `fuzz/http`, which also has
//! the long one and says what is held against what.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::python;

/// Cases by chance for each operation and phase: there are many operations, and each case is dozens of requests.
const EXAMPLES: &str = "2";

#[tokio::test(flavor = "multi_thread")]
async fn every_route_is_as_the_document_says_whatever_is_asked() {
    let client = ("schemathesis", "../../fuzz/http/requirements.txt");
    let reports = concat!(env!("CARGO_TARGET_TMPDIR"), "/schemathesis");
    let arguments = ["--cutover", env!("CARGO_BIN_EXE_cutover"), "--examples", EXAMPLES, "--work", reports];
    let said = python::client_says(client, ("../../fuzz/http/fuzz.py", &arguments), String::new()).await;
    // A run that has asked nothing would be content, too.
    let passed = |said: &String| said.matches("No issues found").count() == 2;
    assert!(said.as_ref().is_none_or(passed), "{}", said.unwrap_or_default());
}

//! The HTTP routes under schemathesis, by the server's own `/openapi.json`: the short run of `fuzz/http`, which also has
//! the long one and says what is held against what.

use crate::common::python;

/// Cases by chance for each operation and phase: there are many operations, and each case is dozens of requests.
const EXAMPLES: &str = "2";

/// One round against a server of a kind. The two are apart so that they run beside each other: most of their time is Python's.
async fn nothing_is_found(kind: &str, seed: &str) {
    let client = ("schemathesis", "../../fuzz/http/requirements.txt");
    let reports = concat!(env!("CARGO_TARGET_TMPDIR"), "/schemathesis");
    let cutover = env!("CARGO_BIN_EXE_cutover");
    let arguments = ["--cutover", cutover, "--examples", EXAMPLES, "--work", reports, "--server", kind, "--seed", seed];
    let said = python::client_says(client, ("../../fuzz/http/fuzz.py", &arguments), String::new()).await;
    // A run that has asked nothing would be content, too.
    let passed = |said: &String| said.matches("No issues found").count() == 1;
    assert!(said.as_ref().is_none_or(passed), "{}", said.unwrap_or_default());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_is_as_the_document_says_whatever_is_asked() {
    nothing_is_found("open", "1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_of_a_server_with_secrets_is_as_the_document_says() {
    nothing_is_found("locked", "2").await;
}

use std::collections::BTreeSet;

use serde_json::Value;

use super::*;
use crate::http::{Access, Dialect, Guard, Serves, routes};

const NOTHING: Asks = Asks { key: false, token: false, lists: false };

fn mounted(serves: Serves) -> Vec<Mounted> {
    described(routes(serves, &Guard { loopback: true, access: Access::default() }), NOTHING).mounted().to_vec()
}

fn document_of(serves: Serves) -> Value {
    serde_json::to_value(document(&mounted(serves), NOTHING)).unwrap()
}

/// Every method and path that a document tells of.
fn told(document: &Value) -> BTreeSet<(String, String)> {
    let paths = document["paths"].as_object().unwrap();
    let told = paths.iter().flat_map(|(path, item)| {
        item.as_object().unwrap().keys().map(move |method| (method.to_uppercase(), path.clone()))
    });
    told.collect()
}

#[test]
fn every_route_is_described_and_nothing_else_is() {
    for serves in [Serves::Everything, Serves::Inference, Serves::Admin] {
        let mounted: BTreeSet<_> =
            mounted(serves).into_iter().map(|(method, path)| (method.to_owned(), path.to_owned())).collect();
        assert_eq!(told(&document_of(serves)), mounted, "{serves:?}");
    }
    let described = operations::all();
    let everything: BTreeSet<Mounted> = mounted(Serves::Everything).into_iter().collect();
    assert_eq!(described.iter().map(|(at, _)| *at).collect::<BTreeSet<_>>(), everything);
    assert_eq!(described.len(), everything.len(), "an operation is described twice");
}

/// Calls `see` with every reference in the document.
fn references(value: &Value, see: &mut impl FnMut(&str)) {
    match value {
        Value::Object(map) => {
            if let Some(Value::String(reference)) = map.get("$ref") {
                see(reference);
            }
            map.values().for_each(|value| references(value, see));
        }
        Value::Array(list) => list.iter().for_each(|value| references(value, see)),
        _ => {}
    }
}

#[test]
fn every_reference_leads_somewhere_and_every_schema_is_used() {
    let document = document_of(Serves::Everything);
    let mut used = BTreeSet::new();
    references(&document, &mut |reference| {
        let pointer = reference.strip_prefix('#').unwrap();
        assert!(document.pointer(pointer).is_some(), "{reference} leads nowhere");
        used.insert(reference.rsplit('/').next().unwrap().to_owned());
    });
    let schemas: BTreeSet<String> = document["components"]["schemas"].as_object().unwrap().keys().cloned().collect();
    // These two are told of in words: OpenAPI 3.1 has none for what a stream of events carries.
    let streamed = ["Event", "StreamedError"].map(str::to_owned).into();
    assert_eq!(schemas.difference(&used).cloned().collect::<BTreeSet<_>>(), streamed);
}

#[test]
fn every_schema_is_one() {
    let document = document_of(Serves::Everything);
    for (name, schema) in document["components"]["schemas"].as_object().unwrap() {
        let mut schema = schema.clone();
        schema["components"] = document["components"].clone();
        if let Err(error) = jsonschema::draft202012::new(&schema) {
            panic!("{name}: {error}");
        }
    }
}

#[test]
fn every_operation_says_how_it_is_refused_in_its_dialect() {
    let document = document_of(Serves::Everything);
    for (method, path) in told(&document) {
        let operation = &document["paths"][&path][method.to_lowercase()];
        let (schema, inside) = match Dialect::of(&path) {
            Dialect::Native => ("Error", "500"),
            Dialect::OpenAi => ("OpenAiError", "500"),
            Dialect::Tei => ("TeiError", "424"),
            Dialect::Oip | Dialect::Grpc => ("OipError", "500"),
        };
        let responses = operation["responses"].as_object().unwrap();
        for (status, response) in responses.iter().filter(|(status, _)| status.as_str() >= "400") {
            let said = response["content"]["application/json"]["schema"]["$ref"].as_str().unwrap();
            let ready = matches!(path.as_str(), "/ready" | "/v2/health/ready") && status == "503";
            let expected = if ready { "Ready" } else { schema };
            assert_eq!(said.rsplit('/').next().unwrap(), expected, "{method} {path} {status}");
            assert!(response["headers"]["x-request-id"].is_object());
        }
        assert!(responses.contains_key("403") && responses.contains_key(inside), "{method} {path}");
        let change = method != "GET" && path.starts_with("/models") && !path.ends_with("/infer");
        let repository = path.ends_with("/load") || path.ends_with("/unload");
        let admin = path.starts_with("/admin") || change || repository || path.ends_with("/diff");
        let public = ["/health", "/ready", "/metrics", "/openapi.json"].contains(&path.as_str())
            || path.starts_with("/v2/health/")
            || path.starts_with("/page/")
            || path == "/" && method == "GET";
        assert_eq!(responses.contains_key("401"), !public, "{method} {path}");
        assert_eq!(operation["security"].is_array(), !public, "{method} {path}");
        let takes = |scheme: &str| {
            let ways = operation["security"].as_array().into_iter().flatten();
            ways.filter(|way| way[scheme].is_array()).count() == 1
        };
        let lists = path == "/models" || path == "/models/{ref}" && method == "GET";
        assert_eq!((takes("admin-token"), takes("api-key")), (admin || lists, !admin && !public), "{method} {path}");
        assert_eq!(takes("x-api-key"), takes("api-key"), "{method} {path}");
    }
}

/// Which operations let everybody in, of those that could ask.
fn open(asks: Asks) -> BTreeSet<String> {
    let document = serde_json::to_value(document(&mounted(Serves::Everything), asks)).unwrap();
    let is_open = |method: &str, path: &str| {
        let ways = document["paths"][path][method.to_lowercase()]["security"].as_array();
        ways.is_some_and(|ways| ways.contains(&serde_json::json!({})))
    };
    told(&document).iter().filter(|(method, path)| is_open(method, path)).map(|(m, p)| format!("{m} {p}")).collect()
}

#[test]
fn a_listener_that_asks_for_credentials_says_so() {
    let (admin, infer, lists) = ("POST /admin/settle", "POST /embed", "GET /models/{ref}");
    let has = |asks: Asks| [admin, infer, lists].map(|name| open(asks).contains(name));
    assert_eq!(has(NOTHING), [true, true, true]);
    assert_eq!(has(Asks { token: true, ..NOTHING }), [false, true, true]);
    assert_eq!(has(Asks { key: true, lists: true, ..NOTHING }), [true, false, false]);
    assert_eq!(open(Asks { key: true, token: true, lists: true }), BTreeSet::new());
}

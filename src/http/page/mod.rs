//! The page at `/`: files inside the binary, and two plots that are drawn here.
//!
//! The files know routes and nothing else of the server, and the server nothing of them but their names. They are open to
//! everybody who may reach the listener; what they show is asked of routes that ask for the token. Scripts and styles
//! come from here only (`CSP`), and none stands in the page itself, so that nothing a model says can become one.

mod plots;

use std::sync::{Arc, LazyLock};

use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;

use super::App;
use super::reply::Failure;
use super::routes::{Asked, Named, Routes};
use crate::error::Error;

/// Content Security Policy, level 3 (W3C): this server's files, its answers, and pictures that the page made itself.
const CSP: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob: data:; \
                   base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

struct File {
    name: &'static str,
    kind: &'static str,
    text: &'static [u8],
    tag: LazyLock<HeaderValue>,
}

macro_rules! file {
    ($name:literal, $kind:literal) => {
        File {
            name: $name,
            kind: $kind,
            text: include_bytes!($name),
            tag: LazyLock::new(|| tag_of(include_bytes!($name))),
        }
    };
}

static INDEX: File = file!("index.html", "text/html; charset=utf-8");

static FILES: [File; 6] = [
    file!("style.css", "text/css; charset=utf-8"),
    file!("page.js", "text/javascript; charset=utf-8"),
    file!("ask.js", "text/javascript; charset=utf-8"),
    file!("show.js", "text/javascript; charset=utf-8"),
    file!("try.js", "text/javascript; charset=utf-8"),
    file!("icon.svg", "image/svg+xml"),
];

/// For everybody.
pub(super) fn routes() -> Routes {
    Routes::default().get("/", index).get("/page/{file}", file)
}

/// For whoever may see rollouts.
pub(super) fn plots() -> Routes {
    Routes::default().get("/admin/plots/latency", latency).get("/admin/plots/agreement", agreement)
}

fn tag_of(text: &[u8]) -> HeaderValue {
    let hash = blake3::hash(text).to_hex();
    HeaderValue::from_str(&format!("\"{}\"", &hash[..16])).unwrap_or(HeaderValue::from_static("\"\""))
}

async fn index(headers: HeaderMap) -> Response {
    INDEX.answer(&headers)
}

async fn file(Named(name): Named, headers: HeaderMap) -> Response {
    match FILES.iter().find(|file| file.name == name) {
        Some(file) => file.answer(&headers),
        None => Failure::native(Error::NotFound { what: "file of the page", id: name }).into_response(),
    }
}

impl File {
    /// 304 where the client has it already.
    fn answer(&self, headers: &HeaderMap) -> Response {
        let known = headers.get_all(header::IF_NONE_MATCH).iter();
        let is_known = known.filter_map(|known| known.to_str().ok()).any(|known| {
            let tags = known.split(',').map(|tag| tag.trim().trim_start_matches("W/"));
            tags.into_iter().any(|tag| tag == "*" || tag.as_bytes() == self.tag.as_bytes())
        });
        let about = [
            (header::ETAG, self.tag.clone()),
            (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
            (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(CSP)),
            (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
            (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
        ];
        match is_known {
            true => (StatusCode::NOT_MODIFIED, about).into_response(),
            false => (about, [(header::CONTENT_TYPE, self.kind)], self.text).into_response(),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct OfModel {
    model: String,
    width: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct OfRollout {
    rollout: String,
    width: Option<u32>,
}

/// A model's last ten minutes.
async fn latency(State(app): State<Arc<App>>, Asked(OfModel { model, width }): Asked<OfModel>) -> Response {
    match app.registry.resolve(&model) {
        Ok(target) => {
            drawn(plots::latency(&app.supervisor.samples(target.slot.name()), crate::rollout::now_ms(), width))
        }
        Err(error) => Failure::native(error).into_response(),
    }
}

/// How much the versions of a rollout agreed, as its shadow saw it.
async fn agreement(State(app): State<Arc<App>>, Asked(OfRollout { rollout, width }): Asked<OfRollout>) -> Response {
    let work = async {
        let view = app.supervisor.rollout(&rollout).await?;
        let figures = &view.record.figures;
        let shadow = figures.get("shadow_after").or_else(|| figures.get("shadow"));
        let bars = shadow.and_then(|shadow| shadow["histogram"].as_array());
        let bars = bars.ok_or_else(|| Error::NotFound { what: "shadow of rollout", id: rollout.clone() })?;
        let bars: Vec<u64> = bars.iter().map(|bar| bar.as_u64().unwrap_or(0)).collect();
        Ok(drawn(plots::agreement(&bars, width)))
    };
    work.await.unwrap_or_else(|error: Error| Failure::native(error).into_response())
}

fn drawn(plot: Result<String, plots::Error>) -> Response {
    match plot {
        Ok(svg) => {
            ([(header::CONTENT_TYPE, "image/svg+xml"), (header::CACHE_CONTROL, "no-store")], svg).into_response()
        }
        Err(error) => Failure::native(Error::internal(format!("a plot could not be drawn: {error}"))).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_small_and_holds_no_script_of_its_own() {
        let bytes: usize = FILES.iter().chain([&INDEX]).map(|file| file.text.len()).sum();
        assert!(bytes < 100_000, "{bytes} bytes");
        let index = std::str::from_utf8(INDEX.text).unwrap();
        for open in ["<script>", " style=", " onclick=", " onload=", "http://", "https://"] {
            assert!(!index.contains(open), "{open}");
        }
        for file in FILES.iter().filter(|file| file.kind.starts_with("text/")) {
            let text = std::str::from_utf8(file.text).unwrap();
            assert!(!text.contains("innerHTML") && !text.contains("insertAdjacentHTML"), "{}", file.name);
            assert!(!text.contains("localStorage") && !text.contains("document.cookie"), "{}", file.name);
        }
    }

    #[test]
    fn what_the_client_has_is_not_sent_again() {
        let mut headers = HeaderMap::new();
        assert_eq!(INDEX.answer(&headers).status(), StatusCode::OK);
        headers.insert(header::IF_NONE_MATCH, INDEX.tag.clone());
        assert_eq!(INDEX.answer(&headers).status(), StatusCode::NOT_MODIFIED);
        assert_eq!(FILES[0].answer(&headers).status(), StatusCode::OK);
    }
}

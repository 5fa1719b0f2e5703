//! Routes that remember what they answer, so that the description of the interface can be held against them.

use std::sync::Arc;

use axum::Router;
use axum::extract::{FromRequestParts, Path, Query};
use axum::handler::Handler;
use axum::http::request::Parts;
use axum::routing::{MethodRouter, delete, get, post};
use serde::de::DeserializeOwned;

use super::App;
use super::reply::{Dialect, Failure};
use crate::error::Error;

/// A method, in capitals, and a path with `{names}`.
pub(super) type Mounted = (&'static str, &'static str);

/// A router, and the list of what is in it.
#[derive(Default)]
pub(super) struct Routes {
    router: Router<Arc<App>>,
    mounted: Vec<Mounted>,
}

impl Routes {
    pub(super) fn get<H: Handler<T, Arc<App>>, T: 'static>(self, path: &'static str, handler: H) -> Self {
        self.add("GET", path, get(handler))
    }

    pub(super) fn post<H: Handler<T, Arc<App>>, T: 'static>(self, path: &'static str, handler: H) -> Self {
        self.add("POST", path, post(handler))
    }

    pub(super) fn delete<H: Handler<T, Arc<App>>, T: 'static>(self, path: &'static str, handler: H) -> Self {
        self.add("DELETE", path, delete(handler))
    }

    fn add(mut self, method: &'static str, path: &'static str, route: MethodRouter<Arc<App>>) -> Self {
        self.router = self.router.route(path, route);
        self.mounted.push((method, path));
        self
    }

    pub(super) fn merge(mut self, other: Routes) -> Self {
        self.router = self.router.merge(other.router);
        self.mounted.extend(other.mounted);
        self
    }

    /// Puts something round all of these.
    pub(super) fn behind(mut self, layer: impl FnOnce(Router<Arc<App>>) -> Router<Arc<App>>) -> Self {
        self.router = layer(self.router);
        self
    }

    pub(super) fn mounted(&self) -> &[Mounted] {
        &self.mounted
    }

    pub(super) fn into_router(self) -> Router<Arc<App>> {
        self.router
    }
}

/// The one parameter of a path. Refused, when it is not UTF-8, in the words of the path's dialect.
pub(super) struct Named(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for Named {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let path = Path::<String>::from_request_parts(parts, state).await;
        path.map(|Path(name)| Named(name)).map_err(|e| bad(parts, e.body_text()))
    }
}

/// The query. Refused, when a value is not what was expected, in the words of the path's dialect.
pub(super) struct Asked<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Asked<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let query = Query::<T>::from_request_parts(parts, state).await;
        query.map(|Query(asked)| Asked(asked)).map_err(|e| bad(parts, e.body_text()))
    }
}

fn bad(parts: &Parts, message: String) -> Failure {
    Failure::new(Dialect::of(parts.uri.path()), Error::bad_request(message))
}

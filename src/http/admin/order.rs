//! What an order to change versions may say: its body, read and checked. It must not know what comes of it.

use axum::extract::Request;
use serde::Deserialize;

use crate::error::{Error, Result};
use crate::http::reply::Failure;
use crate::http::rollout_reply::{self, Wait};
use crate::http::{App, body};
use crate::repository::{CanaryConfig, Park, duration};
use crate::rollout::Options;

/// The body of stage, promote, rollback, settle and abort; each takes what makes sense for it.
#[derive(Debug, Default, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct Order {
    /// Which model, where the path does not say it and several are served. Beside a path that does, the same one.
    pub(super) model: Option<String>,
    /// How long the previous version stays resident after the switch: `90s`, `5m`, `1h30m`; a year at most.
    #[schema(pattern = "^(0|(?=[0-9])([0-9]+d)?([0-9]+h)?([0-9]+m)?([0-9]+s)?([0-9]+ms)?)$")]
    pub(super) observe: Option<String>,
    #[schema(inline)]
    pub(super) wait: Option<Wait>,
    /// For the record.
    pub(super) reason: Option<String>,
    /// Who orders it, for the record.
    pub(super) actor: Option<String>,
    /// Let a version serve that clients of the live one could not rely on.
    #[serde(default)]
    accept_contract_change: bool,
    /// Percent of requests that it answers step by step before it answers all, instead of what the model says; `[]`: all at once.
    #[schema(schema_with = crate::http::openapi::percentages)]
    canary: Option<Vec<f64>>,
    /// How long each step lasts.
    #[schema(pattern = "^(?=.*[1-9])(?=[0-9])([0-9]+d)?([0-9]+h)?([0-9]+m)?([0-9]+s)?([0-9]+ms)?$")]
    canary_step: Option<String>,
    /// Or until it has answered so many requests in it.
    #[schema(minimum = 1)]
    canary_requests: Option<u64>,
    /// By what clients stay with the version that answered them: `request`, `api-key` or `header:<name>`.
    #[schema(pattern = "^(request|api-key|header:.+)$")]
    sticky: Option<String>,
    /// Of requests, the share that the other version computes too, for comparison.
    #[schema(minimum = 0, maximum = 1)]
    shadow: Option<f64>,
    /// For `stage` alone, which has a body of its own in the description.
    #[schema(ignore)]
    pub(super) park: Option<Park>,
}

pub(super) const MOST_ORDER_BYTES: usize = 64 << 10;

impl Order {
    pub(super) async fn read(app: &App, request: Request) -> Result<(Order, bool), Failure> {
        let streams = rollout_reply::wants_events(request.headers());
        if let Some(query) = request.uri().query().filter(|query| !query.is_empty()) {
            // It was to change how traffic moves, and would be lost in silence.
            let message = format!("'?{query}' means nothing here: what is ordered stands in the body, as JSON");
            return Err(Failure::native(Error::BadRequest { message, param: None }));
        }
        let bytes = body::read(request, app.limits.bounds(MOST_ORDER_BYTES)).await.map_err(Failure::native)?;
        let order: Order = body::json_or_default(&bytes).map_err(Failure::native)?;
        Ok((order, streams))
    }

    /// Whoever wants something in host memory must not believe that it comes there.
    pub(super) fn parks_nothing(self) -> Result<Self> {
        match self.park {
            Some(_) => Err(Error::bad_param("park", "park: only `stage` takes it")),
            None => Ok(self),
        }
    }

    /// The path decides; a body that says otherwise was meant for something else.
    pub(super) fn agrees(&self, model: &str) -> Result<()> {
        match self.model.as_deref() {
            Some(named) if named != model => {
                Err(Error::bad_param("model", format!("model: expected '{model}', as the path says, found '{named}'")))
            }
            _ => Ok(()),
        }
    }

    /// The same for a path that names a version, which is only looked up where there is something to compare.
    pub(super) async fn agrees_with(&self, app: &App, reference: &str) -> Result<(), Failure> {
        if self.model.is_none() {
            return Ok(());
        }
        let target = app.supervisor.resolve(reference).await.map_err(Failure::native)?;
        self.agrees(target.slot.name()).map_err(Failure::native)
    }

    pub(super) fn options(&self) -> Result<Options> {
        let time = |name: &'static str, text: &Option<String>| {
            let read = |text: &str| {
                duration::parse(text).map_err(|reason| Error::bad_param(name, format!("{name}: {reason}")))
            };
            text.as_deref().map(read).transpose()
        };
        let wrong = |name: &'static str| move |reason| Error::bad_param(name, format!("{name}: {reason}"));
        if let Some(steps) = &self.canary {
            CanaryConfig::check_steps(steps).map_err(wrong("canary"))?;
        }
        let canary_step = time("canary_step", &self.canary_step)?;
        if canary_step.is_some_and(|step| step.is_zero()) {
            return Err(wrong("canary_step")("a duration of zero, expected a longer one".to_owned()));
        }
        if canary_step.is_some() && self.canary_requests.is_some() {
            let message = "canary_step and canary_requests: a step lasts for a time or for so many requests, not both";
            return Err(Error::bad_param("canary_requests", message));
        }
        if self.canary_requests == Some(0) {
            return Err(wrong("canary_requests")("0, expected a whole number of at least 1".to_owned()));
        }
        if let Some(share) = self.shadow.filter(|share| !(0.0..=1.0).contains(share)) {
            return Err(wrong("shadow")(format!("{share}, expected a share from 0.0 to 1.0")));
        }
        Ok(Options {
            observe: time("observe", &self.observe)?,
            canary: self.canary.clone(),
            canary_step,
            canary_requests: self.canary_requests,
            sticky: self.sticky.as_deref().map(str::parse).transpose().map_err(wrong("sticky"))?,
            shadow: self.shadow,
            reason: self.reason.clone(),
            actor: self.actor.clone(),
            accept_contract_change: self.accept_contract_change,
        })
    }
}

//! Whether this process lives, whether it can serve, and what it counts. For the operator's listener, without a token.

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use domain::{Kind, Problem};
use http::header;
use serde::Serialize;
use utoipa::ToSchema;

use crate::{Gateway, answer::Answer, json::Json, metrics::render};

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Health {
    status: &'static str,
}

#[derive(Debug, thiserror::Error)]
#[error("this process is shutting down; send requests to another one")]
struct Draining;

impl Problem for Draining {
    fn kind(&self) -> Kind {
        Kind::Unavailable
    }

    fn code(&self) -> &'static str {
        "server.draining"
    }
}

/// The process answers.
#[utoipa::path(get, path = "/healthz", responses((status = 200, body = Health)))]
pub(crate) async fn alive() -> Json<Health> {
    Json(Health { status: "ok" })
}

/// The process takes requests, and its database answers.
#[utoipa::path(get, path = "/readyz", responses((status = 200, body = Health)))]
pub(crate) async fn ready(State(gateway): State<Gateway>) -> Answer<Health> {
    if gateway.shutdown.is_cancelled() {
        return Err(Draining.into());
    }
    gateway.db.ready().await?;
    Ok(Json(Health { status: "ready" }))
}

/// Prometheus' text format.
#[utoipa::path(get, path = "/metrics", responses((status = 200, body = String, content_type = "text/plain")))]
pub(crate) async fn metrics(State(gateway): State<Gateway>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], render(&gateway.metrics)).into_response()
}

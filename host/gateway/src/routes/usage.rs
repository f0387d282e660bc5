//! What was used, and what it costs.

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use billing_meter::usage::{self, UsageError, UsageEvent, UsageReport};
use domain::{TenantId, Timestamp};
use http::{HeaderMap, HeaderName, header};
use serde::Deserialize;
use tenancy::{TenantTx, keys::Scope};
use utoipa::IntoParams;

use crate::{
    Gateway,
    answer::{Answer, accepts},
    caller::Caller,
    json::Json,
    page::{Asked, List, Listing, PageParams},
    problem::Refusal,
};

/// Lines of JSON.
const NDJSON: &str = "application/x-ndjson";
const NEXT_CURSOR: HeaderName = HeaderName::from_static("x-next-cursor");

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct UsageQuery {
    /// RFC 3339, included. The begin of the month when absent.
    pub(crate) from: Option<String>,
    /// RFC 3339, not included. The end of this month when absent.
    pub(crate) to: Option<String>,
    /// Of `day`, `agent`, `kind`, `tool`, `model`, `external_user_id` and `api_key`, separated by commas.
    pub(crate) group_by: Option<String>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct EventsQuery {
    /// RFC 3339, included. The begin of the month when absent.
    from: Option<String>,
    /// RFC 3339, not included. The end of this month when absent.
    to: Option<String>,
}

/// Totals: the sums of the events. Scope `usage:read`.
#[utoipa::path(get, path = "/v1/usage", params(UsageQuery), responses((status = 200, body = UsageReport)))]
pub(crate) async fn report(
    State(gateway): State<Gateway>,
    caller: Caller,
    Asked(asked): Asked<UsageQuery>,
) -> Answer<UsageReport> {
    caller.require_unbound(Scope::UsageRead)?;
    let mut tx = caller.tenant().begin().await?;
    let report = asked.report(&mut tx, gateway.clock.now()).await?;
    Ok(Json(report))
}

/// The events, newest first: each is one line of the bill. With `Accept: application/x-ndjson` as CloudEvents 1.0, one a
/// line; the cursor of the next page is then in `X-Next-Cursor`. Scope `usage:read`.
#[utoipa::path(
    get, path = "/v1/usage/events", params(PageParams, EventsQuery),
    responses((status = 200, content((List<UsageEvent> = "application/json"), (String = "application/x-ndjson"))))
)]
pub(crate) async fn events(
    State(gateway): State<Gateway>,
    caller: Caller,
    listing: Listing<EventsQuery>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    caller.require_unbound(Scope::UsageRead)?;
    let EventsQuery { from, to } = &listing.filter;
    let (from, to) = usage::range(from.as_deref(), to.as_deref(), gateway.clock.now())?;
    let mut tx = caller.tenant().begin().await?;
    let page = usage::events(&mut tx, from, to, listing.page).await?;
    let list = listing.list(page);
    Ok(match accepts(&headers, NDJSON) {
        true => lines(caller.tenant().id(), &list),
        false => Json(list).into_response(),
    })
}

impl UsageQuery {
    pub(crate) async fn report(&self, tx: &mut TenantTx, now: Timestamp) -> Result<UsageReport, UsageError> {
        let (from, to) = usage::range(self.from.as_deref(), self.to.as_deref(), now)?;
        let group_by = usage::group_by(self.group_by.as_deref().unwrap_or_default())?;
        usage::totals(tx, from, to, &group_by).await
    }
}

fn lines(tenant: TenantId, list: &List<UsageEvent>) -> Response {
    let text: String = list.data.iter().map(|event| format!("{}\n", usage::cloud_event(event, tenant))).collect();
    let mut response = ([(header::CONTENT_TYPE, NDJSON)], text).into_response();
    if let Some(cursor) = list.next_cursor.as_deref().and_then(|cursor| cursor.parse().ok()) {
        response.headers_mut().insert(NEXT_CURSOR, cursor);
    }
    response
}

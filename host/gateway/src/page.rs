//! Lists: `?limit=`, `?cursor=` and a list's own filters; cursors that only we can write.

use std::{collections::BTreeMap, sync::Arc};

use agent_config::page::{TextPage, TextPageRequest};
use axum::extract::{FromRequestParts, Query};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use domain::page::{PAGE_ROWS_DEFAULT, PAGE_ROWS_MAX, Page, PageRequest};
use hmac::{Hmac, KeyInit, Mac};
use http::request::Parts;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};
use sha2::Sha256;
use tenancy::seal::MasterKey;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::{
    Gateway, json,
    json::Json,
    problem::{Refusal, RequestError},
};

/// Bytes of a cursor's MAC: half of SHA-256, as RFC 2104 allows.
const MAC_BYTES: usize = 16;

/// One page of a list.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct List<T> {
    pub(crate) data: Vec<T>,
    /// For `?cursor=`; null on the last page.
    pub(crate) next_cursor: Option<String>,
}

impl<T> List<T> {
    /// A list that is always one page.
    pub(crate) fn whole(data: Vec<T>) -> Self {
        Self { data, next_cursor: None }
    }
}

/// What every list takes.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "the shape of what `Listing` reads, for the document")]
pub(crate) struct PageParams {
    /// Rows of one page.
    #[param(minimum = 1, maximum = 100, default = 20)]
    limit: Option<u32>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

/// A list without filters.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NoFilter {}

/// What a request for a list asks for. Taken after the `Caller` or the `Operator`, for whom its cursors are.
#[derive(Debug)]
pub(crate) struct Listing<F = NoFilter> {
    pub(crate) page: PageRequest,
    pub(crate) filter: F,
    place: Place,
}

/// The same for a list whose rows have no id, in the order of their names.
#[derive(Debug)]
pub(crate) struct NameListing<F = NoFilter> {
    pub(crate) page: TextPageRequest,
    pub(crate) filter: F,
    place: Place,
}

/// Whose list it is, and where: a cursor is of both.
#[derive(Debug)]
struct Place {
    cursors: CursorKey,
    owner: CursorOwner,
    path: String,
}

/// The tenant whose cursors a request may use; nil for the operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CursorOwner(pub(crate) Uuid);

impl<F: DeserializeOwned> FromRequestParts<Gateway> for Listing<F> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, gateway: &Gateway) -> Result<Self, Refusal> {
        let place = Place::of(parts, gateway);
        let mut query = query(parts)?;
        let limit = limit(query.remove("limit").as_deref())?;
        let after = query.remove("cursor").map(|cursor| place.open(&cursor)).transpose()?;
        let after = after.map(|after| Uuid::from_slice(&after)).transpose().map_err(|_| RequestError::BadCursor)?;
        let filter = filter(query)?;
        let page = PageRequest { limit, after };
        Ok(Listing { page, filter, place })
    }
}

impl<F: DeserializeOwned> FromRequestParts<Gateway> for NameListing<F> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, gateway: &Gateway) -> Result<Self, Refusal> {
        let place = Place::of(parts, gateway);
        let mut query = query(parts)?;
        let limit = limit(query.remove("limit").as_deref())?;
        let after = query.remove("cursor").map(|cursor| place.open(&cursor)).transpose()?;
        let after = after.map(String::from_utf8).transpose().map_err(|_| RequestError::BadCursor)?;
        Ok(NameListing { page: TextPageRequest { limit, after }, filter: filter(query)?, place })
    }
}

impl Place {
    fn of(parts: &Parts, gateway: &Gateway) -> Place {
        let owner = parts.extensions.get().copied().unwrap_or(CursorOwner(Uuid::nil()));
        Place { cursors: gateway.cursors.clone(), owner, path: parts.uri.path().to_owned() }
    }

    fn seal(&self, after: &[u8]) -> String {
        self.cursors.seal(self.owner, &self.path, after)
    }

    fn open(&self, cursor: &str) -> Result<Vec<u8>, RequestError> {
        self.cursors.open(self.owner, &self.path, cursor)
    }
}

impl<F> NameListing<F> {
    pub(crate) fn answer<T>(&self, page: TextPage<T>) -> Json<List<T>> {
        let next_cursor = page.next.map(|after| self.place.seal(after.as_bytes()));
        Json(List { data: page.data, next_cursor })
    }
}

impl<F> Listing<F> {
    pub(crate) fn list<T>(&self, page: Page<T>) -> List<T> {
        let next_cursor = page.next.map(|after| self.place.seal(after.as_bytes()));
        List { data: page.data, next_cursor }
    }

    pub(crate) fn answer<T>(&self, page: Page<T>) -> Json<List<T>> {
        Json(self.list(page))
    }
}

/// The query parameters of a route that is no list.
#[derive(Debug)]
pub(crate) struct Asked<F>(pub(crate) F);

impl<F: DeserializeOwned> FromRequestParts<Gateway> for Asked<F> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &Gateway) -> Result<Self, Refusal> {
        Ok(Asked(filter(query(parts)?)?))
    }
}

fn query(parts: &Parts) -> Result<BTreeMap<String, String>, RequestError> {
    let unreadable = |_| RequestError::field("", "the query is not `name=value&...`, percent-encoded UTF-8");
    let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(&parts.uri).map_err(unreadable)?;
    let mut query = BTreeMap::new();
    for (name, value) in pairs {
        if name.contains('\0') || value.contains('\0') {
            return Err(RequestError::Nul);
        }
        let pointer = format!("/{name}");
        if query.insert(name, value).is_some() {
            return Err(RequestError::field(&pointer, "this query parameter stands twice; give it once"));
        }
    }
    Ok(query)
}

/// Filters are texts, or types that are written as texts.
fn filter<F: DeserializeOwned>(query: BTreeMap<String, String>) -> Result<F, RequestError> {
    json::from_value(Value::Object(query.into_iter().map(|(name, text)| (name, text.into())).collect::<Map<_, _>>()))
}

fn limit(text: Option<&str>) -> Result<u32, RequestError> {
    match text.map(str::parse) {
        None => Ok(PAGE_ROWS_DEFAULT),
        Some(Ok(limit)) if (1..=PAGE_ROWS_MAX).contains(&limit) => Ok(limit),
        Some(_) => Err(RequestError::field("/limit", format!("use a number from 1 to {PAGE_ROWS_MAX}"))),
    }
}

/// Signs cursors: one tenant's cursor of one list is nothing to anybody else or anywhere else.
#[derive(Clone)]
pub(crate) struct CursorKey(Arc<Hmac<Sha256>>);

impl std::fmt::Debug for CursorKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CursorKey")
    }
}

impl CursorKey {
    pub(crate) fn new(master: &MasterKey) -> Self {
        // A shorter key is filled up with zeros (RFC 2104).
        let mut block = [0; 64];
        block[..32].copy_from_slice(&*master.derive("belljar page cursor 1"));
        Self(Arc::new(Hmac::new(&block.into())))
    }

    fn seal(&self, owner: CursorOwner, path: &str, after: &[u8]) -> String {
        let mac = self.mac(owner, path, after).finalize().into_bytes();
        BASE64_URL_SAFE_NO_PAD.encode([after, &mac[..MAC_BYTES]].concat())
    }

    fn open(&self, owner: CursorOwner, path: &str, cursor: &str) -> Result<Vec<u8>, RequestError> {
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(cursor).map_err(|_| RequestError::BadCursor)?;
        let (after, mac) = bytes.split_last_chunk::<MAC_BYTES>().ok_or(RequestError::BadCursor)?;
        self.mac(owner, path, after).verify_truncated_left(mac).map_err(|_| RequestError::BadCursor)?;
        Ok(after.to_vec())
    }

    fn mac(&self, owner: CursorOwner, path: &str, after: &[u8]) -> Hmac<Sha256> {
        Hmac::clone(&self.0).chain_update(owner.0.as_bytes()).chain_update(after).chain_update(path)
    }
}

#[cfg(test)]
mod tests {
    use domain::{Ids, Problem, SystemIds};

    use super::*;

    #[test]
    fn a_cursor_opens_only_where_it_was_given() {
        let key = CursorKey::new(&MasterKey::new([7; 32]));
        let (ada, bob, after) = (CursorOwner(SystemIds.uuid()), CursorOwner(SystemIds.uuid()), SystemIds.uuid());
        let cursor = key.seal(ada, "/v1/runs", after.as_bytes());
        assert_eq!(key.open(ada, "/v1/runs", &cursor).unwrap(), after.as_bytes());
        let mut forged = BASE64_URL_SAFE_NO_PAD.decode(&cursor).unwrap();
        forged[15] ^= 1;
        let forged = BASE64_URL_SAFE_NO_PAD.encode(forged);
        for (owner, path, cursor) in [
            (bob, "/v1/runs", cursor.as_str()),
            (ada, "/v1/agents", &cursor),
            (ada, "/v1/runs", &forged),
            (ada, "/v1/runs", &cursor[..30]),
            (ada, "/v1/runs", ""),
            (ada, "/v1/runs", "%%"),
        ] {
            assert_eq!(key.open(owner, path, cursor).unwrap_err().code(), "page.bad_cursor", "{path} {cursor}");
        }
    }

    #[test]
    fn a_page_has_one_to_a_hundred_rows() {
        for (text, expected) in [
            (None, Some(20)),
            (Some("1"), Some(1)),
            (Some("100"), Some(100)),
            (Some("0"), None),
            (Some("101"), None),
            (Some("-1"), None),
            (Some("ten"), None),
            (Some(""), None),
        ] {
            assert_eq!(limit(text).ok(), expected, "{text:?}");
        }
    }

    #[test]
    fn a_filter_nobody_knows_is_refused() {
        let parts = |uri: &str| http::Request::builder().uri(uri).body(()).unwrap().into_parts().0;
        let read = |uri| query(&parts(uri)).and_then(filter::<NoFilter>).map_err(|error| error.fields());
        assert!(read("/v1/agents").is_ok());
        assert_eq!(read("/v1/agents?colour=red").unwrap_err()[0].pointer, "/colour");
        assert_eq!(read("/v1/agents?a=1&a=2").unwrap_err()[0].pointer, "/a");
        assert!(matches!(query(&parts("/v1/agents?a=%00")), Err(RequestError::Nul)));
    }
}

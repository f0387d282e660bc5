//! From an API key to a `Caller`: which tenant, and what it may do.

use axum::extract::FromRequestParts;
use conversation_store::conversations::EXTERNAL_USER_ID_BYTES_MAX;
use domain::{AgentId, ApiKeyId, ExposeSecret, FieldError, Kind, Problem, Timestamp};
use http::{HeaderMap, HeaderName, header, request::Parts};
use subtle::ConstantTimeEq;
use tenancy::{
    KeyHolder, Stamp, Tenant,
    keys::{NewKey, Scope},
};
use uuid::Uuid;

use crate::{Gateway, cors, idempotency::Holder, limits, page::CursorOwner, problem::Refusal, rates::Asker};

const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// Who asks. Handlers take it first, so that nothing else of a request is looked at before.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    tenant: Tenant,
    pub(crate) key: ApiKeyId,
    pub(crate) scopes: Vec<Scope>,
    /// The only agents that the key may speak with.
    agents: Option<Vec<AgentId>>,
    /// The only end user that the key speaks for.
    external_user_id: Option<String>,
    /// As it was when the key was looked up.
    pub(crate) configuration: Stamp,
}

/// Whoever holds the operator's token.
#[derive(Debug)]
pub(crate) struct Operator;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum CallerError {
    #[error("no API key: send `Authorization: Bearer KEY` or `X-API-Key: KEY`")]
    Missing,
    #[error("`Authorization` and `X-API-Key` hold different keys; send one")]
    Ambiguous,
    #[error("this is not an API key of anybody; check that it is whole")]
    Unknown,
    #[error("this API key was revoked; use another one")]
    Revoked,
    #[error("this API key has expired; use another one")]
    Expired,
    #[error("this tenant is suspended; ask the operator")]
    Suspended,
    #[error("this API key lacks the scope `{}`; use one that has it", .0.as_str())]
    MissingScope(Scope),
    #[error("this API key is bound to agents or to one end user and may not do this; use one that is not bound")]
    Bound,
    #[error("this API key is bound to another `external_user_id`; leave the field out")]
    OtherUser,
    #[error("an `external_user_id` has 1 to {EXTERNAL_USER_ID_BYTES_MAX} bytes and no control characters")]
    BadUser,
    #[error("a key gives no more than it has: {0}")]
    Widened(&'static str, FieldError),
    #[error("no operator token, or a wrong one: send `Authorization: Bearer TOKEN`")]
    NotOperator,
}

impl Problem for CallerError {
    fn kind(&self) -> Kind {
        match self {
            CallerError::Missing
            | CallerError::Ambiguous
            | CallerError::Unknown
            | CallerError::Revoked
            | CallerError::Expired
            | CallerError::NotOperator => Kind::Unauthenticated,
            CallerError::Suspended
            | CallerError::MissingScope(_)
            | CallerError::Bound
            | CallerError::OtherUser
            | CallerError::Widened(..) => Kind::Forbidden,
            CallerError::BadUser => Kind::Invalid,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            CallerError::Missing => "api_key.missing",
            CallerError::Ambiguous => "api_key.ambiguous",
            CallerError::Unknown => "api_key.unknown",
            CallerError::Revoked => "api_key.revoked",
            CallerError::Expired => "api_key.expired",
            CallerError::Suspended => "tenant.suspended",
            CallerError::MissingScope(_) => "api_key.missing_scope",
            CallerError::Bound => "api_key.bound",
            CallerError::OtherUser => "api_key.other_external_user",
            CallerError::BadUser => "request.invalid",
            CallerError::Widened(..) => "api_key.widened",
            CallerError::NotOperator => "operator.unauthenticated",
        }
    }

    fn fields(&self) -> Vec<FieldError> {
        match self {
            CallerError::OtherUser | CallerError::BadUser => {
                vec![FieldError::new("/external_user_id", self.to_string())]
            }
            CallerError::Widened(_, field) => vec![field.clone()],
            _ => Vec::new(),
        }
    }
}

impl FromRequestParts<Gateway> for Caller {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, gateway: &Gateway) -> Result<Self, Refusal> {
        let presented = presented_key(&parts.headers)?;
        let holder = gateway.db.resolve_api_key(&gateway.hasher, presented).await?.ok_or(CallerError::Unknown)?;
        admit(holder.revoked_at, holder.expires_at, holder.suspended, gateway.clock.now())?;
        cors::decide(parts, &holder.tenant).await?;
        let standing = gateway.rates.take(&asker(&holder)).await;
        let let_in = standing.check();
        limits::note_standing(&parts.extensions, standing);
        let_in?;
        gateway.shared.count(holder.tenant.id(), &parts.extensions)?;
        parts.extensions.insert(CursorOwner(holder.tenant.id().uuid()));
        parts.extensions.insert(Holder(holder.key_id.uuid()));
        Ok(Caller::from(holder))
    }
}

impl FromRequestParts<Gateway> for Operator {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, gateway: &Gateway) -> Result<Self, Refusal> {
        let given = bearer(&parts.headers).unwrap_or_default();
        let token = gateway.operator_token.expose_secret();
        if !bool::from(given.as_bytes().ct_eq(token.as_bytes())) {
            return Err(CallerError::NotOperator.into());
        }
        parts.extensions.insert(CursorOwner(Uuid::nil()));
        parts.extensions.insert(Holder(Uuid::nil()));
        Ok(Operator)
    }
}

fn asker(holder: &KeyHolder) -> Asker {
    let bound = holder.agents.is_some() || holder.external_user_id.is_some();
    Asker {
        tenant: holder.tenant.id(),
        requests_per_minute: holder.requests_per_minute,
        bound_key: bound.then_some(holder.key_id),
    }
}

impl From<KeyHolder> for Caller {
    fn from(holder: KeyHolder) -> Self {
        let KeyHolder { tenant, key_id, scopes, agents, external_user_id, configuration, .. } = holder;
        Caller { tenant, key: key_id, scopes, agents, external_user_id, configuration }
    }
}

impl Caller {
    pub(crate) fn tenant(&self) -> &Tenant {
        &self.tenant
    }

    pub(crate) fn require(&self, scope: Scope) -> Result<(), CallerError> {
        if scope.held_in(&self.scopes) { Ok(()) } else { Err(CallerError::MissingScope(scope)) }
    }

    /// For what concerns the whole tenant: a key that is bound never does it, whatever its scopes.
    pub(crate) fn require_unbound(&self, scope: Scope) -> Result<(), CallerError> {
        self.require(scope)?;
        match (&self.agents, &self.external_user_id) {
            (None, None) => Ok(()),
            _ => Err(CallerError::Bound),
        }
    }

    /// For what no agent takes part in: a key that is bound to agents does it not.
    pub(crate) fn require_any_agent(&self, scope: Scope) -> Result<(), CallerError> {
        self.require(scope)?;
        if self.agents.is_none() { Ok(()) } else { Err(CallerError::Bound) }
    }

    /// The agents that the key is bound to.
    pub(crate) fn agents(&self) -> Option<&[AgentId]> {
        self.agents.as_deref()
    }

    /// The end user that the key is bound to.
    pub(crate) fn bound_user(&self) -> Option<&str> {
        self.external_user_id.as_deref()
    }

    /// The end user that a request is made for.
    pub(crate) fn speaks_for(&self, asked: Option<String>) -> Result<Option<String>, CallerError> {
        speaks_for(self.bound_user(), asked)
    }

    /// Whether the key may know of something that this agent did for this end user.
    pub(crate) fn sees(&self, agent: Option<AgentId>, user: Option<&str>) -> bool {
        sees(self.agents(), self.bound_user(), agent, user)
    }

    /// A key hands on no more than it has: scopes, agents and end user.
    pub(crate) fn may_mint(&self, new: NewKey) -> Result<NewKey, CallerError> {
        may_mint(&self.scopes, self.agents(), self.bound_user(), new)
    }
}

fn presented_key(headers: &HeaderMap) -> Result<&str, CallerError> {
    let api_key = headers.get(API_KEY).map(|value| value.to_str().unwrap_or_default().trim());
    match (bearer(headers), api_key) {
        (Some(one), Some(other)) if one != other => Err(CallerError::Ambiguous),
        (Some(key), _) | (None, Some(key)) => Ok(key),
        (None, None) => Err(CallerError::Missing),
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, key) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.trim().split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
}

fn admit(
    revoked_at: Option<Timestamp>,
    expires_at: Option<Timestamp>,
    suspended: bool,
    now: Timestamp,
) -> Result<(), CallerError> {
    match (revoked_at, expires_at) {
        (Some(_), _) => Err(CallerError::Revoked),
        (None, Some(at)) if at <= now => Err(CallerError::Expired),
        _ if suspended => Err(CallerError::Suspended),
        _ => Ok(()),
    }
}

fn speaks_for(bound: Option<&str>, asked: Option<String>) -> Result<Option<String>, CallerError> {
    let fits =
        |user: &String| (1..=EXTERNAL_USER_ID_BYTES_MAX).contains(&user.len()) && !user.chars().any(char::is_control);
    match (bound, asked) {
        (_, Some(asked)) if !fits(&asked) => Err(CallerError::BadUser),
        (Some(bound), Some(asked)) if bound != asked => Err(CallerError::OtherUser),
        (Some(bound), _) => Ok(Some(bound.to_owned())),
        (None, asked) => Ok(asked),
    }
}

fn sees(agents: Option<&[AgentId]>, bound: Option<&str>, agent: Option<AgentId>, user: Option<&str>) -> bool {
    agents.is_none_or(|agents| agent.is_some_and(|agent| agents.contains(&agent)))
        && bound.is_none_or(|bound| user == Some(bound))
}

fn may_mint(
    scopes: &[Scope],
    agents: Option<&[AgentId]>,
    user: Option<&str>,
    mut new: NewKey,
) -> Result<NewKey, CallerError> {
    let widened = |pointer: String, words| Err(CallerError::Widened(words, FieldError::new(pointer, words)));
    if let Some(at) = new.scopes.iter().position(|scope| !scope.held_in(scopes)) {
        return widened(format!("/scopes/{at}"), "leave out the scopes that your own key lacks");
    }
    if let Some(agents) = agents {
        let asked = new.agents.get_or_insert_with(|| agents.to_vec());
        if let Some(at) = asked.iter().position(|agent| !agents.contains(agent)) {
            return widened(format!("/agents/{at}"), "name only agents that your own key is bound to");
        }
    }
    if let Some(user) = user
        && new.external_user_id.get_or_insert_with(|| user.to_owned()) != user
    {
        return widened("/external_user_id".into(), "name the end user that your own key is bound to");
    }
    new.external_user_id = speaks_for(user, new.external_user_id)?;
    Ok(new)
}

#[cfg(test)]
mod tests {
    use domain::{Ids, SystemIds};
    use http::HeaderValue;

    use super::*;

    fn headers(authorization: Option<&'static str>, api_key: Option<&'static str>) -> HeaderMap {
        let mut headers = HeaderMap::new();
        authorization.map(|value| headers.insert(header::AUTHORIZATION, HeaderValue::from_static(value)));
        api_key.map(|value| headers.insert(API_KEY, HeaderValue::from_static(value)));
        headers
    }

    #[test]
    fn a_key_comes_in_one_of_two_headers() {
        for (authorization, api_key, expected) in [
            (None, None, Err(CallerError::Missing)),
            (Some("Basic x"), None, Err(CallerError::Missing)),
            (Some("Bearer a"), Some("b"), Err(CallerError::Ambiguous)),
            (Some("Bearer a"), Some("a"), Ok("a")),
            (Some("bearer  a"), None, Ok("a")),
            (None, Some("a"), Ok("a")),
        ] {
            assert_eq!(presented_key(&headers(authorization, api_key)), expected, "{authorization:?} {api_key:?}");
        }
    }

    #[test]
    fn a_key_that_has_ended_says_how() {
        let (past, now, later) = (Timestamp::from_unix_us(1), Timestamp::from_unix_us(2), Timestamp::from_unix_us(3));
        assert_eq!(admit(Some(past), Some(past), true, now), Err(CallerError::Revoked));
        assert_eq!(admit(None, Some(now), true, now), Err(CallerError::Expired));
        assert_eq!(admit(None, Some(later), true, now), Err(CallerError::Suspended));
        assert_eq!(admit(None, Some(later), false, now), Ok(()));
    }

    #[test]
    fn a_bound_key_speaks_for_its_user() {
        let ada = || Some("ada".to_owned());
        assert_eq!(speaks_for(Some("ada"), Some("bob".into())), Err(CallerError::OtherUser));
        assert_eq!(speaks_for(Some("ada"), None), Ok(ada()));
        assert_eq!(speaks_for(Some("ada"), ada()), Ok(ada()));
        assert_eq!(speaks_for(None, ada()), Ok(ada()));
        assert_eq!(speaks_for(None, None), Ok(None));
        assert_eq!(speaks_for(None, Some(String::new())), Err(CallerError::BadUser));
        assert_eq!(speaks_for(None, Some("a\nb".into())), Err(CallerError::BadUser));
    }

    #[test]
    fn a_bound_key_sees_its_own() {
        let (one, other) = (AgentId::from(SystemIds.uuid()), AgentId::from(SystemIds.uuid()));
        for (agents, bound, agent, user, expected) in [
            (None, None, None, None, true),
            (Some([one]), None, Some(one), Some("ada"), true),
            (Some([one]), None, Some(other), None, false),
            (Some([one]), None, None, None, false),
            (None, Some("ada"), None, Some("ada"), true),
            (None, Some("ada"), None, Some("bob"), false),
            (None, Some("ada"), None, None, false),
        ] {
            assert_eq!(sees(agents.as_ref().map(|a| &a[..]), bound, agent, user), expected, "{agents:?} {bound:?}");
        }
    }

    #[test]
    fn a_key_gives_no_more_than_it_has() {
        let (one, other) = (AgentId::from(SystemIds.uuid()), AgentId::from(SystemIds.uuid()));
        let new = |scope, agents: Option<AgentId>, user: Option<&str>| NewKey {
            name: "n".into(),
            scopes: vec![scope],
            agents: agents.map(|agent| vec![agent]),
            external_user_id: user.map(str::to_owned),
            expires_at: None,
        };
        let mint = |new| may_mint(&[Scope::Chat], Some(&[one]), Some("ada"), new);
        let place = |new| mint(new).unwrap_err().fields()[0].pointer.clone();
        assert_eq!(place(new(Scope::RunsRead, None, None)), "/scopes/0");
        assert_eq!(place(new(Scope::Chat, Some(other), None)), "/agents/0");
        assert_eq!(place(new(Scope::Chat, None, Some("bob"))), "/external_user_id");
        let minted = mint(new(Scope::Chat, None, None)).unwrap();
        assert_eq!((minted.agents, minted.external_user_id.as_deref()), (Some(vec![one]), Some("ada")));
        assert!(may_mint(&[Scope::Admin], None, None, new(Scope::RunsRead, None, None)).is_ok());
    }
}

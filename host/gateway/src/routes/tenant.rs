//! The tenant itself, as its keys see it.

use axum::extract::State;
use domain::{Limits, TenantId, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tenancy::{
    keys::Scope,
    plans::Plan,
    tenants::{self, Settings, TenantChange, TenantInfo},
};
use utoipa::ToSchema;

use crate::{
    Gateway,
    answer::Answer,
    caller::Caller,
    json::{self, Json},
    problem::RequestError,
};

/// The tenant, what its plan allows, and what the key in use may do.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct TenantView {
    id: TenantId,
    name: String,
    plan: Plan,
    limits: LimitsView,
    /// Of the key that asked.
    scopes: Vec<Scope>,
    settings: Settings,
    #[schema(value_type = Object)]
    metadata: Map<String, Value>,
    created_at: Timestamp,
}

/// What one tool call gets when nothing is said, and the most that it can be given.
#[derive(Debug, Serialize, ToSchema)]
struct LimitsView {
    default: Limits,
    ceiling: Limits,
}

/// A merge patch (RFC 7396).
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "the shape of the patch, for the document")]
pub(crate) struct TenantPatch {
    settings: Option<Settings>,
    #[schema(value_type = Option<Object>)]
    metadata: Option<Map<String, Value>>,
}

/// The tenant of the key, its plan and limits, and the key's scopes. Any key.
#[utoipa::path(get, path = "/v1/tenant", responses((status = 200, body = TenantView)))]
pub(crate) async fn show(caller: Caller) -> Answer<TenantView> {
    let mut tx = caller.tenant().begin().await?;
    let info = tenants::get(&mut tx).await?;
    Ok(Json(view(info, caller.scopes)))
}

/// Changes settings and metadata. Scope `admin`.
#[utoipa::path(patch, path = "/v1/tenant", request_body = TenantPatch, responses((status = 200, body = TenantView)))]
pub(crate) async fn change(_: State<Gateway>, caller: Caller, Json(patch): Json<Value>) -> Answer<TenantView> {
    caller.require_unbound(Scope::Admin)?;
    let mut tx = caller.tenant().begin().await?;
    let present = tenants::lock(&mut tx).await?;
    let info = tenants::update(&mut tx, changed(&present, patch, &[])?).await?;
    tx.commit().await?;
    Ok(Json(view(info, caller.scopes)))
}

fn view(info: TenantInfo, scopes: Vec<Scope>) -> TenantView {
    let ceiling = info.plan.tool_limits;
    let limits = LimitsView { default: Limits::DEFAULT.min(ceiling), ceiling };
    let TenantInfo { id, name, plan, settings, metadata, created_at, .. } = info;
    TenantView { id, name, plan, limits, scopes, settings, metadata, created_at }
}

/// What a merge patch makes of a tenant. Settings and metadata are merged; the fields named in `replaced` are taken as
/// they are; no other field is known.
pub(crate) fn changed(present: &TenantInfo, patch: Value, replaced: &[&str]) -> Result<TenantChange, RequestError> {
    let Value::Object(mut patch) = patch else {
        return Err(RequestError::field("", "a merge patch is a JSON object"));
    };
    let mut change = json!({});
    for (name, before) in [("settings", json!(present.settings)), ("metadata", json!(present.metadata))] {
        match patch.remove(name) {
            None => {}
            // Without any setting, each is what it is for a new tenant.
            Some(Value::Null) => change[name] = json!({}),
            Some(part) => {
                let mut merged = before;
                domain::json::merge(&mut merged, part);
                change[name] = merged;
            }
        }
    }
    for (name, value) in patch {
        if !replaced.contains(&name.as_str()) || value.is_null() {
            let known = [&["settings", "metadata"], replaced].concat().join("`, `");
            let detail = format!("cannot be changed to this; what can be changed is `{known}`");
            return Err(RequestError::field(&format!("/{name}"), detail));
        }
        change[name.as_str()] = value;
    }
    json::from_value(change)
}

#[cfg(test)]
mod tests {
    use domain::{Ids, Problem, SystemIds};

    use super::*;

    fn present() -> TenantInfo {
        let plan = Plan {
            name: "free".into(),
            requests_per_minute: 1,
            concurrent_runs: 1,
            concurrent_tool_calls: 1,
            tokens_per_month: None,
            weight: 1,
            tool_limits: Limits::DEFAULT,
            upload_bytes: 1,
            storage_bytes: 1,
            monthly_fee: domain::Money { amount: domain::Amount::ZERO, currency: "USD".into() },
        };
        TenantInfo {
            id: SystemIds.uuid().into(),
            name: "ada".into(),
            plan,
            overrides: Map::new(),
            placement: "main/belljar".into(),
            suspended: false,
            settings: Settings { cors_origins: vec!["https://a.example".into()], ..Settings::default() },
            metadata: Map::from_iter([("a".to_owned(), json!(1))]),
            created_at: Timestamp::from_unix_us(0),
        }
    }

    #[test]
    fn a_patch_changes_what_it_names() {
        let change = |patch| changed(&present(), patch, &[]).unwrap();
        let settings = change(json!({"settings": {"default_model": "demo"}})).settings.unwrap();
        assert_eq!((settings.default_model.as_deref(), settings.cors_origins.len()), (Some("demo"), 1));
        assert_eq!(json!(change(json!({"metadata": {"b": 2}})).metadata), json!({"a": 1, "b": 2}));
        assert_eq!(change(json!({"settings": null})).settings, Some(Settings::default()));
        let nothing = change(json!({}));
        assert!(nothing.settings.is_none() && nothing.metadata.is_none());
    }

    #[test]
    fn a_tenant_cannot_change_what_is_the_operators() {
        let place =
            |patch, replaced: &[&str]| changed(&present(), patch, replaced).unwrap_err().fields()[0].pointer.clone();
        assert_eq!(place(json!({"plan": "pro"}), &[]), "/plan");
        assert_eq!(place(json!({"plan": null}), &["plan"]), "/plan");
        assert_eq!(place(json!({"settings": {"colour": 1}}), &[]), "/settings/colour");
        assert_eq!(place(json!([]), &[]), "");
        assert_eq!(changed(&present(), json!({"plan": "pro"}), &["plan"]).unwrap().plan.as_deref(), Some("pro"));
    }
}

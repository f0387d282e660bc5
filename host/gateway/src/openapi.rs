//! The documents that `/openapi.json` serves: what the handlers say of themselves, and what holds for all of them.

use std::sync::LazyLock;

use axum::response::{IntoResponse, Response};
use http::{Method, StatusCode, header};
use serde_json::{Map, Value, json};
use utoipa::{PartialSchema, ToSchema};

use crate::{operator_api, problem::ProblemBody, tenant_api};

const METHODS: [(&str, Method); 5] = [
    ("get", Method::GET),
    ("post", Method::POST),
    ("put", Method::PUT),
    ("patch", Method::PATCH),
    ("delete", Method::DELETE),
];

static TENANT: LazyLock<Value> = LazyLock::new(|| {
    let document = tenant_api().into_openapi();
    let bearer = json!({"type": "http", "scheme": "bearer", "description": "An API key of the tenant."});
    let header = json!({"type": "apiKey", "in": "header", "name": "X-API-Key"});
    finish(&document, "Belljar", json!({"bearer": bearer, "api_key": header}))
});

static OPERATOR: LazyLock<Value> = LazyLock::new(|| {
    let document = operator_api().into_openapi();
    let bearer = json!({"type": "http", "scheme": "bearer", "description": "The operator's token."});
    finish(&document, "Belljar, for its operator", json!({"bearer": bearer}))
});

/// Every route of the tenants' listener, but for `/openapi.json` itself.
pub fn tenant_routes() -> Vec<(Method, String)> {
    listed(&TENANT)
}

/// Every route of the operator's listener, but for its document.
pub fn operator_routes() -> Vec<(Method, String)> {
    listed(&OPERATOR)
}

pub(crate) async fn tenant() -> Response {
    served(&TENANT)
}

pub(crate) async fn operator() -> Response {
    served(&OPERATOR)
}

fn served(document: &Value) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], document.to_string()).into_response()
}

fn listed(document: &Value) -> Vec<(Method, String)> {
    let paths = document["paths"].as_object().into_iter().flatten();
    paths
        .flat_map(|(path, item)| {
            let methods = METHODS.into_iter().filter(|(name, _)| item.get(name).is_some());
            methods.map(|(_, method)| (method, path.clone()))
        })
        .collect()
}

fn finish(document: &utoipa::openapi::OpenApi, title: &str, schemes: Value) -> Value {
    // A document of ours always becomes JSON; a test reads it.
    let mut document = serde_json::to_value(document).unwrap_or_default();
    document["info"] = json!({"title": title, "version": env!("CARGO_PKG_VERSION")});
    // Any one of them is enough.
    let security = schemes.as_object().into_iter().flatten().map(|(name, _)| json!({name.as_str(): []})).collect();
    document["components"]["securitySchemes"] = schemes;
    let mut schemas = Vec::new();
    ProblemBody::schemas(&mut schemas);
    schemas.push((ProblemBody::name().into_owned(), ProblemBody::schema()));
    for (name, schema) in schemas {
        document["components"]["schemas"][name] = serde_json::to_value(schema).unwrap_or_default();
    }
    for (path, item) in document["paths"].as_object_mut().into_iter().flatten() {
        for (name, _) in METHODS {
            if let Some(operation) = item.get_mut(name).and_then(Value::as_object_mut) {
                complete(path, name, operation, &security);
            }
        }
    }
    document
}

/// What every operation has and no handler says.
fn complete(path: &str, method: &str, operation: &mut Map<String, Value>, security: &Value) {
    let open = matches!(path, "/healthz" | "/readyz" | "/metrics");
    let steps: Vec<&str> = path.split('/').filter(|step| !step.is_empty()).collect();
    let noun = steps.iter().find(|step| !matches!(**step, "v1" | "operator")).copied().unwrap_or_default();
    let id: Vec<&str> = steps.iter().map(|step| step.trim_matches(['{', '}'])).collect();
    operation.insert("operationId".into(), format!("{method}_{}", id.join("_").replace('-', "_")).into());
    operation.insert("tags".into(), json!([noun]));
    operation.insert("security".into(), if open { json!([]) } else { security.clone() });
    let parameters = operation.entry("parameters").or_insert_with(|| json!([]));
    for name in steps.iter().filter_map(|step| step.strip_prefix('{')?.strip_suffix('}')) {
        if let Some(parameters) = parameters.as_array_mut() {
            let schema = json!({"type": "string"});
            parameters.push(json!({"name": name, "in": "path", "required": true, "schema": schema}));
        }
    }
    for (status, response) in operation["responses"].as_object_mut().into_iter().flatten() {
        let reason = status.parse::<StatusCode>().ok().and_then(|status| status.canonical_reason());
        if let (Some(response), Some(reason)) = (response.as_object_mut(), reason) {
            response.entry("description").or_insert_with(|| reason.into());
        }
    }
    if method == "post"
        && let Some(parameters) = operation["parameters"].as_array_mut()
    {
        parameters.push(json!({
            "name": "Idempotency-Key", "in": "header", "required": false, "schema": {"type": "string", "maxLength": 255},
            "description": "Done once, however often it is sent with this key: the first answer is told again, for 24 hours.",
        }));
    }
    let problem = json!({"$ref": format!("#/components/schemas/{}", ProblemBody::name())});
    operation["responses"]["default"] = json!({
        "description": "What went wrong, and what to do.",
        "content": {"application/problem+json": {"schema": problem}},
    });
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Every `$ref` in a document.
    fn refs<'v>(value: &'v Value, found: &mut BTreeSet<&'v str>) {
        match value {
            Value::Object(fields) => {
                found.extend(fields.get("$ref").and_then(Value::as_str));
                fields.values().for_each(|value| refs(value, found));
            }
            Value::Array(items) => items.iter().for_each(|value| refs(value, found)),
            _ => {}
        }
    }

    #[test]
    fn a_document_holds_everything_it_refers_to() {
        for document in [&*TENANT, &*OPERATOR] {
            let mut found = BTreeSet::new();
            refs(document, &mut found);
            found.retain(|reference| document.pointer(&reference[1..]).is_none());
            assert_eq!(found, BTreeSet::new());
        }
    }

    #[test]
    fn every_operation_has_a_name_of_its_own_and_a_summary() {
        for document in [&*TENANT, &*OPERATOR] {
            let mut names = BTreeSet::new();
            for item in document["paths"].as_object().unwrap().values() {
                for (name, _) in METHODS {
                    let Some(operation) = item.get(name) else { continue };
                    assert!(names.insert(operation["operationId"].as_str().unwrap().to_owned()), "{operation}");
                    assert!(operation["summary"].is_string(), "{operation}");
                }
            }
        }
    }

    /// The contract's table, without what later issues bring.
    #[test]
    fn every_route_of_the_contract_is_here() {
        let listed = |routes: Vec<(Method, String)>| {
            let mut lines: Vec<String> = routes.iter().map(|(method, path)| format!("{path} {method}")).collect();
            lines.sort();
            lines
        };
        assert_eq!(
            listed(tenant_routes()),
            [
                "/v1/agents GET",
                "/v1/agents POST",
                "/v1/agents/{agent} DELETE",
                "/v1/agents/{agent} GET",
                "/v1/agents/{agent} PATCH",
                "/v1/agents/{agent}/chat POST",
                "/v1/agents/{agent}/revisions GET",
                "/v1/agents/{agent}/revisions/{revision} GET",
                "/v1/agents/{agent}/revisions/{revision}/activate POST",
                "/v1/api-keys GET",
                "/v1/api-keys POST",
                "/v1/api-keys/{id} DELETE",
                "/v1/budgets GET",
                "/v1/budgets POST",
                "/v1/budgets/{id} DELETE",
                "/v1/budgets/{id} GET",
                "/v1/budgets/{id} PATCH",
                "/v1/conversations GET",
                "/v1/conversations POST",
                "/v1/conversations/{id} DELETE",
                "/v1/conversations/{id} GET",
                "/v1/conversations/{id} PATCH",
                "/v1/conversations/{id}/messages GET",
                "/v1/key-value GET",
                "/v1/key-value/{namespace} GET",
                "/v1/key-value/{namespace}/{key} DELETE",
                "/v1/key-value/{namespace}/{key} GET",
                "/v1/key-value/{namespace}/{key} PUT",
                "/v1/models GET",
                "/v1/price-books/{version} GET",
                "/v1/provider-keys GET",
                "/v1/provider-keys/{name} DELETE",
                "/v1/provider-keys/{name} PUT",
                "/v1/runs GET",
                "/v1/runs/{id} GET",
                "/v1/runs/{id}/cancel POST",
                "/v1/runs/{id}/events GET",
                "/v1/runs/{id}/tool-calls/{call}/decision POST",
                "/v1/secrets GET",
                "/v1/secrets/{name} DELETE",
                "/v1/secrets/{name} PUT",
                "/v1/tenant GET",
                "/v1/tenant PATCH",
                "/v1/tool-calls GET",
                "/v1/tool-calls/{id} GET",
                "/v1/tool-calls/{id}/recording GET",
                "/v1/tool-calls/{id}/replay POST",
                "/v1/tools GET",
                "/v1/tools/{tool} DELETE",
                "/v1/tools/{tool} GET",
                "/v1/tools/{tool}/versions GET",
                "/v1/tools/{tool}/versions POST",
                "/v1/tools/{tool}/versions/{version} DELETE",
                "/v1/tools/{tool}/versions/{version} GET",
                "/v1/tools/{tool}/versions/{version}/calls POST",
                "/v1/tools/{tool}/versions/{version}/wasm GET",
                "/v1/usage GET",
                "/v1/usage/events GET",
                "/v1/webhooks GET",
                "/v1/webhooks POST",
                "/v1/webhooks/{id} DELETE",
                "/v1/webhooks/{id} GET",
                "/v1/webhooks/{id} PATCH",
                "/v1/webhooks/{id}/deliveries GET",
                "/v1/webhooks/{id}/deliveries/{delivery} GET",
                "/v1/webhooks/{id}/deliveries/{delivery}/redeliver POST",
                "/v1/webhooks/{id}/rotate-secret POST",
            ]
        );
        assert_eq!(
            listed(operator_routes()),
            [
                "/healthz GET",
                "/metrics GET",
                "/operator/v1/plans GET",
                "/operator/v1/plans/{name} GET",
                "/operator/v1/plans/{name} PUT",
                "/operator/v1/price-books GET",
                "/operator/v1/price-books POST",
                "/operator/v1/queues GET",
                "/operator/v1/tenants GET",
                "/operator/v1/tenants POST",
                "/operator/v1/tenants/{id} DELETE",
                "/operator/v1/tenants/{id} GET",
                "/operator/v1/tenants/{id} PATCH",
                "/operator/v1/tenants/{id}/api-keys POST",
                "/operator/v1/usage GET",
                "/readyz GET",
            ]
        );
    }
}

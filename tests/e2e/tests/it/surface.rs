//! What others build on, as snapshots: a change of a contract is seen in review.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use insta::assert_snapshot;
use serde_json::Value;

use crate::app::{Answer, TestApp};

const METHODS: [&str; 5] = ["get", "post", "put", "patch", "delete"];

fn project() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

async fn document(app: &TestApp, url: &str) -> Value {
    Answer::of(app.http.get(url)).await.ok()
}

/// Every operation with its method and path.
fn operations(document: &Value) -> impl Iterator<Item = (&'static str, &str, &Value)> {
    document["paths"].as_object().unwrap().iter().flat_map(|(path, item)| {
        METHODS.iter().filter_map(move |method| Some((*method, path.as_str(), item.get(method)?)))
    })
}

/// A schema in few words: `Agent`, `[ToolVersion]`, `List_Agent`, `string`.
fn named(schema: &Value) -> String {
    match schema["$ref"].as_str() {
        Some(reference) => reference.rsplit('/').next().unwrap().to_owned(),
        None if schema["type"] == "array" => format!("[{}]", named(&schema["items"])),
        None => schema["type"].as_str().unwrap_or("any").to_owned(),
    }
}

fn content(body: &Value) -> String {
    let kinds = body["content"].as_object().into_iter().flatten();
    let kinds: Vec<String> = kinds
        .map(|(kind, content)| match kind.as_str() {
            "application/json" => named(&content["schema"]),
            other => format!("{other} {}", named(&content["schema"])),
        })
        .collect();
    kinds.join(" or ")
}

/// One line an operation: `POST /v1/agents (AgentSpec) -> 201 Agent`.
fn lines(document: &Value) -> String {
    let mut lines: Vec<String> = operations(document)
        .map(|(method, path, operation)| {
            let mut query: Vec<&str> = operation["parameters"]
                .as_array()
                .into_iter()
                .flatten()
                .filter(|parameter| parameter["in"] == "query")
                .map(|parameter| parameter["name"].as_str().unwrap())
                .collect();
            query.sort_unstable();
            let query = if query.is_empty() { String::new() } else { format!("?{}", query.join("&")) };
            let body = operation.get("requestBody").map(|body| format!(" ({})", content(body))).unwrap_or_default();
            let mut answers: Vec<String> = operation["responses"]
                .as_object()
                .unwrap()
                .iter()
                .filter(|(status, _)| *status != "default")
                .map(|(status, answer)| format!("{status} {}", content(answer)).trim_end().to_owned())
                .collect();
            answers.sort();
            format!("{path}{query} {}{body} -> {}", method.to_uppercase(), answers.join(", "))
        })
        .collect();
    lines.sort();
    lines.join("\n")
}

/// Every schema with its fields; `?` behind those that may be absent.
fn shapes(document: &Value) -> String {
    let schemas = document["components"]["schemas"].as_object().unwrap();
    let mut lines: Vec<String> = schemas
        .iter()
        .map(|(name, schema)| {
            let mut fields = BTreeMap::new();
            fields_of(schema, &mut fields);
            let fields: Vec<String> = fields.into_iter().map(|(name, shape)| format!("{name}: {shape}")).collect();
            let fields = if fields.is_empty() { values(schema) } else { format!("{{{}}}", fields.join(", ")) };
            format!("{name} {fields}")
        })
        .collect();
    lines.sort();
    lines.join("\n")
}

fn fields_of(schema: &Value, fields: &mut BTreeMap<String, String>) {
    let required: BTreeSet<&str> =
        schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let name = if required.contains(name.as_str()) { name.clone() } else { format!("{name}?") };
        fields.insert(name, values(field));
    }
    for part in schema["allOf"].as_array().into_iter().flatten() {
        match part["$ref"].as_str() {
            Some(reference) => {
                drop(fields.insert(format!("...{}", reference.rsplit('/').next().unwrap()), "all".into()))
            }
            None => fields_of(part, fields),
        }
    }
}

fn values(schema: &Value) -> String {
    let one_of = ["oneOf", "anyOf"].iter().find_map(|name| schema[name].as_array());
    match (schema["enum"].as_array(), one_of) {
        (Some(values), _) => values.iter().map(ToString::to_string).collect::<Vec<_>>().join(" | "),
        (None, Some(choices)) => choices.iter().map(values_or_fields).collect::<Vec<_>>().join(" | "),
        (None, None) => match &schema["type"] {
            Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" | "),
            _ => named(schema),
        },
    }
}

fn values_or_fields(schema: &Value) -> String {
    let mut fields = BTreeMap::new();
    fields_of(schema, &mut fields);
    if fields.is_empty() {
        return values(schema);
    }
    let fields: Vec<String> = fields.into_iter().map(|(name, shape)| format!("{name}: {shape}")).collect();
    format!("{{{}}}", fields.join(", "))
}

#[tokio::test]
async fn the_http_contract_changes_in_the_open() {
    let app = TestApp::start().await;
    let tenants = document(&app, &format!("{}/openapi.json", app.tenant_url)).await;
    let operators = document(&app, &format!("{}/operator/openapi.json", app.operator_url)).await;
    for document in [&tenants, &operators] {
        is_whole(document);
    }
    assert_snapshot!("tenant_routes", lines(&tenants));
    assert_snapshot!("tenant_shapes", shapes(&tenants));
    assert_snapshot!("operator_routes", lines(&operators));
    assert_snapshot!("operator_shapes", shapes(&operators));
    app.stop().await;
}

/// What a client generator trips over.
fn is_whole(document: &Value) {
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"), "{}", document["openapi"]);
    assert!(document["info"]["title"].is_string() && document["info"]["version"].is_string());
    let mut references = Vec::new();
    find_references(document, &mut references);
    for reference in references {
        assert!(document.pointer(reference.strip_prefix('#').unwrap()).is_some(), "{reference} points to nothing");
    }
    let mut ids = BTreeSet::new();
    for (method, path, operation) in operations(document) {
        assert!(ids.insert(operation["operationId"].as_str().unwrap()), "{method} {path} has the id of another");
        assert!(operation["summary"].is_string(), "{method} {path} has no summary");
        let parameters: Vec<&Value> = operation["parameters"].as_array().into_iter().flatten().collect();
        let in_path: BTreeSet<&str> =
            path.split('/').filter_map(|step| step.strip_prefix('{')?.strip_suffix('}')).collect();
        let declared = parameters.iter().filter(|parameter| parameter["in"] == "path");
        let declared: Vec<&str> = declared.map(|parameter| parameter["name"].as_str().unwrap()).collect();
        assert_eq!(declared.iter().copied().collect::<BTreeSet<_>>(), in_path, "{method} {path}");
        let mut names = BTreeSet::new();
        for parameter in parameters {
            assert!(
                names.insert((parameter["name"].as_str(), parameter["in"].as_str())),
                "{method} {path}: {parameter}"
            );
            assert!(parameter["schema"].is_object(), "{method} {path}: {parameter}");
            assert!(parameter["in"] != "path" || parameter["required"] == true, "{method} {path}: {parameter}");
        }
        let answers = operation["responses"].as_object().unwrap();
        assert!(answers.keys().any(|status| status.starts_with('2')), "{method} {path} never succeeds");
        assert!(answers["default"]["content"]["application/problem+json"].is_object(), "{method} {path}");
    }
}

fn find_references<'v>(value: &'v Value, found: &mut Vec<&'v str>) {
    match value {
        Value::Object(fields) => {
            found.extend(fields.get("$ref").and_then(Value::as_str));
            fields.values().for_each(|value| find_references(value, found));
        }
        Value::Array(items) => items.iter().for_each(|value| find_references(value, found)),
        _ => {}
    }
}

#[test]
fn the_contract_of_tools_changes_in_the_open() {
    assert_snapshot!("tool_wit", std::fs::read_to_string(project().join("wit/tool.wit")).unwrap());
}

/// Codes of problems, outcomes, rejections and events: clients compare them. They stand in the sources as `"noun.reason"`.
#[test]
fn the_codes_change_in_the_open() {
    let mut codes = BTreeSet::new();
    for folder in std::fs::read_dir(project().join("host")).unwrap() {
        find_codes(&folder.unwrap().path().join("src"), &mut codes);
    }
    assert_snapshot!("codes", codes.into_iter().collect::<Vec<_>>().join("\n"));
}

fn find_codes(folder: &Path, codes: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            find_codes(&path, codes);
        } else if path.extension().is_some_and(|kind| kind == "rs") && !path.ends_with("tests.rs") {
            let source = std::fs::read_to_string(&path).unwrap();
            let source = source.split("#[cfg(test)]").next().unwrap_or_default();
            codes.extend(source.split('"').filter(|text| is_code(text)).map(str::to_owned));
        }
    }
}

fn is_code(text: &str) -> bool {
    /// What else has this form: names of files.
    const FILES: [&str; 10] = ["example", "json", "key", "lock", "log", "new", "pid", "test", "token", "wasm"];
    let word = |word: &str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    text.split_once('.').is_some_and(|(noun, reason)| word(noun) && word(reason) && !FILES.contains(&reason))
}

//! What a version asks for: grants without values, each with a reason. Pure.

use std::collections::BTreeMap;

use domain::{
    FieldError, Grants, SecretName,
    grants::{Access, HttpGrant, KeyValueGrant},
    json::pointer_step,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

/// Bytes of a reason: it is shown beside the grant.
const REASON_BYTES_MAX: usize = 1024;

/// Grants that a tool asks for. Written by its author, kept in this one form.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Requires {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub http: Vec<Asked<HttpGrant>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub key_value: Vec<Asked<KeyValueGrant>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<Asked<NamedSecret>>,
    /// Only the tenant has the values.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub config: BTreeMap<String, Reason>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scratch_bytes: Option<Asked<Scratch>>,
}

/// A grant and why it is needed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Asked<G> {
    #[serde(flatten)]
    pub grant: G,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamedSecret {
    pub name: SecretName,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scratch {
    pub bytes: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Reason {
    pub reason: String,
}

/// A grant that a version asks for and a binding does not give.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Missing {
    /// `http api.example.com`, `key_value notes`, `secrets token`, `config unit`, `scratch_bytes`.
    pub grant: String,
    /// Why the tool needs it, in its author's words.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

impl Requires {
    /// Reads what an author wrote. Reasons may be absent; a namespace is read where nothing is said; a secret may be a
    /// bare name, a scratch directory a bare number, a config value a bare reason. The mistake points to its place.
    pub fn parse(value: &Value) -> Result<Requires, FieldError> {
        let mut requires = Requires::default();
        let fields = match value {
            Value::Null => return Ok(requires),
            Value::Object(fields) => fields,
            _ => return Err(FieldError::new("", "not an object in the shape of grants")),
        };
        for (kind, asked) in fields {
            let at = pointer_step(kind);
            match kind.as_str() {
                "http" => requires.http = list(&at, asked, |grant| grant)?,
                "key_value" => requires.key_value = list(&at, asked, reading)?,
                "secrets" => requires.secrets = list(&at, asked, |secret| short("name", secret))?,
                "config" => requires.config = config(&at, asked)?,
                "scratch_bytes" if asked.is_null() => {}
                "scratch_bytes" => requires.scratch_bytes = Some(grant(&at, short("bytes", asked.clone()))?),
                _ => {
                    let known = "`http`, `key_value`, `secrets`, `config` or `scratch_bytes`";
                    return Err(FieldError::new(at, format!("no grant is called so; use {known}")));
                }
            }
        }
        let names = requires.config.keys().map(|key| (key.clone(), String::new())).collect();
        let grants = Grants { config: names, ..requires.grants() };
        grants.check().map_err(|error| FieldError::new(error.pointer(), error.to_string()))?;
        Ok(requires)
    }

    /// What it comes to as grants. Config values are not in it.
    pub fn grants(&self) -> Grants {
        Grants {
            http: self.http.iter().map(|asked| asked.grant.clone()).collect(),
            key_value: self.key_value.iter().map(|asked| asked.grant.clone()).collect(),
            secrets: self.secrets.iter().map(|asked| asked.grant.name.clone()).collect(),
            config: BTreeMap::new(),
            scratch_bytes: self.scratch_bytes.as_ref().map(|asked| asked.grant.bytes),
        }
    }

    /// What `grants` do not give of it.
    pub fn lacks(&self, grants: &Grants) -> Vec<Missing> {
        let missing = |grant: String, reason: &str| Missing { grant, reason: reason.to_owned() };
        let http = self.http.iter().filter(|asked| !gives_http(grants, &asked.grant));
        let key_value = self.key_value.iter().filter(|asked| !gives_key_value(grants, &asked.grant));
        let secrets = self.secrets.iter().filter(|asked| !grants.secrets.contains(&asked.grant.name));
        let config = self.config.iter().filter(|(key, _)| !grants.config.contains_key(*key));
        let scratch = self.scratch_bytes.iter().filter(|asked| grants.scratch_bytes.unwrap_or(0) < asked.grant.bytes);
        http.map(|asked| missing(format!("http {}", asked.grant.host), &asked.reason))
            .chain(key_value.map(|asked| missing(format!("key_value {}", asked.grant.namespace), &asked.reason)))
            .chain(secrets.map(|asked| missing(format!("secrets {}", asked.grant.name), &asked.reason)))
            .chain(config.map(|(key, asked)| missing(format!("config {key}"), &asked.reason)))
            .chain(scratch.map(|asked| missing("scratch_bytes".into(), &asked.reason)))
            .collect()
    }
}

/// A namespace is read where nothing is said.
fn reading(mut grant: Value) -> Value {
    if let Value::Object(fields) = &mut grant {
        fields.entry("access").or_insert_with(|| "read".into());
    }
    grant
}

/// A bare value stands for an object of one field.
fn short(field: &str, grant: Value) -> Value {
    match grant {
        Value::String(_) | Value::Number(_) => Value::Object(Map::from_iter([(field.to_owned(), grant)])),
        grant => grant,
    }
}

fn list<G: DeserializeOwned>(
    at: &str,
    asked: &Value,
    complete: impl Fn(Value) -> Value,
) -> Result<Vec<Asked<G>>, FieldError> {
    let items = match asked {
        Value::Null => return Ok(Vec::new()),
        Value::Array(items) => items,
        _ => return Err(FieldError::new(at, "not a list")),
    };
    items.iter().enumerate().map(|(index, item)| grant(&format!("{at}/{index}"), complete(item.clone()))).collect()
}

fn grant<G: DeserializeOwned>(at: &str, asked: Value) -> Result<Asked<G>, FieldError> {
    let Value::Object(mut fields) = asked else { return Err(FieldError::new(at, "not an object")) };
    let reason = reason(at, fields.remove("reason").as_ref())?;
    let grant = crate::json::parse(Value::Object(fields))
        .map_err(|error| FieldError::new(format!("{at}{}", error.pointer), error.detail))?;
    Ok(Asked { grant, reason })
}

fn config(at: &str, asked: &Value) -> Result<BTreeMap<String, Reason>, FieldError> {
    let keys = match asked {
        Value::Null => return Ok(BTreeMap::new()),
        Value::Object(keys) => keys,
        _ => return Err(FieldError::new(at, "not an object of keys, each with a reason")),
    };
    keys.iter()
        .map(|(key, said)| {
            let at = format!("{at}{}", pointer_step(key));
            let reason = match said {
                Value::Object(fields) if fields.keys().all(|field| field == "reason") => {
                    reason(&at, fields.get("reason"))?
                }
                Value::Null | Value::String(_) => reason(&at, Some(said))?,
                _ => return Err(FieldError::new(at, "not a reason, nor an object with one; values are the tenant's")),
            };
            Ok((key.clone(), Reason { reason }))
        })
        .collect()
}

fn reason(at: &str, said: Option<&Value>) -> Result<String, FieldError> {
    match said {
        None | Some(Value::Null) => Ok(String::new()),
        Some(Value::String(text)) if text.len() <= REASON_BYTES_MAX => Ok(text.clone()),
        Some(Value::String(_)) => {
            Err(FieldError::new(at, format!("the reason is longer than {REASON_BYTES_MAX} bytes; shorten it")))
        }
        Some(_) => Err(FieldError::new(at, "the reason is not a text")),
    }
}

/// Whether each method and path that is asked for is given, with all that is to be added to it.
fn gives_http(grants: &Grants, asked: &HttpGrant) -> bool {
    let fits = |given: &HttpGrant| {
        asked.host.is_within(&given.host)
            && (given.plain_http || !asked.plain_http)
            && asked
                .headers
                .iter()
                .all(|bound| given.headers.iter().any(|has| has.name.eq_ignore_ascii_case(&bound.name)))
            && asked.query.iter().all(|bound| given.query.iter().any(|has| has.name == bound.name))
            && (asked.basic.is_none() || given.basic.is_some())
            && (asked.idempotency_header.is_none() || given.idempotency_header.is_some())
    };
    let fitting: Vec<&HttpGrant> = grants.http.iter().filter(|given| fits(given)).collect();
    asked.methods.iter().all(|method| {
        asked.paths.iter().all(|path| {
            fitting
                .iter()
                .any(|given| given.methods.contains(method) && given.paths.iter().any(|prefix| is_below(path, prefix)))
        })
    })
}

/// Whether a prefix lets nothing through that the other does not.
fn is_below(path: &str, prefix: &str) -> bool {
    let rest = path.strip_prefix(prefix);
    rest.is_some_and(|rest| rest.is_empty() || prefix.ends_with('/') || rest.starts_with('/'))
}

fn gives_key_value(grants: &Grants, asked: &KeyValueGrant) -> bool {
    grants.key_value.iter().any(|given| {
        given.namespace == asked.namespace && (given.access == Access::Write || asked.access == Access::Read)
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn whole() -> Value {
        json!({
            "http": [{
                "host": "api.example.com", "paths": ["/v1"],
                "headers": [{"name": "Authorization", "secret": "weather_key", "format": "Bearer {}"}],
                "reason": "where the weather is",
            }],
            "key_value": [{"namespace": "notes", "access": "write", "reason": "keeps notes"}, {"namespace": "old"}],
            "secrets": [{"name": "token", "reason": "signs"}, "bare"],
            "config": {"unit": {"reason": "lengths"}, "zone": "times", "more": null},
            "scratch_bytes": {"bytes": 1_048_576, "reason": "unpacks"},
        })
    }

    #[test]
    fn a_mistake_is_refused_with_its_place() {
        for (asked, pointer) in [
            (json!([]), ""),
            (json!("http"), ""),
            (json!({"htpp": []}), "/htpp"),
            (json!({"http": {}}), "/http"),
            (json!({"http": [1]}), "/http/0"),
            (json!({"http": [{"host": "a.example"}, {}]}), "/http/1"),
            (json!({"http": [{"host": "https://a.example"}]}), "/http/0/host"),
            (json!({"http": [{"host": "a.example", "metods": ["GET"]}]}), "/http/0/metods"),
            (json!({"http": [{"host": "a.example", "methods": ["get"]}]}), "/http/0/methods"),
            (json!({"http": [{"host": "a.example", "reason": 1}]}), "/http/0"),
            (json!({"http": [{"host": "a.example", "reason": "r".repeat(1025)}]}), "/http/0"),
            (json!({"http": vec![json!({"host": "a.example"}); 33]}), "/http"),
            (json!({"key_value": [{"namespace": "a b"}]}), "/key_value"),
            (json!({"key_value": [{"namespace": "a", "access": "own"}]}), "/key_value/0/access"),
            (json!({"key_value": ["a"]}), "/key_value/0"),
            (json!({"secrets": [{"name": "a", "value": "v"}]}), "/secrets/0/value"),
            (json!({"secrets": ["1a"]}), "/secrets/0/name"),
            (json!({"config": {"": "why"}}), "/config"),
            (json!({"config": ["unit"]}), "/config"),
            (json!({"config": {"a/b": {"reason": "", "value": "m"}}}), "/config/a~1b"),
            (json!({"scratch_bytes": 0}), "/scratch_bytes"),
            (json!({"scratch_bytes": {"bytes": "1"}}), "/scratch_bytes/bytes"),
        ] {
            assert_eq!(Requires::parse(&asked).unwrap_err().pointer, pointer, "{asked}");
        }
    }

    #[test]
    fn what_was_read_is_read_again() {
        assert_eq!(Requires::parse(&Value::Null).unwrap(), Requires::default());
        assert_eq!(Requires::parse(&json!({"http": null, "scratch_bytes": null})).unwrap(), Requires::default());
        let requires = Requires::parse(&whole()).unwrap();
        let kept = serde_json::to_value(&requires).unwrap();
        assert_eq!(Requires::parse(&kept).unwrap(), requires);
        assert_eq!(kept["http"][0]["methods"], json!(["GET", "HEAD"]));
        assert_eq!(kept["secrets"], json!([{"name": "token", "reason": "signs"}, {"name": "bare"}]));
        assert_eq!(kept["scratch_bytes"], json!({"bytes": 1_048_576, "reason": "unpacks"}));
        let grants = requires.grants();
        assert_eq!((grants.key_value[1].access, grants.scratch_bytes), (Access::Read, Some(1 << 20)));
        assert_eq!((grants.secrets.len(), grants.config.len(), grants.check()), (2, 0, Ok(())));
    }

    #[test]
    fn what_is_missing_is_named_with_its_reason() {
        let requires = Requires::parse(&whole()).unwrap();
        let lacks = |grants: Value| {
            let missing = requires.lacks(&serde_json::from_value(grants).unwrap());
            missing.into_iter().map(|missing| missing.grant).collect::<Vec<_>>()
        };
        let all = requires.lacks(&Grants::default());
        assert_eq!(all[0], Missing { grant: "http api.example.com".into(), reason: "where the weather is".into() });
        let names: Vec<_> = all.iter().map(|missing| missing.grant.as_str()).collect();
        let (config, rest) = (["config more", "config unit", "config zone"], ["secrets token", "secrets bare"]);
        assert_eq!(names[1..3], ["key_value notes", "key_value old"]);
        assert_eq!((&names[3..5], &names[5..8], &names[8..]), (&rest[..], &config[..], &["scratch_bytes"][..]));
        assert_eq!(requires.lacks(&requires.grants()).len(), 3, "config values");

        let header = json!([{"name": "authorization", "secret": "other"}]);
        for (http, given) in [
            (json!([{"host": "api.example.com"}]), false),
            (json!([{"host": "example.com", "headers": header}]), false),
            (json!([{"host": "api.example.com:8443", "headers": header}]), false),
            (json!([{"host": "api.example.com", "headers": header, "methods": ["GET"]}]), false),
            (json!([{"host": "api.example.com", "headers": header, "paths": ["/v1/more"]}]), false),
            (json!([{"host": "api.example.com", "headers": header, "paths": ["/v"]}]), false),
            (json!([{"host": "api.example.com", "headers": header}]), true),
            (json!([{"host": "*.example.com", "headers": header, "paths": ["/v1"]}]), true),
            (
                json!([
                    {"host": "api.example.com", "headers": header, "methods": ["GET"]},
                    {"host": "api.example.com", "headers": header, "methods": ["HEAD", "POST"]},
                ]),
                true,
            ),
        ] {
            let named = lacks(json!({"http": http})).contains(&"http api.example.com".to_owned());
            assert_eq!(!named, given, "{http}");
        }
        for (access, given) in [("read", false), ("write", true)] {
            let grants = json!({"key_value": [{"namespace": "notes", "access": access}]});
            assert_eq!(!lacks(grants).contains(&"key_value notes".to_owned()), given, "{access}");
        }
        assert!(lacks(json!({"scratch_bytes": 1})).contains(&"scratch_bytes".to_owned()));
    }
}

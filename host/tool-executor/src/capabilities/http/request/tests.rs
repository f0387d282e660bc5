use super::*;

const TOKEN: &str = "canary-token-0001";

fn grants(grant: serde_json::Value) -> Vec<HttpGrant> {
    vec![serde_json::from_value(grant).unwrap()]
}

fn secrets() -> BTreeMap<SecretName, OpenSecret> {
    let secret = OpenSecret { value: TOKEN.into(), readable: false };
    [("token".parse().unwrap(), secret)].into()
}

fn prepared(grants: &[HttpGrant], authority: &str, path: &str, headers: &[(&str, &str)]) -> Result<Prepared, Refusal> {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
    }
    let asked =
        Asked { method: Method::GET, scheme: Some(Scheme::Https), authority, path_and_query: path, headers: &map };
    prepare(&asked, &Own { grants, secrets: &secrets(), idempotency_key: "key-1" })
}

#[test]
fn what_two_readers_could_read_in_two_ways_is_refused() {
    let grants = grants(serde_json::json!({"host": "api.test"}));
    for (authority, path) in [
        ("", "/"),
        ("ada@api.test", "/"),
        ("api.test@evil.test", "/"),
        ("evil.test\\@api.test", "/"),
        ("api.test/x", "/"),
        ("api.test?x", "/"),
        ("api.test#x", "/"),
        ("api.test ", "/"),
        ("api.test\t", "/"),
        ("api.test\r\nx: y", "/"),
        ("äpi.test", "/"),
        ("api.test", "x"),
        ("api.test", "@evil.test"),
        ("api.test", ".evil.test/"),
        ("api.test", ":444/"),
        ("api.test", "https://evil.test/"),
        ("api.test", "/\\evil.test"),
        ("api.test", "/#x"),
        ("api.test", "/ x"),
        ("api.test", "/\r\nx: y"),
        ("api.test", "/\0"),
        ("api.test", "/ä"),
        ("api.test:0", "/"),
        ("api.test:65536", "/"),
        ("[::1", "/"),
        ("api%00.test", "/"),
    ] {
        let refusal = prepared(&grants, authority, path, &[]).unwrap_err();
        assert!(matches!(refusal, Refusal::BadUrl(_)), "{authority} {path}: {refusal:?}");
    }
    let long = format!("/{}", "x".repeat(TOOL_URL_BYTES_MAX));
    assert!(matches!(prepared(&grants, "api.test", &long, &[]), Err(Refusal::TooLong)));
}

#[test]
fn what_is_judged_is_what_is_sent() {
    let grants = grants(serde_json::json!({"host": "api.test", "paths": ["/v1"]}));
    for (authority, path, sent) in [
        ("API.test", "/v1", "https://api.test/v1"),
        ("api.test:443", "/v1/a/../b", "https://api.test/v1/b"),
        ("api.test", "/v1/./b?c=/../d", "https://api.test/v1/b?c=/../d"),
        ("%61pi.test", "/v1/", "https://api.test/v1/"),
    ] {
        assert_eq!(prepared(&grants, authority, path, &[]).unwrap().target.as_str(), sent);
    }
    for (authority, path) in [
        ("api.test", "/v1/../v2"),
        ("api.test", "/v2"),
        ("api.test", ""),
        ("api.test", "?/v1"),
        ("api.test.", "/v1"),
        ("api.test:80", "/v1"),
        ("evil.test", "/v1"),
    ] {
        assert!(matches!(prepared(&grants, authority, path, &[]), Err(Refusal::Denied { .. })), "{authority} {path}");
    }
}

#[test]
fn a_header_that_the_host_owns_is_not_the_tools() {
    let mine: Vec<(&str, &str)> = FRAMING
        .iter()
        .chain(&HIDING)
        .chain(&["X-Key", "x_key", "authorization", "idempotency-key", "cookie", "x-other"])
        .map(|name| (*name, "mine"))
        .collect();
    let left = |grant| {
        let prepared = prepared(&grants(grant), "api.test", "/", &mine).unwrap();
        let mut left: Vec<_> = prepared.headers.iter().map(|(name, value)| format!("{name}: {value:?}")).collect();
        left.sort();
        left.join("\n")
    };
    assert_eq!(
        left(serde_json::json!({"host": "api.test"})),
        "accept-encoding: \"mine\"\nauthorization: \"mine\"\ncookie: \"mine\"\nidempotency-key: \"mine\"\n\
         if-range: \"mine\"\nrange: \"mine\"\nx-key: \"mine\"\nx-other: \"mine\"\nx_key: \"mine\""
    );
    assert_eq!(
        left(serde_json::json!({
            "host": "api.test", "headers": [{"name": "X-Key", "secret": "token"}],
            "basic": {"user": "ada", "secret": "token"}, "idempotency_header": "Idempotency-Key",
        })),
        "accept-encoding: \"identity\"\nauthorization: Sensitive\ncookie: \"mine\"\nidempotency-key: \"key-1\"\n\
         x-key: Sensitive\nx-other: \"mine\""
    );
}

#[test]
fn a_bound_parameter_replaces_the_tools() {
    let grants = grants(serde_json::json!({"host": "api.test", "query": [{"name": "k", "secret": "token"}]}));
    for (path, sent) in [
        ("/", "k=canary-token-0001"),
        ("/?", "k=canary-token-0001"),
        ("/?k=mine", "k=canary-token-0001"),
        ("/?%6B=mine&k&a=%20+&k=", "a=%20+&k=canary-token-0001"),
        ("/?a=k=1", "a=k=1&k=canary-token-0001"),
    ] {
        let prepared = prepared(&grants, "api.test", path, &[]).unwrap();
        assert_eq!(prepared.target.as_str(), format!("https://api.test/?{sent}"));
        assert!(!prepared.url.contains(TOKEN), "{}", prepared.url);
        assert!(!told(&prepared.method, &prepared.target).contains('?'));
    }
}

#[test]
fn plain_http_of_a_secret_stays_with_the_operators_addresses() {
    let plain = prepared(&grants(serde_json::json!({"host": "api.test"})), "api.test", "/", &[]).unwrap();
    assert_eq!(plain.plain_http, PlainHttp::Anywhere);
    let bound = serde_json::json!({"host": "api.test", "headers": [{"name": "x-key", "secret": "token"}]});
    let bound = prepared(&grants(bound), "api.test", "/", &[]).unwrap();
    assert_eq!(bound.plain_http, PlainHttp::OperatorsExceptions);
}

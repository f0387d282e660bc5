use super::*;

fn grant(host: &str) -> HttpGrant {
    HttpGrant::reading(host.parse().unwrap())
}

fn ask(grants: &[HttpGrant], method: &str, url: &str) -> Result<(), HttpDenial> {
    let (scheme, rest) = url.split_once("://").unwrap();
    let scheme = if scheme == "https" { Scheme::Https } else { Scheme::Http };
    let (authority, path) = rest.split_at(rest.find('/').unwrap());
    let (host, port) = match authority.split_once(':') {
        Some((host, port)) => (host, port.parse().unwrap()),
        None => (authority, scheme.default_port()),
    };
    find(grants, &HttpTarget { scheme, host, port, method, path }).map(|_| ())
}

#[test]
fn what_no_grant_names_is_denied() {
    let narrow = HttpGrant { paths: vec!["/v1".into(), "/open/".into()], ..grant("api.example.com") };
    let grants = [narrow, grant("*.cdn.example.com"), HttpGrant { plain_http: true, ..grant("local.test:8080") }];
    for (method, url, denial) in [
        ("GET", "https://example.com/v1", HttpDenial::Host),
        ("GET", "https://api.example.com.evil.org/v1", HttpDenial::Host),
        ("GET", "https://xapi.example.com/v1", HttpDenial::Host),
        ("GET", "https://api.example.com:8443/v1", HttpDenial::Host),
        ("GET", "http://api.example.com/v1", HttpDenial::PlainHttp),
        ("GET", "http://api.example.com:443/v1", HttpDenial::Host),
        ("POST", "https://api.example.com/v1", HttpDenial::Method),
        ("get", "https://api.example.com/v1", HttpDenial::Method),
        ("GET", "https://api.example.com/", HttpDenial::Path),
        ("GET", "https://api.example.com/v10", HttpDenial::Path),
        ("GET", "https://api.example.com/v1/..", HttpDenial::Path),
        ("GET", "https://api.example.com/v1/%2e%2e/x", HttpDenial::Path),
        ("GET", "https://api.example.com/v1/..%2fx", HttpDenial::Path),
        ("GET", "https://api.example.com/v1//x", HttpDenial::Path),
        ("GET", "https://api.example.com/v1;/x", HttpDenial::Path),
        ("GET", "https://api.example.com/open", HttpDenial::Path),
        ("GET", "https://cdn.example.com/", HttpDenial::Host),
        ("GET", "https://.cdn.example.com/", HttpDenial::Host),
        ("GET", "https://local.test/", HttpDenial::Host),
    ] {
        assert_eq!(ask(&grants, method, url), Err(denial), "{method} {url}");
    }
    for (method, url) in [
        ("GET", "https://api.example.com/v1"),
        ("HEAD", "https://api.example.com/v1/things/7"),
        ("GET", "https://api.example.com/open/x"),
        ("GET", "https://a.cdn.example.com/%2e%2e"),
        ("GET", "https://a.b.cdn.example.com/"),
        ("GET", "http://local.test:8080/"),
        ("GET", "https://local.test:8080/"),
    ] {
        assert_eq!(ask(&grants, method, url), Ok(()), "{method} {url}");
    }
}

#[test]
fn hosts_that_are_none() {
    for bad in [
        "",
        "*",
        "*.com",
        "*.*.example.com",
        "a.*.example.com",
        "https://example.com",
        "example.com/",
        "example.com:0",
        "example.com:99999",
        "example.com:",
        "user@example.com",
        "exa mple.com",
        "-a.com",
        "a-.com",
        "a..b",
        "10.1",
        "0x7f.1",
        "example.1",
        "[::1",
        "*.10.0.0.1",
        "*.[::1]",
        "example.com.",
        "ex\u{e4}mple.com",
    ] {
        assert!(bad.parse::<HostPattern>().is_err(), "{bad}");
    }
    for (good, text) in [
        ("Example.COM", "example.com"),
        ("example.com:8443", "example.com:8443"),
        ("*.example.com", "*.example.com"),
        ("*.example.com:8443", "*.example.com:8443"),
        ("10.0.0.1:80", "10.0.0.1:80"),
        ("[::1]:80", "[::1]:80"),
        ("localhost", "localhost"),
    ] {
        assert_eq!(good.parse::<HostPattern>().unwrap().to_string(), text);
    }
}

#[test]
fn a_pattern_within_another() {
    let within = |a: &str, b: &str| a.parse::<HostPattern>().unwrap().is_within(&b.parse().unwrap());
    for (a, b, is) in [
        ("a.com", "a.com", true),
        ("a.com:8080", "a.com", true),
        ("a.com", "a.com:8080", false),
        ("x.a.com", "*.a.com", true),
        ("*.a.com", "*.a.com", true),
        ("*.x.a.com", "*.a.com", true),
        ("a.com", "*.a.com", false),
        ("xa.com", "*.a.com", false),
        ("*.a.com", "a.com", false),
        ("*.a.com", "x.a.com", false),
    ] {
        assert_eq!(within(a, b), is, "{a} within {b}");
    }
}

#[test]
fn grants_that_cannot_be_bound() {
    let header = |name: &str, format: &str| HttpGrant {
        headers: vec![BoundHeader { name: name.into(), secret: "k".parse().unwrap(), format: format.into() }],
        ..grant("a.com")
    };
    let field = |grant: HttpGrant| grant.check().err().map(|(field, _)| field);
    for (grant, at) in [
        (HttpGrant { methods: vec!["get".into()], ..grant("a.com") }, "methods"),
        (HttpGrant { methods: vec!["CONNECT".into()], ..grant("a.com") }, "methods"),
        (HttpGrant { paths: vec!["v1".into()], ..grant("a.com") }, "paths"),
        (HttpGrant { paths: vec!["/a/../b".into()], ..grant("a.com") }, "paths"),
        (HttpGrant { paths: vec!["/%2e".into()], ..grant("a.com") }, "paths"),
        (header("Host", "{}"), "headers"),
        (header("x\r\ny", "{}"), "headers"),
        (header("x-key", "Bearer"), "headers"),
        (header("x-key", "{}{}"), "headers"),
        (header("x-key", "a\nb {}"), "headers"),
        (HttpGrant { idempotency_header: Some("content-length".into()), ..grant("a.com") }, "idempotency_header"),
    ] {
        assert_eq!(field(grant), Some(at));
    }
    assert_eq!(field(header("Authorization", "Bearer {}")), None);
}

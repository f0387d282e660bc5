//! Grants and a request: what a grant lets through lies within what it says, read letter by letter.

#![no_main]

use domain::grants::{
    Grants, HttpGrant,
    http::{HttpTarget, Scheme, find},
};
use libfuzzer_sys::{
    arbitrary::{self, Unstructured},
    fuzz_target,
};

fuzz_target!(|bytes: &[u8]| {
    let mut from = Unstructured::new(bytes);
    let _ = request(&mut from);
});

fn request(from: &mut Unstructured<'_>) -> arbitrary::Result<()> {
    let count = from.int_in_range(1..=3)?;
    let grants = (0..count).map(|_| grant(from)).collect::<arbitrary::Result<Vec<_>>>()?;
    let http: Vec<HttpGrant> = grants.into_iter().flatten().collect();
    for grant in &http {
        let text = grant.host.to_string();
        assert_eq!(text.parse().as_ref(), Ok(&grant.host), "a host is written as it is read");
        assert!(grant.host.is_within(&grant.host));
    }
    let grants = Grants { http, ..Grants::default() };
    if grants.check().is_err() {
        return Ok(());
    }
    let hosts = ["example.com", "a.example.com", "xexample.com", "10.0.0.1", "[::1]", "example.com.evil.com", ""];
    let paths = ["/", "/v1", "/v1/", "/v1/x", "/v10", "/v1/../admin", "/v1%2f..", "/V1", "/v1;x", "//v1", ""];
    let host = choice(from, &hosts)?;
    let path = choice(from, &paths)?;
    let method = choice(from, &["GET", "POST", "get", "HEAD"])?;
    let scheme = *from.choose(&[Scheme::Https, Scheme::Http])?;
    let port = *from.choose(&[443, 80, 8443, 0])?;
    let target = HttpTarget { scheme, host, port, method, path };
    if let Ok(grant) = find(&grants.http, &target) {
        within(grant, &target);
    }
    Ok(())
}

/// As a careful person would check it.
fn within(grant: &HttpGrant, target: &HttpTarget<'_>) {
    let text = grant.host.to_string();
    let default = if target.scheme == Scheme::Https { 443 } else { 80 };
    let (name, port) = match text.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => (name, port.parse().expect("a port")),
        _ => (text.as_str(), default),
    };
    assert_eq!(port, target.port, "{grant:?} {target:?}");
    match name.strip_prefix("*.") {
        None => assert_eq!(name, target.host),
        Some(below) => {
            let label = target.host.strip_suffix(below).and_then(|rest| rest.strip_suffix('.')).expect("below it");
            assert!(!label.is_empty() && below.contains('.'), "{grant:?} {target:?}");
        }
    }
    assert!(target.scheme == Scheme::Https || grant.plain_http);
    assert!(grant.methods.iter().any(|method| method == target.method));
    let path = target.path;
    let below = grant.paths.iter().any(|prefix| {
        let segments = |text: &str| text.split('/').map(str::to_owned).collect::<Vec<_>>();
        let (path, prefix) = (segments(path), segments(prefix.strip_suffix('/').unwrap_or(prefix)));
        path.len() >= prefix.len() && path[..prefix.len()] == prefix[..]
    });
    assert!(below && path.starts_with('/'), "{grant:?} {target:?}");
    if !grant.paths.iter().any(|prefix| prefix == "/") {
        let lower = path.to_ascii_lowercase();
        let strange = ["..", "%2e", "%2f", "%5c", "%00", "\\", "//", ";"];
        let dots = path.split('/').any(|segment| segment == "." || segment == "..");
        assert!(!dots && strange[1..].iter().all(|text| !lower.contains(text)), "{grant:?} {target:?}");
    }
}

/// A grant of known or made-up parts; `None` where its host is none.
fn grant(from: &mut Unstructured<'_>) -> arbitrary::Result<Option<HttpGrant>> {
    let host = choice(from, &["example.com", "*.example.com", "example.com:8443", "[::1]:80", "10.0.0.1", "*.com"])?;
    let Ok(host) = host.parse() else { return Ok(None) };
    let mut grant = HttpGrant::reading(host);
    grant.plain_http = from.arbitrary()?;
    grant.methods = vec![choice(from, &["GET", "POST", "get"])?.to_owned()];
    let count = from.int_in_range(0..=2)?;
    grant.paths =
        (0..count).map(|_| choice(from, &["/", "/v1", "/v1/", "/a/b"]).map(str::to_owned)).collect::<Result<_, _>>()?;
    Ok(Some(grant))
}

/// One of these, or a text of its own.
fn choice<'a>(from: &mut Unstructured<'a>, known: &[&'a str]) -> arbitrary::Result<&'a str> {
    if from.ratio(1, 2)? { from.choose(known).copied() } else { from.arbitrary() }
}

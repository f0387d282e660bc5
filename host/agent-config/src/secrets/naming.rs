//! Who may write a grant that names a secret. Pure.

use std::collections::BTreeMap;

use domain::{
    Grants, SecretName,
    grants::{HttpGrant, http::HostPattern},
};

use super::SecretError;

/// How far whoever writes a grant may send a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NamingRight {
    /// To the hosts that the secret was stored for.
    WithinHosts,
    /// To any host: the scope `secrets:write`.
    Anywhere,
}

/// What a stored secret allows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rule {
    /// Empty: anywhere.
    pub hosts: Vec<HostPattern>,
    pub readable: bool,
}

/// Whether the holder of `right` may write these grants. `held` are grants that stand already, written by somebody who
/// could: they may stay.
pub fn may_bind(
    grants: &Grants,
    held: &[HttpGrant],
    stored: &BTreeMap<SecretName, Rule>,
    right: NamingRight,
) -> Result<(), SecretError> {
    let missing: Vec<SecretName> =
        grants.secret_names().into_iter().filter(|name| !stored.contains_key(*name)).cloned().collect();
    if !missing.is_empty() {
        return Err(SecretError::Missing(missing));
    }
    for (index, name) in grants.secrets.iter().enumerate() {
        if !stored.get(name).is_some_and(|rule| rule.readable) {
            return Err(SecretError::NotReadable { pointer: format!("/secrets/{index}"), name: name.clone() });
        }
    }
    if right == NamingRight::Anywhere {
        return Ok(());
    }
    for (index, grant) in grants.http.iter().enumerate().filter(|(_, grant)| !held.contains(grant)) {
        for name in grant.secret_names() {
            let hosts = stored.get(name).map(|rule| rule.hosts.as_slice()).unwrap_or_default();
            if !hosts.is_empty() && !hosts.iter().any(|host| grant.host.is_within(host)) {
                return Err(SecretError::HostOutside {
                    pointer: format!("/http/{index}/host"),
                    name: name.clone(),
                    host: grant.host.clone(),
                    hosts: hosts.to_vec(),
                });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use domain::Problem;
    use serde_json::{Value, json};

    use super::{NamingRight::*, *};

    fn stored() -> BTreeMap<SecretName, Rule> {
        let rule = |hosts: &[&str], readable| Rule {
            hosts: hosts.iter().map(|host| host.parse().unwrap()).collect(),
            readable,
        };
        [
            ("anywhere", rule(&[], false)),
            ("one", rule(&["api.example.com"], false)),
            ("many", rule(&["*.example.com", "other.example:8443"], false)),
            ("told", rule(&["api.example.com"], true)),
        ]
        .map(|(name, rule)| (name.parse().unwrap(), rule))
        .into()
    }

    fn header(host: &str, secret: &str) -> Value {
        json!({"http": [{"host": host, "headers": [{"name": "authorization", "secret": secret}]}]})
    }

    fn decide(grants: Value, held: &[HttpGrant], right: NamingRight) -> Result<(), (&'static str, String)> {
        let grants: Grants = serde_json::from_value(grants).unwrap();
        may_bind(&grants, held, &stored(), right).map_err(|error| (error.code(), error.pointer().to_owned()))
    }

    #[test]
    fn a_secret_goes_only_where_it_may() {
        for (grants, right, code, pointer) in [
            (header("api.example.com", "none"), Anywhere, "secret.not_found", ""),
            (json!({"secrets": ["none"]}), Anywhere, "secret.not_found", ""),
            (json!({"secrets": ["told", "one"]}), Anywhere, "secret.not_readable", "/secrets/1"),
            (json!({"secrets": ["anywhere"]}), WithinHosts, "secret.not_readable", "/secrets/0"),
            (header("evil.example", "one"), WithinHosts, "secret.host_outside", "/http/0/host"),
            (header("*.example.com", "one"), WithinHosts, "secret.host_outside", "/http/0/host"),
            (header("example.com", "many"), WithinHosts, "secret.host_outside", "/http/0/host"),
            (header("api.example.com.evil.example", "many"), WithinHosts, "secret.host_outside", "/http/0/host"),
            (header("notexample.com", "many"), WithinHosts, "secret.host_outside", "/http/0/host"),
            (header("other.example", "many"), WithinHosts, "secret.host_outside", "/http/0/host"),
            (header("evil.example", "told"), WithinHosts, "secret.host_outside", "/http/0/host"),
            (
                json!({"http": [{"host": "a.example"}, {"host": "a.example", "query": [{"name": "k", "secret": "one"}]}]}),
                WithinHosts,
                "secret.host_outside",
                "/http/1/host",
            ),
            (
                json!({"http": [{"host": "a.example", "basic": {"user": "u", "secret": "one"}}]}),
                WithinHosts,
                "secret.host_outside",
                "/http/0/host",
            ),
        ] {
            assert_eq!(decide(grants.clone(), &[], right), Err((code, pointer.into())), "{grants}");
        }
        for (grants, right) in [
            (json!({}), WithinHosts),
            (json!({"secrets": ["told"]}), WithinHosts),
            (json!({"http": [{"host": "evil.example"}]}), WithinHosts),
            (header("evil.example", "anywhere"), WithinHosts),
            (header("api.example.com", "one"), WithinHosts),
            (header("API.example.com", "one"), WithinHosts),
            (header("api.example.com", "many"), WithinHosts),
            (header("*.example.com", "many"), WithinHosts),
            (header("other.example:8443", "many"), WithinHosts),
            (header("evil.example", "one"), Anywhere),
        ] {
            assert_eq!(decide(grants.clone(), &[], right), Ok(()), "{grants}");
        }
    }

    #[test]
    fn what_stands_already_may_stay() {
        let far: Grants = serde_json::from_value(header("evil.example", "one")).unwrap();
        assert_eq!(decide(header("evil.example", "one"), &far.http, WithinHosts), Ok(()));
        let wider = json!({"http": [
            {"host": "evil.example", "paths": ["/more"], "headers": [{"name": "authorization", "secret": "one"}]},
        ]});
        assert!(decide(wider, &far.http, WithinHosts).is_err());
    }
}

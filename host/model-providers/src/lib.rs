//! Models behind one trait: the demo model, OpenAI and what is compatible with it, Gemini, Anthropic.
//!
//! Owns: no table.
//! May use: domain, egress.
//! Never: touches the database.
//! Start at: `ModelProvider`.

mod anthropic;
mod circuit;
mod demo;
mod error;
mod names;
mod openai;
pub mod retry;
mod stream;
pub mod tokens;
mod wire;

use std::{collections::BTreeMap, fmt, sync::Arc};

use domain::{SecretString, TenantId};
use egress::Egress;

use circuit::{Circuits, Guarded};
pub use error::{KeyOf, ProviderError};
use openai::Flavor;
pub use stream::{Message, ModelEvent, ModelProvider, ModelRequest, ModelStream, StopReason, Usage, output_tokens};
use wire::{Address, Wire};

/// The built-in provider, and its one model. A tenant's key of this name is not looked at.
pub const DEMO: &str = "demo";
/// Whose model a name without a provider is.
const DEFAULT_PROVIDER: &str = "openai";

/// Which model of which provider.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ModelRef {
    pub provider: String,
    pub name: String,
}

impl ModelRef {
    pub fn new(provider: impl Into<String>, name: impl Into<String>) -> ModelRef {
        ModelRef { provider: provider.into(), name: name.into() }
    }

    /// `demo`, `gpt-4o`, `openai/gpt-4o`. Only the first slash splits: models have slashes in their names too.
    pub fn parse(text: &str) -> ModelRef {
        match text.split_once('/') {
            Some((provider, name)) => ModelRef::new(provider, name),
            None if text == DEMO => ModelRef::new(DEMO, DEMO),
            None => ModelRef::new(DEFAULT_PROVIDER, text),
        }
    }
}

impl fmt::Display for ModelRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.provider, self.name)
    }
}

/// Which format a provider speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndpointKind {
    Openai,
    OpenaiCompatible,
    Anthropic,
    Gemini,
}

impl EndpointKind {
    /// The kind of a provider whose name says it. Anything else is known only by the tenant's own provider key.
    pub fn by_name(provider: &str) -> Option<EndpointKind> {
        match provider {
            "openai" => Some(EndpointKind::Openai),
            "anthropic" => Some(EndpointKind::Anthropic),
            "gemini" => Some(EndpointKind::Gemini),
            _ => None,
        }
    }
}

/// Where a provider is, and the key to it.
#[derive(Debug, Clone)]
pub struct Endpoint {
    pub kind: EndpointKind,
    /// Without it, the provider's own. A compatible one must say.
    pub base_url: Option<String>,
    /// Empty: none is sent.
    pub api_key: SecretString,
    /// The platform's endpoint is the operator's word, so that private addresses are fine.
    pub key_of: KeyOf,
}

impl Endpoint {
    /// The same place with the key that a request brought. Without a place of the tenant's own, the provider's own
    /// address: never the operator's, who could read the key there.
    pub fn with_request_key(own: Option<Endpoint>, provider: &str, api_key: SecretString) -> Option<Endpoint> {
        let (kind, base_url) = match own {
            Some(own) => (own.kind, own.base_url),
            None => (EndpointKind::by_name(provider)?, None),
        };
        Some(Endpoint { kind, base_url, api_key, key_of: KeyOf::Request })
    }
}

/// Which provider serves which name.
pub struct Providers {
    egress: Egress,
    platform: BTreeMap<String, Endpoint>,
    demo: Arc<demo::Demo>,
    circuits: Arc<Circuits>,
}

impl Providers {
    /// `platform`: the endpoints that the operator pays for, by provider name.
    pub fn new(egress: Egress, platform: BTreeMap<String, Endpoint>) -> Providers {
        Providers { egress, platform, demo: Arc::new(demo::Demo), circuits: Arc::new(Circuits::new()) }
    }

    /// The names that work without a key of the tenant's own.
    pub fn platform_names(&self) -> Vec<String> {
        std::iter::once(DEMO.to_owned()).chain(self.platform.keys().cloned()).collect()
    }

    /// The demo model, else the tenant's own endpoint of that name, else the platform's.
    pub fn open(
        &self,
        tenant: TenantId,
        provider: &str,
        own: Option<Endpoint>,
    ) -> Result<Arc<dyn ModelProvider>, ProviderError> {
        if provider == DEMO {
            return Ok(self.demo.clone());
        }
        let endpoint = own
            .or_else(|| self.platform.get(provider).cloned())
            .ok_or_else(|| ProviderError::Unknown { provider: provider.to_owned() })?;
        let key = self.circuits.key(tenant, provider, &endpoint);
        let inner = self.wire(provider, endpoint)?;
        Ok(Arc::new(Guarded { inner: Arc::new(inner), circuits: Arc::clone(&self.circuits), key }))
    }

    fn wire(&self, provider: &str, endpoint: Endpoint) -> Result<Wire, ProviderError> {
        let Endpoint { kind, base_url, api_key: key, key_of } = endpoint;
        let at = |default: Option<&'static str>| match (base_url, default) {
            (Some(url), _) => Ok(url),
            (None, Some(url)) => Ok(url.to_owned()),
            (None, None) => Err(ProviderError::BaseUrlMissing { provider: provider.to_owned() }),
        };
        let flavor = match kind {
            EndpointKind::Anthropic => {
                let address = Address { provider, base_url: &at(Some(anthropic::BASE_URL))?, key, key_of };
                return Wire::new(self.egress.clone(), address, anthropic::Messages);
            }
            EndpointKind::Openai => Flavor::Openai,
            EndpointKind::Gemini => Flavor::Gemini,
            EndpointKind::OpenaiCompatible => Flavor::Compatible,
        };
        let address = Address { provider, base_url: &at(flavor.base_url())?, key, key_of };
        Wire::new(self.egress.clone(), address, flavor)
    }
}

#[cfg(test)]
mod tests {
    use domain::Problem;
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_model_is_named_in_three_ways() {
        for (text, provider, name) in [
            ("demo", "demo", "demo"),
            ("gpt-4o", "openai", "gpt-4o"),
            ("openai/gpt-4o", "openai", "gpt-4o"),
            ("router/meta/llama-3", "router", "meta/llama-3"),
            ("demo/x", "demo", "x"),
        ] {
            assert_eq!(ModelRef::parse(text), ModelRef::new(provider, name), "{text}");
        }
        assert_eq!(ModelRef::parse("gpt-4o").to_string(), "openai/gpt-4o");
    }

    fn endpoint(kind: EndpointKind, base_url: Option<&str>, key_of: KeyOf) -> Endpoint {
        Endpoint { kind, base_url: base_url.map(Into::into), api_key: "sk-secret".to_owned().into(), key_of }
    }

    #[test]
    fn a_provider_is_the_demo_the_tenants_or_the_platforms() {
        let openai = endpoint(EndpointKind::Openai, Some("http://10.0.0.1/v1"), KeyOf::Platform);
        let egress = Egress::new(Vec::new()).unwrap();
        let providers = Providers::new(egress, BTreeMap::from([("openai".to_owned(), openai.clone())]));
        assert_eq!(providers.platform_names(), ["demo", "openai"]);
        assert!(!format!("{openai:?}").contains("sk-secret"));

        use EndpointKind::*;
        let own = |kind, base_url| Some(endpoint(kind, base_url, KeyOf::Tenant));
        for (name, own, code) in [
            ("demo", None, None),
            ("demo", own(OpenaiCompatible, None), None),
            ("openai", None, None),
            ("local", own(OpenaiCompatible, Some("https://models.test/v1")), None),
            ("local", own(OpenaiCompatible, None), Some("provider.base_url_missing")),
            ("local", own(OpenaiCompatible, Some("nonsense")), Some("egress.bad_url")),
            ("claude", own(Anthropic, None), None),
            ("google", own(Gemini, None), None),
            ("openai", own(OpenaiCompatible, Some("https://169.254.169.254/v1")), Some("egress.address_refused")),
            ("openai", own(OpenaiCompatible, Some("http://models.test/v1")), Some("egress.bad_url")),
            ("claude", own(Anthropic, Some("http://10.0.0.1/v1")), Some("egress.address_refused")),
            ("other", None, Some("provider.unknown")),
        ] {
            let opened = providers.open(TenantId::from(Uuid::nil()), name, own);
            assert_eq!(opened.as_ref().err().map(|error| error.code()), code, "{name}");
        }
        let unknown = providers.open(TenantId::from(Uuid::nil()), "other", None).err().unwrap().to_string();
        assert!(unknown.contains("add a provider key named `other`"), "{unknown}");
    }

    #[test]
    fn a_requests_key_goes_where_the_tenant_said_or_to_the_provider_itself() {
        let key = || "sk-request".to_owned().into();
        let own = endpoint(EndpointKind::Gemini, Some("https://models.test/v1"), KeyOf::Tenant);
        let with_own = Endpoint::with_request_key(Some(own), "openai", key()).unwrap();
        assert_eq!(
            (with_own.kind, with_own.base_url.as_deref()),
            (EndpointKind::Gemini, Some("https://models.test/v1"))
        );
        for (name, kind) in [
            ("openai", Some(EndpointKind::Openai)),
            ("anthropic", Some(EndpointKind::Anthropic)),
            ("gemini", Some(EndpointKind::Gemini)),
            ("acme", None),
        ] {
            let found = Endpoint::with_request_key(None, name, key());
            assert_eq!(found.map(|one| (one.kind, one.base_url, one.key_of)), kind.map(|k| (k, None, KeyOf::Request)));
        }
    }
}

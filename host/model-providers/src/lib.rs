//! Models behind one trait: the demo model and every OpenAI-compatible address.
//!
//! Owns: no table.
//! May use: domain, egress.
//! Never: touches the database.
//! Start at: `ModelProvider`.

mod demo;
mod error;
mod openai;
pub mod retry;
mod stream;
pub mod tokens;

use std::{collections::BTreeMap, fmt, sync::Arc};

use domain::SecretString;
use egress::{ChosenBy, Egress};

pub use error::ProviderError;
pub use stream::{Message, ModelEvent, ModelProvider, ModelRequest, ModelStream, StopReason, Usage};

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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndpointKind {
    Openai,
    OpenaiCompatible,
}

/// Where a provider is, and the key to it.
#[derive(Debug, Clone)]
pub struct Endpoint {
    pub kind: EndpointKind,
    /// Without it, OpenAI's own. A compatible one must say.
    pub base_url: Option<String>,
    /// Empty: none is sent.
    pub api_key: SecretString,
    /// From the operator's settings, so that private addresses are fine. Never of a tenant's endpoint.
    pub trusted: bool,
}

/// Which provider serves which name.
pub struct Providers {
    egress: Egress,
    platform: BTreeMap<String, Endpoint>,
    demo: Arc<demo::Demo>,
}

impl Providers {
    /// `platform`: the endpoints that the operator pays for, by provider name.
    pub fn new(egress: Egress, platform: BTreeMap<String, Endpoint>) -> Providers {
        Providers { egress, platform, demo: Arc::new(demo::Demo) }
    }

    /// The names that work without a key of the tenant's own.
    pub fn platform_names(&self) -> Vec<String> {
        std::iter::once(DEMO.to_owned()).chain(self.platform.keys().cloned()).collect()
    }

    /// The demo model, else the tenant's endpoint of that name, else the platform's.
    pub fn open(&self, provider: &str, tenant: Option<Endpoint>) -> Result<Arc<dyn ModelProvider>, ProviderError> {
        if provider == DEMO {
            return Ok(self.demo.clone());
        }
        let (endpoint, chosen_by) = match (tenant, self.platform.get(provider)) {
            (Some(endpoint), _) => (endpoint, ChosenBy::Tenant),
            (None, Some(endpoint)) if endpoint.trusted => (endpoint.clone(), ChosenBy::Operator),
            (None, Some(endpoint)) => (endpoint.clone(), ChosenBy::Tenant),
            (None, None) => return Err(ProviderError::Unknown { provider: provider.to_owned() }),
        };
        Ok(Arc::new(openai::OpenAi::new(self.egress.clone(), provider, endpoint, chosen_by)?))
    }
}

#[cfg(test)]
mod tests {
    use domain::Problem;

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

    #[test]
    fn a_provider_is_the_demo_the_tenants_or_the_platforms() {
        let endpoint = |kind, base_url: Option<&str>, trusted| Endpoint {
            kind,
            base_url: base_url.map(Into::into),
            api_key: "sk-secret".to_owned().into(),
            trusted,
        };
        let openai = endpoint(EndpointKind::Openai, None, true);
        let egress = Egress::new(Vec::new()).unwrap();
        let providers = Providers::new(egress, BTreeMap::from([("openai".to_owned(), openai.clone())]));
        assert_eq!(providers.platform_names(), ["demo", "openai"]);
        assert!(!format!("{openai:?}").contains("sk-secret"));

        let compatible = |base_url| endpoint(EndpointKind::OpenaiCompatible, base_url, true);
        for (name, tenant, code) in [
            ("demo", None, None),
            ("demo", Some(compatible(None)), None),
            ("openai", None, None),
            ("local", Some(compatible(Some("https://models.test/v1"))), None),
            ("local", Some(compatible(None)), Some("provider.base_url_missing")),
            ("local", Some(compatible(Some("nonsense"))), Some("egress.bad_url")),
            // What a tenant says of its own trust counts for nothing.
            ("openai", Some(compatible(Some("https://169.254.169.254/v1"))), Some("egress.address_refused")),
            ("openai", Some(compatible(Some("http://models.test/v1"))), Some("egress.bad_url")),
            ("other", None, Some("provider.unknown")),
        ] {
            let opened = providers.open(name, tenant);
            assert_eq!(opened.as_ref().err().map(|error| error.code()), code, "{name}");
        }
        let unknown = providers.open("other", None).err().unwrap().to_string();
        assert!(unknown.contains("add a provider key named `other`"), "{unknown}");
    }
}

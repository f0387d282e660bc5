//! `belljar:tool/secrets`: secrets that a tool may read by name. Both the secret and a grant must say so; a secret that is
//! bound to a request is never read here.

use std::time::Instant;

use domain::{ExposeSecret, SecretName};
use tool_api::HostCall;
use wasmtime::component::{HasSelf, Linker};

use crate::{
    bindings::{belljar::tool1_0_0::secrets, v0::belljar::tool0_1_0::secrets as secrets0},
    capabilities::{
        NAME_BYTES_MAX,
        denied::Grant,
        ledger::{micros_since, use_of},
    },
    sandbox::Sandbox,
};

impl Sandbox {
    /// The value, or the name to deny.
    fn read_secret(&mut self, mut name: String) -> Result<String, String> {
        let started = Instant::now();
        self.meter.handled(name.len());
        name.truncate(name.floor_char_boundary(NAME_BYTES_MAX));
        let value = self.readable(&name).map(|(name, value)| {
            self.ledger.used(&name);
            value
        });
        self.meter.handled(value.as_ref().map_or(0, String::len));
        if value.is_none() {
            self.denials.note(Grant::Secrets);
        }
        self.ledger.tell(HostCall {
            target: Some(name.clone()),
            bytes_in: name.len() as u64,
            bytes_out: value.as_ref().map_or(0, String::len) as u64,
            duration_us: micros_since(started),
            grant: value.is_some().then(|| format!("secrets {name}")),
            error: value.is_none().then(|| "denied".to_owned()),
            ..use_of("belljar:tool/secrets", "get")
        });
        value.ok_or(name)
    }

    fn readable(&self, name: &str) -> Option<(SecretName, String)> {
        let name = self.call.grants.secrets.iter().find(|granted| granted.as_str() == name)?;
        let secret = self.call.secrets.get(name).filter(|secret| secret.readable)?;
        Some((name.clone(), secret.value.expose_secret().to_owned()))
    }
}

impl secrets::Host for Sandbox {
    fn get(&mut self, name: String) -> wasmtime::Result<Result<String, secrets::Error>> {
        Ok(self.read_secret(name).map_err(secrets::Error::Denied))
    }
}

impl secrets0::Host for Sandbox {
    fn get(&mut self, name: String) -> wasmtime::Result<Result<String, secrets0::Error>> {
        Ok(self.read_secret(name).map_err(secrets0::Error::Denied))
    }
}

pub(crate) fn link(linker: &mut Linker<Sandbox>) -> wasmtime::Result<()> {
    secrets::add_to_linker::<Sandbox, HasSelf<Sandbox>>(linker, Sandbox::counted)?;
    secrets0::add_to_linker::<Sandbox, HasSelf<Sandbox>>(linker, Sandbox::counted)
}

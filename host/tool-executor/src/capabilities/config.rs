//! `wasi:config`: values that a grant gives, by name.

use std::{collections::BTreeMap, time::Instant};

use tool_api::HostCall;
use wasmtime::component::{HasSelf, Linker};

use crate::{
    bindings::wasi::config::store,
    capabilities::{
        NAME_BYTES_MAX,
        denied::Grant,
        ledger::{micros_since, use_of},
    },
    sandbox::Sandbox,
};

impl store::Host for Sandbox {
    /// A value that no grant gives is absent: the interface has no other word for it. The receipt has.
    fn get(&mut self, mut key: String) -> wasmtime::Result<Result<Option<String>, store::Error>> {
        let started = Instant::now();
        self.meter.handled(key.len());
        key.truncate(key.floor_char_boundary(NAME_BYTES_MAX));
        let value = self.call.grants.config.get(&key).cloned();
        self.meter.handled(value.as_ref().map_or(0, String::len));
        if value.is_none() {
            self.denials.note(Grant::Config);
        }
        self.ledger.tell(HostCall {
            bytes_in: key.len() as u64,
            bytes_out: value.as_ref().map_or(0, String::len) as u64,
            duration_us: micros_since(started),
            grant: value.is_some().then(|| format!("config {key}")),
            error: value.is_none().then(|| "not granted".to_owned()),
            target: Some(key),
            ..use_of("wasi:config", "get")
        });
        Ok(Ok(value))
    }

    fn get_all(&mut self) -> wasmtime::Result<Result<Vec<(String, String)>, store::Error>> {
        let started = Instant::now();
        let bytes = size(&self.call.grants.config);
        self.meter.handled(bytes);
        let values = pairs(&self.call.grants.config);
        self.ledger.tell(HostCall {
            bytes_out: bytes as u64,
            duration_us: micros_since(started),
            grant: (!values.is_empty()).then(|| "config".to_owned()),
            ..use_of("wasi:config", "get_all")
        });
        Ok(Ok(values))
    }
}

pub(crate) fn link(linker: &mut Linker<Sandbox>) -> wasmtime::Result<()> {
    store::add_to_linker::<Sandbox, HasSelf<Sandbox>>(linker, Sandbox::counted)
}

/// Bytes of keys and values together.
pub(crate) fn size(map: &BTreeMap<String, String>) -> usize {
    map.iter().map(|(key, value)| key.len() + value.len()).sum()
}

pub(crate) fn pairs(map: &BTreeMap<String, String>) -> Vec<(String, String)> {
    map.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
}

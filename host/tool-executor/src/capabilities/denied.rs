//! What no grant opens: sockets. And what a call was denied, for its receipt.

use tool_api::HostCall;
use wasmtime::component::Linker;
use wasmtime_wasi::sockets::{WasiSockets, WasiSocketsCtxView, WasiSocketsView};

use crate::{capabilities::ledger::use_of, sandbox::Sandbox};

/// A grant that a call lacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Grant {
    Http,
    KeyValue,
    Secrets,
    Config,
    Network,
}

impl Grant {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Grant::Http => "http",
            Grant::KeyValue => "key_value",
            Grant::Secrets => "secrets",
            Grant::Config => "config",
            Grant::Network => "network",
        }
    }
}

/// What was denied, in order of the first denial.
#[derive(Debug, Default)]
pub(crate) struct Denials(Vec<Grant>);

impl Denials {
    pub(crate) fn note(&mut self, grant: Grant) {
        if !self.0.contains(&grant) {
            self.0.push(grant);
        }
    }

    pub(crate) fn all(&self) -> &[Grant] {
        &self.0
    }
}

pub(crate) fn link(linker: &mut Linker<Sandbox>) -> wasmtime::Result<()> {
    use wasmtime_wasi::p2::bindings::sockets::{ip_name_lookup, tcp_create_socket, udp_create_socket};

    // The same functions once more, in place of the first, so that a tool that asks is noted.
    linker.allow_shadowing(true);
    tcp_create_socket::add_to_linker::<Sandbox, WasiSockets>(linker, |sandbox| sockets(sandbox, "create_tcp_socket"))?;
    udp_create_socket::add_to_linker::<Sandbox, WasiSockets>(linker, |sandbox| sockets(sandbox, "create_udp_socket"))?;
    ip_name_lookup::add_to_linker::<Sandbox, WasiSockets>(linker, |sandbox| sockets(sandbox, "resolve_addresses"))?;
    linker.allow_shadowing(false);
    Ok(())
}

fn sockets<'a>(sandbox: &'a mut Sandbox, function: &'static str) -> WasiSocketsCtxView<'a> {
    sandbox.denials.note(Grant::Network);
    sandbox.ledger.tell(HostCall { error: Some("denied".into()), ..use_of("wasi:sockets", function) });
    sandbox.sockets()
}

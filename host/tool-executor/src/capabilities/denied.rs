//! What no grant opens yet: HTTP, key-value, secrets, sockets. Each answers in its interface's own words, and stands on
//! the receipt.

use wasmtime::component::{HasSelf, Linker, Resource};
use wasmtime_wasi::sockets::{WasiSockets, WasiSocketsCtxView, WasiSocketsView};
use wasmtime_wasi_http::{
    Error, RequestOptions, WasiBody, WasiHttp, WasiHttpCtx, WasiHttpCtxView, WasiHttpHooks, WasiHttpView,
};

use crate::{
    bindings::{belljar::tool::secrets, wasi::keyvalue::store},
    capabilities::NAME_BYTES_MAX,
    sandbox::Sandbox,
};

/// Headers of one request, in bytes: nothing is sent, so little need be kept.
const HTTP_FIELDS_BYTES_MAX: usize = 8 << 10;
/// One chunk of a body that is never sent.
const HTTP_CHUNK_BYTES_MAX: usize = 1 << 10;

/// A grant that a call lacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Grant {
    Http,
    KeyValue,
    Secrets,
    Network,
}

impl Grant {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Grant::Http => "http",
            Grant::KeyValue => "key_value",
            Grant::Secrets => "secrets",
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

/// A tool may build requests without any grant; sending one is denied.
pub(crate) struct Deny;

impl WasiHttpHooks for Deny {
    fn send_request(
        &mut self,
        _request: http::Request<WasiBody>,
        _options: Option<RequestOptions>,
        _io: Box<dyn Future<Output = Result<(), Error>> + Send>,
    ) -> Box<dyn Future<Output = SendResult> + Send> {
        Box::new(std::future::ready(Err(Error::HttpRequestDenied)))
    }

    fn p2_outgoing_body_chunk_size(&mut self) -> usize {
        HTTP_CHUNK_BYTES_MAX
    }
}

type SendResult = Result<(http::Response<WasiBody>, Box<dyn Future<Output = Result<(), Error>> + Send>), Error>;

impl WasiHttpView for Sandbox {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        let sandbox = self.counted();
        WasiHttpCtxView { hooks: &mut sandbox.http_hooks, table: &mut sandbox.table, ctx: &mut sandbox.http }
    }
}

impl secrets::Host for Sandbox {
    fn get(&mut self, mut name: String) -> wasmtime::Result<Result<String, secrets::Error>> {
        self.meter.handled(name.len());
        name.truncate(name.floor_char_boundary(NAME_BYTES_MAX));
        self.denials.note(Grant::Secrets);
        Ok(Err(secrets::Error::Denied(name)))
    }
}

impl store::Host for Sandbox {
    fn open(&mut self, identifier: String) -> wasmtime::Result<Result<Resource<store::Bucket>, store::Error>> {
        self.meter.handled(identifier.len());
        self.denials.note(Grant::KeyValue);
        Ok(Err(store::Error::AccessDenied))
    }
}

/// No bucket is ever opened, so these are reached by nobody; they deny all the same.
impl store::HostBucket for Sandbox {
    fn get(
        &mut self,
        _: Resource<store::Bucket>,
        _: String,
    ) -> wasmtime::Result<Result<Option<Vec<u8>>, store::Error>> {
        Ok(Err(store::Error::AccessDenied))
    }

    fn set(&mut self, _: Resource<store::Bucket>, _: String, _: Vec<u8>) -> wasmtime::Result<Result<(), store::Error>> {
        Ok(Err(store::Error::AccessDenied))
    }

    fn delete(&mut self, _: Resource<store::Bucket>, _: String) -> wasmtime::Result<Result<(), store::Error>> {
        Ok(Err(store::Error::AccessDenied))
    }

    fn exists(&mut self, _: Resource<store::Bucket>, _: String) -> wasmtime::Result<Result<bool, store::Error>> {
        Ok(Err(store::Error::AccessDenied))
    }

    fn list_keys(
        &mut self,
        _: Resource<store::Bucket>,
        _: Option<u64>,
    ) -> wasmtime::Result<Result<store::KeyResponse, store::Error>> {
        Ok(Err(store::Error::AccessDenied))
    }

    fn drop(&mut self, _: Resource<store::Bucket>) -> wasmtime::Result<()> {
        Ok(())
    }
}

/// The HTTP state of one call.
pub(crate) fn http_context() -> WasiHttpCtx {
    let mut context = WasiHttpCtx::new();
    context.set_field_size_limit(HTTP_FIELDS_BYTES_MAX);
    context
}

pub(crate) fn link(linker: &mut Linker<Sandbox>) -> wasmtime::Result<()> {
    use wasmtime_wasi::p2::bindings::sockets::{ip_name_lookup, tcp_create_socket, udp_create_socket};
    use wasmtime_wasi_http::p2::bindings::http::outgoing_handler;

    wasmtime_wasi_http::p2::add_only_http_to_linker_async(linker)?;
    secrets::add_to_linker::<Sandbox, HasSelf<Sandbox>>(linker, Sandbox::counted)?;
    store::add_to_linker::<Sandbox, HasSelf<Sandbox>>(linker, Sandbox::counted)?;

    // The same functions once more, in place of the first, so that a tool that asks is noted.
    linker.allow_shadowing(true);
    outgoing_handler::add_to_linker::<Sandbox, WasiHttp>(linker, http_denied)?;
    tcp_create_socket::add_to_linker::<Sandbox, WasiSockets>(linker, sockets_denied)?;
    udp_create_socket::add_to_linker::<Sandbox, WasiSockets>(linker, sockets_denied)?;
    ip_name_lookup::add_to_linker::<Sandbox, WasiSockets>(linker, sockets_denied)?;
    linker.allow_shadowing(false);
    Ok(())
}

fn http_denied(sandbox: &mut Sandbox) -> WasiHttpCtxView<'_> {
    sandbox.denials.note(Grant::Http);
    sandbox.http()
}

fn sockets_denied(sandbox: &mut Sandbox) -> WasiSocketsCtxView<'_> {
    sandbox.denials.note(Grant::Network);
    sandbox.sockets()
}

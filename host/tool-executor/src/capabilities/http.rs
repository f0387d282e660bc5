//! `wasi:http`: requests to granted hosts, sent through `egress` and nothing else.
//!
//! The engine keeps the tool's requests and responses; sending is ours. What is matched against the grants is what is
//! sent. Redirects are answers: a tool that follows one sends again, and everything is decided anew, secrets included.

mod exchange;
mod intent;
mod request;

use std::{
    collections::BTreeSet,
    sync::{Arc, OnceLock},
    time::Duration,
};

use domain::{ExposeSecret, grants::http::Scheme};
use egress::{Egress, EgressError, Exchange, Piece};
use futures::{StreamExt, stream};
use http::{HeaderMap, Method, StatusCode, header};
use tokio::sync::Semaphore;
use tool_api::{HostError, Intent};
use wasmtime::{
    StoreContextMut,
    component::{Linker, Resource},
};
use wasmtime_wasi::runtime::spawn;
use wasmtime_wasi_http::{
    Error, RequestOptions, WasiBody, WasiHttpCtx, WasiHttpCtxView, WasiHttpHooks, WasiHttpView,
    p2::{
        bindings::http::types::{self, ErrorCode},
        types::{HostFutureIncomingResponse, HostOutgoingRequest},
    },
};

use crate::{
    capabilities::{denied::Grant, ledger::use_of},
    meter::LimitReached,
    redact::Redactor,
    replay,
    sandbox::{CallView, Sandbox},
};
use exchange::{Entry, Traffic, Way};
use intent::Intents;
use request::{Asked, Own, Prepared, Refusal};

/// The instance that sends, as the engine links it. Its `handle` is replaced by ours.
const OUTGOING_HANDLER: &str = "wasi:http/outgoing-handler@0.2.12";
/// Headers of one request, in bytes: servers commonly take no more.
const FIELDS_BYTES_MAX: usize = 8 << 10;
/// One chunk of a request's body, in bytes. The engine holds two of each body whose server is slow.
const CHUNK_BYTES_MAX: usize = 16 << 10;
/// Connections of one call at the same time; further requests wait. Each may hold half a megabyte of an answer that is
/// not read.
const CONNECTIONS_MAX: usize = 16;
/// Why a request did not leave that the platform could not note before.
const NOT_TOLD: &str = "the platform could not note the request, so it was not sent; try again";
/// Longest wait for a connection. `egress` waits no longer either.
const CONNECT_MAX: Duration = Duration::from_secs(10);

type Sent = Result<Resource<HostFutureIncomingResponse>, ErrorCode>;

/// The HTTP side of one call.
pub(crate) struct Outgoing {
    context: WasiHttpCtx,
    hooks: Deny,
    requests_left: u64,
    traffic: Arc<Traffic>,
    connections: Arc<Semaphore>,
    intents: Intents,
    entries: Vec<Entry>,
    secrets: OnceLock<Secrets>,
}

/// What is taken out of answers. `None` where there is nothing.
#[derive(Clone)]
struct Secrets {
    /// Secrets that grants bind to requests: the tool does not hold them.
    bound: Option<Arc<Redactor>>,
    /// All secrets of the call, for what others read.
    opened: Option<Arc<Redactor>>,
}

impl Outgoing {
    pub(crate) fn new(limits: &domain::Limits) -> Outgoing {
        let mut context = WasiHttpCtx::new();
        context.set_field_size_limit(FIELDS_BYTES_MAX);
        Outgoing {
            context,
            hooks: Deny,
            requests_left: limits.http_requests,
            traffic: Arc::new(Traffic::new(limits.http_bytes)),
            connections: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            intents: Intents::default(),
            entries: Vec::new(),
            secrets: OnceLock::new(),
        }
    }

    /// The limit that the call's exchanges have reached while it was elsewhere.
    pub(crate) fn limit_reached(&self) -> Option<LimitReached> {
        self.traffic.is_spent().then_some(LimitReached::HttpBytes)
    }

    /// The call is over: requests that are not finished are given up, and what was not told yet is told.
    pub(crate) fn finish(&mut self) {
        self.traffic.end();
        for entry in self.entries.drain(..) {
            entry.tell();
        }
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        self.traffic.end();
    }
}

/// What the engine would do by itself: nothing.
struct Deny;

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
        CHUNK_BYTES_MAX
    }
}

type SendResult = Result<(http::Response<WasiBody>, Box<dyn Future<Output = Result<(), Error>> + Send>), Error>;

impl WasiHttpView for Sandbox {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        let Sandbox { outgoing, table, .. } = self.counted();
        WasiHttpCtxView { hooks: &mut outgoing.hooks, table, ctx: &mut outgoing.context }
    }
}

pub(crate) fn link(linker: &mut Linker<Sandbox>) -> wasmtime::Result<()> {
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(linker)?;
    linker.allow_shadowing(true);
    linker.instance(OUTGOING_HANDLER)?.func_wrap(
        "handle",
        |mut store: StoreContextMut<'_, Sandbox>,
         (request, options): (Resource<HostOutgoingRequest>, Option<Resource<RequestOptions>>)| {
            Ok((store.data_mut().counted().send(request, options)?,))
        },
    )?;
    linker.allow_shadowing(false);
    Ok(())
}

impl Sandbox {
    /// Decides at once, and sends in the background. Refusals come through the future too: tools of older contracts
    /// have only ever seen them there.
    fn send(
        &mut self,
        request: Resource<HostOutgoingRequest>,
        options: Option<Resource<RequestOptions>>,
    ) -> wasmtime::Result<Sent> {
        let request = self.table.delete(request)?;
        let options = options.map(|options| self.table.delete(options)).transpose()?.unwrap_or_default();
        let sent = self.decided(request, options)?;
        Ok(Ok(self.table.push(sent)?))
    }

    fn decided(
        &mut self,
        request: HostOutgoingRequest,
        options: RequestOptions,
    ) -> wasmtime::Result<HostFutureIncomingResponse> {
        let secrets = self.secrets();
        if secrets.opened.as_ref().is_some_and(|opened| opened.is_blind()) {
            return Ok(self.refused(&Refusal::TooManySecrets, None));
        }
        let Ok(method): Result<Method, _> = request.method.try_into() else {
            return Ok(HostFutureIncomingResponse::Ready(Err(Error::HttpRequestMethodInvalid)));
        };
        let asked = Asked {
            method,
            scheme: scheme(request.scheme.as_ref()),
            authority: request.authority.as_deref().unwrap_or_default(),
            path_and_query: request.path_with_query.as_deref().unwrap_or_default(),
            headers: &request.headers,
        };
        let own = Own {
            grants: &self.call.grants.http,
            secrets: &self.call.secrets,
            idempotency_key: &self.call.context.idempotency_key,
        };
        self.meter.handled(asked.authority.len() + asked.path_and_query.len() + exchange::head_bytes(asked.headers));
        let prepared = match request::prepare(&asked, &own) {
            Ok(prepared) => prepared,
            Err(refusal) => {
                let told = refusal.told().map(|told| without_secrets(told, &secrets));
                return Ok(self.refused(&refusal, told));
            }
        };
        let length = length(&prepared.headers);
        if request.body.is_none() && length.is_some_and(|length| length > 0) {
            return Ok(HostFutureIncomingResponse::Ready(Err(Error::HttpRequestBodySize(Some(0)))));
        }
        self.outgoing.requests_left = self.outgoing.requests_left.checked_sub(1).ok_or(LimitReached::HttpRequests)?;
        self.outgoing.traffic.take(prepared.head_bytes()).map_err(|_| LimitReached::HttpBytes)?;
        Ok(self.begun(prepared, &secrets, request.body, length, options))
    }

    fn refused(&mut self, refusal: &Refusal, told: Option<String>) -> HostFutureIncomingResponse {
        if matches!(refusal, Refusal::Denied { .. }) {
            self.denials.note(Grant::Http);
        }
        self.ledger.tell(tool_api::HostCall {
            target: told,
            error: Some(refusal.to_string()),
            ..use_of("wasi:http", "handle")
        });
        HostFutureIncomingResponse::Ready(Err(refusal.error()))
    }

    /// Begins an exchange that is allowed, with the world or with a recording.
    fn begun(
        &mut self,
        prepared: Prepared,
        secrets: &Secrets,
        body: Option<WasiBody>,
        length: Option<u64>,
        options: RequestOptions,
    ) -> HostFutureIncomingResponse {
        let target = without_secrets(&request::told(&prepared.method, &prepared.target), secrets);
        let intent = Intent {
            method: prepared.method.to_string(),
            target: without_secrets(prepared.target.without_query(), secrets),
            idempotency_header: prepared.is_keyed,
        };
        let entry =
            tool_api::HostCall { target: Some(target), grant: Some(prepared.grant), ..use_of("wasi:http", "handle") };
        let entry = Entry::new(entry, self.ledger.clone());
        entry.sent(prepared.tools_bytes);
        self.outgoing.entries.push(entry.clone());
        for secret in &prepared.secrets {
            self.ledger.used(secret);
        }
        let url = without_secrets(&prepared.url, secrets);
        let decided = self.call.inputs.http(prepared.method.as_str(), &url);
        let tape = match &decided {
            replay::Exchange::Send(tape) => tape.clone(),
            replay::Exchange::Answer(_) | replay::Exchange::Missing(_) => replay::Tape::default(),
        };
        let traffic = Arc::clone(&self.outgoing.traffic);
        let body =
            body.map(|body| exchange::request_body(body, length, Arc::clone(&traffic), tape.clone(), entry.clone()));
        // A tool may know more secrets than a recording may.
        let is_recorded = matches!(self.call.inputs, replay::Inputs::Recording(_));
        let untold = secrets.opened.clone().filter(|_| is_recorded);
        let way = Way::new(traffic, tape, secrets.bound.clone(), untold, entry);
        let egress = self.call.egress.clone();
        let connections = Arc::clone(&self.outgoing.connections);
        let (intents, host) = (self.outgoing.intents.clone(), Arc::clone(&self.host));
        let deadline = self.meter.deadline;
        HostFutureIncomingResponse::Pending(spawn(async move {
            let exchange = match decided {
                replay::Exchange::Missing(error) => return Err(way.failed(error, "not in the recording".into())),
                replay::Exchange::Answer(answer) => {
                    // The tool's body is read all the same: it may wait until it has written it.
                    let body = body.unwrap_or_else(|| stream::empty().boxed());
                    return Ok((replayed(way, &answer)?, spawn(body.for_each(async |_| {}))));
                }
                replay::Exchange::Send(_) => Exchange {
                    method: prepared.method,
                    target: prepared.target,
                    headers: prepared.headers,
                    body,
                    plain_http: prepared.plain_http,
                    first_byte: head_wait(&options),
                    between_bytes: options.between_bytes_timeout.unwrap_or(Duration::MAX),
                    deadline,
                },
            };
            let told = async { intents.tell(host.as_ref(), intent).await };
            // The connection works by itself; there is no task to keep beside the body.
            Ok((live(way, egress, connections, told, exchange).await?, spawn(async {})))
        }))
    }

    /// All secrets of the call. `None`: there are none to be kept from anybody.
    pub(crate) fn opened_secrets(&self) -> Option<Arc<Redactor>> {
        self.secrets().opened
    }

    /// Made when they are first needed.
    fn secrets(&self) -> Secrets {
        let make = || {
            let CallView { secrets, grants, .. } = &self.call;
            let value = |name| secrets.get(name).map(|secret| secret.value.expose_secret());
            let bound: BTreeSet<_> = grants.http.iter().flat_map(|grant| grant.secret_names()).collect();
            let basics = || {
                let basics = grants.http.iter().filter_map(|grant| grant.basic.as_ref());
                basics.filter_map(|basic| Some((basic.user.as_str(), value(&basic.secret)?)))
            };
            let opened = some(Redactor::new(secrets.keys().filter_map(value), basics()));
            let all_are_bound = secrets.keys().all(|name| bound.contains(name));
            let bound = match all_are_bound {
                true => opened.clone(),
                false => some(Redactor::new(bound.into_iter().filter_map(value), basics())),
            };
            Secrets { bound, opened }
        };
        self.outgoing.secrets.get_or_init(make).clone()
    }
}

fn without_secrets(text: &str, secrets: &Secrets) -> String {
    secrets.opened.as_ref().map_or_else(|| text.to_owned(), |opened| opened.text(text))
}

fn some(redactor: Redactor) -> Option<Arc<Redactor>> {
    (!redactor.is_empty()).then(|| Arc::new(redactor))
}

/// `https` where the tool names none, as the engine has it.
fn scheme(scheme: Option<&types::Scheme>) -> Option<Scheme> {
    match scheme {
        None | Some(types::Scheme::Https) => Some(Scheme::Https),
        Some(types::Scheme::Http) => Some(Scheme::Http),
        Some(types::Scheme::Other(_)) => None,
    }
}

/// The length that a request's head tells. The engine takes one such header, of digits.
fn length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// The longest wait for an answer's head: for the connection and for the answer together.
fn head_wait(options: &RequestOptions) -> Duration {
    let connect = options.connect_timeout.unwrap_or(CONNECT_MAX).min(CONNECT_MAX);
    connect.saturating_add(options.first_byte_timeout.unwrap_or(Duration::MAX))
}

async fn live(
    way: Way,
    egress: Option<Egress>,
    connections: Arc<Semaphore>,
    told: impl Future<Output = Result<(), HostError>>,
    exchange: Exchange,
) -> Result<http::Response<WasiBody>, Error> {
    let (Some(egress), Ok(place)) = (egress, connections.acquire_owned().await) else {
        return Err(way.failed(Error::ConfigurationError, "this host sends no requests".into()));
    };
    if let Err(error) = told.await {
        tracing::warn!(error = %error, cause = ?error.0, "a request was not sent");
        return Err(way.failed(Error::InternalError(Some(NOT_TOLD.into())), NOT_TOLD.into()));
    }
    match egress.exchange(exchange).await {
        Err(error) => Err(way.failed(exchange::error_of(&error), error.to_string())),
        Ok(answer) => {
            let body = answer.body.map(|piece| piece.map_err(|error: EgressError| exchange::error_of(&error)));
            way.answer(answer.status, answer.headers, body.boxed(), Some(place))
        }
    }
}

/// An answer from a recording.
fn replayed(way: Way, answer: &replay::Answer) -> Result<http::Response<WasiBody>, Error> {
    let (status, headers) = match answer.head() {
        Ok((status, headers)) => (StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY), headers),
        Err(error) => {
            let words = error.to_string();
            return Err(way.failed(error, words));
        }
    };
    let pieces = answer.body().into_iter().filter(|piece| !piece.is_empty()).map(|piece| Ok(Piece::Data(piece)));
    let end = match answer.end() {
        Ok(trailers) => trailers.map(|trailers| Ok(Piece::Trailers(trailers))),
        Err(error) => Some(Err(error)),
    };
    way.answer(status, headers, stream::iter(pieces.chain(end)).boxed(), None)
}

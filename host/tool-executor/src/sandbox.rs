//! The store's data: everything that one call can reach. A field per capability.

use std::{sync::Arc, time::Instant};

use domain::{CallId, Clock, Grants, Limits};
use tool_api::CallContext;
use wasmtime::{Engine, Store, component::ResourceTable};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_http::WasiHttpCtx;

use crate::{
    capabilities::{
        denied::{self, Denials, Deny},
        logging::{Log, SharedLog},
        wasi,
    },
    meter::{Meter, RESULT_BYTES_MAX, YIELD_FUEL, crossing},
};

/// Resources that a call may hold at the same time, in the component's tables and in the host's.
const HANDLES_MAX: usize = 1_000;

pub(crate) struct Sandbox {
    pub(crate) meter: Meter,
    pub(crate) log: SharedLog,
    pub(crate) denials: Denials,
    pub(crate) call: CallView,
    pub(crate) http: WasiHttpCtx,
    pub(crate) http_hooks: Deny,
    pub(crate) table: ResourceTable,
    /// Made when the call first asks for WASI: many calls never do.
    wasi: Option<Box<WasiCtx>>,
    clock: Arc<dyn Clock>,
    started: Instant,
}

/// What `context` and `config` tell.
pub(crate) struct CallView {
    pub(crate) id: Option<CallId>,
    pub(crate) deadline_unix_ms: u64,
    pub(crate) context: CallContext,
    pub(crate) grants: Arc<Grants>,
}

impl Sandbox {
    pub(crate) fn new(
        limits: &Limits,
        call: CallView,
        clock: Arc<dyn Clock>,
        started: Instant,
        deadline: Instant,
    ) -> Self {
        let mut table = ResourceTable::new();
        table.set_max_capacity(HANDLES_MAX);
        Sandbox {
            meter: Meter::new(limits, deadline),
            log: Log::shared(limits.log_bytes),
            denials: Denials::default(),
            call,
            http: denied::http_context(),
            http_hooks: Deny,
            table,
            wasi: None,
            clock,
            started,
        }
    }

    /// The store of one call.
    pub(crate) fn into_store(self, engine: &Engine, fuel: u64) -> wasmtime::Result<Store<Sandbox>> {
        let mut store = self.into_bare_store(engine, fuel)?;
        store.call_hook(crossing);
        store.set_hostcall_fuel(RESULT_BYTES_MAX);
        store.set_max_component_handles(HANDLES_MAX);
        Ok(store)
    }

    /// A store with fuel and memory limits, and nothing else: what the bench compares with.
    pub(crate) fn into_bare_store(self, engine: &Engine, fuel: u64) -> wasmtime::Result<Store<Sandbox>> {
        let mut store = Store::new(engine, self);
        store.limiter(|sandbox| &mut sandbox.meter);
        store.fuel_async_yield_interval(Some(YIELD_FUEL))?;
        store.set_fuel(fuel)?;
        Ok(store)
    }

    /// `self`, for one call of a host function. Every host function is reached through this or through
    /// `ctx` below, so this is where host calls are counted.
    pub(crate) fn counted(&mut self) -> &mut Self {
        self.meter.host_calls += 1;
        self
    }

    /// Gives this sandbox an empty WASI context at once; see `BareCall`.
    pub(crate) fn with_wasi(mut self) -> Self {
        self.wasi = Some(Box::new(WasiCtx::builder().build()));
        self
    }
}

impl WasiView for Sandbox {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        let Sandbox { wasi, table, log, clock, started, .. } = self.counted();
        let ctx = wasi.get_or_insert_with(|| Box::new(wasi::empty(log, clock, *started)));
        WasiCtxView { ctx, table }
    }
}

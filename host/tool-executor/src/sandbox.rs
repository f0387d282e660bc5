//! The store's data: everything that one call can reach. A field per capability.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use domain::{CallGrants, CallId, Clock, Limits, SecretName};
use egress::Egress;
use tool_api::{CallContext, CallHost, OpenSecret};
use wasmtime::{Engine, Store, component::ResourceTable};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};

use crate::{
    capabilities::{
        denied::Denials,
        http::Outgoing,
        key_value::KeyValue,
        ledger::Ledger,
        logging::{Log, SharedLog},
        progress,
        scratch::Scratch,
        wasi,
    },
    meter::{Meter, RESULT_BYTES_MAX, YIELD_FUEL, crossing},
    replay::Inputs,
};

/// Resources that a call may hold at the same time, in the component's tables and in the host's.
const HANDLES_MAX: usize = 1_000;

pub(crate) struct Sandbox {
    pub(crate) meter: Meter,
    pub(crate) log: SharedLog,
    pub(crate) denials: Denials,
    pub(crate) ledger: Ledger,
    pub(crate) call: CallView,
    pub(crate) host: Arc<dyn CallHost>,
    pub(crate) key_value: KeyValue,
    pub(crate) progress: progress::Told,
    /// Before the table: what ends with the call is told so before the table's resources are dropped.
    pub(crate) outgoing: Outgoing,
    pub(crate) scratch: Scratch,
    pub(crate) table: ResourceTable,
    /// Made when the call first asks for WASI: many calls never do.
    wasi: Option<Box<WasiCtx>>,
    clock: Arc<dyn Clock>,
    started: Instant,
}

/// What the capabilities know of their call. By default it is nobody's, and grants nothing.
#[derive(Default)]
pub(crate) struct CallView {
    pub(crate) id: Option<CallId>,
    pub(crate) deadline_unix_ms: u64,
    pub(crate) context: CallContext,
    pub(crate) grants: Arc<CallGrants>,
    pub(crate) secrets: Arc<BTreeMap<SecretName, OpenSecret>>,
    pub(crate) inputs: Inputs,
    /// `None`: nothing is sent.
    pub(crate) egress: Option<Egress>,
    /// All random numbers of the call come from this.
    pub(crate) seed: [u8; 32],
}

impl Sandbox {
    pub(crate) fn new(
        limits: &Limits,
        call: CallView,
        host: Arc<dyn CallHost>,
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
            ledger: Ledger::default(),
            call,
            host,
            key_value: KeyValue::default(),
            progress: progress::Told::default(),
            outgoing: Outgoing::new(limits),
            scratch: Scratch::default(),
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
        let Sandbox { wasi, table, log, clock, call, started, meter, .. } = self.counted();
        let ctx = wasi.get_or_insert_with(|| {
            let drawn = meter.drawn.insert(Arc::default());
            Box::new(wasi::empty(log, clock, call, *started, drawn))
        });
        WasiCtxView { ctx, table }
    }
}

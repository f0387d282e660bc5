//! What the benches compare a sealed call with. Not part of the product: nothing else calls it.

use std::{io, sync::Arc, time::Instant};

use domain::Limits;
use tool_api::{ArtifactHash, CallError, NoHost};
use wasmtime::{Engine, component::Component};

use crate::{
    Executor, Jar,
    cache::Loaded,
    call::internal,
    capabilities,
    contract::Tool,
    engine,
    sandbox::{CallView, Sandbox},
};

/// The same component in the same engine, with fuel, a memory limit and an empty WASI context, and nothing else that a
/// sealed call has: no place, no deadline, no crossings, no log, no receipt.
pub struct BareCall {
    executor: Executor,
    tool: Arc<Loaded>,
}

/// The same component with memory on demand, and linked anew for each call: what one writes first.
pub struct NaiveCall {
    executor: Executor,
    engine: Engine,
    component: Component,
    contract: String,
}

impl Executor {
    /// `None` when the artifact is not on this host.
    pub async fn bare(&self, artifact: ArtifactHash) -> Option<BareCall> {
        let tool = self.jar.find(artifact).await.ok().flatten()?;
        Some(BareCall { executor: self.clone(), tool })
    }

    /// `None` when the artifact is not on this host.
    pub fn naive(&self, artifact: ArtifactHash) -> Option<NaiveCall> {
        let engine = engine::for_compiling().ok()?;
        let component = self.jar.cache.component(&engine, artifact).ok()??;
        let exports = component.component_type();
        let contract = exports.exports(&engine).find_map(|(name, _)| crate::check::contract_of(name))?;
        Some(NaiveCall { executor: self.clone(), engine, component, contract })
    }

    /// Gives compiled code to another hash as well: many tools without as many compilations.
    pub fn twin(&self, artifact: ArtifactHash, twin: ArtifactHash) -> io::Result<()> {
        self.jar.cache.twin(&self.jar.engine, artifact, twin)
    }
}

impl BareCall {
    /// Calls a function; whether it answered without an error.
    pub async fn call(&self, function: &str, arguments: &str) -> Result<bool, CallError> {
        let jar = &self.executor.jar;
        bare(jar, &jar.engine, &self.tool.tool, function, arguments).await
    }
}

impl NaiveCall {
    /// Calls a function; whether it answered without an error.
    pub async fn call(&self, function: &str, arguments: &str) -> Result<bool, CallError> {
        let linker = capabilities::link(&self.engine).map_err(internal)?;
        let pre = linker.instantiate_pre(&self.component).map_err(internal)?;
        let tool = Tool::new(pre, &self.contract).map_err(internal)?;
        bare(&self.executor.jar, &self.engine, &tool, function, arguments).await
    }
}

async fn bare(jar: &Jar, engine: &Engine, tool: &Tool, function: &str, arguments: &str) -> Result<bool, CallError> {
    let now = Instant::now();
    let sandbox =
        Sandbox::new(&Limits::DEFAULT, CallView::default(), Arc::new(NoHost), jar.clock.clone(), now, now).with_wasi();
    let mut store = sandbox.into_bare_store(engine, Limits::DEFAULT.fuel).map_err(internal)?;
    let answer = tool.call_toolbox(&mut store, function, arguments, || ()).await;
    answer.map(|answer| !answer.is_error).map_err(internal)
}

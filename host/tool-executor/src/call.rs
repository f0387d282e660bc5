//! One call, from request to receipt.

use std::{
    panic::AssertUnwindSafe,
    pin::pin,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use futures::FutureExt;
use tool_api::{ArtifactHash, CallError, Finished, Receipt, ToolCall, ToolExecutor};
use wasmtime::Store;

use crate::{
    Executor, Jar,
    bindings::exports::belljar::tool::toolbox::CallResult,
    cache::Loaded,
    capabilities::logging::locked,
    outcome::{self, Limit},
    sandbox::{CallView, Sandbox},
};

#[async_trait]
impl ToolExecutor for Executor {
    async fn call(&self, call: ToolCall) -> Result<Finished, CallError> {
        let tool = self.jar.find(call.artifact).await.map_err(internal)?;
        let tool = tool.ok_or(CallError::NotCompiled(call.artifact))?;
        // Declared before the store: the store leaves the pool first, then its place is free.
        let _place = self.jar.place().await?;
        self.jar.call(&tool, call).await
    }
}

impl Jar {
    /// Runs one call. The caller holds a place.
    async fn call(&self, tool: &Loaded, call: ToolCall) -> Result<Finished, CallError> {
        let limits = call.limits.min(domain::Limits::CEILING);
        let started = Instant::now();
        let time = Duration::from_millis(limits.deadline_ms);
        let arguments = call.arguments.to_string();
        let (attempt, idempotency_key) = (call.context.attempt, call.context.idempotency_key.clone());
        let view = CallView {
            id: Some(call.id),
            deadline_unix_ms: self.clock.now().plus(time).unix_ms(),
            context: call.context,
            grants: call.grants,
        };
        let sandbox = Sandbox::new(&limits, view, self.clock.clone(), started, started + time);
        let mut store = sandbox.into_store(&self.engine, limits.fuel).map_err(internal)?;

        let mut instantiated = None;
        let ended = ended(&mut store, time, async |store| {
            let instance = tool.pre.instantiate_async(&mut *store).await?;
            instantiated = Some(started.elapsed());
            instance.belljar_tool_toolbox().call_call(store, call.function.as_str(), &arguments).await
        })
        .await?;

        let total = started.elapsed();
        let fuel_left = store.get_fuel().map_err(internal)?;
        let sandbox = store.data_mut();
        let (logs, logs_truncated, last_words) = locked(&sandbox.log).finish();
        let outcome = match ended {
            Ended::Answered(answer) => outcome::of_answer(answer, &limits),
            Ended::Failed(error) => outcome::of_error(&error, last_words, &limits),
            Ended::TimedOut => outcome::of_limit(Limit::Deadline, &limits),
        };
        let denials = sandbox.denials.all();
        let outcome = outcome::after_denials(outcome, denials);
        let denied = denials.iter().map(|grant| grant.as_str().to_owned()).collect();
        let receipt = Receipt {
            artifact: call.artifact,
            contract: tool.contract.clone(),
            fuel_used: limits.fuel - fuel_left.min(limits.fuel),
            memory_peak_bytes: sandbox.meter.memory_bytes as u64,
            instantiate_us: micros(instantiated.unwrap_or(total)),
            total_us: micros(total),
            host_call_count: sandbox.meter.host_calls,
            denied,
            logs,
            logs_truncated,
            attempt,
            idempotency_key,
        };
        Ok(Finished { outcome, receipt })
    }
}

/// How the work in a store ended.
pub(crate) enum Ended<T> {
    Answered(T),
    Failed(wasmtime::Error),
    TimedOut,
}

/// Does work in a store, for at most `time`. A panic is ours, never the tool's: it ends this call alone. After anything
/// but an answer the store is fit to be read, and not to be run again.
pub(crate) async fn ended<T>(
    store: &mut Store<Sandbox>,
    time: Duration,
    work: impl AsyncFnOnce(&mut Store<Sandbox>) -> wasmtime::Result<T>,
) -> Result<Ended<T>, CallError> {
    let polls = store.data().meter.polls();
    let mut work = pin!(AssertUnwindSafe(work(store)).catch_unwind());
    let work = std::future::poll_fn(|cx| {
        polls.fetch_add(1, Ordering::Relaxed);
        work.as_mut().poll(cx)
    });
    match tokio::time::timeout(time, work).await {
        Err(_) => Ok(Ended::TimedOut),
        Ok(Ok(Ok(answer))) => Ok(Ended::Answered(answer)),
        Ok(Ok(Err(error))) => Ok(Ended::Failed(error)),
        Ok(Err(panic)) => {
            let words = panic.downcast_ref::<String>().map(String::as_str);
            let words = words.or(panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
            tracing::error!(panic = words, "a host function panicked in a tool call");
            Err(CallError::Internal(format!("panic in a tool call: {words}").into()))
        }
    }
}

pub(crate) fn internal(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> CallError {
    CallError::Internal(error.into())
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// The same component in the same engine, with fuel, a memory limit and an empty WASI context, and nothing else that a
/// sealed call has: no place, no deadline, no crossings, no log, no receipt. Only the bench measures with it.
pub struct BareCall {
    executor: Executor,
    tool: std::sync::Arc<Loaded>,
}

impl Executor {
    /// `None` when the artifact is not on this host.
    pub async fn bare(&self, artifact: ArtifactHash) -> Option<BareCall> {
        let tool = self.jar.find(artifact).await.ok().flatten()?;
        Some(BareCall { executor: self.clone(), tool })
    }
}

impl BareCall {
    /// Calls a function; whether it answered without an error.
    pub async fn call(&self, function: &str, arguments: &str) -> Result<bool, CallError> {
        let jar = &self.executor.jar;
        let limits = domain::Limits::DEFAULT;
        let now = Instant::now();
        let view = CallView { id: None, deadline_unix_ms: 0, context: Default::default(), grants: Default::default() };
        let sandbox = Sandbox::new(&limits, view, jar.clock.clone(), now, now).with_wasi();
        let mut store = sandbox.into_bare_store(&jar.engine, limits.fuel).map_err(internal)?;
        let answer: wasmtime::Result<CallResult> = async {
            let instance = self.tool.pre.instantiate_async(&mut store).await?;
            instance.belljar_tool_toolbox().call_call(&mut store, function, arguments).await
        }
        .await;
        answer.map(|answer| !answer.is_error).map_err(internal)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use domain::{Limits, SystemClock};

    use super::*;

    async fn end_of(
        work: impl AsyncFnOnce(&mut Store<Sandbox>) -> wasmtime::Result<()>,
    ) -> Result<Ended<()>, CallError> {
        let engine = crate::engine::for_compiling().unwrap();
        let (now, time) = (Instant::now(), Duration::from_millis(10));
        let view = CallView { id: None, deadline_unix_ms: 0, context: Default::default(), grants: Default::default() };
        let sandbox = Sandbox::new(&Limits::DEFAULT, view, Arc::new(SystemClock), now, now + time);
        ended(&mut sandbox.into_store(&engine, 1_000).unwrap(), time, work).await
    }

    #[tokio::test]
    async fn work_ends_in_one_of_four_ways() {
        assert!(matches!(end_of(async |_| Ok(())).await, Ok(Ended::Answered(()))));
        assert!(matches!(end_of(async |_| Err(wasmtime::Error::msg("x"))).await, Ok(Ended::Failed(_))));
        assert!(matches!(end_of(async |_| std::future::pending().await).await, Ok(Ended::TimedOut)));
        let panic = end_of(async |_| panic!("our own mistake")).await;
        assert!(matches!(panic, Err(CallError::Internal(_))));
    }
}

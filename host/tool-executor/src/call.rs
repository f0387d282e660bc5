//! One call, from request to receipt.

use std::{
    panic::AssertUnwindSafe,
    pin::pin,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use futures::FutureExt;
use tool_api::{
    CallError, CallHost, Finished, NoHost, Receipt, Recording, Replayed, Share, Status, ToolCall, ToolExecutor,
};
use wasmtime::Store;

use crate::{
    Executor, Jar,
    cache::Loaded,
    capabilities::{ledger::micros, logging::locked, scratch::Scratch},
    clean,
    outcome::{self, Limit},
    replay::Inputs,
    sandbox::{CallView, Sandbox},
    turns::Seat,
};

#[async_trait]
impl ToolExecutor for Executor {
    async fn call(&self, call: ToolCall, host: Arc<dyn CallHost>) -> Result<Finished, CallError> {
        let tool = self.jar.find(call.artifact).await.map_err(internal)?;
        let tool = tool.ok_or(CallError::NotCompiled(call.artifact))?;
        // Declared before the store: the store leaves the pool first, then its place is free.
        let _place = self.jar.place(call.tenant, call.share).await?;
        let inputs = if call.record { Inputs::recording(self.jar.clock.now().unix_ms()) } else { Inputs::Live };
        self.jar.call(&tool, call, host, inputs).await
    }

    async fn replay(&self, call: ToolCall, recording: Arc<Recording>) -> Result<Replayed, CallError> {
        if recording.truncated {
            return Err(internal("the recording is truncated; it cannot be replayed"));
        }
        let tool = self.jar.find(call.artifact).await.map_err(internal)?;
        let tool = tool.ok_or(CallError::NotCompiled(call.artifact))?;
        let _place = self.jar.place(call.tenant, call.share).await?;
        let inputs = Inputs::replaying(recording);
        // Nobody follows a replay, and its reads never come to the host.
        let finished = self.jar.call(&tool, call, Arc::new(NoHost), inputs.clone()).await?;
        Ok(Replayed { finished, missing: inputs.missing() })
    }
}

impl Jar {
    /// Runs one call. The caller holds a place.
    async fn call(
        &self,
        tool: &Loaded,
        call: ToolCall,
        host: Arc<dyn CallHost>,
        inputs: Inputs,
    ) -> Result<Finished, CallError> {
        let limits = call.limits.min(domain::Limits::CEILING);
        let started = Instant::now();
        let time = Duration::from_millis(limits.deadline_ms);
        let (attempt, idempotency_key) = (call.context.attempt, call.context.idempotency_key.clone());
        let began_unix_ms = inputs.started_unix_ms(|| self.clock.now().unix_ms());
        let seed = inputs.seed(fresh_seed)?;
        let view = CallView {
            id: Some(call.id),
            deadline_unix_ms: began_unix_ms.saturating_add(limits.deadline_ms),
            context: call.context,
            grants: call.grants,
            secrets: Arc::clone(&call.secrets),
            inputs: inputs.clone(),
            egress: Some(self.egress.clone()),
            seed,
        };
        let scratch_bytes = view.grants.scratch_bytes;
        let mut sandbox = Sandbox::new(&limits, view, host, self.clock.clone(), started, started + time);
        // Declared before the store: when this future is dropped, its files are closed first.
        let mut directory = None;
        if let Some(bytes_max) = scratch_bytes {
            let (scratch, made) = Scratch::open(Arc::clone(&self.room), bytes_max).await.map_err(internal)?;
            (sandbox.scratch, directory) = (scratch, Some(made));
        }
        let mut store = sandbox.into_store(&self.engine, limits.fuel).map_err(internal)?;

        let mut instantiated = None;
        let seat = self.cores.seat(call.tenant, Share { calls_max: u32::MAX, ..call.share });
        let ended = ended(&mut store, seat, time, async |store| {
            let ready = || instantiated = Some(started.elapsed());
            tool.tool.call(store, call.function.as_str(), &call.arguments, ready).await
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
        let mut outcome = outcome::after_denials(outcome, denials);
        let denied = denials.iter().map(|grant| grant.as_str().to_owned()).collect();
        sandbox.scratch.finish();
        sandbox.outgoing.finish();
        let (host_calls, host_call_counts, secrets_used) = sandbox.ledger.finish();
        let mut receipt = Receipt {
            artifact: call.artifact,
            contract: tool.contract.clone(),
            fuel_used: limits.fuel - fuel_left.min(limits.fuel),
            memory_peak_bytes: sandbox.meter.memory_bytes as u64,
            instantiate_us: micros(instantiated.unwrap_or(total)),
            total_us: micros(total),
            host_call_count: sandbox.meter.host_calls,
            host_calls,
            host_call_counts,
            secrets_used,
            denied,
            logs,
            logs_truncated,
            attempt,
            idempotency_key,
        };
        let mut recording = inputs.finish();
        if let Some(opened) = sandbox.opened_secrets() {
            clean::outcome(&mut outcome, &opened);
            clean::receipt(&mut receipt, &opened);
            if let Some(recording) = &mut recording {
                clean::recording(recording, &opened);
            }
        }
        // A call that did not answer leaves nothing.
        let answered = matches!(outcome.status, Status::Ok | Status::ToolError);
        let changes = if answered { std::mem::take(&mut sandbox.key_value).into_changes() } else { Vec::new() };
        let finished = Finished { outcome, receipt, changes, recording };
        if let Some(directory) = directory {
            drop(store);
            directory.remove().await;
        }
        Ok(finished)
    }
}

/// How the work in a store ended.
pub(crate) enum Ended<T> {
    Answered(T),
    Failed(wasmtime::Error),
    TimedOut,
}

/// Does work in a store, for at most `time`, a slice at a time as the cores are free for its tenant. A panic is ours,
/// never the tool's: it ends this call alone. After anything but an answer the store is fit to be read, and not to be run
/// again.
pub(crate) async fn ended<T>(
    store: &mut Store<Sandbox>,
    mut seat: Seat,
    time: Duration,
    work: impl AsyncFnOnce(&mut Store<Sandbox>) -> wasmtime::Result<T>,
) -> Result<Ended<T>, CallError> {
    let polls = store.data().meter.polls();
    let mut work = pin!(AssertUnwindSafe(work(store)).catch_unwind());
    let work = std::future::poll_fn(|cx| {
        seat.poll(cx, |cx| {
            polls.fetch_add(1, Ordering::Relaxed);
            work.as_mut().poll(cx)
        })
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

/// From the operating system.
fn fresh_seed() -> Result<[u8; 32], CallError> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(internal)?;
    Ok(seed)
}

pub(crate) fn internal(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> CallError {
    CallError::Internal(error.into())
}

#[cfg(test)]
mod tests {
    use domain::{Limits, SystemClock};

    use super::*;

    async fn end_of(
        work: impl AsyncFnOnce(&mut Store<Sandbox>) -> wasmtime::Result<()>,
    ) -> Result<Ended<()>, CallError> {
        let engine = crate::engine::for_compiling().unwrap();
        let (now, time) = (Instant::now(), Duration::from_millis(10));
        let view = CallView::default();
        let sandbox = Sandbox::new(&Limits::DEFAULT, view, Arc::new(NoHost), Arc::new(SystemClock), now, now + time);
        let seat = crate::turns::Line::new(1).seat(uuid::Uuid::nil().into(), Share::default());
        ended(&mut sandbox.into_store(&engine, 1_000).unwrap(), seat, time, work).await
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

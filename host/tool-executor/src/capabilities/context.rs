//! What a tool may know of its call: `belljar:tool/context`.

use std::time::Instant;

use tool_api::HostCall;
use wasmtime::component::{HasSelf, Linker};

use crate::{
    bindings::{belljar::tool1_0_0::context, v0::belljar::tool0_1_0::context as context0},
    capabilities::{
        config::{pairs, size},
        ledger::{micros_since, use_of},
    },
    sandbox::Sandbox,
};

impl Sandbox {
    fn tell_context(&mut self) -> context::CallContext {
        let started = Instant::now();
        let call = &self.call;
        let bytes = size(&call.context.entries);
        let context = context::CallContext {
            call_id: call.id.map(|id| id.to_string()).unwrap_or_default(),
            idempotency_key: call.context.idempotency_key.clone(),
            attempt: call.context.attempt,
            deadline_unix_ms: call.deadline_unix_ms,
            agent: call.context.agent.clone(),
            conversation: call.context.conversation.map(|id| id.to_string()),
            external_user_id: call.context.external_user_id.clone(),
            context: pairs(&call.context.entries),
        };
        self.meter.handled(bytes);
        self.ledger.tell(HostCall {
            bytes_out: bytes as u64,
            duration_us: micros_since(started),
            ..use_of("belljar:tool/context", "get")
        });
        context
    }
}

impl context::Host for Sandbox {
    fn get(&mut self) -> wasmtime::Result<context::CallContext> {
        Ok(self.tell_context())
    }
}

impl context0::Host for Sandbox {
    fn get(&mut self) -> wasmtime::Result<context0::CallContext> {
        let context = self.tell_context();
        Ok(context0::CallContext {
            call_id: context.call_id,
            idempotency_key: context.idempotency_key,
            attempt: context.attempt,
            deadline_unix_ms: context.deadline_unix_ms,
            agent: context.agent,
            conversation: context.conversation,
            external_user_id: context.external_user_id,
            context: context.context,
        })
    }
}

pub(crate) fn link(linker: &mut Linker<Sandbox>) -> wasmtime::Result<()> {
    context::add_to_linker::<Sandbox, HasSelf<Sandbox>>(linker, Sandbox::counted)?;
    context0::add_to_linker::<Sandbox, HasSelf<Sandbox>>(linker, Sandbox::counted)
}

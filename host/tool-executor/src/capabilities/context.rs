//! What a tool may know of its call: `belljar:tool/context`, and the granted values of `wasi:config`.

use crate::{
    bindings::{belljar::tool::context, wasi::config::store},
    capabilities::NAME_BYTES_MAX,
    sandbox::Sandbox,
};

impl context::Host for Sandbox {
    fn get(&mut self) -> wasmtime::Result<context::CallContext> {
        self.meter.handled(size(&self.call.context.entries));
        let call = &self.call;
        Ok(context::CallContext {
            call_id: call.id.map(|id| id.to_string()).unwrap_or_default(),
            idempotency_key: call.context.idempotency_key.clone(),
            attempt: call.context.attempt,
            deadline_unix_ms: call.deadline_unix_ms,
            agent: call.context.agent.clone(),
            conversation: call.context.conversation.map(|id| id.to_string()),
            external_user_id: call.context.external_user_id.clone(),
            context: pairs(&call.context.entries),
        })
    }
}

impl store::Host for Sandbox {
    fn get(&mut self, key: String) -> wasmtime::Result<Result<Option<String>, store::Error>> {
        self.meter.handled(key.len());
        if key.len() > NAME_BYTES_MAX {
            return Ok(Ok(None));
        }
        let value = self.call.grants.config.get(&key).cloned();
        self.meter.handled(value.as_ref().map_or(0, String::len));
        Ok(Ok(value))
    }

    fn get_all(&mut self) -> wasmtime::Result<Result<Vec<(String, String)>, store::Error>> {
        self.meter.handled(size(&self.call.grants.config));
        Ok(Ok(pairs(&self.call.grants.config)))
    }
}

fn size(map: &std::collections::BTreeMap<String, String>) -> usize {
    map.iter().map(|(key, value)| key.len() + value.len()).sum()
}

fn pairs(map: &std::collections::BTreeMap<String, String>) -> Vec<(String, String)> {
    map.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
}

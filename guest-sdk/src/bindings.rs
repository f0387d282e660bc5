//! The contract as code: what a component imports and exports. Only wasm has it.

mod http;
mod kv;

use crate::context::Context;
use crate::log::Level;
use crate::tool::Toolbox;
use crate::{Answer, Content, config, secrets};
// `wit` holds more than one version of the contract, so each has its number in its name.
use generated::belljar::tool1_0_0 as imports;
use generated::exports::belljar::tool1_0_0::toolbox;
use generated::wasi::{config::store, logging::logging};

pub(crate) use http::{Body, http};
pub(crate) use kv::{Bucket, open};

#[doc(hidden)]
pub mod generated {
    wit_bindgen::generate!({
        path: "wit",
        world: "tool",
        pub_export_macro: true,
        default_bindings_module: "belljar_tool::__private::bindings",
        generate_all,
    });
}

impl<T: Toolbox> toolbox::Guest for T {
    fn describe() -> toolbox::Description {
        let functions = T::FUNCTIONS.iter().map(|function| toolbox::Function {
            name: function.name.into(),
            description: function.description.into(),
            input_schema: (function.input_schema)(),
            output_schema: (function.output_schema)(),
        });
        toolbox::Description { functions: functions.collect(), requires: T::REQUIRES.map(Into::into) }
    }

    fn call(function: String, arguments: String) -> toolbox::CallResult {
        let answer = match T::FUNCTIONS.iter().find(|known| known.name == function) {
            Some(known) => (known.call)(&arguments),
            None => Answer::error(format!("this tool has no function `{function}`")),
        };
        toolbox::CallResult {
            content: answer.content.into_iter().map(content).collect(),
            structured: answer.structured,
            is_error: answer.is_error,
        }
    }
}

fn content(part: Content) -> toolbox::Content {
    match part {
        Content::Text(text) => toolbox::Content::Text(text),
        Content::Image { media_type, data } => toolbox::Content::Image(toolbox::Image { media_type, data }),
    }
}

pub(crate) fn context() -> Context {
    let known = imports::context::get();
    Context {
        call_id: known.call_id,
        idempotency_key: known.idempotency_key,
        attempt: known.attempt,
        deadline_unix_ms: known.deadline_unix_ms,
        agent: known.agent,
        conversation: known.conversation,
        external_user_id: known.external_user_id,
        context: known.context,
    }
}

pub(crate) fn config(key: &str) -> Result<Option<String>, config::Error> {
    store::get(key).map_err(config_error)
}

pub(crate) fn config_all() -> Result<Vec<(String, String)>, config::Error> {
    store::get_all().map_err(config_error)
}

fn config_error(error: store::Error) -> config::Error {
    match error {
        store::Error::Upstream(words) | store::Error::Io(words) => config::Error(words),
    }
}

pub(crate) fn secret(name: &str) -> Result<String, secrets::Denied> {
    imports::secrets::get(name).map_err(|imports::secrets::Error::Denied(words)| secrets::Denied(words))
}

pub(crate) fn progress(percent: Option<u8>, text: &str) {
    imports::progress::report(percent, text);
}

pub(crate) fn log(level: Level, context: &str, message: &str) {
    let level = match level {
        Level::Trace => logging::Level::Trace,
        Level::Debug => logging::Level::Debug,
        Level::Info => logging::Level::Info,
        Level::Warn => logging::Level::Warn,
        Level::Error => logging::Level::Error,
        Level::Critical => logging::Level::Critical,
    };
    logging::log(level, context, message);
}

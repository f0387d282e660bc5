//! What a component is called through: a published version of `belljar:tool`, or its own typed exports. Each kind answers
//! in the words of today's contract.

use std::sync::Arc;

use serde_json::Value;
use tool_api::Rejection;
use wasmtime::{Store, component::InstancePre};

pub(crate) use crate::bindings::exports::belljar::tool1_0_0::toolbox;
use crate::{
    bindings::{
        ToolPre,
        v0::{self, exports::belljar::tool0_1_0::toolbox as toolbox0},
    },
    sandbox::Sandbox,
    typed::Typed,
};

use toolbox::{CallResult, Content, Description, Function, Image};

/// A typed component is asked in its own types, by whoever knows that it is one.
const NO_TOOLBOX: &str = "the component has no toolbox";

/// Published versions: the series, and what it is called with.
pub(crate) enum Tool {
    V1(ToolPre<Sandbox>),
    V0(v0::ToolPre<Sandbox>),
    Typed(Arc<Typed>),
}

impl Tool {
    /// `contract` is the one that the component exports, `belljar:tool@1.0.0`.
    pub(crate) fn new(pre: InstancePre<Sandbox>, contract: &str) -> Result<Tool, Rejection> {
        let tool = if contract.contains("@0.") {
            v0::ToolPre::new(pre).map(Tool::V0)
        } else {
            ToolPre::new(pre).map(Tool::V1)
        };
        tool.map_err(|error| Rejection::new("component.no_toolbox", format!("the toolbox does not fit: {error:#}")))
    }

    /// Makes an instance, says `ready`, and calls a function.
    pub(crate) async fn call(
        &self,
        store: &mut Store<Sandbox>,
        function: &str,
        arguments: &Value,
        ready: impl FnOnce(),
    ) -> wasmtime::Result<CallResult> {
        match self {
            Tool::Typed(typed) => typed.call(store, function, arguments, ready).await,
            _ => self.call_toolbox(store, function, &arguments.to_string(), ready).await,
        }
    }

    /// `call` of a toolbox, whose arguments are the text of a JSON object.
    pub(crate) async fn call_toolbox(
        &self,
        store: &mut Store<Sandbox>,
        function: &str,
        arguments: &str,
        ready: impl FnOnce(),
    ) -> wasmtime::Result<CallResult> {
        match self {
            Tool::V1(pre) => {
                let instance = pre.instantiate_async(&mut *store).await?;
                ready();
                instance.belljar_tool1_0_0_toolbox().call_call(store, function, arguments).await
            }
            Tool::V0(pre) => {
                let instance = pre.instantiate_async(&mut *store).await?;
                ready();
                Ok(instance.belljar_tool0_1_0_toolbox().call_call(store, function, arguments).await?.into())
            }
            Tool::Typed(_) => Err(wasmtime::Error::msg(NO_TOOLBOX)),
        }
    }

    /// What the component says of itself.
    pub(crate) async fn describe(&self, store: &mut Store<Sandbox>) -> wasmtime::Result<Description> {
        match self {
            Tool::V1(pre) => {
                let instance = pre.instantiate_async(&mut *store).await?;
                instance.belljar_tool1_0_0_toolbox().call_describe(store).await
            }
            Tool::V0(pre) => {
                let instance = pre.instantiate_async(&mut *store).await?;
                Ok(instance.belljar_tool0_1_0_toolbox().call_describe(store).await?.into())
            }
            Tool::Typed(_) => Err(wasmtime::Error::msg(NO_TOOLBOX)),
        }
    }
}

impl From<toolbox0::CallResult> for CallResult {
    fn from(answer: toolbox0::CallResult) -> Self {
        let content = answer.content.into_iter().map(|content| match content {
            toolbox0::Content::Text(text) => Content::Text(text),
            toolbox0::Content::Image(image) => Content::Image(Image { media_type: image.media_type, data: image.data }),
        });
        CallResult { content: content.collect(), structured: answer.structured, is_error: answer.is_error }
    }
}

impl From<toolbox0::Description> for Description {
    fn from(description: toolbox0::Description) -> Self {
        let functions = description.functions.into_iter().map(|function| Function {
            name: function.name,
            description: function.description,
            input_schema: function.input_schema,
            output_schema: function.output_schema,
        });
        Description { functions: functions.collect(), requires: description.requires }
    }
}

//! A call without a host: natively, everything that a tool asks for is answered by the [`Call`] it runs in.

use crate::context::Context;
use crate::log::Level;
use crate::{Answer, Tool, config, secrets};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

/// A line that a tool logged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logged {
    /// How loud.
    pub level: Level,
    /// The part of the tool that spoke.
    pub context: String,
    /// What it said.
    pub message: String,
}

/// A pretended call: who calls, and what was granted. Outside of any, a tool sees `Call::new()`.
///
/// ```
/// use belljar_tool::{config, testing::Call, tool};
///
/// /// Greets in the agent's language.
/// #[tool]
/// fn greet(name: String) -> belljar_tool::Result<String> {
///     Ok(match config::get("language")?.as_deref() {
///         Some("fr") => format!("Bonjour, {name} !"),
///         _ => format!("Hello, {name}!"),
///     })
/// }
///
/// let call = Call::new().config("language", "fr");
/// assert_eq!(call.run(|| greet("Ada".into())).unwrap(), "Bonjour, Ada !");
///
/// // Or as the host does, with JSON in and an answer out:
/// let answer = call.call::<greet>(r#"{"name": "Ada", "age": 36}"#);
/// assert!(answer.is_error, "`age` is no parameter");
/// ```
#[derive(Debug, Clone)]
pub struct Call {
    context: Context,
    config: BTreeMap<String, String>,
    secrets: BTreeMap<String, String>,
    logs: Rc<RefCell<Vec<Logged>>>,
}

thread_local! {
    static CURRENT: RefCell<Option<Call>> = const { RefCell::new(None) };
}

impl Default for Call {
    fn default() -> Self {
        Self::new()
    }
}

impl Call {
    /// A first attempt of a direct call, without an end user, a deadline or a grant.
    pub fn new() -> Self {
        Self {
            context: Context {
                call_id: "call_test".into(),
                idempotency_key: "test".into(),
                attempt: 1,
                deadline_unix_ms: u64::MAX,
                agent: None,
                conversation: None,
                external_user_id: None,
                context: Vec::new(),
            },
            config: BTreeMap::new(),
            secrets: BTreeMap::new(),
            logs: Rc::default(),
        }
    }

    /// Replaces the whole context; the methods below set single fields.
    pub fn with_context(mut self, context: Context) -> Self {
        self.context = context;
        self
    }

    /// Calls in the name of an end user.
    pub fn external_user_id(mut self, id: impl Into<String>) -> Self {
        self.context.external_user_id = Some(id.into());
        self
    }

    /// Adds a value to the turn's `context`.
    pub fn context(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.context.context.push((key.into(), value.into()));
        self
    }

    /// Calls from an agent, in a conversation.
    pub fn agent(mut self, agent: impl Into<String>, conversation: impl Into<String>) -> Self {
        self.context.agent = Some(agent.into());
        self.context.conversation = Some(conversation.into());
        self
    }

    /// Says which attempt of the call this is.
    pub fn attempt(mut self, attempt: u32) -> Self {
        self.context.attempt = attempt;
        self
    }

    /// Grants a config value.
    pub fn config(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.config.insert(key.into(), value.into());
        self
    }

    /// Grants a secret.
    pub fn secret(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.secrets.insert(name.into(), value.into());
        self
    }

    /// Runs `f` in this call, on this thread.
    pub fn run<T>(&self, f: impl FnOnce() -> T) -> T {
        struct Restore(Option<Call>);
        impl Drop for Restore {
            fn drop(&mut self) {
                CURRENT.set(self.0.take());
            }
        }
        let _restore = Restore(CURRENT.replace(Some(self.clone())));
        f()
    }

    /// Calls a function with a JSON object, as the host does.
    pub fn call<T: Tool>(&self, arguments: &str) -> Answer {
        self.run(|| T::call(arguments))
    }

    /// Everything that was logged in this call so far.
    pub fn logs(&self) -> Vec<Logged> {
        self.logs.borrow().clone()
    }
}

fn current() -> Call {
    CURRENT.with_borrow(|call| call.clone().unwrap_or_default())
}

pub(crate) fn context() -> Context {
    current().context
}

pub(crate) fn config(key: &str) -> Result<Option<String>, config::Error> {
    Ok(current().config.remove(key))
}

pub(crate) fn config_all() -> Result<Vec<(String, String)>, config::Error> {
    Ok(current().config.into_iter().collect())
}

pub(crate) fn secret(name: &str) -> Result<String, secrets::Denied> {
    current().secrets.remove(name).ok_or_else(|| secrets::Denied(format!("no grant names `{name}`")))
}

pub(crate) fn log(level: Level, context: &str, message: &str) {
    current().logs.borrow_mut().push(Logged { level, context: context.into(), message: message.into() });
}

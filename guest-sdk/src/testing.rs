//! A call without a host: natively, everything that a tool asks for is answered by the [`Call`] it runs in.

mod key_value;

use crate::context::Context;
use crate::http::{Request, Response};
use crate::log::Level;
use crate::{Answer, Tool, config, http, secrets};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;

pub(crate) use key_value::{Bucket, open};

/// A response's body in a test.
pub(crate) type Body = std::io::Cursor<Vec<u8>>;

/// What answers the requests of a test.
type Server = Rc<dyn Fn(&Request) -> Result<Response, http::Error>>;

/// By key.
type Entries = BTreeMap<String, Vec<u8>>;

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
#[derive(Clone)]
pub struct Call {
    context: Context,
    config: BTreeMap<String, String>,
    secrets: BTreeMap<String, String>,
    server: Option<Server>,
    /// Whether each may be written.
    namespaces: BTreeMap<String, bool>,
    entries: Rc<RefCell<BTreeMap<String, Entries>>>,
    told: Rc<RefCell<Told>>,
}

/// What a tool told its host.
#[derive(Debug, Default)]
struct Told {
    logs: Vec<Logged>,
    progress: Vec<(Option<u8>, String)>,
    requests: Vec<Request>,
}

thread_local! {
    static CURRENT: RefCell<Option<Call>> = const { RefCell::new(None) };
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call").field("context", &self.context).field("told", &self.told).finish_non_exhaustive()
    }
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
            server: None,
            namespaces: BTreeMap::new(),
            entries: Rc::default(),
            told: Rc::default(),
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

    /// Grants every host, and answers its requests: a panic of `server` fails the test, an error is one of the network.
    ///
    /// ```
    /// use belljar_tool::{http, testing::Call};
    ///
    /// let call = Call::new().http(|request| match request.url() {
    ///     "https://example.com/" => Ok(http::Response::new(200).with_header("X-Age", "3").with_body("hello")),
    ///     _ => Err(http::Error::Failed("the host refuses connections".into())),
    /// });
    /// let answer = call.run(|| http::get("https://example.com/")).unwrap();
    /// assert_eq!((answer.status(), answer.header("x-age")), (200, Some("3")));
    /// assert!(call.run(|| http::get("https://other.example/")).is_err());
    /// ```
    pub fn http(mut self, server: impl Fn(&Request) -> Result<Response, http::Error> + 'static) -> Self {
        self.server = Some(Rc::new(server));
        self
    }

    /// Grants a namespace of the key-value store, to read and write.
    pub fn key_value(mut self, namespace: impl Into<String>) -> Self {
        self.namespaces.insert(namespace.into(), true);
        self
    }

    /// Grants a namespace of the key-value store, to read.
    pub fn key_value_read(mut self, namespace: impl Into<String>) -> Self {
        self.namespaces.insert(namespace.into(), false);
        self
    }

    /// Puts an entry into a namespace.
    pub fn entry(self, namespace: impl Into<String>, key: impl Into<String>, value: impl Into<Vec<u8>>) -> Self {
        self.entries.borrow_mut().entry(namespace.into()).or_default().insert(key.into(), value.into());
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
        self.told.borrow().logs.clone()
    }

    /// Every report of progress so far.
    pub fn progress(&self) -> Vec<(Option<u8>, String)> {
        self.told.borrow().progress.clone()
    }

    /// Every request that was sent so far.
    pub fn requests(&self) -> Vec<Request> {
        self.told.borrow().requests.clone()
    }

    /// What is in a namespace now, by key.
    pub fn entries(&self, namespace: &str) -> BTreeMap<String, Vec<u8>> {
        self.entries.borrow().get(namespace).cloned().unwrap_or_default()
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
    let line = Logged { level, context: context.into(), message: message.into() };
    current().told.borrow_mut().logs.push(line);
}

pub(crate) fn progress(percent: Option<u8>, text: &str) {
    current().told.borrow_mut().progress.push((percent, text.into()));
}

pub(crate) fn http(request: Request) -> Result<Response, http::Error> {
    request.parts()?;
    let call = current();
    let server = call.server.ok_or_else(|| request.denied())?;
    let response = server(&request);
    call.told.borrow_mut().requests.push(request);
    response
}

//! Requests to hosts that a grant names.
//!
//! A secret need not pass through the tool: a grant can bind one to a header, and the host adds it to the request. The
//! host follows no redirect; a tool that follows one sends again, and the grants are asked again.
//!
//! ```
//! use belljar_tool::{Error, Result, http, testing::Call, tool};
//!
//! /// The title of a page.
//! #[tool]
//! fn title(url: String) -> Result<String> {
//!     let page = http::get(&url)?.text()?;
//!     let title = page.split_once("<title>").and_then(|(_, rest)| rest.split_once("</title>"));
//!     title.map(|(title, _)| title.to_owned()).ok_or(Error::new("that page has no title"))
//! }
//!
//! let call = Call::new().http(|request| {
//!     assert_eq!(request.url(), "https://example.com/");
//!     Ok(http::Response::new(200).with_body("<title>Example</title>"))
//! });
//! assert_eq!(call.run(|| title("https://example.com/".into())).unwrap(), "Example");
//!
//! // Without a grant:
//! let denied = title("https://example.com/".into()).unwrap_err();
//! assert!(denied.to_string().starts_with("denied: add the host to the binding's http grants"));
//! ```

use crate::host;
use serde::{Serialize, de::DeserializeOwned};
use std::fmt;
use std::io::{self, Read};

/// How a request failed. Every one is words for the model, too.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// No grant lets this request through; the text is its method and URL, without the query.
    Denied(String),
    /// The URL, the method or a header cannot be sent.
    Invalid(String),
    /// The host could not be reached, or it stopped answering.
    Failed(String),
    /// The body is not what was asked for.
    Unreadable(String),
    /// A status that [`Response::success`] did not want.
    Status(u16),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Denied(request) => write!(f, "denied: add the host to the binding's http grants: {request}"),
            Error::Invalid(words) => write!(f, "the request cannot be sent: {words}"),
            Error::Failed(words) => write!(f, "the request failed: {words}"),
            Error::Unreadable(words) => write!(f, "the response cannot be read: {words}"),
            Error::Status(status) => write!(f, "the host answered with status {status}"),
        }
    }
}

impl std::error::Error for Error {}

/// Asks for a URL.
pub fn get(url: impl Into<String>) -> Result<Response, Error> {
    Request::get(url).send()
}

/// A request that can be sent.
///
/// ```
/// use belljar_tool::{http::{Request, Response}, testing::Call};
///
/// let call = Call::new().http(|request| Ok(Response::new(201).with_body(request.body_bytes())));
/// let answer = call.run(|| {
///     Request::post("https://api.example.com/notes")
///         .query("tag", "a b&c")
///         .header("Accept", "application/json")
///         .json(&["first"])
///         .send()
/// });
/// assert_eq!(answer.unwrap().json::<Vec<String>>().unwrap(), ["first"]);
/// assert_eq!(call.requests()[0].url(), "https://api.example.com/notes?tag=a%20b%26c");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    method: String,
    url: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Request {
    /// A request of any method, in capital letters.
    pub fn new(method: impl Into<String>, url: impl Into<String>) -> Self {
        Self { method: method.into(), url: url.into(), headers: Vec::new(), body: Vec::new() }
    }

    /// Asks for a URL.
    pub fn get(url: impl Into<String>) -> Self {
        Self::new("GET", url)
    }

    /// Sends something to a URL.
    pub fn post(url: impl Into<String>) -> Self {
        Self::new("POST", url)
    }

    /// Puts something at a URL.
    pub fn put(url: impl Into<String>) -> Self {
        Self::new("PUT", url)
    }

    /// Changes something at a URL.
    pub fn patch(url: impl Into<String>) -> Self {
        Self::new("PATCH", url)
    }

    /// Deletes what is at a URL.
    pub fn delete(url: impl Into<String>) -> Self {
        Self::new("DELETE", url)
    }

    /// Adds a parameter to the URL's query, encoded.
    pub fn query(mut self, name: &str, value: &str) -> Self {
        let fragment = self.url.find('#').map(|at| self.url.split_off(at)).unwrap_or_default();
        self.url.push(if self.url.contains('?') { '&' } else { '?' });
        for (text, end) in [(name, "="), (value, fragment.as_str())] {
            encode(text, &mut self.url);
            self.url.push_str(end);
        }
        self
    }

    /// Adds a header.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Sets the body.
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// Sets the body to a JSON value, and says so in `Content-Type`. What cannot be JSON is sent as `null`.
    pub fn json(self, value: &impl Serialize) -> Self {
        let body = serde_json::to_vec(value).unwrap_or(b"null".to_vec());
        self.header("Content-Type", "application/json").body(body)
    }

    /// Sends it and waits for the response's head.
    pub fn send(self) -> Result<Response, Error> {
        host::http(self)
    }

    /// `GET`, `POST`, ...
    pub fn method(&self) -> &str {
        &self.method
    }

    /// The whole URL.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Name and value of each header that was set here.
    pub fn headers(&self) -> &[(String, String)] {
        &self.headers
    }

    /// The body.
    pub fn body_bytes(&self) -> &[u8] {
        &self.body
    }

    /// Scheme, authority, and path with query.
    pub(crate) fn parts(&self) -> Result<(&str, &str, String), Error> {
        let whole = self.url.split('#').next().unwrap_or_default();
        let (scheme, rest) = whole
            .split_once("://")
            .filter(|(scheme, _)| matches!(*scheme, "https" | "http"))
            .ok_or_else(|| Error::Invalid(format!("`{whole}` does not begin with https:// or http://")))?;
        let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        if authority.is_empty() || authority.contains('@') {
            return Err(Error::Invalid("the URL has no host, or a password before it".into()));
        }
        let slash = if path.starts_with('/') { "" } else { "/" };
        Ok((scheme, authority, format!("{slash}{path}")))
    }

    /// What a person needs to grant it: a query may hold what is nobody else's business.
    pub(crate) fn denied(&self) -> Error {
        let url = self.url.split(['?', '#']).next().unwrap_or_default();
        Error::Denied(format!("{} {url}", self.method))
    }
}

/// Everything but letters, digits, `-`, `.`, `_` and `~` in percent form (RFC 3986).
fn encode(text: &str, into: &mut String) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            into.push(char::from(byte));
        } else {
            into.push_str(&format!("%{byte:02X}"));
        }
    }
}

/// The head of a response, and its body as it comes in: `text`, `bytes`, `json` and `first` wait for it, or read it
/// with [`io::Read`].
#[derive(Debug)]
pub struct Response {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, Vec<u8>)>,
    pub(crate) body: host::Body,
}

impl Response {
    /// 200, 404, ...
    pub fn status(&self) -> u16 {
        self.status
    }

    /// Itself if the status is 200 to 299; else [`Error::Status`].
    pub fn success(self) -> Result<Self, Error> {
        if (200..300).contains(&self.status) { Ok(self) } else { Err(Error::Status(self.status)) }
    }

    /// The first header of a name, in any case, if it is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(value).ok()
    }

    /// Name and value of each header.
    pub fn headers(&self) -> &[(String, Vec<u8>)] {
        &self.headers
    }

    /// The whole body.
    pub fn bytes(self) -> Result<Vec<u8>, Error> {
        self.first(usize::MAX)
    }

    /// The body's first bytes, at most so many; the rest is not waited for.
    pub fn first(self, bytes: usize) -> Result<Vec<u8>, Error> {
        let mut body = Vec::new();
        let read = self.body.take(bytes as u64).read_to_end(&mut body);
        read.map_err(|error| Error::Failed(error.to_string()))?;
        Ok(body)
    }

    /// The whole body, as UTF-8.
    pub fn text(self) -> Result<String, Error> {
        String::from_utf8(self.bytes()?).map_err(|_| Error::Unreadable("it is not UTF-8 text".into()))
    }

    /// The whole body, from JSON.
    pub fn json<T: DeserializeOwned>(self) -> Result<T, Error> {
        serde_json::from_slice(&self.bytes()?).map_err(|error| Error::Unreadable(error.to_string()))
    }
}

impl Read for Response {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.body.read(into)
    }
}

/// Responses that a test makes up.
#[cfg(not(target_family = "wasm"))]
impl Response {
    /// A response without headers and body.
    pub fn new(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: host::Body::default() }
    }

    /// Adds a header.
    pub fn with_header(mut self, name: impl Into<String>, value: impl Into<Vec<u8>>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Sets the body.
    pub fn with_body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = host::Body::new(body.into());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_has_three_parts() {
        let parts = |url: &str| {
            Request::get(url).parts().map(|(scheme, authority, path)| format!("{scheme} {authority} {path}"))
        };
        for (url, told) in [
            ("https://example.com", "https example.com /"),
            ("https://example.com:8443/a/b?c=d#e", "https example.com:8443 /a/b?c=d"),
            ("http://[::1]:80?q=https://x/", "http [::1]:80 /?q=https://x/"),
        ] {
            assert_eq!(parts(url).as_deref(), Ok(told));
        }
        for url in ["", "example.com", "ftp://example.com/", "https:///x", "https://user:pass@example.com/"] {
            assert!(matches!(parts(url), Err(Error::Invalid(_))), "{url}");
        }
    }

    #[test]
    fn a_query_is_encoded_and_stands_before_the_fragment() {
        let request = Request::get("https://example.com/?a=1#top").query("b c", "d&é");
        assert_eq!(request.url(), "https://example.com/?a=1&b%20c=d%26%C3%A9#top");
        assert_eq!(request.denied(), Error::Denied("GET https://example.com/".into()));
    }
}

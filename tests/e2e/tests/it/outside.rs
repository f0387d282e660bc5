//! A server of somebody else, which tools may be granted: it keeps what it was asked, and may tell it all again.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// A request that came.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) method: String,
    pub(crate) path: String,
    /// As it was sent.
    pub(crate) query: String,
    /// Names in lower case.
    pub(crate) headers: BTreeMap<String, String>,
    /// Of a body that came with its length.
    pub(crate) body: Bytes,
}

/// What it answers.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    pub(crate) status: &'static str,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Bytes,
    /// Sends the body in pieces of so many bytes, each in a chunk of its own.
    pub(crate) pieces: Option<usize>,
}

impl Reply {
    pub(crate) fn text(text: impl Into<Bytes>) -> Reply {
        let headers = vec![("content-type".into(), "text/plain".into())];
        Reply { status: "200 OK", headers, body: text.into(), pieces: None }
    }

    pub(crate) fn json(value: &Value) -> Reply {
        let headers = vec![("content-type".into(), "application/json".into())];
        Reply { headers, ..Reply::text(value.to_string()) }
    }
}

type Answer = dyn Fn(&Asked) -> Reply + Send + Sync;

/// Where nobody listens, the port `discard`: what is sent there fails, and does not leave the machine.
pub(crate) const NOBODY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9);

pub(crate) struct Outside {
    pub(crate) address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
    serving: JoinHandle<()>,
}

impl Drop for Outside {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Outside {
    pub(crate) async fn start(answer: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Outside {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (asked, answer): (Arc<Mutex<Vec<Asked>>>, Arc<Answer>) = (Arc::default(), Arc::new(answer));
        let kept = asked.clone();
        #[expect(clippy::disallowed_methods, reason = "aborted when dropped")]
        let serving = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (kept, answer) = (kept.clone(), answer.clone());
                #[expect(clippy::disallowed_methods, reason = "one answer; ends with the test's runtime")]
                tokio::spawn(serve(stream, kept, answer));
            }
        });
        Outside { address, asked, serving }
    }

    /// One that tells whoever asks all that it was asked with: plainly, in base64, percent-encoded and as JSON.
    pub(crate) async fn reflecting() -> Outside {
        Outside::start(reflect).await
    }

    /// `127.0.0.1:port`, as a grant names it.
    pub(crate) fn host(&self) -> String {
        self.address.to_string()
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

/// Reads one request and answers it.
async fn serve(mut stream: TcpStream, kept: Arc<Mutex<Vec<Asked>>>, answer: Arc<Answer>) {
    let Some(asked) = read(&mut stream).await else { return };
    kept.lock().unwrap().push(asked.clone());
    let reply = answer(&asked);
    let mut head = format!("HTTP/1.1 {}\r\nconnection: close\r\n", reply.status);
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    let mut bytes = Vec::new();
    match reply.pieces {
        None => {
            head.push_str(&format!("content-length: {}\r\n\r\n", reply.body.len()));
            bytes.extend_from_slice(&reply.body);
        }
        Some(size) => {
            head.push_str("transfer-encoding: chunked\r\n\r\n");
            for piece in reply.body.chunks(size) {
                bytes.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
                bytes.extend_from_slice(piece);
                bytes.extend_from_slice(b"\r\n");
            }
            bytes.extend_from_slice(b"0\r\n\r\n");
        }
    }
    let body = if asked.method == "HEAD" { &[][..] } else { &bytes };
    // Whoever asked may have left.
    let _ = stream.write_all(&[head.as_bytes(), body].concat()).await;
}

async fn read(stream: &mut TcpStream) -> Option<Asked> {
    let mut bytes = Vec::new();
    let mut chunk = [0; 8192];
    loop {
        if let Some(asked) = parse(&bytes) {
            return Some(asked);
        }
        match stream.read(&mut chunk).await {
            Ok(read) if read > 0 => bytes.extend_from_slice(&chunk[..read]),
            _ => return None,
        }
    }
}

/// `None` until the whole request is there.
fn parse(bytes: &[u8]) -> Option<Asked> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let mut lines = head.split("\r\n");
    let mut first = lines.next()?.split(' ');
    let (method, target) = (first.next()?.to_owned(), first.next()?);
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let headers: BTreeMap<String, String> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let rest = &bytes[end + 4..];
    let body = if headers.get("transfer-encoding").is_some_and(|coding| coding == "chunked") {
        // It is waited for and not kept.
        rest.windows(5).find(|window| window == b"0\r\n\r\n")?;
        Bytes::new()
    } else {
        let length = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
        Bytes::copy_from_slice(rest.get(..length)?)
    };
    Some(Asked { method, path: path.to_owned(), query: query.to_owned(), headers, body })
}

/// All values that came, in every form in which a careless server tells them.
fn reflect(asked: &Asked) -> Reply {
    let mut values: Vec<String> = asked.headers.values().cloned().collect();
    let decoded = asked.query.split('&').filter_map(|pair| pair.split_once('=')).map(|(_, value)| unescaped(value));
    values.extend(decoded);
    // Basic authentication, opened; and what stands behind `Bearer`.
    let words = asked.headers.values().filter_map(|value| value.split_once(' ')).map(|(_, word)| word.to_owned());
    values.extend(words.collect::<Vec<_>>());
    let opened: Vec<String> =
        values.iter().filter_map(|value| String::from_utf8(BASE64_STANDARD.decode(value).ok()?).ok()).collect();
    let passwords: Vec<String> =
        opened.iter().filter_map(|pair| pair.split_once(':')).map(|(_, word)| word.to_owned()).collect();
    values.extend(opened);
    values.extend(passwords);
    let mut headers: Vec<(String, String)> = vec![("content-type".into(), "text/plain".into())];
    for (at, value) in values.iter().filter(|value| value.bytes().all(|b| (0x20..0x7f).contains(&b))).enumerate() {
        headers.push((format!("x-reflected-{at}"), value.clone()));
    }
    let mut lines = vec![asked.query.clone()];
    for value in &values {
        let forms = [value.clone(), escaped(value), BASE64_STANDARD.encode(value), json!(value).to_string()];
        lines.extend(forms);
    }
    // Seven bytes a chunk: no secret arrives whole.
    Reply { status: "200 OK", headers, body: lines.join("\n").into(), pieces: Some(7) }
}

/// Percent-encoded (RFC 3986), all but letters and digits and `-._~`.
pub(crate) fn escaped(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

/// The other way round; `+` is a space.
pub(crate) fn unescaped(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let hex = (byte == b'%').then(|| rest.clone().take(2).map(char::from).collect::<String>());
        match hex.and_then(|hex| u8::from_str_radix(&hex, 16).ok()) {
            Some(decoded) => {
                bytes.push(decoded);
                rest.nth(1);
            }
            None => bytes.push(if byte == b'+' { b' ' } else { byte }),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[test]
fn the_outside_writes_as_everybody_does() {
    assert_eq!((escaped("a b/"), unescaped("a%20b%2F").as_str()), ("a%20b%2F".into(), "a b/"));
}

//! As much of an HTTP server as the fakes need: requests with a length, connections that are kept.

use std::{future::Future, io, net::SocketAddr, sync::Arc};

use anyhow::Result;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

/// Head and body of one request, in bytes: a conversation of a long run.
const REQUEST_BYTES_MAX: usize = 16 << 20;

/// A request that came.
pub(crate) struct Request {
    head: String,
    pub(crate) body: Vec<u8>,
}

impl Request {
    pub(crate) fn path(&self) -> &str {
        self.head.split(' ').nth(1).unwrap_or_default()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().skip(1).filter_map(|line| line.split_once(':'));
        lines.into_iter().find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    }
}

/// What stands behind an address.
pub(crate) trait Site: Send + Sync + 'static {
    /// Writes a whole answer, framed so that the connection can be kept.
    fn answer(&self, request: Request, out: &mut TcpStream) -> impl Future<Output = io::Result<()>> + Send;
}

/// An address that answers until this is dropped.
pub(crate) struct Served {
    pub(crate) address: SocketAddr,
    _accepting: JoinSet<()>,
}

impl Served {
    pub(crate) async fn start<S: Site>(site: Arc<S>) -> Result<Served> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let mut accepting = JoinSet::new();
        accepting.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                let site = Arc::clone(&site);
                connections.spawn(async move { connection(socket, &*site).await });
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Served { address, _accepting: accepting })
    }
}

/// Answers one request after the other, until the other side ends or breaks the connection.
async fn connection(mut socket: TcpStream, site: &impl Site) {
    let _ = socket.set_nodelay(true);
    let mut unread = Vec::new();
    while let Some(request) = read(&mut socket, &mut unread).await {
        if site.answer(request, &mut socket).await.is_err() {
            return;
        }
    }
}

/// `None` when the connection ends before a whole request came.
async fn read(socket: &mut TcpStream, unread: &mut Vec<u8>) -> Option<Request> {
    loop {
        if let Some(at) = unread.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&unread[..at]).into_owned();
            let mut request = Request { head, body: Vec::new() };
            let chunked =
                request.header("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked"));
            if chunked {
                // Nobody looks into such a body: only where it ends matters.
                let end = loop {
                    match unread[at + 4..].windows(5).position(|window| window == b"0\r\n\r\n") {
                        Some(end) => break at + 4 + end + 5,
                        None if unread.len() > REQUEST_BYTES_MAX => return None,
                        None => more(socket, unread).await?,
                    }
                };
                unread.drain(..end);
                return Some(request);
            }
            let length: usize = request.header("content-length").map_or(Some(0), |text| text.parse().ok())?;
            let whole = at + 4 + length;
            if whole > REQUEST_BYTES_MAX {
                return None;
            }
            while unread.len() < whole {
                more(socket, unread).await?;
            }
            request.body = unread[at + 4..whole].to_vec();
            unread.drain(..whole);
            return Some(request);
        }
        if unread.len() > REQUEST_BYTES_MAX {
            return None;
        }
        more(socket, unread).await?;
    }
}

async fn more(socket: &mut TcpStream, unread: &mut Vec<u8>) -> Option<()> {
    socket.read_buf(unread).await.ok().filter(|read| *read > 0).map(|_| ())
}

/// An answer of JSON.
pub(crate) async fn json(out: &mut TcpStream, status: &str, body: &serde_json::Value) -> io::Result<()> {
    let body = body.to_string();
    let length = body.len();
    let text = format!("HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}");
    out.write_all(text.as_bytes()).await
}

/// The head of server-sent events, whose pieces follow.
pub(crate) const STREAM: &str =
    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
/// The end of them.
pub(crate) const STREAM_END: &str = "0\r\n\r\n";

/// One piece of a stream.
pub(crate) fn piece(text: &str) -> String {
    format!("{:x}\r\n{text}\r\n", text.len())
}

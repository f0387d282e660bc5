//! Servers on loopback: honest ones, and worse.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

pub(super) const HELLO: &str = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";

/// Counts connections and keeps what it was sent.
pub(super) struct Upstream {
    pub(super) address: SocketAddr,
    accepted: Arc<AtomicUsize>,
    requests: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl Upstream {
    /// The same answer to every request.
    pub(super) async fn answering(answer: impl Into<String>) -> Upstream {
        let answer = answer.into();
        Upstream::echoing(move |_| answer.clone()).await
    }

    /// An answer made of the request.
    pub(super) async fn echoing(answer: impl Fn(&str) -> String + Send + Sync + 'static) -> Upstream {
        let answer = Arc::new(answer);
        Upstream::start(move |mut socket, request| {
            let answer = answer(&request);
            async move {
                let _ = socket.write_all(answer.as_bytes()).await;
                let _ = socket.shutdown().await;
            }
        })
        .await
    }

    /// Does with each connection what it likes, once the request is there.
    #[expect(clippy::disallowed_methods, reason = "ends with the test")]
    pub(super) async fn start<F: Future<Output = ()> + Send + 'static>(
        serve: impl Fn(TcpStream, String) -> F + Send + Sync + 'static,
    ) -> Upstream {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (accepted, requests) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::new())));
        let (counter, kept, serve) = (Arc::clone(&accepted), Arc::clone(&requests), Arc::new(serve));
        let task = tokio::spawn(async move {
            // Dropped with this task, and every connection with it.
            let mut serving = tokio::task::JoinSet::new();
            while let Ok((mut socket, _)) = listener.accept().await {
                counter.fetch_add(1, SeqCst);
                let (kept, serve) = (Arc::clone(&kept), Arc::clone(&serve));
                serving.spawn(async move {
                    let request = read(&mut socket).await;
                    kept.lock().unwrap().push(request.clone());
                    serve(socket, request).await;
                });
            }
        });
        Upstream { address, accepted, requests, task }
    }

    pub(super) fn authority(&self) -> String {
        self.address.to_string()
    }

    pub(super) fn accepted(&self) -> usize {
        self.accepted.load(SeqCst)
    }

    pub(super) fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A request, whole, or as much of it as came before the connection broke.
async fn read(socket: &mut TcpStream) -> String {
    let (mut request, mut piece) = (Vec::new(), [0; 4096]);
    loop {
        let text = String::from_utf8_lossy(&request);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let head = head.to_ascii_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            let whole = match length {
                Some(length) => body.len() >= length.parse().unwrap(),
                None => !head.contains("transfer-encoding: chunked") || body.ends_with("0\r\n\r\n"),
            };
            if whole {
                return text.into_owned();
            }
        }
        match socket.read(&mut piece).await {
            Ok(0) | Err(_) => return text.into_owned(),
            Ok(read) => request.extend_from_slice(&piece[..read]),
        }
    }
}

use std::{net::SocketAddr, sync::Arc};

use domain::{Problem, grants::http::Scheme};
use futures::{TryStreamExt, stream};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::*;
use crate::{SystemLookup, error::Failure};

async fn listen() -> (TcpListener, SocketAddr, Egress) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address, Egress::with_lookup(vec![address], Arc::new(SystemLookup)).unwrap())
}

fn exchange(address: SocketAddr, path: &str) -> Exchange {
    let target = Target::of_parts(Scheme::Http, &address.to_string(), path).unwrap();
    Exchange {
        method: Method::POST,
        target,
        headers: HeaderMap::new(),
        body: None,
        plain_http: PlainHttp::OperatorsExceptions,
        first_byte: Duration::from_secs(10),
        between_bytes: Duration::from_secs(10),
        deadline: Instant::now() + Duration::from_secs(20),
    }
}

/// Reads until `end` has come.
async fn read_until(socket: &mut TcpStream, end: &str) -> String {
    let mut bytes = Vec::new();
    while !bytes.ends_with(end.as_bytes()) {
        let mut piece = [0; 1024];
        match socket.read(&mut piece).await {
            Ok(0) | Err(_) => break,
            Ok(read) => bytes.extend_from_slice(&piece[..read]),
        }
    }
    String::from_utf8(bytes).unwrap()
}

async fn all(body: BoxStream<'static, Result<Piece, EgressError>>) -> Result<(String, Option<HeaderMap>), EgressError> {
    let (mut text, mut trailers) = (String::new(), None);
    for piece in body.try_collect::<Vec<_>>().await? {
        match piece {
            Piece::Data(data) => text.push_str(std::str::from_utf8(&data).unwrap()),
            Piece::Trailers(map) => trailers = Some(map),
        }
    }
    Ok((text, trailers))
}

#[tokio::test]
async fn bodies_stream_both_ways() {
    let (listener, address, egress) = listen().await;
    // The second piece exists only after the server has the first one.
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel::<Bytes>();
    let body = stream::unfold(receiver, |mut receiver| async { Some((Ok(receiver.recv().await?), receiver)) });
    let server = async {
        let (mut socket, _) = listener.accept().await.unwrap();
        sender.send(Bytes::from_static(b"first")).unwrap();
        let head = read_until(&mut socket, "5\r\nfirst\r\n").await;
        // Empty pieces are nothing.
        sender.send(Bytes::new()).unwrap();
        sender.send(Bytes::from_static(b"second")).unwrap();
        drop(sender);
        let rest = read_until(&mut socket, "0\r\n\r\n").await;
        let answer = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n\
            3\r\none\r\n3\r\ntwo\r\n0\r\nx-sum: 6\r\n\r\n";
        socket.write_all(answer.as_bytes()).await.unwrap();
        (head, rest)
    };
    let request = egress.exchange(Exchange { body: Some(body.boxed()), ..exchange(address, "/a?b=c") });
    let (answer, (head, rest)) = tokio::join!(request, server);
    assert!(head.starts_with("POST /a?b=c HTTP/1.1\r\n") && head.contains("transfer-encoding: chunked"), "{head}");
    assert_eq!(rest, "6\r\nsecond\r\n0\r\n\r\n");
    let (text, trailers) = all(answer.unwrap().body).await.unwrap();
    assert_eq!((text.as_str(), &trailers.unwrap()["x-sum"]), ("onetwo", &"6".parse::<http::HeaderValue>().unwrap()));
}

#[tokio::test]
async fn a_body_that_is_given_up_is_not_ended() {
    let (listener, address, egress) = listen().await;
    let body = stream::iter([Ok(Bytes::from_static(b"half")), Err(GivenUp)]).boxed();
    let server = async {
        let (mut socket, _) = listener.accept().await.unwrap();
        read_until(&mut socket, "never").await
    };
    let request = egress.exchange(Exchange { body: Some(body), ..exchange(address, "/") });
    let (answer, read) = tokio::join!(request, server);
    assert_eq!(answer.unwrap_err().code(), "egress.connect_failed");
    assert!(!read.contains("0\r\n\r\n"), "{read}");
}

#[tokio::test]
async fn a_connection_is_used_once() {
    let (listener, address, egress) = listen().await;
    for _ in 0..3 {
        let server = async {
            let (mut socket, _) = listener.accept().await.unwrap();
            read_until(&mut socket, "\r\n\r\n").await;
            // Kept open, with the answer to a request that nobody made.
            let answer =
                "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nbad";
            socket.write_all(answer.as_bytes()).await.unwrap();
            socket
        };
        let (answer, mut socket) = tokio::join!(egress.exchange(exchange(address, "/")), server);
        assert_eq!(all(answer.unwrap().body).await.unwrap().0, "ok");
        // The client closes it: nothing more can come.
        let _ = socket.read(&mut [0; 16]).await;
    }
}

#[tokio::test]
async fn no_wait_is_longer_than_the_time_left() {
    let (listener, address, egress) = listen().await;
    let deadline = || Instant::now() + Duration::from_millis(100);
    let error = egress.exchange(Exchange { deadline: deadline(), ..exchange(address, "/") }).await.unwrap_err();
    assert!(matches!(error, EgressError::Timeout { waited_for: Wait::Head, .. }), "{error:?}");
    drop(listener.accept().await.unwrap());

    let server = async {
        let (mut socket, _) = listener.accept().await.unwrap();
        read_until(&mut socket, "\r\n\r\n").await;
        socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nonly").await.unwrap();
        socket
    };
    let request = egress.exchange(Exchange { deadline: deadline(), ..exchange(address, "/") });
    let (answer, _socket) = tokio::join!(request, server);
    let error = all(answer.unwrap().body).await.unwrap_err();
    assert!(matches!(error, EgressError::Timeout { waited_for: Wait::Body, .. }), "{error:?}");
}

#[tokio::test]
async fn plain_http_goes_where_it_is_allowed() {
    let (listener, address, egress) = listen().await;
    let to = |authority: &str, plain_http| Exchange {
        target: Target::of_parts(Scheme::Http, authority, "/").unwrap(),
        plain_http,
        ..exchange(address, "/")
    };
    for authority in ["8.8.8.8", "public.test:81"] {
        let error = egress.exchange(to(authority, PlainHttp::OperatorsExceptions)).await.unwrap_err();
        assert_eq!(error.code(), "egress.bad_url", "{authority}");
        // What is decided before it connects. No test leaves the machine.
        let target = Target::of_parts(Scheme::Http, authority, "/").unwrap();
        let (gate, _) = egress.unshared(&target, PlainHttp::Anywhere);
        assert!(target.pass(&gate).is_ok() && gate.admits([8, 8, 8, 8].into()), "{authority}");
        assert!(!gate.admits([127, 0, 0, 1].into()), "{authority}: a name may lead there");
    }
    let port = address.port();
    for authority in ["127.0.0.2".to_owned(), format!("127.0.0.2:{port}"), "10.0.0.1".into(), "[::1]:80".into()] {
        for plain_http in [PlainHttp::OperatorsExceptions, PlainHttp::Anywhere] {
            let error = egress.exchange(to(&authority, plain_http)).await.unwrap_err();
            assert_eq!(error.code(), "egress.address_refused", "{authority}");
        }
    }
    drop(listener);
    for plain_http in [PlainHttp::OperatorsExceptions, PlainHttp::Anywhere] {
        let error = egress.exchange(to(&address.to_string(), plain_http)).await.unwrap_err();
        assert!(matches!(error, EgressError::ConnectFailed { reason: Failure::Refused, .. }), "{error:?}");
    }
}

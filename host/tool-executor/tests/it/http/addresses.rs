//! No form of a URL leads a tool into the host's own network, whatever it was granted.

use std::{io, net::IpAddr, sync::Arc};

use egress::{Egress, Lookup};
use futures::{FutureExt, future::BoxFuture};
use serde_json::json;

use super::{
    grant, jar_with, reports, send,
    upstream::{HELLO, Upstream},
};

/// Every name has this address, and another one each second time.
struct Names {
    addresses: [&'static str; 2],
    asked: std::sync::atomic::AtomicUsize,
}

impl Names {
    fn new(first: &'static str, second: &'static str) -> Arc<Names> {
        Arc::new(Names { addresses: [first, second], asked: 0.into() })
    }
}

impl Lookup for Names {
    fn lookup(&self, _name: &str) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
        let asked = self.asked.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        let address = self.addresses[asked % 2].parse().unwrap();
        async move { Ok(vec![address]) }.boxed()
    }
}

/// Hosts that a tenant can write into a grant; `PORT` is a listener's on every loopback address.
const GRANTED: &[&str] = &[
    "127.0.0.1:PORT",
    "127.0.0.2:PORT",
    "127.255.255.254:PORT",
    "0.0.0.0:PORT",
    "[::1]:PORT",
    "[::]:PORT",
    "[::ffff:7f00:1]:PORT",
    "[::7f00:1]:PORT",
    "[64:ff9b::7f00:1]:PORT",
    "[64:ff9b:1::7f00:1]:PORT",
    "[2002:7f00:1::]:PORT",
    "[2001:0:808:808::80ff:fffe]:PORT",
    "[fe80::1]:PORT",
    "[fc00::1]:PORT",
    "[fd00:ec2::254]:PORT",
    "10.0.0.1:PORT",
    "172.16.0.1:PORT",
    "192.168.0.1:PORT",
    "100.64.0.1:PORT",
    "169.254.169.254",
    "169.254.170.2",
    "168.63.129.16",
    "192.0.0.192",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "localhost:PORT",
    "a.localhost:PORT",
    "rebound.test:PORT",
    "metadata.google.internal",
];

/// Authorities that a tool writes, for hosts that a grant may name in another way.
const WRITTEN: &[&str] = &[
    "127.1:PORT",
    "127.0.1:PORT",
    "2130706433:PORT",
    "0x7f000001:PORT",
    "0x7f.1:PORT",
    "0X7F.0.0.1:PORT",
    "0177.0.0.1:PORT",
    "017700000001:PORT",
    "00000177.1:PORT",
    "127.0.0.1.:PORT",
    "%31%32%37.0.0.1:PORT",
    "0:PORT",
    "LOCALHOST:PORT",
    "LocalHost.:PORT",
    "localhost.:PORT",
    "localhost..:PORT",
    ".localhost:PORT",
    "[::ffff:127.0.0.1]:PORT",
    "[::FFFF:7F00:1]:PORT",
    "[0:0:0:0:0:0:0:1]:PORT",
    "[0000::0001]:PORT",
    "[::127.0.0.1]:PORT",
    "[::1%25lo]:PORT",
    "[::1%lo]:PORT",
    "[::1:PORT",
    "::1:PORT",
    "１２７.０.０.１:PORT",
    "①②⑦.⓪.⓪.①:PORT",
    "127。0。0。1:PORT",
    "ｌocalhost:PORT",
    "user@127.0.0.1:PORT",
    "user:pass@127.0.0.1:PORT",
    ":@127.0.0.1:PORT",
    "@127.0.0.1:PORT",
    "granted.test@127.0.0.1:PORT",
    "granted.test:443@127.0.0.1:PORT",
    "granted.test%40127.0.0.1:PORT",
    "granted.test\\@127.0.0.1:PORT",
    "127.0.0.1:PORT\\@granted.test",
    "127.0.0.1:PORT/@granted.test",
    "127.0.0.1:PORT#@granted.test",
    "127.0.0.1:PORT?@granted.test",
    "granted.test#@127.0.0.1:PORT",
    "granted.test/..//127.0.0.1:PORT",
    "granted.test\t@127.0.0.1:PORT",
    "127.0.0.1\t:PORT",
    "127.0.0.1\n:PORT",
    "127.0.0.1\r\nhost: x:PORT",
    " 127.0.0.1:PORT",
    "127.0.0.1 :PORT",
    "127.0.0.1:PORT ",
    "127.0.0.1:",
    "127.0.0.1:0",
    "127.0.0.1:99999",
    "127.0.0.1:+80",
    "127.0.0.1:0x50",
    "127.0.0.1:PORT:80",
    "256.0.0.1:PORT",
    "127.0.0.1.5:PORT",
    "127.0.0:PORT:PORT",
    "",
    ":PORT",
    ".",
    "..",
    "*",
    "*.test",
    "[]",
    "[",
    "http://127.0.0.1:PORT",
    "//127.0.0.1:PORT",
    "\x00127.0.0.1:PORT",
    "127.0.0.1\0:PORT",
    "xn--:PORT",
    "a_b..c:PORT",
];

const SCHEMES: &[&str] = &[
    "file",
    "ftp",
    "ftps",
    "gopher",
    "ws",
    "wss",
    "data",
    "javascript",
    "unix",
    "dict",
    "ldap",
    "tftp",
    "jar",
    "blob",
    "about",
    "HTTP+unix",
    "httpss",
    "s3",
];

/// Paths with which a request is meant to be read as one for another host.
const PATHS: &[&str] = &[
    "http://127.0.0.1:PORT/",
    "https://127.0.0.1:PORT/",
    "//127.0.0.1:PORT/",
    "*",
    "x",
    "@127.0.0.1:PORT/",
    ":PORT/",
    "/ HTTP/1.1\r\nhost: 127.0.0.1",
    "/\r\nx-injected: 1",
    "/\n",
    "/\t",
    "/ x",
    "/\0",
    "\\\\127.0.0.1:PORT\\",
];

#[tokio::test]
async fn a_tool_reaches_no_private_address_in_any_form() {
    let upstream = Upstream::answering(HELLO).await;
    let port = upstream.address.port().to_string();
    // No exception, and every name leads to loopback.
    let jar = jar_with(Egress::with_lookup(Vec::new(), Names::new("127.0.0.1", "127.0.0.1")).unwrap());
    let client = jar.load("http_client").await;
    let text = |text: &str| text.replace("PORT", &port);
    let granted: Vec<_> = GRANTED.iter().chain(&["granted.test"]).map(|host| grant(&text(host))).collect();

    let mut asks = Vec::new();
    for scheme in ["http", "https"] {
        for authority in GRANTED.iter().chain(WRITTEN) {
            asks.push(json!({"scheme": scheme, "authority": text(authority), "path": "/"}));
        }
        for path in PATHS {
            asks.push(json!({"scheme": scheme, "authority": "granted.test", "path": text(path)}));
        }
    }
    for scheme in SCHEMES {
        asks.push(json!({"scheme": scheme, "authority": text("127.0.0.1:PORT"), "path": "/"}));
    }
    asks.push(json!({"path": "/"}));
    let long = "x".repeat(16 << 10);
    asks.push(json!({"authority": "granted.test", "path": format!("/{long}")}));
    asks.push(json!({"authority": "granted.test", "path": format!("/?{long}")}));
    asks.push(json!({"authority": format!("{}.test", "a".repeat(300)), "path": "/"}));
    assert!(asks.len() > 200, "{}", asks.len());

    for some in asks.chunks(40) {
        let finished = jar.call(send(client, some, &granted)).await;
        for (ask, report) in some.iter().zip(reports(&finished)) {
            assert!(report["error"].is_string() && report["status"].is_null(), "{ask}: {report}");
        }
    }
    assert_eq!(upstream.accepted(), 0);
}

#[tokio::test]
async fn a_name_that_changes_its_answer_gains_nothing() {
    let upstream = Upstream::answering(HELLO).await;
    let port = upstream.address.port();
    // The first answer is allowed, the second one is the same port on an address that is not.
    let other = tokio::net::TcpListener::bind(("127.0.0.2", port)).await.unwrap();
    let egress = Egress::with_lookup(vec![upstream.address], Names::new("127.0.0.1", "127.0.0.2")).unwrap();
    let jar = jar_with(egress);
    let client = jar.load("http_client").await;
    let host = format!("flips.test:{port}");
    let ask = json!({"scheme": "http", "authority": host, "path": "/"});
    let finished = jar.call(send(client, &[ask.clone(), ask.clone(), ask.clone(), ask], &[grant(&host)])).await;
    let errors: Vec<_> = reports(&finished).iter().map(|report| report["error"].clone()).collect();
    let refused = json!("ErrorCode::DestinationIpProhibited");
    assert_eq!(errors, [json!(null), refused.clone(), json!(null), refused]);
    assert_eq!(upstream.accepted(), 2);
    assert!(other.accept().now_or_never().is_none());
}

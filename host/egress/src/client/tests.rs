use std::{
    collections::BTreeMap,
    io,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use domain::Problem;
use futures::{FutureExt, TryStreamExt, future::BoxFuture};
use reqwest::dns::Resolve;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::JoinHandle,
};

use super::*;

/// Listens on loopback, answers every request with the same bytes, and counts connections.
struct Upstream {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Upstream {
    #[expect(clippy::disallowed_methods, reason = "ends with the test")]
    async fn start(ip: &str, answer: &'static str) -> Upstream {
        let listener = TcpListener::bind((ip, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&connections);
        let task = tokio::spawn(async move {
            let mut open = Vec::new();
            while let Ok((mut socket, _)) = listener.accept().await {
                counter.fetch_add(1, SeqCst);
                let mut head = [0; 4096];
                let _ = socket.read(&mut head).await;
                let _ = socket.write_all(answer.as_bytes()).await;
                if answer.contains("connection: close") {
                    continue;
                }
                open.push(socket);
            }
        });
        Upstream { address, connections, task }
    }

    fn connections(&self) -> usize {
        self.connections.load(SeqCst)
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Names with answers; a name with several takes one after the other and stays at the last.
struct Names(Mutex<BTreeMap<&'static str, Vec<Vec<IpAddr>>>>);

impl Names {
    fn of(names: &[(&'static str, &[&[&str]])]) -> Arc<Names> {
        let parse = |answer: &&[&str]| answer.iter().map(|ip| ip.parse().unwrap()).collect();
        Arc::new(Names(Mutex::new(
            names.iter().map(|(name, answers)| (*name, answers.iter().map(parse).collect())).collect(),
        )))
    }
}

impl Lookup for Names {
    fn lookup(&self, name: &str) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
        let mut names = self.0.lock().unwrap();
        let answer = match names.get_mut(name) {
            Some(answers) if answers.len() > 1 => Ok(answers.remove(0)),
            Some(answers) => Ok(answers[0].clone()),
            None => Err(io::Error::other("no such name")),
        };
        async { answer }.boxed()
    }
}

fn get(url: impl Into<String>, chosen_by: ChosenBy) -> Request {
    Request {
        method: Method::GET,
        url: url.into(),
        headers: HeaderMap::new(),
        body: Bytes::new(),
        chosen_by,
        first_byte: Duration::from_secs(5),
        between_bytes: Duration::from_secs(5),
        body_bytes_max: 1024,
    }
}

const HELLO: &str = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello";

async fn text(response: Response) -> String {
    let pieces: Vec<Bytes> = response.body.try_collect().await.unwrap();
    String::from_utf8(pieces.concat()).unwrap()
}

const REFUSED: &str = "egress.address_refused";
const BAD: &str = "egress.bad_url";

/// `PORT` is a listener's on every loopback address.
const NEVER_REACHED: &[(&str, &str)] = &[
    // Every notation of an address.
    ("127.0.0.1:PORT", REFUSED),
    ("127.0.0.1.:PORT", REFUSED),
    ("127.1:PORT", REFUSED),
    ("127.0.1:PORT", REFUSED),
    ("127.255.255.254:PORT", REFUSED),
    ("2130706433:PORT", REFUSED),
    ("0x7f000001:PORT", REFUSED),
    ("0x7f.1:PORT", REFUSED),
    ("0x7f.0x0.0x0.0x1:PORT", REFUSED),
    ("0X7F.0.0.1:PORT", REFUSED),
    ("0177.0.0.1:PORT", REFUSED),
    ("0177.0.0.01:PORT", REFUSED),
    ("017700000001:PORT", REFUSED),
    ("00000177.1:PORT", REFUSED),
    ("%31%32%37.0.0.1:PORT", REFUSED),
    ("%30x7f.1:PORT", REFUSED),
    ("１２７.０.０.１:PORT", REFUSED),
    ("①②⑦.⓪.⓪.①:PORT", REFUSED),
    ("127。0。0。1:PORT", REFUSED),
    ("0:PORT", REFUSED),
    ("0.0.0.0:PORT", REFUSED),
    ("[::]:PORT", REFUSED),
    ("[::1]:PORT", REFUSED),
    ("[0:0:0:0:0:0:0:1]:PORT", REFUSED),
    ("[0000:0000:0000:0000:0000:0000:0000:0001]:PORT", REFUSED),
    ("[::127.0.0.1]:PORT", REFUSED),
    ("[::7f00:1]:PORT", REFUSED),
    ("[::ffff:127.0.0.1]:PORT", REFUSED),
    ("[::ffff:7f00:1]:PORT", REFUSED),
    ("[::FFFF:0x7f.1]:PORT", BAD),
    ("[::ffff:0:127.0.0.1]:PORT", REFUSED),
    ("[64:ff9b::127.0.0.1]:PORT", REFUSED),
    ("[64:ff9b:1::127.0.0.1]:PORT", REFUSED),
    ("[2002:7f00:1::]:PORT", REFUSED),
    ("[2001:0:808:808::80ff:fffe]:PORT", REFUSED),
    ("[fe80::1%25lo]:PORT", BAD),
    ("[fe80::1]:PORT", REFUSED),
    ("[fc00::1]:PORT", REFUSED),
    ("[fd00:ec2::254]:PORT", REFUSED),
    ("[fec0::1]:PORT", REFUSED),
    ("[ff02::1]:PORT", REFUSED),
    ("[2001:db8::1]:PORT", REFUSED),
    ("10.0.0.1:PORT", REFUSED),
    ("172.16.0.1:PORT", REFUSED),
    ("192.168.0.1:PORT", REFUSED),
    ("100.64.0.1:PORT", REFUSED),
    ("100.100.100.200:PORT", REFUSED),
    ("169.254.169.254", REFUSED),
    ("169.254.169.254:PORT", REFUSED),
    ("2852039166", REFUSED),
    ("0xa9fea9fe", REFUSED),
    ("0251.0376.0251.0376", REFUSED),
    ("[::ffff:169.254.169.254]", REFUSED),
    ("[::ffff:a9fe:a9fe]", REFUSED),
    ("168.63.129.16", REFUSED),
    ("192.0.0.192", REFUSED),
    ("198.18.0.1", REFUSED),
    ("192.0.2.1", REFUSED),
    ("224.0.0.1", REFUSED),
    ("240.0.0.1", REFUSED),
    ("255.255.255.255", REFUSED),
    ("127.0.0.1:99999", BAD),
    ("127.0.0.1:0", BAD),
    ("256.0.0.1:PORT", BAD),
    // Names.
    ("localhost:PORT", REFUSED),
    ("LOCALHOST:PORT", REFUSED),
    ("localhost.:PORT", REFUSED),
    ("ｌocalhost:PORT", REFUSED),
    ("a.localhost:PORT", REFUSED),
    ("loop.test:PORT", REFUSED),
    ("loop.test.:PORT", REFUSED),
    ("LOOP.test:PORT", REFUSED),
    ("loop6.test:PORT", REFUSED),
    ("mapped.test:PORT", REFUSED),
    ("private.test:PORT", REFUSED),
    ("metadata.test:PORT", REFUSED),
    ("nat64.test:PORT", REFUSED),
    ("nowhere.test:PORT", "egress.connect_failed"),
    // Somebody else in front of the host.
    ("user@127.0.0.1:PORT", BAD),
    ("user:pass@loop.test:PORT", BAD),
    ("public.test@127.0.0.1:PORT", BAD),
    (":pass@loop.test:PORT", BAD),
    ("public.test\\@127.0.0.1:PORT", "egress.connect_failed"),
    ("127.0.0.1:PORT\\@public.test", REFUSED),
    ("127.0.0.1:PORT#@public.test", REFUSED),
    ("127.0.0.1:PORT?@public.test", REFUSED),
    ("127.0.0.1 :PORT", BAD),
    ("127.0.0.1\t:PORT", REFUSED),
    ("127.0.0.1\n:PORT", REFUSED),
    ("", BAD),
];

fn private_names() -> Arc<Names> {
    Names::of(&[
        ("loop.test", &[&["127.0.0.1"]]),
        ("loop.test.", &[&["127.0.0.1"]]),
        ("loop6.test", &[&["::1"]]),
        ("mapped.test", &[&["::ffff:127.0.0.1"]]),
        ("private.test", &[&["10.1.2.3", "192.168.1.1", "fd00::1"]]),
        ("metadata.test", &[&["169.254.169.254"]]),
        ("nat64.test", &[&["64:ff9b::7f00:1"]]),
    ])
}

#[tokio::test]
async fn no_form_of_a_url_reaches_a_private_address() {
    let upstream = Upstream::start("127.0.0.1", HELLO).await;
    let egress = Egress::with_lookup(Vec::new(), private_names()).unwrap();
    for (host, code) in NEVER_REACHED {
        let host = host.replace("PORT", &upstream.address.port().to_string());
        let error = egress.send(get(format!("https://{host}"), ChosenBy::Tenant)).await.unwrap_err();
        assert_eq!(error.code(), *code, "https {host}: {error:?}");
        // Over plain http a name is refused before it is looked up.
        let error = egress.send(get(format!("http://{host}/v1"), ChosenBy::Tenant)).await.unwrap_err();
        assert!([REFUSED, BAD].contains(&error.code()), "http {host}: {error:?}");
    }
    for url in ["file:///etc/passwd", "ftp://127.0.0.1/", "gopher://loop.test/", "//loop.test", "loop.test", "data:,x"]
    {
        let error = egress.send(get(url, ChosenBy::Operator)).await.unwrap_err();
        assert_eq!(error.code(), BAD, "{url}");
    }
    let long = format!("https://public.test/{}", "x".repeat(4096));
    assert_eq!(egress.send(get(long, ChosenBy::Tenant)).await.unwrap_err().code(), BAD);
    assert_eq!(upstream.connections(), 0);
}

#[tokio::test]
async fn an_exception_opens_one_address_on_one_port() {
    let (allowed, other) = (Upstream::start("127.0.0.1", HELLO).await, Upstream::start("127.0.0.1", HELLO).await);
    let egress = Egress::with_lookup(vec![allowed.address], private_names()).unwrap();
    let port = allowed.address.port();
    for host in ["127.0.0.1", "0x7f.1", "[::ffff:127.0.0.1]", "loop.test", "mapped.test"] {
        let response = egress.send(get(format!("http://{host}:{port}/"), ChosenBy::Tenant)).await.unwrap();
        assert_eq!((response.status, text(response).await.as_str()), (StatusCode::OK, "hello"), "{host}");
    }
    for url in [
        format!("http://127.0.0.2:{port}/"),
        format!("http://private.test:{port}/"),
        format!("https://private.test:{port}/"),
        format!("http://127.0.0.1:{}/", other.address.port()),
        format!("https://loop.test:{}/", other.address.port()),
        "https://loop.test/".to_owned(),
    ] {
        let error = egress.send(get(&url, ChosenBy::Tenant)).await.unwrap_err();
        assert_eq!(error.code(), REFUSED, "{url}");
        assert!(error.to_string().contains("--allow-egress ADDRESS:PORT"));
    }
    assert_eq!((allowed.connections(), other.connections()), (5, 0));
}

#[tokio::test]
async fn plain_http_does_not_cross_a_public_network() {
    let egress = Egress::with_lookup(vec!["127.0.0.1:80".parse().unwrap()], private_names()).unwrap();
    for url in ["http://8.8.8.8/", "http://public.test:81/", "http://[2606:4700:4700::1111]/"] {
        assert_eq!(egress.check_url(url).unwrap_err().code(), BAD, "{url}");
    }
    for url in ["https://8.8.8.8/", "https://public.test:81/v1", "http://127.0.0.1/", "http://localhost/v1"] {
        assert!(egress.check_url(url).is_ok(), "{url}");
    }
    for url in ["https://127.0.0.1/", "http://127.0.0.1:81/", "https://localhost:81/", "http://[::1]/"] {
        assert_eq!(egress.check_url(url).unwrap_err().code(), REFUSED, "{url}");
    }
}

#[tokio::test]
async fn the_operators_own_url_may_lead_anywhere() {
    let upstream = Upstream::start("127.0.0.1", HELLO).await;
    let egress = Egress::with_lookup(Vec::new(), private_names()).unwrap();
    for host in ["127.0.0.1", "loop.test"] {
        let url = format!("http://{host}:{}/", upstream.address.port());
        assert_eq!(text(egress.send(get(&url, ChosenBy::Operator)).await.unwrap()).await, "hello");
        // And the connection that it left behind is nobody else's.
        assert!(egress.send(get(&url, ChosenBy::Tenant)).await.is_err());
    }
    assert_eq!(upstream.connections(), 2);
}

#[tokio::test]
async fn a_name_that_changes_its_answer_gains_nothing() {
    let upstream = Upstream::start("127.0.0.1", HELLO).await;
    let port = upstream.address.port();
    let names = Names::of(&[("flips.test", &[&["127.0.0.1"], &["127.0.0.2"], &["127.0.0.1"], &["127.0.0.2"]])]);
    let other = TcpListener::bind(("127.0.0.2", port)).await.unwrap();
    let egress = Egress::with_lookup(vec![upstream.address], names).unwrap();
    let url = format!("http://flips.test:{port}/");
    for allowed in [true, false, true, false] {
        let answer = egress.send(get(&url, ChosenBy::Tenant)).await;
        assert_eq!(answer.as_ref().err().map(EgressError::code), (!allowed).then_some(REFUSED));
    }
    assert_eq!(upstream.connections(), 2);
    assert!(other.accept().now_or_never().is_none());
}

#[tokio::test]
async fn private_answers_among_public_ones_are_dropped() {
    let resolver = GatedResolver {
        lookup: Names::of(&[("mixed.test", &[&["127.0.0.1", "8.8.8.8", "10.0.0.1", "2606:4700::1"]])]),
        gate: Gate::Public { exceptions: Vec::new() },
    };
    let left: Vec<_> = resolver.resolve("mixed.test".parse().unwrap()).await.unwrap().map(|a| a.ip()).collect();
    assert_eq!(left, ["8.8.8.8".parse::<IpAddr>().unwrap(), "2606:4700::1".parse().unwrap()]);
}

#[tokio::test]
async fn a_redirect_is_an_answer_like_any_other() {
    let target = Upstream::start("127.0.0.1", HELLO).await;
    let answer = format!(
        "HTTP/1.1 307 Temporary Redirect\r\nlocation: http://{}/\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
        target.address
    );
    let upstream = Upstream::start("127.0.0.1", answer.leak()).await;
    let egress = Egress::with_lookup(vec![upstream.address, target.address], private_names()).unwrap();
    let response = egress.send(get(format!("http://{}/", upstream.address), ChosenBy::Tenant)).await.unwrap();
    assert_eq!(response.status, StatusCode::TEMPORARY_REDIRECT);
    assert_eq!(target.connections(), 0);
}

#[tokio::test]
async fn waiting_and_size_have_an_end() {
    const ENDLESS: &str = "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n0123456789";
    const STUCK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n0123456789";
    const SILENT: &str = "";
    let short = Duration::from_millis(100);
    for (answer, body_bytes_max, code) in [
        (SILENT, 100, "egress.timeout"),
        (STUCK, 100, "egress.timeout"),
        (STUCK, 99, "egress.too_large"),
        (ENDLESS, 9, "egress.too_large"),
        (HELLO, 4, "egress.too_large"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 100\r\nconnection: close\r\n\r\n0", 100, "egress.connect_failed"),
        ("SSH-2.0-x\r\nconnection: close", 100, "egress.connect_failed"),
    ] {
        let upstream = Upstream::start("127.0.0.1", answer).await;
        let egress = Egress::with_lookup(vec![upstream.address], private_names()).unwrap();
        let url = format!("http://{}/", upstream.address);
        let mut request = Request { body_bytes_max, ..get(url, ChosenBy::Tenant) };
        if code == "egress.timeout" {
            (request.first_byte, request.between_bytes) = (short, short);
        }
        let error = match egress.send(request).await {
            Err(error) => error,
            Ok(response) => response.body.try_collect::<Vec<_>>().await.unwrap_err(),
        };
        assert_eq!(error.code(), code, "{answer}");
    }
}

#[tokio::test]
async fn a_failure_says_why_and_keeps_the_query_to_itself() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let plain = Upstream::start("127.0.0.1", HELLO).await;
    let egress = Egress::with_lookup(vec![closed, plain.address], private_names()).unwrap();
    for (url, words) in [
        (format!("http://{closed}/?key=secret"), "it refused the connection"),
        ("https://nowhere.test/?key=secret".to_owned(), "its name does not resolve"),
        (format!("https://{}/?key=secret", plain.address), "it does not speak TLS"),
    ] {
        let error = egress.send(get(url, ChosenBy::Tenant)).await.unwrap_err();
        assert_eq!(error.code(), "egress.connect_failed");
        assert!(error.to_string().contains(words), "{error} {error:?}");
        assert!(!format!("{error:?}").contains("secret"), "{error:?}");
    }
}

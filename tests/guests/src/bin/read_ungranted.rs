//! Tries every door, and reports what each answered: without a grant all of them must be closed.

use belljar_tool::__private::bindings::wasi::keyvalue::store;
use belljar_tool::{secrets, tool, toolbox};
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io::Read as _;
use std::net::{TcpListener, TcpStream, ToSocketAddrs as _, UdpSocket};
use wasip2::http::types::{Fields, OutgoingRequest, Scheme};
use wasip2::{filesystem::preopens, http::outgoing_handler};

/// What a door gave: `Ok` is a breach.
type Got = Result<String, String>;

type Door = (&'static str, fn() -> Got);

const DOORS: [Door; 18] = [
    ("file_read", || got(std::fs::read("/etc/passwd"))),
    ("file_read_relative", || got(std::fs::read("Cargo.toml"))),
    ("file_write", || got(std::fs::write("/tmp/guest", "was here"))),
    ("directory", || got(std::fs::read_dir("/"))),
    ("preopens", || some(preopens::get_directories())),
    ("environment", || some(std::env::vars().collect())),
    ("arguments", || some(std::env::args().collect())),
    ("working_directory", || some(wasip2::cli::environment::initial_cwd().into_iter().collect())),
    ("stdin", || read_stdin()),
    ("tcp_connect", || got(TcpStream::connect(("127.0.0.1", 8080)))),
    ("tcp_connect_public", || got(TcpStream::connect(("192.0.2.1", 80)))),
    ("tcp_listen", || got(TcpListener::bind(("127.0.0.1", 0)))),
    ("udp_send", || got(UdpSocket::bind(("127.0.0.1", 0)).and_then(|socket| socket.send_to(b"x", ("127.0.0.1", 53))))),
    ("dns", || got(("localhost", 80).to_socket_addrs().map(|found| found.collect::<Vec<_>>()))),
    ("http", || request("127.0.0.1:8080")),
    ("http_metadata", || request("169.254.169.254")),
    ("key_value", || got(store::open("default").and_then(|bucket| bucket.get("key")))),
    ("secret", || got(secrets::get("token"))),
];

/// What one door answered.
#[derive(serde::Serialize, schemars::JsonSchema)]
struct Report {
    allowed: bool,
    answer: String,
}

/// Tries every door, or only the named ones, and reports what each answered.
#[tool]
fn run(only: Option<Vec<String>>) -> BTreeMap<String, Report> {
    let wanted = |door: &str| only.as_ref().is_none_or(|only| only.iter().any(|name| name == door));
    let tried = DOORS.iter().filter(|(door, _)| wanted(door)).map(|(door, open)| {
        let answer = open();
        (door.to_string(), Report { allowed: answer.is_ok(), answer: answer.unwrap_or_else(|denied| denied) })
    });
    tried.collect()
}

/// The names of all doors.
#[tool]
fn doors() -> Vec<&'static str> {
    DOORS.map(|(door, _)| door).into()
}

fn got<T: Debug, E: Debug>(result: Result<T, E>) -> Got {
    result.map(|value| format!("{value:?}")).map_err(|error| format!("{error:?}"))
}

/// An empty list tells nothing.
fn some<T: Debug>(list: Vec<T>) -> Got {
    if list.is_empty() { Err("empty".into()) } else { Ok(format!("{list:?}")) }
}

fn read_stdin() -> Got {
    let mut bytes = [0; 64];
    match std::io::stdin().read(&mut bytes) {
        Ok(0) => Err("empty".into()),
        other => got(other),
    }
}

fn request(authority: &str) -> Got {
    let request = OutgoingRequest::new(Fields::new());
    request
        .set_scheme(Some(&Scheme::Http))
        .and_then(|()| request.set_authority(Some(authority)))
        .map_err(|()| "refused")?;
    let response = outgoing_handler::handle(request, None).map_err(|code| format!("{code:?}"))?;
    response.subscribe().block();
    match response.get() {
        Some(Ok(Ok(response))) => Ok(format!("status {}", response.status())),
        Some(Ok(Err(code))) => Err(format!("{code:?}")),
        other => Err(format!("no answer: {}", other.is_some())),
    }
}

toolbox!(run, doors);
fn main() {}

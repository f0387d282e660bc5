//! Streams: what the product adds to the time of the first token, and what a silent stream holds.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use reqwest::{Method, RequestBuilder};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    Place,
    figures::{median, ms, percentile},
    fleet::{Fleet, Setup, text},
    machine,
    process::held,
    server::Tenant,
    upstream::{Manner, Upstream},
};

const ROUNDS: usize = 7;
/// Pairs of questions of a round: one to the model, one through the product.
const PAIRS: usize = 100;
/// How long the model thinks before its first word.
const THINKS: [Duration; 2] = [Duration::ZERO, Duration::from_millis(20)];
/// What may be added to the first token, beyond the commit of the message.
const BEYOND_COMMIT: Duration = Duration::from_micros(300);
const STREAMS: usize = 2_000;
/// A tenant may have 256.
const STREAMS_OF_A_TENANT: usize = 200;
const STREAM_KIB_MAX: f64 = 16.0;
/// Streams that are opened and closed before anything is measured, so that what stays is there.
const WARM: usize = 400;
/// Until a host has given back what it does not need.
const REST: Duration = Duration::from_secs(3);
/// Words that all silent streams are told at once, and the time between two.
const WORDS: usize = 20;
const WORD_GAP: Duration = Duration::from_millis(250);

pub(crate) async fn run(place: &Place, percent: usize) -> Result<()> {
    machine::raise_file_limit()?;
    let rounds = (ROUNDS * percent / 100).max(1);
    let upstream = Upstream::start(Manner::default()).await?;
    let setup = Setup::one_host(upstream.base_url()).with("BELLJAR_CONCURRENT_RUNS", 2 * STREAMS);
    let fleet = Fleet::start(place, setup).await?;
    let mut host = fleet.hosts[0].started().await?;
    let pid = host.id().context("the host has ended")?;
    let first = added(&fleet, &upstream, rounds).await?;
    let streams = (STREAMS * percent / 100 / STREAMS_OF_A_TENANT).max(1) * STREAMS_OF_A_TENANT;
    let idle = idle(&fleet, &upstream, pid, streams).await?;
    // Not stopped in order: it would wait for thousands of runs that have no end.
    host.start_kill()?;
    host.wait().await?;
    fleet.end().await?;

    println!("\n| a silent stream | KiB of the host |\n|---|---|");
    println!("| one of {streams} that follow {} runs | {:.1} |", streams / STREAMS_OF_A_TENANT, idle.followed_kib);
    println!("| one of {streams} with a run of its own, which waits for its model | {:.1} |", idle.own_kib);
    let (p50, p99) = (percentile(&mut idle.lags.clone(), 50.0), percentile(&mut idle.lags.clone(), 99.0));
    println!("\nA word that all {streams} are told at once arrives after {} ms (p50), {} ms (p99).", ms(p50), ms(p99));
    for beyond in first {
        ensure!(beyond <= BEYOND_COMMIT, "the first token is {} ms later than the commit explains", ms(beyond));
    }
    ensure!(idle.followed_kib <= STREAM_KIB_MAX, "a silent stream holds {:.1} KiB", idle.followed_kib);
    Ok(())
}

/// Prints what is added to the first token; answers what of it the commit does not explain, for each time of thinking.
async fn added(fleet: &Fleet, upstream: &Upstream, rounds: usize) -> Result<Vec<Duration>> {
    let tenant = speaker(fleet, "first").await?;
    println!("{rounds} interleaved rounds of {PAIRS} pairs; medians of rounds");
    println!(
        "| the model thinks | first token: model p50 | through the product p50 | added p50 | p99 | a commit | added beyond it |\n|---|---|---|---|---|---|---|"
    );
    let (mut number, mut rest) = (0, Vec::new());
    for thinks in THINKS {
        upstream.think(thinks);
        let (mut direct, mut through) = (Vec::new(), Vec::new());
        let mut commits = Vec::new();
        for _ in 0..rounds {
            commits.push(machine::commit(fleet.superuser_url()).await?);
            let (mut one, mut other) = (Vec::new(), Vec::new());
            for _ in 0..PAIRS {
                number += 1;
                let question = format!("op-{number} say");
                let body = json!({
                    "model": "gpt-4o-mini", "stream": true, "messages": [{"role": "user", "content": question}],
                });
                let asked = fleet.http.post(format!("{}/chat/completions", upstream.base_url())).json(&body);
                one.push(first_token(asked, b"\"content\"").await?);
                let body = json!({"message": question, "stream": true});
                let asked = tenant.request(Method::POST, "/v1/agents/clerk/chat").json(&body);
                other.push(first_token(asked, b"event: message.delta").await?);
            }
            direct.push(one);
            through.push(other);
        }
        let at = |rounds: &mut [Vec<Duration>], percent| {
            median(&mut rounds.iter_mut().map(|round| percentile(round, percent)).collect::<Vec<_>>())
        };
        let (model, product) = (at(&mut direct, 50.0), at(&mut through, 50.0));
        let (added, tail) =
            (product.saturating_sub(model), at(&mut through, 99.0).saturating_sub(at(&mut direct, 99.0)));
        let commit = median(&mut commits);
        let beyond = added.saturating_sub(commit);
        println!(
            "| {} ms | {} | {} | {} | {} | {} | {} |",
            thinks.as_millis(),
            ms(model),
            ms(product),
            ms(added),
            ms(tail),
            ms(commit),
            ms(beyond)
        );
        rest.push(beyond);
    }
    upstream.think(Duration::ZERO);
    Ok(rest)
}

/// The time until this stands in the answer. The rest is read too, so that the connection can be used again.
async fn first_token(request: RequestBuilder, sign: &[u8]) -> Result<Duration> {
    let began = Instant::now();
    let mut response = request.send().await?;
    ensure!(response.status().is_success(), "{}: {}", response.status(), response.text().await?);
    let (mut came, mut found) = (Vec::new(), None);
    while let Some(bytes) = response.chunk().await? {
        came.extend_from_slice(&bytes);
        if found.is_none() && came.windows(sign.len()).any(|window| window == sign) {
            found = Some(began.elapsed());
        }
    }
    found.with_context(|| format!("no first token: {}", String::from_utf8_lossy(&came)))
}

struct Idle {
    followed_kib: f64,
    own_kib: f64,
    lags: Vec<Duration>,
}

/// Opens streams that nothing comes on, and looks at the host.
async fn idle(fleet: &Fleet, upstream: &Upstream, pid: u32, streams: usize) -> Result<Idle> {
    let tenants = streams / STREAMS_OF_A_TENANT;
    let mut speakers = Vec::new();
    for number in 0..tenants {
        speakers.push(speaker(fleet, &format!("idle-{number}")).await?);
    }
    let address = fleet.hosts[0].address;
    // One silent run each, which all of its tenant's streams follow.
    let mut paths = Vec::new();
    for (number, tenant) in speakers.iter().enumerate() {
        let body = json!({"message": format!("op-{number} hang"), "background": true});
        let run = tenant.post("/v1/agents/clerk/chat", body).await?.made()?;
        paths.push(format!("/v1/runs/{}/events", text(&run["run"], "id")));
    }
    let open = async |count: usize| -> Result<Vec<Silent>> {
        let mut open = Vec::with_capacity(count);
        for number in 0..count {
            let (tenant, path) = (&speakers[number % tenants], &paths[number % tenants]);
            open.push(Silent::open(address, &format!("GET {path}"), tenant, "").await?);
        }
        Ok(open)
    };
    drop(open(WARM.min(streams)).await?);
    tokio::time::sleep(REST).await;
    let before = held(pid)?.rss_bytes;
    let mut followed = open(streams).await?;
    tokio::time::sleep(REST).await;
    let kib = |before: u64, after: u64| after.saturating_sub(before) as f64 / 1024.0 / streams as f64;
    let followed_kib = kib(before, held(pid)?.rss_bytes);

    let mut lags = Vec::new();
    for _ in 0..WORDS {
        let mut tasks = tokio::task::JoinSet::new();
        for mut silent in followed.drain(..) {
            tasks.spawn(async move {
                silent.until(b"message.delta").await?;
                anyhow::Ok((silent, Instant::now()))
            });
        }
        // All listen before the word is said.
        tokio::time::sleep(WORD_GAP).await;
        let said = Instant::now();
        upstream.prompt();
        while let Some(told) = tasks.join_next().await {
            let (silent, at) = told??;
            followed.push(silent);
            lags.push(at.saturating_duration_since(said));
        }
    }
    drop(followed);
    tokio::time::sleep(REST).await;

    let before = held(pid)?.rss_bytes;
    let mut own = Vec::with_capacity(streams);
    for number in 0..streams {
        let body = json!({"message": format!("op-{} hang", 1_000 + number), "stream": true}).to_string();
        own.push(Silent::open(address, "POST /v1/agents/clerk/chat", &speakers[number % tenants], &body).await?);
    }
    tokio::time::sleep(REST).await;
    let own_kib = kib(before, held(pid)?.rss_bytes);
    drop(own);
    Ok(Idle { followed_kib, own_kib, lags })
}

/// A tenant with an agent that has no tools.
async fn speaker(fleet: &Fleet, name: &str) -> Result<Tenant> {
    let tenant = fleet.tenant(name).await?;
    let agent = json!({"name": "clerk", "system_prompt": "", "model": "openai/gpt-4o-mini"});
    tenant.post("/v1/agents", agent).await?.made()?;
    Ok(tenant)
}

/// A stream on a bare socket: thousands of them weigh little here.
struct Silent {
    socket: TcpStream,
    unread: Vec<u8>,
}

impl Silent {
    /// Opens it and reads up to the first event.
    async fn open(address: std::net::SocketAddr, line: &str, tenant: &Tenant, body: &str) -> Result<Silent> {
        let mut socket = TcpStream::connect(address).await?;
        let head = format!(
            "{line} HTTP/1.1\r\nhost: {address}\r\nx-api-key: {}\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{body}",
            tenant.key(),
            body.len()
        );
        socket.write_all(head.as_bytes()).await?;
        let mut silent = Silent { socket, unread: Vec::new() };
        silent.until(b"message.delta").await?;
        Ok(silent)
    }

    /// Reads until this has come.
    async fn until(&mut self, sign: &[u8]) -> Result<()> {
        loop {
            if let Some(at) = self.unread.windows(sign.len()).position(|window| window == sign) {
                self.unread.drain(..at + sign.len());
                return Ok(());
            }
            if self.socket.read_buf(&mut self.unread).await? == 0 {
                bail!("a stream has ended: {}", String::from_utf8_lossy(&self.unread));
            }
        }
    }
}

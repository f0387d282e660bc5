use tool_api::recording::{MISSING_MAX, RECORDING_BYTES_MAX};

use super::*;

fn replayed(inputs: &Inputs) -> Inputs {
    Inputs::replaying(Arc::new(inputs.finish().unwrap()))
}

async fn get(inputs: &Inputs, key: &str, value: Option<&'static [u8]>) -> Result<Option<Bytes>, HostError> {
    inputs.key_value_get("notes", key, async { Ok(value.map(Bytes::from_static)) }).await
}

/// What a replay must never do.
async fn read_in_a_replay<T>() -> Result<T, HostError> {
    panic!("a replay read the world")
}

#[tokio::test]
async fn nothing_is_read_in_a_replay() {
    let inputs = replayed(&Inputs::recording(7));
    assert!(inputs.key_value_get("notes", "k", read_in_a_replay()).await.is_err());
    assert!(inputs.key_value_keys("notes", Some("a"), 10, read_in_a_replay()).await.is_err());
    assert!(matches!(inputs.http("GET", "https://a.example/x?token=1"), Exchange::Missing(_)));
    assert_eq!(inputs.wall_clock_ms(|| panic!("read")), 8, "the begin and a tick");
    assert_eq!(inputs.monotonic_ms(|| panic!("read")), 1);
    assert_eq!(inputs.monotonic_ms(|| panic!("read")), 2);
    assert_eq!(inputs.seed(|| -> Result<_, ()> { panic!("read") }), Ok([0; 32]));
    assert_eq!(inputs.started_unix_ms(|| panic!("read")), 7);
    assert_eq!(
        inputs.missing(),
        [
            "wasi:keyvalue get notes/k",
            "wasi:keyvalue list-keys notes after a",
            "wasi:http GET https://a.example/x",
            "wasi:clocks/wall-clock",
            "wasi:clocks/monotonic-clock",
            "wasi:random",
        ]
    );
}

#[tokio::test]
async fn what_is_missing_is_bounded() {
    let inputs = replayed(&Inputs::recording(0));
    for _ in 0..MISSING_MAX + 10 {
        let key = "k".repeat(10_000);
        assert!(inputs.key_value_get("notes", &key, read_in_a_replay()).await.is_err());
    }
    let missing = inputs.missing();
    assert_eq!(missing.len(), MISSING_MAX);
    assert!(missing[0].len() < 1_000);
}

#[tokio::test]
async fn a_recording_is_bounded() {
    let big: &'static [u8] = vec![1; RECORDING_BYTES_MAX / 2].leak();
    let inputs = Inputs::recording(0);
    for key in ["a", "b", "c"] {
        get(&inputs, key, Some(big)).await.unwrap();
    }
    get(&inputs, "small", None).await.unwrap();
    let recording = inputs.finish().unwrap();
    assert!(recording.truncated);
    assert_eq!(recording.key_value.len(), 1, "and nothing after the hole");

    let inputs = Inputs::recording(0);
    (0..1_000_000).for_each(|ms| assert_eq!(inputs.monotonic_ms(|| ms), ms));
    let recording = inputs.finish().unwrap();
    assert!(recording.truncated && recording.monotonic_clock.len() <= RECORDING_BYTES_MAX / 16);
}

#[tokio::test]
async fn answers_come_in_their_order() {
    let inputs = Inputs::recording(100);
    get(&inputs, "n", Some(b"1")).await.unwrap();
    get(&inputs, "none", None).await.unwrap();
    get(&inputs, "n", Some(b"2")).await.unwrap();
    inputs.key_value_keys("notes", None, 10, async { Ok(vec!["n".into()]) }).await.unwrap();
    let broken = async { Err(HostError("down".into())) };
    inputs.key_value_get("notes", "broken", broken).await.unwrap_err();
    for ms in [100, 100, 103] {
        inputs.wall_clock_ms(|| ms);
    }
    inputs.seed(|| Ok::<_, ()>([9; 32])).unwrap();

    let inputs = replayed(&inputs);
    let read = async |key| inputs.key_value_get("notes", key, read_in_a_replay()).await;
    assert_eq!(read("n").await.unwrap().unwrap(), "1");
    assert_eq!(read("none").await.unwrap(), None);
    for _ in 0..2 {
        assert_eq!(read("n").await.unwrap().unwrap(), "2", "the last one stays");
    }
    assert!(read("broken").await.is_err());
    let keys = inputs.key_value_keys("notes", None, 10, read_in_a_replay()).await;
    assert_eq!(keys.unwrap(), ["n"]);
    let times: Vec<u64> = (0..5).map(|_| inputs.wall_clock_ms(|| 0)).collect();
    assert_eq!(times, [100, 100, 103, 104, 105]);
    assert_eq!(inputs.seed(|| Err(())), Ok([9; 32]));
    assert_eq!(inputs.missing(), ["wasi:clocks/wall-clock"]);
}

#[test]
fn an_exchange_is_kept_as_the_tool_saw_it() {
    let inputs = Inputs::recording(0);
    let send = |url| match inputs.http("GET", url) {
        Exchange::Send(tape) => tape,
        _ => panic!("a recorded call sends"),
    };
    let mut headers = HeaderMap::new();
    headers.append("x-a", http::HeaderValue::from_bytes(&[b'a', 0xff]).unwrap());
    headers.append("x-a", http::HeaderValue::from_static("b"));
    let first = send("https://a.example/");
    first.request_body(b"he");
    first.request_body(b"llo");
    first.head(200, &headers);
    first.body(&Bytes::from_static(b"one"));
    first.body(&Bytes::from_static(b"two"));
    first.trailers(&headers);
    send("https://a.example/").failed(&Error::ConnectionRefused);
    let cut = send("https://b.example/?q=[secret]");
    cut.head(500, &HeaderMap::new());
    cut.body(&Bytes::from_static(b"begin"));
    cut.failed(&Error::HttpResponseBodySize(Some(5)));

    let recording = inputs.finish().unwrap();
    let hash = recording.http[0].request_body_sha256.as_deref().unwrap();
    assert!(hash.starts_with("2cf24dba5fb0a30e"), "SHA-256 of hello, and not {hash}");
    assert_eq!(recording.http[1].request_body_sha256, None);
    first.body(&Bytes::from_static(b"late"));

    let inputs = Inputs::replaying(Arc::new(recording));
    let answer = |url| match inputs.http("GET", url) {
        Exchange::Answer(answer) => answer,
        _ => panic!("the recording holds it"),
    };
    let first = answer("https://a.example/");
    assert_eq!(first.head().unwrap(), (200, headers.clone()));
    assert_eq!(first.body(), ["one", "two"]);
    assert_eq!(first.end().unwrap(), Some(headers));
    let refused = answer("https://a.example/");
    assert!(matches!(refused.head(), Err(Error::ConnectionRefused)));
    let cut = answer("https://b.example/?q=%5Bsecret%5D");
    assert_eq!(cut.head().unwrap().0, 500);
    assert_eq!(cut.body(), ["begin"]);
    assert!(matches!(cut.end(), Err(Error::HttpResponseBodySize(Some(5)))));
    assert!(matches!(inputs.http("GET", "https://a.example/"), Exchange::Missing(_)), "each answer once");
    assert!(matches!(inputs.http("POST", "https://b.example/?q=[secret]"), Exchange::Missing(_)));
}

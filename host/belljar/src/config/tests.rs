use std::io::Write as _;

use super::*;

const KEY: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

/// Reads settings from variables and a file, as `serve` would.
fn read(variables: &[(&str, &str)], file: Option<&str>) -> Result<Serve, Vec<String>> {
    let path = file.map(|text| {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file.into_temp_path()
    });
    let variable = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, text)| (*text).to_owned());
    let flags = [("listen", variable("flag:listen"))];
    let sources = Sources::new(flags, variable, path.as_ref().map(|path| path.to_path_buf()));
    read_serve(sources, Platform::new(), Log { filter: "info".into(), json: false }).map_err(|mistakes| mistakes.0)
}

const GOOD: [(&str, &str); 3] = [
    ("BELLJAR_DATABASE_URL", "postgres://belljar_app@localhost/belljar"),
    ("BELLJAR_MASTER_KEY", KEY),
    ("BELLJAR_CACHE_DIR", "/var/cache/belljar"),
];

fn with(more: &[(&'static str, &'static str)]) -> Vec<(&'static str, &'static str)> {
    let kept = GOOD.iter().filter(|(key, _)| !more.iter().any(|(other, _)| key == other));
    kept.copied().chain(more.iter().copied().filter(|(_, text)| !text.is_empty())).collect()
}

#[test]
fn every_mistake_is_told_at_once() {
    let variables = [
        ("BELLJAR_ROLE", "gateway"),
        ("BELLJAR_LISTEN", "everywhere"),
        ("BELLJAR_OPERATOR_LISTEN", "0.0.0.0:8081"),
        ("BELLJAR_MASTER_KEY", "abc"),
        ("BELLJAR_DRAIN_SECONDS", "0"),
        ("BELLJAR_ALLOW_EGRESS", "10.0.0.1:1,home"),
    ];
    let mistakes = read(&variables, None).err().unwrap();
    let expected = [
        "BELLJAR_ROLE",
        "BELLJAR_LISTEN",
        "BELLJAR_OPERATOR_TOKEN",
        "BELLJAR_DATABASE_URL",
        "master key",
        "BELLJAR_CACHE_DIR",
        "BELLJAR_DRAIN_SECONDS",
        "`home`",
    ];
    assert_eq!(mistakes.len(), expected.len(), "{mistakes:#?}");
    for (mistake, part) in mistakes.iter().zip(expected) {
        assert!(mistake.contains(part), "{mistake:?} should tell of {part}");
    }
}

#[test]
fn insecure_settings_are_refused() {
    for (setting, refused) in [
        (("BELLJAR_MASTER_KEY", ""), true),
        (("BELLJAR_MASTER_KEY", &KEY[2..]), true),
        (("BELLJAR_MASTER_KEY", "0000000000000000000000000000000000000000000000000000000000000000"), true),
        (("BELLJAR_OPERATOR_TOKEN", "letmein"), true),
        (("BELLJAR_OPERATOR_LISTEN", "[::]:8081"), true),
        (("BELLJAR_OPERATOR_LISTEN", "[::1]:8081"), false),
        (("BELLJAR_LISTEN", "0.0.0.0:80"), false),
    ] {
        assert_eq!(read(&with(&[setting]), None).is_err(), refused, "{setting:?}");
    }
    let guarded = [("BELLJAR_OPERATOR_LISTEN", "0.0.0.0:8081"), ("BELLJAR_OPERATOR_TOKEN", KEY)];
    assert!(read(&with(&guarded), None).is_ok());
}

#[test]
fn a_redis_is_named_by_its_url() {
    for (url, refused) in [
        ("", false),
        ("redis://:secret@10.0.0.7:6379/1", false),
        ("redis+unix:///run/redis.sock", false),
        ("10.0.0.7:6379", true),
        ("http://10.0.0.7", true),
    ] {
        let read = read(&with(&[("BELLJAR_REDIS_URL", url)]), None);
        assert_eq!(read.is_err(), refused, "{url}");
        if let Err(mistakes) = read {
            assert!(mistakes[0].starts_with("BELLJAR_REDIS_URL is not the URL of a Redis"), "{mistakes:?}");
        }
    }
}

#[test]
fn no_mistake_repeats_a_secret() {
    let secret = "hunter2hunter2";
    let variables = [
        ("BELLJAR_MASTER_KEY", secret),
        ("BELLJAR_OPERATOR_TOKEN", secret),
        ("BELLJAR_DATABASE_URL", "mysql://hunter2hunter2@localhost"),
    ];
    let mistakes = read(&variables, None).err().unwrap();
    assert!(mistakes.iter().all(|mistake| !mistake.contains(secret)), "{mistakes:?}");
}

#[test]
fn a_flag_wins_over_the_environment_and_that_over_a_file() {
    let file = "listen = '127.0.0.1:1'\nconcurrent_runs = 7\nallow_egress = ['10.0.0.1:1', '10.0.0.2:2']";
    let listen = |more: &[_]| read(&with(more), Some(file)).map_err(|mistakes| panic!("{mistakes:?}")).unwrap();
    assert_eq!(listen(&[]).listen.port(), 1);
    assert_eq!(listen(&[("BELLJAR_LISTEN", "127.0.0.1:2")]).listen.port(), 2);
    assert_eq!(listen(&[("BELLJAR_LISTEN", "127.0.0.1:2"), ("flag:listen", "127.0.0.1:3")]).listen.port(), 3);
    assert_eq!((listen(&[]).concurrent_runs, listen(&[]).allow_egress.len()), (7, 2));
}

#[test]
fn a_setting_that_is_none_is_told_by_name() {
    let mistakes = read(&GOOD, Some("listne = '127.0.0.1:1'")).err().unwrap();
    assert!(mistakes[0].contains("`listne`"), "{mistakes:?}");
    let mistakes = read(&GOOD, Some("listen = ")).err().unwrap();
    assert_eq!(mistakes.len(), 1, "{mistakes:?}");
}

#[test]
fn a_key_of_digits_is_not_a_number() {
    let digits = "1234567890123456789012345678901234567890123456789012345678901234";
    assert!(read(&with(&[("BELLJAR_MASTER_KEY", digits)]), None).is_ok());
}

#[test]
fn the_key_encryption_key_and_those_before_it_are_read() {
    let (one, two, three) = ("01".repeat(16) + &"a1".repeat(16), "02".repeat(16) + &"b2".repeat(16), KEY);
    let read = |current: &str, previous: &str| {
        let variables: Vec<(&str, &str)> = GOOD
            .into_iter()
            .chain([("BELLJAR_KEY_ENCRYPTION_KEY", current), ("BELLJAR_PREVIOUS_KEY_ENCRYPTION_KEYS", previous)])
            .filter(|(_, text)| !text.is_empty())
            .collect();
        read(&variables, None).map(drop)
    };
    assert!(read("", "").is_ok(), "derived from the master key");
    assert!(read(&one, "").is_ok());
    assert!(read("", &one).is_ok(), "back to the derived one");
    assert!(read(&one, &format!("{two}, {three}\n")).is_ok());
    for (current, previous, words) in [
        (&one[2..], "", "the key-encryption key has 62 characters"),
        (&one, &two[2..], "the previous key-encryption key number 1 has 62 characters"),
        (&one, &format!("{two},{}", "x".repeat(64)), "number 2 has characters that are no hex digits"),
        (&"00".repeat(32), "", "one byte, repeated"),
        (&one, &format!("{two},{one}"), "number 2 is given twice"),
    ] {
        let mistakes = read(current, previous).unwrap_err();
        assert!(mistakes.len() == 1 && mistakes[0].contains(words), "{mistakes:?}");
        assert!(![&one, &two].iter().any(|key| mistakes[0].contains(&key[2..])), "{mistakes:?}");
    }
}

#[test]
fn rotation_needs_the_database_and_the_keys() {
    let read = |variables: &[(&str, &str)]| {
        let variable = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, text)| (*text).to_owned());
        let log = Log { filter: "info".into(), json: false };
        read_rotate(Sources::new([], variable, None), log).map(drop).map_err(|mistakes| mistakes.0)
    };
    assert!(read(&GOOD).is_ok());
    let mistakes = read(&[]).unwrap_err();
    assert_eq!(mistakes.len(), 2, "{mistakes:?}");
    assert!(mistakes[0].contains("BELLJAR_DATABASE_URL") && mistakes[1].contains("BELLJAR_MASTER_KEY"), "{mistakes:?}");
}

use super::*;

const NOTES: &str = "notes";

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn change(key: &str, operation: Operation, seen: Option<Seen>) -> Change {
    Change { namespace: NOTES.into(), key: key.into(), operation, seen }
}

/// What one call does to the key `k`, of which `12` is committed.
#[derive(Clone, Copy)]
enum Act {
    Read,
    Set(&'static str),
    Delete,
    Add(u64),
}

/// Drives an overlay as the host functions do. Each act answers with what the tool sees.
fn drive(overlay: &mut Overlay, committed: Option<&str>, act: Act) -> Result<Option<String>, Refusal> {
    let committed = committed.map(str::as_bytes);
    match act {
        Act::Read => {
            let value = match overlay.local(NOTES, "k")? {
                Local::Known(value) => value,
                Local::Committed => {
                    overlay.saw(NOTES, "k", committed)?;
                    committed.map(Bytes::copy_from_slice)
                }
                Local::Added(delta) => {
                    overlay.saw(NOTES, "k", committed)?;
                    Some(added(committed, delta)?)
                }
            };
            Ok(value.map(|value| String::from_utf8(value.into()).unwrap()))
        }
        Act::Set(value) => overlay.set(NOTES, "k", bytes(value)).map(|()| None),
        Act::Delete => overlay.delete(NOTES, "k").map(|()| None),
        Act::Add(delta) => overlay.increment(NOTES, "k", committed, delta).map(|sum| Some(sum.to_string())),
    }
}

#[test]
fn a_call_sees_what_it_wrote_and_leaves_what_it_came_to() {
    use Act::{Add, Delete, Read, Set};
    let saw = Some(Seen::of(Some(b"12")));
    let set = |text: &str| Operation::Set(bytes(text));
    for (acts, told, left) in [
        (&[Read][..], &[Some("12")][..], None),
        (&[Set("a")], &[None], Some((set("a"), None))),
        (&[Set("a"), Read], &[None, Some("a")], Some((set("a"), None))),
        (&[Read, Set("a")], &[Some("12"), None], Some((set("a"), saw))),
        (&[Read, Set("a"), Read, Delete], &[Some("12"), None, Some("a"), None], Some((Operation::Delete, saw))),
        (&[Delete, Read], &[None, None], Some((Operation::Delete, None))),
        (&[Delete, Add(3)], &[None, Some("3")], Some((set("3"), None))),
        (&[Add(3)], &[Some("15")], Some((Operation::Add(3), None))),
        (&[Add(3), Add(4)], &[Some("15"), Some("19")], Some((Operation::Add(7), None))),
        (&[Add(3), Read], &[Some("15"), Some("15")], Some((Operation::Add(3), None))),
        // Whoever looks and then adds depends on what it saw.
        (&[Read, Add(3)], &[Some("12"), Some("15")], Some((Operation::Add(3), saw))),
        (&[Add(3), Read, Set("a")], &[Some("15"), Some("15"), None], Some((set("a"), saw))),
        (&[Set("40"), Add(2)], &[None, Some("42")], Some((set("42"), None))),
        (&[Add(3), Set("a")], &[Some("15"), None], Some((set("a"), None))),
        (&[Add(3), Delete], &[Some("15"), None], Some((Operation::Delete, None))),
    ] {
        let mut overlay = Overlay::default();
        let words: Vec<_> = acts.iter().map(|act| drive(&mut overlay, Some("12"), *act).unwrap()).collect();
        assert_eq!(words.iter().map(Option::as_deref).collect::<Vec<_>>(), told);
        let left: Vec<_> = left.into_iter().map(|(operation, seen)| change("k", operation, seen)).collect();
        assert_eq!(overlay.into_changes(), left);
    }
}

#[test]
fn an_absent_key_is_seen_and_counts_as_zero() {
    let mut overlay = Overlay::default();
    assert_eq!(drive(&mut overlay, None, Act::Read), Ok(None));
    assert_eq!(drive(&mut overlay, None, Act::Add(5)), Ok(Some("5".into())));
    assert_eq!(overlay.into_changes(), [change("k", Operation::Add(5), Some(Seen::Absent))]);
}

#[test]
fn the_first_look_is_the_one_that_is_checked() {
    let mut overlay = Overlay::default();
    drive(&mut overlay, Some("1"), Act::Read).unwrap();
    drive(&mut overlay, Some("2"), Act::Read).unwrap();
    drive(&mut overlay, Some("2"), Act::Set("3")).unwrap();
    assert_eq!(overlay.into_changes()[0].seen, Some(Seen::of(Some(b"1"))));
}

#[test]
fn only_numbers_are_added_to() {
    for text in ["", "x", "+1", "-1", " 1", "1.0", "18446744073709551616"] {
        let mut overlay = Overlay::default();
        assert_eq!(drive(&mut overlay, Some(text), Act::Add(1)), Err(Refusal::NotANumber), "{text}");
        assert_eq!(overlay.into_changes(), []);
    }
    let mut overlay = Overlay::default();
    assert_eq!(drive(&mut overlay, Some("1"), Act::Add(u64::MAX)), Err(Refusal::NumberTooLarge));
    assert_eq!(drive(&mut overlay, Some("007"), Act::Add(1)), Ok(Some("8".into())));
    assert_eq!(drive(&mut overlay, Some("7"), Act::Add(u64::MAX)), Err(Refusal::NumberTooLarge));
    // What a refusal leaves is what was there before.
    assert_eq!(overlay.into_changes(), [change("k", Operation::Add(1), None)]);
}

#[test]
fn keys_values_and_the_whole_are_bounded() {
    let mut overlay = Overlay::default();
    for key in ["", &"k".repeat(KEY_BYTES_MAX + 1)] {
        assert_eq!(overlay.local(NOTES, key), Err(Refusal::BadKey));
        assert_eq!(overlay.set(NOTES, key, Bytes::new()), Err(Refusal::BadKey));
        assert_eq!(overlay.delete(NOTES, key), Err(Refusal::BadKey));
        assert_eq!(overlay.saw(NOTES, key, None), Err(Refusal::BadKey));
    }
    assert_eq!(overlay.set(NOTES, &"k".repeat(KEY_BYTES_MAX), Bytes::new()), Ok(()));
    let large = Bytes::from(vec![0; VALUE_BYTES_MAX]);
    assert_eq!(overlay.set(NOTES, "k", vec![0; VALUE_BYTES_MAX + 1].into()), Err(Refusal::ValueTooLarge));
    assert_eq!(overlay.set(NOTES, "k", large.clone()), Ok(()));
    // A key that is written again counts once.
    for _ in 0..100 {
        assert_eq!(overlay.set(NOTES, "k", large.clone()), Ok(()));
    }
    let mut writes = (0..100).map(|n| overlay.set("other", &format!("k{n}"), large.clone()));
    assert_eq!(writes.by_ref().take_while(|written| written.is_ok()).count(), 14);
    assert_eq!(writes.next(), Some(Err(Refusal::TooManyBytes)));
    drop(writes);
    assert_eq!(overlay.delete(NOTES, "k"), Ok(()), "deleting makes room");
    assert_eq!(overlay.set("other", "k14", large), Ok(()));

    let mut overlay = Overlay::default();
    let written = (0..2_000).take_while(|n| overlay.delete(NOTES, &format!("k{n}")).is_ok()).count();
    assert_eq!((written, overlay.delete(NOTES, "one more")), (WRITTEN_KEYS_MAX, Err(Refusal::TooManyKeys)));
    let read = (0..20_000).take_while(|n| overlay.saw(NOTES, &format!("r{n}"), None).is_ok()).count();
    assert!((8_990..=9_000).contains(&read), "{read}");
    assert_eq!(overlay.saw(NOTES, "r0", None), Ok(()), "a known key may be read again");
    assert_eq!(overlay.into_changes().len(), WRITTEN_KEYS_MAX);
}

/// All keys of a namespace, page by page.
fn listed(overlay: &Overlay, committed: &[&str], limit: usize) -> Vec<Vec<String>> {
    let mut pages = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let next = committed.iter().filter(|key| after.as_deref().is_none_or(|after| **key > after));
        let found = next.take(limit).map(|key| (*key).to_owned()).collect();
        let page = overlay.page(NOTES, after.as_deref(), found, limit);
        pages.push(page.keys);
        match page.after {
            Some(next) => after = Some(next),
            None => return pages,
        }
    }
}

#[test]
fn a_listing_is_what_the_call_would_find() {
    const COMMITTED: &[&str] = &["a", "c", "e", "g", "i"];
    let mut overlay = Overlay::default();
    assert_eq!(listed(&overlay, &[], 2), [[""; 0]]);
    assert_eq!(listed(&overlay, COMMITTED, 2), [&["a", "c"][..], &["e", "g"], &["i"]]);
    overlay.saw(NOTES, "c", None).unwrap();
    overlay.delete(NOTES, "a").unwrap();
    overlay.delete(NOTES, "g").unwrap();
    overlay.set(NOTES, "c", bytes("again")).unwrap();
    overlay.set(NOTES, "d", bytes("new")).unwrap();
    overlay.increment(NOTES, "z", None, 1).unwrap();
    overlay.set("other", "b", bytes("elsewhere")).unwrap();
    for limit in 1..10 {
        let pages = listed(&overlay, COMMITTED, limit);
        assert!(pages.iter().all(|page| page.len() <= limit), "{limit}: {pages:?}");
        assert_eq!(pages.concat(), ["c", "d", "e", "i", "z"], "{limit}");
    }
    for n in 0..50 {
        overlay.set(NOTES, &format!("b{n:02}"), bytes("x")).unwrap();
    }
    assert_eq!(listed(&overlay, COMMITTED, 7).concat().len(), 55);
}

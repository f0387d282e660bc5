use super::*;

const ROOM: Room = Room { other_bytes: 100, storage_bytes_max: 200 };

fn change(key: &str, operation: Operation, seen: Option<Option<&str>>) -> Change {
    let seen = seen.map(|value| Seen::of(value.map(str::as_bytes)));
    Change { namespace: "n".into(), key: key.into(), operation, seen }
}

fn set(key: &str, value: &str) -> Change {
    change(key, Operation::Set(Bytes::from(value.to_owned())), None)
}

fn store<'c>(entries: &[(&'c str, &str)]) -> Store<'c> {
    let mut store = Store { present: BTreeMap::new(), written: BTreeMap::new(), sums: Sums::default() };
    for (key, value) in entries {
        let Seen::Value(hash) = Seen::of(Some(value.as_bytes())) else { unreachable!() };
        let number = (value.len() <= NUMBER_DIGITS_MAX).then(|| value.as_bytes().to_vec());
        let content = Content::Stored { bytes: length(value.as_bytes()), hash, number };
        store.sums.bytes += content.bytes(("n", key));
        store.sums.entries += 1;
        store.present.insert(("n", key), content);
    }
    store
}

#[track_caller]
fn refused(entries: &[(&str, &str)], changes: &[Change], code: &str) {
    let mut store = store(entries);
    let before = store.sums;
    // Whatever stands before and behind the one at fault is not applied either.
    let all: Vec<Change> = [vec![set("first", "1")], changes.to_vec(), vec![set("last", "1")]].concat();
    let applied = store.apply(&all, ROOM);
    assert_eq!(applied.code(), Some(code), "{applied}");
    assert!(store.written.is_empty() && store.sums == before);
}

#[test]
fn a_call_that_saw_something_else_changes_nothing() {
    let a = Operation::Set(Bytes::from_static(b"new"));
    for (entries, saw) in
        [(&[("k", "two")][..], Some("one")), (&[("k", "two")], None), (&[], Some("one")), (&[("k", "")], None)]
    {
        refused(entries, &[change("k", a.clone(), Some(saw))], "kv.conflict");
        refused(entries, &[change("k", Operation::Delete, Some(saw))], "kv.conflict");
    }
    let mut same = store(&[("k", "one")]);
    assert_eq!(same.apply(&[change("k", a.clone(), Some(Some("one")))], ROOM), Applied::Applied);
    assert_eq!(store(&[]).apply(&[change("k", a, Some(None))], ROOM), Applied::Applied);
}

#[test]
fn only_numbers_are_incremented() {
    let add = |delta| change("k", Operation::Add(delta), None);
    for value in ["", "x", "-1", "+1", " 1", "1.5", "0x1", "١", "18446744073709551616", "000000000000000000001"] {
        refused(&[("k", value)], &[add(1)], "kv.not_a_number");
    }
    refused(&[("k", "18446744073709551615")], &[add(1)], "kv.not_a_number");
    for (entries, delta, sum) in [
        (&[][..], 0, "0"),
        (&[], u64::MAX, "18446744073709551615"),
        (&[("k", "007")], 3, "10"),
        (&[("k", "18446744073709551614")], 1, "18446744073709551615"),
    ] {
        let (mut store, changes) = (store(entries), [add(delta)]);
        assert_eq!(store.apply(&changes, ROOM), Applied::Applied);
        assert_eq!(store.content(("n", "k")), &Content::New(sum.into()));
        assert_eq!(store.sums, Sums { bytes: 2 + sum.len() as i64, entries: 1 });
    }
}

#[test]
fn what_is_no_entry_is_not_stored() {
    let large = Operation::Set(Bytes::from(vec![0; VALUE_BYTES_MAX + 1]));
    for bad in [set("", "v"), set("a\0", "v"), set(&"k".repeat(513), "v"), change("k", large, None)] {
        refused(&[], &[bad], "kv.bad_entry");
    }
    let outside = Change { namespace: "n {external_user_id}".into(), ..set("k", "v") };
    refused(&[], &[outside], "kv.bad_entry");
}

#[test]
fn no_call_passes_the_quota_and_all_may_shrink() {
    let full = "v".repeat(98);
    refused(&[("k", &full)], &[set("l", "")], "kv.quota");
    let mut store = store(&[("k", &full)]);
    assert_eq!(store.sums, Sums { bytes: 100, entries: 1 });
    // Replaced by as much, by less, and moved.
    let (same, less) = ([set("k", &"w".repeat(98))], [set("k", "w"), set("l", &"w".repeat(95))]);
    assert_eq!(store.apply(&same, ROOM), Applied::Applied);
    assert_eq!(store.apply(&less, ROOM), Applied::Applied);
    assert_eq!(store.sums, Sums { bytes: 100, entries: 2 });
    // The plan became smaller.
    let small = Room { storage_bytes_max: 50, ..ROOM };
    let (grow, shrink) = ([set("m", "")], [change("l", Operation::Delete, None)]);
    assert_eq!(store.apply(&grow, small), Applied::Quota { bytes: 202, max: 50 });
    assert_eq!(store.apply(&shrink, small), Applied::Applied);
    assert_eq!(store.sums, Sums { bytes: 3, entries: 1 });

    store.sums.entries = ENTRIES_MAX;
    let wide = Room { storage_bytes_max: i64::MAX, ..ROOM };
    assert_eq!(store.apply(&grow, wide), Applied::TooManyEntries);
    assert_eq!(store.apply(&[], wide), Applied::Applied);
}

#[test]
fn siblings_apply_in_their_order() {
    let mut store = store(&[("k", "1")]);
    let add = [change("k", Operation::Add(4), None), change("gone", Operation::Delete, None)];
    let saw_old = [set("x", "x"), change("k", Operation::Delete, Some(Some("1")))];
    let saw_new = [change("k", Operation::Set("six".into()), Some(Some("5")))];
    let delete = [change("k", Operation::Delete, None)];
    let saw_none = [change("k", Operation::Add(2), Some(None))];
    for (changes, code) in [
        (&add[..], None),
        (&saw_old, Some("kv.conflict")),
        (&saw_new, None),
        (&add, Some("kv.not_a_number")),
        (&delete, None),
        (&saw_none, None),
    ] {
        assert_eq!(store.apply(changes, ROOM).code(), code);
    }
    assert_eq!(store.content(("n", "k")), &Content::New("2".into()));
    assert_eq!(store.content(("n", "x")), &Content::Absent);
    assert_eq!(store.sums, Sums { bytes: 3, entries: 1 });
}

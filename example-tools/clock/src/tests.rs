use super::*;
use belljar_tool::testing::Call;

#[test]
fn a_zone_has_its_own_wall_clock() {
    let moment = Timestamp::from_second(1_774_800_000).unwrap(); // 2026-03-29T16:00:00Z, the day clocks changed in Europe.
    let berlin = at(moment, "Europe/Berlin").unwrap();
    assert_eq!((berlin.time.as_str(), berlin.weekday.as_str()), ("2026-03-29T18:00:00+02:00", "Sunday"));
    assert_eq!((berlin.abbreviation.as_str(), berlin.daylight_saving), ("CEST", true));
    assert_eq!(at(moment, "utc").unwrap().time, "2026-03-29T16:00:00+00:00");
    assert_eq!(at(moment, "Asia/Kathmandu").unwrap().time, "2026-03-29T21:45:00+05:45");
}

#[test]
fn now_is_now() {
    let answer = now(None).unwrap();
    assert!(answer.unix_seconds > 1_700_000_000 && answer.time.ends_with("+00:00"), "{answer:?}");
}

#[test]
fn an_unknown_zone_is_said_so() {
    let answer = Call::new().call::<now>(r#"{"zone": "Mars/Olympus"}"#);
    assert!(answer.is_error);
    assert!(now(Some("Mars/Olympus".into())).unwrap_err().to_string().contains("`Mars/Olympus`"));
}

#[test]
fn days_are_counted() {
    for (from, to, days, weekdays) in [
        ("2026-02-27", "2026-02-27", 0, 0),
        ("2026-02-27", "2026-03-02", 3, 1), // Friday to Monday, over a short February.
        ("2024-02-27", "2024-03-01", 3, 3),
        ("2026-03-02", "2026-02-27", -3, -1),
        ("2026-01-01", "2027-01-01", 365, 261),
        ("2025-12-28", "2026-01-03", 6, 5),
        ("0001-01-01", "9999-12-31", 3_652_058, 2_608_614),
    ] {
        assert_eq!(days_between(from.into(), to.into()).unwrap(), Days { days, weekdays }, "{from} to {to}");
    }
    let wrong = days_between("2026-02-30".into(), "2026-03-01".into()).unwrap_err().to_string();
    assert_eq!(wrong, "`2026-02-30` is no date; write it like 2026-02-27");
}

use belljar_tool::testing::Call;
use serde_json::{Value, json};
use table::query;

const SALES: &str = "city,year,amount\nBerlin,2025,10.10\nParis,2025,20\nBerlin,2026,0.20\nParis,2026,\n";

#[track_caller]
fn ask(arguments: Value) -> Value {
    let answer = Call::new().call::<query>(&arguments.to_string());
    assert!(!answer.is_error, "{answer:?}");
    serde_json::from_str(&answer.structured.unwrap()).unwrap()
}

#[test]
fn rows_are_grouped_and_summed() {
    assert_eq!(
        ask(json!({"csv": SALES, "group_by": ["city"], "sum": ["amount"]})),
        json!({"groups": [
            {"by": {"city": "Berlin"}, "rows": 2, "sum": {"amount": "10.30"}},
            {"by": {"city": "Paris"}, "rows": 2, "sum": {"amount": "20"}},
        ]})
    );
    assert_eq!(ask(json!({"csv": SALES})), json!({"groups": [{"by": {}, "rows": 4, "sum": {}}]}));
}

#[test]
fn conditions_compare_numbers_as_numbers() {
    for (column, is, value, rows) in [
        ("amount", ">=", "10.1", 2),
        ("amount", "<", "9", 2), // An empty cell is text, and less than any.
        ("amount", "=", "20.00", 1),
        ("year", "!=", "2025", 2),
        ("city", ">", "Berlin", 2),
        ("city", "contains", "ar", 2),
    ] {
        let filter = json!([{"column": column, "is": is, "value": value}]);
        let groups = ask(json!({"csv": SALES, "filter": filter}));
        assert_eq!(groups["groups"][0]["rows"], rows, "{column} {is} {value}");
    }
    let both = json!([{"column": "city", "is": "=", "value": "Paris"}, {"column": "year", "is": "=", "value": "2026"}]);
    assert_eq!(ask(json!({"csv": SALES, "filter": both}))["groups"][0]["rows"], 1);
    let none = json!([{"column": "city", "is": "=", "value": "Rome"}]);
    assert_eq!(ask(json!({"csv": SALES, "filter": none})), json!({"groups": []}));
}

#[test]
fn an_error_says_what_is_wrong() {
    let ask = |csv: &str, sum: &str| query(csv.into(), None, None, Some(vec![sum.into()])).err().unwrap().to_string();
    assert_eq!(ask(SALES, "price"), r#"no column `price`; there are ["city", "year", "amount"]"#);
    assert_eq!(ask(SALES, "city"), "`Berlin` is no number");
    assert!(ask("a,b\n1\n", "a").contains("found record with 1 fields"));
}

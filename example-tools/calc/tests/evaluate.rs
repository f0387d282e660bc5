use belljar_tool::{Answer, testing::Call};
use calc::evaluate;

#[track_caller]
fn check(expression: &str, expected: Result<&str, &str>) {
    let value = evaluate(expression.into());
    assert_eq!(value.as_deref().map_err(String::as_str), expected, "{expression}");
}

#[test]
fn decimals_are_exact() {
    check("0.1 + 0.2", Ok("0.3"));
    check("19.99 * 3", Ok("59.97"));
    check("1.50 + 0 - 1.5", Ok("0"));
    check("0.00 * 12.5", Ok("0"));
    check("1000000000000.01 * 100", Ok("100000000000001"));
    check("1/8", Ok("0.125"));
    check("1/3", Ok("0.3333333333333333333333333333"));
    check("2 / 3", Ok("0.6666666666666666666666666667"));
}

#[test]
fn operators_bind_as_people_expect() {
    check("1 + 2 * 3", Ok("7"));
    check("(1 + 2) * 3", Ok("9"));
    check("7 - 2 - 1", Ok("4"));
    check("8 / 4 / 2", Ok("1"));
    check("2 ^ 3 ^ 2", Ok("512"));
    check("-2 ^ 2", Ok("-4"));
    check("(-2) ^ 2", Ok("4"));
    check("2 ^ -2 * 4", Ok("1"));
    check("2 * -3 + --1", Ok("-5"));
    check(" ( 19.99*3 - 5 )/4 ", Ok("13.7425"));
    check("1.5 ^ 0", Ok("1"));
}

#[test]
fn an_error_says_what_is_wrong() {
    check("", Err("expected a number of up to 28 digits at ``"));
    check("1 +", Err("expected a number of up to 28 digits at ``"));
    check("2 x 3", Err("expected an operator at `x 3`"));
    check("(1", Err("expected `)` at ``"));
    check("1.2.3", Err("expected a number of up to 28 digits at `1.2.3`"));
    check("1 / (2 - 2)", Err("division by zero"));
    check("0 ^ -1", Err("division by zero"));
    check("2 ^ 0.5", Err("a power is a whole number up to 100, not 0.5"));
    check("2 ^ 101", Err("a power is a whole number up to 100, not 101"));
    check("10 ^ 50", Err("a result needs more than 28 digits"));
    check("0.1 ^ 50", Err("a result needs more than 28 digits"));
    check("10 ^ 20 + 10 ^ -20", Err("a result needs more than 28 digits"));
    check("1 + é", Err("expected a number of up to 28 digits at `é`"));
    check(&"(".repeat(5000), Err("nested deeper than 100 levels"));
    check(&"-".repeat(5000), Err("nested deeper than 100 levels"));
}

#[test]
fn a_model_gets_text() {
    let answer = Call::new().call::<evaluate>(r#"{"expression": "6 * 7"}"#);
    assert_eq!(answer, Answer::text("42"));
}

//! Arithmetic as people write it, in decimals: `0.1 + 0.2` is `0.3`.

use belljar_tool::{tool, toolbox};
use rust_decimal::Decimal;

/// Deepest nesting of parentheses, signs and powers: each level takes some stack.
const DEPTH_MAX: usize = 100;
/// Largest power: beyond it only powers of 0 and 1 still fit into 28 digits.
const POWER_MAX: u32 = 100;

/// Evaluates an arithmetic expression in exact decimals of up to 28 digits: + - * / ^, parentheses and unary minus, for
/// example `(19.99 * 3 - 5) / 4`. Only a division is rounded; any other result that would lose digits is an error.
#[tool]
pub fn evaluate(
    /// Numbers are written like `1250.75`, without spaces or separators inside.
    expression: String,
) -> Result<String, String> {
    let mut rest = expression.trim_start();
    let value = parse(&mut rest, 1, 0)?;
    if rest.is_empty() { Ok(value.normalize().to_string()) } else { Err(format!("expected an operator at `{rest}`")) }
}

toolbox!(evaluate);

/// Reads operands and the operators that bind at least as tightly as `least` (precedence climbing).
fn parse(rest: &mut &str, least: u8, depth: usize) -> Result<Decimal, String> {
    let mut left = operand(rest, depth)?;
    while let Some(operator) = rest.chars().next() {
        let right_binds = match operator {
            '+' | '-' if least <= 1 => 2,
            '*' | '/' if least <= 2 => 3,
            '^' => 3,
            _ => break,
        };
        *rest = rest[1..].trim_start();
        left = apply(operator, left, parse(rest, right_binds, depth + 1)?.normalize())?.normalize();
    }
    Ok(left)
}

fn operand(rest: &mut &str, depth: usize) -> Result<Decimal, String> {
    if depth > DEPTH_MAX {
        return Err(format!("nested deeper than {DEPTH_MAX} levels"));
    }
    if let Some(negated) = rest.strip_prefix('-') {
        *rest = negated.trim_start();
        return Ok(-parse(rest, 3, depth + 1)?);
    }
    if let Some(inner) = rest.strip_prefix('(') {
        *rest = inner.trim_start();
        let value = parse(rest, 1, depth + 1)?;
        *rest = rest.strip_prefix(')').ok_or_else(|| format!("expected `)` at `{rest}`"))?.trim_start();
        return Ok(value);
    }
    let (number, after) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len()));
    let value = Decimal::from_str_exact(number);
    let value = value.map_err(|_| format!("expected a number of up to 28 digits at `{rest}`"))?;
    *rest = after.trim_start();
    Ok(value.normalize())
}

fn apply(operator: char, left: Decimal, right: Decimal) -> Result<Decimal, String> {
    let scales = (left.scale(), right.scale());
    let (value, exact_scale) = match operator {
        '+' => (left.checked_add(right), scales.0.max(scales.1)),
        '-' => (left.checked_sub(right), scales.0.max(scales.1)),
        '*' if left.is_zero() || right.is_zero() => (Some(Decimal::ZERO), 0),
        '*' => (left.checked_mul(right), scales.0 + scales.1),
        '/' if right.is_zero() => return Err("division by zero".into()),
        '/' => (left.checked_div(right), 0),
        _ => {
            let times = u32::try_from(right.abs()).ok().filter(|times| scales.1 == 0 && *times <= POWER_MAX);
            let times = times.ok_or_else(|| format!("a power is a whole number up to {POWER_MAX}, not {right}"))?;
            let power = (0..times).try_fold(Decimal::ONE, |power, _| apply('*', power, left).map(|p| p.normalize()))?;
            return if right.is_sign_negative() { apply('/', Decimal::ONE, power) } else { Ok(power) };
        }
    };
    value.filter(|value| value.scale() >= exact_scale).ok_or_else(|| "a result needs more than 28 digits".into())
}

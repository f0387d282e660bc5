//! Questions to a small table, given as CSV text.

use belljar_tool::{Error, Result, tool, toolbox};
use rust_decimal::Decimal;
use std::collections::BTreeMap;

/// For example `{"column": "amount", "is": ">=", "value": "100"}`. Numbers are compared as numbers.
#[derive(serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Condition {
    column: String,
    #[schemars(extend("enum" = ["=", "!=", "<", "<=", ">", ">=", "contains"]))]
    is: String,
    value: String,
}

#[derive(serde::Serialize, schemars::JsonSchema)]
pub struct Groups {
    groups: Vec<Group>,
}

#[derive(Default, serde::Serialize, schemars::JsonSchema)]
struct Group {
    by: BTreeMap<String, String>,
    rows: usize,
    #[schemars(with = "BTreeMap<String, String>")]
    sum: BTreeMap<String, Decimal>,
}

/// Filters the rows of a CSV table, groups and counts them, and adds up columns of numbers exactly.
#[tool]
pub fn query(
    /// The table; its first line names the columns.
    csv: String,
    /// Conditions that a row must all meet; none takes every row.
    filter: Option<Vec<Condition>>,
    /// Columns whose equal values form a group; without any, all rows are one group.
    group_by: Option<Vec<String>>,
    /// Columns of numbers to add up in each group; empty cells are skipped.
    sum: Option<Vec<String>>,
) -> Result<Groups> {
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(csv.as_bytes());
    let columns: Vec<_> = reader.headers()?.iter().map(str::to_owned).collect();
    let (filter, group_by) = (|| filter.iter().flatten(), || group_by.iter().flatten());
    let mut names = filter().map(|condition| &condition.column).chain(group_by()).chain(sum.iter().flatten());
    let unknown = |name| Err(Error::new(format!("no column `{name}`; there are {columns:?}")));
    names.find(|name| !columns.contains(name)).map_or(Ok(()), unknown)?;
    let mut groups = BTreeMap::<Vec<String>, Group>::new();
    for row in reader.deserialize::<BTreeMap<String, String>>().collect::<Result<Vec<_>, _>>()? {
        if filter().all(|condition| condition.holds(&row[&condition.column])) {
            let group = groups.entry(group_by().map(|name| row[name].clone()).collect()).or_default();
            group.by = group_by().map(|name| (name.clone(), row[name].clone())).collect();
            group.rows += 1;
            for name in sum.iter().flatten().filter(|name| !row[*name].is_empty()) {
                add(group.sum.entry(name.clone()).or_default(), &row[name])?;
            }
        }
    }
    Ok(Groups { groups: groups.into_values().collect() })
}

fn add(total: &mut Decimal, cell: &str) -> Result<()> {
    let number = Decimal::from_str_exact(cell).map_err(|_| Error::new(format!("`{cell}` is no number")))?;
    let exact = |sum: &Decimal| sum.scale() >= total.normalize().scale().max(number.normalize().scale());
    let sum = total.checked_add(number).filter(exact).ok_or_else(|| Error::new("a sum needs more than 28 digits"));
    sum.map(|sum| *total = sum)
}

impl Condition {
    fn holds(&self, cell: &str) -> bool {
        let numbers = Decimal::from_str_exact(cell).ok().zip(Decimal::from_str_exact(&self.value).ok());
        let order = numbers.map_or_else(|| cell.cmp(&self.value), |(cell, value)| cell.cmp(&value));
        let sign = ['<', '=', '>'][(order as i8 + 1) as usize];
        // `<=` is met by the signs that it is written with, and `!=` by the others.
        self.is.contains(sign) != (self.is == "!=") || self.is == "contains" && cell.contains(&self.value)
    }
}

toolbox!(query);

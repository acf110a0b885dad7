//! What was measured, as tables for people and as JSON, with the machine that it was measured on.

use std::fmt;
use std::fs::read_to_string;
use std::time::Duration;

use anyhow::Context;
use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use serde_json::{Map, Value, json};

/// Figures of one part: rows of numbers, each column with its unit in its name.
#[derive(Debug)]
pub struct Table {
    name: &'static str,
    columns: Vec<&'static str>,
    rows: Vec<(String, Vec<f64>)>,
    notes: Vec<String>,
}

impl Table {
    /// An empty one.
    pub fn new(name: &'static str, columns: &[&'static str]) -> Self {
        Self { name, columns: columns.to_vec(), rows: Vec::new(), notes: Vec::new() }
    }

    /// Adds a row: a number for each column.
    pub fn row(&mut self, name: impl Into<String>, numbers: impl Into<Vec<f64>>) {
        self.rows.push((name.into(), numbers.into()));
    }

    /// Adds what a reader of the figures has to know.
    pub fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    fn json(&self) -> Value {
        let row = |(name, numbers): &(String, Vec<f64>)| {
            let mut row: Map<String, Value> = self
                .columns
                .iter()
                .zip(numbers)
                .map(|(column, number)| ((*column).to_owned(), json!(number)))
                .collect();
            row.insert("what".to_owned(), json!(name));
            Value::Object(row)
        };
        json!({ "rows": self.rows.iter().map(row).collect::<Vec<_>>(), "notes": self.notes })
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let first = self.rows.iter().map(|(name, _)| name.chars().count()).chain([self.name.len()]).max().unwrap_or(0);
        write!(f, "{:<first$}", self.name)?;
        self.columns.iter().try_for_each(|column| write!(f, "  {column:>9}"))?;
        writeln!(f)?;
        for (name, numbers) in &self.rows {
            write!(f, "{name:<first$}")?;
            for (column, number) in self.columns.iter().zip(numbers) {
                write!(f, "  {:>width$}", shown(*number), width = column.chars().count().max(9))?;
            }
            writeln!(f)?;
        }
        self.notes.iter().try_for_each(|note| writeln!(f, "  {note}"))
    }
}

/// With three digits or a little more, and those before the point all.
fn shown(number: f64) -> String {
    let decimals = match number.abs() {
        at_least if at_least >= 100.0 || number.fract() == 0.0 => 0,
        at_least if at_least >= 10.0 => 1,
        at_least if at_least >= 1.0 => 2,
        _ => 3,
    };
    format!("{number:.decimals$}")
}

/// The whole.
pub struct Report {
    machine: Machine,
    tables: Vec<Table>,
}

#[derive(Serialize)]
struct Machine {
    cores: usize,
    processor: String,
    /// Processes that ran or wanted to, on average over a minute: before.
    load_before: f64,
    /// After.
    load_after: f64,
}

impl Report {
    /// Notes the machine's state before anything is measured.
    pub fn begin() -> anyhow::Result<Self> {
        let cores = std::thread::available_parallelism()?.get();
        let described = read_to_string("/proc/cpuinfo")?;
        let model = described.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let processor = model.map_or("unknown", |(_, model)| model).to_owned();
        let load = load()?;
        Ok(Self { machine: Machine { cores, processor, load_before: load, load_after: load }, tables: Vec::new() })
    }

    /// Notes its state after.
    pub fn end(&mut self, tables: Vec<Table>) -> anyhow::Result<()> {
        self.tables = tables;
        self.machine.load_after = load()?;
        Ok(())
    }

    /// The same for programs.
    pub fn json(&self) -> anyhow::Result<String> {
        let parts: Map<String, Value> = self.tables.iter().map(|table| (table.name.to_owned(), table.json())).collect();
        Ok(serde_json::to_string_pretty(&json!({ "machine": self.machine, "parts": parts }))?)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Machine { cores, processor, load_before, load_after } = &self.machine;
        writeln!(f, "{cores} cores ({processor}), load average {load_before} before, {load_after} after")?;
        self.tables.iter().try_for_each(|table| write!(f, "\n{table}"))
    }
}

fn load() -> anyhow::Result<f64> {
    let load = read_to_string("/proc/loadavg")?;
    Ok(load.split(' ').next().context("/proc/loadavg is empty")?.parse()?)
}

/// Durations.
pub struct Times(Histogram<u64>);

impl Times {
    /// None so far. From 1 µs to a minute, to three digits.
    pub fn new() -> anyhow::Result<Self> {
        Ok(Self(Histogram::new_with_bounds(1, 60_000_000, 3)?))
    }

    /// Adds one.
    pub fn add(&mut self, time: Duration) {
        self.0.saturating_record(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
    }

    /// Adds all of another.
    pub fn add_all(&mut self, other: &Self) -> anyhow::Result<()> {
        Ok(self.0.add(&other.0)?)
    }

    /// How many.
    pub fn count(&self) -> f64 {
        number(self.0.len())
    }

    /// The time that this part of them took at most, ms.
    pub fn ms(&self, quantile: f64) -> f64 {
        number(self.0.value_at_quantile(quantile)) / 1e3
    }
}

/// A count as a number to reckon with.
#[expect(clippy::cast_precision_loss, reason = "shown to people")]
pub fn number(count: u64) -> f64 {
    count as f64
}

/// The middle one, or the upper of two; 0 of none.
pub fn median(numbers: &[f64]) -> f64 {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

/// Shows how far a long work has come, on a terminal.
pub fn progress(what: &'static str, whole: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {eta}");
    ProgressBar::new(whole).with_message(what).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_each_number_under_its_column() {
        let mut table = Table::new("part", &["p50 ms", "records/s"]);
        table.row("one", [0.1234, 12_345.6]);
        table.note("beside it");
        assert_eq!(table.to_string(), "part     p50 ms  records/s\none       0.123      12346\n  beside it\n");
        assert_eq!(table.json()["rows"][0]["records/s"], json!(12_345.6));
    }

    #[test]
    fn quantiles_are_of_what_was_added() {
        let mut times = Times::new().unwrap();
        (1..=100).for_each(|ms| times.add(Duration::from_millis(ms)));
        assert!((times.ms(0.5) - 50.0).abs() < 0.1 && (times.ms(0.99) - 99.0).abs() < 0.1, "{}", times.ms(0.5));
        assert_eq!((times.count(), median(&[3.0, 1.0, 2.0])), (100.0, 2.0));
    }
}

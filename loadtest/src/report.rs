//! What came of a run: as a table, as JSON, and as a page with plots. Owns their forms.

use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result};
use checker::Verdict;
use hdrhistogram::Histogram;
use serde::Serialize;

use crate::book::{Counts, Pages, Second, ms};
use crate::run::Options;

/// Breaches that are printed; the JSON has a thousand.
const PRINTED_MAX: usize = 100;

/// A latency, ms.
#[derive(Clone, Debug, Serialize)]
pub struct Quantiles {
    /// How many were measured.
    pub count: u64,
    /// Half were faster.
    pub p50: f64,
    /// Nine in ten were faster.
    pub p90: f64,
    /// 99 in a hundred were faster.
    pub p99: f64,
    /// 999 in a thousand were faster.
    pub p999: f64,
    /// The slowest.
    pub max: f64,
}

impl Quantiles {
    fn of(histogram: &Histogram<u64>) -> Self {
        let at = |quantile| ms(histogram.value_at_quantile(quantile));
        Self {
            count: histogram.len(),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: ms(histogram.max()),
        }
    }
}

/// How long a storm took.
#[derive(Clone, Debug, Serialize)]
pub struct Storm {
    /// Until all sockets were live, s.
    pub live_s: f64,
    /// Until everyone had everything, s.
    pub complete_s: f64,
}

/// What was run.
#[derive(Clone, Debug, Serialize)]
struct Config {
    target: String,
    scenario: &'static str,
    users: u32,
    rooms: usize,
    rate_per_s: f64,
    duration_s: f64,
    verify: bool,
}

/// Sends and deliveries a second while the load ran.
#[derive(Clone, Debug, Serialize)]
struct Rates {
    accepted_per_s: f64,
    delivered_per_s: f64,
}

/// The whole.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    config: Config,
    load_s: f64,
    /// Everything had its outcome and arrived within the grace time.
    settled: bool,
    counts: Counts,
    /// Sends that had no final outcome at the end.
    unknown: u64,
    rates: Rates,
    lag_ms: Quantiles,
    ack_ms: Quantiles,
    delivery_ms: Quantiles,
    connect_ms: Quantiles,
    storm: Option<Storm>,
    /// `null` without --verify.
    pub verdict: Option<Verdict>,
    seconds: Vec<Second>,
    #[serde(skip)]
    bars: Vec<(&'static str, Vec<(f64, u64)>)>,
}

impl Report {
    /// Gathers it.
    pub fn new(
        options: &Options,
        rooms: usize,
        load_s: f64,
        settled: bool,
        book: &Pages,
        storm: Option<Storm>,
        verdict: Option<Verdict>,
    ) -> Self {
        let counts = book.counts.clone();
        #[expect(clippy::cast_precision_loss, reason = "shown to people")]
        let per_s = |count: u64| if load_s > 0.0 { count as f64 / load_s } else { 0.0 };
        let bars = |histogram: &Histogram<u64>| {
            histogram
                .iter_log(100, 1.5)
                .map(|step| (ms(step.value_iterated_to()), step.count_since_last_iteration()))
                .collect()
        };
        Self {
            config: Config {
                target: options.target.clone(),
                scenario: options.scenario.name(),
                users: options.users,
                rooms,
                rate_per_s: options.rate,
                duration_s: options.duration.as_secs_f64(),
                verify: options.verify,
            },
            load_s,
            settled,
            unknown: book.outstanding,
            rates: Rates { accepted_per_s: per_s(counts.accepted), delivered_per_s: per_s(counts.delivered) },
            lag_ms: Quantiles::of(&book.lag),
            ack_ms: Quantiles::of(&book.ack.all),
            delivery_ms: Quantiles::of(&book.delivery.all),
            connect_ms: Quantiles::of(&book.connect),
            bars: vec![("accepted", bars(&book.ack.all)), ("delivered", bars(&book.delivery.all))],
            counts,
            storm,
            verdict,
            seconds: book.seconds.clone(),
        }
    }

    /// Whether every promise held that was checked.
    pub fn is_clean(&self) -> bool {
        self.verdict.as_ref().is_none_or(Verdict::is_clean)
    }

    /// The summary for people.
    pub fn table(&self) -> String {
        let mut out = String::new();
        // Writing into a String can't fail.
        let _ = self.write_table(&mut out);
        out
    }

    fn write_table(&self, out: &mut String) -> std::fmt::Result {
        let (config, counts) = (&self.config, &self.counts);
        writeln!(
            out,
            "{}: {} users, {} rooms, {} sends/s for {} s at {}",
            config.scenario, config.users, config.rooms, config.rate_per_s, config.duration_s, config.target
        )?;
        let rejected: u64 = counts.rejected.values().sum();
        writeln!(
            out,
            "sent {}  accepted {} ({:.1}/s)  rejected {rejected} {:?}  unknown {}  overflowed {}",
            counts.sent, counts.accepted, self.rates.accepted_per_s, counts.rejected, self.unknown, counts.overflowed
        )?;
        writeln!(
            out,
            "delivered {} ({:.1}/s)  events {}  duplicates flagged {}  retried {}  gaps {}",
            counts.delivered, self.rates.delivered_per_s, counts.events, counts.duplicates, counts.retried, counts.gaps
        )?;
        writeln!(
            out,
            "reconnects {} (of one client {} at most)  in vain {}  closes {:?}  errors {}  corrupt {}",
            counts.reconnects, counts.reconnects_max, counts.in_vain, counts.closes, counts.errors, counts.corrupt
        )?;
        writeln!(out, "{:20}{:>10}{:>10}{:>10}{:>10}{:>10}{:>10}", "ms", "count", "p50", "p90", "p99", "p99.9", "max")?;
        let rows = [
            ("due to sent", &self.lag_ms),
            ("due to accepted", &self.ack_ms),
            ("due to delivered", &self.delivery_ms),
            ("connect to live", &self.connect_ms),
        ];
        for (name, q) in rows {
            writeln!(
                out,
                "{name:20}{:>10}{:>10.2}{:>10.2}{:>10.2}{:>10.2}{:>10.2}",
                q.count, q.p50, q.p90, q.p99, q.p999, q.max
            )?;
        }
        if let Some(storm) = &self.storm {
            writeln!(out, "storm: all live after {:.2} s, all complete after {:.2} s", storm.live_s, storm.complete_s)?;
        }
        if !self.settled {
            writeln!(out, "not settled: some outcomes or deliveries were still owed after the grace time")?;
        }
        match &self.verdict {
            None => writeln!(out, "not verified"),
            Some(verdict) if verdict.is_clean() => writeln!(
                out,
                "verified: every promise held (sends of unknown outcome: {} stored, {} not)",
                verdict.unknown_stored, verdict.unknown_absent
            ),
            Some(verdict) => {
                writeln!(out, "BROKEN: {} promises", verdict.total())?;
                for (kind, count) in &verdict.counts {
                    writeln!(out, "  {kind}: {count}")?;
                }
                for breach in verdict.breaches.iter().take(PRINTED_MAX) {
                    writeln!(out, "breach: {breach}")?;
                }
                let more = verdict.total().saturating_sub(PRINTED_MAX as u64);
                if more > 0 { writeln!(out, "and {more} more") } else { Ok(()) }
            }
        }
    }

    /// Writes the results for machines.
    pub fn write_json(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)?;
        std::fs::write(path, text + "\n").with_context(|| format!("can't write {}", path.display()))
    }

    /// Writes the page with plots.
    pub fn write_page(&self, dir: &Path) -> Result<()> {
        std::fs::create_dir_all(dir).with_context(|| format!("can't create {}", dir.display()))?;
        let path = dir.join("index.html");
        std::fs::write(&path, self.page()).with_context(|| format!("can't write {}", path.display()))
    }

    fn page(&self) -> String {
        let over_time = |title: &str, of: fn(&Second) -> [f64; 2]| {
            let points = |index: usize| self.seconds.iter().map(|second| (second.at_s, of(second)[index])).collect();
            plot(title, "s", &[("p50", points(0)), ("p99", points(1))])
        };
        #[expect(clippy::cast_precision_loss, reason = "a plot")]
        let rate = |of: fn(&Second) -> u64| self.seconds.iter().map(|s| (s.at_s, of(s) as f64)).collect();
        let mut plots = over_time("send to accepted, ms", |second| second.ack_ms);
        plots += &over_time("send to delivered, ms", |second| second.delivery_ms);
        plots += &plot("accepted a second", "s", &[("accepted", rate(|second| second.accepted))]);
        plots += &plot("delivered a second", "s", &[("delivered", rate(|second| second.delivered))]);
        for (name, bars) in &self.bars {
            plots += &bar_plot(&format!("send to {name}: how many took how long, ms"), bars);
        }
        let (table, scenario) = (escape(&self.table()), self.config.scenario);
        format!(
            "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>loadtest {scenario}</title>\
             <style>body{{font:14px sans-serif;margin:2em;max-width:60em}}pre{{overflow-x:auto}}\
             svg{{display:block;margin:1em 0}}text{{font:11px sans-serif}}</style>\
             <h1>loadtest: {scenario}</h1><pre>{table}</pre>{plots}</html>\n"
        )
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 200.0;
const MARGIN: f64 = 48.0;
const COLOURS: [&str; 2] = ["#1f6feb", "#d1242f"];

/// Frame, title and the largest values of both axes.
fn canvas(title: &str, x_max: &str, y_max: &str, inside: &str) -> String {
    let (width, height) = (WIDTH + 2.0 * MARGIN, HEIGHT + 2.0 * MARGIN);
    let (title, bottom) = (escape(title), HEIGHT + MARGIN);
    format!(
        "<svg role=\"img\" aria-label=\"{title}\" width=\"{width}\" height=\"{height}\">\
         <text x=\"{MARGIN}\" y=\"20\" style=\"font-weight:bold\">{title}</text>\
         <path d=\"M{MARGIN} {MARGIN}V{bottom}h{WIDTH}\" fill=\"none\" stroke=\"#888\"/>\
         <text x=\"{label}\" y=\"{MARGIN}\" text-anchor=\"end\">{y_max}</text>\
         <text x=\"{label}\" y=\"{bottom}\" text-anchor=\"end\">0</text>\
         <text x=\"{right}\" y=\"{below}\" text-anchor=\"end\">{x_max}</text>{inside}</svg>",
        label = MARGIN - 4.0,
        right = MARGIN + WIDTH,
        below = bottom + 16.0,
    )
}

type Points = Vec<(f64, f64)>;

/// Lines over a linear x.
fn plot(title: &str, unit: &str, lines: &[(&str, Points)]) -> String {
    let largest = |of: fn(&(f64, f64)) -> f64| {
        lines.iter().flat_map(|(_, points)| points.iter().map(of)).fold(f64::MIN_POSITIVE, f64::max)
    };
    let (x_max, y_max) = (largest(|point| point.0), largest(|point| point.1));
    let mut inside = String::new();
    for (number, ((name, points), colour)) in lines.iter().zip(COLOURS).enumerate() {
        let at = |(x, y): &(f64, f64)| {
            format!("{:.1},{:.1}", MARGIN + x / x_max * WIDTH, MARGIN + HEIGHT - y / y_max * HEIGHT)
        };
        let points: Vec<String> = points.iter().map(at).collect();
        let x = MARGIN + WIDTH - 60.0 * f64::from(u32::try_from(number).unwrap_or(0) + 1);
        let _ = write!(
            inside,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\"/>\
             <text x=\"{x}\" y=\"20\" fill=\"{colour}\">{name}</text>",
            points.join(" ")
        );
    }
    canvas(title, &format!("{x_max:.0} {unit}"), &format!("{y_max:.1}"), &inside)
}

/// Bars over a logarithmic x: each is labelled with the end of its range.
fn bar_plot(title: &str, bars: &[(f64, u64)]) -> String {
    let highest = bars.iter().map(|(_, count)| *count).max().unwrap_or(0).max(1);
    let filled = |(_, count): &(f64, u64)| *count > 0;
    let from = bars.iter().position(filled).unwrap_or(0);
    let to = bars.iter().rposition(filled).map_or(0, |last| last + 1);
    let bars = bars.get(from..to).unwrap_or_default();
    #[expect(clippy::cast_precision_loss, reason = "a plot")]
    let (width, height) = (WIDTH / bars.len().max(1) as f64, |count: u64| count as f64 / highest as f64 * HEIGHT);
    let mut inside = String::new();
    for (number, (value, count)) in bars.iter().enumerate() {
        let x = MARGIN + width * f64::from(u32::try_from(number).unwrap_or(0));
        let (high, wide, middle) = (height(*count), width * 0.9, x + width / 2.0);
        let (y, below) = (MARGIN + HEIGHT - high, MARGIN + HEIGHT + 28.0);
        let _ = write!(
            inside,
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{wide:.1}\" height=\"{high:.1}\" fill=\"{}\"/>\
             <text x=\"{middle:.1}\" y=\"{below}\" text-anchor=\"middle\">{value:.3}</text>",
            COLOURS[0]
        );
    }
    canvas(title, "", &highest.to_string(), &inside)
}

//! What came of a run: as a table, as JSON, and as a page with plots. Owns their forms.

use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result};
use checker::Verdict;
use hdrhistogram::Histogram;
use serde::Serialize;

use crate::book::{Counts, Pages, Second, ms};
use crate::clock::Timeline;
use crate::marks::Marks;
use crate::run::Options;
use crate::waits::{Wait, Waits};

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

/// What is known at the end beside the book.
pub struct Outcome {
    /// How many rooms there were.
    pub rooms: usize,
    /// When the load began, on the timeline.
    pub began_us: u64,
    /// How long it took, s.
    pub load_s: f64,
    /// Everything had its outcome and arrived within the grace time.
    pub settled: bool,
    /// How a storm went.
    pub storm: Option<Storm>,
    /// With --verify.
    pub verdict: Option<Verdict>,
    /// What was done to the server.
    pub marks: Marks,
}

/// The longest waits of one stretch of time.
#[derive(Clone, Debug, Serialize)]
struct Longest {
    /// Sends that were due in it.
    sends: u64,
    /// Of these: accepted, whenever that was.
    accepted: u64,
    /// Time in which a send was owed its outcome, and none of anybody was accepted, ms.
    no_accept_ms: f64,
    /// Due → accepted, ms.
    ack_ms: f64,
    /// Due → message at another member, ms.
    delivery_ms: f64,
}

impl Longest {
    fn of(waits: &Waits) -> Self {
        let ms = |wait: Wait| ms(wait.micros());
        Self {
            sends: waits.sends,
            accepted: waits.accepted,
            no_accept_ms: ms(waits.no_accept),
            ack_ms: ms(waits.ack),
            delivery_ms: ms(waits.delivery),
        }
    }

    /// As they are named above.
    fn waits_ms(&self) -> [f64; 3] {
        [self.no_accept_ms, self.ack_ms, self.delivery_ms]
    }
}

/// Names of the longest waits.
const WAITS: [&str; 3] = ["without accept", "due to accepted", "due to delivered"];

/// A mark, and what came until the next one or the end.
#[derive(Clone, Debug, Serialize)]
struct Marked {
    unix_ms: u64,
    /// Since the load began; below 0: before it.
    at_s: f64,
    what: String,
    #[serde(flatten)]
    longest: Longest,
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
    /// Of the whole run.
    longest: Longest,
    /// Since the load began: when the longest time without an accept did.
    no_accept_at_s: f64,
    /// `null` without a mark.
    before_marks: Option<Longest>,
    /// In the order of their times.
    marks: Vec<Marked>,
    /// Lines that are no mark, or why there are no lines.
    wrong_marks: Vec<String>,
    storm: Option<Storm>,
    /// `null` without --verify.
    pub verdict: Option<Verdict>,
    seconds: Vec<Second>,
    #[serde(skip)]
    bars: Vec<(&'static str, Vec<(f64, u64)>)>,
}

impl Report {
    /// Gathers it.
    pub fn new(options: &Options, timeline: Timeline, book: &Pages, outcome: Outcome) -> Self {
        let Outcome { rooms, began_us, load_s, settled, storm, verdict, marks } = outcome;
        let counts = book.counts.clone();
        let whole = book.waits.whole();
        let at: Vec<i64> = marks.marks.iter().map(|mark| timeline.at_unix_ms(mark.unix_ms)).collect();
        let stretches = book.waits.after(&at.iter().map(|at| u64::try_from(*at).unwrap_or(0)).collect::<Vec<_>>());
        let mut stretches = stretches.iter().map(Longest::of);
        let before_marks = stretches.next().filter(|_| !at.is_empty());
        #[expect(clippy::cast_precision_loss, reason = "shown to people")]
        let since_began = |at_us: i64| at_us.saturating_sub_unsigned(began_us) as f64 / 1e6;
        let marked = marks.marks.into_iter().zip(&at).zip(stretches);
        let marked = marked.map(|((mark, at), longest)| Marked {
            unix_ms: mark.unix_ms,
            at_s: since_began(*at),
            what: mark.what,
            longest,
        });
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
            unknown: book.waits.owed(),
            rates: Rates { accepted_per_s: per_s(counts.accepted), delivered_per_s: per_s(counts.delivered) },
            lag_ms: Quantiles::of(&book.lag),
            ack_ms: Quantiles::of(&book.ack.all),
            delivery_ms: Quantiles::of(&book.delivery.all),
            connect_ms: Quantiles::of(&book.connect),
            bars: vec![("accepted", bars(&book.ack.all)), ("delivered", bars(&book.delivery.all))],
            counts,
            longest: Longest::of(&whole),
            no_accept_at_s: since_began(i64::try_from(whole.no_accept.from_us).unwrap_or(i64::MAX)),
            before_marks,
            marks: marked.collect(),
            wrong_marks: marks.wrong,
            storm,
            verdict,
            seconds: book.seconds.clone(),
        }
    }

    /// Whether every promise held that was checked.
    pub fn is_clean(&self) -> bool {
        self.verdict.as_ref().is_none_or(Verdict::is_clean)
    }

    /// Lines that are no mark, or why there are no lines.
    pub fn wrong_marks(&self) -> &[String] {
        &self.wrong_marks
    }

    /// The summary for people.
    pub fn table(&self) -> String {
        written(|out| {
            self.write_summary(out)?;
            self.write_marks(out)?;
            self.write_verdict(out)
        })
    }

    fn write_summary(&self, out: &mut String) -> std::fmt::Result {
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
        if self.longest.sends > 0 {
            let (no_accept, at) = (self.longest.no_accept_ms, self.no_accept_at_s);
            writeln!(out, "longest time without an accept: {no_accept:.2} ms, {at:.1} s after the load began")?;
        }
        if let Some(storm) = &self.storm {
            writeln!(out, "storm: all live after {:.2} s, all complete after {:.2} s", storm.live_s, storm.complete_s)?;
        }
        if !self.settled {
            writeln!(out, "not settled: some outcomes or deliveries were still owed after the grace time")?;
        }
        Ok(())
    }

    /// What each stretch of time came after, when that was, and what it had.
    fn stretches<'a>(&'a self, before: &'a Longest) -> impl Iterator<Item = (&'a str, String, &'a Longest)> {
        let marks = self.marks.iter().map(|mark| (mark.what.as_str(), format!("{:.1}", mark.at_s), &mark.longest));
        std::iter::once(("(before any mark)", String::new(), before)).chain(marks)
    }

    fn write_marks(&self, out: &mut String) -> std::fmt::Result {
        if let Some(before) = &self.before_marks {
            let wide = self.marks.iter().map(|mark| mark.what.chars().count()).max().unwrap_or(0).clamp(20, 60);
            let [no_accept, ack, delivery] = WAITS;
            writeln!(
                out,
                "{:wide$}{:>9}{:>9}{:>10}{no_accept:>18}{ack:>18}{delivery:>18}",
                "longest, ms, after", "at s", "sends", "accepted"
            )?;
            for (what, at, longest) in self.stretches(before) {
                let [no_accept, ack, delivery] = longest.waits_ms();
                let (sends, accepted) = (longest.sends, longest.accepted);
                writeln!(
                    out,
                    "{what:wide$}{at:>9}{sends:>9}{accepted:>10}{no_accept:>18.2}{ack:>18.2}{delivery:>18.2}"
                )?;
            }
        }
        self.wrong_marks.iter().try_for_each(|wrong| writeln!(out, "marks: {wrong}"))
    }

    fn write_verdict(&self, out: &mut String) -> std::fmt::Result {
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
        let marks: Vec<f64> = self.marks.iter().map(|mark| mark.at_s).collect();
        let over_time = |title: &str, of: fn(&Second) -> [f64; 2]| {
            let points = |index: usize| self.seconds.iter().map(|second| (second.at_s, of(second)[index])).collect();
            plot(title, "s", &[("p50", points(0)), ("p99", points(1))], &marks)
        };
        #[expect(clippy::cast_precision_loss, reason = "a plot")]
        let rate = |of: fn(&Second) -> u64| self.seconds.iter().map(|s| (s.at_s, of(s) as f64)).collect();
        let mut plots = over_time("send to accepted, ms", |second| second.ack_ms);
        plots += &over_time("send to delivered, ms", |second| second.delivery_ms);
        plots += &plot("accepted a second", "s", &[("accepted", rate(|second| second.accepted))], &marks);
        plots += &plot("delivered a second", "s", &[("delivered", rate(|second| second.delivered))], &marks);
        for (name, bars) in &self.bars {
            plots += &bar_plot(&format!("send to {name}: how many took how long, ms"), bars);
        }
        let summary = written(|out| {
            self.write_summary(out)?;
            self.wrong_marks.iter().try_for_each(|wrong| writeln!(out, "marks: {wrong}"))?;
            self.write_verdict(out)
        });
        let (summary, marks, scenario) = (escape(&summary), self.marks_table(), self.config.scenario);
        format!(
            "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>loadtest {scenario}</title>\
             <meta name=\"viewport\" content=\"width=device-width\">\
             <style>{STYLE}</style><h1>loadtest: {scenario}</h1><pre>{summary}</pre>{marks}{plots}</html>\n"
        )
    }

    fn marks_table(&self) -> String {
        let Some(before) = &self.before_marks else { return String::new() };
        let [no_accept, ack, delivery] = WAITS;
        written(|out| {
            write!(
                out,
                "<h2>Longest waits after each mark</h2><div><table><thead><tr><th><th>mark<th>at, s<th>sends<th>accepted\
                 <th>{no_accept}, ms<th>{ack}, ms<th>{delivery}, ms<tbody>"
            )?;
            for (number, (what, at, longest)) in self.stretches(before).enumerate() {
                let number = if number == 0 { String::new() } else { number.to_string() };
                write!(
                    out,
                    "<tr><td>{number}<td>{}<td>{at}<td>{}<td>{}",
                    escape(what),
                    longest.sends,
                    longest.accepted
                )?;
                longest.waits_ms().iter().try_for_each(|wait| write!(out, "<td>{wait:.2}"))?;
            }
            write!(out, "</table></div>")
        })
    }
}

/// What is written.
fn written(write: impl FnOnce(&mut String) -> std::fmt::Result) -> String {
    let mut out = String::new();
    // Writing into a String can't fail.
    let _ = write(&mut out);
    out
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// On a narrow screen tables and plots are scrolled, not shrunk: their text has to be read.
const STYLE: &str = "body{font:14px sans-serif;margin:2em auto;max-width:60em;padding:0 1em}\
    pre,div{overflow-x:auto}svg{display:block;margin:1em 0}text{font:11px sans-serif}\
    table{border-collapse:collapse;font-variant-numeric:tabular-nums}\
    th,td{padding:.3em .6em;text-align:right;border-bottom:1px solid #ddd}\
    th:nth-child(2),td:nth-child(2){text-align:left;white-space:nowrap}";

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 200.0;
const MARGIN: f64 = 48.0;
const COLOURS: [&str; 2] = ["#1f6feb", "#d1242f"];

/// Frame, title and the largest values of both axes.
fn canvas(title: &str, x_max: &str, y_max: &str, inside: &str) -> String {
    let (width, height) = (WIDTH + 2.0 * MARGIN, HEIGHT + 2.0 * MARGIN);
    let (title, bottom) = (escape(title), HEIGHT + MARGIN);
    format!(
        "<div><svg role=\"img\" aria-label=\"{title}\" width=\"{width}\" height=\"{height}\">\
         <text x=\"{MARGIN}\" y=\"20\" style=\"font-weight:bold\">{title}</text>\
         <path d=\"M{MARGIN} {MARGIN}V{bottom}h{WIDTH}\" fill=\"none\" stroke=\"#888\"/>\
         <text x=\"{label}\" y=\"{MARGIN}\" text-anchor=\"end\">{y_max}</text>\
         <text x=\"{label}\" y=\"{bottom}\" text-anchor=\"end\">0</text>\
         <text x=\"{right}\" y=\"{below}\" text-anchor=\"end\">{x_max}</text>{inside}</svg></div>",
        label = MARGIN - 4.0,
        right = MARGIN + WIDTH,
        below = bottom + 16.0,
    )
}

type Points = Vec<(f64, f64)>;

/// Lines over a linear x, with the numbers of the marks at theirs.
fn plot(title: &str, unit: &str, lines: &[(&str, Points)], marks: &[f64]) -> String {
    let largest = |of: fn(&(f64, f64)) -> f64| {
        lines.iter().flat_map(|(_, points)| points.iter().map(of)).fold(f64::MIN_POSITIVE, f64::max)
    };
    let (x_max, y_max) = (largest(|point| point.0), largest(|point| point.1));
    let mut inside = String::new();
    for (number, mark) in (1..).zip(marks).filter(|(_, mark)| (0.0..=x_max).contains(*mark)) {
        let (x, bottom, above) = (MARGIN + mark / x_max * WIDTH, MARGIN + HEIGHT, MARGIN - 4.0);
        let _ = write!(
            inside,
            "<path class=\"mark\" d=\"M{x:.1} {MARGIN}V{bottom}\" stroke=\"#888\" stroke-dasharray=\"4 3\"/>\
             <text x=\"{x:.1}\" y=\"{above}\" text-anchor=\"middle\">{number}</text>"
        );
    }
    for (number, ((name, points), colour)) in lines.iter().zip(COLOURS).enumerate() {
        let at = |(x, y): &(f64, f64)| {
            format!("{:.1},{:.1}", MARGIN + x / x_max * WIDTH, MARGIN + HEIGHT - y / y_max * HEIGHT)
        };
        let points: Vec<String> = points.iter().map(at).collect();
        let x = MARGIN + 180.0 + 60.0 * f64::from(u32::try_from(number).unwrap_or(0));
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
        let digits = if *value < 10.0 { 3 } else { usize::from(*value < 1000.0) };
        let _ = write!(
            inside,
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{wide:.1}\" height=\"{high:.1}\" fill=\"{}\"/>\
             <text x=\"{middle:.1}\" y=\"{below}\" text-anchor=\"middle\">{value:.digits$}</text>",
            COLOURS[0]
        );
    }
    canvas(title, "", &highest.to_string(), &inside)
}

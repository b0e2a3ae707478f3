//! Metrics as text: OpenMetrics 1.0, and the classic Prometheus format 0.0.4 made from it.
//!
//! Knows nothing of what is measured; that is `exporter.rs`. The encoder speaks OpenMetrics
//! alone, where a counter's family has the name without `_total`; the classic format wants the
//! suffix there, knows no end mark, and is what scrapers without an opinion get.

use std::fmt::Error;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::desk::Desk;
use super::exporter;
use crate::telemetry::histogram::{BOUNDS_US, Summed};

/// How a page of metrics may be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exposition {
    Classic,
    OpenMetrics,
}

impl Exposition {
    /// What an `Accept` header asks for.
    pub fn accepted(accept: &str) -> Self {
        match accept.contains("application/openmetrics-text") {
            true => Exposition::OpenMetrics,
            false => Exposition::Classic,
        }
    }

    pub fn content_type(self) -> &'static str {
        match self {
            Exposition::Classic => "text/plain; version=0.0.4; charset=utf-8",
            Exposition::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    /// The whole page, as of now.
    pub fn write(self, desk: &Arc<Desk>) -> Result<String, Error> {
        let mut registry = Registry::with_prefix("tidegate");
        registry.register_collector(Box::new(Scrape(Arc::clone(desk))));
        let mut page = String::new();
        text::encode(&mut page, &registry)?;
        Ok(match self {
            Exposition::Classic => classic(&page),
            Exposition::OpenMetrics => page,
        })
    }
}

#[derive(Debug)]
struct Scrape(Arc<Desk>);

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        exporter::export(&self.0, &mut Page(encoder))
    }
}

/// The page under the pen.
pub struct Page<'a>(DescriptorEncoder<'a>);

impl Page<'_> {
    pub fn gauge(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = Sample>,
    ) -> Result<(), Error> {
        self.family(name, help, MetricType::Gauge, samples)
    }

    /// `name` is without the `_total` that its series get.
    pub fn counter(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = Sample>,
    ) -> Result<(), Error> {
        self.family(name, help, MetricType::Counter, samples)
    }

    pub fn histogram(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = Sample>,
    ) -> Result<(), Error> {
        self.family(name, help, MetricType::Histogram, samples)
    }

    fn family(
        &mut self,
        name: &str,
        help: &str,
        kind: MetricType,
        samples: impl IntoIterator<Item = Sample>,
    ) -> Result<(), Error> {
        let mut encoder = self.0.encode_descriptor(name, help, None, kind)?;
        for sample in samples {
            if sample.labels.is_empty() {
                sample.value.encode_into(&mut encoder)?;
            } else {
                sample.value.encode_into(&mut encoder.encode_family(&sample.labels)?)?;
            }
        }
        Ok(())
    }
}

/// One series, or the series of one histogram.
pub struct Sample {
    labels: Vec<(&'static str, String)>,
    value: Value,
}

enum Value {
    Gauge(f64),
    Count(u64),
    Seconds(f64),
    Histogram(Box<Summed>),
}

impl Sample {
    pub fn of(labels: &[(&'static str, &str)], value: f64) -> Self {
        Sample::new(labels, Value::Gauge(value))
    }

    pub fn count(labels: &[(&'static str, &str)], value: u64) -> Self {
        Sample::new(labels, Value::Count(value))
    }

    /// A count of seconds.
    pub fn seconds(labels: &[(&'static str, &str)], microseconds: u64) -> Self {
        Sample::new(labels, Value::Seconds(microseconds as f64 / 1e6))
    }

    pub fn histogram(labels: &[(&'static str, &str)], value: Summed) -> Self {
        Sample::new(labels, Value::Histogram(Box::new(value)))
    }

    fn new(labels: &[(&'static str, &str)], value: Value) -> Self {
        Sample { labels: labels.iter().map(|(key, value)| (*key, (*value).to_owned())).collect(), value }
    }
}

impl Value {
    fn encode_into(&self, encoder: &mut MetricEncoder<'_>) -> Result<(), Error> {
        match self {
            Value::Gauge(value) => encoder.encode_gauge(value),
            Value::Count(value) => encoder.encode_counter::<NoLabelSet, _, f64>(value, None),
            Value::Seconds(value) => encoder.encode_counter::<NoLabelSet, _, f64>(value, None),
            Value::Histogram(summed) => {
                let (sum, buckets) = (summed.sum_us as f64 / 1e6, seconds(summed));
                encoder.encode_histogram::<NoLabelSet>(sum, summed.count(), &buckets, None)
            }
        }
    }
}

/// Upper bounds in seconds, the last one infinite, each with its own count; the encoder adds up.
fn seconds(summed: &Summed) -> Vec<(f64, u64)> {
    let bounds = BOUNDS_US.iter().map(|us| *us as f64 / 1e6).chain([f64::INFINITY]);
    bounds.zip(summed.buckets).collect()
}

/// From OpenMetrics as the encoder writes it (HELP, TYPE, samples; no units, no exemplars).
fn classic(page: &str) -> String {
    let mut classic = String::with_capacity(page.len() + page.len() / 16);
    let mut lines = page.lines().peekable();
    while let Some(line) = lines.next() {
        let is_counters_help = line.starts_with("# HELP ")
            && lines.peek().is_some_and(|next| next.starts_with("# TYPE ") && next.ends_with(" counter"));
        let is_counters_type = line.starts_with("# TYPE ") && line.ends_with(" counter");
        if line == "# EOF" {
            break;
        }
        match is_counters_help || is_counters_type {
            true => push_with_total(&mut classic, line),
            false => classic.push_str(line),
        }
        classic.push('\n');
    }
    classic
}

/// `# TYPE x counter` as `# TYPE x_total counter`.
fn push_with_total(text: &mut String, line: &str) {
    let name_end = line.match_indices(' ').nth(2).map_or(line.len(), |(at, _)| at);
    text.push_str(&line[..name_end]);
    text.push_str("_total");
    text.push_str(&line[name_end..]);
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashSet};
    use std::time::Duration;

    use super::*;
    use crate::control::checks::Found;
    use crate::control::fixture::{a_check, desk_of, plan_of};
    use crate::control::publisher::ServerKey;
    use crate::core::outcome::{By, Close, How, Phase, Reason};

    /// A desk on which a little of everything has happened.
    fn busy_desk() -> Arc<Desk> {
        let mut plan = plan_of("api", &["a", "b\"\\\n"]);
        plan.pools[0].health_check = Some(a_check());
        let desk = desk_of(&plan);
        let snapshot = desk.snapshot();
        let listener = &snapshot.listeners["web"];
        let stats = listener.live.stats.of(0);
        stats.accepted.add(3);
        stats.rejected.add(Reason::ListenerLimit);
        stats.duration.observe(Duration::from_millis(3));
        stats.duration.observe(Duration::from_secs(1_000_000));
        listener.flow.count(0, &close());
        let server = snapshot.pools["api"].servers[0].live.stats.of(0);
        server.connect_failures.add(Reason::ServerRefused);
        server.connect.observe(Duration::from_micros(90));
        let key = ServerKey::new("api", &plan.pools[0].servers[0]);
        desk.checks.entry(&key).note(Found::Ok, Duration::from_micros(200));
        desk
    }

    fn close() -> Close {
        let (by, phase, how) = (By::Client, Phase::Data, How::Fin);
        Close { by, phase, how, reason: Reason::Done, errno: None, detail: "".into() }
    }

    /// Series (name and labels) with their values; every rule of the format that we rely on is
    /// asserted on the way.
    fn parse(page: &str, exposition: Exposition) -> BTreeMap<String, f64> {
        let (mut series, mut families) = (BTreeMap::new(), HashSet::new());
        let (mut family, mut kind) = (String::new(), String::new());
        for line in page.lines().filter(|line| *line != "# EOF") {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, its_kind) = rest.split_once(' ').expect("a kind");
                (family, kind) = (name.to_owned(), its_kind.to_owned());
                assert!(families.insert(family.clone()), "family twice: {line}");
                assert!(name.starts_with("tidegate_"), "{line}");
                let is_total = name.ends_with("_total");
                assert_eq!(is_total, kind == "counter" && exposition == Exposition::Classic, "{line}");
            } else if let Some(rest) = line.strip_prefix("# ") {
                assert!(rest.starts_with("HELP "), "{line}");
            } else {
                let (name, value) = line.rsplit_once(' ').expect("a value");
                let suffixes: &[&str] = match (kind.as_str(), exposition) {
                    ("histogram", _) => &["_bucket", "_sum", "_count"],
                    ("counter", Exposition::OpenMetrics) => &["_total"],
                    _ => &[""],
                };
                let bare = name.split('{').next().expect("a name");
                assert!(
                    suffixes.iter().any(|suffix| bare == format!("{family}{suffix}")),
                    "{line} in {family}"
                );
                let value = value.parse().expect("a number");
                assert!(series.insert(name.to_owned(), value).is_none(), "series twice: {line}");
            }
        }
        series
    }

    #[test]
    fn both_formats_parse_and_tell_the_same() {
        let desk = busy_desk();
        let pages = [Exposition::Classic, Exposition::OpenMetrics].map(|exposition| {
            let page = exposition.write(&desk).expect("writes");
            assert_eq!(page.ends_with("# EOF\n"), exposition == Exposition::OpenMetrics);
            let mut series = parse(&page, exposition);
            series.remove("tidegate_open_fds"); // other tests open files meanwhile
            series
        });
        assert_eq!(pages[0], pages[1]);
        for (series, value) in [
            (r#"tidegate_listener_connections_total{listener="web"}"#, 3.0),
            (r#"tidegate_listener_rejected_connections_total{listener="web",reason="listener_limit"}"#, 1.0),
            (
                r#"tidegate_connections_closed_total{listener="web",pool="api",by="client",reason="done"}"#,
                1.0,
            ),
            (r#"tidegate_server_connect_failures_total{pool="api",server="a",reason="server_refused"}"#, 1.0),
            (r#"tidegate_pool_servers{pool="api",state="checking"}"#, 2.0),
            (r#"tidegate_health_check_total{pool="api",server="a",result="ok"}"#, 1.0),
            (r#"tidegate_server_weight{pool="api",server="b\"\\\n"}"#, 100.0),
            (r#"tidegate_process_io{io="epoll",reason="denied"}"#, 1.0),
            ("tidegate_config_generation", 1.0),
        ] {
            assert_eq!(pages[0].get(series), Some(&value), "{series}");
        }
    }

    #[test]
    fn what_never_happened_has_no_series_by_reason() {
        let page = Exposition::Classic.write(&busy_desk()).expect("writes");
        assert!(!page.contains("reason=\"idle_timeout\""));
    }

    #[test]
    fn buckets_add_up_to_the_count() {
        let page = Exposition::Classic.write(&busy_desk()).expect("writes");
        let series = parse(&page, Exposition::Classic);
        let buckets: Vec<f64> = page
            .lines()
            .filter(|line| line.starts_with("tidegate_connection_duration_seconds_bucket"))
            .map(|line| line.rsplit_once(' ').expect("a value").1.parse().expect("a number"))
            .collect();
        assert_eq!(buckets.len(), BOUNDS_US.len() + 1);
        assert!(buckets.is_sorted(), "{buckets:?}");
        assert_eq!(series[r#"tidegate_connection_duration_seconds_bucket{le="+Inf",listener="web"}"#], 2.0);
        assert_eq!(series[r#"tidegate_connection_duration_seconds_count{listener="web"}"#], 2.0);
        assert_eq!(series[r#"tidegate_connection_duration_seconds_sum{listener="web"}"#], 1_000_000.003);
    }

    #[test]
    fn the_accept_header_decides() {
        let prometheus = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5";
        assert_eq!(Exposition::accepted(prometheus), Exposition::OpenMetrics);
        assert_eq!(Exposition::accepted("*/*"), Exposition::Classic);
    }

    #[test]
    fn a_server_that_left_the_plan_keeps_its_counts_while_it_has_connections() {
        let mut plan = plan_of("api", &["a", "b"]);
        let desk = desk_of(&plan);
        let live = Arc::clone(&desk.snapshot().pools["api"].servers[0].live);
        let place = live.room.take();
        // The same name at another address: two servers, but one series.
        plan.pools[0].servers[0].address = "127.0.0.9:9".parse().expect("an address");
        desk.apply(&plan);
        let page = Exposition::Classic.write(&desk).expect("writes");
        let series = parse(&page, Exposition::Classic);
        assert_eq!(series[r#"tidegate_server_active_connections{pool="api",server="a"}"#], 1.0);
        assert!(place.is_some());
    }
}

//! Metrics of the process itself, under the names that Prometheus gives them everywhere. Reads /proc at each scrape;
//! what can't be read is left out.

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Counter, IntGauge};
use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

/// Memory, descriptors and processor time.
pub struct Process {
    resident: IntGauge,
    open_fds: IntGauge,
    max_fds: IntGauge,
    threads: IntGauge,
    cpu: Counter,
}

impl Process {
    /// Its metrics, not yet registered.
    pub fn new() -> Result<Self, prometheus::Error> {
        Ok(Self {
            resident: IntGauge::new("process_resident_memory_bytes", "Resident memory size in bytes.")?,
            open_fds: IntGauge::new("process_open_fds", "Number of open file descriptors.")?,
            max_fds: IntGauge::new("process_max_fds", "Maximum number of open file descriptors.")?,
            threads: IntGauge::new("process_threads", "Number of OS threads in the process.")?,
            cpu: Counter::new("process_cpu_seconds_total", "Total user and system CPU time spent in seconds.")?,
        })
    }

    fn read(&self) {
        if let Ok(status) = std::fs::read_to_string("/proc/self/status") {
            if let Some(kib) = field(&status, "VmRSS:") {
                self.resident.set(kib * 1024);
            }
            if let Some(threads) = field(&status, "Threads:") {
                self.threads.set(threads);
            }
        }
        if let Ok(entries) = std::fs::read_dir("/proc/self/fd") {
            // One of them is the directory being read.
            self.open_fds.set(i64::try_from(entries.count()).unwrap_or(i64::MAX) - 1);
        }
        if let Some(limit) = getrlimit(Resource::Nofile).current {
            self.max_fds.set(i64::try_from(limit).unwrap_or(i64::MAX));
        }
        let time = clock_gettime(ClockId::ProcessCPUTime);
        let seconds = time.tv_sec as f64 + time.tv_nsec as f64 / 1e9;
        // Two scrapes at once may read in either order; a counter never goes back.
        self.cpu.inc_by((seconds - self.cpu.get()).max(0.0));
    }

    fn metrics(&self) -> [&dyn Collector; 5] {
        [&self.resident, &self.open_fds, &self.max_fds, &self.threads, &self.cpu]
    }
}

impl Collector for Process {
    fn desc(&self) -> Vec<&Desc> {
        self.metrics().into_iter().flat_map(Collector::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.read();
        self.metrics().into_iter().flat_map(Collector::collect).collect()
    }
}

/// The number after a name in /proc/self/status.
fn field(status: &str, name: &str) -> Option<i64> {
    status.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_sees_its_own_memory_descriptors_and_time() {
        let process = Process::new().unwrap();
        process.read();
        assert!(process.resident.get() > 1024 * 1024);
        assert!(process.open_fds.get() >= 3, "standard input, output and error");
        assert!(process.max_fds.get() >= process.open_fds.get());
        assert!(process.cpu.get() > 0.0);
    }
}

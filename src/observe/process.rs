//! What the operating system says of this process: the metrics every Prometheus client exposes, by
//! their usual names.

use super::exposition::Page;

/// Memory, CPU time, files, start.
pub(super) fn render(page: &mut Page) {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The second field is the program's name in brackets and may hold anything.
    let fields: Vec<&str> =
        stat.rsplit(')').next().unwrap_or("").split_ascii_whitespace().collect();
    let field = |number: usize| fields.get(number - 3).and_then(|text| text.parse::<u64>().ok());
    if let (Some(user), Some(system)) = (field(14), field(15)) {
        let seconds = (user + system) as f64 / rustix::param::clock_ticks_per_second() as f64;
        let help = "CPU time of the process, all threads, user and system.";
        page.single("process_cpu_seconds_total", "counter", help, seconds);
    }
    if let Some(bytes) = field(23) {
        page.single("process_virtual_memory_bytes", "gauge", "Address space.", bytes);
    }
    if let Some(pages) = field(24) {
        let bytes = pages * rustix::param::page_size() as u64;
        page.single("process_resident_memory_bytes", "gauge", "Memory that is in RAM.", bytes);
    }
    if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
        page.single("process_open_fds", "gauge", "Open file descriptors.", open.count());
    }
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    if let Some(most) = limit.current {
        page.single("process_max_fds", "gauge", "Most file descriptors.", most);
    }
    if let Some(seconds) = started(&stat) {
        let help = "When the process started, seconds since 1970.";
        page.single("process_start_time_seconds", "gauge", help, seconds);
    }
}

/// Hours since the process started; never 0, so that it can be divided by.
pub(super) fn age_hours() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let uptime = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
    let uptime = uptime.split_ascii_whitespace().next().and_then(|text| text.parse::<f64>().ok());
    let age = uptime.zip(start_seconds(&stat)).map_or(0.0, |(uptime, start)| uptime - start);
    age.max(1.0) / 3600.0
}

/// When the process started, seconds since 1970.
fn started(stat: &str) -> Option<f64> {
    Some(boot_seconds()? + start_seconds(stat)?)
}

/// The same since the system started.
fn start_seconds(stat: &str) -> Option<f64> {
    let field = stat.rsplit(')').next()?.split_ascii_whitespace().nth(22 - 3)?;
    let ticks: u64 = field.parse().ok()?;
    Some(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

fn boot_seconds() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/stat").ok()?;
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

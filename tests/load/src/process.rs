//! What a process holds, as Linux tells it.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};

/// Between two looks for the peak. A call that grows and ends between two is seen by the kernel's own peak.
const LOOK: Duration = Duration::from_millis(50);

#[derive(Debug, Clone, Copy)]
pub(crate) struct Held {
    pub(crate) rss_bytes: u64,
    pub(crate) descriptors: u64,
    pub(crate) threads: u64,
}

pub(crate) fn held(pid: u32) -> Result<Held> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("the server has ended")?;
    let field = |name: &str| -> Result<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).context("a field of /proc/PID/status")?;
        line.split_whitespace().next().and_then(|number| number.parse().ok()).context("a number in /proc/PID/status")
    };
    Ok(Held {
        rss_bytes: field("VmRSS:")? << 10,
        descriptors: fs::read_dir(format!("/proc/{pid}/fd"))?.count() as u64,
        threads: field("Threads:")?,
    })
}

/// Of `/proc/PID/stat`: what Linux counts processor time in.
const TICK: Duration = Duration::from_millis(10);

/// The processor time of a process.
pub(crate) fn cpu(pid: u32) -> Result<Duration> {
    let stat = Stat::read(pid).context("the process has ended")?;
    Ok(TICK * (stat.own_ticks as u32))
}

/// The processor time of a process and of all its children, those that have ended included.
pub(crate) fn cpu_with_children(pid: u32) -> Result<Duration> {
    let stat = Stat::read(pid).context("the process has ended")?;
    let entries = fs::read_dir("/proc")?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let children = entries.filter_map(Stat::read).filter(|child| child.parent == pid);
    let ticks: u64 = stat.own_ticks + stat.childrens_ticks + children.map(|child| child.own_ticks).sum::<u64>();
    Ok(TICK * (ticks as u32))
}

struct Stat {
    parent: u32,
    own_ticks: u64,
    /// Of those that have ended.
    childrens_ticks: u64,
}

impl Stat {
    fn read(pid: u32) -> Option<Stat> {
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name stands in parentheses and may hold anything. The field after it is the third.
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Stat {
            parent: field(4)? as u32,
            own_ticks: field(14)? + field(15)?,
            childrens_ticks: field(16)? + field(17)?,
        })
    }
}

/// Watches a process until it is dropped.
pub(crate) struct Watch {
    peak: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Watch {
    pub(crate) fn start(pid: u32) -> Watch {
        let watch = Watch { peak: Arc::default(), stop: Arc::default() };
        let (peak, stop) = (Arc::clone(&watch.peak), Arc::clone(&watch.stop));
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                if let Ok(held) = held(pid) {
                    peak.fetch_max(held.rss_bytes, Ordering::Relaxed);
                }
                std::thread::sleep(LOOK);
            }
        });
        watch
    }

    pub(crate) fn peak_rss_bytes(&self) -> u64 {
        self.peak.load(Ordering::Relaxed)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

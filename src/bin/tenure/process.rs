//! Processes: who descends from this one, and how all of them are ended.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitStatus};

use rustix::io::Errno;
use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, WaitOptions, getpgid, kill_process, wait, waitid,
};

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// By itself, with this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

impl End {
    /// As shells write it: the code, or 128 and the signal's number.
    pub(crate) fn code(self) -> u8 {
        let code = match self {
            Self::Code(code) => code,
            Self::Signal(number) => 128 + number,
        };
        // The system keeps the lowest eight bits.
        (code & 0xff) as u8
    }
}

impl From<ExitStatus> for End {
    fn from(status: ExitStatus) -> Self {
        use std::os::unix::process::ExitStatusExt as _;
        match (status.code(), status.signal()) {
            (Some(code), _) => Self::Code(code),
            (None, Some(signal)) => Self::Signal(signal),
            (None, None) => Self::Code(1),
        }
    }
}

/// A command that runs this binary again: the very same, even if its file has been replaced or
/// deleted meanwhile.
pub(crate) fn this_binary() -> io::Result<Command> {
    #[cfg(target_os = "linux")]
    let path = std::path::Path::new("/proc/self/exe");
    #[cfg(not(target_os = "linux"))]
    let path = std::env::current_exe()?;
    let mut command = Command::new(path);
    if let Some(name) = std::env::args_os().next() {
        command.arg0(name);
    }
    Ok(command)
}

/// Makes orphaned descendants this process's own children, so that they can be found.
#[cfg(target_os = "linux")]
pub(crate) fn adopt_orphans() {
    // Where the kernel refuses, the process group is all that can be ended.
    let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn adopt_orphans() {}

/// Whether nothing descends from this process any more. It adopts orphans, so while there is a
/// descendant there is a child, and the kernel knows: a walk through `/proc` could miss one whose
/// parent ends meanwhile. To be called when those that have ended are reaped.
pub(crate) fn all_gone() -> bool {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    matches!(waitid(WaitId::All, options), Err(Errno::CHILD))
}

/// Takes note of all children that have ended, and says how.
pub(crate) fn reap() -> Vec<(Pid, End)> {
    let mut ended = Vec::new();
    while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
        if let Some(code) = status.exit_status() {
            ended.push((pid, End::Code(code)));
        } else if let Some(signal) = status.terminating_signal() {
            ended.push((pid, End::Signal(signal)));
        }
    }
    ended
}

/// Sends a signal to every descendant. A process that starts another at this moment can be missed:
/// call it again until there are none.
pub(crate) fn signal_descendants(signal: Signal) {
    signal_descendants_outside(None, signal);
}

/// The same to all but those that descend from one of these, and these; whether there were any that
/// had not ended.
pub(crate) fn signal_strays(others: &BTreeSet<u32>, signal: Signal) -> bool {
    let mut found = false;
    for (pid, ended) in below(|pid| others.contains(&pid.unsigned_abs())) {
        found |= !ended;
        let _ = kill_process(pid, signal);
    }
    found
}

/// The same to all that are not in this process group.
pub(crate) fn signal_descendants_outside(group: Option<Pid>, signal: Signal) {
    for pid in descendants() {
        if group.is_some() && getpgid(Some(pid)).ok() == group {
            continue;
        }
        let _ = kill_process(pid, signal);
    }
}

/// All processes below this one. Also those that look ended: only their first thread may be.
fn descendants() -> Vec<Pid> {
    below(|_| false).into_iter().map(|(pid, _)| pid).collect()
}

/// All processes below this one, without some and what is below those; and whether they look ended.
#[cfg(target_os = "linux")]
fn below(without: impl Fn(i32) -> bool) -> Vec<(Pid, bool)> {
    let mut children: BTreeMap<i32, Vec<(i32, bool)>> = BTreeMap::new();
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    for entry in entries {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|it| it.parse::<i32>().ok()) else {
            continue;
        };
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
        if let Some((state, parent)) = stat.ok().as_deref().and_then(parent) {
            children
                .entry(parent)
                .or_default()
                .push((pid, state == "Z"));
        }
    }
    let mut found = Vec::new();
    let mut next = vec![rustix::process::getpid().as_raw_nonzero().get()];
    while let Some(pid) = next.pop() {
        for (child, ended) in children.remove(&pid).unwrap_or_default() {
            if without(child) {
                continue;
            }
            next.push(child);
            found.extend(Pid::from_raw(child).map(|child| (child, ended)));
        }
    }
    found
}

/// The state and the parent in a line of `/proc/PID/stat`. The name before them, in brackets, can
/// hold anything.
#[cfg(target_os = "linux")]
fn parent(stat: &str) -> Option<(&str, i32)> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut words = rest.split_ascii_whitespace();
    Some((words.next()?, words.next()?.parse().ok()?))
}

#[cfg(not(target_os = "linux"))]
fn below(_: impl Fn(i32) -> bool) -> Vec<(Pid, bool)> {
    Vec::new()
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_process_may_have_any_name() {
        assert_eq!(parent("7 (a) b) S 3 7 7"), Some(("S", 3)));
        assert_eq!(parent("7 (x) Z 12 7 7"), Some(("Z", 12)));
        assert_eq!(parent(""), None);
    }
}

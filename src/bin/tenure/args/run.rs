//! What is said about a command that runs under something: `lock`, `elect`, `semaphore`.

use std::ffi::OsString;
use std::time::Duration;

use clap::Args;

use super::duration;

/// Runs a command while holding a lock
///
/// Waits for its turn, runs the command, and gives the lock back when the command and everything
/// that it started have ended. When the lock is lost the command is stopped before another can
/// hold it: it gets TERM a grace before that, then KILL; also when this program itself is stopped
/// or killed.
///
/// The command finds TENURE_NAME, TENURE_KEY and TENURE_TOKEN in its environment. The token rises
/// from holder to holder: let whatever is written to refuse smaller ones.
#[derive(Debug, Args)]
#[command(after_help = CODES)]
pub(crate) struct LockArgs {
    /// The lock's name
    pub(crate) name: String,
    /// Take the name for the key of a line as it is, to share it with other programs
    #[arg(long)]
    pub(crate) raw: bool,
    #[command(flatten)]
    pub(crate) run: RunArgs,
}

/// Runs a command while leading
///
/// Stands for election, runs the command when it has won, and resigns when the command and
/// everything that it started have ended. When the leadership is lost the command is stopped
/// before another can lead, as with lock.
///
/// The command finds TENURE_NAME, TENURE_KEY, TENURE_TOKEN and TENURE_VALUE in its environment.
/// The token is the term: it rises from leader to leader.
#[derive(Debug, Args)]
#[command(after_help = CODES)]
pub(crate) struct ElectArgs {
    /// The election's name
    pub(crate) name: String,
    /// Take the name for the key of a line as it is, to share it with other programs
    #[arg(long)]
    pub(crate) raw: bool,
    /// What others see of the leader, an address for example; default: the host's name
    #[arg(long, value_name = "TEXT")]
    pub(crate) value: Option<String>,
    #[command(flatten)]
    pub(crate) run: RunArgs,
}

/// Runs a command while holding permits of a semaphore
///
/// Waits for its turn, runs the command, and gives the permits back when the command and
/// everything that it started have ended. When they are lost the command is stopped before another
/// can have them, as with lock.
///
/// The command finds TENURE_NAME, TENURE_KEY and TENURE_TOKEN in its environment.
#[derive(Debug, Args)]
#[command(after_help = CODES)]
pub(crate) struct SemaphoreArgs {
    /// The semaphore's name
    pub(crate) name: String,
    /// How many permits there are: the first use says it for all; default: as many as it said
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) permits: Option<u32>,
    /// How many the command takes
    #[arg(long, value_name = "NUMBER", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) weight: u32,
    #[command(flatten)]
    pub(crate) run: RunArgs,
}

/// How it is waited for, and what runs then.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// How long it stays taken after its holder's death
    #[arg(long, default_value = "10s", value_parser = duration, value_name = "TIME")]
    pub(crate) ttl: Duration,
    /// Give up waiting after this long
    #[arg(long, value_parser = duration, value_name = "TIME", conflicts_with = "try_once")]
    pub(crate) timeout: Option<Duration>,
    /// Do not wait at all
    #[arg(long = "try")]
    pub(crate) try_once: bool,
    /// How long before it is lost the command gets TERM; default: a fifth of the TTL; at most
    /// half of it less 500 ms
    #[arg(long, value_parser = duration, value_name = "TIME")]
    pub(crate) grace: Option<Duration>,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    pub(crate) command: Vec<OsString>,
}

const CODES: &str = "Exit codes: the command's own; 64 usage; 69 store not reached; 75 not \
                     acquired; 76 lost, and the command was stopped; 77 not authorised; \
                     126, 127 command not executable, not found; 130 interrupted while waiting";

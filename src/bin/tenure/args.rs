//! What the command line says.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(
    name = "tenure",
    version,
    about = "A lock around any program, and the keys of a store",
    long_about = "A lock around any program, safe where others are not: when the lock is lost, \
                  the program is stopped before another can hold it.",
    after_help = "Stores:\n  \
        etcd2://host:port,host:port/prefix    etcd's v2 keys API (etcd <= 3.5 with --enable-v2)\n  \
        etcd2s://host:port?ca=F&cert=F&key=F  the same over TLS\n  \
        embedded:                             a store inside this one process, gone with it",
    disable_help_subcommand = true
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) store: StoreArgs,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Args)]
pub(crate) struct StoreArgs {
    /// The store's URL
    #[arg(
        long,
        global = true,
        env = "TENURE_STORE",
        hide_env_values = true,
        value_name = "URL"
    )]
    pub(crate) store: Option<String>,
    /// The user; the password comes from TENURE_PASSWORD or --password-file
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) user: Option<String>,
    /// A file whose first line is the password
    #[arg(long, global = true, value_name = "FILE", requires = "user")]
    pub(crate) password_file: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Lock(LockArgs),
}

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
#[command(
    after_help = "Exit codes: the command's own; 64 usage; 69 store not reached; 75 not \
                        acquired; 76 lost, and the command was stopped; 77 not authorised; \
                        126, 127 command not executable, not found; 130 interrupted while waiting"
)]
pub(crate) struct LockArgs {
    /// The lock's name
    pub(crate) name: String,
    /// Take the name for the key of a line as it is, to share it with other programs
    #[arg(long)]
    pub(crate) raw: bool,
    /// How long the lock stays taken after its holder's death
    #[arg(long, default_value = "10s", value_parser = duration, value_name = "TIME")]
    pub(crate) ttl: Duration,
    /// Give up waiting after this long
    #[arg(long, value_parser = duration, value_name = "TIME", conflicts_with = "try_once")]
    pub(crate) timeout: Option<Duration>,
    /// Do not wait at all
    #[arg(long = "try")]
    pub(crate) try_once: bool,
    /// How long before the lock is lost the command gets TERM; default: a fifth of the TTL
    #[arg(long, value_parser = duration, value_name = "TIME")]
    pub(crate) grace: Option<Duration>,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    pub(crate) command: Vec<OsString>,
}

fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| format!("{error}; write one like 10s or 500ms"))
}

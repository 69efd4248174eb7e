//! What is said about a queue.

use std::ffi::OsString;
use std::time::Duration;

use clap::{Args, Subcommand};
use tenure::Priority;

use super::duration;

/// Pushes jobs, does them, and looks after those that are there
#[derive(Debug, Args)]
pub(crate) struct QueueArgs {
    #[command(subcommand)]
    pub(crate) command: QueueCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum QueueCommand {
    /// Adds a job, and prints its id
    Push(Pushing),
    Work(Working),
    /// Lists the jobs that are not done, in the order of their delivery
    Ls(QueueName),
    /// Lists the jobs that were given up, and why
    Dead(QueueName),
    /// Lets jobs that were given up be delivered again
    Requeue(Chosen),
    /// Removes jobs that were given up
    Purge(Chosen),
    /// Counts the jobs by what they wait for
    Stats(QueueName),
}

#[derive(Debug, Args)]
pub(crate) struct QueueName {
    /// The queue's name
    pub(crate) name: String,
    /// Take the name for the key that the jobs lie below, whoever appends them
    #[arg(long)]
    pub(crate) raw: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Chosen {
    #[command(flatten)]
    pub(crate) queue: QueueName,
    /// Their ids
    #[arg(value_name = "ID", required_unless_present = "all")]
    pub(crate) ids: Vec<String>,
    /// All of them
    #[arg(long, conflicts_with = "ids")]
    pub(crate) all: bool,
    /// How long all of it may take; default: 15s for each job
    #[arg(long, value_parser = duration, value_name = "TIME")]
    pub(crate) timeout: Option<Duration>,
}

#[derive(Debug, Args)]
pub(crate) struct Pushing {
    #[command(flatten)]
    pub(crate) queue: QueueName,
    /// The job; default: all of standard input
    pub(crate) payload: Option<String>,
    /// Each line of standard input is a job; what is not pushed is told line by line
    #[arg(long, conflicts_with_all = ["payload", "id", "delay"])]
    pub(crate) lines: bool,
    /// Pushed once: while a job of this id is there, or was done in the last 10 minutes, another
    /// is not added
    #[arg(long)]
    pub(crate) id: Option<String>,
    /// The lane, 0 to 9: jobs of a higher one come first
    #[arg(long, value_parser = priority, default_value = "4", value_name = "NUMBER")]
    pub(crate) priority: Priority,
    /// Not to be delivered before this long from now
    #[arg(long, value_parser = duration, value_name = "TIME")]
    pub(crate) delay: Option<Duration>,
}

/// Runs a command for each job
///
/// The payload is the command's standard input. It finds TENURE_NAME, TENURE_JOB_ID,
/// TENURE_JOB_ATTEMPT, TENURE_KEY and TENURE_TOKEN in its environment; the token rises with each
/// delivery of a job. When it exits with 0 the job is done; otherwise the job is delivered again
/// later, until it has had its attempts: then it lies among the dead.
///
/// A job can be delivered twice, when a consumer dies or is cut off. The command is stopped before
/// its job can be another's, as with lock.
///
/// INT and TERM end it after the commands that run; a second one kills those.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit codes: 0 told to end, or nothing left to do; 64 usage; 69 store not reached; \
                  77 not authorised; 130, 143 told twice"
)]
pub(crate) struct Working {
    #[command(flatten)]
    pub(crate) queue: QueueName,
    /// How many commands run at once; 1 keeps the order of the pushes
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000), value_name = "NUMBER")]
    pub(crate) concurrency: u16,
    /// How long after this program's death its jobs stay undelivered
    #[arg(long, default_value = "10s", value_parser = duration, value_name = "TIME")]
    pub(crate) ttl: Duration,
    /// How often a job is delivered before it is given up
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..), value_name = "NUMBER")]
    pub(crate) max_attempts: u32,
    /// How long a command may run; then it is stopped, and its job is delivered again
    #[arg(long, default_value = "5m", value_parser = duration, value_name = "TIME")]
    pub(crate) max_run: Duration,
    /// How long after a failure the job is delivered again; default: 1 s, doubling to 5 min
    #[arg(long, value_parser = duration, value_name = "TIME")]
    pub(crate) retry_delay: Option<Duration>,
    /// How long before its job is lost a command gets TERM; default: a fifth of the TTL or of the
    /// max run, whichever is less; at most half of the TTL less 500 ms, and of the max run less 150 ms
    #[arg(long, value_parser = duration, value_name = "TIME")]
    pub(crate) grace: Option<Duration>,
    /// End when no job is ready, claimed or delayed
    #[arg(long)]
    pub(crate) until_empty: bool,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    pub(crate) command: Vec<OsString>,
}

fn priority(text: &str) -> Result<Priority, String> {
    let number = text
        .parse()
        .map_err(|_| "a number from 0 to 9".to_owned())?;
    Priority::new(number).map_err(|error| error.detail().to_owned())
}

//! What the command line says.

mod queue;
mod run;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub(crate) use queue::{Chosen, Pushing, QueueArgs, QueueCommand, QueueName, Working};
pub(crate) use run::{ElectArgs, LockArgs, RunArgs, SemaphoreArgs};

#[derive(Debug, Parser)]
#[command(
    name = "tenure",
    version,
    about = "Locks, elections, semaphores and queues around any program, and the keys of a store",
    long_about = "Locks, elections, semaphores and queues around any program, safe where others \
                  are not: when what it runs under is lost, the program is stopped before another \
                  can have it.",
    after_help = "Stores:\n  \
        etcd://host:port,host:port/prefix    etcd (3.4 and later), by its v3 API\n  \
        etcds://host:port?ca=F&cert=F&key=F  the same over TLS\n  \
        etcd2://host:port,host:port/prefix   etcd's v2 keys API (etcd <= 3.5 with --enable-v2)\n  \
        etcd2s://host:port?ca=F&cert=F&key=F the same over TLS\n  \
        embedded:                            a store inside this one process, gone with it\n\n\
        v2 and v3 of one etcd are two stores: a lock of one does not keep out who asks the other.\n\n\
        Environment: TENURE_STORE the URL, TENURE_USER, TENURE_PASSWORD;\n\
        TENURE_LOG=tenure=debug traces what happens to standard error.",
    disable_help_subcommand = true
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) store: StoreArgs,
    /// How results are written
    #[arg(long, global = true, value_enum, default_value_t = Format::Human)]
    pub(crate) format: Format,
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
    #[arg(long, global = true, env = "TENURE_USER", value_name = "NAME")]
    pub(crate) user: Option<String>,
    /// A file whose first line is the password
    #[arg(long, global = true, value_name = "FILE", requires = "user")]
    pub(crate) password_file: Option<PathBuf>,
    /// Trust the authorities in this PEM file instead of the system's (etcds://, etcd2s://)
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) cacert: Option<PathBuf>,
    /// Show the certificate in this PEM file
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) cert: Option<PathBuf>,
    /// Its private key, unless that is in the same file
    // Not `key`, which is what several verbs call theirs.
    #[arg(
        id = "private-key",
        long = "key",
        global = true,
        value_name = "FILE",
        requires = "cert"
    )]
    pub(crate) key: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Lock(LockArgs),
    Elect(ElectArgs),
    Semaphore(SemaphoreArgs),
    Leader(LeaderArgs),
    Status(StatusArgs),
    Queue(QueueArgs),
    #[command(flatten)]
    Keys(KeysCommand),
    Bench(BenchArgs),
    /// Prints a completion script for a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Prints the manual page
    Man,
}

/// Prints who leads: the value, the token, since when; 1 if nobody does
#[derive(Debug, Args)]
pub(crate) struct LeaderArgs {
    /// The election's name
    pub(crate) name: String,
    /// Take the name for the key of a line as it is
    #[arg(long)]
    pub(crate) raw: bool,
    /// Goes on, and prints each change
    #[arg(long)]
    pub(crate) watch: bool,
}

/// Prints who holds and who waits, in order: token, since when, who; 1 if nobody does
#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// The name, of a lock unless something else is said
    pub(crate) name: String,
    /// It is an election's
    #[arg(long)]
    pub(crate) election: bool,
    /// It is a semaphore's
    #[arg(long, conflicts_with = "election")]
    pub(crate) semaphore: bool,
    /// It is the key of a line
    #[arg(long, conflicts_with_all = ["election", "semaphore"])]
    pub(crate) raw: bool,
}

/// How results are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people
    Human,
    /// For programs: one JSON object a line
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum KeysCommand {
    /// Prints what a key holds; 1 if there is nothing
    Get {
        /// The key
        key: String,
    },
    /// Writes a key, whatever is there; a time-to-live that it has stays unless told otherwise
    Set {
        /// The key
        key: String,
        /// The value; `-` for standard input
        value: String,
        #[command(flatten)]
        lifetime: Lifetime,
    },
    /// Writes a key where there is nothing; 1 if there is something
    Create {
        /// The key
        key: String,
        /// The value; `-` for standard input
        value: String,
        /// It goes away after this long
        #[arg(long, value_parser = duration, value_name = "TIME")]
        ttl: Option<Duration>,
    },
    /// Writes a key that is there, on a condition if one is given; 1 if it does not hold
    Update {
        /// The key
        key: String,
        /// The value; `-` for standard input
        value: String,
        #[command(flatten)]
        conditions: Conditions,
        #[command(flatten)]
        lifetime: Lifetime,
    },
    /// Deletes a key, on a condition if one is given; 1 if there is nothing or it does not hold
    Rm {
        /// The key
        key: String,
        /// With everything below it
        #[arg(long, short, conflicts_with_all = ["prev_value", "prev_index"])]
        recursive: bool,
        #[command(flatten)]
        conditions: Conditions,
    },
    /// Lists what is directly below a key
    Ls {
        /// The key
        #[arg(default_value = "/")]
        key: String,
        /// Everything below it
        #[arg(long, short)]
        recursive: bool,
    },
    /// Adds a value to a directory under the next number, and prints its key
    Append {
        /// The directory
        dir: String,
        /// The value; `-` for standard input
        value: String,
        /// It goes away after this long
        #[arg(long, value_parser = duration, value_name = "TIME")]
        ttl: Option<Duration>,
    },
    Watch(WatchArgs),
    /// Lists the members of the cluster
    Members,
    /// Prints servers' statistics, as JSON: v3, each server's version, sizes, leader and raft's
    /// state; v2, the current server's own
    Stats,
    /// Asks every server whether it is well; 69 if one is not
    Health,
}

/// Prints each change of a key as it comes
#[derive(Debug, Args)]
pub(crate) struct WatchArgs {
    /// The key
    pub(crate) key: String,
    /// And of everything below it
    #[arg(long, short)]
    pub(crate) recursive: bool,
    /// First what is there now, everything below the key as of one index; then each change, also
    /// across lost connections and lost history; says when it is stale
    #[arg(long, conflicts_with_all = ["recursive", "from"])]
    pub(crate) cache: bool,
    /// From this index on; default: from now on
    #[arg(long, value_name = "INDEX")]
    pub(crate) from: Option<u64>,
    /// Ends after so many
    #[arg(long, value_name = "NUMBER")]
    pub(crate) count: Option<u64>,
}

/// How long what is written lives.
#[derive(Debug, Args)]
pub(crate) struct Lifetime {
    /// It goes away after this long
    #[arg(long, value_parser = duration, value_name = "TIME", conflicts_with = "permanent")]
    pub(crate) ttl: Option<Duration>,
    /// It stays, even if what is there now does not
    #[arg(long)]
    pub(crate) permanent: bool,
}

/// What must be there.
#[derive(Debug, Args)]
pub(crate) struct Conditions {
    /// Only if the key holds this
    #[arg(long, value_name = "VALUE")]
    pub(crate) prev_value: Option<String>,
    /// Only if the key was last modified at this index
    #[arg(long, value_name = "INDEX")]
    pub(crate) prev_index: Option<u64>,
}

/// Measures rates and latencies; one JSON object for each measurement
///
/// Rates of one run can be compared with each other, on one machine; little else can.
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// What is measured
    #[arg(value_enum)]
    pub(crate) what: Bench,
    /// How many clients at once, each with connections of its own
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) clients: u32,
    /// How many tasks at once in each client, or how many locks it holds
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) tasks: u32,
    /// For how many seconds
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(crate) secs: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Bench {
    /// Writes of 100 bytes, each task to a key of its own
    Put,
    /// Linearizable reads of such keys
    Get,
    /// Acquire and release, each task a lock of its own
    Lock,
    /// Acquire and release of one lock by all tasks
    Contend,
    /// What a lock costs that is held: bytes of memory
    Held,
    /// From a resignation to the next leader
    Elect,
    /// Acquire and release of a semaphore with half as many permits as there are tasks
    Semaphore,
    /// Pushes of 100 bytes
    Push,
    /// Push, claim and ack, each task a producer and a consumer of one queue
    Queue,
}

pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| format!("{error}; write one like 10s or 500ms"))
}

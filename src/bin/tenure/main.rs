//! The command `tenure`: locks, elections, semaphores and queues around any program, and the keys
//! of a store.

mod args;
mod bench;
mod cache;
mod cluster;
mod exit;
mod guardian;
mod held;
mod keys;
mod out;
mod process;
mod queue;
mod runner;
mod signals;
mod status;
mod store;
mod work;

use std::io::Write as _;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};

use args::{Cli, Command, KeysCommand};
use signals::Signals;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    match std::env::args_os().nth(1) {
        Some(it) if it == guardian::GUARDIAN => return guardian::main(arguments.by_ref().skip(1)),
        Some(it) if it == guardian::STARTER => {
            return guardian::starter(arguments.by_ref().skip(1));
        }
        _ => {}
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no errors.
            let code = if error.use_stderr() { exit::USAGE } else { 0 };
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    trace();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    match runtime {
        Ok(runtime) => {
            let code = runtime.block_on(run(cli));
            // A thread may still wait for standard input.
            runtime.shutdown_background();
            ExitCode::from(code)
        }
        Err(error) => {
            eprintln!("tenure: {error}");
            ExitCode::from(exit::SOFTWARE)
        }
    }
}

/// Writes traces to standard error if `TENURE_LOG` asks for some, as `tenure=debug`.
fn trace() {
    let Ok(filter) = tracing_subscriber::EnvFilter::try_from_env("TENURE_LOG") else {
        return;
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
}

async fn run(cli: Cli) -> u8 {
    let mut signals = match Signals::listen() {
        Ok(signals) => signals,
        Err(error) => {
            eprintln!("tenure: {error}");
            return exit::SOFTWARE;
        }
    };
    match &cli.command {
        Command::Completions { shell } => return completions(*shell),
        Command::Man => return man(),
        _ => {}
    }
    let url = match store::url(&cli.store) {
        Ok(url) => url,
        Err(code) => return code,
    };
    if url.is_embedded() && !matches!(cli.command, Command::Bench(_)) {
        eprintln!(
            "tenure: the embedded store lives in one process and ends with it: what this command \
             does there nobody could see"
        );
        return exit::USAGE;
    }
    let opened = tokio::select! {
        biased;
        signal = signals.next() => return (128 + signal) as u8,
        opened = store::open(url) => match opened {
            Ok(opened) => opened,
            Err(code) => return code,
        },
    };
    let client = &opened.client;
    let format = cli.format;
    match &cli.command {
        Command::Lock(args) => held::lock(client, args, &mut signals).await,
        Command::Elect(args) => held::elect(client, args, &mut signals).await,
        Command::Semaphore(args) => held::semaphore(client, args, &mut signals).await,
        Command::Leader(args) => status::leader(client, args, format, &mut signals).await,
        Command::Status(args) => status::status(client, args, format, &mut signals).await,
        Command::Queue(args) => queue::run(client, args, format, &mut signals).await,
        Command::Keys(KeysCommand::Watch(args)) if args.cache => {
            cache::run(client, args, format, &mut signals).await
        }
        Command::Keys(command) => {
            let store = &**client.store();
            keys::run(&opened.url, store, command, format, &mut signals).await
        }
        Command::Bench(args) => bench::run(&opened, args, &mut signals).await,
        Command::Completions { .. } | Command::Man => exit::DONE,
    }
}

fn completions(shell: clap_complete::Shell) -> u8 {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "tenure", &mut script);
    print(&script)
}

fn man() -> u8 {
    let mut page = Vec::new();
    let rendered = clap_mangen::Man::new(Cli::command()).render(&mut page);
    if rendered.is_err() {
        return exit::SOFTWARE;
    }
    for command in Cli::command().get_subcommands() {
        let name = format!("tenure-{}", command.get_name());
        let man = clap_mangen::Man::new(command.clone().name(name));
        if man.render(&mut page).is_err() {
            return exit::SOFTWARE;
        }
    }
    print(&page)
}

/// A reader that is gone is no error.
fn print(text: &[u8]) -> u8 {
    let _ = std::io::stdout().write_all(text);
    exit::DONE
}

//! The command `tenure`: a lock around any program, and the keys of a store.

mod args;
mod exit;
mod guardian;
mod lock;
mod process;
mod signals;

use std::process::ExitCode;

use clap::Parser as _;
use tenure::Client;

use args::{Cli, Command, StoreArgs};
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
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    match runtime {
        Ok(runtime) => ExitCode::from(runtime.block_on(run(cli))),
        Err(error) => {
            eprintln!("tenure: {error}");
            ExitCode::from(exit::SOFTWARE)
        }
    }
}

async fn run(cli: Cli) -> u8 {
    let mut signals = match Signals::listen() {
        Ok(signals) => signals,
        Err(error) => {
            eprintln!("tenure: {error}");
            return exit::SOFTWARE;
        }
    };
    let client = tokio::select! {
        biased;
        signal = signals.next() => return (128 + signal) as u8,
        client = connect(&cli.store) => match client {
            Ok(client) => client,
            Err(code) => return code,
        },
    };
    match cli.command {
        Command::Lock(args) => lock::run(&client, &args, &mut signals).await,
    }
}

async fn connect(args: &StoreArgs) -> Result<Client, u8> {
    let Some(url) = &args.store else {
        eprintln!(
            "tenure: which store? Give --store URL or TENURE_STORE: etcd2://host:port/prefix, etcd2s://…, embedded:"
        );
        return Err(exit::USAGE);
    };
    Client::connect(url).await.map_err(|error| {
        eprintln!("tenure: {error}");
        exit::code(&error)
    })
}

//! The command line: from arguments to one operation to an exit status. Nothing is decided here that could be decided
//! below; everything is said here.

mod args;
mod backup;
mod config;
mod drill;
mod failure;
mod gate;
mod init;
mod inspect;
mod key;
mod manual;
mod mark;
mod places;
mod prune;
mod recover;
mod restore;
mod session;
mod status;
mod store;
mod sync;

use std::ffi::OsString;

use clap::{CommandFactory, Parser, error::ErrorKind};

use crate::exit::Exit;
use crate::render::text;
use args::{Cli, Command};
use session::Failed;

/// Runs the program; returns its exit status.
pub fn run(argv: impl IntoIterator<Item = OsString>) -> u8 {
    let cli = match Cli::try_parse_from(argv) {
        Ok(cli) => cli,
        Err(e) => return usage(&e).code(),
    };
    if let Command::ProbePath { path } = &cli.command {
        return crate::mounts::probe(path);
    }
    let sink = crate::journal::install(cli.global.level());
    let outcome = match &cli.command {
        Command::Init(a) => init::run(&cli.global, a, sink),
        Command::Backup(a) => backup::run(&cli.global, a, sink),
        Command::List(a) => inspect::list(&cli.global, a, sink),
        Command::Show(a) => inspect::show(&cli.global, a, sink),
        Command::Verify(a) => inspect::verify(&cli.global, a, sink),
        Command::Extract(a) => inspect::extract(&cli.global, a, sink),
        Command::Restore(a) => restore::run(&cli.global, a, sink),
        Command::Drill(a) => drill::run(&cli.global, a, sink),
        Command::Recover => recover::run(&cli.global, sink),
        Command::Guardian(a) => recover::guardian(&cli.global, a, sink),
        Command::Prune(a) => prune::run(&cli.global, a, sink),
        Command::Undelete(a) => mark::undelete(&cli.global, a, sink),
        Command::Pin(a) => mark::pin(&cli.global, a, sink),
        Command::Unpin(a) => mark::unpin(&cli.global, a, sink),
        Command::Accept(a) if a.host => gate::accept(&cli.global, a, sink),
        Command::Accept(a) => mark::accept(&cli.global, a, sink),
        Command::OnFailure { unit } => failure::run(&cli.global, unit, sink),
        Command::Status => status::run(&cli.global, sink),
        Command::Sync(a) => sync::run(&cli.global, a, sink),
        Command::Store(a) => store::run(&cli.global, a, sink),
        Command::Config(a) => config::run(&cli.global, a, sink),
        Command::Key(a) => key::run(&cli.global, a, sink),
        Command::Completions { shell } => completions(*shell),
        Command::Man => man(),
        Command::ProbePath { .. } => Ok(Exit::Ok),
    };
    let exit = outcome.unwrap_or_else(|failed| failed.report());
    crate::journal::settle(sink);
    exit.code()
}

/// What can be typed: every command with its options.
pub fn command() -> clap::Command {
    Cli::command()
}

/// clap ends with 2 on its own; that status means something else here.
fn usage(e: &clap::Error) -> Exit {
    let _ = e.print();
    match e.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Exit::Ok,
        _ => Exit::Usage,
    }
}

fn completions(shell: clap_complete::Shell) -> Result<Exit, Failed> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command(), "tars-backup", &mut script);
    text::put(&script).map_err(Failed::output)?;
    Ok(Exit::Ok)
}

fn man() -> Result<Exit, Failed> {
    let page = manual::render().map_err(Failed::output)?;
    text::put(&page).map_err(Failed::output)?;
    Ok(Exit::Ok)
}

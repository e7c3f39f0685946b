use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(tars_backup::cli::run(std::env::args_os()))
}

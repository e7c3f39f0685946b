//! The manual page: one for the whole program, with a section for each command.

use std::io;

use clap::{Command, CommandFactory};
use clap_mangen::Man;

use super::args::Cli;

pub fn render() -> io::Result<Vec<u8>> {
    let mut program = Cli::command();
    // Global options and full names of the commands are only filled in by this.
    program.build();
    let mut page = Vec::new();
    let top = Man::new(program.clone());
    top.render_title(&mut page)?;
    top.render_name_section(&mut page)?;
    top.render_synopsis_section(&mut page)?;
    top.render_options_section(&mut page)?;
    for command in program.get_subcommands() {
        section(command, &mut page)?;
    }
    Ok(page)
}

fn section(command: &Command, page: &mut Vec<u8>) -> io::Result<()> {
    if command.is_hide_set() || command.get_name() == "help" {
        return Ok(());
    }
    let title = command.get_bin_name().unwrap_or(command.get_name()).to_uppercase();
    page.extend_from_slice(format!(".SH \"{title}\"\n").as_bytes());
    let man = Man::new(command.clone());
    let mut parts = Vec::new();
    man.render_description_section(&mut parts)?;
    man.render_synopsis_section(&mut parts)?;
    man.render_options_section(&mut parts)?;
    // Sections of a page of its own become parts of this one.
    let text = String::from_utf8_lossy(&parts).replace(".SH DESCRIPTION\n", ".PP\n").replace(".SH ", ".SS ");
    page.extend_from_slice(text.as_bytes());
    for inner in command.get_subcommands() {
        section(inner, page)?;
    }
    Ok(())
}

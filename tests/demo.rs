//! The demonstration, run as a person runs it; it compares by itself with stock tools.

mod support;

use std::process::{Command, Stdio};

#[test]
fn the_demonstration_finds_all_equal() {
    let output = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/demo.sh"))
        .env("TARS_BACKUP", support::PROGRAM)
        .env_remove("STACK")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}{err}");
    assert_eq!(out.lines().last(), Some("demo: all equal"), "{out}{err}");
}

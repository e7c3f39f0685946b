//! The demonstration with a whole stack, run as a person runs it; it compares by itself.

use std::process::{Command, Stdio};

use crate::lab::Lab;
use crate::support::PROGRAM;

#[test]
fn a_stack_that_is_destroyed_comes_back_and_the_demonstration_leaves_nothing() {
    let lab = Lab::new();
    let output = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/demo.sh"))
        .envs([("STACK", "1"), ("TARS_BACKUP", PROGRAM), ("LAB_PREFIX", &lab.prefix)])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}{err}");
    assert_eq!(out.lines().last(), Some("demo: all equal"), "{out}{err}");
    let mine = format!("name={}", lab.prefix);
    for list in [&["ps", "-a"][..], &["volume", "ls"], &["network", "ls"]] {
        assert_eq!(lab.ok(&[list, &["-q", "--filter", &mine]].concat()), "", "{list:?}");
    }
}

//! Who this machine is.

use std::io;
use std::path::Path;
use std::time::Duration;

use crate::store::Owner;

/// Name of the machine, as the kernel has it.
pub fn name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// What to do where the machine has no identity yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Identity {
    /// Make one of our own and keep it.
    Make,
    /// Leave everything as it is: nothing may be written.
    LookOnly,
}

/// Identity that outlives a change of name: the machine-id, or one of our own where there is none.
fn machine_id(state_dir: &Path, identity: Identity) -> io::Result<String> {
    for path in ["/etc/machine-id", "/var/lib/dbus/machine-id"] {
        if let Ok(text) = std::fs::read_to_string(path)
            && is_id(text.trim())
        {
            return Ok(text.trim().to_owned());
        }
    }
    let own = state_dir.join("machine-id");
    match std::fs::read_to_string(&own) {
        Ok(text) if is_id(text.trim()) => return Ok(text.trim().to_owned()),
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    if identity == Identity::LookOnly {
        return Ok(String::new());
    }
    let mut random = [0u8; 16];
    io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut random)?;
    let id = hex::encode(random);
    crate::staging::make_private(state_dir).map_err(io::Error::other)?;
    std::fs::write(&own, format!("{id}\n"))?;
    Ok(id)
}

fn is_id(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// For how long this machine, or the container that stands for one, has been up; None where that cannot be known.
pub fn up_for() -> Option<Duration> {
    let uptime = std::fs::read_to_string("/proc/uptime").ok()?;
    let first = std::fs::read_to_string("/proc/1/stat").ok()?;
    age(&uptime, &first, rustix::param::clock_ticks_per_second())
}

/// Age of a process: the seconds that the kernel is up, less those when the process was started.
fn age(uptime: &str, stat: &str, ticks_per_second: u64) -> Option<Duration> {
    let up: f64 = uptime.split_whitespace().next()?.parse().ok()?;
    // The name of the program stands in brackets, and may hold anything.
    let (_, after_name) = stat.rsplit_once(')')?;
    let started: f64 = after_name.split_whitespace().nth(19)?.parse().ok()?;
    Duration::try_from_secs_f64((up - started / ticks_per_second as f64).max(0.0)).ok()
}

/// What we write into the marker of a store.
pub fn owner(host: &str, stack: Option<&str>, state_dir: &Path, identity: Identity) -> io::Result<Owner> {
    Ok(Owner {
        machine_id: machine_id(state_dir, identity)?,
        host: host.to_owned(),
        stack: stack.map(str::to_owned),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_as_old_as_its_first_process() {
        let stat = "1 (sys) temd) S 0 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 30000 9 9";
        assert_eq!(age("400.50 11.0\n", stat, 100), Some(Duration::from_millis(100_500)));
        assert_eq!(age("200.00 11.0\n", stat, 100), Some(Duration::ZERO));
        assert_eq!(age("400.50 11.0\n", "1 (x) S", 100), None);
        assert!(up_for().is_some_and(|up| up > Duration::ZERO));
    }
}

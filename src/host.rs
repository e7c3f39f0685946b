//! Who this machine is.

use std::io;
use std::path::Path;

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

/// What we write into the marker of a store.
pub fn owner(host: &str, stack: Option<&str>, state_dir: &Path, identity: Identity) -> io::Result<Owner> {
    Ok(Owner {
        machine_id: machine_id(state_dir, identity)?,
        host: host.to_owned(),
        stack: stack.map(str::to_owned),
    })
}

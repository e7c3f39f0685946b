//! What lies where in a backup, and the guides for a person who has nothing but stock tools.

use sha2::{Digest, Sha256};

use super::compress::Staged;
use super::read::{Codec, codec_of};
use crate::id::sha256_file;
use crate::manifest::{CONFIG_DIR, Manifest};

pub const MANIFEST: &str = "manifest.json";
pub const GUIDE: &str = "RESTORE.md";

/// The command that prints a member without its compression.
pub fn cat(member: &str) -> String {
    match codec_of(member).1 {
        Codec::Gzip => format!("gunzip -c {member}"),
        Codec::Zstd => format!("zstd -dc {member}"),
        Codec::Plain => format!("cat {member}"),
    }
}

/// The checksums of the manifest: one per file, and one for the whole of `config/`.
pub fn checksums<'a>(files: impl Iterator<Item = &'a Staged>) -> std::collections::BTreeMap<String, String> {
    let mut sums = std::collections::BTreeMap::new();
    let mut config: Vec<(&str, &str)> = Vec::new();
    for staged in files {
        sums.insert(staged.member.clone(), format!("sha256:{}", staged.sha256));
        if let Some(inside) = staged.member.strip_prefix(CONFIG_DIR) {
            config.push((inside, &staged.sha256));
        }
    }
    if !config.is_empty() {
        sums.insert(CONFIG_DIR.to_owned(), format!("sha256:{}", config_digest(&mut config)));
    }
    sums
}

/// What `cd config; find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum` prints. `files` are
/// `(path inside config/, hex digest)`.
pub fn config_digest(files: &mut [(&str, &str)]) -> String {
    files.sort_by(|a, b| a.0.as_bytes().cmp(b.0.as_bytes()));
    let mut hasher = Sha256::new();
    for (path, sha256) in files {
        hasher.update(format!("{sha256}  ./{path}\n"));
    }
    hex::encode(hasher.finalize())
}

/// The guide inside an archive. `sections` are `(component, text)`.
pub fn guide(manifest: &Manifest, sections: &[(String, String)]) -> String {
    let name = &manifest.backup_name;
    let mut text = format!(
        "# How to restore {name} without tars-backup\n\n\
         Written by tars-backup {} on {} at {} (UTC). All commands are stock Debian tools.\n\n\
         ## Check and unpack\n\n```\nsha256sum -c {}\ntar -xzf {}\ncd {name}\n```\n\n\
         In parts, or sealed? `RESTORE.md` at the root of the store tells what comes before that.\n\n\
         `manifest.json` lists every file with its SHA-256, and what was counted in it. State of this backup: {}.\n",
        manifest.version,
        manifest.host,
        manifest.timestamp,
        sha256_file(&name.archive()),
        name.archive(),
        manifest.state,
    );
    if !manifest.failed_components.is_empty() {
        text.push_str(&format!(
            "\n**Not in this archive, or not whole: {}.**\n",
            manifest.failed_components.join(", ")
        ));
    }
    for (component, section) in sections {
        text.push_str(&format!("\n## {component}\n\n{section}"));
    }
    text
}

/// The guide at the root of a store.
pub fn store_guide() -> &'static str {
    "# Backups made by tars-backup\n\n\
     Each backup is one archive with small files beside it, in a directory per tier:\n\n\
     - `tars-backup-YYYYMMDD_HHMMSS.tar.gz`: the archive (time in UTC)\n\
     - `….tar.gz.sha256`: its checksum\n\
     - `….tar.gz.age`: the same, sealed; one of the identities whose public keys `….manifest.json` names opens it\n\
     - `….p0001`, `….p0002`, …: the parts of an archive that is too long for one object; `….parts`: their checksums\n\
     - `….manifest.json`: what is in it; an archive without this file was never finished, do not use it\n\
     - `….verified`: when its stored bytes were last found good; `….receipt.json`: how they came here\n\n\
     To restore with tars-backup: `tars-backup list`, then `tars-backup verify --deep NAME`.\n\n\
     To restore without it, on any Debian machine:\n\n\
     ```\n\
     sha256sum -c tars-backup-YYYYMMDD_HHMMSS.tar.gz.sha256\n\
     tar -xzf tars-backup-YYYYMMDD_HHMMSS.tar.gz\n\
     less tars-backup-YYYYMMDD_HHMMSS/RESTORE.md\n\
     ```\n\n\
     Before that, where it lies in parts:\n\n\
     ```\n\
     sha256sum -c tars-backup-YYYYMMDD_HHMMSS.tar.gz.parts\n\
     cat tars-backup-YYYYMMDD_HHMMSS.tar.gz.p[0-9]* > tars-backup-YYYYMMDD_HHMMSS.tar.gz\n\
     ```\n\n\
     And where it is sealed (its names end in `.age`, those of its parts have `.age` before `.p0001`), after its checksum was compared:\n\n\
     ```\n\
     age -d -i IDENTITY_FILE -o tars-backup-YYYYMMDD_HHMMSS.tar.gz tars-backup-YYYYMMDD_HHMMSS.tar.gz.age\n\
     ```\n\n\
     `RESTORE.md` in each archive has the commands for every component of that archive.\n"
}

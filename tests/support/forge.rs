//! Backups that say what is not so, with every digest in order: only bringing them back can find it.

#![allow(dead_code, clippy::unwrap_used)]

use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tars_backup::manifest::{Encryption, Manifest};

use crate::support::{Home, sh};

/// Makes the one plain backup of the home anew: `edit` changes its unpacked members and its manifest, then digests and
/// lengths are made to fit. `recipient`: it is sealed for him afterwards.
pub fn forge(home: &Home, recipient: Option<&str>, edit: impl FnOnce(&Path, &mut Value)) {
    let name = home.only();
    let dir = home.unpack("forged");
    let mut manifest: Value =
        serde_json::from_slice(&std::fs::read(dir.join("manifest.json")).unwrap()).unwrap();
    edit(&dir, &mut manifest);
    let details = manifest["details"].as_object().unwrap().clone();
    for (component, c) in details {
        let mut bytes = 0;
        for member in c["members"].as_array().unwrap() {
            let member = member.as_str().unwrap();
            let content = std::fs::read(dir.join(member)).unwrap();
            bytes += content.len();
            if manifest["checksums"].get(member).is_some() {
                manifest["checksums"][member] = json!(format!("sha256:{}", digest(&content)));
            }
        }
        manifest["details"][&component]["bytes_stored"] = json!(bytes);
    }
    if dir.join("config").is_dir() {
        let all = "find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum | cut -c1-64";
        let sum = sh(&format!("cd '{}/config'; {all}", dir.display()));
        manifest["checksums"]["config/"] = json!(format!("sha256:{}", sum.trim()));
    }
    let inner = Manifest::read_inner(&serde_json::to_vec(&manifest).unwrap()).unwrap();
    std::fs::write(dir.join("manifest.json"), inner.to_inner().unwrap()).unwrap();
    let (store, forged) = (home.at("store/daily"), home.at("forged"));
    // The manifest is the first file in it.
    sh(&format!(
        "rm -f '{store}/{name}'.*; cd '{forged}'; find {name} -type f ! -path {name}/manifest.json | sort >list; \
         tar -czf '{store}/{name}.tar.gz' {name}/manifest.json -T list"
    ));
    let mut beside = inner;
    if let Some(recipient) = recipient {
        beside.encryption = Encryption { method: Some("age".into()), recipients: vec![recipient.to_owned()] };
        sh(&format!(
            "cd '{store}'; age -r '{recipient}' -o {name}.tar.gz.age {name}.tar.gz; rm {name}.tar.gz"
        ));
    }
    let archive = beside.archive_file();
    let content = std::fs::read(Path::new(&store).join(&archive)).unwrap();
    let sha256 = digest(&content);
    let write = |file: String, text: Vec<u8>| std::fs::write(Path::new(&store).join(file), text).unwrap();
    write(format!("{archive}.sha256"), format!("{sha256}  {archive}\n").into_bytes());
    write(format!("{name}.manifest.json"), beside.to_sidecar(content.len() as u64, &sha256).unwrap());
    std::fs::remove_dir_all(forged).unwrap();
}

fn digest(content: &[u8]) -> String {
    hex::encode(Sha256::digest(content))
}

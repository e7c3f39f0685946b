//! The kit as a page to be printed: what there is, then the commands, in order, ready to be copied. What could go wrong: a
//! command that does not do what it says on the day; so tests/recovery.rs follows this very text on a machine that has
//! nothing.

use std::fmt::Write as _;
use std::path::Path;

use crate::docker::compose;
use crate::ops::kit::{Kit, KitStore};

const CREDENTIALS: &str = "/root/tars-credentials";
const IDENTITY: &str = "/root/tars-identity.txt";
const SSH_KEY: &str = "/root/tars-ssh-key";
const CURL: &str = "/root/tars-curl";

/// One thing to do, and its commands.
pub struct Step {
    pub title: String,
    pub commands: String,
}

pub fn text(kit: &Kit) -> String {
    let mut out = format!(
        "# Recovery kit of {}\n\nMade {} by tars-backup {}. It opens every backup: keep it like money, not on {} and not in \
         its stores.\n",
        kit.host,
        kit.made.strftime("%F %T UTC"),
        kit.version,
        kit.host
    );
    let mut line = |text: String| out.push_str(&(text + "\n"));
    if !kit.missing.is_empty() || !kit.advice.is_empty() {
        line("\n## What it lacks\n".into());
        kit.missing.iter().chain(&kit.advice).for_each(|text| line(format!("- {text}")));
    }
    for store in &kit.stores {
        line(format!("\n## Store {}\n\n- URL: {}\n- host: {}", store.name, store.url, kit.host));
        store.facts.iter().for_each(|(label, value)| line(format!("- {label}: {value}")));
        for (label, value) in &store.keys {
            match value {
                Some(_) if *label == "ssh_key" => line("- ssh_key: below".into()),
                Some(value) => line(format!("- {label}: {}", value.0)),
                None => line(format!("- {label}: ____________________")),
            }
        }
        for package in &store.packages {
            let sum = package.sha256.as_ref().map_or_else(String::new, |s| format!(", SHA-256 {s}"));
            line(format!("- package: tools/{}{sum}", package.file));
        }
        store.notes.iter().for_each(|text| line(format!("- {text}")));
    }
    line("\n## Keys\n".into());
    kit.recipients.iter().for_each(|r| line(format!("- sealed for: {r}")));
    match (kit.identities.is_empty(), &kit.identity_from) {
        (false, _) => line("- the private key stands below, in the commands".into()),
        (true, Some(from)) => {
            line(format!("- the private key is at {from} of {}, and must be kept elsewhere, too", kit.host))
        }
        (true, None) => {
            line("- the private key is not on this machine: where is it? ____________________".into())
        }
    }
    line("\n## Commands\n\nOn a new machine with Debian and Docker, as root, one after the other. Turn the old one off first.".into());
    for (number, step) in steps(kit).iter().enumerate() {
        line(format!("\n{}. {}\n\n```\n{}```", number + 1, step.title, step.commands));
    }
    line("\nWhat each step does, and what to do when one fails: docs/backup-recovery.md.".into());
    out
}

/// What to do, from the first store, which is the farthest from what has burned.
pub fn steps(kit: &Kit) -> Vec<Step> {
    let Some(store) = kit.stores.first() else { return Vec::new() };
    let mut steps = Vec::new();
    let mut step = |title: &str, commands: String| steps.push(Step { title: title.to_owned(), commands });
    let keys = files_of_keys(kit, store);
    if !keys.is_empty() {
        step("Write the keys to files that only you can read.", keys);
    }
    step("Get the program.", package(store));
    let mut options = format!(" --from {} --host {}", quote(&store.url), quote(&kit.host));
    if !kit.recipients.is_empty() {
        write!(options, " --identity {IDENTITY}").unwrap_or_default();
    }
    if !store.keys.is_empty() {
        write!(options, " --credentials {CREDENTIALS}").unwrap_or_default();
    }
    let components = kit.components.join(",");
    let below: String =
        kit.below.iter().map(|d| format!(" --below {}", quote(&d.display().to_string()))).collect();
    if !components.is_empty() {
        let first =
            format!("tars-backup restore --latest --component {components} --restore-config{below}{options}");
        step(
            "Bring the configuration back. Look at the plan, then say yes. From here on this machine is held: its timers do \
             nothing.",
            format!("{first} --dry-run\n{first}\n"),
        );
    }
    step(
        "Go on under the name of the old machine, and tell systemd.",
        format!(
            "mkdir -p /etc/tars-backup/conf.d\nprintf '[agent]\\nhost = \"%s\"\\n' {} \
             >/etc/tars-backup/conf.d/host.toml\ntars-backup config check\ntars-backup config apply\n",
            quote(&kit.host)
        ),
    );
    let program = kit.compose_program;
    let other = if program == compose::ALONE { compose::PLUGIN } else { compose::ALONE };
    for stack in &kit.stacks {
        step(
            &format!(
                "Make the containers, without starting them. Where `{program}` is not there, type `{other}`."
            ),
            format!("{} up --no-start\n", stack.command(program)),
        );
    }
    step(
        "Bring the data back. Look at the plan, then say yes.",
        format!("tars-backup restore --latest{options} --dry-run\ntars-backup restore --latest{options}\n"),
    );
    for stack in &kit.stacks {
        step("Start what does not run yet.", format!("{} up -d\n", stack.command(program)));
    }
    let adopt: String =
        kit.stores.iter().map(|s| format!("tars-backup store adopt {}\n", quote(&s.name))).collect();
    step("Take the stores over: the old machine may not write there any more.", adopt);
    step("Look. The one thing that may be wrong is that the machine is held.", "tars-backup status\n".into());
    step(
        "Let it make backups again, and remove the keys.",
        format!(
            "tars-backup accept --host\nsystemctl start tars-backup.service\ntars-backup status\nrm -f {IDENTITY} {CREDENTIALS} {SSH_KEY} {CURL}\n"
        ),
    );
    steps
}

/// A file made from what follows; nothing of it is in a list of processes.
fn file(mode: &str, path: &str, text: &str) -> String {
    format!("install -D -m {mode} /dev/stdin {} <<'END'\n{}\nEND\n", quote(path), text.trim_end_matches('\n'))
}

fn files_of_keys(kit: &Kit, store: &KitStore) -> String {
    let mut out = String::new();
    let blank = "____________________".to_owned();
    let mut lines = String::new();
    let mut curl = Vec::new();
    for (label, value) in &store.keys {
        let value = value.as_ref().map_or(&blank, |v| &v.0);
        match *label {
            "ssh_key" => {
                out.push_str(&file("600", SSH_KEY, value));
                writeln!(lines, "ssh_key = {SSH_KEY}").unwrap_or_default();
            }
            label => {
                writeln!(lines, "{label} = {value}").unwrap_or_default();
                curl.push((label, value));
            }
        }
    }
    if !lines.is_empty() {
        out.push_str(&file("600", CREDENTIALS, &lines));
    }
    let value = |name: &str| {
        curl.iter()
            .find(|(label, _)| *label == name)
            .map(|(_, v)| v.replace('\\', "\\\\").replace('"', "\\\""))
    };
    if let (Some(id), Some(key), true) = (value("key_id"), value("key"), store.web.is_some()) {
        let token = value("session_token")
            .map_or_else(String::new, |t| format!("header = \"x-amz-security-token: {t}\"\n"));
        out.push_str(&file(
            "600",
            CURL,
            &format!("user = \"{id}:{key}\"\nheader = \"x-amz-content-sha256: UNSIGNED-PAYLOAD\"\n{token}"),
        ));
    }
    for needed in &store.files {
        out.push_str(&file("644", &needed.path.display().to_string(), &needed.text));
    }
    if !kit.identities.is_empty() {
        let all: String = kit.identities.iter().map(|i| i.0.as_str()).collect();
        out.push_str(&file("600", IDENTITY, &all));
    } else if !kit.recipients.is_empty() {
        out.push_str(&format!(
            "install -m 600 /dev/stdin {IDENTITY}   # type the private key, then Ctrl-D\n"
        ));
    }
    out
}

fn package(store: &KitStore) -> String {
    let Some(package) = store.packages.last() else {
        return "apt-get install tars-backup   # from your repository, or from a file: apt-get install ./FILE.deb\n".into();
    };
    let file = &package.file;
    let mut out = "cd /root\n".to_owned();
    let ca = store.files.first().filter(|_| store.web.is_some());
    let ca = ca.map_or_else(String::new, |f| format!(" --cacert {}", quote(&f.path.display().to_string())));
    match (&store.web, store.url.strip_prefix("sftp://")) {
        (Some((root, region)), _) => {
            let url = quote(&format!("{root}/tools/{file}"));
            let sign = quote(&format!("aws:amz:{region}:s3"));
            writeln!(out, "command -v curl || apt-get install curl").unwrap_or_default();
            writeln!(out, "curl -f -O -K {CURL} --aws-sigv4 {sign}{ca} {url}").unwrap_or_default();
        }
        (None, Some(_)) => {
            let fact =
                |name: &str| store.facts.iter().find(|(n, _)| *n == name).map_or("", |(_, v)| v.as_str());
            let user = fact("user");
            let at = if user.is_empty() { String::new() } else { format!("{user}@") };
            let known = store.files.first();
            let known = known.map_or_else(String::new, |f| {
                format!(" -o UserKnownHostsFile={}", quote(&f.path.display().to_string()))
            });
            let key = if store.keys.is_empty() { String::new() } else { format!(" -i {SSH_KEY}") };
            let from = quote(&format!(
                "{at}{}:{}/tools/{file}",
                fact("server"),
                fact("directory").trim_end_matches('/')
            ));
            writeln!(out, "sftp -P {}{key}{known} {from} .", fact("port")).unwrap_or_default();
        }
        (None, None) => {
            let root = store.facts.first().map_or("", |(_, v)| v.as_str());
            let from = Path::new(root).join("tools").join(file);
            writeln!(out, "cp {} .", quote(&from.display().to_string())).unwrap_or_default();
        }
    }
    if let Some(sum) = &package.sha256 {
        writeln!(out, "echo '{sum}  {file}' | sha256sum -c").unwrap_or_default();
    }
    writeln!(out, "apt-get install ./{file}").unwrap_or_default();
    out
}

/// One word for a shell.
fn quote(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:@%+=,".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_of_a_shell_is_one_word() {
        assert_eq!(quote("/opt/tars-home"), "/opt/tars-home");
        assert_eq!(quote("s3://a/b?region=x&ca=/y"), "'s3://a/b?region=x&ca=/y'");
        assert_eq!(quote("it's"), "'it'\\''s'");
        assert_eq!(quote(""), "''");
        assert_eq!(quote("~x $y"), "'~x $y'");
    }
}

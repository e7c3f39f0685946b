//! The kit as a page to be printed: what there is, then the commands, in order, ready to be copied. What could go wrong: a
//! command that does not do what it says on the day; so tests/recovery.rs follows this very text on a machine that has
//! nothing.

use std::fmt::Write as _;
use std::path::Path;

use crate::docker::compose;
use crate::ops::kit::{Kit, KitFile, KitMount, KitPackage, KitStore, identity_file};
use crate::reach::OWN;
use crate::store::{CA, KNOWN_HOSTS};

const IDENTITY: &str = "/root/tars-identity.txt";

/// Where the keys of one store are put.
struct Places {
    credentials: String,
    ssh_key: String,
    curl: String,
}

impl Places {
    /// The store of the commands has the plain names.
    fn of(kit: &Kit, store: &KitStore) -> Self {
        let is_first = kit.stores.first().is_some_and(|first| first.name == store.name);
        let at = |what: &str| match is_first {
            true => format!("/root/tars-{what}"),
            false => format!("/root/tars-{what}-{}", store.name),
        };
        Self { credentials: at("credentials"), ssh_key: at("ssh-key"), curl: at("curl") }
    }
}

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
                Some(_) if *label == "ssh_key" => line("- ssh_key: below, in the commands".into()),
                Some(value) => line(format!("- {label}: {}", value.0)),
                None => line(format!("- {label}: ____________________")),
            }
        }
        for package in &store.packages {
            let sum = package.sha256.as_ref().map_or_else(String::new, |s| format!(", SHA-256 {s}"));
            line(format!("- package: tools/{}{sum}", package.file));
        }
        store.mount.iter().for_each(|m| line(mount(m)));
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
    let tars = kit.config.as_ref().map_or("tars-backup".into(), |p| {
        format!("tars-backup --config {}", quote(&p.display().to_string()))
    });
    let keys = files_of_keys(kit);
    if !keys.is_empty() {
        step("Write the keys to files that only you can read.", keys);
    }
    step("Get the program.", package(kit, store));
    // A configuration that is named has to be there, and is not yet.
    step(&newest(kit), format!("tars-backup list{}\n", from(kit, store, "store")));
    let mut options = from(kit, store, "from");
    if !kit.recipients.is_empty() {
        write!(options, " --identity {IDENTITY}").unwrap_or_default();
    }
    let components = kit.components.join(",");
    let below: String =
        kit.below.iter().map(|d| format!(" --below {}", quote(&d.display().to_string()))).collect();
    if !components.is_empty() {
        let partial = if kit.by_hand.is_empty() { "" } else { " --allow-partial" };
        let first = format!(
            "{tars} restore --latest --component {components} --restore-config{partial}{below}{options}"
        );
        let left_out = match kit.by_hand.as_slice() {
            [] => String::new(),
            names => format!(
                " What belongs to the system is left out, so that the status is 2: {}; put it back by hand.",
                names.join(", ")
            ),
        };
        step(
            &format!(
                "Bring the configuration back. Look at the plan, then say yes. From here on this machine is held: its \
                 timers do nothing.{left_out}"
            ),
            format!("{first} --dry-run\n{first}\n"),
        );
    }
    let beside = kit.config.as_deref().and_then(Path::parent).unwrap_or(Path::new(OWN)).join("conf.d");
    step(
        "Go on under the name of the old machine, and tell systemd.",
        format!(
            "mkdir -p {}\nprintf '[agent]\\nhost = \"%s\"\\n' {} >{}\n{tars} config check\n{tars} config apply\n",
            quote(&beside.display().to_string()),
            quote(&kit.host),
            quote(&beside.join("host.toml").display().to_string()),
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
        format!("{tars} restore --latest{options} --dry-run\n{tars} restore --latest{options}\n"),
    );
    for stack in &kit.stacks {
        step("Start what does not run yet.", format!("{} up -d\n", stack.command(program)));
    }
    let used = || kit.stores.iter().filter(|s| !s.tiers.is_empty());
    let adopt: String = used().map(|s| format!("{tars} store adopt {}\n", quote(&s.name))).collect();
    step("Take the stores over: the old machine may not write there any more.", adopt);
    step("Look. The one thing that may be wrong is that the machine is held.", format!("{tars} status\n"));
    // The units know the configuration by its usual place.
    let first = match kit.config {
        None => "systemctl start tars-backup.service".to_owned(),
        Some(_) => format!("{tars} backup"),
    };
    let mut written = vec![IDENTITY.to_owned()];
    for store in kit.stores.iter().filter(|s| !s.keys.is_empty()) {
        let places = Places::of(kit, store);
        written.extend([places.credentials, places.ssh_key, places.curl]);
    }
    step(
        "Let it make backups again, and remove the keys.",
        format!("{tars} accept --host\n{first}\n{tars} status\nrm -f {}\n", written.join(" ")),
    );
    steps
}

/// Which backup it will be, and what to use where another store has a newer one.
fn newest(kit: &Kit) -> String {
    let mut text =
        "Look which backups there are. The newest one comes back: is it as new as it should be?".to_owned();
    for other in kit.stores.iter().skip(1).filter(|s| !s.tiers.is_empty()) {
        write!(
            text,
            " If {} still lives and has a newer one (`tars-backup list{}`), use `{}` from here on in the place of `{}`.",
            other.name,
            from(kit, other, "store"),
            from(kit, other, "from").trim_start(),
            kit.stores.first().map_or(String::new(), |first| from(kit, first, "from")).trim_start(),
        )
        .unwrap_or_default();
    }
    text
}

/// What leads to a store: its URL as the option `name`.
fn from(kit: &Kit, store: &KitStore, name: &str) -> String {
    let mut out = format!(" --{name} {} --host {}", quote(&store.url), quote(&kit.host));
    if !store.keys.is_empty() {
        write!(out, " --credentials {}", quote(&Places::of(kit, store).credentials)).unwrap_or_default();
    }
    out
}

/// A file made from what follows; nothing of it is in a list of processes.
fn file(mode: &str, path: &str, text: &str) -> String {
    format!("install -D -m {mode} /dev/stdin {} <<'END'\n{}\nEND\n", quote(path), text.trim_end_matches('\n'))
}

/// The keys of all stores: each has to work again on the new machine.
fn files_of_keys(kit: &Kit) -> String {
    let mut out: String = kit.stores.iter().map(|store| keys_of(kit, store)).collect();
    let mut files: Vec<&KitFile> = kit.stores.iter().flat_map(|s| &s.files).collect();
    files.sort_by(|a, b| a.path.cmp(&b.path));
    files.dedup_by(|a, b| a.path == b.path);
    for needed in files {
        out.push_str(&file("644", &needed.path.display().to_string(), &needed.text));
    }
    if !kit.identities.is_empty() {
        out.push_str(&file("600", IDENTITY, &identity_file(&kit.identities)));
    } else if !kit.recipients.is_empty() {
        out.push_str(&format!(
            "install -m 600 /dev/stdin {IDENTITY}   # type the private key, then Ctrl-D\n"
        ));
    }
    out
}

fn keys_of(kit: &Kit, store: &KitStore) -> String {
    let mut out = String::new();
    let places = Places::of(kit, store);
    let blank = "____________________".to_owned();
    let mut lines = String::new();
    let mut curl = Vec::new();
    for (label, value) in &store.keys {
        let value = value.as_ref().map_or(&blank, |v| &v.0);
        match *label {
            "ssh_key" => {
                out.push_str(&file("600", &places.ssh_key, value));
                writeln!(lines, "ssh_key = {}", places.ssh_key).unwrap_or_default();
            }
            label => {
                writeln!(lines, "{label} = {value}").unwrap_or_default();
                curl.push((label, value));
            }
        }
    }
    if !lines.is_empty() {
        out.push_str(&file("600", &places.credentials, &lines));
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
            &places.curl,
            &format!("user = \"{id}:{key}\"\nheader = \"x-amz-content-sha256: UNSIGNED-PAYLOAD\"\n{token}"),
        ));
    }
    out
}

/// What must be mounted before the commands, and how, where that can be known.
fn mount(m: &KitMount) -> String {
    let point = quote(&m.point.display().to_string());
    let with =
        if m.options.is_empty() { String::new() } else { format!(" -o {}", quote(&m.options.join(","))) };
    let tools = match m.kind.as_str() {
        "nfs" | "nfs4" => "nfs-common",
        "cifs" | "smb3" => "cifs-utils",
        _ => "",
    };
    let how = match (m.network, tools) {
        (true, tools) if !tools.is_empty() => format!(
            ": `apt-get install -y {tools}; mkdir -p {point}; mount -t {}{with} {} {point}`",
            m.kind,
            quote(&m.source)
        ),
        _ => String::new(),
    };
    format!(
        "- mount: {} ({}) at {}\n- it must be mounted before the commands{how}",
        m.source,
        m.kind,
        m.point.display()
    )
}

/// The package of this machine: of several architectures, its own is chosen by what the machine says of itself.
fn package(kit: &Kit, store: &KitStore) -> String {
    let places = Places::of(kit, store);
    let mut out = String::new();
    // As a word of a shell, and the check of it.
    let (file, check) = match store.packages.as_slice() {
        [] => {
            return "apt-get install -y tars-backup   # from your repository, or from a file: apt-get install -y ./FILE.deb\n".into();
        }
        [only] => {
            let sum = only.sha256.as_ref().map(|sum| format!("echo '{sum}  {}' | sha256sum -c\n", only.file));
            (only.file.clone(), sum.unwrap_or_default())
        }
        several => {
            let one = |p: &KitPackage| {
                let sum = p.sha256.as_deref().unwrap_or_default();
                format!("{}) file={} sum={sum};; ", p.architecture, p.file)
            };
            let each: String = several.iter().map(one).collect();
            writeln!(out, "case $(dpkg --print-architecture) in {each}esac").unwrap_or_default();
            let known = several.iter().all(|p| p.sha256.is_some());
            let when = if known { "" } else { "[ -z \"$sum\" ] || " };
            ("\"$file\"".to_owned(), format!("{when}echo \"$sum  $file\" | sha256sum -c\n"))
        }
    };
    out.push_str("cd /root\n");
    // A word that a shell has to look into stands behind one that it must not.
    let at = |dir: String| match file.strip_prefix('"') {
        None => quote(&format!("{dir}{file}")),
        Some(_) => format!("{}{file}", quote(&dir)),
    };
    let path_of = |what: &str| {
        let found = store.files.iter().find(|f| f.what == what);
        found.map(|f| quote(&f.path.display().to_string()))
    };
    let ca = path_of(CA).map_or_else(String::new, |path| format!(" --cacert {path}"));
    match (&store.web, store.url.strip_prefix("sftp://")) {
        (Some((root, region)), _) => {
            let url = at(format!("{root}/tools/"));
            let sign = quote(&format!("aws:amz:{region}:s3"));
            writeln!(out, "command -v curl || apt-get install -y curl").unwrap_or_default();
            writeln!(out, "curl -f -O -K {} --aws-sigv4 {sign}{ca} {url}", places.curl).unwrap_or_default();
        }
        (None, Some(_)) => {
            let fact =
                |name: &str| store.facts.iter().find(|(n, _)| *n == name).map_or("", |(_, v)| v.as_str());
            let user = fact("user");
            let login = if user.is_empty() { String::new() } else { format!("{user}@") };
            let known = path_of(KNOWN_HOSTS)
                .map_or_else(String::new, |path| format!(" -o UserKnownHostsFile={path}"));
            let key =
                if store.keys.is_empty() { String::new() } else { format!(" -i {}", quote(&places.ssh_key)) };
            let dir = fact("directory").trim_end_matches('/');
            let from = at(format!("{login}{}:{dir}/tools/", fact("server")));
            writeln!(out, "sftp -P {}{key}{known} {from} .", fact("port")).unwrap_or_default();
        }
        (None, None) => {
            let root = store.facts.first().map_or("", |(_, v)| v.as_str());
            let from = at(format!("{}/", Path::new(root).join("tools").display()));
            writeln!(out, "cp {from} .").unwrap_or_default();
        }
    }
    out.push_str(&check);
    writeln!(out, "apt-get install -y ./{file}").unwrap_or_default();
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

    use jiff::Timestamp;

    use crate::ops::kit::Secret;

    fn store(name: &str, url: &str) -> KitStore {
        KitStore {
            name: name.into(),
            offsite: true,
            tiers: vec!["hot".into()],
            has_configuration: true,
            url: url.into(),
            ..KitStore::default()
        }
    }

    fn bucket() -> KitStore {
        let key = |text: &str| Some(Secret(text.into()));
        KitStore {
            keys: vec![("key_id", key("id-1")), ("key", key("secret-1"))],
            files: vec![KitFile { what: CA, path: "/etc/tars-backup/ca.pem".into(), text: "CA\n".into() }],
            web: Some(("https://s3.example.com/a b".into(), "eu".into())),
            ..store("bucket", "s3://vault/home?region=eu")
        }
    }

    fn far() -> KitStore {
        let file = |what, path: &str, text: &str| KitFile { what, path: path.into(), text: text.into() };
        KitStore {
            keys: vec![("ssh_key", Some(Secret("KEY OF FAR\n".into())))],
            files: vec![
                file("ssh_config", "/etc/tars-backup/ssh_config", "SETTINGS\n"),
                file(KNOWN_HOSTS, "/etc/tars-backup/known", "HOSTS\n"),
            ],
            facts: vec![
                ("server", "far.example.com".into()),
                ("port", "22".into()),
                ("directory", "b".into()),
            ],
            ..store("far", "sftp://far.example.com/~/b")
        }
    }

    fn kit(stores: Vec<KitStore>) -> Kit {
        Kit {
            host: "home".into(),
            made: Timestamp::UNIX_EPOCH,
            version: "1",
            config: None,
            stores,
            recipients: vec!["age1x".into()],
            identities: vec![Secret("AGE-SECRET-KEY-1X".into())],
            identity_from: None,
            components: vec!["configuration".into()],
            below: Vec::new(),
            by_hand: Vec::new(),
            stacks: Vec::new(),
            compose_program: compose::PLUGIN,
            missing: Vec::new(),
            advice: Vec::new(),
        }
    }

    fn package(architecture: &str, sum: Option<&str>) -> KitPackage {
        KitPackage {
            file: format!("tars-backup_1-1_{architecture}.deb"),
            architecture: architecture.into(),
            version: "1-1".into(),
            sha256: sum.map(str::to_owned),
        }
    }

    /// What a shell makes of these lines, where `arch` is what dpkg says, and nothing but `echo` is done.
    fn done(lines: &str, arch: &str) -> String {
        let quiet = "cd() { :; }; curl() { echo curl \"$@\"; }; cp() { echo cp \"$@\"; }; sftp() { echo sftp \"$@\"; }
            apt-get() { echo apt-get \"$@\"; }; sha256sum() { cat; }; command() { :; }";
        let script = format!("set -eu; dpkg() {{ echo {arch}; }}; {quiet}\n{lines}");
        let ran = std::process::Command::new("bash").args(["-c", &script]).output().unwrap();
        assert!(ran.status.success(), "{lines}{}", String::from_utf8_lossy(&ran.stderr));
        String::from_utf8(ran.stdout).unwrap()
    }

    fn commands(kit: &Kit) -> String {
        steps(kit).iter().map(|s| s.commands.as_str()).collect()
    }

    #[test]
    fn the_keys_and_files_of_every_store_are_in_the_commands() {
        let kit = kit(vec![bucket(), far()]);
        let (page, commands) = (text(&kit), commands(&kit));
        for (path, what) in [
            ("/root/tars-credentials", "key_id = id-1\nkey = secret-1"),
            ("/root/tars-credentials-far", "ssh_key = /root/tars-ssh-key-far"),
            ("/root/tars-ssh-key-far", "KEY OF FAR"),
            ("/etc/tars-backup/ca.pem", "CA"),
            ("/etc/tars-backup/known", "HOSTS"),
            ("/etc/tars-backup/ssh_config", "SETTINGS"),
        ] {
            let block = format!(" /dev/stdin {path} <<'END'\n{what}\nEND\n");
            assert!(commands.contains(&block) && page.contains(&block), "{path}:\n{commands}");
        }
        let removed = commands.lines().last().unwrap();
        assert!(removed.contains(" /root/tars-credentials ") && removed.contains("/root/tars-ssh-key-far"));
    }

    #[test]
    fn what_another_store_needs_is_said_before_anything_comes_back() {
        let unused = KitStore { tiers: Vec::new(), ..store("unused", "file:///unused") };
        let kit = kit(vec![bucket(), far(), unused]);
        let steps = steps(&kit);
        let at = |what: &str| steps.iter().position(|s| s.commands.contains(what)).unwrap();
        let look = &steps[at("tars-backup list")];
        assert!(at("tars-backup list") < at(" restore "));
        assert_eq!(
            look.commands,
            "tars-backup list --store 's3://vault/home?region=eu' --host home --credentials /root/tars-credentials\n"
        );
        let options = "--host home --credentials /root/tars-credentials-far";
        let url = quote("sftp://far.example.com/~/b");
        let list =
            format!("If far still lives and has a newer one (`tars-backup list --store {url} {options}`)");
        assert!(look.title.contains(&list), "{}", look.title);
        assert!(look.title.contains(&format!("use `--from {url} {options}`")), "{}", look.title);
        assert!(!look.title.contains("unused"), "{}", look.title);
        let adopted: Vec<&str> = steps[at("store adopt")].commands.lines().collect();
        assert_eq!(adopted, ["tars-backup store adopt bucket", "tars-backup store adopt far"]);
    }

    #[test]
    fn the_package_of_this_machine_is_fetched_compared_and_installed() {
        let (a, b) = ("a".repeat(64), "b".repeat(64));
        let nas = || KitStore { facts: vec![("directory", "/mnt/my nas".into())], ..store("nas", "") };
        for make in [bucket, far, nas] {
            let with = |packages| {
                let kit = kit(vec![KitStore { packages, ..make() }]);
                super::package(&kit, &kit.stores[0])
            };
            let one = with(vec![package("amd64", Some(&a))]);
            assert!(one.contains("tools/tars-backup_1-1_amd64.deb") && !one.contains("case"), "{one}");
            let both = with(vec![package("amd64", Some(&a)), package("arm64", Some(&b))]);
            for (arch, sum, other) in [("amd64", &a, "arm64"), ("arm64", &b, "amd64")] {
                let said = done(&both, arch);
                let file = format!("tars-backup_1-1_{arch}.deb");
                assert!(said.contains(&format!("/tools/{file}")), "{said}");
                assert!(said.contains(&format!("{sum}  {file}\n")), "{said}");
                assert!(said.ends_with(&format!("apt-get install -y ./{file}\n")), "{said}");
                assert!(!said.contains(other), "{said}");
            }
            let some = with(vec![package("amd64", None), package("arm64", Some(&b))]);
            assert!(!done(&some, "amd64").contains("  tars-backup"));
            assert!(done(&some, "arm64").contains(&format!("{b}  tars-backup_1-1_arm64.deb")));
        }
    }

    #[test]
    fn what_must_be_mounted_first_is_told_with_its_line() {
        let mounted = |kind: &str, network| KitStore {
            mount: Some(KitMount {
                source: "//nas/my files".into(),
                point: "/mnt/nas".into(),
                kind: kind.into(),
                options: vec!["vers=3.0".into(), "username=me".into()],
                network,
            }),
            ..store("nas", "file:///mnt/nas/b")
        };
        let page = text(&kit(vec![mounted("cifs", true)]));
        assert!(page.contains("- mount: //nas/my files (cifs) at /mnt/nas\n"), "{page}");
        let line = "mkdir -p /mnt/nas; mount -t cifs -o vers=3.0,username=me '//nas/my files' /mnt/nas`";
        assert!(page.contains(line), "{page}");
        let page = text(&kit(vec![mounted("ext4", false)]));
        assert!(
            page.contains("must be mounted before the commands\n") && !page.contains("mount -t"),
            "{page}"
        );
    }

    #[test]
    fn a_configuration_under_another_name_is_named_to_every_command() {
        let kit = Kit { config: Some("/etc/tars-backup/home.toml".into()), ..kit(vec![bucket()]) };
        let commands = commands(&kit);
        // But for the one that is before it.
        let is_ours = |l: &&str| l.starts_with("tars-backup ") && !l.starts_with("tars-backup list");
        let ours: Vec<&str> = commands.lines().filter(is_ours).collect();
        assert!(ours.len() > 7, "{commands}");
        assert!(
            ours.iter().all(|l| l.starts_with("tars-backup --config /etc/tars-backup/home.toml ")),
            "{commands}"
        );
        assert!(!commands.contains("tars-backup.service"), "{commands}");
    }

    #[test]
    fn a_word_of_a_shell_is_one_word() {
        assert_eq!(quote("/opt/tars-home"), "/opt/tars-home");
        assert_eq!(quote("s3://a/b?region=x&ca=/y"), "'s3://a/b?region=x&ca=/y'");
        assert_eq!(quote("it's"), "'it'\\''s'");
        assert_eq!(quote(""), "''");
        assert_eq!(quote("~x $y"), "'~x $y'");
    }
}

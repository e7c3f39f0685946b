//! A configuration as text, for a person who edits it next. What could go wrong: a name out of a label that ends a text or a
//! comment and begins something else; so every foreign text is escaped, be it a value or prose.

use std::fmt::Write;

use serde_json::Value;

use super::propose::{LeftOut, Source, WEEKLY};
use super::store::StoreChoice;
use crate::id::{misleads, show_name};

/// What the text is made of.
pub struct Sheet<'a> {
    pub project: &'a str,
    /// Where the engine is, if that is not where it is looked for anyway.
    pub engine: Option<&'a str>,
    pub sources: &'a [Source],
    pub left_out: &'a [LeftOut],
    pub store: &'a StoreChoice,
    /// What to do with it, in this order.
    pub next: &'a [String],
}

/// Longest line of a comment.
const WIDTH: usize = 118;

pub fn render(sheet: &Sheet<'_>) -> String {
    let mut page = Page(String::new());
    let store = sheet.store;
    page.prose(&format!(
        "tars-backup for the Compose project {:?}, as `tars-backup init` found it.",
        sheet.project
    ));
    page.blank();
    page.prose("Read it once, and change what you know better. Then:");
    for command in sheet.next {
        page.code(command);
    }
    page.blank();
    page.prose(
        "Prose begins with \"# \". A setting that is out of use begins with \"#\" and no blank: take the \"#\" away to use it. \
         Every key is explained in /usr/share/doc/tars-backup/examples/config.toml. No secret belongs into this file: a \
         password is a reference, { credential = \"name\" }, { file = \"/path\" } or { env = \"NAME\" }.",
    );

    page.heading("");
    page.table("agent");
    page.prose("Name of the stack, kept in the marker of each store.");
    page.key("stack", &Value::from(sheet.project));
    page.prose("Name of this machine in manifests and listings. Not set: the host name.");
    page.unused("host = \"home\"");
    page.gap();
    page.table("docker");
    page.prose("Services and volumes are looked for in this Compose project.");
    page.key("project", &Value::from(sheet.project));
    if let Some(engine) = sheet.engine {
        page.prose("Where the engine was found. Not set: DOCKER_HOST, else /var/run/docker.sock.");
        page.key("socket", &Value::from(engine));
    }

    page.heading("What is captured");
    page.prose(
        "The name of a source is yours; it names the files in the archive. What a backup has of this by itself, and in which \
         way: tars-backup backup --dry-run. Copies of volumes and directories are not redacted: the secrets in them are in the \
         archive.",
    );
    for source in sheet.sources {
        page.source(source);
    }
    if !sheet.left_out.is_empty() {
        page.gap();
        page.prose("Seen, and not captured:");
        for left in sheet.left_out {
            page.prose(&format!("- {}: {}", left.what, left.why));
        }
    }

    page.heading("Sealing");
    page.prose(
        "With a recipient, every backup also holds the configuration as it is, with its secrets, in a file that only its key \
         opens; and archives in stores of somebody else (s3, b2, sftp) are sealed as a whole. Without one the secrets in those \
         files are in no backup. Make a key with: tars-backup key new --output FILE. The recipient (age1…) goes here, the file \
         to a safe place away from this machine.",
    );
    page.table("encryption");
    page.unused("recipients = []");

    page.heading("Where backups are kept");
    for line in store.about() {
        page.prose(&line);
    }
    page.table(&format!("stores.{}", store.name));
    page.key("type", &Value::from("fs"));
    page.key("path", &Value::from(store.path.as_str()));
    if store.require_mount {
        page.prose("Refused while its disk is not mounted: an empty directory looks like an empty store.");
        page.key("require_mount", &Value::from(true));
    }
    page.examples(store);

    page.heading("What goes where, and for how long");
    let stores = format!("[{:?}]", store.name);
    page.tier("hot", &stores, "daily", "*-*-* 02:00", "{ within = \"7d\", min = 3 }");
    page.gap();
    page.prose(&format!("By hand: tars-backup backup --tier {WEEKLY}"));
    page.tier(WEEKLY, &stores, "weekly", "Sun *-*-* 03:00", "{ within = \"4 weeks\", min = 3 }");
    page.gap();
    page.prose(
        "Once a month, and once a year, the newest good backup of the week, copied to another place: these need the store \
         \"offsite\" above.",
    );
    page.0.push_str(FURTHER_TIERS);
    page.0
}

const FURTHER_TIERS: &str = r##"#[tiers.cold]
#stores = ["offsite"]
#path = "monthly"
#schedule = "*-*-01 04:00"
#promote_from = "warm"
#max_age = "8d"
#keep = { within = "12 months", min = 3 }

#[tiers.archive]
#stores = ["offsite"]
#path = "yearly"
#schedule = "*-01-01 05:00"
#promote_from = "warm"
#max_age = "8d"
#keep = { yearly = 7, min = 3 }
"##;

const NAS_EXAMPLE: &str = r##"#[stores.nas]
#type = "fs"
#path = "/mnt/nas/tars-backup"
#require_mount = true

"##;

const OFFSITE_EXAMPLES: &str = r##"#[stores.offsite]
#type = "b2"
#bucket = "my-backups"
#region = "eu-central-003"
#key_id = { credential = "b2-key-id" }
#key = { credential = "b2-key" }

# Or a bucket of Amazon S3, or of any server that speaks S3:
#[stores.s3]
#type = "s3"
#bucket = "my-backups"
#region = "eu-central-1"
#key_id = { credential = "s3-key-id" }
#key = { credential = "s3-key" }
"##;

/// The text as far as it is written.
struct Page(String);

impl Page {
    fn line(&mut self, line: &str) {
        self.0.push_str(line);
        self.0.push('\n');
    }

    fn blank(&mut self) {
        self.line("#");
    }

    /// An empty line, unless there is one.
    fn gap(&mut self) {
        if !self.0.ends_with("\n\n") {
            self.line("");
        }
    }

    /// A comment, broken into lines.
    fn prose(&mut self, text: &str) {
        let mut line = String::from("#");
        for word in show_name(text.as_bytes()).split(' ') {
            if line.chars().count() + 1 + word.chars().count() > WIDTH && line.len() > 1 {
                self.line(&line);
                line = String::from("#");
            }
            line.push(' ');
            line.push_str(word);
        }
        self.line(line.trim_end());
    }

    /// A command in a comment.
    fn code(&mut self, command: &str) {
        self.line(&format!("#   {}", show_name(command.as_bytes())));
    }

    fn heading(&mut self, title: &str) {
        self.gap();
        if !title.is_empty() {
            let start = format!("# ---- {title} ");
            let fill = "-".repeat(WIDTH.saturating_sub(start.len()));
            self.line(&format!("{start}{fill}\n"));
        }
    }

    fn table(&mut self, name: &str) {
        self.line(&format!("[{name}]"));
    }

    fn key(&mut self, key: &str, value: &Value) {
        self.line(&format!("{key} = {}", written(value)));
    }

    fn unused(&mut self, setting: &str) {
        self.line(&format!("#{setting}"));
    }

    fn source(&mut self, source: &Source) {
        self.gap();
        self.prose(&format!("From {}.", source.from));
        let off = if source.out_of_use { "#" } else { "" };
        let about: Vec<&str> = source.about.iter().map(String::as_str).collect();
        self.prose(&about.join(" "));
        self.line(&format!("{off}[sources.{}]", source.name));
        self.line(&format!("{off}type = {}", quoted(source.kind)));
        for (key, value) in &source.keys {
            let value = written(value).replace('\n', &format!("\n{off}"));
            self.line(&format!("{off}{key} = {value}"));
        }
        for setting in &source.more {
            self.unused(setting);
        }
    }

    fn tier(&mut self, name: &str, stores: &str, path: &str, schedule: &str, keep: &str) {
        self.line(&format!("[tiers.{name}]"));
        for (key, value) in
            [("stores", stores), ("path", &quoted(path)), ("schedule", &quoted(schedule)), ("keep", keep)]
        {
            self.line(&format!("{key} = {value}"));
        }
    }

    /// Other stores, to be taken into use.
    fn examples(&mut self, store: &StoreChoice) {
        self.gap();
        if store.name != "nas" {
            self.prose("A NAS, mounted by /etc/fstab; name it in stores = of the tiers below:");
            self.0.push_str(NAS_EXAMPLE);
        }
        self.prose(
            "A place outside of the house, for the day when the house is gone. Keys are never written here: store them with \
             systemd-creds (docs/stores.md says what each kind needs). A bucket of Backblaze B2:",
        );
        self.0.push_str(OFFSITE_EXAMPLES);
    }
}

/// A value in TOML.
fn written(value: &Value) -> String {
    match value {
        Value::String(text) => quoted(text),
        Value::Array(items) => {
            let each: Vec<String> = items.iter().map(written).collect();
            let line = format!("[{}]", each.join(", "));
            if line.chars().count() <= 80 {
                return line;
            }
            let lines: Vec<String> = each.iter().map(|item| format!("  {item},\n")).collect();
            format!("[\n{}]", lines.concat())
        }
        other => other.to_string(),
    }
}

/// A text in TOML, on one line whatever is in it.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => {
                out.push('\\');
                out.push(c);
            }
            c if misleads(c) => {
                let _ = write!(out, "\\U{:08X}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

//! What can be typed.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args, Parser, Subcommand};
use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use log::LevelFilter;

use crate::units;

/// Backup agent for small Docker Compose stacks
#[derive(Debug, Parser)]
#[command(name = "tars-backup", version, max_term_width = 100)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Args)]
pub struct Global {
    /// Configuration; conf.d/*.toml beside it is read too [default: /etc/tars-backup/config.toml]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print one JSON document instead of text
    #[arg(long, global = true)]
    pub json: bool,
    /// Only warnings and errors
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// More detail
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,
}

impl Global {
    pub fn level(&self) -> LevelFilter {
        match (self.quiet, self.verbose) {
            (true, _) => LevelFilter::Warn,
            (false, 0) => LevelFilter::Info,
            (false, 1) => LevelFilter::Debug,
            _ => LevelFilter::Trace,
        }
    }
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Find the Compose stack of this machine and write a first configuration for it
    Init(InitArgs),
    /// Make a backup now
    Backup(BackupArgs),
    /// Show the stored backups
    List(ListArgs),
    /// Show what is in a backup
    Show(ShowArgs),
    /// Check that stored backups are what was stored
    Verify(VerifyArgs),
    /// Copy files out of a backup's archive
    Extract(ExtractArgs),
    /// Bring components of a backup back
    Restore(RestoreArgs),
    /// Prove that a backup comes back, in throwaway containers
    Drill(DrillArgs),
    /// Undo what a killed run left: containers that it held, files that it staged
    Recover,
    /// Show what retention lets go, and why; delete it with --confirm
    Prune(PruneArgs),
    /// Take a backup out of the trash
    Undelete(OneArgs),
    /// Keep a backup whatever the rules say
    Pin(PinArgs),
    /// Leave a backup to the rules again
    Unpin(OneArgs),
    /// Say that a backup with an anomaly is right, or a recovered machine (--host)
    Accept(AcceptArgs),
    /// Bring what waits in the spool to the stores that still lack it
    Sync(SyncArgs),
    /// Show whether there is a good backup of everything, and what is wrong
    Status,
    /// Prepare and test stores
    Store(StoreArgs),
    /// Make and show the keys that backups are sealed with
    Key(KeyArgs),
    /// Look at the configuration
    Config(ConfigArgs),
    /// Print completions for a shell
    Completions { shell: clap_complete::Shell },
    /// Print the manual page
    Man,
    #[command(name = crate::mounts::PROBE_COMMAND, hide = true)]
    ProbePath { path: PathBuf },
    #[command(name = crate::guardian::COMMAND, hide = true)]
    Guardian(GuardianArgs),
    /// Runs the command that the configuration names for failures; tars-backup-failed@.service calls it
    #[command(hide = true)]
    OnFailure { unit: String },
}

#[derive(Debug, Args)]
pub struct InitArgs {
    /// Compose project, where there are several
    #[arg(long, value_name = "NAME")]
    pub project: Option<String>,
    /// Directory of the store [default: on the NAS that is mounted, else /var/backups/tars-backup]
    #[arg(long, value_name = "DIR")]
    pub store: Option<PathBuf>,
}

#[derive(Debug, Clone, Args)]
pub struct RestoreArgs {
    /// Name of the backup, or the path of its archive
    #[arg(required_unless_present_any = ["latest", "backup_file", "unit_instance"], conflicts_with_all = ["latest", "backup_file"])]
    pub backup: Option<String>,
    /// The newest backup that lacks nothing critical
    #[arg(long, conflicts_with = "backup_file")]
    pub latest: bool,
    /// What the instance of tars-backup-restore@.service says: COMPONENT, latest, BACKUP or BACKUP:COMPONENT
    #[arg(long, hide = true, conflicts_with_all = ["backup", "latest", "backup_file", "component"])]
    pub unit_instance: Option<String>,
    /// An archive that lies as a file on this machine, its small files beside it
    #[arg(long, value_name = "FILE")]
    pub backup_file: Option<PathBuf>,
    /// Only from this store: its name, or a URL such as s3://BUCKET/PATH
    #[arg(long, value_name = "STORE|URL")]
    pub from: Option<String>,
    /// Keys for the URL, in a file of lines NAME = VALUE [default: the environment]
    #[arg(long, value_name = "FILE")]
    pub credentials: Option<PathBuf>,
    /// Only backups of this host
    #[arg(long)]
    pub host: Option<String>,
    /// Only these components (comma-separated or repeated)
    #[arg(long, value_name = "COMPONENT", value_delimiter = ',')]
    pub component: Vec<String>,
    /// All but these components
    #[arg(long, value_name = "COMPONENT", value_delimiter = ',')]
    pub skip: Vec<String>,
    /// Put the configuration files back if their originals can be opened; else beside the live ones, as FILE.reference
    #[arg(long)]
    pub restore_config: bool,
    /// On a machine without configuration: put files of the stack back below this directory [default: where its Compose
    /// files lay] (repeatable)
    #[arg(long, value_name = "DIR", requires = "restore_config", conflicts_with = "to")]
    pub below: Vec<PathBuf>,
    /// Private keys that open sealed backups, instead of those of the configuration (repeatable)
    #[arg(long, value_name = "FILE")]
    pub identity: Vec<PathBuf>,
    /// Write the data below this directory, and touch nothing else
    #[arg(long, value_name = "DIR")]
    pub to: Option<PathBuf>,
    /// Fetch and check everything and show the plan; change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Do not ask
    #[arg(long, alias = "force")]
    pub yes: bool,
    /// Make no backup of what is there now
    #[arg(long)]
    pub no_safety_backup: bool,
    /// Do not compare digests and counts; names in the archive are checked all the same
    #[arg(long)]
    pub skip_validation: bool,
    /// Also take a backup that lacks critical components, and components that are incomplete
    #[arg(long)]
    pub allow_partial: bool,
    /// Leave a component that failed as it is, for a person
    #[arg(long)]
    pub keep: bool,
    /// PostgreSQL that does not start, or is empty: set its data directory aside, have it make a new one, and load
    #[arg(long)]
    pub fresh: bool,
    /// ChromaDB: load the export into the server, which must be empty, instead of putting its files in place
    #[arg(long)]
    pub via_export: bool,
    /// PostgreSQL roles that are there already: keep them, or give them what the backup has, passwords too
    #[arg(long, value_enum, default_value_t = Roles::Keep)]
    pub roles: Roles,
    /// Wait this long for another run to end, such as 12h
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub wait: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Roles {
    Keep,
    Overwrite,
}

#[derive(Debug, Args)]
pub struct GuardianArgs {
    #[arg(long)]
    pub state_dir: PathBuf,
    #[arg(long)]
    pub staging_dir: PathBuf,
    #[arg(long)]
    pub runtime_dir: PathBuf,
}

#[derive(Debug, Args)]
pub struct BackupArgs {
    /// Tier to make [default: default_tier of the configuration]
    #[arg(long)]
    pub tier: Option<String>,
    /// Write into this directory instead of the tier's stores
    #[arg(long, value_name = "DIR")]
    pub output_dir: Option<PathBuf>,
    /// Only these components (comma-separated or repeated)
    #[arg(long, value_name = "COMPONENT", value_delimiter = ',')]
    pub only: Vec<String>,
    /// All but these components
    #[arg(long, value_name = "COMPONENT", value_delimiter = ',')]
    pub skip: Vec<String>,
    /// Also the models of Ollama, where they are not part of the tier
    #[arg(long)]
    pub include_models: bool,
    #[arg(long, hide = true)]
    pub skip_chromadb: bool,
    #[arg(long, hide = true)]
    pub skip_postgres: bool,
    #[arg(long, hide = true)]
    pub skip_redis: bool,
    /// Mark the backup with a word (repeatable)
    #[arg(long, value_delimiter = ',', value_parser = parse_tag)]
    pub tag: Vec<String>,
    /// Keep it whatever the rules say
    #[arg(long, conflicts_with = "output_dir")]
    pub pin: bool,
    /// Keep it until the end of this day (UTC), such as 2027-01-31, or until this moment
    #[arg(long, value_name = "DATE", value_parser = parse_until, requires = "pin")]
    pub until: Option<Timestamp>,
    /// Wait this long for another run to end, such as 12h
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub wait: Option<Duration>,
    /// For so long after the machine has started, wait for engine, containers and stores to be there, such as 10m
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub wait_ready: Option<Duration>,
    /// Do nothing, and succeed, where the tier is not configured
    #[arg(long)]
    pub if_configured: bool,
    /// Do nothing, and succeed, while this machine is held after a recovery; for timers
    #[arg(long)]
    pub unless_held: bool,
    /// Look at everything and show the plan; write nothing
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Debug, Args)]
pub struct ListArgs {
    /// Only this tier
    #[arg(long)]
    pub tier: Option<String>,
    /// What is in the trash
    #[arg(long)]
    pub trash: bool,
    #[command(flatten)]
    pub place: PlaceArgs,
}

#[derive(Debug, Args)]
pub struct PlaceArgs {
    /// Only this store: its name, or a URL such as s3://BUCKET/PATH
    #[arg(long, value_name = "STORE|URL")]
    pub store: Option<String>,
    /// Only backups of this host
    #[arg(long)]
    pub host: Option<String>,
    /// Keys for the URL, in a file of lines NAME = VALUE [default: the environment]
    #[arg(long, value_name = "FILE")]
    pub credentials: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct ShowArgs {
    /// Name of the backup, or the path of its archive
    #[arg(required_unless_present = "latest", conflicts_with = "latest")]
    pub backup: Option<String>,
    /// The newest backup that lacks nothing critical
    #[arg(long)]
    pub latest: bool,
    /// Private keys that open sealed backups, instead of those of the configuration (repeatable)
    #[arg(long, value_name = "FILE")]
    pub identity: Vec<PathBuf>,
    #[command(flatten)]
    pub place: PlaceArgs,
}

#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// Names of backups, or paths of archives
    #[arg(required_unless_present_any = ["latest", "all"], conflicts_with_all = ["latest", "all"])]
    pub backups: Vec<String>,
    /// The newest backup that lacks nothing critical
    #[arg(long, conflicts_with = "all")]
    pub latest: bool,
    /// Every backup
    #[arg(long)]
    pub all: bool,
    #[command(flatten)]
    pub place: PlaceArgs,
    /// Read and check every component, not only the digest of the archive
    #[arg(long)]
    pub deep: bool,
    /// Do nothing, and succeed, while this machine is held after a recovery; for timers
    #[arg(long)]
    pub unless_held: bool,
    /// Private keys that open sealed backups, instead of those of the configuration (repeatable)
    #[arg(long, value_name = "FILE")]
    pub identity: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub struct DrillArgs {
    /// Name of the backup, or the path of its archive [default: the latest]
    #[arg(conflicts_with = "latest")]
    pub backup: Option<String>,
    /// The newest backup that lacks nothing critical
    #[arg(long)]
    pub latest: bool,
    /// The copy in this store: its name, or a URL such as s3://BUCKET/PATH [default: the nearest]
    #[arg(long, value_name = "STORE|URL")]
    pub from: Option<String>,
    /// Only backups of this host
    #[arg(long)]
    pub host: Option<String>,
    /// Keys for the URL, in a file of lines NAME = VALUE [default: the environment]
    #[arg(long, value_name = "FILE")]
    pub credentials: Option<PathBuf>,
    /// Private keys that open sealed backups, instead of those of the configuration (repeatable)
    #[arg(long, value_name = "FILE")]
    pub identity: Vec<PathBuf>,
    /// Do nothing, and say so, on a host whose configuration names no identity
    #[arg(long)]
    pub if_identity: bool,
    /// Do nothing, and say so, while the host is held after a recovery
    #[arg(long)]
    pub unless_held: bool,
    /// Wait this long for another run to end, such as 12h
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub wait: Option<Duration>,
}

impl DrillArgs {
    pub fn place(&self) -> PlaceArgs {
        PlaceArgs { store: self.from.clone(), host: self.host.clone(), credentials: self.credentials.clone() }
    }
}

#[derive(Debug, Args)]
pub struct ExtractArgs {
    /// Name of the backup, or the path of its archive
    #[arg(required_unless_present = "latest")]
    pub backup: Option<String>,
    /// Files or directories inside the archive [default: all]
    pub paths: Vec<String>,
    /// The newest backup that lacks nothing critical (then every argument is a path)
    #[arg(long)]
    pub latest: bool,
    /// Directory to write to
    #[arg(long, value_name = "DIR")]
    pub to: PathBuf,
    /// Private keys that open sealed backups, instead of those of the configuration (repeatable)
    #[arg(long, value_name = "FILE")]
    pub identity: Vec<PathBuf>,
    #[command(flatten)]
    pub place: PlaceArgs,
}

#[derive(Debug, Args)]
pub struct PruneArgs {
    /// Only this tier
    #[arg(long)]
    pub tier: Option<String>,
    /// Only this store
    #[arg(long)]
    pub store: Option<String>,
    /// Do it; without this nothing is deleted
    #[arg(long)]
    pub confirm: bool,
    /// Wait this long for another run to end, such as 12h
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub wait: Option<Duration>,
}

#[derive(Debug, Args)]
pub struct OneArgs {
    /// Name of the backup
    pub backup: String,
    /// Wait this long for another run to end, such as 12h
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub wait: Option<Duration>,
}

#[derive(Debug, Args)]
pub struct AcceptArgs {
    /// Name of the backup
    #[arg(required_unless_present = "host")]
    pub backup: Option<String>,
    /// This machine, which was recovered: its timers work again
    #[arg(long, conflicts_with = "backup")]
    pub host: bool,
    /// Wait this long for another run to end, such as 12h
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub wait: Option<Duration>,
}

#[derive(Debug, Args)]
pub struct PinArgs {
    #[command(flatten)]
    pub one: OneArgs,
    /// Why; shown by list and prune
    #[arg(long)]
    pub reason: Option<String>,
    /// Until the end of this day (UTC), such as 2027-01-31, or until this moment
    #[arg(long, value_name = "DATE", value_parser = parse_until)]
    pub until: Option<Timestamp>,
}

#[derive(Debug, Args)]
pub struct SyncArgs {
    /// Do nothing, and succeed, while this machine is held after a recovery; for timers
    #[arg(long)]
    pub unless_held: bool,
    /// Wait this long for another run to end, such as 12h
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub wait: Option<Duration>,
}

#[derive(Debug, Args)]
pub struct StoreArgs {
    #[command(subcommand)]
    pub action: StoreAction,
}

#[derive(Debug, Subcommand)]
pub enum StoreAction {
    /// Make a store ours: write its marker
    Init {
        store: String,
        /// Also keep this package of tars-backup in the store, for a machine that has nothing else
        #[arg(long, value_name = "FILE")]
        with_package: Option<PathBuf>,
    },
    /// Prove that a store takes, keeps and gives back an object
    Check { store: String },
    /// Take over a store of another machine
    Adopt { store: String },
}

#[derive(Debug, Args)]
pub struct KeyArgs {
    #[command(subcommand)]
    pub action: KeyAction,
}

#[derive(Debug, Subcommand)]
pub enum KeyAction {
    /// Make a new key; its recipient goes into the configuration, the key itself to a safe place
    New {
        /// Write it to this new file [default: standard output]
        #[arg(long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Show whom backups are sealed for, and whether a key that is there opens them
    Show {
        /// Private keys to look at, instead of those of the configuration (repeatable)
        #[arg(long, value_name = "FILE")]
        identity: Vec<PathBuf>,
    },
    /// Print all that a new machine needs to get the backups back, keys too: to be printed, and kept elsewhere
    Kit {
        /// Only this store [default: all]
        store: Option<String>,
        /// Also print these private keys, instead of those of the configuration (repeatable)
        #[arg(long, value_name = "FILE")]
        identity: Vec<PathBuf>,
        /// Write it to this new file, for its owner alone [default: standard output]
        #[arg(long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Prove that a key opens a sealed backup as it is stored
    Test {
        /// Name of the backup, or the path of its archive [default: the newest one that is sealed]
        backup: Option<String>,
        /// Private keys to test, instead of those of the configuration (repeatable)
        #[arg(long, value_name = "FILE")]
        identity: Vec<PathBuf>,
        #[command(flatten)]
        place: PlaceArgs,
    },
}

#[derive(Debug, Args)]
pub struct ConfigArgs {
    #[command(subcommand)]
    pub action: ConfigAction,
}

#[derive(Debug, Subcommand)]
pub enum ConfigAction {
    /// Report every problem, with its line and how to mend it
    Check,
    /// Show every key with the value in force; secrets stay references
    Show,
    /// Print the JSON schema
    Schema,
    /// Give systemd what this configuration needs: paths, credentials, mounts, schedules
    Apply {
        /// Show what would change; write nothing
        #[arg(long)]
        dry_run: bool,
    },
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    units::duration(text).ok_or_else(|| "must be a length of time such as 90s, 30m or 12h".to_owned())
}

fn parse_until(text: &str) -> Result<Timestamp, String> {
    let day = || text.parse::<Date>().ok()?.tomorrow().ok()?.to_zoned(TimeZone::UTC).ok();
    let moment = || text.parse::<Timestamp>().ok();
    day().map(|next| next.timestamp()).or_else(moment).ok_or_else(|| {
        "must be a day such as 2027-01-31, or a moment such as 2027-01-31T12:00:00Z".to_owned()
    })
}

fn parse_tag(text: &str) -> Result<String, String> {
    let good = !text.is_empty()
        && text.len() <= 64
        && text.chars().all(|c| c.is_alphanumeric() || "-_.".contains(c));
    if good {
        Ok(text.to_owned())
    } else {
        Err("must be one word of letters, digits, '-', '_' and '.'".to_owned())
    }
}

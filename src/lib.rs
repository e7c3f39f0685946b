//! tars-backup: the story of one backup.
//!
//! A configuration (`config`, made real by `setup`) names sources, stores and tiers. `ops::backup` plans a run from it and
//! takes the lock (`run_guard`). Each `source` puts its state into `staging`: a dump through the `docker` seam, a walk
//! through a tree by `archive::tree`, a redacted file by `redact`; `format` reads what others wrote and proves it whole.
//! `archive::pack` makes one `tar.gz` of it, described by a `manifest`. `delivery` brings that into every `store`, reads
//! it back, and only then writes the manifest beside it, which makes it a backup. `ops::verify` reads it again at any
//! later time. What happens is told to a `progress::Monitor`; `cli` and `render` show it to people, `journal` and
//! `notify` to systemd.
//!
//! Modules stand on five floors and use only their own and lower ones; `tests/layers.rs` checks that.

// Floor 0, words: no I/O, no clock.
pub mod cancel;
pub mod exit;
pub mod hint;
pub mod id;
pub mod legacy;
pub mod manifest;
pub mod progress;
pub mod secret;
pub mod units;

// Floor 1, decisions and formats: pure.
pub mod anomaly;
pub mod config;
pub mod format;
pub mod keys;
pub mod reach;
pub mod redact;
pub mod retention;
pub mod sandbox;

// Floor 2, seams: the only code that touches the world.
pub mod archive;
pub mod catalog;
pub mod change;
pub mod chroma;
pub mod delivery;
pub mod docker;
pub mod guardian;
pub mod held_copy;
pub mod held_host;
pub mod host;
pub mod journal;
pub mod keyring;
pub mod last_run;
pub mod marks;
pub mod mounts;
pub mod notify;
pub mod postgres;
pub mod process;
pub mod run_guard;
pub mod run_journal;
pub mod setup;
pub mod source;
pub mod spool;
pub mod staging;
pub mod store;
pub mod stored;
pub mod systemd;
pub mod target;
pub mod tls;
pub mod vault;
pub mod whole_file;

// Floor 3, operations: one file per verb.
pub mod ops;

// Floor 4, the face.
pub mod cli;
pub mod render;

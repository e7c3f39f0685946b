//! Originals on their way back over the live files. What could go wrong: a file where the backup says and the operator
//! did not; so nothing is taken from the names in the tar. Each path that the present configuration names is looked up
//! there, and what was live stays beside it under a name that people find. Where that configuration comes out of the same
//! tar, a person has to name the directories, and the system is out of reach.

use std::cell::RefCell;
use std::fs::{DirBuilder, File, FileTimes, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::originals::{Found, LEFT_OUT, MEMBER, name_of, name_of_secret};
use crate::archive::tree::show_name;
use crate::change::{Change, ChangeError, beside_name, plan_file};
use crate::docker::Container;
use crate::format::tarwalk::Mtime;
use crate::hint::chain;
use crate::process::{Process, Request};
use crate::reach::{self, Outside, Reach, is_our_credential};
use crate::run_journal::RunJournal;
use crate::secret::SecretRef;
use crate::source::{Context, SourceError};
use crate::target::{Existing, Target, Work};
use crate::units::show_bytes;
use crate::vault::SecretError;

/// How long making one credential may take.
const ENCRYPTING: Duration = Duration::from_secs(60);

/// Where systemd looks for credentials that only this host can read, and what makes them.
pub struct Credstore {
    pub program: PathBuf,
    pub dir: PathBuf,
}

impl Default for Credstore {
    fn default() -> Self {
        Self { program: "systemd-creds".into(), dir: "/etc/credstore.encrypted".into() }
    }
}

/// A file that is going to be live.
struct New {
    live: PathBuf,
    bytes: Vec<u8>,
    mode: u32,
    /// None: ours.
    owner: Option<(u32, u32)>,
    mtime: Option<Mtime>,
}

pub struct Putting {
    files: Vec<New>,
    /// Credentials that this host lacks: name and value.
    credentials: Vec<(String, String)>,
    notes: Vec<String>,
    /// What was asked for and does not come back.
    undone: RefCell<Vec<String>>,
    /// Whether any path of the configuration is among the originals.
    finds_any: bool,
    /// Whether only some places may be written to: nobody on this machine has named the paths.
    is_bare: bool,
    /// What keeps all of it from being put back: paths that are not open, and what would open them.
    outside: Vec<(String, Outside)>,
    store: Credstore,
    /// What lies beside the live files, once it does: live path, and path beside.
    ready: RefCell<Vec<(PathBuf, PathBuf)>>,
}

impl Putting {
    /// `paths`: what the configuration names now. `reach`: where files may go, where that configuration is itself one of
    /// the originals.
    pub fn new(
        context: &Context<'_>,
        paths: &[PathBuf],
        found: &[Found],
        reach: Option<&Reach>,
        store: Credstore,
    ) -> Self {
        let mut this = Self {
            files: Vec::new(),
            credentials: Vec::new(),
            notes: Vec::new(),
            undone: RefCell::default(),
            finds_any: false,
            is_bare: reach.is_some(),
            outside: Vec::new(),
            store,
            ready: RefCell::default(),
        };
        let look_up = |name: Option<Vec<u8>>| found.iter().find(|f| Some(&f.name) == name.as_ref());
        for path in paths {
            match look_up(name_of(path)) {
                Some(original) => {
                    this.finds_any = true;
                    if this.is_open(path, reach) {
                        this.file(path, original);
                    }
                }
                None => this.undone.get_mut().push(format!("{} is not among the originals", path.display())),
            }
        }
        for reference in context.secret_refs {
            if let Some(original) = look_up(name_of_secret(reference)) {
                this.finds_any = true;
                if this.is_secret_open(reference, reach) {
                    this.secret(context, reference, original);
                }
            }
        }
        if this.is_bare {
            // The configuration last: until it is there, whoever looks after a killed run looks where this machine works.
            this.files.sort_by_key(|f| context.config_files.first() == Some(&f.live));
        }
        this
    }

    fn is_open(&mut self, path: &Path, reach: Option<&Reach>) -> bool {
        let Some(reach) = reach else { return true };
        match reach.judge(path) {
            Ok(()) => true,
            Err(why) => self.leave(show_name(path.as_os_str().as_bytes()), why, reach),
        }
    }

    fn is_secret_open(&mut self, reference: &SecretRef, reach: Option<&Reach>) -> bool {
        match (reference, reach) {
            (SecretRef::File(path), reach) => self.is_open(path, reach),
            (SecretRef::Credential(name), Some(reach)) if !is_our_credential(name) => {
                self.leave(format!("the credential {}", show_name(name.as_bytes())), Outside::System, reach)
            }
            _ => true,
        }
    }

    fn leave(&mut self, what: String, why: Outside, reach: &Reach) -> bool {
        if reach.leave_the_rest {
            self.undone.get_mut().push(format!("{what} is not put back: {}", reason(&why)));
        } else if !self.outside.iter().any(|(known, _)| *known == what) {
            self.outside.push((what, why));
        }
        false
    }

    /// Why nothing is put back, and what to say so that it is.
    fn refusal(&self) -> Option<SourceError> {
        if self.outside.is_empty() {
            return None;
        }
        let told: Vec<String> =
            self.outside.iter().map(|(what, why)| format!("{what} ({})", reason(why))).collect();
        let dirs: Vec<&Path> = self
            .outside
            .iter()
            .filter_map(|(_, why)| if let Outside::Unnamed(dir) = why { Some(dir.as_path()) } else { None })
            .collect();
        let mut named: Vec<String> =
            dirs.iter().map(|d| format!("--below {}", show_name(d.as_os_str().as_bytes()))).collect();
        named.dedup();
        let mut hints = Vec::new();
        if !named.is_empty() {
            hints.push(format!("if that is where your stack lies, say so: {}", named.join(" ")));
        }
        if dirs.len() < self.outside.len() {
            hints.push(
                "what is of the system is left out with --allow-partial, and put back by hand".to_owned(),
            );
        }
        let why = format!(
            "it would be written to places that nobody on this machine has named: {}",
            told.join(", ")
        );
        Some(SourceError::hinted(MEMBER, why, hints.join("; ")))
    }

    /// Whether the way to a file is one of plain directories, as far as it is there: behind a link is another place.
    fn is_way_plain(&self, live: &Path) -> Result<(), SourceError> {
        if !self.is_bare {
            return Ok(());
        }
        for dir in live.ancestors().skip(1) {
            match dir.symlink_metadata() {
                Ok(meta) if meta.is_dir() => {}
                Ok(_) => {
                    return Err(SourceError::hinted(
                        dir.display().to_string(),
                        "it is a link or a file, and what lies behind it is another place",
                        "put it away, or make a directory of it, and start again",
                    ));
                }
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(SourceError::Place { path: dir.to_owned(), source }),
            }
        }
        Ok(())
    }

    fn file(&mut self, path: &Path, original: &Found) {
        if original.lacks_key() {
            self.undone.get_mut().push(format!(
                "{} is left as it is: its original has {LEFT_OUT} where a key was",
                path.display()
            ));
            return;
        }
        if is_same(path, original) {
            self.notes.push(format!("{} is already as it was", path.display()));
            return;
        }
        // Nobody but us changes what we run by, whatever a backup says.
        let ours = self.is_bare && path.starts_with(reach::OWN);
        if ours && ((original.uid, original.gid) != (0, 0) || original.mode & 0o022 != 0) {
            self.notes.push(format!("{} belongs to us alone now, which it did not", path.display()));
        }
        self.files.push(New {
            live: path.to_owned(),
            bytes: original.bytes.clone(),
            mode: if ours { original.mode & 0o755 } else { original.mode },
            owner: (!ours).then_some((original.uid, original.gid)),
            mtime: Some(original.mtime),
        });
    }

    /// What this host has stays as it is: it may be newer than the backup.
    fn secret(&mut self, context: &Context<'_>, reference: &SecretRef, original: &Found) {
        match context.vault.read(reference) {
            Ok(_) => self.notes.push(format!("{reference} is there, and left as it is")),
            Err(SecretError::Missing { .. }) => {
                let value = String::from_utf8_lossy(&original.bytes).into_owned();
                context.vault.learn(&reference.to_string(), value.trim_end());
                match reference {
                    // It is one of the files, too.
                    SecretRef::File(path) if self.files.iter().any(|f| f.live == *path) => {}
                    SecretRef::Credential(name) => self.credentials.push((name.clone(), value)),
                    SecretRef::File(path) => self.files.push(New {
                        live: path.clone(),
                        bytes: original.bytes.clone(),
                        mode: 0o600,
                        owner: None,
                        mtime: None,
                    }),
                    SecretRef::Env(name) => self.notes.push(format!(
                        "{reference} is not set here; its value is among the originals, as credentials/env:{name}"
                    )),
                }
            }
            Err(e) => self.notes.push(format!("{reference} is left as it is: {}", chain(&e))),
        }
    }

    /// The credential as only this host can read it. The value goes through a pipe: arguments are for everybody to see.
    fn encrypt(&self, context: &Context<'_>, name: &str, value: &str) -> Result<Vec<u8>, SourceError> {
        let program = self.store.program.display().to_string();
        let argv = ["encrypt", &format!("--name={name}"), "-", "-"].map(str::to_owned);
        let request = Request {
            argv: std::iter::once(program.clone()).chain(argv).collect(),
            env: Vec::new(),
            dir: None,
            total: ENCRYPTING,
            idle: ENCRYPTING,
        };
        let failed = |source| SourceError::Read { what: format!("the output of {program}"), source };
        let (input, mut to) = io::pipe().map_err(failed)?;
        // Both ends at once: neither waits for the other, however long the value is.
        std::thread::scope(|scope| {
            let mut process =
                Process::start_with(&request, input, context.runtime.clone(), context.cancel.clone())?;
            let writer = scope.spawn(move || to.write_all(value.as_bytes()));
            let (mut bytes, mut buffer) = (Vec::new(), [0; 4096]);
            loop {
                match process.read(&mut buffer)? {
                    0 => break,
                    n => bytes.extend_from_slice(&buffer[..n]),
                }
            }
            process.finish()?;
            match writer.join() {
                Ok(written) => written.map(|()| bytes).map_err(failed),
                Err(_) => Err(failed(io::Error::other("it could not be written to"))),
            }
        })
    }

    fn encrypted(&self, context: &Context<'_>) -> Result<Vec<New>, SourceError> {
        let mut new = Vec::new();
        for (name, value) in &self.credentials {
            match self.encrypt(context, name, value) {
                Ok(bytes) => new.push(New {
                    live: self.store.dir.join(name),
                    bytes,
                    mode: 0o600,
                    owner: None,
                    mtime: None,
                }),
                Err(SourceError::Interrupted(i)) => return Err(i.into()),
                Err(e) => self.undone.borrow_mut().push(context.vault.scrub(&format!(
                    "the credential {name} was not put back ({}): take it from the originals, then: systemd-creds \
                     encrypt --name={name} credentials/{name} {}",
                    chain(&e),
                    self.store.dir.join(name).display()
                ))),
            }
        }
        Ok(new)
    }

    fn lay(&self, new: &New, journal: &RunJournal, work: &Work<'_>) -> Result<Vec<String>, SourceError> {
        let to = beside_name(&new.live, work.id, "");
        let put = |source| SourceError::Place { path: to.clone(), source };
        let dir = new.live.parent().unwrap_or(Path::new("/"));
        DirBuilder::new().recursive(true).mode(0o755).create(dir).map_err(put)?;
        self.is_way_plain(&new.live)?;
        journal.record(&work.scratch(&to))?;
        // Private until it is whole; its mode comes last.
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&to).map_err(put)?;
        file.write_all(&new.bytes).map_err(put)?;
        let mut warnings = Vec::new();
        if let Some((uid, gid)) = new.owner
            && fchown(&file, Some(uid), Some(gid)).is_err()
        {
            warnings.push(format!("{}: its owner {uid}:{gid} was not restored", new.live.display()));
        }
        file.set_permissions(std::fs::Permissions::from_mode(new.mode)).map_err(put)?;
        if let Some(time) = new.mtime.and_then(system_time) {
            file.set_times(FileTimes::new().set_modified(time)).map_err(put)?;
        }
        file.sync_all().map_err(put)?;
        File::open(dir).and_then(|d| d.sync_all()).map_err(put)?;
        self.ready.borrow_mut().push((new.live.clone(), to));
        Ok(warnings)
    }
}

fn reason(why: &Outside) -> &'static str {
    match why {
        Outside::System => "it belongs to the system",
        Outside::Unnamed(_) => "its directory was not named",
    }
}

fn system_time(time: Mtime) -> Option<SystemTime> {
    let whole = Duration::from_secs(time.secs.unsigned_abs());
    let second = match time.secs < 0 {
        true => SystemTime::UNIX_EPOCH.checked_sub(whole)?,
        false => SystemTime::UNIX_EPOCH.checked_add(whole)?,
    };
    second.checked_add(Duration::from_nanos(time.nanos.into()))
}

fn is_same(path: &Path, original: &Found) -> bool {
    let Ok(meta) = path.symlink_metadata() else { return false };
    meta.is_file()
        && meta.len() == original.bytes.len() as u64
        && meta.mode() & 0o7777 == original.mode
        && (meta.uid(), meta.gid()) == (original.uid, original.gid)
        && std::fs::read(path).is_ok_and(|bytes| bytes == original.bytes)
}

impl Target for Putting {
    fn describe(&self) -> String {
        let files = self.files.iter().map(|f| f.live.display().to_string());
        let credentials = self.credentials.iter().map(|(name, _)| format!("credential {name}"));
        let all: Vec<String> = files.chain(credentials).collect();
        match (all.is_empty(), self.undone.borrow().is_empty()) {
            (false, _) => all.join(", "),
            (true, true) => "nothing: all is as it was".into(),
            (true, false) => "nothing: what comes is as it was".into(),
        }
    }

    fn listed(&self) -> Vec<String> {
        if !self.is_bare {
            return Vec::new();
        }
        let file = |f: &New| {
            let owner = f.owner.map_or_else(String::new, |(uid, gid)| format!(", owner {uid}:{gid}"));
            let shown = show_name(f.live.as_os_str().as_bytes());
            format!("{shown}  (mode {:04o}{owner}, {})", f.mode, show_bytes(f.bytes.len() as u64))
        };
        let credential = |(name, _): &(String, String)| {
            format!("{}  (the credential, encrypted for this machine)", self.store.dir.join(name).display())
        };
        self.files.iter().map(file).chain(self.credentials.iter().map(credential)).collect()
    }

    fn not_put_back(&self) -> Vec<String> {
        self.undone.borrow().clone()
    }

    fn keeps_old(&self) -> bool {
        true
    }

    fn existing(&self, _: &Context<'_>) -> Result<Existing, SourceError> {
        let there = self.files.iter().filter(|f| f.live.symlink_metadata().is_ok()).count();
        Ok(match there {
            0 => Existing::Nothing,
            1 => Existing::Something("1 file, which is kept beside".into()),
            n => Existing::Something(format!("{n} files, which are kept beside")),
        })
    }

    fn survey(&self, _: &Context<'_>, _: &Work<'_>) -> Result<(PathBuf, u64), SourceError> {
        if !self.finds_any {
            return Err(SourceError::hinted(
                MEMBER,
                "nothing that the configuration names now is among the originals",
                "see what there is: write it elsewhere with --to DIR, then: age -d -i IDENTITY FILE | tar -t",
            ));
        }
        if let Some(refusal) = self.refusal() {
            return Err(refusal);
        }
        let mut disk = PathBuf::from("/");
        for file in &self.files {
            self.is_way_plain(&file.live)?;
            if file.live.symlink_metadata().is_ok_and(|m| m.is_dir()) {
                return Err(SourceError::bad(file.live.display().to_string(), "it is a directory now"));
            }
            if let Some(dir) = file.live.ancestors().skip(1).find(|d| d.is_dir()) {
                disk = dir.to_owned();
            }
        }
        Ok((disk, self.files.iter().map(|f| f.bytes.len() as u64 + 4096).sum()))
    }

    fn prepare(
        &self,
        context: &Context<'_>,
        journal: &RunJournal,
        work: &Work<'_>,
    ) -> Result<Vec<String>, SourceError> {
        let mut warnings = self.notes.clone();
        let encrypted = self.encrypted(context)?;
        if !encrypted.is_empty() {
            let put = |source| SourceError::Place { path: self.store.dir.clone(), source };
            DirBuilder::new().recursive(true).mode(0o700).create(&self.store.dir).map_err(put)?;
        }
        for new in self.files.iter().chain(&encrypted) {
            context.cancel.check()?;
            warnings.extend(self.lay(new, journal, work)?);
        }
        Ok(warnings)
    }

    fn change(&self, _: &Context<'_>, _: &RunJournal, _: &Work<'_>) -> Result<Change, SourceError> {
        let ready = self.ready.borrow();
        let files: Result<Vec<Change>, ChangeError> =
            ready.iter().map(|(live, beside)| plan_file(live, beside)).collect();
        Ok(Change::Files { files: files? })
    }

    fn check(&self, _: &Context<'_>, _: &Work<'_>, _: &[Container]) -> Result<Vec<String>, SourceError> {
        for file in &self.files {
            let now = std::fs::read(&file.live);
            let now =
                now.map_err(|source| SourceError::Read { what: file.live.display().to_string(), source })?;
            if now != file.bytes {
                return Err(SourceError::bad(
                    file.live.display().to_string(),
                    "it is not what was put there",
                ));
            }
        }
        Ok(Vec::new())
    }
}

//! A directory tree that only the engine can read, from the tar that it sends into one of ours. What could go wrong: a
//! stream that ends early, so it is read strictly to its end mark; names that lead elsewhere, so each must lie below the
//! first; and what the engine drops (sockets, holes, most extended attributes, fractions of seconds), which is said.

use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::tarfile::{Kind, Meta, TarWriter};
use super::tree::{TreeError, TreeReport, TreeRules, Watch, member};
use crate::cancel::Cancel;
use crate::format::tarwalk::{self, Entry, TarError};
use crate::hint::chain;
use crate::progress::Monitor;

/// What every copy that came through the engine lacks.
pub const DROPPED: &str = "read through the engine, which keeps no extended attributes but capabilities, no access lists, no \
     sockets, no holes and no fractions of seconds";

enum Failure {
    Tar(TarError),
    Read(std::io::Error),
    Odd(&'static str),
    Tree(TreeError),
}

impl From<TarError> for Failure {
    fn from(e: TarError) -> Self {
        Self::Tar(e)
    }
}

/// Writes the tree in `tar` as entries `./…`. `root` names it in errors.
pub fn repack<W: Write>(
    root: &Path,
    tar: impl Read,
    rules: &TreeRules,
    out: &mut TarWriter<W>,
    watch: &mut dyn Watch,
    cancel: &Cancel,
    monitor: &dyn Monitor,
) -> Result<TreeReport, TreeError> {
    let mut copy = Copy {
        report: TreeReport::default(),
        top: None,
        hidden: None,
        seen: 0,
        buffer: vec![0; 1 << 20],
        rules,
        out,
        watch,
        cancel,
        monitor,
    };
    tarwalk::walk(tar, |entry, body| copy.entry(entry, body)).map_err(|e| {
        let foreign = |why: String| match cancel.check() {
            // An interrupt arrives as a read error.
            Err(i) => TreeError::Interrupted(i),
            Ok(()) => TreeError::Foreign { path: root.to_owned(), why },
        };
        match e {
            Failure::Tree(e) => e,
            Failure::Tar(e) => foreign(chain(&e)),
            Failure::Read(e) => foreign(chain(&e)),
            Failure::Odd(why) => foreign(why.to_owned()),
        }
    })?;
    if copy.top.is_none() {
        return Err(TreeError::NoRoot { path: root.to_owned() });
    }
    if copy.seen == 0 && !rules.allow_empty {
        return Err(TreeError::Empty { path: root.to_owned() });
    }
    let mut report = copy.report;
    report.entries = copy.out.entries();
    Ok(report)
}

struct Copy<'a, W: Write> {
    report: TreeReport,
    /// Name of the first entry, which all others lie below.
    top: Option<Vec<u8>>,
    /// The directory that is being left out.
    hidden: Option<Vec<u8>>,
    seen: u64,
    buffer: Vec<u8>,
    rules: &'a TreeRules,
    out: &'a mut TarWriter<W>,
    watch: &'a mut dyn Watch,
    cancel: &'a Cancel,
    monitor: &'a dyn Monitor,
}

impl<W: Write> Copy<'_, W> {
    fn entry(&mut self, entry: &Entry, body: &mut tarwalk::Body<'_>) -> Result<(), Failure> {
        let name = trimmed(&entry.path);
        let Some(top) = &self.top else {
            if entry.kind != tarwalk::Kind::Directory {
                return Err(odd("it does not begin with a directory"));
            }
            self.top = Some(name.to_vec());
            return self.plain(b"", Kind::Directory, None, entry);
        };
        let Some(relative) = below(top, name).map(<[u8]>::to_vec) else {
            return Err(odd("an entry does not lie below the first one"));
        };
        if self.is_hidden(&relative) || self.is_elsewhere(&relative, entry) {
            return Ok(());
        }
        self.seen += 1;
        match entry.kind {
            tarwalk::Kind::Directory => self.plain(&relative, Kind::Directory, None, entry),
            tarwalk::Kind::Symlink => self.plain(&relative, Kind::Symlink, Some(&entry.link), entry),
            tarwalk::Kind::Fifo => self.plain(&relative, Kind::Fifo, None, entry),
            tarwalk::Kind::Hardlink => self.hardlink(&relative, entry),
            tarwalk::Kind::Regular => self.file(&relative, entry, body),
            _ => {
                self.report.skipped.add(&relative, Some("device"));
                Ok(())
            }
        }
    }

    fn is_hidden(&mut self, relative: &[u8]) -> bool {
        if self.hidden.as_ref().is_some_and(|h| below(h, relative).is_some()) {
            return true;
        }
        let hides = self.rules.exclude.hides(relative);
        if hides {
            self.hidden = Some(relative.to_vec());
        }
        hides
    }

    /// What lies in another mount of the container, which the engine sends along. Its directory stays, empty.
    fn is_elsewhere(&self, relative: &[u8], entry: &Entry) -> bool {
        let directory = entry.kind == tarwalk::Kind::Directory;
        let mut mounted = self.rules.mounted.iter().map(|m| m.as_os_str().as_bytes());
        mounted.any(|m| below(m, relative).is_some_and(|rest| !directory || !rest.is_empty()))
    }

    fn plain(
        &mut self,
        relative: &[u8],
        kind: Kind,
        link: Option<&[u8]>,
        entry: &Entry,
    ) -> Result<(), Failure> {
        match kind {
            Kind::Directory => self.report.directories += 1,
            Kind::Symlink => self.report.symlinks += 1,
            Kind::Hardlink => self.report.hardlinks += 1,
            Kind::Fifo => self.report.fifos += 1,
            Kind::File => {}
        }
        let path = member(relative);
        self.out.entry(&meta(&path, kind, link, entry)?).map_err(written)
    }

    fn hardlink(&mut self, relative: &[u8], entry: &Entry) -> Result<(), Failure> {
        let top = self.top.as_deref().unwrap_or_default();
        let Some(first) = below(top, trimmed(&entry.link)).map(<[u8]>::to_vec) else {
            return Err(odd("a hard link leads out of it"));
        };
        if self.rules.exclude.hides(&first)
            || self.hidden.as_ref().is_some_and(|h| below(h, &first).is_some())
        {
            self.report
                .unreadable
                .add(relative, Some("its first name is left out, and the engine sends data only there"));
            return Ok(());
        }
        self.plain(relative, Kind::Hardlink, Some(&member(&first)), entry)
    }

    fn file(&mut self, relative: &[u8], entry: &Entry, body: &mut tarwalk::Body<'_>) -> Result<(), Failure> {
        if entry.extents.is_some() {
            return Err(odd("it has a sparse file, which the engine never sends"));
        }
        self.report.files += 1;
        self.report.bytes += entry.size;
        let path = member(relative);
        let mut target =
            self.out.file(&meta(&path, Kind::File, None, entry)?, entry.size).map_err(written)?;
        self.watch.file(relative, entry.size, entry.mtime);
        let mut done = 0;
        while done < entry.size {
            self.cancel.check().map_err(|i| Failure::Tree(i.into()))?;
            let n = body.read(&mut self.buffer).map_err(Failure::Read)?;
            if n == 0 {
                return Err(odd("a file ends early"));
            }
            target.write(&self.buffer[..n]).map_err(written)?;
            self.watch.data(done, &self.buffer[..n]);
            self.monitor.moved(n as u64);
            done += n as u64;
        }
        target.finish().map_err(written)?;
        self.watch.end(true);
        Ok(())
    }
}

fn written(e: std::io::Error) -> Failure {
    Failure::Tree(TreeError::Write(e))
}

fn odd(what: &'static str) -> Failure {
    Failure::Odd(what)
}

/// Without `./` at the beginning and slashes at the end; the root itself is empty.
fn trimmed(path: &[u8]) -> &[u8] {
    let mut name = path;
    while let Some(rest) = name.strip_prefix(b"./").or_else(|| name.strip_prefix(b"/")) {
        name = rest;
    }
    while let Some(rest) = name.strip_suffix(b"/") {
        name = rest;
    }
    if name == b"." { b"" } else { name }
}

/// `path` from `top` on; None when it does not lie below.
fn below<'a>(top: &[u8], path: &'a [u8]) -> Option<&'a [u8]> {
    if path.split(|b| *b == b'/').any(|part| part == b"..") {
        return None;
    }
    if top.is_empty() {
        return Some(path);
    }
    let rest = path.strip_prefix(top)?;
    if rest.is_empty() { Some(rest) } else { rest.strip_prefix(b"/") }
}

fn meta<'a>(
    path: &'a [u8],
    kind: Kind,
    link: Option<&'a [u8]>,
    entry: &'a Entry,
) -> Result<Meta<'a>, Failure> {
    let id = |n: u64| u32::try_from(n).map_err(|_| odd("an owner that no system knows"));
    Ok(Meta {
        path,
        kind,
        mode: entry.mode,
        uid: id(entry.uid)?,
        gid: id(entry.gid)?,
        mtime: entry.mtime.secs,
        mtime_ns: entry.mtime.nanos,
        link,
        xattrs: &entry.xattrs,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::tree::{Exclude, Unwatched};
    use crate::progress::tests::Quiet;

    fn rules(exclude: &[&str]) -> TreeRules {
        let patterns: Vec<String> = exclude.iter().map(|p| (*p).to_owned()).collect();
        TreeRules {
            exclude: Exclude::new(&patterns).unwrap(),
            own_dirs: Vec::new(),
            cross_mounts: false,
            allow_empty: false,
            mounted: Vec::new(),
        }
    }

    /// `(path, kind, link or content)` as the engine would send it.
    fn sent(entries: &[(&str, Kind, &str)]) -> Vec<u8> {
        let mut tar = TarWriter::new(Vec::new());
        for (path, kind, text) in entries {
            let m = Meta {
                path: path.as_bytes(),
                kind: *kind,
                mode: 0o640,
                uid: 7,
                gid: 8,
                mtime: 9,
                mtime_ns: 0,
                link: matches!(kind, Kind::Symlink | Kind::Hardlink).then_some(text.as_bytes()),
                xattrs: &[],
            };
            if *kind == Kind::File {
                let mut body = tar.file(&m, text.len() as u64).unwrap();
                body.write(text.as_bytes()).unwrap();
                body.finish().unwrap();
            } else {
                tar.entry(&m).unwrap();
            }
        }
        tar.finish().unwrap()
    }

    fn repacked(tar: &[u8], exclude: &[&str]) -> Result<(TreeReport, Vec<String>), TreeError> {
        let mut out = TarWriter::new(Vec::new());
        let report = repack(
            Path::new("/data"),
            tar,
            &rules(exclude),
            &mut out,
            &mut Unwatched,
            &Cancel::default(),
            &Quiet,
        )?;
        let mut names = Vec::new();
        tarwalk::walk(&out.finish().unwrap()[..], |e, _| {
            names.push(String::from_utf8(e.path.clone()).unwrap());
            Ok::<(), TarError>(())
        })
        .unwrap();
        Ok((report, names))
    }

    #[test]
    fn names_are_told_from_the_first_entry_on() {
        let entries = |top: &str| {
            sent(&[
                (top, Kind::Directory, ""),
                (&format!("{top}/a"), Kind::File, "x"),
                (&format!("{top}/b"), Kind::Hardlink, &format!("{top}/a")),
                (&format!("{top}/c"), Kind::Symlink, "/etc/passwd"),
            ])
        };
        for top in [".", "data", "./data", "a/b"] {
            let (report, names) = repacked(&entries(top), &[]).unwrap();
            assert_eq!(names, ["./", "./a", "./b", "./c"], "{top}");
            assert_eq!((report.files, report.hardlinks, report.symlinks, report.bytes), (1, 1, 1, 1));
        }
    }

    #[test]
    fn what_leads_out_or_is_cut_is_refused() {
        let bad = [
            vec![("x", Kind::Directory, ""), ("y", Kind::File, "")],
            vec![("x", Kind::Directory, ""), ("x/../y", Kind::File, "")],
            vec![("x", Kind::Directory, ""), ("x/a", Kind::Hardlink, "etc/passwd")],
            vec![("x", Kind::File, "one file")],
        ];
        for entries in bad {
            assert!(repacked(&sent(&entries), &[]).is_err(), "{entries:?}");
        }
        let whole = sent(&[("x", Kind::Directory, ""), ("x/a", Kind::File, "1"), ("x/b", Kind::File, "2")]);
        for cut in (0..whole.len() - 512).step_by(512) {
            assert!(repacked(&whole[..cut], &[]).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn an_empty_tree_is_a_failure_and_what_is_excluded_is_not_there() {
        assert!(matches!(repacked(&sent(&[("x", Kind::Directory, "")]), &[]), Err(TreeError::Empty { .. })));
        let tar = sent(&[
            ("x", Kind::Directory, ""),
            ("x/cache", Kind::Directory, ""),
            ("x/cache/deep", Kind::File, "1"),
            ("x/cached", Kind::File, "2"),
            ("x/link", Kind::Hardlink, "x/cache/deep"),
        ]);
        let (report, names) = repacked(&tar, &["cache"]).unwrap();
        assert_eq!(names, ["./", "./cached"]);
        // Its data went with the name that was left out, so the copy does not count as whole.
        assert!(report.incomplete().unwrap().contains("link"));
    }
}

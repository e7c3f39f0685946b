//! Trees come back from a tar exactly as they were, whoever wrote it; and whatever a hostile archive names, nothing
//! outside of its own directory is made or changed. Needs root.

#![allow(clippy::unwrap_used)]

#[path = "support/hostile.rs"]
mod hostile;
mod support;

use std::fs::Permissions;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use support::{describe, make_odd, sh};
use tars_backup::archive::tarfile::TarWriter;
use tars_backup::archive::tree::{self, Exclude, TreeRules, Unwatched};
use tars_backup::archive::unpack::{Limits, UnpackError, Unpacked, survey, unpack};
use tars_backup::cancel::Cancel;
use tars_backup::hint::chain;
use tars_backup::progress::{Event, Monitor};

/// Counts the bytes that it is told of.
#[derive(Default)]
struct Counter(AtomicU64);

impl Monitor for Counter {
    fn event(&self, _: Event) {}
    fn moved(&self, bytes: u64) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }
    fn phase(&self, _: &str, _: Option<u64>) {}
    fn waiting(&self, _: &str) {}
}

fn private(path: PathBuf) -> PathBuf {
    std::fs::create_dir(&path).unwrap();
    std::fs::set_permissions(&path, Permissions::from_mode(0o700)).unwrap();
    path
}

#[track_caller]
fn unpack_into(tar: &[u8], into: &Path) -> Unpacked {
    let surveyed = survey(tar, &Limits::default(), &Cancel::default()).unwrap();
    let counter = Counter::default();
    let out = unpack(tar, into, &Limits::default(), &Cancel::default(), &counter)
        .unwrap_or_else(|e| panic!("{}", chain(&e)));
    assert_eq!(out.survey, surveyed);
    assert_eq!(counter.0.load(Ordering::Relaxed), surveyed.data_bytes);
    out
}

fn packed(root: &Path) -> (Vec<u8>, tree::TreeReport) {
    let rules = TreeRules {
        mounted: Vec::new(),
        exclude: Exclude::default(),
        own_dirs: Vec::new(),
        cross_mounts: false,
        allow_empty: true,
    };
    let mut tar = TarWriter::new(Vec::new());
    let monitor = Counter::default();
    let report = tree::pack(root, &rules, &mut tar, &mut Unwatched, &Cancel::default(), &monitor).unwrap();
    (tar.finish().unwrap(), report)
}

/// The odd tree without what no archive takes, and with more that only root can make.
fn odd_tree(temp: &Path) -> PathBuf {
    let root = private(temp.join("odd"));
    make_odd(&root);
    let at = root.display().to_string();
    symlink("/nowhere", root.join("sym-two")).unwrap();
    sh(&format!(
        "cd '{at}'; rm sock null; ln sym-two sym-two-again; ln fifo fifo-again; \
         setfattr -n security.capability -v 0x0100000200040000000000000000000000000000 suid; \
         setfattr -n trusted.secret -v xyz sub; setfattr -h -n trusted.of-link -v 1 sym; \
         setfattr -n trusted.of-fifo -v 2 fifo; setfattr -n 'user.a=b%3D%' -v 3 zero; \
         setfacl -d -m u:33:rwx .; setfacl -m u:34:r .; \
         touch -h -d '2002-02-02 02:02:02.000000003 UTC' sym; touch -d '2003-03-03 03:03:03.25 UTC' fifo; \
         chown -h 77:88 sym fifo 'empty dir'; chmod 7 'empty dir'; chown 12:34 . sub; \
         touch -d '2011-01-01 00:00:00.987654321 UTC' ."
    ));
    root
}

/// Attributes and access lists of everything, in the order of names.
fn attributes(root: &Path) -> String {
    sh(&format!(
        "cd '{}'; each() {{ find . \"$@\" -print0 | sort -z; }}; each | xargs -0 getfattr -h -d -m - -e hex; \
         each '!' -type l | xargs -0 getfacl -n; each -type f | xargs -0 sha256sum -z | tr '\\0' '\\n'",
        root.display()
    ))
}

#[track_caller]
fn assert_same(left: &Path, right: &Path) {
    assert_eq!(describe(left), describe(right));
    assert_eq!(attributes(left), attributes(right));
}

#[test]
fn an_odd_tree_comes_back_as_it_was() {
    let temp = tempfile::tempdir().unwrap();
    let root = odd_tree(temp.path());
    let (tar, report) = packed(&root);
    // What the parent gives to new directories must not get into the tree.
    sh(&format!("setfacl -d -m u:999:rwx '{}'", temp.path().display()));
    let into = private(temp.path().join("into"));
    let out = unpack_into(&tar, &into);
    assert_eq!(out.warnings(), Vec::<String>::new());
    assert_eq!((out.survey.entries, out.survey.bytes), (report.entries, report.bytes));
    assert_eq!(out.survey.files, report.files);
    assert!(out.survey.data_bytes < 1_000_000, "holes count as data");
    assert_same(&root, &into);
    let meta = |p: &str| std::fs::symlink_metadata(into.join(p)).unwrap();
    for (a, b) in [("plain", "sub/hard"), ("plain", "zz-hard"), ("sym-two", "sym-two-again")] {
        assert_eq!(meta(a).ino(), meta(b).ino(), "{a}");
    }
    assert!(meta("sparse").blocks() * 512 < 100_000, "holes came back as data");
    assert_eq!(meta("sparse-all").blocks(), 0);
    // And once more, from what came back.
    assert_eq!(packed(&into).0, tar);
}

#[test]
fn tars_of_other_writers_come_back_too() {
    let temp = tempfile::tempdir().unwrap();
    let root = odd_tree(temp.path());
    // Ids and times that the older forms cannot say; access lists; and GNU tar knows no fifo with two names.
    sh(&format!(
        "cd '{}'; rm fifo-again; setfacl -R -b -k .; chown 1234:4321 suid; chmod 6755 suid; setfattr -x security.capability suid || true
         touch -d '1970-01-02 UTC' zero; find . -exec touch -h -d '2020-02-02 02:02:02 UTC' {{}} +",
        root.display()
    ));
    let xattrs = "--xattrs --xattrs-include='*'";
    for (line, plain, listed) in [
        (format!("tar --format=posix {xattrs} -S -cf - ."), false, true),
        (format!("tar --format=posix {xattrs} -cf - *"), false, false),
        ("tar --format=gnu -S -cf - .".to_owned(), true, true),
        ("tar --format=gnu -cf - *".to_owned(), true, false),
        ("busybox tar -cf - .".to_owned(), true, true),
        ("busybox tar -cf - *".to_owned(), true, false),
    ] {
        let tar = temp.path().join("x.tar");
        sh(&format!("cd '{}'; {line} > '{}'", root.display(), tar.display()));
        let into = private(temp.path().join("into"));
        let out = unpack_into(&std::fs::read(&tar).unwrap(), &into);
        assert_eq!(out.warnings(), Vec::<String>::new(), "{line}");
        let lines = |text: String| {
            // The root, which has no name, is ours where the archive does not list it.
            text.lines().filter(|l| listed || !l.starts_with('|')).map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(lines(describe(&root)), lines(describe(&into)), "{line}");
        sh(&format!("diff -r --no-dereference -x 'fifo*' '{}' '{}'", root.display(), into.display()));
        if !plain && listed {
            assert_same(&root, &into);
        }
        std::fs::remove_dir_all(&into).unwrap();
    }
}

#[test]
fn a_path_longer_than_the_kernel_takes_comes_back() {
    let temp = tempfile::tempdir().unwrap();
    let root = private(temp.path().join("root"));
    let name = "n".repeat(200);
    sh(&format!(
        "cd '{}'; for i in $(seq 60); do mkdir {name}; cd {name}; done; echo deep > file; ln file again; ln -s / link",
        root.display()
    ));
    let into = private(temp.path().join("into"));
    let out = unpack_into(&packed(&root).0, &into);
    assert_eq!((out.survey.depth, out.warnings().len()), (61, 0));
    assert_eq!(packed(&into).0, packed(&root).0);
}

#[test]
fn a_full_disk_is_an_error_that_names_the_entry() {
    let temp = tempfile::tempdir().unwrap();
    let root = private(temp.path().join("root"));
    std::fs::write(root.join("big\n"), vec![b'x'; 3 << 20]).unwrap();
    let (tar, _) = packed(&root);
    let small = private(temp.path().join("small"));
    sh(&format!("mount -t tmpfs -o size=1m,mode=700 t '{}'", small.display()));
    let result = unpack(&tar[..], &small, &Limits::default(), &Cancel::default(), &Counter::default());
    sh(&format!("umount '{}'", small.display()));
    let Err(UnpackError::Write { path, source }) = result else { panic!("{result:?}") };
    assert_eq!((path.as_str(), source.kind()), ("big\\n", std::io::ErrorKind::StorageFull));
}

const AS_NOBODY: &str = "TARS_BACKUP_TEST_UNPACK";

/// Runs this test again as somebody else, who reads `x.tar` and unpacks it to `into`.
#[test]
fn without_root_owners_are_a_warning_and_set_id_bits_are_dropped() {
    if let Some(dir) = std::env::var_os(AS_NOBODY) {
        let dir = PathBuf::from(dir);
        let out = unpack_into(&std::fs::read(dir.join("x.tar")).unwrap(), &private(dir.join("into")));
        std::fs::write(dir.join("warnings"), out.warnings().join("\n")).unwrap();
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let root = odd_tree(temp.path());
    let theirs = private(temp.path().join("theirs"));
    std::fs::write(theirs.join("x.tar"), packed(&root).0).unwrap();
    sh(&format!(
        "cp '{}' '{2}/test'; chmod 755 '{1}' '{2}/test'; chown -R 65534:65534 '{2}'",
        std::env::current_exe().unwrap().display(),
        temp.path().display(),
        theirs.display()
    ));
    let done = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(theirs.join("test"))
        .args(["--exact", "without_root_owners_are_a_warning_and_set_id_bits_are_dropped"])
        .env(AS_NOBODY, &theirs)
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stdout));
    let warnings = std::fs::read_to_string(theirs.join("warnings")).unwrap();
    for said in ["owner not restored: ", "suid (6755, ", "suid (security.capability", "sub (trusted.secret"] {
        assert!(warnings.contains(said), "{said} is not in {warnings}");
    }
    let meta = std::fs::metadata(theirs.join("into/suid")).unwrap();
    assert_eq!((meta.uid(), meta.mode() & 0o7777), (65534, 0o755));
    sh(&format!("diff -r --no-dereference -x 'fifo*' '{}' '{}/into'", root.display(), theirs.display()));
}

/// No archive gets more than this much said about it, and nothing that a terminal obeys.
#[track_caller]
fn assert_harmless(error: &UnpackError) {
    let text = chain(error);
    assert!(!text.contains(char::is_control) && text.len() < 2000, "{text:?}");
}

/// Archives of the test below.
const CASES: u64 = 2000;

#[test]
fn hostile_archives_touch_nothing_outside_and_become_what_a_model_says_or_nothing() {
    // In memory where that is possible: each archive that is unpacked is also synced.
    let base = if Path::new("/dev/shm").is_dir() { Path::new("/dev/shm") } else { Path::new("/tmp") };
    let temp = tempfile::tempdir_in(base).unwrap();
    let outside = private(temp.path().join("sentinel"));
    std::fs::write(outside.join("file"), "precious").unwrap();
    std::fs::create_dir(outside.join("a")).unwrap();
    symlink("file", outside.join("link")).unwrap();
    let watch = temp.path().display().to_string();
    // Everything but access times; of the directory beside, the names.
    let state = || {
        let all = "find . -printf '%p %y %i %m %U %G %n %s %T@ %C@ %l\\0'";
        sh(&format!("cd '{watch}/sentinel'; {all} | sort -z | tr '\\0' '\\n'; cat file; ls -A .. ; ls -A ."))
    };
    let mut before = state();
    let (mut accepted, mut refused, mut damaged_accepted) = (0, 0, 0);
    let limits = Limits { entries: Some(50), bytes: Some(64 << 10) };
    for seed in 0..CASES {
        let mut dice = hostile::Dice(seed);
        let (tar, damaged) = hostile::archive(&mut dice, &outside);
        let told = survey(&tar[..], &limits, &Cancel::default());
        let into = private(temp.path().join("into"));
        let done = unpack(&tar[..], &into, &limits, &Cancel::default(), &Counter::default());
        let model = hostile::model(&tar);
        match (told, done) {
            (Ok(told), Ok(done)) => {
                assert_eq!(told, done.survey, "seed {seed}");
                let mut real = hostile::look(&into);
                let Some(model) = model else { panic!("seed {seed}: the model refuses it") };
                if !model.contains_key(&b""[..]) {
                    real.remove(&b""[..]);
                }
                for (path, item) in &mut real {
                    // Of parents that are not listed, the time is when they were made.
                    if model.get(path).is_some_and(|m| m.numbers.3.is_none()) {
                        item.numbers.3 = None;
                    }
                }
                assert_eq!(real, model, "seed {seed}");
                accepted += 1;
                damaged_accepted += u32::from(damaged);
            }
            (Err(told), Err(done)) => {
                let limited =
                    matches!(told, UnpackError::TooManyEntries { .. } | UnpackError::TooManyBytes { .. });
                assert!(
                    damaged || limited || model.is_none(),
                    "seed {seed}: {told:?}, and the model takes it"
                );
                assert_harmless(&told);
                assert_harmless(&done);
                refused += 1;
            }
            (told, done) => panic!("seed {seed}: survey says {told:?}, unpack {done:?}"),
        }
        std::fs::remove_dir_all(&into).unwrap();
        // A look every time is a process every time; the seed is found by looking closer.
        if seed % 25 == 0 || seed + 1 == CASES {
            assert_eq!(state(), before, "something happened outside, up to seed {seed}");
            before = state();
        }
    }
    println!("{accepted} unpacked, {damaged_accepted} of them damaged; {refused} refused");
    assert!(accepted > 300 && refused > 300, "{accepted} {refused}");
}

#[test]
fn a_bomb_ends_at_the_limits() {
    let temp = tempfile::tempdir().unwrap();
    let numbers = [0o644, 0, 0, 0];
    let size = 4u64 << 30;
    let head = hostile::header(b"bomb", b'0', size, b"", numbers);
    let bomb = || {
        let read = std::io::Cursor::new(head.clone()).chain(std::io::repeat(0).take(size + 1024));
        flate2::read::MultiGzDecoder::new(flate2::read::GzEncoder::new(read, flate2::Compression::fast()))
    };
    let limits = Limits { entries: None, bytes: Some(1 << 20) };
    let into = private(temp.path().join("into"));
    for result in [
        survey(bomb(), &limits, &Cancel::default()).map(drop),
        unpack(bomb(), &into, &limits, &Cancel::default(), &Counter::default()).map(drop),
    ] {
        assert!(matches!(result, Err(UnpackError::TooManyBytes { limit: 1_048_576 })), "{result:?}");
    }
    assert_eq!(std::fs::read_dir(&into).unwrap().count(), 0);
    // Names without end: the stream never ends, the survey does.
    struct Flood(u64, Vec<u8>);
    impl Read for Flood {
        fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
            if self.1.is_empty() {
                self.0 += 1;
                self.1 = hostile::header(format!("f{}", self.0).as_bytes(), b'6', 0, b"", [0o644, 0, 0, 0]);
            }
            let n = into.len().min(self.1.len());
            into[..n].copy_from_slice(&self.1[..n]);
            self.1.drain(..n);
            Ok(n)
        }
    }
    let limits = Limits { entries: Some(100_000), bytes: None };
    let result = survey(Flood(0, Vec::new()), &limits, &Cancel::default());
    assert!(matches!(result, Err(UnpackError::TooManyEntries { limit: 100_000 })), "{result:?}");
}

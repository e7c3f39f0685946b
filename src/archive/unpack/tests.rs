//! Each rule by itself, with archives of a few entries. What comes back whole is in `tests/unpack.rs`.

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use super::*;
use crate::archive::tarfile::{Kind, Meta, SparseMap, TarWriter};
use crate::progress::tests::Quiet;

type Line<'a> = (&'a [u8], Kind, &'a [u8]);

const NO_LIMITS: Limits = Limits { entries: None, bytes: None };

fn meta<'a>(path: &'a [u8], kind: Kind, link: &'a [u8]) -> Meta<'a> {
    Meta {
        path,
        kind,
        mode: if kind == Kind::Directory { 0o750 } else { 0o640 },
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        mtime: 9,
        mtime_ns: 0,
        link: matches!(kind, Kind::Symlink | Kind::Hardlink).then_some(link),
        xattrs: &[],
    }
}

/// `(path, kind, link or content)`.
fn tar_of(lines: &[Line<'_>]) -> Vec<u8> {
    let mut tar = TarWriter::new(Vec::new());
    for (path, kind, text) in lines {
        let m = meta(path, *kind, text);
        if *kind == Kind::File {
            let mut body = tar.file(&m, text.len() as u64).unwrap();
            body.write(text).unwrap();
            body.finish().unwrap();
        } else {
            tar.entry(&m).unwrap();
        }
    }
    tar.finish().unwrap()
}

fn surveyed(tar: &[u8], limits: &Limits) -> Result<Survey, UnpackError> {
    survey(tar, limits, &Cancel::default())
}

fn fresh() -> tempfile::TempDir {
    tempfile::Builder::new().permissions(PermissionsExt::from_mode(0o700)).tempdir().unwrap()
}

fn unpacked(tar: &[u8], limits: &Limits) -> (tempfile::TempDir, Result<Unpacked, UnpackError>) {
    let dir = fresh();
    let result = unpack(tar, dir.path(), limits, &Cancel::default(), &Quiet);
    (dir, result)
}

/// Both must refuse it, for the same reason, which is returned.
#[track_caller]
fn refused(lines: &[Line<'_>]) -> &'static str {
    refused_tar(&tar_of(lines))
}

#[track_caller]
fn refused_tar(tar: &[u8]) -> &'static str {
    let first = surveyed(tar, &NO_LIMITS).unwrap_err();
    let second = unpacked(tar, &NO_LIMITS).1.unwrap_err();
    assert!(!first.to_string().contains(char::is_control), "{first:?}");
    match (first, second) {
        (UnpackError::Hostile { why, .. }, UnpackError::Hostile { why: again, .. }) if why == again => why,
        other => panic!("{other:?}"),
    }
}

use Kind::{Directory as D, Fifo, File as F, Hardlink as H, Symlink as L};

#[test]
fn names_that_lead_elsewhere_or_have_two_forms_are_refused() {
    let long = [b'n'; 256];
    for (path, why) in [
        (&b"/etc/passwd"[..], "an absolute name"),
        (b"//x", "an absolute name"),
        (b"../x", "a name that leads upwards"),
        (b"./../x", "a name that leads upwards"),
        (b"a/../../x", "a name that leads upwards"),
        (b"a/..", "a name that leads upwards"),
        (b"a//b", "a name with an empty part"),
        (b".//a", "a name with an empty part"),
        (b"./", "a root that is no directory"),
        (b".", "a root that is no directory"),
        (b"a/./b", "a name with an empty part"),
        (b"././a", "a name with an empty part"),
        (b"a/.", "a name with an empty part"),
        (b"a/", "a name with an empty part"),
        (&long, "a name that is too long"),
    ] {
        assert_eq!(refused(&[(path, L, b"t")]), why, "{}", path.escape_ascii());
        if path != b"." && path != b"./" && path != b"a/" {
            assert_eq!(refused(&[(path, D, b"")]), why, "{}", path.escape_ascii());
        }
    }
    let deep = b"d/".repeat(5000);
    assert_eq!(refused(&[(&deep[..deep.len() - 1], D, b"")]), "which lies too deep");
    // The walker refuses a NUL before; the rule holds by itself as well.
    assert!(rules_plain(b"a\0b").is_err());
}

fn rules_plain(name: &[u8]) -> Result<Survey, UnpackError> {
    let mut entries = Vec::new();
    tarwalk::walk(&tar_of(&[(b"a", F, b"")])[..], |e, _| {
        entries.push(e.clone());
        Ok::<(), TarError>(())
    })
    .unwrap();
    entries[0].path = name.to_vec();
    let mut ledger = Ledger::new(NO_LIMITS);
    ledger.admit(&entries[0])?;
    Ok(ledger.survey())
}

#[test]
fn a_name_comes_once_in_any_form() {
    for (first, second) in [(&b"a"[..], &b"a"[..]), (b"a", b"./a"), (b"./a", b"a")] {
        for (k1, k2) in [(D, D), (F, F), (D, F), (F, D), (L, F), (F, L), (L, D), (D, L), (Fifo, F)] {
            assert_eq!(refused(&[(first, k1, b"t"), (second, k2, b"t")]), "for the second time");
        }
    }
    assert_eq!(refused(&[(b"a", F, b""), (b"b", F, b""), (b"b", H, b"a")]), "for the second time");
    assert_eq!(refused(&[(b".", D, b""), (b".", D, b"")]), "a second root");
    assert_eq!(refused(&[(b".", F, b"x")]), "a root that is no directory");
    assert_eq!(refused(&[(b".", L, b"/etc")]), "a root that is no directory");
}

#[test]
fn nothing_lies_below_what_is_no_directory() {
    for (kind, text) in [(F, &b""[..]), (L, b"/etc"), (L, b"."), (Fifo, b"")] {
        let below = "which lies below something that is no directory";
        assert_eq!(refused(&[(b"a", kind, text), (b"a/b", F, b"x")]), below);
        assert_eq!(refused(&[(b"a", kind, text), (b"a/b/c", D, b"")]), below);
        assert_eq!(refused(&[(b"d/a", kind, text), (b"d/x", F, b""), (b"d/a/c", L, b"x")]), below);
        let later = "which is no directory and has entries below it";
        assert_eq!(refused(&[(b"a/b", F, b"x"), (b"a", kind, text)]), later);
    }
    assert_eq!(
        refused(&[(b"l", L, b"/etc"), (b"h", H, b"l"), (b"h/passwd", F, b"x")]),
        "which lies below something that is no directory"
    );
}

#[test]
fn a_hard_link_repeats_an_earlier_file_and_nothing_else() {
    let none = "a hard link to something that is no earlier file of it";
    assert_eq!(refused(&[(b"h", H, b"later"), (b"later", F, b"x")]), none);
    assert_eq!(refused(&[(b"h", H, b"h")]), none);
    assert_eq!(refused(&[(b"d", D, b""), (b"h", H, b"d")]), none);
    assert_eq!(refused(&[(b"d/x", F, b""), (b"h", H, b"d")]), none);
    assert_eq!(refused(&[(b"h", H, b".")]), none);
    assert_eq!(refused(&[(b"l", L, b"/etc"), (b"h", H, b"l/passwd")]), none);
    assert_eq!(refused(&[(b"h", H, b"/etc/passwd")]), "an absolute name");
    assert_eq!(refused(&[(b"h", H, b"../etc/passwd")]), "a name that leads upwards");
    let tar = tar_of(&[
        (b"f", F, b"x"),
        (b"l", L, b"/nowhere"),
        (b"p", Fifo, b""),
        (b"d/f2", H, b"./f"),
        (b"f3", H, b"d/f2"),
        (b"l2", H, b"l"),
        (b"p2", H, b"p"),
    ]);
    let (dir, result) = unpacked(&tar, &NO_LIMITS);
    let survey = result.unwrap().survey;
    assert_eq!((survey.entries, survey.files, survey.inodes, survey.depth), (7, 1, 4, 2));
    let ino = |name: &str| std::fs::symlink_metadata(dir.path().join(name)).unwrap().ino();
    for (a, b) in [("f", "d/f2"), ("f", "f3"), ("l", "l2"), ("p", "p2")] {
        assert_eq!(ino(a), ino(b), "{a}");
    }
}

#[test]
fn devices_and_unknown_kinds_are_refused() {
    for (flag, why) in [
        (b'3', "a device"),
        (b'4', "a device"),
        (b'V', "something of an unknown type"),
        (b'D', "something of an unknown type"),
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_path("dev").unwrap();
        header.set_size(0);
        header.set_mode(0o666);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_entry_type(tar::EntryType::new(flag));
        header.set_cksum();
        assert_eq!(refused_tar(&[&header.as_bytes()[..], &[0; 1024]].concat()), why);
    }
}

#[test]
fn an_owner_that_the_kernel_reads_as_nobody_in_particular_is_refused() {
    for id in [u32::MAX.to_string(), (1u64 << 40).to_string()] {
        let (key, pad) = ("uid", 512);
        let text = format!("{} {key}={id}\n", id.len() + key.len() + 5);
        let mut extension = tar::Header::new_ustar();
        extension.set_size(text.len() as u64);
        extension.set_entry_type(tar::EntryType::XHeader);
        extension.set_cksum();
        let mut body = text.into_bytes();
        body.resize(pad, 0);
        let tar = [&extension.as_bytes()[..], &body, &tar_of(&[(b"a", F, b"")])].concat();
        assert_eq!(refused_tar(&tar), "which has an owner that no system knows");
    }
}

#[test]
fn more_than_the_limits_is_refused_at_the_first_entry_too_many() {
    let tar = tar_of(&[(b".", D, b""), (b"a", F, b"12345"), (b"b", F, b"678")]);
    let limits = |entries, bytes| Limits { entries: Some(entries), bytes: Some(bytes) };
    let good = surveyed(&tar, &limits(3, 8)).unwrap();
    assert_eq!(
        good,
        Survey { entries: 3, files: 2, inodes: 2, bytes: 8, data_bytes: 8, depth: 1 },
        "the root is there already"
    );
    assert!(matches!(surveyed(&tar, &limits(2, 8)), Err(UnpackError::TooManyEntries { limit: 2 })));
    assert!(matches!(surveyed(&tar, &limits(3, 7)), Err(UnpackError::TooManyBytes { limit: 7 })));
    let (dir, result) = unpacked(&tar, &limits(9, 4));
    assert!(matches!(result, Err(UnpackError::TooManyBytes { limit: 4 })));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    // Sizes whose sum has no number, in two files that are nothing but a hole.
    let mut holes = TarWriter::new(Vec::new());
    for name in [&b"a"[..], b"b"] {
        let map = SparseMap { extents: Vec::new(), size: u64::MAX - 1 };
        holes.sparse(&meta(name, F, b""), &map).unwrap().finish().unwrap();
    }
    let holes = holes.finish().unwrap();
    assert!(matches!(surveyed(&holes, &NO_LIMITS), Err(UnpackError::TooManyBytes { .. })));
}

#[test]
fn what_is_kept_to_the_end_has_a_ceiling() {
    let mut entry = None;
    tarwalk::walk(&tar_of(&[(b"a", D, b"")])[..], |e, _| {
        entry = Some(e.clone());
        Ok::<(), TarError>(())
    })
    .unwrap();
    let mut entry = entry.unwrap();
    entry.xattrs = vec![(b"user.x".to_vec(), vec![b'v'; 1 << 20])];
    let mut ledger = Ledger::new(NO_LIMITS);
    let ended = (0..1000).position(|i| {
        entry.path = format!("d{i}").into_bytes();
        matches!(ledger.admit(&entry), Err(UnpackError::TooMuchToHold))
    });
    assert!(ended.is_some_and(|i| (200..300).contains(&i)), "{ended:?}");
}

#[test]
fn parents_that_are_not_listed_are_made_and_may_be_listed_later() {
    let tar = tar_of(&[(b"x/y/z", F, b"1"), (b"x/y", D, b""), (b"q/r", F, b"2")]);
    let (dir, result) = unpacked(&tar, &NO_LIMITS);
    let out = result.unwrap();
    assert_eq!((out.survey.inodes, out.survey.depth), (5, 3));
    let mode = |name: &str| std::fs::metadata(dir.path().join(name)).unwrap().mode() & 0o7777;
    assert_eq!((mode("x"), mode("x/y"), mode("q"), mode("q/r")), (0o755, 0o750, 0o755, 0o640));
}

#[test]
fn odd_names_are_legal_and_shown_without_their_control_characters() {
    let odd = b"esc\x1b[31m\nline \xff\xfe";
    let tar = tar_of(&[(odd, F, b"x")]);
    let (dir, result) = unpacked(&tar, &NO_LIMITS);
    result.unwrap();
    use std::os::unix::ffi::OsStrExt;
    assert!(dir.path().join(std::ffi::OsStr::from_bytes(odd)).is_file());
    let long = [&odd[..], &b"x".repeat(100_000)].concat();
    let text = surveyed(&tar_of(&[(&long, F, b"x")]), &NO_LIMITS).unwrap_err().to_string();
    assert!(text.starts_with("the tar holds esc\\u{1b}[31m\\nline ") && text.len() < 1000, "{text}");
}

#[test]
fn a_tar_that_is_cut_or_unreadable_or_interrupted_is_an_error_of_its_own() {
    let tar = tar_of(&[(b"a", F, &[b'x'; 5000])]);
    for cut in [0, 100, 600, 3000, 5632, tar.len() - 1] {
        assert!(matches!(surveyed(&tar[..cut], &NO_LIMITS), Err(UnpackError::Tar(_))), "{cut}");
        let (_dir, result) = unpacked(&tar[..cut], &NO_LIMITS);
        assert!(
            matches!(&result, Err(UnpackError::Tar(TarError::Truncated { bytes })) if *bytes == cut as u64),
            "{cut}: {result:?}"
        );
    }
    let cancel = Cancel::default();
    cancel.stop();
    assert!(matches!(survey(&tar[..], &NO_LIMITS, &cancel), Err(UnpackError::Interrupted(_))));
    let dir = fresh();
    let result = unpack(&tar[..], dir.path(), &NO_LIMITS, &cancel, &Quiet);
    assert!(matches!(result, Err(UnpackError::Interrupted(_))));
}

#[test]
fn only_an_empty_private_directory_is_unpacked_to() {
    let tar = tar_of(&[(b"a", F, b"x")]);
    let try_it = |path: &Path| unpack(&tar[..], path, &NO_LIMITS, &Cancel::default(), &Quiet);
    let dir = fresh();
    let inside = dir.path().join("in");
    std::fs::create_dir(&inside).unwrap();
    std::fs::set_permissions(&inside, PermissionsExt::from_mode(0o755)).unwrap();
    assert!(matches!(try_it(&inside), Err(UnpackError::NotFresh { .. })));
    std::fs::set_permissions(&inside, PermissionsExt::from_mode(0o700)).unwrap();
    std::os::unix::fs::symlink("in", dir.path().join("link")).unwrap();
    assert!(matches!(try_it(&dir.path().join("link")), Err(UnpackError::Write { .. })));
    try_it(&inside).unwrap();
    assert!(matches!(try_it(&inside), Err(UnpackError::NotFresh { .. })));
}

//! Is this a Debian package, and a whole one? What could go wrong: half a download, or something else under that name, which
//! is found out on the day when nothing else is left. So every member of the archive (ar) must be there to its last byte.

use std::cmp::Ordering;

const MAGIC: &[u8] = b"!<arch>\n";
/// Length of the header of a member.
const HEADER: usize = 60;

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DebError {
    #[error("it does not begin as a Debian package does")]
    NoArchive,
    #[error("it is cut, or damaged, at byte {at}")]
    Cut { at: usize },
    #[error("its format is not 2.x")]
    Format,
    #[error("it lacks {0}")]
    Lacks(&'static str),
}

/// What the name of the file tells: `NAME_VERSION_ARCHITECTURE.deb`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DebName<'a> {
    pub package: &'a str,
    pub version: &'a str,
    pub architecture: &'a str,
}

impl<'a> DebName<'a> {
    /// None for anything that is not plainly such a name, and so for whatever could climb or break a line.
    pub fn parse(file: &'a str) -> Option<Self> {
        let (package, rest) = file.strip_suffix(".deb")?.split_once('_')?;
        let (version, architecture) = rest.rsplit_once('_')?;
        let of = |text: &str, more: &[u8]| {
            text.starts_with(|c: char| c.is_ascii_alphanumeric())
                && text.bytes().all(|b| b.is_ascii_alphanumeric() || more.contains(&b))
        };
        let good = of(package, b"+-.") && of(version, b"+-.~") && of(architecture, b"-");
        (good && file.len() <= 200).then_some(Self { package, version, architecture })
    }
}

/// Which of two versions without an epoch, which no file name has, is newer: as dpkg orders them.
pub fn compare_versions(a: &str, b: &str) -> Ordering {
    let parts = |version| str::rsplit_once(version, '-').unwrap_or((version, ""));
    let ((a, revision_a), (b, revision_b)) = (parts(a), parts(b));
    compare_part(a, b).then_with(|| compare_part(revision_a, revision_b))
}

/// In turn what is no digit, character by character, and a number. `~` is before the end, letters are before the rest.
fn compare_part(mut a: &str, mut b: &str) -> Ordering {
    let rank = |c: u8| match c {
        b'~' => -1,
        c if c.is_ascii_alphabetic() => i32::from(c),
        c => i32::from(c) + 256,
    };
    let take = |text: &mut &str, digits: bool| {
        let end = text.find(|c: char| c.is_ascii_digit() != digits).unwrap_or(text.len());
        let (taken, rest) = text.split_at(end);
        *text = rest;
        taken.to_owned()
    };
    while !a.is_empty() || !b.is_empty() {
        let ranks = |word: String| word.bytes().map(rank).chain([0]).collect::<Vec<i32>>();
        let words = ranks(take(&mut a, false)).cmp(&ranks(take(&mut b, false)));
        let number = |text: String| text.trim_start_matches('0').to_owned();
        let (x, y) = (number(take(&mut a, true)), number(take(&mut b, true)));
        let order = words.then(x.len().cmp(&y.len())).then(x.cmp(&y));
        if order != Ordering::Equal {
            return order;
        }
    }
    Ordering::Equal
}

/// Whether `bytes` are a Debian package, all of it.
pub fn check(bytes: &[u8]) -> Result<(), DebError> {
    let mut rest = bytes.strip_prefix(MAGIC).ok_or(DebError::NoArchive)?;
    let at = |rest: &[u8]| bytes.len() - rest.len();
    let mut names: Vec<&[u8]> = Vec::new();
    while !rest.is_empty() {
        let cut = DebError::Cut { at: at(rest) };
        let (header, body) = rest.split_at_checked(HEADER).ok_or(cut)?;
        if !header.ends_with(b"`\n") {
            return Err(cut);
        }
        let size = std::str::from_utf8(&header[48..58]).ok().and_then(|t| t.trim_end().parse::<usize>().ok());
        let (body, after) = body.split_at_checked(size.ok_or(cut)?).ok_or(cut)?;
        let name = header[..16].trim_ascii_end();
        let name = name.strip_suffix(b"/").unwrap_or(name);
        if names.is_empty() && (name != b"debian-binary" || !body.starts_with(b"2.")) {
            return Err(DebError::Format);
        }
        names.push(name);
        // Members begin at even places.
        rest = if body.len() % 2 == 1 { after.get(1..).unwrap_or_default() } else { after };
    }
    for (prefix, what) in [("control.tar", "its control file"), ("data.tar", "its data")] {
        if !names.iter().any(|n| n.starts_with(prefix.as_bytes())) {
            return Err(DebError::Lacks(what));
        }
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An ar archive of these members.
    pub(crate) fn ar(members: &[(&str, &[u8])]) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        for (name, body) in members {
            let header = format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n", 0, 0, 0, "100644", body.len());
            out.extend_from_slice(header.as_bytes());
            out.extend_from_slice(body);
            if body.len() % 2 == 1 {
                out.push(b'\n');
            }
        }
        out
    }

    pub(crate) fn package() -> Vec<u8> {
        ar(&[("debian-binary", b"2.0\n"), ("control.tar.xz", b"control"), ("data.tar.xz", b"data and more")])
    }

    #[test]
    fn a_package_is_one_to_its_last_byte() {
        let good = package();
        assert_eq!(check(&good), Ok(()));
        // A padding byte at the end may be missing, as some tools leave it out.
        for cut in 1..good.len() - 1 {
            assert!(check(&good[..cut]).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn what_is_no_package_is_told_as_what_it_lacks() {
        assert_eq!(check(b""), Err(DebError::NoArchive));
        assert_eq!(check(b"PK\x03\x04"), Err(DebError::NoArchive));
        assert_eq!(check(&ar(&[("debian-binary", b"3.0\n")])), Err(DebError::Format));
        assert_eq!(check(&ar(&[("control.tar", b"")])), Err(DebError::Format));
        let without = ar(&[("debian-binary", b"2.0\n"), ("data.tar", b"")]);
        assert_eq!(check(&without), Err(DebError::Lacks("its control file")));
        let mut odd = package();
        odd[8 + 58] = b'x';
        assert_eq!(check(&odd), Err(DebError::Cut { at: 8 }));
    }

    #[test]
    fn versions_are_ordered_as_dpkg_orders_them() {
        let ordered = [
            "0.1.0~rc1-1",
            "0.1.0~rc2-1",
            "0.1.0-1",
            "0.1.0-1+b1",
            "0.1.0-2",
            "0.1.0-10",
            "0.1.0a-1",
            "0.1.0+git-1",
            "0.2.0-1~bpo12+1",
            "0.2.0-1",
            "0.10.0",
            "1.0",
        ];
        for (n, a) in ordered.iter().enumerate() {
            for (m, b) in ordered.iter().enumerate() {
                assert_eq!(compare_versions(a, b), n.cmp(&m), "{a} {b}");
            }
        }
        assert_eq!(compare_versions("1.01-0", "1.1"), Ordering::Equal);
    }

    #[test]
    fn a_name_tells_package_version_and_architecture() {
        let name = DebName::parse("tars-backup_0.1.0~rc1-1_amd64.deb").unwrap();
        assert_eq!((name.package, name.version, name.architecture), ("tars-backup", "0.1.0~rc1-1", "amd64"));
        for bad in [
            "x.deb",
            "../a_1_b.deb",
            "a_1_b.deb.sha256",
            "a_1\n_b.deb",
            "a_1_.deb",
            "_1_b.deb",
            "a b_1_c.deb",
        ] {
            assert_eq!(DebName::parse(bad), None, "{bad:?}");
        }
    }
}

//! Archives that nobody should trust, from a seed; and what they ought to become, told by another reader than ours and
//! by rules written a second time, the plain way.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// Splitmix: small, and the same everywhere.
pub struct Dice(pub u64);

impl Dice {
    pub fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }

    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn pick<'a>(&mut self, from: &[&'a [u8]]) -> &'a [u8] {
        from[self.below(from.len())]
    }
}

pub fn header(name: &[u8], flag: u8, size: u64, link: &[u8], numbers: [u64; 4]) -> Vec<u8> {
    let [mode, uid, gid, mtime] = numbers;
    let mut block = vec![0u8; 512];
    let mut put = |at: usize, text: &[u8]| block[at..at + text.len()].copy_from_slice(text);
    put(0, &name[..name.len().min(100)]);
    put(100, format!("{mode:07o}").as_bytes());
    put(108, format!("{uid:07o}").as_bytes());
    put(116, format!("{gid:07o}").as_bytes());
    put(124, format!("{size:011o}").as_bytes());
    put(136, format!("{mtime:011o}").as_bytes());
    put(148, b"        ");
    put(156, &[flag]);
    put(157, &link[..link.len().min(100)]);
    put(257, b"ustar\x0000");
    let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    block
}

fn padded(mut data: Vec<u8>) -> Vec<u8> {
    data.resize(data.len().next_multiple_of(512), 0);
    data
}

fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
}

/// One entry; names that are too long for a header go into an extension of either kind.
fn entry(dice: &mut Dice, name: &[u8], flag: u8, link: &[u8], content: &[u8], claimed: u64) -> Vec<u8> {
    let mut out = Vec::new();
    if name.len() > 100 || dice.one_in(5) {
        // The model's reader takes a record to end at the first newline.
        if !name.contains(&b'\n') && dice.one_in(2) {
            let text = record("path", name);
            out.extend(header(b"pax", b'x', text.len() as u64, b"", [0o644, 0, 0, 0]));
            out.extend(padded(text));
        } else {
            let text = [name, b"\0"].concat();
            out.extend(header(b"././@LongLink", b'L', text.len() as u64, b"", [0o644, 0, 0, 0]));
            out.extend(padded(text));
        }
    }
    let mode = [0o644, 0o755, 0o4755, 0o2770, 0o1777, 0, 0o600][dice.below(7)];
    let (uid, gid) = ([0, 1000, 65534, 2_000_000][dice.below(4)], [0, 1000, 99][dice.below(3)]);
    let mtime = [0, 1, 1_000_000_000, 4_102_444_800][dice.below(4)];
    out.extend(header(name, flag, claimed, link, [mode, uid, gid, mtime]));
    out.extend(padded(content.to_vec()));
    out
}

const PLAIN: [&[u8]; 18] = [
    b"a",
    b"b",
    b"c",
    b"d",
    b"e",
    b"f",
    b"g/h",
    b"g/i",
    b"j/k/l",
    b"j/k/m",
    b"n/o/p/q",
    b"r",
    b"s",
    b"t/u",
    b"v",
    b"\x1b[2J\nnew line",
    b"latin-\xe9",
    b"w\xff/\x07bell",
];

/// An archive, and whether it is damaged: a reader that is lenient may still take it. `outside` is an absolute directory that must stay as
/// it is; names and links of the archive lead into it.
pub fn archive(dice: &mut Dice, outside: &Path) -> (Vec<u8>, bool) {
    let outside = outside.as_os_str().as_bytes();
    let wicked = if dice.one_in(2) { 4 } else { 1000 };
    let sizes_lie = dice.one_in(8);
    let count = if dice.one_in(20) { 60 } else { 1 + dice.below(9) };
    let (mut tar, mut names) = (Vec::new(), Vec::<Vec<u8>>::new());
    let mut damaged = false;
    for i in 0..count {
        let mut name =
            if count == 60 { format!("flood/{i}").into_bytes() } else { dice.pick(&PLAIN).to_vec() };
        if dice.one_in(3) {
            name = [b"./", &name[..]].concat();
        }
        if !names.is_empty() && dice.one_in(40) {
            name = [&names[dice.below(names.len())][..], b"/below"].concat();
        }
        if dice.one_in(15) {
            name = [&name[..], b"/", &[b'l'; 150]].concat();
        }
        if dice.one_in(wicked) {
            name = match dice.below(10) {
                0 => [b"../sentinel/", &name[..]].concat(),
                1 => [outside, b"/", &name[..]].concat(),
                2 => [&name[..], b"/../../sentinel/file"].concat(),
                3 => [b"./", &name[..], b"//x"].concat(),
                4 => [&name[..], b"/."].concat(),
                5 => b"..".to_vec(),
                6 => b"/".to_vec(),
                7 => b".".to_vec(),
                8 => [&name[..], b"/"].concat(),
                _ => vec![b'x'; 300],
            };
        }
        if i == 0 && dice.one_in(2) {
            name = b"./".to_vec();
        }
        let mut flag = if count == 60 { b'6' } else { b"000000055555211111260"[dice.below(21)] };
        if dice.one_in(wicked * 4) {
            flag = b"3467VD"[dice.below(6)];
        }
        if name == b"./" {
            flag = b'5';
        }
        let link = match flag {
            b'1' if !names.is_empty() && !dice.one_in(20) => names[dice.below(names.len())].clone(),
            b'1' | b'2' => match dice.below(6) {
                0 => outside.to_vec(),
                1 => [outside, b"/file"].concat(),
                2 => b"../sentinel".to_vec(),
                3 => b"../sentinel/file".to_vec(),
                4 => b".".to_vec(),
                _ => dice.pick(&PLAIN).to_vec(),
            },
            _ => Vec::new(),
        };
        let content = if flag == b'0' { vec![b'a' + (i % 26) as u8; dice.below(1500)] } else { Vec::new() };
        let lie = if sizes_lie && dice.one_in(3) { [1, 512, 700, 1 << 30][dice.below(4)] } else { 0 };
        damaged |= lie > 0;
        tar.extend(entry(dice, &name, flag, &link, &content, content.len() as u64 + lie));
        names.push(name);
    }
    tar.extend([0; 1024]);
    if dice.one_in(6) {
        tar.truncate(dice.below(tar.len()));
        damaged = true;
    } else if dice.one_in(4) {
        for _ in 0..=dice.below(3) {
            let at = dice.below(tar.len());
            tar[at] ^= 1 << dice.below(8);
        }
        damaged = true;
    }
    (tar, damaged)
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Thing {
    Directory,
    File(Vec<u8>),
    Symlink(Vec<u8>),
    Fifo,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    pub thing: Thing,
    /// Mode (0 of a symlink), owner, group, time; None for a time that the archive does not say.
    pub numbers: (u32, u32, u32, Option<i64>),
    /// The smallest of its names.
    pub same_as: Vec<u8>,
}

pub type Tree = BTreeMap<Vec<u8>, Item>;

/// What the archive ought to become; the root is there only if it was listed. None when it must be refused.
pub fn model(tar: &[u8]) -> Option<Tree> {
    let mut tree = Tree::new();
    let mut archive = tar::Archive::new(tar);
    for entry in archive.entries().ok()? {
        let mut entry = entry.ok()?;
        let name = entry.path_bytes().into_owned();
        let mut flag = entry.header().entry_type().as_byte();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).ok()?;
        if content.len() as u64 != entry.size() || (!matches!(flag, b'0' | b'7') && !content.is_empty()) {
            return None;
        }
        if matches!(flag, b'0' | b'7') && name.ends_with(b"/") {
            flag = b'5';
            if !content.is_empty() {
                return None;
            }
        }
        let path = normal(&name, flag == b'5')?;
        let link = entry.link_name_bytes().map(|l| l.into_owned()).unwrap_or_default();
        let h = entry.header();
        let mut numbers = (
            h.mode().ok()? & 0o7777,
            u32::try_from(h.uid().ok()?).ok()?,
            u32::try_from(h.gid().ok()?).ok()?,
            Some(i64::try_from(h.mtime().ok()?).ok()?),
        );
        let mut same_as = path.clone();
        let thing = match flag {
            b'5' => Thing::Directory,
            _ if path.is_empty() => return None,
            b'0' | b'7' => Thing::File(content),
            b'6' => Thing::Fifo,
            b'2' if !link.is_empty() => {
                numbers.0 = 0;
                Thing::Symlink(link)
            }
            b'1' => {
                let first = tree.get(&normal(&link, false)?)?;
                if first.thing == Thing::Directory {
                    return None;
                }
                numbers = first.numbers;
                same_as = first.same_as.clone();
                first.thing.clone()
            }
            _ => return None,
        };
        if tree.insert(path, Item { thing, numbers, same_as }).is_some() {
            return None;
        }
    }
    for path in tree.keys().cloned().collect::<Vec<_>>() {
        for (at, _) in path.iter().enumerate().filter(|(_, b)| **b == b'/') {
            let parent = path[..at].to_vec();
            let implied =
                Item { thing: Thing::Directory, numbers: (0o755, 0, 0, None), same_as: parent.clone() };
            if tree.entry(parent).or_insert(implied).thing != Thing::Directory {
                return None;
            }
        }
    }
    smallest_names(&mut tree);
    Some(tree)
}

fn normal(name: &[u8], directory: bool) -> Option<Vec<u8>> {
    let text = if name == b"." { b"./" } else { name };
    let text = text.strip_prefix(b"./").unwrap_or(text);
    let text = if directory { text.strip_suffix(b"/").unwrap_or(text) } else { text };
    let good = |part: &[u8]| !part.is_empty() && part != b"." && part != b".." && part.len() < 256;
    (!name.starts_with(b"/") && (text.is_empty() || text.split(|b| *b == b'/').all(good)))
        .then(|| text.to_vec())
}

fn smallest_names(tree: &mut Tree) {
    let mut smallest = BTreeMap::<Vec<u8>, Vec<u8>>::new();
    for (path, item) in tree.iter() {
        smallest.entry(item.same_as.clone()).or_insert_with(|| path.clone());
    }
    tree.values_mut().for_each(|item| item.same_as = smallest[&item.same_as].clone());
}

/// What really is below a directory, itself included.
pub fn look(root: &Path) -> Tree {
    let (mut tree, mut inodes) = (Tree::new(), BTreeMap::new());
    let mut waiting = vec![Vec::new()];
    while let Some(path) = waiting.pop() {
        let at = root.join(std::ffi::OsStr::from_bytes(&path));
        let meta = std::fs::symlink_metadata(&at).unwrap();
        let kind = meta.file_type();
        let thing = if kind.is_dir() {
            for child in std::fs::read_dir(&at).unwrap() {
                let name = child.unwrap().file_name();
                let slash: &[u8] = if path.is_empty() { b"" } else { b"/" };
                waiting.push([&path[..], slash, name.as_bytes()].concat());
            }
            Thing::Directory
        } else if kind.is_symlink() {
            Thing::Symlink(std::fs::read_link(&at).unwrap().as_os_str().as_bytes().to_vec())
        } else if kind.is_fifo() {
            Thing::Fifo
        } else {
            assert!(kind.is_file(), "{}: something that nobody asked for", at.display());
            Thing::File(std::fs::read(&at).unwrap())
        };
        let mode = if kind.is_symlink() { 0 } else { meta.mode() & 0o7777 };
        let numbers = (mode, meta.uid(), meta.gid(), Some(meta.mtime()));
        let same_as = inodes.entry(meta.ino()).or_insert_with(|| path.clone()).clone();
        tree.insert(path, Item { thing, numbers, same_as });
    }
    smallest_names(&mut tree);
    tree
}

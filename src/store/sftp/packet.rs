//! Packets of SFTP, version 3, as OpenSSH speaks it. What could go wrong: a length that lies. So every field is taken
//! only where it is there, and no packet is longer than any that a server has reason to send.

use std::fmt;

/// Longest packet: servers send 256 KiB at most.
pub(super) const LONGEST: usize = 1 << 20;

pub(super) const INIT: u8 = 1;
pub(super) const VERSION: u8 = 2;
pub(super) const OPEN: u8 = 3;
pub(super) const CLOSE: u8 = 4;
pub(super) const READ: u8 = 5;
pub(super) const WRITE: u8 = 6;
pub(super) const LSTAT: u8 = 7;
pub(super) const FSTAT: u8 = 8;
pub(super) const FSETSTAT: u8 = 10;
pub(super) const OPENDIR: u8 = 11;
pub(super) const READDIR: u8 = 12;
pub(super) const REMOVE: u8 = 13;
pub(super) const MKDIR: u8 = 14;
pub(super) const REALPATH: u8 = 16;
pub(super) const STAT: u8 = 17;
pub(super) const RENAME: u8 = 18;
pub(super) const EXTENDED: u8 = 200;

const STATUS: u8 = 101;
const HANDLE: u8 = 102;
const DATA: u8 = 103;
const NAME: u8 = 104;
const ATTRS: u8 = 105;
const EXTENDED_REPLY: u8 = 201;

pub(super) const FLAG_READ: u32 = 1;
/// Write, create, empty.
pub(super) const FLAG_WRITE_NEW: u32 = 2 | 8 | 16;

const HAS_SIZE: u32 = 1;
const HAS_OWNER: u32 = 2;
const HAS_MODE: u32 = 4;
const HAS_TIMES: u32 = 8;
const HAS_MORE: u32 = 1 << 31;

/// What a server says of a request that has no other answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Ok,
    End,
    NotThere,
    Denied,
    Failure,
    NoConnection,
    ConnectionLost,
    Unsupported,
    Other(u32),
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ok => write!(f, "ok"),
            Self::End => write!(f, "end of file"),
            Self::NotThere => write!(f, "no such file"),
            Self::Denied => write!(f, "permission denied"),
            Self::Failure => write!(f, "failure"),
            Self::NoConnection => write!(f, "no connection"),
            Self::ConnectionLost => write!(f, "connection lost"),
            Self::Unsupported => write!(f, "operation not supported"),
            Self::Other(code) => write!(f, "status {code}"),
        }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Attributes {
    pub bytes: Option<u64>,
    pub mode: Option<u32>,
    /// Last written, seconds since 1970, by the clock of the server.
    pub modified: Option<u32>,
}

impl Attributes {
    fn is(&self, kind: u32) -> bool {
        self.mode.is_some_and(|m| m & 0o170_000 == kind)
    }

    pub fn is_file(&self) -> bool {
        self.is(0o100_000)
    }

    pub fn is_dir(&self) -> bool {
        self.is(0o040_000)
    }

    /// Whether a listing can tell what it is, and of a file how long.
    pub fn is_told(&self) -> bool {
        self.mode.is_some() && (self.bytes.is_some() || !self.is_file())
    }
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reply {
    Status(Status),
    Handle(Vec<u8>),
    Data(Vec<u8>),
    Names(Vec<(Vec<u8>, Attributes)>),
    Attributes(Attributes),
    Extended(Vec<u8>),
}

/// A packet that is being written, with room for its length.
pub(super) struct Request(Vec<u8>);

impl Request {
    pub fn new(kind: u8, id: u32) -> Self {
        let mut bytes = vec![0, 0, 0, 0, kind];
        bytes.extend_from_slice(&id.to_be_bytes());
        Self(bytes)
    }

    pub fn number(mut self, n: u32) -> Self {
        self.0.extend_from_slice(&n.to_be_bytes());
        self
    }

    pub fn long(mut self, n: u64) -> Self {
        self.0.extend_from_slice(&n.to_be_bytes());
        self
    }

    pub fn text(mut self, text: &[u8]) -> Self {
        let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
        self.0.extend_from_slice(&length.to_be_bytes());
        self.0.extend_from_slice(text);
        self
    }

    /// Attributes of which only the mode is set.
    pub fn mode(self, mode: u32) -> Self {
        self.number(HAS_MODE).number(mode)
    }

    pub fn no_attributes(self) -> Self {
        self.number(0)
    }

    pub fn finish(mut self) -> Vec<u8> {
        let length = u32::try_from(self.0.len() - 4).unwrap_or(u32::MAX);
        self.0[..4].copy_from_slice(&length.to_be_bytes());
        self.0
    }
}

/// The first packet.
pub(super) fn hello() -> Vec<u8> {
    Request::new(INIT, 3).finish()
}

/// Fields of a packet, one after the other; None where there is no more.
pub(super) struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(head)
    }

    pub fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|b| b[0])
    }

    pub fn number(&mut self) -> Option<u32> {
        self.take(4)?.try_into().ok().map(u32::from_be_bytes)
    }

    pub fn long(&mut self) -> Option<u64> {
        self.take(8)?.try_into().ok().map(u64::from_be_bytes)
    }

    pub fn text(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.number()?).ok()?;
        self.take(length)
    }

    fn attributes(&mut self) -> Option<Attributes> {
        let flags = self.number()?;
        let mut found = Attributes::default();
        if flags & HAS_SIZE != 0 {
            found.bytes = Some(self.long()?);
        }
        if flags & HAS_OWNER != 0 {
            self.take(8)?;
        }
        if flags & HAS_MODE != 0 {
            found.mode = Some(self.number()?);
        }
        if flags & HAS_TIMES != 0 {
            self.number()?;
            found.modified = Some(self.number()?);
        }
        if flags & HAS_MORE != 0 {
            for _ in 0..self.number()? {
                self.text()?;
                self.text()?;
            }
        }
        Some(found)
    }
}

/// Names of the extensions in the answer to `hello`; None where it is none.
pub(super) fn extensions(packet: &[u8]) -> Option<Vec<String>> {
    let mut fields = Fields(packet);
    if fields.byte()? != VERSION || fields.number()? < 3 {
        return None;
    }
    let mut names = Vec::new();
    while let Some(name) = fields.text() {
        names.push(String::from_utf8_lossy(name).into_owned());
        fields.text()?;
    }
    Some(names)
}

/// Id and content of an answer.
pub(super) fn reply(packet: &[u8]) -> Option<(u32, Reply)> {
    let mut fields = Fields(packet);
    let (kind, id) = (fields.byte()?, fields.number()?);
    let reply = match kind {
        STATUS => Reply::Status(match fields.number()? {
            0 => Status::Ok,
            1 => Status::End,
            2 => Status::NotThere,
            3 => Status::Denied,
            4 => Status::Failure,
            6 => Status::NoConnection,
            7 => Status::ConnectionLost,
            8 => Status::Unsupported,
            other => Status::Other(other),
        }),
        HANDLE => Reply::Handle(fields.text()?.to_vec()),
        DATA => Reply::Data(fields.text()?.to_vec()),
        NAME => {
            let mut names = Vec::new();
            for _ in 0..fields.number()? {
                let name = fields.text()?.to_vec();
                fields.text()?;
                names.push((name, fields.attributes()?));
            }
            Reply::Names(names)
        }
        ATTRS => Reply::Attributes(fields.attributes()?),
        EXTENDED_REPLY => Reply::Extended(fields.0.to_vec()),
        _ => return None,
    };
    Some((id, reply))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_taken_only_where_all_of_it_is_there() {
        let whole = Request::new(NAME, 7)
            .number(1)
            .text(b"a.tar.gz")
            .text(b"-rw------- 1 a.tar.gz")
            .number(HAS_SIZE | HAS_OWNER | HAS_MODE | HAS_TIMES)
            .long(1 << 40)
            .long(0)
            .number(0o100_600)
            .long(0)
            .finish();
        let packet = &whole[4..];
        let (id, Reply::Names(names)) = reply(packet).unwrap() else { panic!() };
        assert_eq!((id, names[0].0.as_slice(), names[0].1.bytes), (7, &b"a.tar.gz"[..], Some(1 << 40)));
        assert!(names[0].1.is_file());
        for cut in 0..packet.len() {
            assert!(reply(&packet[..cut]).is_none(), "{cut}");
        }
        // A count without its entries, a length without its bytes.
        assert!(reply(&Request::new(NAME, 1).number(u32::MAX).finish()[4..]).is_none());
        assert!(reply(&Request::new(DATA, 1).number(u32::MAX).finish()[4..]).is_none());
        assert!(extensions(b"Last login").is_none());
    }
}

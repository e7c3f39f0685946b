//! A store that opendal reaches, with the promises of `Store` kept by us. What could go wrong: an upload that failed and
//! looks whole, one that worked and is told as failed, and parts that lie there unseen and cost money. So nothing is
//! completed that was not given whole, an upload that did not end is taken back, and after each one the store is asked
//! for the length it holds.

use std::io::{self, Read};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use jiff::Timestamp;
use opendal::{Buffer, EntryMode, ErrorKind, Metadata, Operator, Writer};
use tokio::runtime::Handle;

use super::fault::{Fault, Kind, Stop, clean, unless};
use super::http::jittered;
use super::kit::Kit;
use super::pace::{Pace, Paced};
use super::{Object, Put, Refusal, Store, StoreError};
use crate::cancel::Cancel;

/// Bytes that go up at a time; what is no longer goes in one request.
const CHUNK: u64 = 8 << 20;
/// Chunks under way beside the one that is filled.
const AT_ONCE: usize = 2;
/// An object has at most 10,000 parts.
const MOST_CHUNKS: u64 = 9_000;
/// How long taking back may take.
const TAKE_BACK: Duration = Duration::from_secs(30);
/// Breaks of a download in a row, without one byte in between, that are mended.
const BREAKS: u32 = 4;

/// Makes the way to the store, with its secrets, when it is first needed.
pub(super) type Connect = Box<dyn Fn() -> Result<Operator, StoreError> + Send + Sync>;

pub(super) struct Remote {
    pub name: String,
    /// For people.
    pub location: String,
    /// The same in one spelling.
    pub place: String,
    /// Above everything that is ours; without slashes at its ends.
    pub prefix: String,
    pub offsite: bool,
    pub by_host: bool,
    pub marker: bool,
    pub part_bytes: Option<u64>,
    pub pace: Option<Pace>,
    pub runtime: Handle,
    pub connect: Connect,
    pub operator: OnceLock<Operator>,
    /// Whether the bucket has answered as one that is there.
    pub there: AtomicBool,
    /// What to do about an object of this key that is frozen.
    pub thaw: fn(place: &str, key: &str) -> String,
    pub kit: Option<Kit>,
}

impl From<opendal::Error> for Stop {
    fn from(e: opendal::Error) -> Self {
        Self::Fault(fault_of(&e))
    }
}

/// What our own transport said, or else what opendal makes of it.
fn fault_of(e: &opendal::Error) -> Fault {
    let mut next = std::error::Error::source(e);
    while let Some(cause) = next {
        if let Some(fault) = cause.downcast_ref::<Fault>() {
            return fault.clone();
        }
        next = cause.source();
    }
    let kind = match e.kind() {
        ErrorKind::NotFound => Kind::Absent,
        ErrorKind::PermissionDenied => Kind::Refused(Refusal::Access),
        _ if e.is_temporary() => Kind::Passing,
        _ => Kind::Refused(Refusal::Other),
    };
    Fault { kind, text: clean(&format!("{}: {}", e.kind(), e.message()), &[]) }
}

/// Name of an entry of a listing of `dir` (with a final slash, or empty), where it is directly in it and can be ours.
fn child<'a>(path: &'a str, dir: &str) -> Option<&'a str> {
    let name = path.strip_prefix(dir)?;
    let name = name.strip_suffix('/').unwrap_or(name);
    let odd =
        name.is_empty() || name == "." || name == ".." || name.contains(|c: char| c == '/' || c.is_control());
    (!odd).then_some(name)
}

/// Adds what to do where the object is frozen.
fn thawing(stop: Stop, thaw: impl FnOnce() -> String) -> Stop {
    match stop {
        Stop::Fault(Fault { kind: Kind::Frozen, text }) => {
            Stop::Fault(Fault { kind: Kind::Frozen, text: format!("{text}; {}", thaw()) })
        }
        stop => stop,
    }
}

impl Remote {
    fn operator(&self) -> Result<&Operator, StoreError> {
        if let Some(operator) = self.operator.get() {
            return Ok(operator);
        }
        let made = (self.connect)()?;
        Ok(self.operator.get_or_init(|| made))
    }

    fn error(&self, action: &'static str, object: &str, stop: Stop) -> StoreError {
        let stop = thawing(stop, || (self.thaw)(&self.place, &self.full(object)));
        stop.told(&self.name, action, object)
    }

    fn full(&self, path: &str) -> String {
        match (self.prefix.is_empty(), path.is_empty()) {
            (true, _) => path.to_owned(),
            (_, true) => self.prefix.clone(),
            _ => format!("{}/{path}", self.prefix),
        }
    }

    /// Key of an object. What opendal would tidy up is refused: it would be another object.
    fn key(&self, action: &'static str, object: &str) -> Result<String, StoreError> {
        let odd = |part: &str| {
            part.is_empty()
                || part == "."
                || part == ".."
                || part.trim() != part
                || part.contains(char::is_control)
        };
        if object.split('/').any(odd) {
            let fault = Fault::other("not a path inside the store");
            return Err(self.error(action, &object.escape_debug().to_string(), Stop::Fault(fault)));
        }
        Ok(self.full(object))
    }

    /// Key of a directory: empty for the root of a bucket, else with a slash at its end.
    fn dir(&self, dir: &str) -> Result<String, StoreError> {
        let key = if dir.is_empty() { self.prefix.clone() } else { self.key("list", dir)? };
        Ok(if key.is_empty() { key } else { format!("{key}/") })
    }

    fn wait<T>(&self, what: impl Future<Output = T>) -> T {
        self.runtime.block_on(what)
    }

    fn stat(&self, object: &str, key: &str, cancel: &Cancel) -> Result<Option<Metadata>, StoreError> {
        let operator = self.operator()?;
        match self.wait(unless(cancel, operator.stat(key))) {
            Ok(found) => Ok(Some(found)),
            Err(Stop::Fault(fault)) if fault.kind == Kind::Absent => Ok(None),
            Err(stop) => Err(self.error("look for", object, stop)),
        }
    }

    /// What is directly in a directory, page after page, or an error.
    fn each(
        &self,
        dir: &str,
        cancel: &Cancel,
        mut take: impl FnMut(&str, &Metadata),
    ) -> Result<(), StoreError> {
        let key = self.dir(dir)?;
        let operator = self.operator()?;
        let fail = |stop| self.error("list", if dir.is_empty() { "its root" } else { dir }, stop);
        let listing = async {
            let mut lister = unless(cancel, operator.lister(&key)).await?;
            while let Some(entry) = unless(cancel, async { lister.next().await.transpose() }).await? {
                if let Some(name) = child(entry.path(), &key) {
                    take(name, entry.metadata());
                }
            }
            Ok(())
        };
        self.wait(listing).map_err(fail)?;
        self.there.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Everything in one request.
    fn put_whole(&self, key: &str, data: Vec<u8>, cancel: &Cancel) -> Result<(), Stop> {
        // Checked in `put` before: what fails here is told by the server.
        let Some(operator) = self.operator.get() else {
            return Err(Stop::Fault(Fault::passing("not connected")));
        };
        self.wait(unless(cancel, operator.write(key, Buffer::from(data)))).map(drop)
    }

    /// Gives up what an upload left at the store. Errors change nothing for the caller, who has one already.
    fn take_back(&self, mut writer: Writer) {
        let abort = async move {
            if let Ok(Err(e)) = tokio::time::timeout(TAKE_BACK, writer.abort()).await {
                log::debug!("an unfinished upload remains: {}", fault_of(&e));
            }
        };
        self.wait(abort);
    }

    fn short(&self, object: &str, wanted: u64, found: u64) -> StoreError {
        StoreError::Length { store: self.name.clone(), object: object.to_owned(), wanted, found }
    }
}

/// Data of a known length that is read in pieces.
struct Source<'a> {
    data: Paced<'a>,
    taken: u64,
}

impl Source<'_> {
    /// The next `most` bytes, or fewer at the end.
    fn piece(&mut self, most: u64, cancel: &Cancel, moved: &dyn Fn(u64)) -> io::Result<Vec<u8>> {
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        let mut piece = vec![0; most];
        let mut filled = 0;
        while filled < most {
            cancel.check().map_err(io::Error::other)?;
            match self.data.read(&mut piece[filled..]) {
                Ok(0) => break,
                Ok(n) => {
                    filled += n;
                    moved(n as u64);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        piece.truncate(filled);
        self.taken += filled as u64;
        Ok(piece)
    }

    /// How many bytes there were, where there may be more than were announced.
    fn rest(&mut self, wanted: u64) -> io::Result<u64> {
        let mut one = [0];
        loop {
            match self.data.data.read(&mut one) {
                Ok(n) => return Ok(if n == 0 { self.taken } else { wanted + 1 }),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }
}

impl Store for Remote {
    fn name(&self) -> &str {
        &self.name
    }

    fn location(&self) -> String {
        self.location.clone()
    }

    fn place(&self) -> String {
        self.place.clone()
    }

    fn kit(&self) -> Option<Kit> {
        self.kit.clone()
    }

    fn is_offsite(&self) -> bool {
        self.offsite
    }

    fn by_host(&self) -> bool {
        self.by_host
    }

    fn part_bytes(&self) -> Option<u64> {
        self.part_bytes
    }

    fn reach(&self, cancel: &Cancel) -> Result<(), StoreError> {
        let key = self.dir("")?;
        let operator = self.operator()?;
        let first = async {
            let mut lister = unless(cancel, operator.lister_with(&key).limit(1).into_future()).await?;
            unless(cancel, async { lister.next().await.transpose() }).await
        };
        self.wait(first).map_err(|stop| self.error("list", "its root", stop))?;
        self.there.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn create_root(&self, cancel: &Cancel) -> Result<(), StoreError> {
        // A prefix is there as soon as something is below it; a bucket is made by its owner.
        self.reach(cancel)
    }

    fn needs_marker(&self) -> bool {
        self.marker
    }

    fn list(&self, dir: &str, cancel: &Cancel) -> Result<Vec<Object>, StoreError> {
        let mut found = std::collections::BTreeMap::new();
        self.each(dir, cancel, |name, meta| {
            if meta.mode() == EntryMode::FILE {
                found.insert(name.to_owned(), meta.content_length());
            }
        })?;
        Ok(found.into_iter().map(|(name, bytes)| Object { name, bytes }).collect())
    }

    fn dirs(&self, dir: &str, cancel: &Cancel) -> Result<Vec<String>, StoreError> {
        let mut found = std::collections::BTreeSet::new();
        self.each(dir, cancel, |name, meta| {
            if meta.mode() == EntryMode::DIR {
                found.insert(name.to_owned());
            }
        })?;
        Ok(found.into_iter().collect())
    }

    fn open(&self, object: &str, cancel: &Cancel) -> Result<Box<dyn Read + Send>, StoreError> {
        let key = self.key("read", object)?;
        let mut download = Download {
            store: self.name.clone(),
            object: object.to_owned(),
            thaw: (self.thaw)(&self.place, &key),
            operator: self.operator()?.clone(),
            runtime: self.runtime.clone(),
            cancel: cancel.clone(),
            key,
            stream: None,
            piece: Bytes::new(),
            rest: Buffer::new(),
            at: 0,
            whole: None,
            breaks: 0,
        };
        match self.wait(download.connect()) {
            Ok(()) => Ok(Box::new(download)),
            Err(stop) => {
                // There are servers that say of a bucket that is not there that the object is not.
                let absent = matches!(&stop, Stop::Fault(fault) if fault.kind == Kind::Absent);
                if absent && !self.there.load(Ordering::Relaxed) {
                    self.reach(cancel)?;
                }
                Err(self.error("read", object, stop))
            }
        }
    }

    fn put(
        &self,
        object: &str,
        data: &mut dyn Read,
        bytes: u64,
        how: Put,
        cancel: &Cancel,
        moved: &dyn Fn(u64),
    ) -> Result<(), StoreError> {
        let key = self.key("write", object)?;
        // Names are unique and one run at a time holds the lock, so looking is enough: not every server can be asked to
        // refuse, and of those that can not every one does.
        if how == Put::New && self.stat(object, &key, cancel)?.is_some() {
            return Err(StoreError::Exists { store: self.name.clone(), object: object.to_owned() });
        }
        let no_data = |e: io::Error| match cancel.check() {
            Err(i) => StoreError::Interrupted(i),
            Ok(()) => StoreError::Io {
                store: self.name.clone(),
                action: "take the data of",
                object: object.to_owned(),
                source: e,
            },
        };
        let operator = self.operator()?;
        let mut source = Source { data: Paced { data, pace: self.pace.as_ref(), cancel }, taken: 0 };

        let sent = if bytes <= CHUNK {
            let piece = source.piece(bytes, cancel, moved).map_err(no_data)?;
            let there = source.rest(bytes).map_err(no_data)?;
            if there != bytes {
                return Err(self.short(object, bytes, there));
            }
            self.put_whole(&key, piece, cancel)
        } else {
            let chunk = CHUNK.max(bytes.div_ceil(MOST_CHUNKS));
            let writer = operator
                .writer_with(&key)
                .chunk(usize::try_from(chunk).unwrap_or(usize::MAX))
                .concurrent(AT_ONCE);
            let mut writer = self
                .wait(unless(cancel, writer.into_future()))
                .map_err(|stop| self.error("write", object, stop))?;
            while source.taken < bytes {
                let piece = match source.piece(chunk.min(bytes - source.taken), cancel, moved) {
                    Ok(piece) => piece,
                    Err(e) => {
                        self.take_back(writer);
                        return Err(no_data(e));
                    }
                };
                if piece.is_empty() {
                    break;
                }
                if let Err(stop) = self.wait(unless(cancel, writer.write(Buffer::from(piece)))) {
                    self.take_back(writer);
                    return Err(self.error("write", object, stop));
                }
            }
            // Before it is completed, as afterwards it would be seen.
            match source.rest(bytes) {
                Ok(there) if there == bytes => {}
                Ok(there) => {
                    self.take_back(writer);
                    return Err(self.short(object, bytes, there));
                }
                Err(e) => {
                    self.take_back(writer);
                    return Err(no_data(e));
                }
            }
            let closed = self.wait(unless(cancel, writer.close())).map(drop);
            // One that worked and whose answer was lost is there; taking that back changes nothing.
            if closed.is_err() {
                self.take_back(writer);
            }
            closed
        };

        // The flag stops what moves data, never the look at what became of it.
        let to_the_end = Cancel::default();
        if let Err(stop) = sent {
            // A new object that is there now with its length is ours: the answer was lost, not the data.
            if how == Put::New
                && let Stop::Fault(fault) = &stop
                && matches!(fault.kind, Kind::Passing | Kind::Absent | Kind::Refused(Refusal::Other))
                && let Ok(Some(found)) = self.stat(object, &key, &to_the_end)
                && found.content_length() == bytes
            {
                return Ok(());
            }
            // The same where it was stopped just then: nobody will ask for it.
            if how == Put::New && matches!(stop, Stop::Interrupted(_)) {
                let _ = self.delete(object);
            }
            return Err(match stop {
                Stop::Fault(fault) if fault.kind == Kind::Absent => {
                    self.error("write", object, Stop::Fault(Fault::other(fault.text)))
                }
                stop => self.error("write", object, stop),
            });
        }
        match self.stat(object, &key, &to_the_end)? {
            Some(found) if found.content_length() == bytes => Ok(()),
            Some(found) => {
                if how == Put::New {
                    let _ = self.delete(object);
                }
                Err(self.short(object, bytes, found.content_length()))
            }
            None => Err(StoreError::ReadBack { store: self.name.clone(), object: object.to_owned() }),
        }
    }

    fn modified(&self, object: &str, cancel: &Cancel) -> Result<Option<Timestamp>, StoreError> {
        let key = self.key("look at", object)?;
        let operator = self.operator()?;
        let meta = self.wait(unless(cancel, operator.stat(&key)));
        let meta = meta.map_err(|stop| self.error("look at", object, stop))?;
        let seconds = meta.last_modified().map(|t| t.into_inner().as_second());
        Ok(seconds.and_then(|s| Timestamp::from_second(s).ok()))
    }

    fn delete(&self, object: &str) -> Result<(), StoreError> {
        let key = self.key("delete", object)?;
        let operator = self.operator()?;
        match self.wait(unless(&Cancel::default(), operator.delete(&key))) {
            Err(Stop::Fault(fault)) if fault.kind == Kind::Absent => Ok(()),
            other => other.map_err(|stop| self.error("delete", object, stop)),
        }
    }

    fn sweep(&self, _: &str) -> Result<Vec<String>, StoreError> {
        // Nothing is seen under its name before it is whole. Uploads that a killed run left are removed by a rule of the
        // bucket: opendal cannot list them.
        Ok(Vec::new())
    }

    fn free_bytes(&self) -> Result<Option<u64>, StoreError> {
        Ok(None)
    }
}

/// An object as it comes, taken up again where it broke off.
struct Download {
    store: String,
    object: String,
    thaw: String,
    operator: Operator,
    runtime: Handle,
    cancel: Cancel,
    key: String,
    stream: Option<opendal::BufferStream>,
    piece: Bytes,
    rest: Buffer,
    /// Bytes that came.
    at: u64,
    /// Length and tag, as they were first told.
    whole: Option<(u64, Option<String>)>,
    breaks: u32,
}

impl Download {
    async fn connect(&mut self) -> Result<(), Stop> {
        let (operator, key, cancel) = (&self.operator, &self.key, &self.cancel);
        let reader = unless(cancel, operator.reader(key)).await?;
        let mut stream = unless(cancel, reader.into_stream(self.at..)).await?;
        let meta = match unless(cancel, stream.metadata()).await {
            // Memory tells no more than its bytes.
            Err(Stop::Fault(fault)) if fault.text.starts_with("Unsupported") => {
                unless(cancel, operator.stat(key)).await?
            }
            other => other?,
        };
        let told = (meta.content_length(), meta.etag().map(str::to_owned));
        if self.whole.get_or_insert_with(|| told.clone()) != &told {
            return Err(Stop::Fault(Fault::other("it was replaced while it was read")));
        }
        self.stream = Some(stream);
        Ok(())
    }

    /// The next bytes, none at the end.
    async fn next(&mut self) -> Result<Buffer, Stop> {
        let length = self.whole.as_ref().map_or(0, |w| w.0);
        let mut pause = Duration::from_millis(300);
        while self.at < length {
            let came = match &mut self.stream {
                Some(stream) => unless(&self.cancel, async { stream.next().await.transpose() }).await,
                None => match self.connect().await {
                    Ok(()) => continue,
                    Err(stop) => Err(stop),
                },
            };
            let fault = match came {
                Ok(Some(buffer)) if self.at + buffer.len() as u64 <= length => {
                    self.at += buffer.len() as u64;
                    self.breaks = 0;
                    return Ok(buffer);
                }
                Ok(Some(_)) => return Err(Stop::Fault(Fault::other("it is longer than it was said to be"))),
                Ok(None) => Fault::passing(format!("it ends after {} of {length} bytes", self.at)),
                Err(Stop::Fault(fault)) => fault,
                Err(stop) => return Err(stop),
            };
            self.breaks += 1;
            if fault.kind != Kind::Passing || self.breaks > BREAKS {
                return Err(Stop::Fault(fault));
            }
            self.stream = None;
            let wait = async {
                tokio::time::sleep(jittered(pause)).await;
                Ok::<_, Fault>(())
            };
            unless(&self.cancel, wait).await?;
            pause *= 2;
        }
        Ok(Buffer::new())
    }
}

impl Read for Download {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        while self.piece.is_empty() {
            if let Some(piece) = Iterator::next(&mut self.rest) {
                self.piece = piece;
                continue;
            }
            let runtime = self.runtime.clone();
            self.rest = runtime.block_on(self.next()).map_err(|stop| {
                let stop = thawing(stop, || self.thaw.clone());
                io::Error::other(stop.told(&self.store, "read", &self.object))
            })?;
            if self.rest.is_empty() {
                return Ok(0);
            }
        }
        let n = buf.len().min(self.piece.len());
        buf[..n].copy_from_slice(&self.piece.split_to(n));
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_directly_in_a_directory_are_its_children() {
        assert_eq!(child("a/b/c.gz", "a/b/"), Some("c.gz"));
        assert_eq!(child("a/b/c/", "a/b/"), Some("c"));
        assert_eq!(child("x", ""), Some("x"));
        for (path, dir) in
            [("a/b/", "a/b/"), ("a/c", "a/b/"), ("a/b/c/d", "a/b/"), ("a/b/..", "a/b/"), ("a/b/x\ny", "a/b/")]
        {
            assert_eq!(child(path, dir), None, "{path}");
        }
    }
}

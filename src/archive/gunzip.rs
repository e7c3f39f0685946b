//! gzip read on several threads, where each member says how long it is, as ours do; any other gzip on this one. What could
//! go wrong: an end that is none; so a member that is cut, or is not what its own trailer says, is an error, and what
//! follows the last one must be another member.

use std::collections::VecDeque;
use std::io::{self, BufReader, Chain, Cursor, Read};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;

use flate2::bufread::MultiGzDecoder;
use libdeflater::Decompressor;

use super::gzip::{BLOCK, HEADER, TRAILER};

/// Threads of one reader.
const THREADS_MOST: usize = 4;
/// Longest member of ours: a block that did not shrink, with the marks of its parts.
const LONGEST: usize = BLOCK + (64 << 10);

struct Job {
    member: Vec<u8>,
    reply: SyncSender<io::Result<Vec<u8>>>,
}

/// Members that no other thread reads: what was read of them already, and what follows.
type Foreign<'a> = MultiGzDecoder<BufReader<Chain<Cursor<Vec<u8>>, &'a mut dyn Read>>>;

/// The content of all members of a gzip.
pub struct Gunzip<'a> {
    /// None once `foreign` has it.
    input: Option<&'a mut dyn Read>,
    jobs: Option<Sender<Job>>,
    threads: usize,
    waiting: VecDeque<Receiver<io::Result<Vec<u8>>>>,
    block: Vec<u8>,
    at: usize,
    any: bool,
    ended: bool,
    /// Beginning of a member that is not one of ours.
    strange: Option<Vec<u8>>,
    foreign: Option<Foreign<'a>>,
}

impl<'a> Gunzip<'a> {
    pub fn new(input: &'a mut dyn Read) -> Self {
        let threads = thread::available_parallelism().map_or(1, usize::from).min(THREADS_MOST);
        Self {
            input: Some(input),
            jobs: None,
            threads,
            waiting: VecDeque::new(),
            block: Vec::new(),
            at: 0,
            any: false,
            ended: false,
            strange: None,
            foreign: None,
        }
    }

    /// Reads the next member and gives it to a thread; notes the end, and what is not one of ours.
    fn read_ahead(&mut self) -> io::Result<()> {
        let Some(input) = &mut self.input else { return Ok(()) };
        let mut header = Vec::with_capacity(LONGEST);
        input.by_ref().take(HEADER as u64).read_to_end(&mut header)?;
        if header.is_empty() && self.any {
            self.ended = true;
            return Ok(());
        }
        let Some(length) = length_of(&header) else {
            (self.ended, self.strange) = (true, Some(header));
            return Ok(());
        };
        let mut member = header;
        let rest = (length - HEADER) as u64;
        if input.by_ref().take(rest).read_to_end(&mut member)? as u64 != rest {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "a gzip member is cut"));
        }
        self.any = true;
        let (reply, answer) = sync_channel(1);
        let gone = || io::Error::other("the threads that read gzip have ended");
        if self.jobs.is_none() {
            self.jobs = Some(start(self.threads)?);
        }
        let jobs = self.jobs.as_ref().ok_or_else(gone)?;
        jobs.send(Job { member, reply }).map_err(|_| gone())?;
        self.waiting.push_back(answer);
        Ok(())
    }
}

/// Length of a member of ours, by its header; None for any other.
fn length_of(header: &[u8]) -> Option<usize> {
    let ours = header.len() == HEADER
        && header[..4] == [0x1f, 0x8b, 8, 4]
        && header[10..16] == [8, 0, b'T', b'B', 4, 0];
    let length = u32::from_le_bytes(header.get(16..HEADER)?.try_into().ok()?) as usize;
    (ours && (HEADER + TRAILER..=LONGEST).contains(&length)).then_some(length)
}

/// Starts threads that end with the sender.
fn start(threads: usize) -> io::Result<Sender<Job>> {
    let (jobs, queue) = channel::<Job>();
    let queue = Arc::new(Mutex::new(queue));
    for n in 0..threads {
        let queue = queue.clone();
        thread::Builder::new().name(format!("gunzip-{n}")).spawn(move || work(&queue))?;
    }
    Ok(jobs)
}

fn work(queue: &Mutex<Receiver<Job>>) {
    let mut inflate = Decompressor::new();
    loop {
        // The lock is held only while waiting for a job.
        let job = match queue.lock() {
            Ok(queue) => queue.recv(),
            Err(_) => return,
        };
        let Ok(job) = job else { return };
        // A reader that was dropped does not want its answer any more.
        let _ = job.reply.send(content(&mut inflate, &job.member));
    }
}

/// What a member holds. libdeflate compares its check sum.
fn content(inflate: &mut Decompressor, member: &[u8]) -> io::Result<Vec<u8>> {
    let bad = |why: &'static str| io::Error::new(io::ErrorKind::InvalidData, why);
    let size = member.last_chunk::<4>().map_or(usize::MAX, |tail| u32::from_le_bytes(*tail) as usize);
    if size > BLOCK {
        return Err(bad("a gzip member is longer than it may be"));
    }
    let mut out = vec![0; size];
    match inflate.gzip_decompress(member, &mut out) {
        Ok(n) if n == size => Ok(out),
        _ => Err(bad("a gzip member is damaged")),
    }
}

impl Read for Gunzip<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.at < self.block.len() {
                let n = buffer.len().min(self.block.len() - self.at);
                buffer[..n].copy_from_slice(&self.block[self.at..self.at + n]);
                self.at += n;
                return Ok(n);
            }
            if let Some(foreign) = &mut self.foreign {
                return foreign.read(buffer);
            }
            while !self.ended && self.waiting.len() < 2 * self.threads {
                self.read_ahead()?;
            }
            if let Some(answer) = self.waiting.pop_front() {
                let ended = |_| io::Error::other("a thread that reads gzip has ended");
                (self.block, self.at) = (answer.recv().map_err(ended)??, 0);
                continue;
            }
            match (self.strange.take(), self.input.take()) {
                (Some(begun), Some(input)) => {
                    let all = Cursor::new(begun).chain(input);
                    self.foreign = Some(MultiGzDecoder::new(BufReader::with_capacity(256 << 10, all)));
                }
                _ => return Ok(0),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::gzip::Pool;
    use std::io::Write;

    fn text(n: usize) -> Vec<u8> {
        (0..n).flat_map(|i| format!("{} ", i * i % 977).into_bytes()).collect()
    }

    fn ours(data: &[u8]) -> Vec<u8> {
        let mut w = Pool::start(2).unwrap().writer(Vec::new(), 4);
        w.write_all(data).unwrap();
        w.finish().unwrap()
    }

    fn theirs(data: &[u8]) -> Vec<u8> {
        let mut w = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        w.write_all(data).unwrap();
        w.finish().unwrap()
    }

    fn read(mut gz: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        Gunzip::new(&mut gz).read_to_end(&mut out).map(|_| out)
    }

    #[test]
    fn members_of_any_writer_come_back_in_any_order() {
        let data = text(900_000);
        assert!(data.len() > 3 * BLOCK);
        assert!(read(&ours(&data)).unwrap() == data);
        assert!(read(&theirs(&data)).unwrap() == data);
        assert!(read(&ours(b"")).unwrap().is_empty());
        let mixed = [ours(&data), theirs(b"middle"), ours(b"end")].concat();
        assert!(read(&mixed).unwrap() == [data.as_slice(), b"middle", b"end"].concat());
    }

    #[test]
    fn every_cut_and_every_flip_is_an_error() {
        let gz = ours(&text(900));
        for cut in 0..gz.len() {
            assert!(read(&gz[..cut]).is_err(), "cut at {cut}");
        }
        let long = ours(&text(900_000));
        for cut in [1, HEADER, long.len() / 2, long.len() - 1] {
            assert!(read(&long[..cut]).is_err(), "cut at {cut}");
        }
        let data = read(&gz).unwrap();
        for at in 0..gz.len() {
            let mut flipped = gz.clone();
            flipped[at] ^= 1;
            // Time, system and hints of the header are not the content.
            assert!(read(&flipped).map_or(true, |now| now == data), "flipped at {at}");
        }
        assert!(read(&[gz.as_slice(), b"x"].concat()).is_err(), "something behind the end");
    }
}

//! gzip in independent members of up to 1 MiB, compressed by a small pool of threads. Any gzip reads it; the length of
//! each member stands in its extra field, so that a reader can find the next one without inflating. What could go
//! wrong: an error path that leaves a valid file of half the data, so nothing is ended but by `finish`.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;

use libdeflater::{CompressionLvl, Compressor};

/// Uncompressed bytes of one member.
pub const BLOCK: usize = 1 << 20;

/// Bytes before the deflate data: fixed header, extra length, one subfield `TB` with a u32.
pub(super) const HEADER: usize = 10 + 2 + 4 + 4;
pub(super) const TRAILER: usize = 8;
/// A stored deflate block holds at most this much.
const STORED_MAX: usize = 65_535;

struct Job {
    input: Vec<u8>,
    level: i32,
    reply: SyncSender<io::Result<Vec<u8>>>,
}

/// Threads that compress blocks for any number of writers.
#[derive(Clone)]
pub struct Pool {
    jobs: Sender<Job>,
    threads: usize,
}

impl Pool {
    /// Starts `threads` workers; they end when the last writer and the pool are gone.
    pub fn start(threads: usize) -> io::Result<Self> {
        let (jobs, queue) = channel::<Job>();
        let queue = Arc::new(Mutex::new(queue));
        for n in 0..threads.max(1) {
            let queue = queue.clone();
            thread::Builder::new().name(format!("gzip-{n}")).spawn(move || worker(&queue))?;
        }
        Ok(Self { jobs, threads: threads.max(1) })
    }

    /// `level` 0 stores; 1 to 12 as libdeflate has them.
    pub fn writer<W: Write>(&self, inner: W, level: i32) -> GzWriter<W> {
        GzWriter {
            inner,
            pool: self.clone(),
            level,
            block: Vec::new(),
            waiting: VecDeque::new(),
            wrote_any: false,
        }
    }

    pub fn threads(&self) -> usize {
        self.threads
    }
}

fn worker(queue: &Mutex<Receiver<Job>>) {
    let mut compressor: Option<(i32, Compressor)> = None;
    loop {
        // The lock is held only while waiting for a job, never while compressing.
        let job = match queue.lock() {
            Ok(queue) => queue.recv(),
            Err(_) => return,
        };
        let Ok(job) = job else { return };
        let member = compress(&mut compressor, &job.input, job.level);
        // A writer that was dropped does not want its answer any more.
        let _ = job.reply.send(member);
    }
}

fn compress(cache: &mut Option<(i32, Compressor)>, input: &[u8], level: i32) -> io::Result<Vec<u8>> {
    let mut out = vec![0u8; HEADER];
    let mut shrunk = false;
    if level > 0 && !input.is_empty() {
        if cache.as_ref().is_none_or(|(l, _)| *l != level) {
            let lvl = CompressionLvl::new(level)
                .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "gzip level out of range"))?;
            *cache = Some((level, Compressor::new(lvl)));
        }
        if let Some((_, compressor)) = cache {
            // Room for the input only: what does not fit did not shrink.
            out.resize(HEADER + input.len(), 0);
            if let Ok(n) = compressor.deflate_compress(input, &mut out[HEADER..]) {
                out.truncate(HEADER + n);
                shrunk = true;
            }
        }
    }
    if !shrunk {
        out.truncate(HEADER);
        store(input, &mut out);
    }
    out.extend_from_slice(&crc32fast::hash(input).to_le_bytes());
    out.extend_from_slice(&u32::try_from(input.len()).unwrap_or(u32::MAX).to_le_bytes());
    let total = u32::try_from(out.len()).map_err(|_| io::Error::other("gzip member too long"))?;
    // ID1 ID2 CM FLG=FEXTRA MTIME=0 XFL OS=unix, XLEN=8, SI "TB", LEN=4, length of the whole member.
    out[..16].copy_from_slice(&[0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 3, 8, 0, b'T', b'B', 4, 0]);
    out[16..HEADER].copy_from_slice(&total.to_le_bytes());
    debug_assert!(out.len() >= HEADER + TRAILER);
    Ok(out)
}

fn store(input: &[u8], out: &mut Vec<u8>) {
    out.reserve(input.len() + 5 * (input.len() / STORED_MAX + 1) + TRAILER);
    let mut chunks = input.chunks(STORED_MAX).peekable();
    if chunks.peek().is_none() {
        out.extend_from_slice(&[1, 0, 0, 0xff, 0xff]);
    }
    while let Some(chunk) = chunks.next() {
        let len = u16::try_from(chunk.len()).unwrap_or(u16::MAX);
        out.push(u8::from(chunks.peek().is_none()));
        out.extend_from_slice(&len.to_le_bytes());
        out.extend_from_slice(&(!len).to_le_bytes());
        out.extend_from_slice(chunk);
    }
}

pub struct GzWriter<W: Write> {
    inner: W,
    pool: Pool,
    level: i32,
    block: Vec<u8>,
    waiting: VecDeque<Receiver<io::Result<Vec<u8>>>>,
    wrote_any: bool,
}

impl<W: Write> GzWriter<W> {
    /// Level of what follows; what came before keeps its own.
    pub fn set_level(&mut self, level: i32) -> io::Result<()> {
        if level != self.level {
            if !self.block.is_empty() {
                self.submit()?;
            }
            self.level = level;
        }
        Ok(())
    }

    fn submit(&mut self) -> io::Result<()> {
        let (reply, answer) = sync_channel(1);
        let input = std::mem::take(&mut self.block);
        self.wrote_any = true;
        self.pool
            .jobs
            .send(Job { input, level: self.level, reply })
            .map_err(|_| io::Error::other("the compression threads have ended"))?;
        self.waiting.push_back(answer);
        // Bounded memory: one block per thread in work, one waiting for each.
        if self.waiting.len() > 2 * self.pool.threads { self.take_one() } else { Ok(()) }
    }

    fn take_one(&mut self) -> io::Result<()> {
        if let Some(answer) = self.waiting.pop_front() {
            let member = answer.recv().map_err(|_| io::Error::other("a compression thread has ended"))??;
            self.inner.write_all(&member)?;
        }
        Ok(())
    }

    /// Ends the stream and gives back what it was written to. Without it the file is not whole.
    pub fn finish(mut self) -> io::Result<W> {
        if !self.block.is_empty() || !self.wrote_any {
            self.submit()?;
        }
        while !self.waiting.is_empty() {
            self.take_one()?;
        }
        Ok(self.inner)
    }
}

impl<W: Write> Write for GzWriter<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if self.block.capacity() == 0 {
            self.block.reserve_exact(BLOCK);
        }
        let n = buf.len().min(BLOCK - self.block.len());
        self.block.extend_from_slice(&buf[..n]);
        if self.block.len() == BLOCK {
            self.submit()?;
        }
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::read::MultiGzDecoder;
    use std::io::Read;

    fn noise(n: usize) -> Vec<u8> {
        let mut x = 0x2545_f491_4f6c_dd1du64;
        (0..n)
            .map(|_| {
                x ^= x << 13;
                x ^= x >> 7;
                x ^= x << 17;
                x as u8
            })
            .collect()
    }

    fn round_trip(data: &[u8], level: i32, step: usize) -> Vec<u8> {
        let mut w = Pool::start(2).unwrap().writer(Vec::new(), level);
        for chunk in data.chunks(step) {
            w.write_all(chunk).unwrap();
        }
        let out = w.finish().unwrap();
        let mut back = Vec::new();
        MultiGzDecoder::new(&out[..]).read_to_end(&mut back).unwrap();
        assert!(back == data, "level {level} step {step} len {}", data.len());
        out
    }

    #[test]
    fn every_size_around_the_limits_comes_back() {
        let data = noise(2 * BLOCK + 70_000);
        for len in [0, 1, 65_535, 65_536, BLOCK - 1, BLOCK, BLOCK + 1, data.len()] {
            for level in [0, 1, 6] {
                round_trip(&data[..len], level, 50_000);
            }
        }
    }

    #[test]
    fn noise_is_stored_and_text_shrinks() {
        let data = noise(BLOCK);
        assert!(round_trip(&data, 6, BLOCK).len() < BLOCK + 200);
        let text = b"the quick brown fox ".repeat(100_000);
        assert!(round_trip(&text, 6, 4096).len() < text.len() / 20);
    }

    #[test]
    fn members_can_be_found_by_their_length() {
        let out = round_trip(&noise(3 * BLOCK), 1, BLOCK);
        let (mut at, mut members) = (0, 0);
        while at < out.len() {
            assert_eq!(&out[at + 12..at + 14], b"TB");
            at += u32::from_le_bytes(out[at + 16..at + 20].try_into().unwrap()) as usize;
            members += 1;
        }
        assert_eq!((at, members), (out.len(), 3));
    }

    #[test]
    fn an_unfinished_stream_lacks_its_last_block() {
        let mut w = Pool::start(1).unwrap().writer(Vec::new(), 1);
        w.write_all(b"not finished").unwrap();
        assert!(w.inner.is_empty());
    }
}

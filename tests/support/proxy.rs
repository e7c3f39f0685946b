//! A server that stands between a store and a real one, and does to what passes what networks and servers do: answers
//! errors, is slow, breaks off, loses the answer, lies. It counts what it sees. Plain HTTP/1.1, one thread a connection.

#![allow(dead_code, clippy::unwrap_used)]

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A request that passed.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: String,
    /// Path and query, as sent.
    pub target: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// Length of its body, as announced.
    pub bytes: u64,
    /// How many of the same method were seen before since the rule was set.
    pub before: usize,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    pub fn is(&self, method: &str, part_of_target: &str) -> bool {
        self.method == method && self.target.contains(part_of_target)
    }

    /// A part of an upload in parts.
    pub fn is_part(&self) -> bool {
        self.is("PUT", "partNumber=")
    }

    /// The last step of an upload in parts.
    pub fn is_completion(&self) -> bool {
        self.is("POST", "uploadId=")
    }

    pub fn is_listing(&self) -> bool {
        self.is("GET", "list-type=2")
    }
}

/// What becomes of a request.
#[derive(Debug, Clone)]
pub enum Act {
    Pass,
    /// An error as S3 words it; of HEAD only the status.
    Error {
        status: u16,
        code: &'static str,
        message: String,
    },
    /// Any answer.
    Answer {
        status: u16,
        body: String,
    },
    /// 403, repeating the request's signature.
    EchoAuthorization,
    /// Passes; the answer is cut in the middle of its body.
    CutAnswer,
    /// Passes; of the answer only the head comes.
    HeadOnly,
    /// Passes; the answer never comes.
    LoseAnswer,
    /// The connection is closed in the middle of the body of the request; nothing passes.
    CutRequest,
    /// Passes after a while.
    After(Duration),
    /// Neither passes nor is answered, as long as the other side waits.
    Hang,
    /// Is told to have worked; nothing passes.
    Swallow,
    /// Passes with one bit of its body turned.
    Flip,
    /// Passes; one bit of the body of the answer is turned.
    FlipAnswer,
}

impl Act {
    pub fn error(status: u16, code: &'static str) -> Self {
        Self::Error { status, code, message: format!("told so by the test ({code})") }
    }
}

/// What B2 does with what it has not.
pub fn b2(seen: &Seen) -> Act {
    if seen.header("if-none-match").is_some() || seen.header("if-match").is_some() {
        return Act::error(501, "NotImplemented");
    }
    let checksum = |name: &str| name.starts_with("x-amz-checksum-") || name == "x-amz-sdk-checksum-algorithm";
    if seen.headers.iter().any(|(name, _)| checksum(name)) {
        return Act::error(400, "InvalidArgument");
    }
    Act::Pass
}

type Rule = Box<dyn Fn(&Seen) -> Act + Send + Sync>;

struct State {
    behind: SocketAddr,
    rule: Mutex<Rule>,
    seen: Mutex<Vec<Seen>>,
    received: AtomicU64,
    stopped: AtomicBool,
}

pub struct Proxy {
    address: SocketAddr,
    state: Arc<State>,
}

impl Proxy {
    /// Before the server at `http://HOST:PORT`. Everything passes until a rule says otherwise.
    pub fn start(behind: &str) -> Self {
        let behind = behind.trim_start_matches("http://").parse().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            behind,
            rule: Mutex::new(Box::new(|_| Act::Pass)),
            seen: Mutex::default(),
            received: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
        });
        let shared = state.clone();
        std::thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                if shared.stopped.load(Ordering::SeqCst) {
                    return;
                }
                let state = shared.clone();
                std::thread::spawn(move || while let Ok(true) = serve(&socket, &state) {});
            }
        });
        Self { address, state }
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on `rule` decides; what was counted is forgotten.
    pub fn on(&self, rule: impl Fn(&Seen) -> Act + Send + Sync + 'static) {
        *self.state.rule.lock().unwrap() = Box::new(rule);
        self.state.seen.lock().unwrap().clear();
        self.state.received.store(0, Ordering::SeqCst);
    }

    /// Requests since the rule was set.
    pub fn seen(&self) -> Vec<Seen> {
        self.state.seen.lock().unwrap().clone()
    }

    pub fn count(&self, which: impl Fn(&Seen) -> bool) -> usize {
        self.seen().iter().filter(|s| which(s)).count()
    }

    /// Bytes of bodies that came in since the rule was set.
    pub fn received(&self) -> u64 {
        self.state.received.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.state.stopped.store(true, Ordering::SeqCst);
        // So that the listener notices.
        let _ = TcpStream::connect(self.address);
    }
}

/// A head with its final empty line, and what came after it.
pub fn read_head(from: &mut impl Read) -> io::Result<(String, Vec<u8>)> {
    let mut all = Vec::new();
    loop {
        if let Some(at) = all.windows(4).position(|w| w == b"\r\n\r\n") {
            let rest = all.split_off(at + 4);
            return Ok((String::from_utf8_lossy(&all).into_owned(), rest));
        }
        let mut piece = [0; 4096];
        let n = from.read(&mut piece)?;
        if n == 0 || all.len() > 1 << 20 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        all.extend_from_slice(&piece[..n]);
    }
}

fn headers_of(head: &str) -> Vec<(String, String)> {
    head.lines()
        .skip(1)
        .filter_map(|l| l.split_once(':'))
        .map(|(n, v)| (n.trim().to_ascii_lowercase(), v.trim().to_owned()))
        .collect()
}

pub fn length_of(head: &str) -> u64 {
    headers_of(head).iter().find(|(n, _)| n == "content-length").map_or(0, |(_, v)| v.parse().unwrap())
}

/// One request; whether the connection goes on.
fn serve(mut socket: &TcpStream, state: &State) -> io::Result<bool> {
    let (head, mut body) = read_head(&mut socket)?;
    let mut words = head.split(' ');
    let (method, target) = (words.next().unwrap().to_owned(), words.next().unwrap().to_owned());
    let length = length_of(&head);
    let (act, seen) = {
        let mut all = state.seen.lock().unwrap();
        let before = all.iter().filter(|s| s.method == method).count();
        let seen = Seen { method, target, headers: headers_of(&head), bytes: length, before };
        all.push(seen.clone());
        drop(all);
        (state.rule.lock().unwrap()(&seen), seen)
    };
    let wanted = if matches!(act, Act::CutRequest) { length / 2 } else { length };
    state.received.fetch_add(body.len() as u64, Ordering::SeqCst);
    while (body.len() as u64) < wanted {
        let mut piece = vec![0; 64 << 10];
        let n = socket.read(&mut piece)?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        state.received.fetch_add(n as u64, Ordering::SeqCst);
        body.extend_from_slice(&piece[..n]);
    }

    match act {
        Act::CutRequest => {
            socket.shutdown(Shutdown::Both)?;
            return Ok(false);
        }
        Act::Hang => {
            let _ = socket.read(&mut [0]);
            return Ok(false);
        }
        Act::Error { status, code, message } => {
            return answer(socket, &seen, status, &error_body(code, &message));
        }
        Act::EchoAuthorization => {
            let said = format!("you sent {}", seen.header("authorization").unwrap_or("nothing"));
            return answer(socket, &seen, 403, &error_body("AccessDenied", &said));
        }
        Act::Answer { status, body } => return answer(socket, &seen, status, &body),
        Act::Swallow => {
            let head =
                "HTTP/1.1 200 OK\r\nETag: \"d41d8cd98f00b204e9800998ecf8427e\"\r\nContent-Length: 0\r\n\r\n";
            socket.write_all(head.as_bytes())?;
            return Ok(true);
        }
        Act::After(time) => std::thread::sleep(time),
        Act::Flip => {
            let at = body.len() / 2;
            body[at] ^= 1;
        }
        Act::Pass | Act::CutAnswer | Act::HeadOnly | Act::LoseAnswer | Act::FlipAnswer => {}
    }

    let head: String = head
        .lines()
        .filter(|l| !l.is_empty() && !l.to_ascii_lowercase().starts_with("content-length:"))
        .map(|l| format!("{l}\r\n"))
        .collect();
    let length = if seen.bytes > 0 || seen.method != "GET" {
        format!("Content-Length: {}\r\n", body.len())
    } else {
        String::new()
    };
    let mut behind = TcpStream::connect(state.behind)?;
    behind.write_all(format!("{head}{length}Connection: close\r\n\r\n").as_bytes())?;
    behind.write_all(&body)?;
    if matches!(act, Act::LoseAnswer) {
        let _ = behind.read_to_end(&mut Vec::new());
        socket.shutdown(Shutdown::Both)?;
        return Ok(false);
    }
    let (head, rest) = read_head(&mut behind)?;
    socket.write_all(head.as_bytes())?;
    if matches!(act, Act::CutAnswer | Act::HeadOnly | Act::FlipAnswer) {
        let mut all = rest;
        behind.read_to_end(&mut all)?;
        let half = all.len() / 2;
        match act {
            Act::HeadOnly => all.clear(),
            Act::CutAnswer => all.truncate(half),
            _ => all[half] ^= 1,
        }
        socket.write_all(&all)?;
    } else {
        socket.write_all(&rest)?;
        io::copy(&mut behind, &mut socket)?;
    }
    socket.shutdown(Shutdown::Both)?;
    Ok(false)
}

fn error_body(code: &str, message: &str) -> String {
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>{code}</Code><Message>{message}</Message></Error>"
    )
}

fn answer(mut socket: &TcpStream, seen: &Seen, status: u16, body: &str) -> io::Result<bool> {
    let text = if seen.method == "HEAD" { "" } else { body };
    let head = format!(
        "HTTP/1.1 {status} Told\r\nContent-Type: application/xml\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    socket.write_all(head.as_bytes())?;
    socket.write_all(text.as_bytes())?;
    Ok(true)
}

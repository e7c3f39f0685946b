//! A ChromaDB server that misbehaves: whatever it does, the client ends, says what and where, and shows no token. A fake,
//! because a real one cannot be made to do this on demand; how real ones behave is checked in tests/stack.

#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use tars_backup::cancel::Cancel;
use tars_backup::chroma::{Api, ChromaError, Client, Collection, Endpoint, Exported, Pages, Token};
use tars_backup::exit::Signal;
use tars_backup::hint::{Hint, chain};
use tokio::runtime::Runtime;

const TOKEN: &str = "s3cr3t-t0ken";

/// What a fake server does with a request.
enum Reply {
    /// Status and body.
    Say(u16, String),
    /// The same, but the body ends early and the connection with it.
    Cut(String),
    /// Sends this and then nothing more.
    Hang(String),
    /// Sends a byte at a time, slowly and for ever.
    Drip,
    Redirect,
}

struct Fake {
    url: String,
    runtime: Runtime,
    cancel: Cancel,
    /// Heads of all requests, as they came.
    heads: Receiver<String>,
}

/// Answers the questions of a connect, and hands all others on.
fn fake(reply: impl Fn(&str, &str) -> Reply + Send + Sync + 'static) -> Fake {
    raw(move |path, body| match path {
        "/api/v2/heartbeat" => Reply::Say(200, "{\"nanosecond heartbeat\":1}".into()),
        "/api/v2/version" => Reply::Say(200, "\"9.9.9\"".into()),
        "/api/v2/pre-flight-checks" => Reply::Say(200, "{\"max_batch_size\":50}".into()),
        _ => reply(path, body),
    })
}

fn raw(reply: impl Fn(&str, &str) -> Reply + Send + Sync + 'static) -> Fake {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (send, heads) = channel();
    let reply = std::sync::Arc::new(reply);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (reply, send) = (reply.clone(), send.clone());
            std::thread::spawn(move || while serve(&stream, &*reply, &send).is_some() {});
        }
    });
    Fake { url, runtime: Runtime::new().unwrap(), cancel: Cancel::default(), heads }
}

/// One request; None when the connection is of no more use.
fn serve(
    stream: &TcpStream,
    reply: &dyn Fn(&str, &str) -> Reply,
    heads: &std::sync::mpsc::Sender<String>,
) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    let length =
        head.lines().find_map(|l| l.to_lowercase().strip_prefix("content-length: ").map(str::to_owned));
    let mut body = vec![0; length.map_or(0, |l| l.parse().unwrap())];
    reader.read_exact(&mut body).ok()?;
    let path = head.split(' ').nth(1)?.to_owned();
    heads.send(head).ok()?;
    let mut out = stream;
    let mut say = |status: u16, length: usize, body: &str| {
        write!(out, "HTTP/1.1 {status} X\r\ncontent-length: {length}\r\n\r\n{body}").ok()
    };
    match reply(&path, std::str::from_utf8(&body).ok()?) {
        Reply::Say(status, body) => say(status, body.len(), &body),
        Reply::Cut(body) => {
            say(200, body.len() + 10, &body);
            stream.shutdown(std::net::Shutdown::Both).ok()?;
            None
        }
        Reply::Hang(text) => {
            out.write_all(text.as_bytes()).ok()?;
            std::thread::sleep(Duration::from_secs(30));
            None
        }
        Reply::Drip => {
            say(200, 1_000_000, "")?;
            loop {
                out.write_all(b" ").ok()?;
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        Reply::Redirect => {
            write!(out, "HTTP/1.1 307 X\r\nlocation: /elsewhere\r\ncontent-length: 0\r\n\r\n").ok()
        }
    }
}

impl Fake {
    fn connect(&self) -> Result<Client, ChromaError> {
        self.connect_with(Pages::default(), Duration::from_secs(60))
    }

    fn connect_with(&self, pages: Pages, total: Duration) -> Result<Client, ChromaError> {
        self.connect_for(pages, total, Duration::from_secs(10))
    }

    fn connect_for(&self, pages: Pages, total: Duration, idle: Duration) -> Result<Client, ChromaError> {
        let endpoint = Endpoint { url: self.url.clone(), token: Some(Token::new(TOKEN)), total, idle, pages };
        Client::connect(endpoint, self.runtime.handle().clone(), self.cancel.clone())
    }
}

/// No error shows the token, each says where, and each has a hint where a person can do something.
#[track_caller]
fn shown(e: &ChromaError) -> String {
    let text = chain(e);
    assert!(!format!("{text} {e:?} {:?}", e.hint()).contains(TOKEN), "{e:?}");
    text
}

fn collection() -> Collection {
    Collection {
        tenant: "t".into(),
        database: "d".into(),
        id: "1".into(),
        name: "odd".into(),
        dimension: Some(3),
        metadata: None,
        configuration: None,
        schema: None,
    }
}

fn export(client: &Client) -> (Result<Exported, ChromaError>, String) {
    let scratch = tempfile::tempdir().unwrap();
    let mut out = Vec::new();
    let done = client.export(&collection(), scratch.path(), &mut out, &mut |_| {});
    (done, String::from_utf8(out).unwrap())
}

/// A server with these ids, whose records are what `records` says.
fn with_ids(ids: &'static [&'static str], records: impl Fn(&str) -> Reply + Send + Sync + 'static) -> Fake {
    fake(move |_, body| {
        let asked: serde_json::Value = serde_json::from_str(body).unwrap();
        if asked.get("ids").is_some() {
            return records(body);
        }
        let offset = usize::try_from(asked["offset"].as_u64().unwrap_or(0)).unwrap();
        let limit = usize::try_from(asked["limit"].as_u64().unwrap_or(1000)).unwrap();
        let page: Vec<&&str> = ids.iter().skip(offset).take(limit).collect();
        Reply::Say(200, serde_json::json!({ "ids": page }).to_string())
    })
}

#[test]
fn a_token_is_sent_in_both_ways_and_shown_in_none() {
    let f = fake(|_, _| Reply::Say(401, format!("{{\"error\":\"no such token: {TOKEN}\"}}")));
    let client = f.connect().unwrap();
    assert_eq!((client.api(), client.version()), (Api::V2, "9.9.9"));
    let head = f.heads.recv().unwrap().to_lowercase();
    assert!(head.contains(&format!("authorization: bearer {TOKEN}\r\n")), "{head}");
    assert!(head.contains(&format!("x-chroma-token: {TOKEN}\r\n")), "{head}");
    let e = client.collections("t", "d").unwrap_err();
    assert!(matches!(e, ChromaError::Denied { status: 401, sent: true, .. }), "{}", shown(&e));
    shown(&e);
    let f = fake(|_, _| Reply::Say(500, format!("\u{1b}[31m {TOKEN} is wrong\n{}", "x".repeat(5000))));
    let text = shown(&f.connect().unwrap().collections("t", "d").unwrap_err());
    assert!(text.contains("500") && text.contains("[token] is wrong") && text.len() < 600, "{text}");
    assert!(!text.contains('\u{1b}'), "{text}");
}

#[test]
fn what_is_no_chroma_is_said_so() {
    for (status, body) in [(404, ""), (410, ""), (200, "<html>hello</html>"), (200, "{\"ok\":true}")] {
        let f = raw(move |_, _| Reply::Say(status, body.into()));
        let e = f.connect().err().unwrap();
        assert!(matches!(e, ChromaError::NotChroma { .. }), "{status} {body}: {}", shown(&e));
        assert!(e.hint().unwrap().contains(&f.url));
    }
    let f = raw(|_, _| Reply::Redirect);
    let e = f.connect().err().unwrap();
    assert!(shown(&e).contains("elsewhere (status 307)"), "{}", shown(&e));
}

#[test]
fn a_server_that_only_knows_the_first_api_is_asked_by_it() {
    let f = raw(|path, _| match path {
        "/api/v1/heartbeat" => Reply::Say(200, "{\"nanosecond heartbeat\":1}".into()),
        "/api/v1/version" => Reply::Say(200, "\"0.4.1\"".into()),
        _ => Reply::Say(404, "{}".into()),
    });
    let client = f.connect().unwrap();
    assert_eq!((client.api(), client.version()), (Api::V1, "0.4.1"));
    assert_eq!(client.databases("default_tenant", &["x".into()]).unwrap(), ["default_database", "x"]);
    assert!(client.databases("other", &[]).unwrap().is_empty());
}

#[test]
fn silence_ends_and_so_does_an_answer_that_never_does() {
    for text in ["", "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n[1,"] {
        let f = fake(move |_, _| Reply::Hang(text.into()));
        let started = Instant::now();
        let client =
            f.connect_for(Pages::default(), Duration::from_secs(60), Duration::from_secs(2)).unwrap();
        let e = client.collections("t", "d").unwrap_err();
        assert!(matches!(e, ChromaError::Idle { seconds: 2, .. }), "{}", shown(&e));
        assert!(started.elapsed() < Duration::from_secs(25));
    }
    let f = fake(|_, _| Reply::Drip);
    let client = f.connect_with(Pages::default(), Duration::from_secs(2)).unwrap();
    let e = client.collections("t", "d").unwrap_err();
    assert!(matches!(e, ChromaError::TooLong { seconds: 2, .. }), "{}", shown(&e));
}

/// Seen of a real server: a question without an answer, and the next one is answered at once.
#[test]
fn a_question_that_the_server_lost_is_asked_again() {
    let asked = std::sync::atomic::AtomicUsize::new(0);
    let f = fake(move |_, _| match asked.fetch_add(1, std::sync::atomic::Ordering::SeqCst) {
        0 => Reply::Hang(String::new()),
        _ => Reply::Say(200, "[]".into()),
    });
    assert!(f.connect().unwrap().collections("t", "d").unwrap().is_empty());
}

#[test]
fn an_interrupt_ends_a_wait() {
    let f = fake(|_, _| Reply::Drip);
    let client = f.connect().unwrap();
    let cancel = f.cancel.clone();
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(200));
        cancel.request(Signal::Interrupt);
    });
    let started = Instant::now();
    let e = client.collections("t", "d").unwrap_err();
    assert!(matches!(e, ChromaError::Interrupted(_)), "{}", shown(&e));
    assert!(started.elapsed() < Duration::from_secs(25));
}

#[test]
fn nobody_there_and_bad_addresses_are_told_apart() {
    // No port that any other test could get.
    let free = "127.0.0.1:1";
    let runtime = Runtime::new().unwrap();
    let connect = |url: &str, token: &str| {
        let endpoint = Endpoint {
            url: url.into(),
            token: Some(Token::new(token)),
            total: Duration::from_secs(5),
            idle: Duration::from_secs(5),
            pages: Pages::default(),
        };
        Client::connect(endpoint, runtime.handle().clone(), Cancel::default()).err().unwrap()
    };
    let e = connect(&format!("http://{free}"), TOKEN);
    assert!(matches!(e, ChromaError::Unreachable { .. }), "{}", shown(&e));
    assert!(e.hint().unwrap().contains("docker ps"));
    for url in
        ["", "127.0.0.1:8000", "https://127.0.0.1:1", "ftp://x", "http://u:hidden@127.0.0.1:1", "http://x/?q"]
    {
        let e = connect(url, TOKEN);
        assert!(matches!(e, ChromaError::Address { .. }), "{url}: {}", shown(&e));
        assert!(!shown(&e).contains("hidden"));
    }
    let e = connect(&format!("http://{free}"), "two\nlines");
    assert!(matches!(e, ChromaError::BadToken { .. }), "{}", shown(&e));
}

#[test]
fn an_answer_that_is_cut_or_no_json_is_no_answer() {
    let f = fake(|_, _| Reply::Cut("[]".into()));
    let e = f.connect().unwrap().collections("t", "d").unwrap_err();
    assert!(matches!(e, ChromaError::Broken { .. }), "{}", shown(&e));
    for body in ["", "{", "{\"a\":1}", "[{\"id\":\"1\"}]", "[] []", "\u{0}"] {
        let f = fake(move |_, _| Reply::Say(200, body.into()));
        let e = f.connect().unwrap().collections("t", "d").unwrap_err();
        assert!(matches!(e, ChromaError::Malformed { .. }), "{body}: {}", shown(&e));
    }
}

#[test]
fn records_that_do_not_fit_to_the_question_are_refused() {
    for (body, why) in [
        (r#"{"ids":["a"],"embeddings":[],"documents":null}"#, "differ in length"),
        (r#"{"ids":["a"],"embeddings":[[1]],"documents":["x","y"]}"#, "differ in length"),
        (r#"{"ids":["a"],"embeddings":null}"#, "without embeddings"),
        (r#"{"ids":["a","a"],"embeddings":[[1],[1]]}"#, "twice"),
        (r#"{"ids":["z"],"embeddings":[[1]]}"#, "not asked for"),
        (r#"{"ids":["a"],"embeddings":[[1"#, "EOF"),
    ] {
        let f = with_ids(&["a", "b"], move |_| Reply::Say(200, body.into()));
        let (done, _) = export(&f.connect().unwrap());
        let e = done.unwrap_err();
        assert!(
            matches!(&e, ChromaError::Malformed { .. }) && shown(&e).contains(why),
            "{body}: {}",
            shown(&e)
        );
    }
}

#[test]
fn records_are_written_in_the_order_of_the_list_each_on_one_line() {
    let f = with_ids(&["b", "gone", "a"], |_| {
        Reply::Say(
            200,
            "{\"ids\":[\"a\",\"b\"],\"embeddings\":[[1.50,\r\n2],[3]],\"metadatas\":[{\"n\":9007199254740993},null]}".into(),
        )
    });
    let (done, text) = export(&f.connect().unwrap());
    let done = done.unwrap();
    assert_eq!((done.records, done.gone, done.bytes), (2, 1, text.len() as u64));
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].contains("\"count\":3"), "{}", lines[0]);
    assert_eq!(lines[1], r#"{"id":"b","embedding":[3],"document":null,"metadata":null,"uri":null}"#);
    assert_eq!(
        lines[2],
        r#"{"id":"a","embedding":[1.50,  2],"document":null,"metadata":{"n":9007199254740993},"uri":null}"#
    );
}

/// Every record has 1000 bytes; answers beyond 5000 bytes are not taken.
#[test]
fn a_page_that_is_too_large_is_asked_for_in_halves() {
    const IDS: &[&str] = &["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"];
    let reply = |body: &str, size: usize| {
        let asked: serde_json::Value = serde_json::from_str(body).unwrap();
        let ids = asked["ids"].as_array().unwrap();
        let long = "x".repeat(size);
        let (embeddings, documents) = (vec![[1]; ids.len()], vec![&long; ids.len()]);
        let answer = serde_json::json!({ "ids": ids, "embeddings": embeddings, "documents": documents });
        Reply::Say(200, answer.to_string())
    };
    let pages = Pages { largest: 5000, ..Pages::default() };
    let f = with_ids(IDS, move |body| reply(body, 1000));
    let (done, text) = export(&f.connect_with(pages, Duration::from_secs(20)).unwrap());
    assert_eq!((done.unwrap().records, text.lines().count()), (10, 11));
    let f = with_ids(IDS, move |body| reply(body, 6000));
    let (done, _) = export(&f.connect_with(pages, Duration::from_secs(20)).unwrap());
    let e = done.unwrap_err();
    assert!(matches!(e, ChromaError::TooLarge { bytes: 5000, .. }), "{}", shown(&e));
}

/// Something is deleted between two pages of the list of ids, each time: one answer then has to do.
#[test]
fn a_list_that_shifts_between_two_pages_is_not_believed() {
    let f = fake(|_, body| {
        let asked: serde_json::Value = serde_json::from_str(body).unwrap();
        Reply::Say(
            200,
            match (asked.get("ids"), asked.get("limit"), asked["offset"].as_u64()) {
                (Some(_), ..) => r#"{"ids":["a","c"],"embeddings":[[1],[2]]}"#,
                (None, None, _) => r#"{"ids":["a","c"]}"#,
                (None, Some(_), Some(0)) => r#"{"ids":["a","b"]}"#,
                _ => r#"{"ids":["c"]}"#,
            }
            .into(),
        )
    });
    let client = f.connect_with(Pages { ids: 2, ..Pages::default() }, Duration::from_secs(20)).unwrap();
    let (done, text) = export(&client);
    assert_eq!((done.unwrap().records, text.lines().count()), (2, 3));
}

#[test]
fn a_listing_that_is_another_each_time_is_an_error() {
    let n = std::sync::atomic::AtomicUsize::new(0);
    let f = fake(move |path, _| {
        let n = n.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        let item = |i: usize| serde_json::json!({ "id": i.to_string(), "name": i.to_string() });
        let page = if path.contains("offset=0") { vec![item(n), item(n + 1000)] } else { vec![item(n)] };
        let page = if path.contains("offset=3") { vec![] } else { page };
        Reply::Say(200, serde_json::Value::from(page).to_string())
    });
    let client = f.connect_with(Pages { ids: 2, ..Pages::default() }, Duration::from_secs(20)).unwrap();
    let e = client.collections("t", "d").unwrap_err();
    assert!(matches!(e, ChromaError::Changing { .. }), "{}", shown(&e));
}

#[test]
fn a_name_with_a_slash_that_an_old_server_cannot_hear_is_said_so() {
    let f = fake(|_, _| Reply::Say(404, "{\"detail\":\"Not Found\"}".into()));
    let client = f.connect().unwrap();
    let e = client.databases("third/3", &[]).unwrap_err();
    assert!(matches!(&e, ChromaError::Slash { name, .. } if name == "third/3"), "{}", shown(&e));
    assert!(f.heads.iter().take(4).last().unwrap().contains("/tenants/third%2F3/databases"));
    let e = client.databases("third", &[]).unwrap_err();
    assert!(matches!(e, ChromaError::Refused { status: 404, .. }), "{}", shown(&e));
}

#[test]
fn a_full_disk_is_told_as_one() {
    struct Full;
    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let f = with_ids(&["a"], |_| Reply::Say(200, r#"{"ids":["a"],"embeddings":[[1]]}"#.into()));
    let scratch = tempfile::tempdir().unwrap();
    let e = f.connect().unwrap().export(&collection(), scratch.path(), &mut Full, &mut |_| {}).unwrap_err();
    assert!(matches!(e, ChromaError::Write { .. }), "{}", shown(&e));
    assert!(e.hint().unwrap().contains("staging is full"));
}

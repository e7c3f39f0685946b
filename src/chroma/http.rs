//! One question to the server and its whole answer. What could go wrong: a server that never answers, that stops in the
//! middle, or whose answer does not fit into memory; and a token that shows in a line. So every wait has an end, every
//! answer a longest length, and every text of the server passes `clean`.

use std::time::{Duration, Instant};

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{RequestBuilder, Url};
use tokio::runtime::Handle;
use tokio::time::timeout;

use super::error::ChromaError;
use crate::cancel::{Cancel, Interrupted};

/// Time to get a connection.
const CONNECT: Duration = Duration::from_secs(10);
/// Time for one whole answer, however steadily it comes.
const ANSWER: Duration = Duration::from_secs(600);
/// How long a server may be silent until what changes nothing is asked once more. Servers of the 1.x line lose a question
/// now and then.
const ASK_AGAIN: Duration = Duration::from_secs(15);
/// A connection that rested longer is not used again: servers of the 0.x line close theirs after 5 s.
const REST: Duration = Duration::from_secs(2);
/// Characters of a server's text that are shown.
const TEXT_SHOWN: usize = 300;

/// A token for the server. It is sent as `Authorization: Bearer` and as `X-Chroma-Token`, because a server reads the one
/// that it was told to and ignores the other. Nothing prints it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token")
    }
}

/// What is asked for: a path below the base address, a query, and a JSON body for POST.
#[derive(Debug, Default)]
pub(super) struct Ask {
    pub path: Vec<String>,
    pub query: Vec<(&'static str, String)>,
    pub body: Option<Vec<u8>>,
}

impl Ask {
    pub fn get(path: &[&str]) -> Self {
        Self { path: path.iter().map(|s| (*s).to_owned()).collect(), ..Self::default() }
    }

    pub fn join(mut self, more: &[&str]) -> Self {
        self.path.extend(more.iter().map(|s| (*s).to_owned()));
        self
    }

    pub fn query(mut self, key: &'static str, value: impl ToString) -> Self {
        self.query.push((key, value.to_string()));
        self
    }

    pub fn post(mut self, body: &serde_json::Value) -> Self {
        self.body = Some(body.to_string().into_bytes());
        self
    }
}

pub(super) struct Answer {
    pub status: u16,
    pub body: Vec<u8>,
}

enum Fault {
    Idle,
    Large,
    Connect(String),
    Broken(String),
}

pub(super) struct Http {
    client: reqwest::Client,
    base: Url,
    token: Option<Token>,
    runtime: Handle,
    cancel: Cancel,
    started: Instant,
    total: Duration,
    idle: Duration,
    largest: usize,
}

impl Http {
    /// Prepares; nothing is sent. `total` is counted from here, for all questions together; `idle` is the longest silence
    /// within one; `largest` the most bytes of one answer.
    pub fn new(
        url: &str,
        token: Option<Token>,
        (total, idle): (Duration, Duration),
        largest: usize,
        runtime: Handle,
        cancel: Cancel,
    ) -> Result<Self, ChromaError> {
        let base = address(url)?;
        let mut headers = HeaderMap::new();
        if let Some(Token(value)) = &token {
            let secret = |text: &str| {
                let mut value = HeaderValue::from_str(text)
                    .map_err(|_| ChromaError::BadToken { url: base.as_str().to_owned() })?;
                value.set_sensitive(true);
                Ok::<_, ChromaError>(value)
            };
            headers.insert(AUTHORIZATION, secret(&format!("Bearer {value}"))?);
            headers.insert(HeaderName::from_static("x-chroma-token"), secret(value)?);
        }
        crate::tls::choose();
        let client = reqwest::Client::builder()
            .user_agent(concat!("tars-backup/", env!("CARGO_PKG_VERSION")))
            .default_headers(headers)
            // A server of this host: a proxy of the environment would send the data elsewhere, and so would a redirect.
            .no_proxy()
            // It speaks plain http only: what the system trusts need not even be installed.
            .tls_certs_only(std::iter::empty())
            .redirect(reqwest::redirect::Policy::none())
            .http1_only()
            .connect_timeout(CONNECT)
            .pool_idle_timeout(REST)
            .build()
            .map_err(|e| ChromaError::Address { why: crate::hint::chain(&e) })?;
        Ok(Self { client, base, token, runtime, cancel, started: Instant::now(), total, idle, largest })
    }

    /// The address as it may be shown.
    pub fn shown(&self) -> String {
        self.base.as_str().trim_end_matches('/').to_owned()
    }

    /// Sends one question and reads its whole answer, whatever its status. `what` names the step in errors.
    pub fn ask(&self, what: &str, ask: &Ask) -> Result<Answer, ChromaError> {
        if ask.body.is_none() {
            match self.ask_once(what, ask, ASK_AGAIN.min(self.idle / 2)) {
                Err(ChromaError::Idle { .. }) => {}
                other => return other,
            }
        }
        self.ask_once(what, ask, self.idle)
    }

    fn ask_once(&self, what: &str, ask: &Ask, idle: Duration) -> Result<Answer, ChromaError> {
        let left = self.total.saturating_sub(self.started.elapsed());
        let request = self.request(ask)?;
        let exchange = exchange(request, idle, self.largest);
        let outcome = self.runtime.block_on(async {
            tokio::select! {
                () = self.cancel.requested() => Err(Interrupted),
                outcome = timeout(left.min(ANSWER), exchange) => Ok(outcome.ok()),
            }
        })?;
        let (what, url) = (what.to_owned(), self.shown());
        match outcome {
            Some(Ok(answer)) => Ok(answer),
            Some(Err(Fault::Idle)) => Err(ChromaError::Idle { what, url, seconds: idle.as_secs() }),
            Some(Err(Fault::Large)) => Err(ChromaError::TooLarge { what, url, bytes: self.largest }),
            Some(Err(Fault::Connect(reason))) => Err(ChromaError::Unreachable { url, reason }),
            Some(Err(Fault::Broken(reason))) => Err(ChromaError::Broken { what, url, reason }),
            None => {
                let limit = if left < ANSWER { self.total } else { ANSWER };
                Err(ChromaError::TooLong { what, url, seconds: limit.as_secs() })
            }
        }
    }

    /// The body of a good answer; every other status is an error.
    pub fn fetch(&self, what: &str, ask: &Ask) -> Result<Vec<u8>, ChromaError> {
        let answer = self.ask(what, ask)?;
        if (200..300).contains(&answer.status) { Ok(answer.body) } else { Err(self.refused(what, &answer)) }
    }

    /// What a bad status means.
    pub fn refused(&self, what: &str, answer: &Answer) -> ChromaError {
        let (what, url, status) = (what.to_owned(), self.shown(), answer.status);
        match status {
            401 | 403 => ChromaError::Denied { what, url, status, sent: self.token.is_some() },
            _ => ChromaError::Refused { what, url, status, reason: self.clean(&answer.body) },
        }
    }

    /// A good answer that does not say what it should.
    pub fn malformed(&self, what: &str, why: impl Into<String>) -> ChromaError {
        ChromaError::Malformed { what: what.to_owned(), url: self.shown(), why: why.into() }
    }

    /// A text of the server for one line: short, printable, without our token.
    pub fn clean(&self, body: &[u8]) -> String {
        let mut text = String::from_utf8_lossy(body).into_owned();
        if let Some(Token(secret)) = &self.token
            && !secret.is_empty()
        {
            text = text.replace(secret.as_str(), "[token]");
        }
        text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(TEXT_SHOWN).collect()
    }

    fn request(&self, ask: &Ask) -> Result<RequestBuilder, ChromaError> {
        let mut url = self.base.clone();
        match url.path_segments_mut() {
            Ok(mut path) => {
                path.pop_if_empty().extend(&ask.path);
            }
            Err(()) => return Err(ChromaError::Address { why: "it can have no path".into() }),
        }
        if !ask.query.is_empty() {
            url.query_pairs_mut().extend_pairs(&ask.query);
        }
        Ok(match &ask.body {
            None => self.client.get(url),
            Some(body) => self.client.post(url).header(CONTENT_TYPE, "application/json").body(body.clone()),
        })
    }
}

fn address(url: &str) -> Result<Url, ChromaError> {
    // The text itself is not shown: it may hold a password.
    let wrong = |why: &str| ChromaError::Address { why: why.to_owned() };
    let parsed = Url::parse(url).map_err(|e| wrong(&e.to_string()))?;
    match parsed.scheme() {
        "http" => {}
        "https" => return Err(wrong("https is not supported; use the port that speaks plain http")),
        other => return Err(wrong(&format!("{other} is not http"))),
    }
    if !parsed.username().is_empty() || parsed.password().is_some() {
        return Err(wrong("it holds a user or a password; use a token instead"));
    }
    if parsed.query().is_some() || parsed.fragment().is_some() {
        return Err(wrong("it has a query or a fragment"));
    }
    Ok(parsed)
}

async fn exchange(request: RequestBuilder, idle: Duration, largest: usize) -> Result<Answer, Fault> {
    let fault = |e: reqwest::Error| {
        let (connect, text) = (e.is_connect(), crate::hint::chain(&e.without_url()));
        if connect { Fault::Connect(text) } else { Fault::Broken(text) }
    };
    let mut response = timeout(idle, request.send()).await.map_err(|_| Fault::Idle)?.map_err(fault)?;
    let status = response.status().as_u16();
    if response.content_length().is_some_and(|n| n > largest as u64) {
        return Err(Fault::Large);
    }
    let mut body = Vec::new();
    while let Some(piece) = timeout(idle, response.chunk()).await.map_err(|_| Fault::Idle)?.map_err(fault)? {
        if body.len() + piece.len() > largest {
            return Err(Fault::Large);
        }
        body.extend_from_slice(&piece);
    }
    Ok(Answer { status, body })
}

//! One question to an S3 server and its answer: what opendal is given instead of a client of its own. What could go
//! wrong: a server that is slow is taken for one that is dead, or one that is dead is asked for hours; half an answer is
//! taken for a whole one. So a try ends when nothing moves, not when it takes long; tries end after a while in which
//! nothing moved; and an answer is handed on only when it is whole and what was asked for. Only the bytes of an object
//! are handed on as they come: whoever reads them counts.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::Stream;
use http::{Method, Request, Response};
use opendal::raw::{Operation, ServiceOperation};
use opendal::{Buffer, Error, ErrorKind, HttpBody, HttpTransport};

use super::fault::{Answer, Fault, Kind, clean, element};

const CONNECT: Duration = Duration::from_secs(8);
/// Longest silence of a server that was told nothing of length.
const SILENCE: Duration = Duration::from_secs(30);
/// The same where much was sent: on a slow line it lies in the buffers of the kernel for long.
const SILENCE_AFTER_DATA: Duration = Duration::from_secs(120);
const MUCH: usize = 64 << 10;
/// A server that moved nothing for so long, all tries together, is not tried again.
const PATIENCE: Duration = Duration::from_secs(20);
/// A connection that rested longer may be dead without saying so.
const REST: Duration = Duration::from_secs(15);
const TRIES: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(400);
/// The same for a server that answers and asks for time, as a large one does when it moves work elsewhere.
const PATIENCE_WHEN_ASKED: Duration = Duration::from_secs(60);
const TRIES_WHEN_ASKED: u32 = 9;
const LONGEST_PAUSE: Duration = Duration::from_secs(8);
/// Longest answer that is no object: a listing of a thousand names is far shorter.
const LONGEST_ANSWER: usize = 16 << 20;
/// Pieces in which a body goes out, so that it is seen to move.
const PIECE: usize = 64 << 10;

pub(super) struct Transport {
    client: reqwest::Client,
    /// What no text may repeat.
    held: Arc<Vec<String>>,
}

/// A client of our own for one store: it follows no redirect, as that would carry the signature elsewhere.
/// Proxies of the environment are used, but never to reach this machine itself.
pub(super) fn client(endpoint: &str, ca: &[reqwest::Certificate]) -> Result<reqwest::Client, reqwest::Error> {
    crate::tls::choose();
    let builder = reqwest::Client::builder();
    let builder = if is_here(endpoint) { builder.no_proxy() } else { builder };
    builder
        .user_agent(concat!("tars-backup/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .http1_only()
        .connect_timeout(CONNECT)
        .pool_idle_timeout(REST)
        .tls_certs_merge(ca.iter().cloned())
        .build()
}

fn is_here(endpoint: &str) -> bool {
    let url = reqwest::Url::parse(endpoint).ok();
    let host = url.as_ref().and_then(reqwest::Url::host_str).unwrap_or_default();
    let address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|a| a.is_loopback())
}

/// A try that came to nothing.
struct Failed {
    fault: Fault,
    /// The server asks for nothing but time.
    asks_for_time: bool,
}

impl From<Fault> for Failed {
    fn from(fault: Fault) -> Self {
        Self { fault, asks_for_time: false }
    }
}

impl Transport {
    pub fn new(client: reqwest::Client, held: Vec<String>) -> Self {
        Self { client, held: Arc::new(held) }
    }

    /// Everything that the text about this request must not hold.
    fn held_by(&self, parts: &http::request::Parts) -> Vec<String> {
        let mut held = Vec::new();
        for name in ["authorization", "x-amz-security-token"] {
            let Some(value) = parts.headers.get(name).and_then(|v| v.to_str().ok()) else { continue };
            held.push(value.to_owned());
            held.extend(value.split([' ', ',', '=']).filter(|w| w.len() >= 16).map(str::to_owned));
        }
        held.extend(self.held.iter().cloned());
        held
    }

    /// One try.
    async fn ask(
        &self,
        parts: &http::request::Parts,
        body: &Buffer,
        moved: &Arc<Moved>,
        held: &[String],
    ) -> Result<Response<HttpBody>, Failed> {
        let url = reqwest::Url::parse(&parts.uri.to_string())
            .map_err(|_| Fault::other("the address of the endpoint is not a URL"))?;
        let mut request = self.client.request(parts.method.clone(), url).headers(parts.headers.clone());
        if !body.is_empty() {
            request =
                request.body(reqwest::Body::wrap(Outgoing { rest: body.clone(), moved: moved.clone() }));
        }
        let silence = if body.len() > MUCH { SILENCE_AFTER_DATA } else { SILENCE };
        let broken = |e: reqwest::Error| Fault::of_connection(&e.without_url(), held);
        let mut answer = moved.or_silence(silence, request.send()).await?.map_err(broken)?;
        moved.now();
        let status = answer.status();
        let length = content_length(&answer);
        let headers = std::mem::take(answer.headers_mut());
        let respond = |body: HttpBody| {
            let mut response = Response::new(body);
            *response.status_mut() = status;
            *response.headers_mut() = headers;
            response.extensions_mut().insert(parts.uri.clone());
            response
        };
        let headless = parts.method == Method::HEAD;
        if status.is_success() && parts.extensions.get() == Some(&Operation::Read) {
            let stream = Incoming {
                stream: Box::pin(answer.bytes_stream()),
                sleep: Box::pin(tokio::time::sleep(SILENCE)),
                held: held.to_vec(),
            };
            return Ok(respond(HttpBody::new(stream, length)));
        }

        let mut bytes = Vec::new();
        while let Some(piece) = moved.or_silence(silence, answer.chunk()).await?.map_err(broken)? {
            moved.now();
            if bytes.len() + piece.len() > LONGEST_ANSWER {
                return Err(Fault::other("the server answers with more than an answer can hold").into());
            }
            bytes.extend_from_slice(&piece);
        }
        if !headless && length.is_some_and(|wanted| wanted != bytes.len() as u64) {
            return Err(Fault::passing("the server broke off its answer").into());
        }
        // Completing an upload can fail after it began to answer with success.
        if !status.is_success() || bytes.windows(7).take(256).any(|w| w == b"<Error>") {
            let status = status.as_u16();
            let answer = Answer { status: if status < 300 { 500 } else { status }, headless, body: &bytes };
            let fault = Fault::of_answer(&answer, held);
            return Err(Failed { fault, asks_for_time: Fault::asks_for_time(&answer) });
        }
        if parts.extensions.get() == Some(&ServiceOperation("ListObjectsV2")) {
            check_listing(&bytes, &asked_from(&parts.uri))?;
        }
        let size = (!headless).then_some(bytes.len() as u64);
        Ok(respond(HttpBody::new(futures_util::stream::iter([Ok(Buffer::from(bytes))]), size)))
    }
}

impl HttpTransport for Transport {
    async fn fetch(&self, request: Request<Buffer>) -> opendal::Result<Response<HttpBody>> {
        let (parts, body) = request.into_parts();
        let held = self.held_by(&parts);
        let moved = Arc::new(Moved::new());
        let mut still = Duration::ZERO;
        let mut pause = FIRST_PAUSE;
        for attempt in 1.. {
            moved.now();
            let Failed { fault, asks_for_time } = match self.ask(&parts, &body, &moved, &held).await {
                Ok(answer) => return Ok(answer),
                Err(failed) => failed,
            };
            still += moved.since();
            let (tries, patience) = match asks_for_time {
                true => (TRIES_WHEN_ASKED, PATIENCE_WHEN_ASKED),
                false => (TRIES, PATIENCE),
            };
            if fault.kind != Kind::Passing || attempt >= tries || still >= patience {
                return Err(error(fault));
            }
            log::debug!("asking again: {fault}");
            let wait = jittered(pause);
            tokio::time::sleep(wait).await;
            still += wait;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        Err(error(Fault::passing("no try was made")))
    }
}

/// Between half and one and a half of `pause`, so that many do not come back at once.
pub(super) fn jittered(pause: Duration) -> Duration {
    let chance = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    pause.mul_f64(0.5 + f64::from(chance.subsec_nanos() % 1000) / 1000.0)
}

fn error(fault: Fault) -> Error {
    let kind = if fault.kind == Kind::Absent { ErrorKind::NotFound } else { ErrorKind::Unexpected };
    Error::new(kind, "").with_temporary(fault.kind == Kind::Passing).set_source(fault)
}

fn content_length(answer: &reqwest::Response) -> Option<u64> {
    answer.headers().get(http::header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// From where a question for a page of a listing goes on; empty for the first one.
fn asked_from(uri: &http::Uri) -> String {
    let url = reqwest::Url::parse(&uri.to_string()).ok();
    let token = url.as_ref().and_then(|u| u.query_pairs().find(|(name, _)| name == "continuation-token"));
    token.map_or_else(String::new, |(_, value)| value.into_owned())
}

/// Whether it is a whole page of a listing, which says whether more follow: anything else would read as an empty one, or
/// as one without an end. `from`: where it was to go on.
fn check_listing(bytes: &[u8], from: &str) -> Result<(), Fault> {
    let text = String::from_utf8_lossy(bytes);
    if !text.contains("<ListBucketResult") || !text.trim_end().ends_with("</ListBucketResult>") {
        return Err(Fault::passing("the answer is no listing"));
    }
    match element(&text, "IsTruncated").as_deref() {
        Some("false") => return Ok(()),
        Some("true") => {}
        _ => return Err(Fault::other("the listing does not say whether it goes on")),
    }
    match element(&text, "NextContinuationToken").unwrap_or_default() {
        next if next.is_empty() => {
            Err(Fault::other("the listing breaks off without saying where it goes on"))
        }
        next if next == from => Err(Fault::other("the listing does not go on: it gives the same page again")),
        _ => Ok(()),
    }
}

/// When something last moved.
struct Moved {
    begin: Instant,
    millis: AtomicU64,
}

impl Moved {
    fn new() -> Self {
        Self { begin: Instant::now(), millis: AtomicU64::new(0) }
    }

    fn now(&self) {
        let millis = u64::try_from(self.begin.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.millis.store(millis, Ordering::Relaxed);
    }

    fn since(&self) -> Duration {
        self.begin.elapsed().saturating_sub(Duration::from_millis(self.millis.load(Ordering::Relaxed)))
    }

    async fn or_silence<T>(&self, silence: Duration, what: impl Future<Output = T>) -> Result<T, Fault> {
        tokio::pin!(what);
        loop {
            let left = silence.saturating_sub(self.since());
            if left.is_zero() {
                return Err(Fault::passing(format!("nothing moved for {} seconds", silence.as_secs())));
            }
            if let Ok(done) = tokio::time::timeout(left, &mut what).await {
                return Ok(done);
            }
        }
    }
}

/// The body of a request, in pieces that are seen to leave.
struct Outgoing {
    rest: Buffer,
    moved: Arc<Moved>,
}

impl http_body::Body for Outgoing {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
        use bytes::Buf;
        self.moved.now();
        if self.rest.is_empty() {
            return Poll::Ready(None);
        }
        let n = self.rest.chunk().len().min(PIECE);
        let piece = self.rest.copy_to_bytes(n);
        Poll::Ready(Some(Ok(http_body::Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        http_body::SizeHint::with_exact(self.rest.len() as u64)
    }
}

/// The bytes of an object, as long as they come.
struct Incoming {
    stream: Pin<Box<dyn Stream<Item = reqwest::Result<Bytes>> + Send + Sync>>,
    sleep: Pin<Box<tokio::time::Sleep>>,
    held: Vec<String>,
}

impl Stream for Incoming {
    type Item = opendal::Result<Buffer>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match self.stream.as_mut().poll_next(cx) {
            Poll::Ready(item) => {
                self.sleep.as_mut().reset(tokio::time::Instant::now() + SILENCE);
                Poll::Ready(item.map(|piece| {
                    piece.map(Buffer::from).map_err(|e| {
                        error(Fault::passing(clean(&crate::hint::chain(&e.without_url()), &self.held)))
                    })
                }))
            }
            Poll::Pending => self.sleep.as_mut().poll(cx).map(|()| {
                let fault = Fault::passing(format!("nothing came for {} seconds", SILENCE.as_secs()));
                Some(Err(error(fault)))
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_known() {
        for here in ["http://127.0.0.1:9000", "http://localhost", "http://[::1]:80", "https://127.8.9.1"] {
            assert!(is_here(here), "{here}");
        }
        for elsewhere in ["https://s3.example.com", "http://192.168.0.2", "http://127.0.0.1.example.com"] {
            assert!(!is_here(elsewhere), "{elsewhere}");
        }
    }

    #[test]
    fn what_is_no_whole_listing_is_not_an_empty_one() {
        let page = |inside: &str| {
            let text = format!("<ListBucketResult xmlns=\"x\">{inside}</ListBucketResult>\n");
            check_listing(text.as_bytes(), "before")
        };
        assert!(page("<IsTruncated>false</IsTruncated>").is_ok());
        assert!(
            page("<IsTruncated>true</IsTruncated><NextContinuationToken>a</NextContinuationToken>").is_ok()
        );
        assert!(page("<IsTruncated>true</IsTruncated>").is_err());
        for bad in ["", "<html></html>", "{}", "<ListBucketResult><Contents><Key>a"] {
            assert!(check_listing(bad.as_bytes(), "").is_err(), "{bad:?}");
        }
        // Whoever does not know whether there is more would ask for the first page for ever, or for this one.
        assert!(page("").is_err() && page("<IsTruncated>maybe</IsTruncated>").is_err());
        assert!(check_listing(b"<ListBucketResult/>", "").is_err());
        assert!(
            page("<IsTruncated>true</IsTruncated><NextContinuationToken>before</NextContinuationToken>")
                .is_err()
        );
    }

    #[test]
    fn where_a_listing_goes_on_is_read_as_it_was_meant() {
        let from = |uri: &str| asked_from(&uri.parse().unwrap());
        assert_eq!(from("http://h/b?list-type=2&continuation-token=a%2Bb%2F%3D&prefix=x"), "a+b/=");
        assert_eq!(from("http://h/b?list-type=2"), "");
    }
}

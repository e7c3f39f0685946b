//! What a server answered instead of what it was asked for, judged and put into few words. What could go wrong: an error
//! that is taken for an absent object, a hopeless one that is tried again for days, and an answer that repeats our key.
//! So only what is known to mean "not there" does, the list of what asking again may mend is closed, and of an answer
//! only its code and its message are kept, shortened, without anything that looks like a key.

use std::error::Error;

use super::{Refusal, StoreError};
use crate::cancel::{Cancel, Interrupted};

/// Longest text of a server that is passed on.
const LONGEST: usize = 300;
/// A run of letters and digits from this length on could be a key or a signature; no word of a language is so long.
const KEY_LIKE: usize = 30;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The object is not there. Nothing else is.
    Absent,
    /// Asking again may help.
    Passing,
    /// The object has to be thawed before it can be read.
    Frozen,
    Refused(Refusal),
}

#[derive(Debug, Clone, thiserror::Error)]
#[error("{text}")]
pub(super) struct Fault {
    pub kind: Kind,
    pub text: String,
}

/// Why something that a store was asked for came to nothing.
pub(super) enum Stop {
    Interrupted(Interrupted),
    Fault(Fault),
    /// It has its words already.
    Store(StoreError),
}

impl From<Interrupted> for Stop {
    fn from(i: Interrupted) -> Self {
        Self::Interrupted(i)
    }
}

impl From<Fault> for Stop {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl From<StoreError> for Stop {
    fn from(e: StoreError) -> Self {
        Self::Store(e)
    }
}

impl Stop {
    /// The same as an error of that store.
    pub fn told(self, store: &str, action: &'static str, object: &str) -> StoreError {
        let fault = match self {
            Self::Interrupted(i) => return i.into(),
            Self::Store(e) => return e,
            Self::Fault(fault) => fault,
        };
        let (store, object, why) = (store.to_owned(), object.to_owned(), fault.text);
        match fault.kind {
            Kind::Absent => StoreError::NotFound { store, object },
            Kind::Passing => StoreError::Down { store, action, object, why },
            Kind::Refused(refusal) => StoreError::Refused { store, action, object, refusal, why },
            Kind::Frozen => StoreError::Refused { store, action, object, refusal: Refusal::Other, why },
        }
    }
}

/// Waits for `what`, unless the run is asked to stop.
pub(super) async fn unless<T, E>(cancel: &Cancel, what: impl Future<Output = Result<T, E>>) -> Result<T, Stop>
where
    Stop: From<E>,
{
    tokio::select! {
        biased;
        () = cancel.requested() => Err(Interrupted.into()),
        done = what => Ok(done?),
    }
}

/// An answer that is no success.
pub(super) struct Answer<'a> {
    pub status: u16,
    /// The answer had no body because the question allows none.
    pub headless: bool,
    pub body: &'a [u8],
}

impl Fault {
    pub fn passing(text: impl Into<String>) -> Self {
        Self { kind: Kind::Passing, text: text.into() }
    }

    pub fn other(text: impl Into<String>) -> Self {
        Self { kind: Kind::Refused(Refusal::Other), text: text.into() }
    }

    /// Judges an answer; `held` is what must not be in the text.
    pub fn of_answer(answer: &Answer<'_>, held: &[String]) -> Self {
        let text = String::from_utf8_lossy(answer.body);
        let code = element(&text, "Code").unwrap_or_default();
        let message = element(&text, "Message").unwrap_or_default();
        let kind = judge(answer, &code, &message);
        let words = match (code.is_empty(), message.is_empty()) {
            // A page of a proxy says less than its status.
            (true, _) => format!("HTTP {}", answer.status),
            (false, true) => code,
            (false, false) => format!("{code}: {message}"),
        };
        Self { kind, text: clean(&words, held) }
    }

    /// Whether the server asks for nothing but time.
    pub fn asks_for_time(answer: &Answer<'_>) -> bool {
        let code = element(&String::from_utf8_lossy(answer.body), "Code").unwrap_or_default();
        answer.status == 429 || matches!(code.as_str(), "SlowDown" | "TooManyRequests")
    }

    /// Judges a failure of the connection.
    pub fn of_connection(error: &(dyn Error + 'static), held: &[String]) -> Self {
        let kind = if distrusts(error) { Kind::Refused(Refusal::Identity) } else { Kind::Passing };
        Self { kind, text: clean(&crate::hint::chain(error), held) }
    }
}

fn judge(answer: &Answer<'_>, code: &str, message: &str) -> Kind {
    let lower = message.to_ascii_lowercase();
    // Backblaze answers AccessDenied where a cap of the account is reached.
    if lower.contains("cap exceeded") || lower.contains("cap_exceeded") || code.contains("cap_exceeded") {
        return Kind::Refused(Refusal::Full);
    }
    match code {
        "NoSuchKey" | "NoSuchVersion" => return Kind::Absent,
        "NoSuchBucket"
        | "InvalidBucketName"
        | "PermanentRedirect"
        | "TemporaryRedirect"
        | "AuthorizationHeaderMalformed"
        | "IllegalLocationConstraintException" => return Kind::Refused(Refusal::NoPlace),
        // Also after an upload was completed by a request whose answer was lost.
        "NoSuchUpload" => return Kind::Refused(Refusal::Other),
        "InvalidObjectState" => return Kind::Frozen,
        "QuotaExceeded"
        | "InsufficientStorage"
        | "StorageFull"
        | "XMinioStorageFull"
        | "XMinioAdminBucketQuotaExceeded" => return Kind::Refused(Refusal::Full),
        "AccessDenied"
        | "AllAccessDisabled"
        | "AccountProblem"
        | "ExpiredToken"
        | "InvalidAccessKeyId"
        | "InvalidSecurity"
        | "InvalidToken"
        | "NotSignedUp"
        | "RequestTimeTooSkewed"
        | "SignatureDoesNotMatch"
        | "TokenRefreshRequired"
        | "Unauthorized"
        | "UnauthorizedAccess" => return Kind::Refused(Refusal::Access),
        "InternalError" | "OperationAborted" | "RequestTimeout" | "ServiceUnavailable" | "SlowDown"
        | "TooManyRequests" => return Kind::Passing,
        _ => {}
    }
    match answer.status {
        401 | 403 => Kind::Refused(Refusal::Access),
        // Whoever asks with HEAD learns no more than that; whoever gets a body without a code did not ask an S3 server.
        404 if answer.headless => Kind::Absent,
        301 | 302 | 307 | 308 | 404 => Kind::Refused(Refusal::NoPlace),
        507 => Kind::Refused(Refusal::Full),
        501 | 505 => Kind::Refused(Refusal::Other),
        408 | 429 | 499 | 500.. => Kind::Passing,
        _ => Kind::Refused(Refusal::Other),
    }
}

/// Text of the first element of that name.
pub(super) fn element(xml: &str, name: &str) -> Option<String> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    let (text, _) = rest.split_once(&format!("</{name}>"))?;
    let plain = text.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&apos;", "'");
    Some(plain.replace("&amp;", "&").trim().to_owned())
}

/// Whether somewhere below it is said that the certificate is not the one of whom we meant.
fn distrusts(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(e) = next {
        if let Some(tls) = e.downcast_ref::<rustls::Error>() {
            return matches!(
                tls,
                rustls::Error::InvalidCertificate(_)
                    | rustls::Error::NoCertificatesPresented
                    | rustls::Error::UnsupportedNameType
            );
        }
        // The cause of an I/O error is hidden from `source`: that begins one step further down.
        if let Some(inner) = e.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
            next = Some(inner);
            continue;
        }
        next = e.source();
    }
    false
}

/// `text` on one line, short, and without what we hold or what looks like a key.
pub(super) fn clean(text: &str, held: &[String]) -> String {
    let mut text = text.to_owned();
    for secret in held.iter().filter(|s| !s.is_empty()) {
        text = text.replace(secret.as_str(), "***");
    }
    let mut out = String::new();
    let mut run = String::new();
    let end_run = |run: &mut String, out: &mut String| {
        if run.len() >= KEY_LIKE {
            out.push_str("***")
        } else {
            out.push_str(run)
        }
        run.clear();
    };
    for c in text.chars() {
        if c.is_ascii_alphanumeric() || matches!(c, '+' | '=' | '_' | '%') {
            run.push(c);
            continue;
        }
        end_run(&mut run, &mut out);
        if c.is_control() { out.extend(c.escape_default()) } else { out.push(c) }
    }
    end_run(&mut run, &mut out);
    // What follows a question mark in an address may be a signature.
    let words: Vec<String> = out
        .split(' ')
        .map(|w| match w.split_once('?') {
            Some((address, _)) if address.contains("://") => format!("{address}?***"),
            _ => w.to_owned(),
        })
        .collect();
    let out = words.join(" ");
    if out.chars().count() <= LONGEST {
        return out;
    }
    let mut short: String = out.chars().take(LONGEST).collect();
    short.push('…');
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(status: u16, headless: bool, body: &str) -> Kind {
        Fault::of_answer(&Answer { status, headless, body: body.as_bytes() }, &[]).kind
    }

    fn error(code: &str, message: &str) -> String {
        format!(
            "<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>{message}</Message><RequestId>1</RequestId></Error>"
        )
    }

    #[test]
    fn only_what_means_absent_is_absent() {
        assert_eq!(judged(404, false, &error("NoSuchKey", "x")), Kind::Absent);
        assert_eq!(judged(404, true, ""), Kind::Absent);
        assert_eq!(judged(404, false, &error("NoSuchBucket", "x")), Kind::Refused(Refusal::NoPlace));
        assert_eq!(judged(404, false, "<html>not here</html>"), Kind::Refused(Refusal::NoPlace));
        assert_eq!(judged(404, false, ""), Kind::Refused(Refusal::NoPlace));
    }

    #[test]
    fn what_asking_again_may_mend_is_told_from_what_it_may_not() {
        for status in [408, 429, 500, 502, 503, 504] {
            assert_eq!(judged(status, false, ""), Kind::Passing, "{status}");
        }
        assert_eq!(judged(403, false, &error("SignatureDoesNotMatch", "x")), Kind::Refused(Refusal::Access));
        assert_eq!(judged(400, false, &error("ExpiredToken", "x")), Kind::Refused(Refusal::Access));
        assert_eq!(
            judged(403, false, &error("AccessDenied", "Storage cap exceeded.")),
            Kind::Refused(Refusal::Full)
        );
        assert_eq!(judged(507, false, ""), Kind::Refused(Refusal::Full));
        assert_eq!(judged(403, false, &error("InvalidObjectState", "x")), Kind::Frozen);
        assert_eq!(judged(301, false, &error("PermanentRedirect", "x")), Kind::Refused(Refusal::NoPlace));
    }

    #[test]
    fn the_text_is_short_on_one_line_and_without_keys() {
        let held = ["topsecret".to_owned()];
        let body = error(
            "AccessDenied",
            "no\nkey topsecret\u{1b}[31m sig 0123456789abcdef0123456789abcdef0123456789abcdef at https://h/b?X-Amz-Signature=12",
        );
        let fault = Fault::of_answer(&Answer { status: 403, headless: false, body: body.as_bytes() }, &held);
        assert_eq!(fault.text, "AccessDenied: no\\nkey ***\\u{1b}[31m sig *** at https://h/b?***");
        assert_eq!(clean(&"a ".repeat(1000), &[]).chars().count(), LONGEST + 1);
        let page = Answer { status: 502, headless: false, body: b"<html>topsecret</html>" };
        assert_eq!(Fault::of_answer(&page, &[]).text, "HTTP 502");
    }
}

//! A store that is named by a URL, for the day when no configuration is left. What could go wrong: a key in the URL ends
//! in the history of a shell and in the list of processes. So a URL that holds one is refused, and no message repeats it.

use std::path::{Path, PathBuf};

use super::bucket::{self, Bucket};
use super::credentials::Credentials;
use super::{Access, FsStore, HOSTS, MARKER, Store, StoreError, TOOLS, sftp};
use crate::cancel::Cancel;
use crate::config::nearest;
use crate::hint::Hint;
use crate::secret::SecretRef;

#[derive(Debug, thiserror::Error)]
pub enum UrlError {
    #[error("this is no URL of a store: {why}")]
    Bad { why: &'static str },
    #[error("the URL of a store must not hold a password or a key")]
    HoldsSecret,
    #[error("the URL has a parameter that {scheme} has not")]
    Parameter { scheme: &'static str, nearest: Option<&'static str>, known: &'static [&'static str] },
    #[error("no key for {scheme} is given")]
    NoKey { scheme: &'static str },
    #[error("cannot read the credentials in {}", path.display())]
    File {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("others can read the credentials in {}", path.display())]
    Open { path: PathBuf },
    #[error("{}: line {line} is not NAME = VALUE with a name that is known", path.display())]
    Line { path: PathBuf, line: usize },
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl UrlError {
    /// Whether the command line is wrong, and not the world.
    pub fn is_usage(&self) -> bool {
        !matches!(self, Self::Store(_) | Self::File { .. })
    }
}

impl Hint for UrlError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Bad { .. } => {
                "s3://BUCKET/PATH?endpoint=&region=, b2://BUCKET/PATH?region=, sftp://USER@HOST/PATH or file:///PATH".into()
            }
            Self::HoldsSecret => "give it by the environment or with --credentials FILE; change the one that was shown".into(),
            Self::Parameter { nearest: Some(near), .. } => format!("did you mean {near}?"),
            Self::Parameter { known: [], .. } => "it has no parameters".into(),
            Self::Parameter { known, .. } => format!("known: {}", known.join(", ")),
            Self::NoKey { scheme: "b2" } => {
                "set B2_APPLICATION_KEY_ID and B2_APPLICATION_KEY, or use --credentials FILE".into()
            }
            Self::NoKey { .. } => {
                "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or use --credentials FILE".into()
            }
            Self::Open { path } => format!("chmod 600 {}", path.display()),
            Self::Line { .. } => "names: key_id, key, session_token, ssh_key".into(),
            Self::Store(e) => return e.hint(),
            Self::File { .. } => return None,
        })
    }
}

/// A URL, taken apart.
struct Parts {
    user: Option<String>,
    host: String,
    /// Without the slash at its beginning.
    path: String,
    query: Vec<(String, String)>,
}

const BUCKET: &[&str] = &["endpoint", "region", "ca", "path_style"];
const SECRETS: &[&str] = &[
    "key",
    "key_id",
    "secret",
    "token",
    "password",
    "credential",
    "credentials",
    "signature",
    "access_key",
    "secret_key",
    "session_token",
];

/// The store at `url`, to be read: no marker is asked for. Whether machines share it is looked up there.
pub fn from_url(
    url: &str,
    credentials: &Credentials,
    access: &Access,
    cancel: &Cancel,
) -> Result<Box<dyn Store>, UrlError> {
    let (scheme, rest) = url.split_once("://").ok_or(UrlError::Bad { why: "it has no scheme" })?;
    let parts = take_apart(rest)?;
    match scheme {
        "s3" | "b2" => {
            let scheme = if scheme == "s3" { "s3" } else { "b2" };
            let store =
                |by_host| Ok(Box::new(bucket_of(scheme, &parts, credentials, by_host)?.store(access)) as _);
            shared_or_not(store, cancel)
        }
        "sftp" => shared_or_not(|by_host| sftp_of(&parts, credentials, access, by_host), cancel),
        "file" => {
            if !parts.host.is_empty() || parts.user.is_some() {
                return Err(UrlError::Bad { why: "a file has no host: file:///PATH" });
            }
            known(&parts, "file", &[])?;
            let path = PathBuf::from(format!("/{}", parts.path));
            let store = |by_host| {
                let store = FsStore::unmarked(Path::new(&path), &access.exe);
                Ok(Box::new(if by_host { store.shared() } else { store }) as _)
            };
            shared_or_not(store, cancel)
        }
        _ => Err(UrlError::Bad { why: "its scheme is none of s3, b2, sftp and file" }),
    }
}

/// Opens it as one that is shared where directories of machines are in it, else as one machine's own.
fn shared_or_not(
    store: impl Fn(bool) -> Result<Box<dyn Store>, UrlError>,
    cancel: &Cancel,
) -> Result<Box<dyn Store>, UrlError> {
    let shared = store(true)?;
    shared.reach(cancel)?;
    if is_shared(shared.as_ref(), cancel)? { Ok(shared) } else { store(false) }
}

/// Whether machines share it; an empty one may be.
fn is_shared(store: &dyn Store, cancel: &Cancel) -> Result<bool, StoreError> {
    if !store.dirs(HOSTS, cancel)?.is_empty() {
        return Ok(true);
    }
    // What all machines share says nothing of whose it is.
    let own = store.list("", cancel)?.iter().any(|o| o.name == MARKER)
        || store.dirs("", cancel)?.iter().any(|dir| dir != TOOLS);
    Ok(!own)
}

fn take_apart(rest: &str) -> Result<Parts, UrlError> {
    if rest.contains('#') {
        return Err(UrlError::Bad { why: "it has a fragment" });
    }
    let (main, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, path) = main.split_once('/').unwrap_or((main, ""));
    let (user, host) = match authority.rsplit_once('@') {
        Some((user, host)) => (Some(user), host),
        None => (None, authority),
    };
    if user.is_some_and(|u| u.contains(':')) {
        return Err(UrlError::HoldsSecret);
    }
    let text = |t: &str| decode(t).ok_or(UrlError::Bad { why: "its percent signs are wrong" });
    let mut pairs = Vec::new();
    for pair in query.split('&').filter(|p| !p.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let name = text(name)?;
        let plain = name.to_ascii_lowercase().replace('-', "_");
        if SECRETS.contains(&plain.as_str()) || plain.starts_with("x_amz_") {
            return Err(UrlError::HoldsSecret);
        }
        pairs.push((name, text(value)?));
    }
    Ok(Parts { user: user.map(text).transpose()?, host: text(host)?, path: text(path)?, query: pairs })
}

/// `%2F` and its like made plain.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        if *first == b'%' {
            let (code, tail) = tail.split_at_checked(2)?;
            bytes.push(hex::decode(code).ok()?[0]);
            rest = tail;
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    String::from_utf8(bytes).ok().filter(|t| !t.contains(char::is_control))
}

fn known(parts: &Parts, scheme: &'static str, known: &'static [&'static str]) -> Result<(), UrlError> {
    match parts.query.iter().find(|(name, _)| !known.contains(&name.as_str())) {
        // The name itself is not repeated: it may be a secret that was pasted in the wrong place.
        Some((name, _)) => {
            Err(UrlError::Parameter { scheme, nearest: nearest(name, known.iter().copied()), known })
        }
        None => Ok(()),
    }
}

fn bucket_of(
    scheme: &'static str,
    parts: &Parts,
    credentials: &Credentials,
    by_host: bool,
) -> Result<Bucket, UrlError> {
    if parts.user.is_some() {
        return Err(UrlError::HoldsSecret);
    }
    known(parts, scheme, BUCKET)?;
    let value =
        |name: &str| parts.query.iter().find(|(n, v)| n == name && !v.is_empty()).map(|(_, v)| v.clone());
    let bad = |why| UrlError::Bad { why };
    if !bucket::is_bucket(&parts.host) {
        return Err(bad("its bucket is no name of a bucket"));
    }
    let given = value("endpoint")
        .map(|e| bucket::endpoint(&e).ok_or(bad("its endpoint is no address")))
        .transpose()?;
    let region = value("region");
    if region.as_deref().is_some_and(|r| !bucket::is_region(r)) {
        return Err(bad("its region is no region"));
    }
    let endpoint = match (scheme, given, &region) {
        (_, Some(given), _) => Some(given),
        ("b2", None, Some(region)) => Some(bucket::b2_home(region)),
        (_, None, None) => return Err(bad("it needs ?region= or ?endpoint=")),
        _ => None,
    };
    let path_style = match value("path_style").as_deref() {
        None => endpoint.is_some(),
        Some("true") => true,
        Some("false") => false,
        Some(_) => return Err(bad("its path_style is neither true nor false")),
    };
    let ca = value("ca").map(PathBuf::from);
    if ca.as_ref().is_some_and(|ca| !ca.is_absolute()) {
        return Err(bad("its ca is no absolute path"));
    }
    let (Some(key_id), Some(key)) = (credentials.key_id.clone(), credentials.key.clone()) else {
        return Err(UrlError::NoKey { scheme });
    };
    Ok(Bucket {
        name: scheme.to_owned(),
        kind: scheme,
        bucket: parts.host.clone(),
        endpoint,
        region: region.unwrap_or_else(|| "us-east-1".to_owned()),
        prefix: bucket::prefix(&parts.path).ok_or(bad("its path climbs"))?,
        key_id,
        key,
        session_token: credentials.session_token.clone(),
        path_style,
        storage_class: None,
        sse: None,
        sse_kms_key: None,
        ca,
        part_bytes: bucket::PART,
        limit: None,
        by_host,
        marker: false,
    })
}

fn sftp_of(
    parts: &Parts,
    credentials: &Credentials,
    access: &Access,
    by_host: bool,
) -> Result<Box<dyn Store>, UrlError> {
    const KNOWN: &[&str] = &["known_hosts"];
    known(parts, "sftp", KNOWN)?;
    let bad = |why| UrlError::Bad { why };
    let (host, port) = match parts.host.rsplit_once(':') {
        Some((host, port)) => (host, port.parse().map_err(|_| bad("its port is no number"))?),
        None => (parts.host.as_str(), 22),
    };
    if !sftp::is_host(host) {
        return Err(bad("its host is no name of a host"));
    }
    if parts.user.as_deref().is_some_and(|u| !sftp::is_user(u)) {
        return Err(bad("its user is no name of a user"));
    }
    let known_hosts = parts.query.first().map(|(_, path)| PathBuf::from(path));
    if known_hosts.as_ref().is_some_and(|p| !p.is_absolute() || p.display().to_string().contains(['"', '%']))
    {
        return Err(bad("its known_hosts is no absolute path"));
    }
    // As in a shell: /~/ is the home of the user.
    let path = match parts.path.strip_prefix("~/") {
        Some(below_home) => below_home.to_owned(),
        None => format!("/{}", parts.path),
    };
    let settings = sftp::Settings {
        name: "sftp".to_owned(),
        host: host.to_owned(),
        port,
        user: parts.user.clone(),
        path: sftp::root(&path).ok_or(bad("its path climbs"))?,
        key: credentials.ssh_key.clone().map(SecretRef::File),
        known_hosts,
        ssh_config: None,
        part_bytes: bucket::PART,
        limit: None,
        by_host,
        marker: false,
    };
    Ok(sftp::store(settings, access))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::store::Key;
    use crate::vault::Vault;

    fn access(runtime: &tokio::runtime::Runtime) -> Access {
        let (exe, vault) = (PathBuf::from("/nonexistent"), Arc::new(Vault::default()));
        Access { exe, runtime: runtime.handle().clone(), vault }
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().build().unwrap()
    }

    /// Names with everything that a URL takes for something else.
    fn part() -> impl Strategy<Value = String> {
        let odd = prop::sample::select(vec![
            'a', 'Z', '7', '%', '?', '#', '&', '=', '+', ' ', ':', '@', '~', '*', 'é', '漢', '\\', '"', '\'',
        ]);
        prop::collection::vec(odd, 1..6)
            .prop_map(|c| c.into_iter().collect::<String>())
            .prop_filter("trimmed", |t| t.trim() == t.as_str() && t != "." && t != "..")
    }

    proptest! {
        #[test]
        fn the_url_of_a_kit_leads_to_the_same_bucket(
            scheme in prop::sample::select(vec!["s3", "b2"]),
            prefix in prop::collection::vec(part(), 0..3),
            endpoint in prop::option::of(prop::sample::select(vec!["https://s3.example.com", "http://127.0.0.1:9000", "https://[::1]:9000"])),
            path_style: bool,
            ca in prop::option::of(part()),
        ) {
            let region = "eu-central-003".to_owned();
            let endpoint = endpoint.map(str::to_owned);
            let b2 = scheme == "b2";
            let made = Bucket {
                name: "far".into(),
                kind: if b2 { "b2" } else { "s3" },
                bucket: "vault.of-mine".into(),
                endpoint: if b2 { endpoint.or_else(|| Some(bucket::b2_home(&region))) } else { endpoint },
                region,
                prefix: prefix.join("/"),
                path_style: path_style || b2,
                ca: ca.map(|c| PathBuf::from(format!("/etc/{c}"))),
                ..bucket("s3://x-y-z?region=a").unwrap()
            };
            let runtime = runtime();
            let store = made.clone().store(&access(&runtime));
            let kit = store.kit().unwrap();
            prop_assert!(!kit.url.contains("topsecret"), "{}", kit.url);
            prop_assert!(kit.url.is_ascii() && !kit.url.contains(['\'', '"', ' ', '\\']), "{}", kit.url);
            let read = bucket(&kit.url).unwrap();
            prop_assert_eq!(
                (&read.kind, &read.bucket, &read.endpoint, &read.region, &read.prefix, read.path_style, &read.ca),
                (&made.kind, &made.bucket, &made.endpoint, &made.region, &made.prefix, made.path_style, &made.ca)
            );
            prop_assert_eq!(read.store(&access(&runtime)).place(), store.place());
        }

        #[test]
        fn the_url_of_a_kit_leads_to_the_same_server(
            user in prop::option::of(prop::sample::select(vec!["tars", "a@b", "c:d", "e/f?g"])),
            host in prop::sample::select(vec!["nas.local", "127.0.0.1", "fe80::1%eth0"]),
            port in prop::sample::select(vec![22u16, 2222]),
            absolute: bool,
            path in prop::collection::vec(part(), 1..3),
            known in prop::option::of(prop::sample::select(vec!["/etc/known", "/etc/a b&c"])),
        ) {
            let runtime = runtime();
            let settings = sftp::Settings {
                name: "far".into(),
                host: host.into(),
                port,
                user: user.map(str::to_owned),
                path: format!("{}{}", if absolute { "/" } else { "" }, path.join("/")),
                key: None,
                known_hosts: known.map(PathBuf::from),
                ssh_config: None,
                part_bytes: 1,
                limit: None,
                by_host: true,
                marker: true,
            };
            let store = sftp::store(settings, &access(&runtime));
            let kit = store.kit().unwrap();
            let parts = take_apart(kit.url.strip_prefix("sftp://").unwrap()).unwrap();
            let read = sftp_of(&parts, &Credentials::default(), &access(&runtime), true).unwrap();
            prop_assert_eq!(read.place(), store.place());
            prop_assert_eq!(read.kit().unwrap(), kit);
        }

        #[test]
        fn the_url_of_a_kit_leads_to_the_same_directory(name in part()) {
            let dir = tempfile::tempdir().unwrap();
            let root = dir.path().join(name);
            std::fs::create_dir(&root).unwrap();
            let kit = FsStore::unmarked(&root, Path::new("/nonexistent")).kit().unwrap();
            let parts = take_apart(kit.url.strip_prefix("file://").unwrap()).unwrap();
            prop_assert_eq!(PathBuf::from(format!("/{}", parts.path)), root);
        }
    }

    #[test]
    fn tools_alone_make_no_directory_one_machines_own() {
        let dir = tempfile::tempdir().unwrap();
        let shared = |dir: &Path| {
            let store = FsStore::unmarked(dir, Path::new("/nonexistent"));
            is_shared(&store, &Cancel::default()).unwrap()
        };
        assert!(shared(dir.path()));
        std::fs::create_dir(dir.path().join("tools")).unwrap();
        assert!(shared(dir.path()));
        std::fs::create_dir(dir.path().join("daily")).unwrap();
        assert!(!shared(dir.path()));
        std::fs::create_dir_all(dir.path().join("hosts/a")).unwrap();
        assert!(shared(dir.path()));
    }

    fn bucket(url: &str) -> Result<Bucket, UrlError> {
        let (scheme, rest) = url.split_once("://").unwrap();
        let held = |v: &str| Some(Key::Held(v.to_owned()));
        let credentials =
            Credentials { key_id: held("id"), key: held("topsecret"), ..Credentials::default() };
        bucket_of(if scheme == "s3" { "s3" } else { "b2" }, &take_apart(rest)?, &credentials, true)
    }

    #[test]
    fn a_url_names_bucket_path_and_server() {
        let b = bucket("s3://vault/a/b%20c/?endpoint=http%3A%2F%2F127.0.0.1:9000&region=x").unwrap();
        assert_eq!((b.bucket.as_str(), b.prefix.as_str(), b.region.as_str()), ("vault", "a/b c", "x"));
        assert_eq!(b.endpoint.as_deref(), Some("http://127.0.0.1:9000"));
        let b = bucket("b2://vault?region=eu-central-003").unwrap();
        assert_eq!(b.endpoint.as_deref(), Some("https://s3.eu-central-003.backblazeb2.com"));
        assert!(bucket("s3://vault/x").is_err(), "neither region nor endpoint");
        assert!(bucket("s3://vault/../x?region=a").is_err());
    }

    #[test]
    fn a_secret_in_a_url_is_refused_and_not_repeated() {
        for url in [
            "s3://id:topsecret@vault/x?region=a",
            "s3://topsecret@vault/x?region=a",
            "s3://vault/x?region=a&key=topsecret",
            "s3://vault/x?region=a&Secret-Key=topsecret",
            "s3://vault/x?region=a&X-Amz-Signature=topsecret",
            "s3://vault/x?region=a&topsecret",
        ] {
            let error = bucket(url).unwrap_err();
            let text = format!("{error} {error:?} {:?}", error.hint());
            assert!(!text.contains("topsecret"), "{url}: {text}");
            assert!(error.is_usage());
        }
        assert!(matches!(bucket("s3://a:b@vault?region=a"), Err(UrlError::HoldsSecret)));
        let unknown = bucket("s3://vault/x?regoin=a").unwrap_err();
        assert_eq!(unknown.hint().as_deref(), Some("did you mean region?"));
    }
}

//! What every store promises, asked of every kind of store against real servers; and what object stores do when the
//! server, the line or the certificate is not what it should be.

#![allow(clippy::unwrap_used)]

#[path = "support/proxy.rs"]
mod proxy;
#[path = "support/servers.rs"]
mod servers;

use std::io::Read;
use std::time::Duration;

use proxy::{Act, Proxy};
use servers::{BUCKET, KEY, KEY_ID, Moto, S3Server, S3sFs, Sshd, TlsDoor, World, s3_keys};
use sha2::{Digest, Sha256};
use tars_backup::cancel::Cancel;
use tars_backup::exit::Signal;
use tars_backup::hint::chain;
use tars_backup::store::{
    self, Claim, Credentials, Object, Owner, Put, Refusal, Store, StoreError, UrlError, from_url,
};

/// More than two chunks, and not a multiple of anything.
const LARGE: usize = (20 << 20) + 12_345;

fn put(s: &dyn Store, object: &str, data: &[u8], how: Put) -> Result<(), StoreError> {
    s.put(object, &mut &data[..], data.len() as u64, how, &Cancel::default(), &|_| ())
}

fn get(s: &dyn Store, object: &str) -> Vec<u8> {
    let mut data = Vec::new();
    s.open(object, &Cancel::default()).unwrap().read_to_end(&mut data).unwrap();
    data
}

fn names(s: &dyn Store, dir: &str) -> Vec<String> {
    s.list(dir, &Cancel::default()).unwrap().into_iter().map(|o| o.name).collect()
}

fn dirs(s: &dyn Store, dir: &str) -> Vec<String> {
    s.dirs(dir, &Cancel::default()).unwrap()
}

/// Bytes that no compression and no mistake of a whole chunk leaves equal.
fn noise(length: usize) -> Vec<u8> {
    let mut data = Vec::with_capacity(length + 32);
    let mut seed = Sha256::digest(b"noise");
    while data.len() < length {
        data.extend_from_slice(&seed);
        seed = Sha256::digest(seed);
    }
    data.truncate(length);
    data
}

/// Data that raises a flag when half of it was read.
struct Stopping<'a> {
    rest: &'a [u8],
    at: usize,
    cancel: &'a Cancel,
}

impl Read for Stopping<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let n = self.rest.read(buf)?;
        if self.rest.len() <= self.at {
            self.cancel.request(Signal::Terminate);
        }
        Ok(n)
    }
}

/// Everything that `Store` promises. `many`: how many objects a long listing has.
fn contract(s: &dyn Store, many: usize) {
    let cancel = Cancel::default();
    s.create_root(&cancel).unwrap();
    s.reach(&cancel).unwrap();
    assert_eq!(names(s, ""), [""; 0]);
    assert_eq!(names(s, "daily"), [""; 0], "an absent directory is empty");
    assert_eq!(dirs(s, "daily/x"), [""; 0]);

    put(s, "daily/one", b"first", Put::New).unwrap();
    assert_eq!(get(s, "daily/one"), b"first");
    assert!(matches!(put(s, "daily/one", b"other", Put::New), Err(StoreError::Exists { .. })));
    assert_eq!(get(s, "daily/one"), b"first");
    put(s, "daily/one", b"changed", Put::Replace).unwrap();
    assert_eq!(get(s, "daily/one"), b"changed");

    // As long as it was said to be, or not at all.
    for (name, data, claimed) in [("short", &b"abc"[..], 4u64), ("long", b"abcde", 4)] {
        let object = format!("daily/{name}");
        let put = s.put(&object, &mut &data[..], claimed, Put::New, &cancel, &|_| ());
        assert!(matches!(put, Err(StoreError::Length { wanted: 4, .. })), "{put:?}");
    }
    assert_eq!(names(s, "daily"), ["one"]);

    put(s, "daily/empty", b"", Put::New).unwrap();
    assert_eq!(get(s, "daily/empty"), b"");

    let large = noise(LARGE);
    let moved = std::cell::Cell::new(0);
    s.put("daily/large.tar.gz", &mut &large[..], LARGE as u64, Put::New, &cancel, &|n| {
        moved.set(moved.get() + n)
    })
    .unwrap();
    assert_eq!(moved.get(), LARGE as u64);
    assert!(get(s, "daily/large.tar.gz") == large, "what was stored reads back equal");
    let cut = s.put("daily/cut.tar.gz", &mut &large[1..], LARGE as u64, Put::New, &cancel, &|_| ());
    assert!(matches!(cut, Err(StoreError::Length { .. })), "{cut:?}");

    // Names as we use them.
    let odd = "host%20a.%C3%A9_x+y@z=1~,(2)!";
    put(s, &format!("hosts/{odd}/daily/tars-backup_2026-11-21T02-00-00Z.tar.gz.p0001"), b"p", Put::New)
        .unwrap();
    assert_eq!(dirs(s, "hosts"), [odd]);
    assert_eq!(dirs(s, &format!("hosts/{odd}")), ["daily"]);
    assert_eq!(get(s, &format!("hosts/{odd}/daily/tars-backup_2026-11-21T02-00-00Z.tar.gz.p0001")), b"p");
    for bad in ["../x", "/x", "a//b", "a/./b", "", "a/../b"] {
        assert!(put(s, bad, b"x", Put::New).is_err(), "{bad:?}");
        assert!(s.open(bad, &cancel).is_err(), "{bad:?}");
    }

    // Only direct children, with their lengths.
    let listed = s.list("daily", &cancel).unwrap();
    let object = |name: &str, bytes: usize| Object { name: name.to_owned(), bytes: bytes as u64 };
    assert_eq!(listed, [object("empty", 0), object("large.tar.gz", LARGE), object("one", 7)]);
    assert_eq!(names(s, "dail"), [""; 0], "a directory is no beginning of a name");
    assert_eq!(dirs(s, ""), ["daily", "hosts"]);
    assert_eq!(dirs(s, "daily"), [""; 0]);

    assert!(s.open("daily/absent", &cancel).err().unwrap().is_not_found());
    assert!(s.open("absent/absent", &cancel).err().unwrap().is_not_found());
    s.delete("daily/one").unwrap();
    s.delete("daily/one").unwrap();
    s.delete("absent/absent").unwrap();
    assert!(s.open("daily/one", &cancel).err().unwrap().is_not_found());
    assert_eq!(names(s, "daily"), ["empty", "large.tar.gz"]);

    // Stopped in the middle, nothing is there.
    for length in [LARGE, 1 << 20] {
        let cancel = Cancel::default();
        let mut data = Stopping { rest: &large[..length], at: length / 2, cancel: &cancel };
        let stopped = s.put("daily/stopped.tar.gz", &mut data, length as u64, Put::New, &cancel, &|_| ());
        assert!(matches!(stopped, Err(StoreError::Interrupted(_))), "{stopped:?}");
    }
    assert_eq!(names(s, "daily"), ["empty", "large.tar.gz"]);
    assert_eq!(s.sweep("daily").unwrap(), [""; 0]);

    // More than a page.
    let mut wanted: Vec<String> = (0..many).map(|n| format!("n{n:05}")).collect();
    std::thread::scope(|threads| {
        for names in wanted.chunks(many.div_ceil(4)) {
            threads.spawn(move || {
                names.iter().for_each(|n| put(s, &format!("many/{n}"), n.as_bytes(), Put::Replace).unwrap())
            });
        }
    });
    wanted.sort();
    assert_eq!(names(s, "many"), wanted);
}

/// Two machines in one store do not see each other.
fn two_machines(s: &dyn Store) {
    assert!(s.by_host());
    let cancel = Cancel::default();
    let owner =
        |host: &str| Owner { machine_id: format!("id of {host}"), host: host.to_owned(), stack: None };
    let (a, b) = (owner("alpha"), owner("beta"));
    let now = "2026-11-21T02:00:00Z".parse().unwrap();
    for o in [&a, &b] {
        assert!(matches!(store::check_marker(s, o, &cancel), Err(StoreError::NoMarker { .. })));
        store::claim(s, o, Claim::Init, now, "# guide\n", &cancel).unwrap();
        store::check_marker(s, o, &cancel).unwrap();
        store::prove(s, o, "nonce", &cancel).unwrap();
    }
    assert!(matches!(store::claim(s, &a, Claim::Init, now, "x", &cancel), Err(StoreError::HasMarker { .. })));
    let stranger = Owner { machine_id: "another".into(), ..a.clone() };
    assert!(matches!(store::check_marker(s, &stranger, &cancel), Err(StoreError::ForeignMarker { .. })));
    let hosts = dirs(s, "hosts");
    assert!(hosts.contains(&"alpha".to_owned()) && hosts.contains(&"beta".to_owned()), "{hosts:?}");
    assert_eq!(names(s, "hosts/alpha"), ["tars-backup-store.json"]);
}

#[test]
fn memory_keeps_the_contract() {
    let world = World::new();
    let s = world.store("type = \"memory\"");
    contract(&*s, 1500);
    two_machines(&*s);
    // Another store of that place sees the same.
    let same = world.store("type = \"memory\"\npath = \"x\"");
    assert_eq!(names(&*same, "daily"), ["empty", "large.tar.gz"]);
}

#[test]
fn a_directory_keeps_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    let s = World::new().store(&format!("type = \"fs\"\npath = {:?}", dir.path().join("root")));
    contract(&*s, 1500);
}

#[test]
fn a_bucket_keeps_the_contract() {
    let (world, dir, server) = (World::new(), tempfile::tempdir().unwrap(), S3sFs::start());
    let s = world.store(&s3_keys(&world, dir.path(), &server.endpoint(), "path = \"a/b\""));
    contract(&*s, 1500);
    two_machines(&*s);
    assert!(server.bucket().join("a/b/daily/large.tar.gz").exists());
    // At the root of a bucket as well.
    server.add_bucket("other");
    let keys = s3_keys(&world, dir.path(), &server.endpoint(), "").replace(BUCKET, "other");
    contract(&*world.store(&keys), 5);
}

#[test]
fn a_bucket_of_another_make_keeps_the_contract() {
    let (world, dir, server) = (World::new(), tempfile::tempdir().unwrap(), Moto::start());
    let s = world.store(&s3_keys(&world, dir.path(), &server.endpoint(), "path = \"a/b\""));
    contract(&*s, 1500);
    two_machines(&*s);
    assert_eq!(server.unfinished(), 0, "an upload that did not end was not taken back");
}

/// A store whose server stands behind a proxy.
struct Behind {
    world: World,
    dir: tempfile::TempDir,
    server: S3sFs,
    proxy: Proxy,
    store: Box<dyn Store>,
}

impl Behind {
    fn start() -> Self {
        let (world, dir, server) = (World::new(), tempfile::tempdir().unwrap(), S3sFs::start());
        let proxy = Proxy::start(&server.endpoint());
        let store = world.store(&s3_keys(&world, dir.path(), &proxy.endpoint(), ""));
        Self { world, dir, server, proxy, store }
    }

    /// What each verb says while `act` is done to every request.
    fn all_verbs(&self) -> Vec<StoreError> {
        let (s, cancel) = (&*self.store, Cancel::default());
        vec![
            s.reach(&cancel).unwrap_err(),
            s.list("daily", &cancel).unwrap_err(),
            s.dirs("daily", &cancel).unwrap_err(),
            s.open("daily/x", &cancel).err().unwrap(),
            put(s, "daily/x", b"data", Put::Replace).unwrap_err(),
            s.delete("daily/x").unwrap_err(),
        ]
    }
}

#[track_caller]
fn refused(error: &StoreError, wanted: Refusal) {
    match error {
        StoreError::Refused { refusal, .. } => assert_eq!(*refusal, wanted, "{error}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_refused_is_asked_once_and_told_by_its_reason() {
    let b = Behind::start();
    let cases = [
        (403, "AccessDenied", Refusal::Access),
        (403, "SignatureDoesNotMatch", Refusal::Access),
        (400, "ExpiredToken", Refusal::Access),
        (404, "NoSuchBucket", Refusal::NoPlace),
        (301, "PermanentRedirect", Refusal::NoPlace),
        (507, "InsufficientStorage", Refusal::Full),
        (403, "QuotaExceeded", Refusal::Full),
        (400, "InvalidRequest", Refusal::Other),
    ];
    for (status, code, wanted) in cases {
        b.proxy.on(move |_| Act::error(status, code));
        for error in b.all_verbs() {
            refused(&error, wanted);
            assert!(error.to_string().contains(code), "{error}");
        }
        assert_eq!(b.proxy.count(|_| true), 6, "{code} was asked again");
    }
    b.proxy.on(|_| Act::Error {
        status: 403,
        code: "AccessDenied",
        message: "Storage cap exceeded. Please see the Caps & Alerts page".into(),
    });
    refused(&put(&*b.store, "x", b"1", Put::Replace).unwrap_err(), Refusal::Full);
}

#[test]
fn a_bucket_that_is_not_there_is_no_empty_store_and_no_absent_object() {
    let (world, dir) = (World::new(), tempfile::tempdir().unwrap());
    let (one, other) = (S3sFs::start(), Moto::start());
    for (server, makes_buckets) in [(&one as &dyn S3Server, true), (&other, false)] {
        let keys = s3_keys(&world, dir.path(), &server.endpoint(), "").replace(BUCKET, "nosuch");
        let s = world.store(&keys);
        for error in [
            s.list("", &Cancel::default()).unwrap_err(),
            s.dirs("hosts", &Cancel::default()).unwrap_err(),
            s.reach(&Cancel::default()).unwrap_err(),
            s.open("x", &Cancel::default()).err().unwrap(),
        ] {
            refused(&error, Refusal::NoPlace);
        }
        if !makes_buckets {
            refused(&put(&*s, "x", b"1", Put::New).unwrap_err(), Refusal::NoPlace);
            let large = noise(LARGE);
            refused(&put(&*s, "x", &large, Put::New).unwrap_err(), Refusal::NoPlace);
        }
    }
}

#[test]
fn a_wrong_key_is_told_as_such() {
    let (world, dir, server) = (World::new(), tempfile::tempdir().unwrap(), S3sFs::start());
    let s = world.store(&s3_keys(&world, dir.path(), &server.endpoint(), ""));
    std::fs::write(dir.path().join("key"), "wrong").unwrap();
    refused(&s.list("", &Cancel::default()).unwrap_err(), Refusal::Access);
    // Secrets are read when they are needed, and what is missing then has a hint.
    let late = world.store(&s3_keys(&world, dir.path(), &server.endpoint(), ""));
    std::fs::remove_file(dir.path().join("key")).unwrap();
    let error = late.reach(&Cancel::default()).unwrap_err();
    assert!(matches!(error, StoreError::Secret { .. }), "{error:?}");
}

#[test]
fn what_passes_is_asked_again_and_a_store_that_is_down_is_not_stormed() {
    let b = Behind::start();
    put(&*b.store, "daily/x", b"data", Put::New).unwrap();
    for status in [500, 503, 429] {
        // Every second request fails.
        b.proxy.on(move |seen| if seen.before % 2 == 0 { Act::error(status, "SlowDown") } else { Act::Pass });
        assert_eq!(names(&*b.store, "daily"), ["x"]);
        assert_eq!(get(&*b.store, "daily/x"), b"data");
        b.store.delete("daily/x").unwrap();
        put(&*b.store, "daily/x", b"data", Put::New).unwrap();
    }
    b.proxy.on(|_| Act::error(503, "ServiceUnavailable"));
    for error in b.all_verbs() {
        assert!(matches!(error, StoreError::Down { .. }), "{error:?}");
    }
    let asked = b.proxy.count(|_| true);
    assert!((6..=6 * 5).contains(&asked), "asked {asked} times");
    // A part that fails at first costs that part only.
    let large = noise(LARGE);
    b.proxy.on(
        |seen| if seen.is_part() && seen.before < 2 { Act::error(500, "InternalError") } else { Act::Pass },
    );
    put(&*b.store, "daily/large", &large, Put::New).unwrap();
    assert!(get(&*b.store, "daily/large") == large);
    assert!(b.proxy.received() < 2 * LARGE as u64 + (1 << 20), "{} bytes went up", b.proxy.received());
}

#[test]
fn nobody_listening_is_down() {
    let (world, dir) = (World::new(), tempfile::tempdir().unwrap());
    let endpoint = format!("http://{}", servers::free_port());
    let s = world.store(&s3_keys(&world, dir.path(), &endpoint, ""));
    let error = s.reach(&Cancel::default()).unwrap_err();
    assert!(matches!(error, StoreError::Down { .. }), "{error:?}");
    assert!(chain(&error).contains("refused"), "{}", chain(&error));
}

#[test]
fn an_answer_that_repeats_the_signature_is_not_repeated() {
    let b = Behind::start();
    b.proxy.on(|_| Act::EchoAuthorization);
    for error in b.all_verbs() {
        refused(&error, Refusal::Access);
        let text = format!("{} {error:?}", chain(&error));
        assert!(text.contains("AccessDenied"), "{text}");
        for secret in [KEY_ID, KEY, "Signature=0", "Signature=1"] {
            assert!(!text.contains(secret), "{text}");
        }
        let seen = b.proxy.seen();
        for request in &seen {
            let sent = request.header("authorization").unwrap();
            let signature = sent.rsplit('=').next().unwrap();
            assert!(signature.len() == 64 && !text.contains(signature), "{text}");
        }
    }
    b.proxy.on(|_| Act::Error {
        status: 403,
        code: "AccessDenied",
        message: format!("{KEY} \u{1b}[2J{}", "long ".repeat(500)),
    });
    let text = b.store.reach(&Cancel::default()).unwrap_err().to_string();
    assert!(!text.contains(KEY) && !text.contains('\u{1b}') && text.chars().count() < 400, "{text}");
}

#[test]
fn a_broken_download_goes_on_where_it_broke_off_or_is_an_error() {
    let b = Behind::start();
    let large = noise(LARGE);
    put(&*b.store, "daily/large", &large, Put::New).unwrap();
    b.proxy.on(|seen| if seen.before < 2 { Act::CutAnswer } else { Act::Pass });
    assert!(get(&*b.store, "daily/large") == large);
    assert_eq!(b.proxy.count(|_| true), 3);

    b.proxy.on(|seen| if seen.before == 0 { Act::CutAnswer } else { Act::error(404, "NoSuchKey") });
    let mut data = Vec::new();
    let broken = b.store.open("daily/large", &Cancel::default()).unwrap().read_to_end(&mut data);
    assert!(broken.is_err() && data.len() < LARGE, "a short object must not look whole");
    assert!(b.store.broken("daily/large", broken.unwrap_err()).is_not_found());

    // What the store said on the way is what is told, with its hint.
    for (code, wanted) in [("AccessDenied", Refusal::Access), ("InvalidObjectState", Refusal::Other)] {
        b.proxy.on(move |seen| if seen.before == 0 { Act::CutAnswer } else { Act::error(403, code) });
        let error = b.store.read_small("daily/large", &Cancel::default()).unwrap_err();
        refused(&error, wanted);
        let thaws = error.to_string().contains("aws s3api restore-object");
        assert_eq!(thaws, code == "InvalidObjectState", "{error}");
    }

    // Stopped while it is read.
    b.proxy.on(|_| Act::Pass);
    let cancel = Cancel::default();
    let mut reader = b.store.open("daily/large", &cancel).unwrap();
    reader.read_exact(&mut [0; 10]).unwrap();
    cancel.request(Signal::Interrupt);
    let stopped = reader.read_to_end(&mut Vec::new()).unwrap_err();
    assert!(matches!(b.store.broken("daily/large", stopped), StoreError::Interrupted(_)));
}

#[test]
fn a_server_that_asks_for_patience_gets_more_of_it_than_one_that_fails() {
    let b = Behind::start();
    b.proxy.on(|seen| if seen.before < 6 { Act::error(503, "SlowDown") } else { Act::Pass });
    assert_eq!(names(&*b.store, "daily"), [""; 0]);
    assert_eq!(b.proxy.count(|_| true), 7);
}

#[test]
fn an_upload_whose_answer_was_lost_is_not_told_as_failed() {
    let b = Behind::start();
    let large = noise(LARGE);
    b.proxy.on(|seen| if seen.is_completion() { Act::LoseAnswer } else { Act::Pass });
    put(&*b.store, "daily/large", &large, Put::New).unwrap();
    b.proxy.on(|seen| if seen.method == "PUT" { Act::LoseAnswer } else { Act::Pass });
    put(&*b.store, "daily/small", b"small", Put::New).unwrap();
    // The first completion worked and its answer was lost; the second finds no upload any more.
    b.proxy.on(|seen| {
        let begin = seen.target.contains("uploads");
        if !seen.is_completion() || begin {
            Act::Pass
        } else if seen.before < 2 {
            Act::LoseAnswer
        } else {
            Act::error(404, "NoSuchUpload")
        }
    });
    put(&*b.store, "daily/again", &large, Put::New).unwrap();
    b.proxy.on(|_| Act::Pass);
    assert!(get(&*b.store, "daily/large") == large && get(&*b.store, "daily/again") == large);
    assert_eq!(get(&*b.store, "daily/small"), b"small");
}

#[test]
fn a_server_that_says_stored_and_has_not_is_found_out() {
    let b = Behind::start();
    b.proxy.on(|seen| if seen.method == "PUT" { Act::Swallow } else { Act::Pass });
    let dropped = put(&*b.store, "daily/a", b"data", Put::New);
    assert!(matches!(dropped, Err(StoreError::ReadBack { .. })), "{dropped:?}");
    let file = b.server.bucket().join("daily/b");
    b.proxy.on(move |seen| {
        if seen.method == "HEAD" && file.exists() {
            std::fs::write(&file, "dat").unwrap();
        }
        Act::Pass
    });
    let short = put(&*b.store, "daily/b", b"data", Put::New);
    assert!(matches!(short, Err(StoreError::Length { wanted: 4, found: 3, .. })), "{short:?}");
    // What is as long and not the same is found by whoever reads it back.
    b.proxy.on(|seen| if seen.method == "PUT" { Act::Flip } else { Act::Pass });
    let turned = b.store.put_small("daily/c", b"data", Put::New);
    assert!(matches!(turned, Err(StoreError::ReadBack { .. })), "{turned:?}");
    b.proxy.on(|_| Act::Pass);
    assert_eq!(names(&*b.store, "daily"), ["c"]);
}

#[test]
fn an_upload_that_fails_is_taken_back() {
    let (world, dir, server) = (World::new(), tempfile::tempdir().unwrap(), Moto::start());
    let proxy = Proxy::start(&server.endpoint());
    let s = world.store(&s3_keys(&world, dir.path(), &proxy.endpoint(), ""));
    let large = noise(LARGE);
    proxy.on(
        |seen| if seen.is_part() && seen.before > 0 { Act::error(403, "AccessDenied") } else { Act::Pass },
    );
    refused(&put(&*s, "daily/large", &large, Put::New).unwrap_err(), Refusal::Access);
    proxy.on(|seen| if seen.is_part() { Act::CutRequest } else { Act::Pass });
    let down = put(&*s, "daily/large", &large, Put::New);
    assert!(matches!(down, Err(StoreError::Down { .. })), "{down:?}");
    proxy.on(|_| Act::Pass);
    assert_eq!(server.unfinished(), 0);
    assert_eq!(names(&*s, "daily"), [""; 0]);
}

#[test]
fn a_listing_that_is_not_whole_is_an_error() {
    let b = Behind::start();
    put(&*b.store, "daily/x", b"data", Put::New).unwrap();
    let pages = [
        "<html>welcome to this network</html>".to_owned(),
        String::new(),
        "<ListBucketResult><IsTruncated>true</IsTruncated><Contents><Key>daily/y</Key></Contents></ListBucketResult>".to_owned(),
        // It does not say whether it is all.
        "<ListBucketResult><Contents><Key>daily/y</Key></Contents></ListBucketResult>".to_owned(),
        "<ListBucketResult/>".to_owned(),
    ];
    for body in pages {
        b.proxy.on(move |_| Act::Answer { status: 200, body: body.clone() });
        assert!(b.store.list("daily", &Cancel::default()).is_err());
        assert!(b.store.reach(&Cancel::default()).is_err());
    }
    b.proxy.on(|_| Act::CutAnswer);
    assert!(b.store.list("daily", &Cancel::default()).is_err());
    // The same page for ever.
    b.proxy.on(|_| Act::Answer {
        status: 200,
        body: "<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>a/b=</NextContinuationToken>\
               <Contents><Key>daily/y</Key><LastModified>2026-11-21T02:00:00Z</LastModified><Size>1</Size></Contents>\
               </ListBucketResult>"
            .to_owned(),
    });
    refused(&b.store.list("daily", &Cancel::default()).unwrap_err(), Refusal::Other);
    assert_eq!(b.proxy.count(|_| true), 2);
    // A page that fails after good ones.
    for n in 0..1100 {
        std::fs::write(b.server.bucket().join("daily").join(format!("n{n}")), "x").unwrap();
    }
    b.proxy.on(|seen| {
        if seen.target.contains("continuation-token") { Act::error(403, "AccessDenied") } else { Act::Pass }
    });
    refused(&b.store.list("daily", &Cancel::default()).unwrap_err(), Refusal::Access);
    // Names that are not below the directory, or no names, are left out.
    b.proxy.on(|_| Act::Answer {
        status: 200,
        body: ["daily/good", "elsewhere", "daily/", "daily/a/b", "daily/../x", "daily/x&#10;y"]
            .map(|k| format!("<Contents><Key>{k}</Key><LastModified>2026-11-21T02:00:00Z</LastModified><Size>1</Size></Contents>"))
            .concat()
            .replacen("<Contents>", "<ListBucketResult><IsTruncated>false</IsTruncated><Contents>", 1)
            + "</ListBucketResult>",
    });
    assert_eq!(names(&*b.store, "daily"), ["good"]);
}

#[test]
fn a_frozen_object_is_told_with_the_command_that_thaws_it() {
    let b = Behind::start();
    b.proxy.on(|_| Act::error(403, "InvalidObjectState"));
    let error = b.store.open("monthly/a.tar.gz", &Cancel::default()).err().unwrap();
    refused(&error, Refusal::Other);
    assert!(error.to_string().contains("aws s3api restore-object"), "{error}");
    assert!(error.to_string().contains("--key monthly/a.tar.gz"), "{error}");
}

#[test]
fn a_stop_ends_a_wait_for_a_server_that_is_silent() {
    let b = Behind::start();
    b.proxy.on(|_| Act::Hang);
    let cancel = Cancel::default();
    std::thread::scope(|threads| {
        threads.spawn(|| {
            while b.proxy.count(|_| true) == 0 {
                std::thread::sleep(Duration::from_millis(10));
            }
            cancel.request(Signal::Terminate);
        });
        assert!(matches!(b.store.list("", &cancel), Err(StoreError::Interrupted(_))));
    });
}

#[test]
fn a_slow_server_is_waited_for() {
    let b = Behind::start();
    b.proxy.on(|_| Act::After(Duration::from_millis(1500)));
    put(&*b.store, "x", b"data", Put::New).unwrap();
    assert_eq!(b.proxy.count(|_| true), 3, "a look before, the data, a look afterwards");
}

#[test]
fn b2_is_asked_for_nothing_that_it_has_not() {
    let b = Behind::start();
    let keys = format!(
        "type = \"b2\"\nbucket = {BUCKET:?}\nregion = \"eu-central-003\"\nendpoint = {:?}\n{}",
        b.proxy.endpoint(),
        b.world.keys(b.dir.path())
    );
    let s = b.world.store(&keys);
    b.proxy.on(proxy::b2);
    contract(&*s, 20);
    two_machines(&*s);
    assert_eq!(b.proxy.count(|seen| !matches!(proxy::b2(seen), Act::Pass)), 0);
    assert!(b.proxy.count(|seen| seen.is_part()) > 0);
}

/// A deleted object of B2 is only hidden: it is gone for everybody who asks, and its name can be used again.
#[test]
fn what_b2_hides_is_gone() {
    let moto = Moto::start();
    moto.hides_what_is_deleted();
    let proxy = Proxy::start(&moto.endpoint());
    proxy.on(proxy::b2);
    let (world, dir) = (World::new(), tempfile::tempdir().unwrap());
    let keys = format!(
        "type = \"b2\"\nbucket = {BUCKET:?}\nregion = \"eu-central-003\"\nendpoint = {:?}\n{}",
        proxy.endpoint(),
        world.keys(dir.path())
    );
    let s = world.store(&keys);
    contract(&*s, 20);
    assert!(moto.hidden() > 0, "nothing was only hidden");
    put(&*s, "again", b"first", Put::New).unwrap();
    s.delete("again").unwrap();
    assert!(s.list("", &Cancel::default()).unwrap().iter().all(|o| o.name != "again"));
    put(&*s, "again", b"second", Put::New).unwrap();
    assert_eq!(s.read_small("again", &Cancel::default()).unwrap(), b"second");
}

#[test]
fn a_certificate_that_nobody_vouches_for_is_refused() {
    let (world, dir, server) = (World::new(), tempfile::tempdir().unwrap(), S3sFs::start());
    let door = TlsDoor::start(&server.endpoint(), "IP:127.0.0.1");
    let endpoint = format!("https://{}", door.address);
    let s = world.store(&s3_keys(&world, dir.path(), &endpoint, ""));
    refused(&s.reach(&Cancel::default()).unwrap_err(), Refusal::Identity);
    refused(&put(&*s, "x", b"data", Put::Replace).unwrap_err(), Refusal::Identity);

    let trusted = world.store(&s3_keys(&world, dir.path(), &endpoint, &format!("ca = {:?}", door.ca)));
    put(&*trusted, "x", b"data", Put::New).unwrap();
    assert_eq!(get(&*trusted, "x"), b"data");

    // Trusted, and for another name.
    let other = TlsDoor::start(&server.endpoint(), "DNS:elsewhere.example");
    let endpoint = format!("https://{}", other.address);
    let s = world.store(&s3_keys(&world, dir.path(), &endpoint, &format!("ca = {:?}", other.ca)));
    refused(&s.reach(&Cancel::default()).unwrap_err(), Refusal::Identity);
}

#[test]
fn two_stores_on_one_place_are_seen_however_they_are_written() {
    let world = World::new();
    let both = |a: &str, b: &str| {
        let keys = "key_id = { env = \"A\" }\nkey = { env = \"B\" }\n";
        world
            .read(&format!("type = \"s3\"\n{a}\n{keys}[stores.y]\ntype = \"s3\"\n{b}\n{keys}"))
            .map(|s| s.len())
    };
    let one = "bucket = \"vault\"\nendpoint = \"https://s3.example.com\"";
    for other in [
        one,
        "bucket = \"vault\"\nendpoint = \"https://S3.EXAMPLE.com:443/\"\npath = \"/a/\"",
        "bucket = \"vault\"\nendpoint = \"https://s3.example.com\"\npath = \"b/c\"",
    ] {
        let problems = both(one, other).unwrap_err();
        assert!(problems[0].contains("is or overlaps"), "{problems:?}");
    }
    assert_eq!(both(one, "bucket = \"vault2\"\nendpoint = \"https://s3.example.com\""), Ok(2));
    assert_eq!(
        both("bucket = \"vault\"\nregion = \"eu-west-1\"", "bucket = \"vault\"\nregion = \"eu-west-2\"")
            .unwrap_err()
            .len(),
        1
    );
}

#[test]
fn a_configuration_that_cannot_work_is_told_at_once() {
    let world = World::new();
    let keys = "key_id = { env = \"A\" }\nkey = { env = \"B\" }\n";
    let problems = |text: &str| world.read(&format!("{text}\n{keys}")).map(|_| ()).unwrap_err().join("\n");
    let s3 = "type = \"s3\"\nbucket = \"vault\"\nregion = \"eu-west-1\"\n";
    for (more, says) in [
        ("storage_class = \"DEEP_ARCHIVE\"", "lifecycle rule"),
        ("storage_class = \"GLACIER\"", "cannot be read back"),
        ("storage_class = \"COLD\"", "must be one of STANDARD"),
        ("sse = \"AES\"", "AES256 or aws:kms"),
        ("sse_kms_key = \"x\"", "needs sse"),
        ("part_size = \"1 MiB\"", "at least 5.0 MiB"),
        ("path = \"../x\"", "without . and .."),
        ("endpoint = \"https://user:pw@host\"", "must be an address"),
        ("buckt = \"x\"", "did you mean bucket?"),
    ] {
        let told = problems(&format!("{s3}{more}"));
        assert!(told.contains(says), "{more}: {told}");
    }
    assert!(problems("type = \"s3\"\nbucket = \"vault\"").contains("region: missing"));
    assert!(problems("type = \"b2\"\nbucket = \"vault\"").contains("region: missing"));
    let none =
        world.read("type = \"s3\"\nbucket = \"vault\"\nregion = \"x\"").map(|_| ()).unwrap_err().join("\n");
    assert!(none.contains("key_id: missing") && none.contains("key: missing"), "{none}");
}

#[test]
fn a_directory_on_another_server_keeps_the_contract() {
    use std::os::unix::fs::PermissionsExt;
    let (world, sshd) = (World::new(), Sshd::start());
    let s = world.store(&sshd.keys("new/place", "limit = \"1 GiB\""));
    // Not initialised: neither empty nor writable.
    refused(&s.list("daily", &Cancel::default()).unwrap_err(), Refusal::NoPlace);
    refused(&put(&*s, "daily/x", b"1", Put::New).unwrap_err(), Refusal::NoPlace);
    contract(&*s, 1500);
    two_machines(&*s);
    let root = sshd.root().join("new/place");
    let mode = |path: &str| std::fs::metadata(root.join(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("daily/large.tar.gz"), mode("daily"), mode("")), (0o600, 0o700, 0o700));
    assert!(s.free_bytes().unwrap().is_some_and(|free| free > 0));

    // What a killed run left is seen by nobody, and removed by the next.
    for left in [
        ".tars-backup-tmp-1-0-a.tar.gz",
        ".tars-backup-tmp-1-1-a.tar.gz.p0001",
        ".tars-backup-tmp-1-2-a.manifest.json",
        ".tars-backup-tmp-1-3-a.verified",
    ] {
        std::fs::write(root.join("daily").join(left), "half").unwrap();
    }
    assert_eq!(names(&*s, "daily"), ["empty", "large.tar.gz"]);
    assert_eq!(s.sweep("daily").unwrap().len(), 3);
    // That may be of a verify that goes on right now: it needs no lock.
    assert!(root.join("daily/.tars-backup-tmp-1-3-a.verified").exists());
}

#[test]
fn a_lost_ssh_connection_is_made_again() {
    let (world, sshd) = (World::new(), Sshd::start());
    let s = world.store(&sshd.keys("", ""));
    let large = noise(LARGE);
    put(&*s, "large", &large, Put::New).unwrap();
    assert!(sshd.cut() > 0);
    assert_eq!(names(&*s, ""), ["large"]);

    let mut reader = s.open("large", &Cancel::default()).unwrap();
    let mut data = vec![0; 1 << 20];
    reader.read_exact(&mut data).unwrap();
    assert!(sshd.cut() > 0);
    reader.read_to_end(&mut data).unwrap();
    assert!(data == large);

    // In the middle of an upload: told as such, nothing is seen, and the next one works.
    struct Cutting<'a>(&'a [u8], &'a Sshd, bool);
    impl Read for Cutting<'_> {
        fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
            if !self.2 && self.0.len() < LARGE / 2 {
                self.2 = true;
                assert!(self.1.cut() > 0);
            }
            self.0.read(buf)
        }
    }
    let mut cutting = Cutting(&large, &sshd, false);
    let lost = s.put("second", &mut cutting, LARGE as u64, Put::New, &Cancel::default(), &|_| ());
    assert!(matches!(lost, Err(StoreError::Down { .. })), "{lost:?}");
    assert_eq!(names(&*s, ""), ["large"]);
    assert_eq!(std::fs::read_dir(sshd.root()).unwrap().count(), 1, "something temporary was left");
    put(&*s, "second", &large, Put::New).unwrap();
    assert!(get(&*s, "second") == large);
}

/// Files of processes on this machine below `dir` that are open and have no name any more.
fn nameless(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let open = std::fs::read_dir("/proc").unwrap().flatten().map(|process| process.path().join("fd"));
    let files = open.filter_map(|fds| std::fs::read_dir(fds).ok()).flatten().flatten();
    files
        .filter_map(|fd| std::fs::read_link(fd.path()).ok())
        .filter(|to| to.starts_with(dir) && to.to_string_lossy().ends_with(" (deleted)"))
        .collect()
}

#[test]
fn an_upload_that_fails_over_ssh_keeps_no_room_there() {
    let (world, sshd) = (World::new(), Sshd::that_writes(1000));
    let s = world.store(&sshd.keys("", ""));
    refused(&put(&*s, "large", &noise(LARGE), Put::New).unwrap_err(), Refusal::Other);
    put(&*s, "small", b"data", Put::New).unwrap();
    assert_eq!(std::fs::read_dir(sshd.root()).unwrap().count(), 1, "something temporary was left");
    // A server that was left ends in its own time.
    let end = std::time::Instant::now() + Duration::from_secs(30);
    while !nameless(&sshd.root()).is_empty() {
        assert!(std::time::Instant::now() < end, "{:?}", nameless(&sshd.root()));
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(get(&*s, "small"), b"data");
}

#[test]
fn an_ssh_server_of_another_make_shows_all_that_it_has_or_fails() {
    let world = World::new();
    let with = |oddity: &str| {
        let sshd = Sshd::odd(oddity);
        std::fs::create_dir(sshd.root().join("daily")).unwrap();
        std::fs::write(sshd.root().join("daily/old"), "older").unwrap();
        (world.store(&sshd.keys("", "")), sshd)
    };
    let cancel = Cancel::default();
    for oddity in ["terse", "modeless"] {
        let (s, _sshd) = with(oddity);
        let listed = s.list("daily", &cancel).unwrap();
        assert_eq!(listed, [Object { name: "old".into(), bytes: 5 }], "{oddity}");
        assert_eq!(dirs(&*s, ""), ["daily"]);
        put(&*s, "daily/new", b"data", Put::New).unwrap();
        assert!(matches!(put(&*s, "daily/new", b"data", Put::New), Err(StoreError::Exists { .. })));
        assert_eq!(get(&*s, "daily/new"), b"data");
    }
    for oddity in ["mute", "endless"] {
        let (s, _sshd) = with(oddity);
        refused(&s.list("daily", &cancel).unwrap_err(), Refusal::Other);
    }
    let (s, _sshd) = with("remote");
    let down = s.list("daily", &cancel);
    assert!(matches!(down, Err(StoreError::Down { .. })), "{down:?}");
}

#[test]
fn an_ssh_server_that_is_not_the_known_one_or_knows_us_not_is_refused() {
    let (world, sshd) = (World::new(), Sshd::start());
    let with = |from: &str, to: &str| {
        let from = format!("{:?}", sshd.file(from));
        let keys = sshd.keys("", "").replace(&from, &format!("{:?}", sshd.file(to)));
        world.store(&keys).reach(&Cancel::default())
    };
    with("user", "user").unwrap();
    for hosts in ["no_hosts", "changed_hosts"] {
        let error = with("known_hosts", hosts).unwrap_err();
        refused(&error, Refusal::Identity);
        assert!(error.to_string().contains(&format!("ssh-keyscan -p {} 127.0.0.1", sshd.port())), "{error}");
    }
    refused(&with("user", "other").unwrap_err(), Refusal::Access);
    refused(&with("user", "absent").unwrap_err(), Refusal::Access);

    // A key that is a secret of its own, not a file of ssh: nothing of it is left.
    let reference = format!("key = {{ file = {:?} }}", sshd.file("user"));
    let name = format!("tars-backup-test-{}", std::process::id());
    let credential = std::path::Path::new("/run/credstore").join(&name);
    std::fs::create_dir_all("/run/credstore").unwrap();
    std::fs::copy(sshd.file("user"), &credential).unwrap();
    let keys = sshd.keys("", "").replace(&reference, &format!("key = {{ credential = {name:?} }}"));
    let reached = world.store(&keys).reach(&Cancel::default());
    std::fs::remove_file(&credential).unwrap();
    reached.unwrap();
    for dir in ["/run", "/dev/shm", "/tmp"] {
        for entry in std::fs::read_dir(dir).unwrap().flatten() {
            let left = entry.file_name().to_string_lossy().starts_with("tars-backup-key-");
            assert!(!left, "{:?}", entry.path());
        }
    }

    let keys = sshd.keys("", "").replace(&reference, "key = { env = \"TARS_BACKUP_TEST_NO_SUCH_KEY\" }");
    let error = world.store(&keys).reach(&Cancel::default()).unwrap_err();
    assert!(matches!(error, StoreError::Secret { .. }), "{error:?}");
    // Nobody there.
    let port = format!("port = {}", sshd.port());
    let free = format!("port = {}", servers::free_port().port());
    let error = world.store(&sshd.keys("", "").replace(&port, &free)).reach(&Cancel::default()).unwrap_err();
    assert!(matches!(error, StoreError::Down { .. }), "{error:?}");
}

#[test]
fn a_stop_ends_an_ssh_that_waits() {
    // Accepts and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (world, sshd) = (World::new(), Sshd::start());
    let here = format!("port = {}", sshd.port());
    let there = format!("port = {}", silent.local_addr().unwrap().port());
    let s = world.store(&sshd.keys("", "").replace(&here, &there));
    let cancel = Cancel::default();
    std::thread::scope(|threads| {
        threads.spawn(|| {
            let _open = silent.accept().unwrap();
            cancel.request(Signal::Terminate);
        });
        assert!(matches!(s.reach(&cancel), Err(StoreError::Interrupted(_))));
    });
}

#[test]
fn a_url_opens_the_store_of_a_machine_that_is_gone() {
    let (world, dir, server, sshd) =
        (World::new(), tempfile::tempdir().unwrap(), S3sFs::start(), Sshd::start());
    let owner = Owner { machine_id: "id".into(), host: "home".into(), stack: None };
    let now = "2026-11-21T02:00:00Z".parse().unwrap();
    let cancel = Cancel::default();
    let keys = dir.path().join("keys");
    std::fs::write(
        &keys,
        format!("key_id = {KEY_ID}\nkey = {KEY}\nssh_key = {}\n", sshd.file("user").display()),
    )
    .unwrap();
    std::fs::set_permissions(&keys, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let credentials = Credentials::from_file(&keys).unwrap();
    let open = |url: &str| from_url(url, &credentials, &world.access, &cancel);

    let claim = |s: &dyn Store| {
        store::claim(s, &owner, Claim::Init, now, "guide", &cancel).unwrap();
        put(s, &store::tier_dir(s, "home", "daily/a"), b"data", Put::New).unwrap();
    };
    claim(&*world.store(&s3_keys(&world, dir.path(), &server.endpoint(), "path = \"shared\"")));
    claim(&*world.store(&s3_keys(&world, dir.path(), &server.endpoint(), "path = \"own\"\nhosts = false")));
    claim(&*world.store(&sshd.keys("shared", "")));
    claim(&*world.store(&format!("type = \"fs\"\npath = {:?}", dir.path().join("nas"))));
    let (endpoint, user, port, root) = (server.endpoint(), Sshd::user(), sshd.port(), sshd.root());
    let hosts = sshd.file("known_hosts");
    for (url, by_host) in [
        (format!("s3://{BUCKET}/shared?endpoint={endpoint}"), true),
        (format!("s3://{BUCKET}/own/?endpoint={endpoint}&region=us-east-1"), false),
        (format!("b2://{BUCKET}/shared?endpoint={endpoint}&region=x"), true),
        (
            format!(
                "sftp://{user}@127.0.0.1:{port}{}/shared?known_hosts={}",
                root.display(),
                hosts.display()
            ),
            true,
        ),
        (format!("file://{}/nas", dir.path().display()), false),
        (format!("file://{}/shared", server.bucket().display()), true),
    ] {
        let s = open(&url).unwrap_or_else(|e| panic!("{url}: {}", chain(&e)));
        assert_eq!(s.by_host(), by_host, "{url}");
        assert!(!s.needs_marker());
        assert_eq!(get(&*s, &store::tier_dir(&*s, "home", "daily/a")), b"data", "{url}");
    }
    assert!(matches!(open(&format!("s3://nosuch/x?endpoint={endpoint}")), Err(UrlError::Store(_))));
    assert!(matches!(
        from_url(
            &format!("s3://{BUCKET}?endpoint={endpoint}"),
            &Credentials::default(),
            &world.access,
            &cancel
        ),
        Err(UrlError::NoKey { .. })
    ));
}

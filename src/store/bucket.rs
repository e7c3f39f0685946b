//! A bucket on a server that speaks S3: what its kinds have in common. What could go wrong: a key that is taken from
//! somewhere else than the configuration says, and a second spelling of one place. So opendal looks nowhere for keys,
//! they are read from where they are kept when they are first needed, and one place has one name.

use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;

use opendal::services::S3;
use opendal::{HttpTransporter, OperationContext, Operator};

use super::credentials::Key;
use super::fault::clean;
use super::http::{self, Transport};
use super::kit::{CA, Kit, in_path, in_value};
use super::pace::Pace;
use super::remote::Remote;
use super::{Access, Refusal, StoreError};
use crate::config::Section;
use crate::secret::SecretRef;
use crate::vault::Vault;

/// Length of a part where nobody says another.
pub(super) const PART: u64 = 128 << 20;
/// Smallest part that S3 takes.
const LEAST_PART: u64 = 5 << 20;

#[derive(Debug, Clone)]
pub(super) struct Bucket {
    /// Name of the store.
    pub name: String,
    pub kind: &'static str,
    pub bucket: String,
    /// None: that of Amazon for the region.
    pub endpoint: Option<String>,
    pub region: String,
    pub prefix: String,
    pub key_id: Key,
    pub key: Key,
    pub session_token: Option<Key>,
    pub path_style: bool,
    pub storage_class: Option<&'static str>,
    pub sse: Option<&'static str>,
    pub sse_kms_key: Option<String>,
    /// Trusted beside what the system trusts.
    pub ca: Option<PathBuf>,
    pub part_bytes: u64,
    pub limit: Option<u64>,
    pub by_host: bool,
    pub marker: bool,
}

/// What every kind asks in the same words.
pub(super) struct Common {
    pub bucket: String,
    pub prefix: String,
    pub key_id: Key,
    pub key: Key,
    pub ca: Option<PathBuf>,
    pub part_bytes: u64,
    pub limit: Option<u64>,
    pub by_host: bool,
}

impl Common {
    pub fn read(s: &Section<'_>) -> Self {
        let bucket = s.required("bucket", "Name of the bucket; it must exist");
        if !bucket.is_empty() && !is_bucket(&bucket) {
            s.problem("bucket", "is no name of a bucket: 3 to 63 letters, digits, dots and hyphens", None);
        }
        let path = s.text_or("path", "", "Directory in the bucket below which everything lies");
        let prefix = prefix(&path).unwrap_or_else(|| {
            s.problem("path", "must be names with / between them, without . and ..", None);
            String::new()
        });
        let key = |name: &'static str, about: &'static str| {
            let given = s.secret(name, about);
            if given.is_none() && s.is_present() && !s.has(name) {
                let hint = format!("add {name} = {{ credential = \"…\" }}: {about}");
                s.problem(name, "missing", Some(hint));
            }
            Key::Reference(given.unwrap_or_else(|| SecretRef::Credential(name.to_owned())))
        };
        Self {
            bucket,
            prefix,
            key_id: key("key_id", "Reference to the id of the access key"),
            key: key("key", "Reference to the secret part of the access key"),
            ca: s.path_of("ca", "PEM file of a certificate authority to trust beside those of the system"),
            part_bytes: s.size_or(
                "part_size",
                "128 MiB",
                LEAST_PART,
                "Archives that are longer go up in parts of this size, each of which survives an interruption",
            ),
            limit: s.size("limit", 1024, "Most bytes per second that go up"),
            by_host: s.flag("hosts", true, "Keep each machine below hosts/NAME, so that several share the store"),
        }
    }
}

pub(super) fn is_bucket(name: &str) -> bool {
    (3..=63).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_".contains(&b))
}

pub(super) fn is_region(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
}

/// Where Backblaze speaks S3.
pub(super) fn b2_home(region: &str) -> String {
    format!("https://s3.{region}.backblazeb2.com")
}

/// Where Amazon has the buckets of a region.
fn amazon(region: &str) -> String {
    format!("https://s3.{region}.amazonaws.com")
}

/// A directory in one spelling; None where it climbs or is odd.
pub(super) fn prefix(path: &str) -> Option<String> {
    let path = path.trim_matches('/');
    let odd = |part: &str| {
        part.is_empty()
            || part == "."
            || part == ".."
            || part.trim() != part
            || part.contains(char::is_control)
    };
    (path.is_empty() || !path.split('/').any(odd)).then(|| path.to_owned())
}

/// An endpoint in one spelling; None where it is none, or holds more than an address.
pub(super) fn endpoint(text: &str) -> Option<String> {
    let url = reqwest::Url::parse(text).ok()?;
    let plain = matches!(url.scheme(), "http" | "https")
        && url.has_host()
        && url.username().is_empty()
        && url.password().is_none()
        && url.query().is_none()
        && url.fragment().is_none()
        && url.path().trim_matches('/').is_empty();
    plain.then(|| url.as_str().trim_end_matches('/').to_owned())
}

impl Bucket {
    pub fn store(self, access: &Access) -> Remote {
        let endpoint = self.endpoint.clone().unwrap_or_else(|| amazon(&self.region));
        let inside = if self.prefix.is_empty() {
            self.bucket.clone()
        } else {
            format!("{}/{}", self.bucket, self.prefix)
        };
        // Names of buckets are unique in all regions of Amazon.
        let at = if endpoint.ends_with(".amazonaws.com") { "https://s3.amazonaws.com" } else { &endpoint };
        let (runtime, vault) = (access.runtime.clone(), access.vault.clone());
        Remote {
            name: self.name.clone(),
            location: format!("{} {inside} at {endpoint}", self.kind),
            place: format!("{at}/{inside}"),
            prefix: self.prefix.clone(),
            offsite: true,
            by_host: self.by_host,
            marker: self.marker,
            part_bytes: Some(self.part_bytes),
            pace: self.limit.map(Pace::new),
            runtime,
            operator: OnceLock::new(),
            there: AtomicBool::new(false),
            thaw,
            kit: Some(self.kit()),
            connect: Box::new(move || self.connect(&endpoint, &vault)),
        }
    }

    /// The bucket as any program that speaks https sees it.
    fn web(&self) -> String {
        let endpoint = self.endpoint.clone().unwrap_or_else(|| amazon(&self.region));
        match endpoint.split_once("://") {
            Some((scheme, server)) if !self.path_style => format!("{scheme}://{}.{server}", self.bucket),
            _ => format!("{endpoint}/{}", self.bucket),
        }
    }

    fn kit(&self) -> Kit {
        let mut query = vec![("region", self.region.clone())];
        // Where Backblaze is follows from the region.
        let home = (self.kind == "b2").then(|| b2_home(&self.region));
        query.extend(self.endpoint.clone().filter(|e| Some(e) != home.as_ref()).map(|e| ("endpoint", e)));
        if self.path_style != self.endpoint.is_some() {
            query.push(("path_style", self.path_style.to_string()));
        }
        query.extend(self.ca.iter().map(|ca| ("ca", ca.display().to_string())));
        let query: Vec<String> = query.iter().map(|(n, v)| format!("{n}={}", in_value(v))).collect();
        let path = if self.prefix.is_empty() { String::new() } else { format!("/{}", in_path(&self.prefix)) };
        let endpoint = self.endpoint.clone().unwrap_or_else(|| amazon(&self.region));
        let mut facts =
            vec![("endpoint", endpoint), ("region", self.region.clone()), ("bucket", self.bucket.clone())];
        if !self.prefix.is_empty() {
            facts.push(("path", self.prefix.clone()));
        }
        let mut keys = vec![("key_id", self.key_id.clone()), ("key", self.key.clone())];
        keys.extend(self.session_token.clone().map(|t| ("session_token", t)));
        let passing = "the token ends some day: make a key that does not".to_owned();
        Kit {
            url: format!("{}://{}{path}?{}", self.kind, self.bucket, query.join("&")),
            facts,
            keys,
            files: self.ca.iter().map(|ca| (CA, ca.clone())).collect(),
            web: Some((format!("{}{path}", self.web()), self.region.clone())),
            mount: None,
            notes: self.session_token.as_ref().map(|_| passing).into_iter().collect(),
        }
    }

    fn connect(&self, endpoint: &str, vault: &Vault) -> Result<Operator, StoreError> {
        let secret = |label: &str, key: &Key| {
            key.read(label, vault).map_err(|source| StoreError::Secret { store: self.name.clone(), source })
        };
        let key_id = secret("key_id", &self.key_id)?;
        let key = secret("key", &self.key)?;
        let token = self.session_token.as_ref().map(|t| secret("session_token", t)).transpose()?;
        let ca = self.trusted()?;

        let unusable = |why: String| StoreError::Refused {
            store: self.name.clone(),
            action: "use",
            object: "its settings".to_owned(),
            refusal: Refusal::Other,
            why,
        };
        let mut held = vec![key.clone(), key_id.clone()];
        held.extend(token.clone());
        let client =
            http::client(endpoint, &ca).map_err(|e| unusable(clean(&crate::hint::chain(&e), &held)))?;
        let mut service = S3::default()
            .root("/")
            .bucket(&self.bucket)
            .endpoint(endpoint)
            .region(&self.region)
            .access_key_id(&key_id)
            .secret_access_key(&key)
            .disable_config_load()
            .disable_ec2_metadata();
        if let Some(token) = &token {
            service = service.session_token(token);
        }
        if !self.path_style {
            service = service.enable_virtual_host_style();
        }
        if let Some(class) = self.storage_class {
            service = service.default_storage_class(class);
        }
        if let Some(sse) = self.sse {
            service = service.server_side_encryption(sse);
        }
        if let Some(id) = &self.sse_kms_key {
            service = service.server_side_encryption_aws_kms_key_id(id);
        }
        let operator = Operator::new(service).map_err(|e| unusable(clean(e.message(), &held)))?;
        let context =
            OperationContext::new().with_http_transport(HttpTransporter::new(Transport::new(client, held)));
        Ok(operator.with_context(context))
    }

    fn trusted(&self) -> Result<Vec<reqwest::Certificate>, StoreError> {
        let Some(path) = &self.ca else { return Ok(Vec::new()) };
        let fail = |source| StoreError::Io {
            store: self.name.clone(),
            action: "read",
            object: format!("the certificates of {}", path.display()),
            source,
        };
        let text = std::fs::read(path).map_err(fail)?;
        let found =
            reqwest::Certificate::from_pem_bundle(&text).map_err(|e| fail(std::io::Error::other(e)))?;
        if found.is_empty() {
            return Err(fail(std::io::Error::other("no certificate is in it")));
        }
        Ok(found)
    }
}

/// How to get at an object that lies in Glacier.
fn thaw(place: &str, key: &str) -> String {
    let parts: Vec<&str> = place.splitn(5, '/').collect();
    let (endpoint, bucket) =
        (parts.get(..3).map(|p| p.join("/")).unwrap_or_default(), parts.get(3).unwrap_or(&""));
    let other = if endpoint.ends_with("amazonaws.com") {
        String::new()
    } else {
        format!(" --endpoint-url {endpoint}")
    };
    format!(
        "it has to be thawed first, which takes hours: aws s3api restore-object{other} --bucket {bucket} --key {key} --restore-request Days=7"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_place_has_one_spelling() {
        assert_eq!(prefix("/a/b/"), Some("a/b".to_owned()));
        assert_eq!(prefix(""), Some(String::new()));
        for bad in ["a//b", "../x", "a/./b", "a / b", "a\n"] {
            assert_eq!(prefix(bad), None, "{bad:?}");
        }
        assert_eq!(endpoint("HTTPS://S3.Example.COM:443/").as_deref(), Some("https://s3.example.com"));
        for bad in ["s3.example.com", "https://u:p@h", "https://h/x", "https://h?a=b", "ftp://h"] {
            assert_eq!(endpoint(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn the_thaw_command_names_bucket_and_key() {
        assert!(
            thaw("https://s3.amazonaws.com/vault/home", "home/monthly/a.tar.gz").ends_with(
                "restore-object --bucket vault --key home/monthly/a.tar.gz --restore-request Days=7"
            )
        );
        assert!(
            thaw("http://127.0.0.1:9/vault", "a")
                .contains("--endpoint-url http://127.0.0.1:9 --bucket vault")
        );
    }
}

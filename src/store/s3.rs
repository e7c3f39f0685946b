//! A bucket of Amazon, or of any server that speaks S3. What could go wrong: a storage class from which nothing can be
//! read when it is needed. So only those are taken that answer at once.

use super::bucket::{Bucket, Common, endpoint, is_region};
use super::credentials::Key;
use super::{Access, Store};
use crate::config::Section;

const CLASSES: [&str; 6] =
    ["STANDARD", "STANDARD_IA", "ONEZONE_IA", "INTELLIGENT_TIERING", "GLACIER_IR", "REDUCED_REDUNDANCY"];
const FROZEN: [&str; 2] = ["GLACIER", "DEEP_ARCHIVE"];

pub(super) fn read(name: &str, s: &Section<'_>, access: &Access) -> Box<dyn Store> {
    let common = Common::read(s);
    let given = s.text("endpoint", "URL of the server; default: that of Amazon for the region");
    let address = given.as_deref().and_then(endpoint);
    if given.is_some() && address.is_none() {
        s.problem("endpoint", "must be an address such as https://s3.example.com, without path", None);
    }
    let region = s.text("region", "Region of the bucket; default where an endpoint is set: us-east-1");
    if region.is_none() && given.is_none() && s.is_present() {
        s.problem("region", "missing", Some("add region = \"…\", or the endpoint of another server".into()));
    }
    if region.as_deref().is_some_and(|r| !is_region(r)) {
        s.problem("region", "is no region, such as eu-central-1", None);
    }
    let path_style = s.flag(
        "path_style",
        given.is_some(),
        "Name the bucket in the path instead of the host name; default: true where an endpoint is set",
    );
    let class = s.text("storage_class", "Storage class of what is written; default: that of the bucket");
    let storage_class = class.as_deref().and_then(|c| CLASSES.into_iter().find(|known| *known == c));
    if let Some(class) = class.as_deref().filter(|_| storage_class.is_none()) {
        if FROZEN.contains(&class) {
            let hint = "use a lifecycle rule of the bucket that moves only archives (*.tar.gz*), not the small files beside them";
            s.problem(
                "storage_class",
                format!("what lies in {class} cannot be read back to be checked"),
                Some(hint.into()),
            );
        } else {
            s.problem("storage_class", format!("must be one of {}", CLASSES.join(", ")), None);
        }
    }
    let sse = s.text("sse", "Encryption by the server: AES256 or aws:kms; default: as the bucket does");
    let known = sse.as_deref().and_then(|sse| ["AES256", "aws:kms"].into_iter().find(|known| *known == sse));
    if sse.is_some() && known.is_none() {
        s.problem("sse", "must be AES256 or aws:kms", None);
    }
    let sse_kms_key = s.text("sse_kms_key", "Key of KMS to encrypt with; needs sse = \"aws:kms\"");
    if sse_kms_key.is_some() && known != Some("aws:kms") {
        s.problem("sse_kms_key", "needs sse = \"aws:kms\"", None);
    }
    let session_token =
        s.secret("session_token", "Reference to the token of a temporary key").map(Key::Reference);
    let bucket = Bucket {
        name: name.to_owned(),
        kind: "s3",
        bucket: common.bucket,
        endpoint: address,
        region: region.unwrap_or_else(|| "us-east-1".to_owned()),
        prefix: common.prefix,
        key_id: common.key_id,
        key: common.key,
        session_token,
        path_style,
        storage_class,
        sse: known,
        sse_kms_key,
        ca: common.ca,
        part_bytes: common.part_bytes,
        limit: common.limit,
        by_host: common.by_host,
        marker: true,
    };
    Box::new(bucket.store(access))
}

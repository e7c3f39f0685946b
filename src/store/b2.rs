//! A bucket of Backblaze B2, through its S3-compatible endpoint. What could go wrong: what S3 has and B2 has not. So no
//! checksum header and no condition is sent, and what is deleted there is only hidden until a lifecycle rule removes it.

use super::bucket::{Bucket, Common, b2_home, endpoint, is_region};
use super::{Access, Store};
use crate::config::Section;

pub(super) fn read(name: &str, s: &Section<'_>, access: &Access) -> Box<dyn Store> {
    let common = Common::read(s);
    let region = s.required("region", "Region of the bucket, such as eu-central-003");
    if !region.is_empty() && !is_region(&region) {
        s.problem("region", "is no region, such as eu-central-003", None);
    }
    let given = s.text("endpoint", "URL of the server; default: that of Backblaze for the region");
    let address = given.as_deref().and_then(endpoint);
    if given.is_some() && address.is_none() {
        s.problem("endpoint", "must be an address such as https://s3.eu-central-003.backblazeb2.com", None);
    }
    let bucket = Bucket {
        name: name.to_owned(),
        kind: "b2",
        bucket: common.bucket,
        endpoint: Some(address.unwrap_or_else(|| b2_home(&region))),
        region,
        prefix: common.prefix,
        key_id: common.key_id,
        key: common.key,
        session_token: None,
        path_style: true,
        storage_class: None,
        sse: None,
        sse_kms_key: None,
        ca: common.ca,
        part_bytes: common.part_bytes,
        limit: common.limit,
        by_host: common.by_host,
        marker: true,
    };
    Box::new(bucket.store(access))
}

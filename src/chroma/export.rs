//! One collection as JSON lines. The first line describes it (`collection`, with the number of ids in `count`), each
//! further line is one record: `id`, `embedding`, `document`, `metadata`, `uri`.
//!
//! What could go wrong: numbers that change on their way, so the server's own text of every value is passed on
//! unread; and a record that moves to another page, so the ids are fixed first and records are asked for by id. What was
//! written later than the list is not in the export, what was deleted since is counted as gone.

use std::collections::HashMap;
use std::io::{self, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::json;
use serde_json::value::RawValue;

use super::client::{ATTEMPTS, Client, Collection};
use super::error::ChromaError;
use super::ids::{IdList, Ids};
use super::pages::Sizer;

/// Records of a sample.
const SAMPLE: usize = 200;

/// What an export holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exported {
    /// Records that were written.
    pub records: u64,
    /// Ids that were listed, but had no record any more when it was asked for.
    pub gone: u64,
    /// Bytes that were written.
    pub bytes: u64,
}

/// The first line.
#[derive(Serialize)]
struct Header<'a> {
    tenant: &'a str,
    database: &'a str,
    name: &'a str,
    id: &'a str,
    metadata: Option<&'a RawValue>,
    configuration_json: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    schema: Option<&'a RawValue>,
    dimension: Option<u64>,
    count: u64,
}

/// An answer with records: each list is as long as the ids, or null when all of it is.
#[derive(Deserialize)]
pub(super) struct Records<'a> {
    pub ids: Vec<String>,
    #[serde(borrow, default)]
    pub embeddings: Option<Vec<&'a RawValue>>,
    #[serde(borrow, default)]
    pub documents: Option<Vec<&'a RawValue>>,
    #[serde(borrow, default)]
    pub metadatas: Option<Vec<&'a RawValue>>,
    #[serde(borrow, default)]
    pub uris: Option<Vec<&'a RawValue>>,
}

#[derive(Deserialize)]
struct OnlyIds {
    ids: Vec<String>,
}

impl Client {
    /// Writes all records of a collection. `scratch` is a private directory for a very long list of ids; `progress` hears
    /// the bytes of each page as it is written.
    ///
    /// Fails when the server does, when it sends something that does not fit to what was asked, and with `Gone` when the
    /// collection was deleted; what was written until then is no export.
    pub fn export(
        &self,
        collection: &Collection,
        scratch: &Path,
        out: &mut dyn Write,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Exported, ChromaError> {
        let spill = |source| ChromaError::Spill { collection: collection.title(), source };
        let ids = self.fix_ids(collection, scratch)?;
        let count = ids.len();
        let mut page = Vec::new();
        write_header(&mut page, collection, count).map_err(|e| self.put_error(collection, e.into()))?;
        let mut written = self.put(collection, out, &mut page, progress)?;

        let mut sizer = Sizer::new(
            collection.dimension.and_then(|d| usize::try_from(d).ok()).unwrap_or(0),
            self.pages.bytes,
            self.batch,
        );
        let mut source = ids.read().map_err(spill)?;
        let mut waiting: Vec<String> = Vec::new();
        let (mut records, mut gone) = (0, 0);
        loop {
            fill(&mut waiting, &mut source, sizer.next()).map_err(spill)?;
            if waiting.is_empty() {
                return Ok(Exported { records, gone, bytes: written });
            }
            let asked = &waiting[..waiting.len().min(sizer.next())];
            let body = match self.records(collection, asked) {
                Err(ChromaError::TooLarge { .. }) if asked.len() > 1 && sizer.halve() => continue,
                other => other?,
            };
            let found = self.write_records(collection, asked, &body, &mut page)?;
            let asked = asked.len();
            sizer.saw(asked, body.len());
            records += found;
            gone += asked as u64 - found;
            written += self.put(collection, out, &mut page, progress)?;
            waiting.drain(..asked);
        }
    }

    /// Reads some records with their vectors; how many came. Vectors that do not fit to their records are an error of the
    /// server.
    pub fn sample(&self, c: &Collection) -> Result<usize, ChromaError> {
        let ids = self.ids_page(c, Some((SAMPLE, 0)))?;
        let body = self.records(c, &ids)?;
        Ok(usize::try_from(self.write_records(c, &ids, &body, &mut Vec::new())?).unwrap_or(0))
    }

    /// The ids that the collection has now.
    fn fix_ids(&self, c: &Collection, scratch: &Path) -> Result<IdList, ChromaError> {
        for _ in 0..ATTEMPTS {
            if let Some(list) = self.try_ids(c, scratch)? {
                return Ok(list);
            }
        }
        // Somebody deletes all the time. One answer cannot shift, if it is not too long.
        let spill = |source| ChromaError::Spill { collection: c.title(), source };
        let what = format!("listing the ids of {}", c.title());
        match self.ids_page(c, None) {
            Ok(ids) => {
                let mut list = IdList::new(scratch);
                ids.iter().try_for_each(|id| list.push(id)).map_err(spill)?;
                Ok(list)
            }
            Err(ChromaError::TooLarge { .. }) => Err(ChromaError::Changing { what }),
            Err(e) => Err(e),
        }
    }

    /// The same in pages. Each page begins with the last id of the one before; None when it does not, because something
    /// was deleted between the two and others may have been skipped.
    fn try_ids(&self, c: &Collection, scratch: &Path) -> Result<Option<IdList>, ChromaError> {
        let spill = |source| ChromaError::Spill { collection: c.title(), source };
        let mut list = IdList::new(scratch);
        let mut last: Option<String> = None;
        let mut limit = self.pages.ids;
        loop {
            let offset = list.len() - u64::from(last.is_some());
            let ids = match self.ids_page(c, Some((limit, offset))) {
                Err(ChromaError::TooLarge { .. }) if limit > 2 => {
                    limit = (limit / 2).max(2);
                    continue;
                }
                other => other?,
            };
            let mut ids = ids.into_iter();
            if last.is_some() && ids.next() != last {
                return Ok(None);
            }
            let before = list.len();
            for id in ids {
                list.push(&id).map_err(spill)?;
                last = Some(id);
            }
            if list.len() == before {
                return Ok(Some(list));
            }
        }
    }

    fn ids_page(&self, c: &Collection, page: Option<(usize, u64)>) -> Result<Vec<String>, ChromaError> {
        let what = format!("listing the ids of {}", c.title());
        let body = match page {
            Some((limit, offset)) => json!({ "limit": limit, "offset": offset, "include": [] }),
            None => json!({ "include": [] }),
        };
        let body = self.get(c, &what, &body)?;
        let answer: OnlyIds =
            serde_json::from_slice(&body).map_err(|e| self.http.malformed(&what, e.to_string()))?;
        Ok(answer.ids)
    }

    pub(super) fn records(&self, c: &Collection, ids: &[String]) -> Result<Vec<u8>, ChromaError> {
        let what = format!("reading records of {}", c.title());
        let include = ["embeddings", "documents", "metadatas", "uris"];
        self.get(c, &what, &json!({ "ids": ids, "include": include }))
    }

    fn get(&self, c: &Collection, what: &str, body: &serde_json::Value) -> Result<Vec<u8>, ChromaError> {
        let answer = self.http.ask(what, &self.collection_route(c, "get").post(body))?;
        if (200..300).contains(&answer.status) {
            return Ok(answer.body);
        }
        let refused = self.http.refused(what, &answer);
        // Each version has its own status for it (404, 400, 500); the words are the same.
        let gone =
            matches!(&refused, ChromaError::Refused { reason, .. } if reason.contains("does not exist"));
        Err(if gone { ChromaError::Gone { collection: c.title() } } else { refused })
    }

    /// Puts the records of an answer into `page`, in the order of `asked`; how many there were.
    fn write_records(
        &self,
        c: &Collection,
        asked: &[String],
        body: &[u8],
        page: &mut Vec<u8>,
    ) -> Result<u64, ChromaError> {
        let what = format!("reading records of {}", c.title());
        let wrong = |why: String| self.http.malformed(&what, why);
        let answer: Records<'_> = serde_json::from_slice(body).map_err(|e| wrong(e.to_string()))?;
        let n = answer.ids.len();
        let lists = [&answer.embeddings, &answer.documents, &answer.metadatas, &answer.uris];
        if lists.iter().any(|list| list.as_ref().is_some_and(|l| l.len() != n)) {
            return Err(wrong("its lists differ in length".into()));
        }
        if n > 0 && answer.embeddings.is_none() {
            return Err(wrong("it has records without embeddings".into()));
        }
        let mut at: HashMap<&str, usize> = HashMap::with_capacity(n);
        for (i, id) in answer.ids.iter().enumerate() {
            if at.insert(id, i).is_some() {
                return Err(wrong(format!("it has {id:?} twice")));
            }
        }
        let mut found = 0;
        for id in asked {
            let Some(&i) = at.get(id.as_str()) else { continue };
            found += 1;
            write_record(page, id, lists.map(|list| list.as_ref().map(|l| l[i])))
                .map_err(|e| self.put_error(c, e.into()))?;
        }
        if found != n {
            return Err(wrong(format!("{} of its records were not asked for", n - found)));
        }
        Ok(found as u64)
    }

    fn put(
        &self,
        c: &Collection,
        out: &mut dyn Write,
        page: &mut Vec<u8>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<u64, ChromaError> {
        out.write_all(page).map_err(|e| self.put_error(c, e))?;
        let bytes = page.len() as u64;
        progress(bytes);
        page.clear();
        Ok(bytes)
    }

    fn put_error(&self, c: &Collection, source: io::Error) -> ChromaError {
        ChromaError::Write { collection: c.title(), source }
    }
}

/// Fills `waiting` up to `wanted` ids.
fn fill(waiting: &mut Vec<String>, source: &mut Ids, wanted: usize) -> io::Result<()> {
    while waiting.len() < wanted {
        match source.next()? {
            Some(id) => waiting.push(id),
            None => return Ok(()),
        }
    }
    Ok(())
}

fn write_header(page: &mut Vec<u8>, c: &Collection, count: u64) -> serde_json::Result<()> {
    let header = Header {
        tenant: &c.tenant,
        database: &c.database,
        name: &c.name,
        id: &c.id,
        metadata: c.metadata.as_deref(),
        configuration_json: c.configuration.as_deref(),
        schema: c.schema.as_deref(),
        dimension: c.dimension,
        count,
    };
    let mut line = Vec::new();
    serde_json::to_writer(&mut line, &header)?;
    push_on_one_line(page, &line);
    page.push(b'\n');
    Ok(())
}

/// One record from the texts of its values; what the server left out is null.
fn write_record(page: &mut Vec<u8>, id: &str, values: [Option<&RawValue>; 4]) -> serde_json::Result<()> {
    page.extend_from_slice(b"{\"id\":");
    serde_json::to_writer(&mut *page, id)?;
    for (key, value) in ["embedding", "document", "metadata", "uri"].into_iter().zip(values) {
        page.extend_from_slice(format!(",\"{key}\":").as_bytes());
        push_on_one_line(page, value.map_or("null", RawValue::get).as_bytes());
    }
    page.extend_from_slice(b"}\n");
    Ok(())
}

/// A JSON text has line breaks only between its parts, where a space does as well.
fn push_on_one_line(page: &mut Vec<u8>, text: &[u8]) {
    page.extend(text.iter().map(|b| if matches!(b, b'\n' | b'\r') { b' ' } else { *b }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_of_a_value_is_passed_on_unread() {
        let body = "{\"ids\":[\"a\"],\"embeddings\":[[0.10000001, 1e-45,\n-0.0]],\"documents\":[\"x\\ny\\u0000\"],\
                    \"metadatas\":[{\"n\":9007199254740993,\"f\":0.1}],\"uris\":null}";
        let r: Records<'_> = serde_json::from_str(body).unwrap();
        let mut page = Vec::new();
        let values = [&r.embeddings, &r.documents, &r.metadatas, &r.uris].map(|l| l.as_ref().map(|l| l[0]));
        write_record(&mut page, "a\"ü", values).unwrap();
        assert_eq!(
            String::from_utf8(page).unwrap(),
            "{\"id\":\"a\\\"ü\",\"embedding\":[0.10000001, 1e-45, -0.0],\"document\":\"x\\ny\\u0000\",\
             \"metadata\":{\"n\":9007199254740993,\"f\":0.1},\"uri\":null}\n"
        );
    }
}

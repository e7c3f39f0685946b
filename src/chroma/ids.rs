//! The list of ids of one collection, fixed before its records are read. What could go wrong: a collection of many
//! millions, whose ids would fill the memory; beyond some megabytes they lie in a temporary file without a name.

use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;

use tempfile::SpooledTempFile;

/// Bytes of ids that are kept in memory.
const IN_MEMORY: usize = 32 << 20;

pub(super) struct IdList {
    file: BufWriter<SpooledTempFile>,
    len: u64,
}

impl IdList {
    /// An empty list; the file, if one is needed, lies in `scratch`.
    pub fn new(scratch: &Path) -> Self {
        Self::with_memory(scratch, IN_MEMORY)
    }

    fn with_memory(scratch: &Path, bytes: usize) -> Self {
        Self { file: BufWriter::new(tempfile::spooled_tempfile_in(bytes, scratch)), len: 0 }
    }

    pub fn push(&mut self, id: &str) -> io::Result<()> {
        let length = u32::try_from(id.len()).map_err(|_| io::Error::other("an id of 4 GiB"))?;
        self.file.write_all(&length.to_le_bytes())?;
        self.file.write_all(id.as_bytes())?;
        self.len += 1;
        Ok(())
    }

    pub fn len(&self) -> u64 {
        self.len
    }

    /// Reads the list from its beginning.
    pub fn read(self) -> io::Result<Ids> {
        let mut file = self.file.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.seek(SeekFrom::Start(0))?;
        Ok(Ids { file: BufReader::new(file), left: self.len })
    }
}

pub(super) struct Ids {
    file: BufReader<SpooledTempFile>,
    left: u64,
}

impl Ids {
    pub fn next(&mut self) -> io::Result<Option<String>> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        let mut length = [0; 4];
        self.file.read_exact(&mut length)?;
        let mut bytes = vec![0; u32::from_le_bytes(length) as usize];
        self.file.read_exact(&mut bytes)?;
        String::from_utf8(bytes).map(Some).map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_come_back_in_order_from_memory_and_from_disk() {
        for memory in [1 << 20, 10] {
            let dir = tempfile::tempdir().unwrap();
            let mut list = IdList::with_memory(dir.path(), memory);
            let wanted = ["a", "", "ünï-☃", "line\nbreak", &"x".repeat(20_000)];
            for id in wanted {
                list.push(id).unwrap();
            }
            assert_eq!(list.len(), 5);
            let mut ids = list.read().unwrap();
            for id in wanted {
                assert_eq!(ids.next().unwrap().as_deref(), Some(id));
            }
            assert_eq!(ids.next().unwrap(), None);
        }
    }
}

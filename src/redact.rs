pub struct Input<'a> {
    pub name: &'a str,
    pub bytes: &'a [u8],
}
pub struct Redacted {
    pub bytes: Vec<u8>,
    pub changed: bool,
}
pub struct Report {
    pub files: Vec<Redacted>,
    pub secrets: Secrets,
    pub warnings: Vec<String>,
}
pub fn redact(files: &[Input<'_>], _h: &[String]) -> Report {
    let _ = files.iter().map(|f| f.name).count();
    Report {
        files: files.iter().map(|f| Redacted { bytes: f.bytes.to_vec(), changed: false }).collect(),
        secrets: Secrets::default(),
        warnings: vec![],
    }
}
#[derive(Default)]
pub struct Secrets;
impl Secrets {
    pub fn add(&mut self, _: &str, _: &str) {}
    pub fn extend(&mut self, _: &Secrets) {}
    pub fn scrub(&self, t: &str) -> String {
        t.to_owned()
    }
    pub fn remains_in(&self, _: &[u8]) -> Option<&str> {
        None
    }
}

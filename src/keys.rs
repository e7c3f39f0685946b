//! Public keys that backups are sealed for, and private keys that open them, out of the texts of people. What could go
//! wrong: a private key that is written where a public one belongs, and is then repeated in an error; so no error here
//! holds a piece of what was read, and nothing that is printed of an `Identities` is secret.

use std::fmt;

use age::secrecy::{ExposeSecret, SecretString};

use crate::hint::Hint;

/// How a private key of age begins. In files it is mostly written in capitals, and may be in small letters.
pub const SECRET_PREFIX: &str = "AGE-SECRET-KEY-";

const PEM_BEGIN: &str = "-----BEGIN ";
const PEM_END: &str = "-----END ";

/// Why a text is no recipient. `number` counts from 1.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecipientError {
    #[error("entry {number} is a private key; it belongs to a safe place, never into the configuration")]
    Private { number: usize },
    #[error("entry {number} is a key of a kind that nothing can be sealed for: {why}")]
    Unsupported { number: usize, why: &'static str },
    #[error("entry {number} is no recipient: age1…, ssh-ed25519 … or ssh-rsa …")]
    Unknown { number: usize },
}

impl Hint for RecipientError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Private { .. } => "take it out of the file, and take the public key instead: age-keygen -y FILE, \
                                     or the .pub file of an ssh key; if others could read the file, make a new key"
                .into(),
            Self::Unsupported { .. } => "make one: tars-backup key new".into(),
            Self::Unknown { .. } => {
                "copy the whole line that tars-backup key new prints, or that of the .pub file".into()
            }
        })
    }
}

struct Recipient {
    key: Box<dyn age::Recipient + Send + Sync>,
    text: String,
}

/// Whom a backup is sealed for.
#[derive(Default)]
pub struct Recipients(Vec<Recipient>);

impl Recipients {
    /// Every text that is wrong is told. A key that is named twice counts once.
    pub fn parse<T: AsRef<str>>(texts: &[T]) -> Result<Self, Vec<RecipientError>> {
        let mut found = Self::default();
        let mut wrong = Vec::new();
        for (number, text) in (1..).zip(texts) {
            match recipient(text.as_ref().trim(), number) {
                Ok(one) if found.0.iter().any(|r| r.text == one.text) => {}
                Ok(one) => found.0.push(one),
                Err(e) => wrong.push(e),
            }
        }
        if wrong.is_empty() { Ok(found) } else { Err(wrong) }
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The public keys, without the comments of ssh keys.
    pub fn texts(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|r| r.text.as_str())
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &dyn age::Recipient> {
        self.0.iter().map(|r| &*r.key as &dyn age::Recipient)
    }
}

impl fmt::Debug for Recipients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.texts()).finish()
    }
}

fn recipient(text: &str, number: usize) -> Result<Recipient, RecipientError> {
    use age::ssh::ParseRecipientKeyError as Ssh;
    let unsupported = |why| Err(RecipientError::Unsupported { number, why });
    if holds_private_key(text) {
        return Err(RecipientError::Private { number });
    }
    if text.starts_with("ssh-") || text.starts_with("ecdsa-") || text.starts_with("sk-") {
        return match text.parse::<age::ssh::Recipient>() {
            Ok(key) => Ok(Recipient { text: key.to_string(), key: Box::new(key) }),
            Err(Ssh::RsaModulusTooSmall) => unsupported("an RSA key of less than 2048 bits"),
            Err(Ssh::RsaModulusTooLarge) => unsupported("an RSA key of more than 4096 bits"),
            Err(Ssh::Unsupported(_) | Ssh::Ignore) => unsupported("of ssh keys only ed25519 and rsa"),
            Err(_) => Err(RecipientError::Unknown { number }),
        };
    }
    match text.parse::<age::x25519::Recipient>() {
        Ok(key) => Ok(Recipient { text: key.to_string(), key: Box::new(key) }),
        // Such as age1yubikey1…: they need a program of their own to be opened.
        Err(_) if text.matches('1').count() > 1 && text.starts_with("age1") && text.len() != 62 => {
            unsupported("a key of a plugin or of hardware")
        }
        Err(_) => Err(RecipientError::Unknown { number }),
    }
}

/// Whether a text has a private key in it.
pub fn holds_private_key(text: &str) -> bool {
    let upper = text.to_ascii_uppercase();
    upper.contains(SECRET_PREFIX)
        || upper.contains("AGE-PLUGIN-")
        || (upper.contains("PRIVATE KEY") && upper.contains("BEGIN"))
}

/// Why a text holds no usable private keys. Never a piece of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    #[error("there is no private key in it")]
    Empty,
    #[error("line {line} is no private key of age or ssh")]
    Unknown { line: usize },
    #[error("line {line} is a public key; a private one is needed to open a backup")]
    Public { line: usize },
    #[error("it is protected by a passphrase")]
    Passphrase { ssh: bool },
    #[error("line {line} is a key of a kind that cannot open a backup: {why}")]
    Unsupported { line: usize, why: &'static str },
}

impl Hint for IdentityError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Passphrase { ssh: false } => {
                "open it for this command: --identity <(age -d FILE), and type its passphrase".into()
            }
            Self::Passphrase { ssh: true } => {
                "make a copy without one in memory: cp KEY /dev/shm/key && ssh-keygen -p -N '' -f /dev/shm/key; \
                 remove it afterwards"
                    .into()
            }
            Self::Public { .. } => "name the file that age-keygen or ssh-keygen wrote, not its .pub".into(),
            Self::Empty | Self::Unknown { .. } | Self::Unsupported { .. } => {
                "it must hold AGE-SECRET-KEY-1… lines, or be an ssh private key (ed25519 or rsa)".into()
            }
        })
    }
}

struct Identity {
    key: Box<dyn age::Identity + Send + Sync>,
    recipient: String,
}

/// Private keys, and the texts that they were read from: what was a pipe cannot be read again.
pub struct Identities {
    keys: Vec<Identity>,
    texts: Vec<SecretString>,
}

impl Identities {
    /// Reads an identity file: lines of age with comments and blank lines between them, ssh keys, or both.
    pub fn parse(text: &str) -> Result<Self, IdentityError> {
        let mut found = Vec::new();
        let mut lines = (1..).zip(text.lines());
        while let Some((line, text)) = lines.next() {
            let text = text.trim();
            if text.is_empty() || text.starts_with('#') {
                continue;
            }
            if text.starts_with("age-encryption.org/") || text.starts_with("-----BEGIN AGE ENCRYPTED") {
                return Err(IdentityError::Passphrase { ssh: false });
            }
            if text.starts_with(PEM_BEGIN) {
                let mut pem = format!("{text}\n");
                for (_, more) in lines.by_ref() {
                    pem.push_str(more.trim_end());
                    pem.push('\n');
                    if more.starts_with(PEM_END) {
                        break;
                    }
                }
                found.push(ssh(&pem, line)?);
                continue;
            }
            found.push(native(text, line)?);
        }
        match found.is_empty() {
            true => Err(IdentityError::Empty),
            false => Ok(Self { keys: found, texts: vec![SecretString::from(text.to_owned())] }),
        }
    }

    /// All keys of several files as one.
    pub fn join(all: impl IntoIterator<Item = Self>) -> Self {
        let mut joined = Self { keys: Vec::new(), texts: Vec::new() };
        for one in all {
            joined.keys.extend(one.keys);
            joined.texts.extend(one.texts);
        }
        joined
    }

    /// The files that they were read from, as they were: for paper, and for nothing else.
    pub fn texts(&self) -> impl Iterator<Item = &str> {
        self.texts.iter().map(ExposeSecret::expose_secret)
    }

    /// The public keys that belong to them.
    pub fn recipients(&self) -> impl Iterator<Item = &str> {
        self.keys.iter().map(|i| i.recipient.as_str())
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &dyn age::Identity> {
        self.keys.iter().map(|i| &*i.key as &dyn age::Identity)
    }
}

impl fmt::Debug for Identities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Identities of").field(&self.recipients().collect::<Vec<_>>()).finish()
    }
}

fn native(text: &str, line: usize) -> Result<Identity, IdentityError> {
    if text.starts_with("age1") || text.starts_with("ssh-") {
        return Err(IdentityError::Public { line });
    }
    if text.to_ascii_uppercase().starts_with("AGE-PLUGIN-") {
        return Err(IdentityError::Unsupported { line, why: "it belongs to a plugin" });
    }
    match text.parse::<age::x25519::Identity>() {
        Ok(key) => Ok(Identity { recipient: key.to_public().to_string(), key: Box::new(key) }),
        Err(_) => Err(IdentityError::Unknown { line }),
    }
}

fn ssh(pem: &str, line: usize) -> Result<Identity, IdentityError> {
    use age::ssh::{Identity as Ssh, UnsupportedKey};
    let key = Ssh::from_buffer(pem.as_bytes(), None).map_err(|_| IdentityError::Unknown { line })?;
    match &key {
        Ssh::Unencrypted(_) => {}
        Ssh::Encrypted(_)
        | Ssh::Unsupported(UnsupportedKey::EncryptedPem | UnsupportedKey::EncryptedSsh(_)) => {
            return Err(IdentityError::Passphrase { ssh: true });
        }
        Ssh::Unsupported(UnsupportedKey::Hardware(_)) => {
            return Err(IdentityError::Unsupported { line, why: "it lies in hardware" });
        }
        Ssh::Unsupported(UnsupportedKey::Type(_)) => {
            return Err(IdentityError::Unsupported { line, why: "of ssh keys only ed25519 and rsa" });
        }
    }
    match age::ssh::Recipient::try_from(key.clone()) {
        Ok(recipient) => Ok(Identity { key: Box::new(key), recipient: recipient.to_string() }),
        Err(_) => Err(IdentityError::Unsupported { line, why: "of ssh keys only ed25519 and rsa" }),
    }
}

/// The lines of an identity file that no output may show: keys of age, and the bodies of ssh keys.
pub fn secret_lines(text: &str) -> impl Iterator<Item = &str> {
    let mut inside = false;
    text.lines().map(str::trim).filter(move |line| {
        if line.starts_with(PEM_BEGIN) || line.starts_with(PEM_END) {
            inside = line.starts_with(PEM_BEGIN);
            return false;
        }
        !line.is_empty() && (inside || line.to_ascii_uppercase().starts_with(SECRET_PREFIX))
    })
}

/// A new X25519 key.
pub struct NewIdentity {
    /// The identity file, as age-keygen writes it.
    pub file: String,
    pub recipient: String,
}

/// `time` goes into a comment.
pub fn generate(time: &str) -> NewIdentity {
    let key = age::x25519::Identity::generate();
    let recipient = key.to_public().to_string();
    let secret = key.to_string();
    let file = format!("# created: {time}\n# public key: {recipient}\n{}\n", secret.expose_secret());
    NewIdentity { file, recipient }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Made for these tests alone.
    pub(crate) const ED25519: &str = "-----BEGIN OPENSSH PRIVATE KEY-----\n\
b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAAAAAAABAAAAMwAAAAtzc2gtZW\n\
QyNTUxOQAAACANmHOC0aAqieM5CaylbTMnbk4u6o94cSBCwDL8gn8wwgAAAIgqmzjeKps4\n\
3gAAAAtzc2gtZWQyNTUxOQAAACANmHOC0aAqieM5CaylbTMnbk4u6o94cSBCwDL8gn8wwg\n\
AAAEAMTIw3yf/VFXqpOIH0GUAQMe8QiCkUzZQns0rqqSVj5Q2Yc4LRoCqJ4zkJrKVtMydu\n\
Ti7qj3hxIELAMvyCfzDCAAAABHRlc3QB\n\
-----END OPENSSH PRIVATE KEY-----\n";
    pub(crate) const ED25519_PUBLIC: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA2Yc4LRoCqJ4zkJrKVtMyduTi7qj3hxIELAMvyCfzDC";
    pub(crate) const ED25519_LOCKED_PUBLIC: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPzfGf1kJstKWGliObwZLTpUEqEQuzKmw0xzXheqKNJu";
    pub(crate) const ED25519_LOCKED: &str = "-----BEGIN OPENSSH PRIVATE KEY-----\n\
b3BlbnNzaC1rZXktdjEAAAAACmFlczI1Ni1jdHIAAAAGYmNyeXB0AAAAGAAAABCzAWZZ/k\n\
frcVPm1Rk2tk0qAAAAEAAAAAEAAAAzAAAAC3NzaC1lZDI1NTE5AAAAIPzfGf1kJstKWGli\n\
ObwZLTpUEqEQuzKmw0xzXheqKNJuAAAAkLUpopkrGQD2Tbxr+g0m+6QvJJ0gNBQWEGSPxn\n\
iDlkgjCG9mv182J9kctR6JK9yVvYp9SXlZvgKZjjwTH7VC8aPQ4/isAph26CN7MMFaEpbi\n\
FcdfO4LLTbCVOpQGKtOuG3wbvr4fr9S/Ms9jZd7BBXvrQkGvbnt2YQi4sjYjZC6QWXDZZE\n\
Imgiva2Sh6Wb26qA==\n\
-----END OPENSSH PRIVATE KEY-----\n";
    const ECDSA: &str = "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBIQ6mFLb1L6tl4HpikC+hI53HEtkVqioaLXSgg5AkZnj8A06LDydwPtOCYg2JbCeFvHcRy/KImkvKLI9NwOilRc=";

    fn secret_of(file: &str) -> String {
        file.lines().last().unwrap().to_owned()
    }

    #[test]
    fn a_new_identity_reads_back_and_fits_its_recipient() {
        let new = generate("2026-01-02T03:04:05Z");
        let read = Identities::parse(&new.file).unwrap();
        assert_eq!(read.recipients().collect::<Vec<_>>(), [new.recipient.as_str()]);
        let lines: Vec<&str> = new.file.lines().collect();
        assert_eq!(lines[0], "# created: 2026-01-02T03:04:05Z");
        assert_eq!(lines[1], format!("# public key: {}", new.recipient));
        assert!(lines[2].starts_with("AGE-SECRET-KEY-1") && lines.len() == 3);
        assert!(Recipients::parse(&[&new.recipient]).is_ok());
    }

    #[test]
    fn keys_of_several_files_keep_the_texts_that_they_came_from() {
        let (a, b) = (generate("x"), generate("y"));
        let cut = a.file.trim_end();
        let joined = Identities::join([cut, &b.file].map(|text| Identities::parse(text).unwrap()));
        assert_eq!(joined.recipients().collect::<Vec<_>>(), [&*a.recipient, &b.recipient]);
        assert_eq!(joined.texts().collect::<Vec<_>>(), [cut, &b.file]);
        assert!(!format!("{joined:?}").contains("SECRET"));
    }

    #[test]
    fn a_file_may_hold_several_keys_of_both_kinds() {
        let (a, b) = (generate("x"), generate("y"));
        let text = format!("{}\n{}\n# ssh\n{ED25519}", a.file, secret_of(&b.file).to_lowercase());
        let read = Identities::parse(&text).unwrap();
        let wanted = [a.recipient.as_str(), &b.recipient, ED25519_PUBLIC];
        assert_eq!(read.recipients().collect::<Vec<_>>(), wanted);
        let shown = format!("{read:?}");
        assert!(shown.contains(&a.recipient) && !shown.contains("SECRET"), "{shown}");
        let hidden: Vec<&str> = secret_lines(&text).collect();
        assert_eq!(hidden.len(), 2 + ED25519.lines().count() - 2);
        for line in hidden {
            assert!(!shown.contains(line));
        }
    }

    #[test]
    fn what_is_no_identity_says_why_and_repeats_nothing() {
        let cases = [
            ("", IdentityError::Empty),
            ("# only a comment\n", IdentityError::Empty),
            ("# c\nhunter2hunter2\n", IdentityError::Unknown { line: 2 }),
            ("AGE-SECRET-KEY-1QQQQ\n", IdentityError::Unknown { line: 1 }),
            (ED25519_PUBLIC, IdentityError::Public { line: 1 }),
            (ED25519_LOCKED, IdentityError::Passphrase { ssh: true }),
            ("age-encryption.org/v1\n-> scrypt x 18\n", IdentityError::Passphrase { ssh: false }),
            ("-----BEGIN AGE ENCRYPTED FILE-----\nYWdl\n", IdentityError::Passphrase { ssh: false }),
            ("-----BEGIN OPENSSH PRIVATE KEY-----\nYWdl\n", IdentityError::Unknown { line: 1 }),
            ("AGE-PLUGIN-YUBIKEY-1QQ", IdentityError::Unsupported { line: 1, why: "it belongs to a plugin" }),
        ];
        for (text, wanted) in cases {
            let e = Identities::parse(text).unwrap_err();
            assert_eq!(e, wanted, "{text}");
            assert!(e.hint().is_some() && !e.to_string().contains("hunter2"));
        }
    }

    #[test]
    fn recipients_keep_their_public_text_and_count_once() {
        let new = generate("x");
        let comment = format!("  {ED25519_PUBLIC} me@home ");
        let read = Recipients::parse(&[new.recipient.as_str(), &comment, ED25519_PUBLIC]).unwrap();
        assert_eq!(read.texts().collect::<Vec<_>>(), [new.recipient.as_str(), ED25519_PUBLIC]);
        assert!(Recipients::parse::<&str>(&[]).unwrap().is_empty());
    }

    #[test]
    fn every_wrong_recipient_is_told_and_a_private_key_is_not_repeated() {
        let secret = secret_of(&generate("x").file);
        let mistyped = generate("x").recipient.replace("age1", "age1q");
        let texts = [secret.as_str(), ED25519, "age1yubikey1qqqqqqqq", ECDSA, &mistyped, "hunter2hunter2"];
        let wrong = Recipients::parse(&texts).unwrap_err();
        let private = |number| RecipientError::Private { number };
        assert_eq!(wrong[..2], [private(1), private(2)]);
        assert!(matches!(wrong[2], RecipientError::Unsupported { number: 3, .. }), "{wrong:?}");
        assert!(matches!(wrong[3], RecipientError::Unsupported { number: 4, .. }), "{wrong:?}");
        assert_eq!(wrong[5], RecipientError::Unknown { number: 6 });
        let all: String = wrong.iter().map(|e| format!("{e} {e:?} {}", e.hint().unwrap())).collect();
        assert!(!all.contains(&secret) && !all.contains("hunter2") && !all.contains("b3BlbnNz"), "{all}");
    }
}

//! Which keys name a secret.
//!
//! What could go wrong: a harmless exception that is too wide shows a password. So exceptions are whole keys, whole
//! trailing words, or the last word alone, all listed here; everything else that has a listed word is hidden.

use std::collections::HashSet;

/// Keys that contain a listed word but hold no secret, compared as a whole (words joined by `_`, any case and
/// separator: `primary-key` and `primaryKey` are PRIMARY_KEY). The operator's own list is added to this one.
pub const HARMLESS_KEYS: &[&str] = &[
    // Databases and message brokers: names of columns and of routes.
    "PRIMARY_KEY",
    "FOREIGN_KEY",
    "FOREIGN_KEYS",
    "UNIQUE_KEY",
    "PARTITION_KEY",
    "SORT_KEY",
    "SHARD_KEY",
    "CACHE_KEY",
    "PASSWORD_ENCRYPTION",
    // Language models: markers in a text, not credentials.
    "PAD_TOKEN",
    "EOS_TOKEN",
    "BOS_TOKEN",
    "UNK_TOKEN",
    "SEP_TOKEN",
    "CLS_TOKEN",
    "MASK_TOKEN",
    // systemd: names of credentials and the files that hold them.
    "LOAD_CREDENTIAL",
    "LOAD_CREDENTIAL_ENCRYPTED",
    "IMPORT_CREDENTIAL",
    "CONDITION_CREDENTIAL",
    // nginx hands a request on with these.
    "PROXY_PASS",
    "FASTCGI_PASS",
    "UWSGI_PASS",
    "SCGI_PASS",
    "GRPC_PASS",
];

/// The same, compared with the last words of a key: `VAPID_PUBLIC_KEY` ends in PUBLIC_KEY.
pub const HARMLESS_ENDINGS: &[&str] = &[
    "PUBLIC_KEY",
    "PUBLIC_KEYS",
    "AUTHORIZED_KEYS",
    "ALLOW_EMPTY_PASSWORD",
    "RANDOM_ROOT_PASSWORD",
    "EXPIRES_IN",
    "KEEP_ALIVE",
    "TRANSPORT_HEADER",
];

/// Last words that turn a secret's name into that of a reference or a setting: `PASSWORD_FILE`, `TOKEN_LIMIT`,
/// `AUTH_METHOD`. Passwords in an URL are still found by their form.
pub const HARMLESS_LAST_WORDS: &[&str] = &[
    // References to a place, or to a name.
    "FILE",
    "FILES",
    "FILENAME",
    "PATH",
    "PATHS",
    "DIR",
    "DIRS",
    "DIRECTORY",
    "FOLDER",
    "SOCK",
    "SOCKET",
    "URL",
    "URI",
    "ENDPOINT",
    "HOST",
    "HOSTNAME",
    "PORT",
    "PORTS",
    "DOMAIN",
    "REALM",
    "REGION",
    "USER",
    "USERNAME",
    "NAME",
    "SOURCE",
    "TARGET",
    "ENV",
    "ENVIRONMENT",
    "EXTERNAL",
    "UID",
    "GID",
    "REF",
    "FIELD",
    "COLUMN",
    "INDEX",
    "SPACE",
    // Kinds and switches.
    "TYPE",
    "KIND",
    "MODE",
    "METHOD",
    "METHODS",
    "MECHANISM",
    "MECHANISMS",
    "PROVIDER",
    "PROVIDERS",
    "BACKEND",
    "DRIVER",
    "ENGINE",
    "PLUGIN",
    "FORMAT",
    "ENCODING",
    "ALGORITHM",
    "ALGORITHMS",
    "ALGO",
    "ALG",
    "CIPHER",
    "ENABLE",
    "ENABLED",
    "DISABLE",
    "DISABLED",
    "REQUIRED",
    "OPTIONAL",
    "ALLOWED",
    "POLICY",
    "ISSUER",
    "AUDIENCE",
    "SCOPE",
    "SCOPES",
    "PREFIX",
    "VERSION",
    "DESCRIPTION",
    "LABEL",
    "LABELS",
    "THROUGH",
    "FORWARD",
    // Sizes and times.
    "LENGTH",
    "LEN",
    "SIZE",
    "BITS",
    "COUNT",
    "LIMIT",
    "LIMITS",
    "MAX",
    "MIN",
    "NUM",
    "TTL",
    "AGE",
    "LIFETIME",
    "DURATION",
    "EXPIRY",
    "EXPIRE",
    "EXPIRES",
    "EXPIRATION",
    "TIMEOUT",
    "INTERVAL",
    "SECONDS",
    "MINUTES",
    "HOURS",
    "DAYS",
    "ROTATION",
    "RELOAD",
    "ITERATIONS",
    "ROUNDS",
    "STRENGTH",
];

/// Hidden even where the value looks like a switch.
const PASSWORD_WORDS: &[&str] =
    &["PASSWORD", "PASSWORDS", "PASSWD", "PASSPHRASE", "PASSPHRASES", "PASS", "PASSCODE", "PWD", "PW"];

const SECRET_WORDS: &[&str] = &["SECRET", "TOKEN", "APIKEY", "PSK", "BEARER", "BASICAUTH"];

/// The value of such a key may be the path of a file that holds the secret.
const PATH_WORDS: &[&str] =
    &["KEY", "CREDENTIAL", "CREDENTIALS", "CRED", "CREDS", "JWT", "AUTH", "AUTHORIZATION", "DSN", "PRIVATE"];

/// Plural forms; numbers below them are amounts.
const PLURAL_WORDS: &[&str] = &["SECRETS", "KEYS", "APIKEYS", "AUTHS"];

/// TOKENS alone, or after one of these, are credentials; all others are what language models count.
const TOKENS_OF: &[&str] = &[
    "API", "ACCESS", "AUTH", "REFRESH", "BEARER", "ADMIN", "BOT", "CLIENT", "SERVICE", "DEPLOY", "STATIC",
    "VALID", "USER", "SECRET",
];

const ENDINGS: &[&str] = &["PASSWORD", "PASSWD", "PASSPHRASE", "PASS", "PWD", "SECRET", "TOKEN", "KEY"];

/// English words that end like a secret.
const NOT_ENDINGS: &[&str] = &[
    "MONKEY",
    "DONKEY",
    "TURKEY",
    "HOTKEY",
    "JOCKEY",
    "HOCKEY",
    "WHISKEY",
    "LACKEY",
    "COMPASS",
    "BYPASS",
    "TRESPASS",
    "OVERPASS",
    "UNDERPASS",
    "ENCOMPASS",
    "SURPASS",
    "LOWPASS",
    "HIGHPASS",
    "PUBKEY",
    "PUBLICKEY",
    "OLDPWD",
];

/// Within a word: `rootpasswordhash`.
const INFIXES: &[&str] = &["PASSWORD", "PASSPHRASE", "PASSWD", "SECRETKEY", "ACCESSKEY", "APIKEY"];

/// Secrets whose names have no listed word.
const ALSO_SECRET: &[&str] = &["ERLANG_COOKIE", "REQUIREPASS", "MASTERAUTH"];

/// Values that are also the names of keys. Removing each occurrence of them would destroy the files they stand in.
pub(super) const VOCABULARY: &[&str] = &[
    "password",
    "passwords",
    "passphrase",
    "credential",
    "credentials",
    "authorization",
    "requirepass",
    "redacted",
];

/// Nothing without one of these can be a secret's name; spares the work for nearly all words of a text.
const STEMS: &[&[u8]] = &[
    b"pass", b"pwd", b"pw", b"secret", b"token", b"key", b"cred", b"jwt", b"auth", b"dsn", b"private",
    b"psk", b"bearer", b"cookie",
];

/// Longer keys are judged by their end.
const LONGEST_KEY: usize = 256;

/// What may be shown of a secret key's value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Class {
    /// A password: `true` or `off` may be one.
    pub(super) password: bool,
    /// May hold the path of a file instead.
    pub(super) path_ok: bool,
    /// A plural: a number is an amount.
    pub(super) plural: bool,
}

/// The list of exceptions in force.
pub(super) struct Keys {
    harmless: HashSet<String>,
}

impl Keys {
    pub(super) fn new(extra: &[String]) -> Self {
        let listed = HARMLESS_KEYS.iter().map(|k| (*k).to_string());
        let added = extra.iter().map(|k| split(k.as_bytes()).join("_"));
        Self { harmless: listed.chain(added).filter(|k| !k.is_empty()).collect() }
    }

    /// True for a key that is listed as harmless as a whole.
    pub(super) fn is_listed(&self, key: &[u8]) -> bool {
        let key = key.get(key.len().saturating_sub(LONGEST_KEY)..).unwrap_or(key);
        self.harmless.contains(&split(key).join("_"))
    }

    /// `None` for the key of a harmless value.
    pub(super) fn class(&self, key: &[u8]) -> Option<Class> {
        let key = key.get(key.len().saturating_sub(LONGEST_KEY)..).unwrap_or(key);
        if !has_stem(key) {
            return None;
        }
        let words = split(key);
        let whole = words.join("_");
        if self.harmless.contains(&whole) || harmless_ending(&words, &whole) {
            return None;
        }
        classify(&words, &whole)
    }
}

/// True if the key by its last word is a setting or a reference, with or without a secret's word in it.
pub(super) fn is_setting(key: &[u8]) -> bool {
    let words = split(key.get(key.len().saturating_sub(LONGEST_KEY)..).unwrap_or(key));
    let whole = words.join("_");
    harmless_ending(&words, &whole)
}

/// `sha256`, `image_digest`, `checksum`: the value is long and random, but meant to be read.
pub(super) fn is_digest(key: &[u8]) -> bool {
    let words = split(key.get(key.len().saturating_sub(LONGEST_KEY)..).unwrap_or(key));
    words.last().is_some_and(|word| matches!(word.as_str(), "SHA" | "DIGEST" | "CHECKSUM"))
}

fn harmless_ending(words: &[String], whole: &str) -> bool {
    let last = words.last().map_or("", String::as_str);
    HARMLESS_LAST_WORDS.contains(&last)
        || HARMLESS_ENDINGS.iter().any(|end| {
            whole.strip_suffix(end).is_some_and(|before| before.is_empty() || before.ends_with('_'))
        })
}

fn has_stem(key: &[u8]) -> bool {
    (0..key.len()).any(|i| {
        let rest = key.get(i..).unwrap_or_default();
        STEMS.iter().any(|s| rest.get(..s.len()).is_some_and(|head| head.eq_ignore_ascii_case(s)))
    })
}

fn classify(words: &[String], whole: &str) -> Option<Class> {
    if matches!(whole, "PWD" | "OLDPWD") {
        // The working directory of a shell, or the password of an ADO string.
        return Some(Class { password: true, path_ok: true, plural: false });
    }
    let mut class: Option<Class> = None;
    let mut add = |password, path_ok, plural| {
        let old = class.unwrap_or(Class { password: false, path_ok: true, plural: true });
        class = Some(Class {
            password: old.password || password,
            path_ok: old.path_ok && path_ok,
            plural: old.plural && plural,
        });
    };
    for (i, word) in words.iter().enumerate() {
        let word = word.as_str();
        if PASSWORD_WORDS.contains(&word) {
            add(true, false, false);
        } else if SECRET_WORDS.contains(&word) {
            add(false, false, false);
        } else if PATH_WORDS.contains(&word) {
            add(false, true, false);
        } else if PLURAL_WORDS.contains(&word) || (word == "TOKENS" && are_credentials(words, i)) {
            add(false, false, true);
        } else if let Some(password) = glued(word) {
            add(password, false, false);
        }
    }
    if ALSO_SECRET.iter().any(|name| whole.ends_with(name)) {
        add(true, false, false);
    }
    class
}

fn are_credentials(words: &[String], i: usize) -> bool {
    words.len() == 1 || words.iter().take(i).any(|w| TOKENS_OF.contains(&w.as_str()))
}

/// Words run together: `PGPASSWORD`, `dbpass`. `Some(true)` for a password.
fn glued(word: &str) -> Option<bool> {
    if NOT_ENDINGS.contains(&word) || word == "PASSWORDLESS" {
        return None;
    }
    let ending = ENDINGS.iter().find(|end| word.ends_with(**end));
    let found = ending.or_else(|| INFIXES.iter().find(|part| word.contains(**part)))?;
    Some(found.starts_with("PASS") || *found == "PWD")
}

/// `db-apiKey2` is DB, API, KEY: split at everything but letters and digits and at changes of case, upper case,
/// digits at the end of a word dropped.
fn split(key: &[u8]) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    for (i, &byte) in key.iter().enumerate() {
        let before = i.checked_sub(1).and_then(|j| key.get(j)).copied().unwrap_or(0);
        let after = key.get(i + 1).copied().unwrap_or(0);
        if !(byte.is_ascii_alphanumeric() || byte >= 0x80) {
            finish(&mut word, &mut words);
            continue;
        }
        let up = byte.is_ascii_uppercase();
        let starts = up
            && (before.is_ascii_lowercase() || (before.is_ascii_uppercase() && after.is_ascii_lowercase()));
        if starts {
            finish(&mut word, &mut words);
        }
        word.push(char::from(byte.to_ascii_uppercase()));
    }
    finish(&mut word, &mut words);
    words
}

fn finish(word: &mut String, words: &mut Vec<String>) {
    let kept = word.trim_end_matches(|c: char| c.is_ascii_digit());
    if !kept.is_empty() {
        words.push(kept.to_string());
    }
    word.clear();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(key: &str) -> bool {
        Keys::new(&[]).class(key.as_bytes()).is_some()
    }

    #[test]
    fn secret_keys_are_known() {
        for key in [
            "PASSWORD",
            "POSTGRES_PASSWORD",
            "PGPASSWORD",
            "dbPassword",
            "db-password",
            "api-key",
            "apiKey",
            "APIKEY",
            "secretAccessKey",
            "AWS_SECRET_ACCESS_KEY",
            "APIKey",
            "JWTSecret",
            "spring.datasource.password",
            "SENTRY_DSN",
            "REDIS_AUTH",
            "PASS",
            "dbpass",
            "requirepass",
            "masterauth",
            "MYSQL_PWD",
            "TOKEN",
            "HF_TOKEN",
            "API_KEYS",
            "api_tokens",
            "tokens",
            "PRIVATE",
            "credentials",
            "PASSWORD_1",
            "PASSWORD2",
            "SECRET_KEY_BASE",
            "passphrase",
            "smtp_passwd",
            "RABBITMQ_ERLANG_COOKIE",
            "rootpasswordhash",
            "traefik.http.middlewares.x.basicauth.users",
            "Authorization",
            "OLD_PASSWORD_1",
            "PRIVATE_KEY",
            "AWS_ACCESS_KEY_ID",
            "NEXTAUTH_SECRET",
            "AUTH_TOKENS",
            "dbSecret",
        ] {
            assert!(secret(key), "{key}");
        }
    }

    #[test]
    fn harmless_keys_stay_readable() {
        for key in [
            "MYSQL_ROOT_PASSWORD_FILE",
            "KEY_LENGTH",
            "TOKEN_LIMIT",
            "MAX_TOKENS",
            "TOKENIZER",
            "TOKENIZERS_PARALLELISM",
            "KEYBOARD",
            "PASSIVE",
            "AUTHOR",
            "primary_key",
            "primaryKey",
            "foreign_key",
            "PUBLIC_KEY",
            "VAPID_PUBLIC_KEY",
            "monkey",
            "BYPASS",
            "max_new_tokens",
            "eos_token",
            "POSTGRES_HOST_AUTH_METHOD",
            "AUTH_ENABLED",
            "ACCESS_TOKEN_EXPIRE_MINUTES",
            "JWT_ALGORITHM",
            "JWT_EXPIRES_IN",
            "proxy_pass",
            "ALLOW_EMPTY_PASSWORD",
            "MYSQL_ALLOW_EMPTY_PASSWORD",
            "keyspace",
            "OLLAMA_KEEP_ALIVE",
            "notify-keyspace-events",
            "secretary",
            "authn",
            "AUTH_URL",
            "SSH_AUTH_SOCK",
            "passenger",
            "pub_key_file",
        ] {
            assert!(!secret(key), "{key}");
        }
    }

    #[test]
    fn operators_exceptions_hold_in_every_spelling() {
        let keys = Keys::new(&["site-key".to_string()]);
        assert!(keys.class(b"SITE_KEY").is_none() && keys.class(b"siteKey").is_none());
        assert!(keys.class(b"OTHER_SITE_KEY").is_some());
    }
}

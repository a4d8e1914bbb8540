//! From raw arguments to what a job takes: parse, don't validate later.

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nbd_export::config::parse_size;
use nbd_export::uri::{NbdUri, UriError};
use volmap::identity::Identity;
use volmap::range::ByteRange;

use crate::error::{Error, ErrorKind, Result};

/// Where a job lets batches wait whose turn to be written has not come.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SpoolArgument {
    /// The directory.
    pub directory: PathBuf,
    /// Bytes at most; half of what is free there, if not given.
    pub size: Option<u64>,
}

impl SpoolArgument {
    /// Parses `DIR[,size=SIZE]`.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`].
    pub fn parse(text: &str) -> Result<Self> {
        let usage = |message: String| Error::new(ErrorKind::Usage, message);
        let (directory, size) = match text.rsplit_once(",size=") {
            Some((directory, size)) => {
                let bytes = parse_size(size).map_err(|error| usage(format!("spool {text}: {error}")))?;
                (directory, Some(bytes))
            }
            None => (text, None),
        };
        if directory.is_empty() {
            return Err(usage(format!("spool {text}: no directory")));
        }
        Ok(Self {
            directory: directory.into(),
            size,
        })
    }
}

/// A disk that the operator lets a job read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LunArgument {
    /// The host's name for it; `None`: its own identity.
    pub identity: Option<Identity>,
    /// Where it is on this machine.
    pub path: PathBuf,
    /// What may be read of it; empty: all.
    pub allowed: Vec<ByteRange>,
}

impl LunArgument {
    /// Parses `[ID=]PATH[@START-END,…]`. What begins with `/` or `.` is wholly a path, since paths hold `=` and `:`; what follows the
    /// last `@` is a list of ranges if it reads as one, and the end of the path otherwise.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`].
    pub fn parse(text: &str) -> Result<Self> {
        if let Some((lun, ranges)) = text.rsplit_once('@')
            && let Some(allowed) = ranges.split(',').map(range_of_bytes).collect()
        {
            return Ok(Self {
                allowed,
                ..Self::parse_whole(lun)?
            });
        }
        Self::parse_whole(text)
    }

    fn parse_whole(text: &str) -> Result<Self> {
        let usage = |message: String| Error::new(ErrorKind::Usage, message);
        if text.starts_with(['/', '.']) {
            return Ok(Self {
                identity: None,
                path: text.into(),
                allowed: Vec::new(),
            });
        }
        match text.split_once('=') {
            Some((_, "")) => Err(usage(format!("--lun {text}: no path after the equals sign"))),
            Some((id, path)) => {
                let identity =
                    Identity::from_operator(id).map_err(|error| usage(format!("--lun {text}: {error}")))?;
                Ok(Self {
                    identity: Some(identity),
                    path: path.into(),
                    allowed: Vec::new(),
                })
            }
            None => Err(usage(format!(
                "--lun {text}: say ID=PATH, or a path that begins with / or ."
            ))),
        }
    }
}

/// As it is parsed.
impl fmt::Display for LunArgument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(identity) = &self.identity {
            write!(f, "{identity}=")?;
        }
        write!(f, "{}", self.path.display())?;
        for (index, range) in self.allowed.iter().enumerate() {
            write!(f, "{}{}-", if index == 0 { "@" } else { "," }, range.start())?;
            if range.end() != u64::MAX {
                write!(f, "{}", range.end())?;
            }
        }
        Ok(())
    }
}

/// `START-END`, `START-`: sizes; the end does not belong to it.
fn range_of_bytes(text: &str) -> Option<ByteRange> {
    let (start, end) = text.split_once('-')?;
    let end = match end {
        "" => u64::MAX,
        end => parse_size(end).ok()?,
    };
    ByteRange::from_bounds(parse_size(start).ok()?, end)
}

/// Parses the URI of an export. A TLS directory of the command line is for a URI that names none.
///
/// # Errors
/// [`ErrorKind::Usage`]: no such URI, or a TLS directory for one that encrypts nothing.
pub fn nbd_uri(text: &str, tls_directory: Option<&Path>) -> Result<NbdUri> {
    encrypted_or_not(text, text.parse(), tls_directory)
}

/// The same, of a URI that may name a set of exports: `nbd://host/?set=NAME`.
///
/// # Errors
/// As [`nbd_uri`].
pub fn nbd_uri_with_set(text: &str, tls_directory: Option<&Path>) -> Result<(NbdUri, Option<String>)> {
    let (uri, set) =
        NbdUri::with_set(text).map_or_else(|error| (Err(error), None), |(uri, set)| (Ok(uri), set));
    Ok((encrypted_or_not(text, uri, tls_directory)?, set))
}

fn encrypted_or_not(
    text: &str,
    uri: std::result::Result<NbdUri, UriError>,
    tls_directory: Option<&Path>,
) -> Result<NbdUri> {
    let usage = |message: String| Error::new(ErrorKind::Usage, message);
    let uri = uri.map_err(|error| usage(format!("{}: {error}", shown(text))))?;
    if uri.tls.is_none() && tls_directory.is_some() {
        return Err(usage(format!(
            "{text}: nothing is encrypted with this scheme, so there is no use for --tls-dir: write nbds"
        )));
    }
    Ok(uri.or_tls_directory(tls_directory))
}

/// A URI as a message shows it: without a user name, which may have a password behind it.
fn shown(uri: &str) -> Cow<'_, str> {
    let Some((scheme, rest)) = uri.split_once("://") else {
        return uri.into();
    };
    let (authority, _) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    match authority.rfind('@') {
        Some(at) => format!("{scheme}://USER{}", &rest[at..]).into(),
        None => uri.into(),
    }
}

/// Where an image goes or comes from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ImagePath {
    /// Standard input or output.
    Stdio,
    /// A file.
    File(PathBuf),
}

impl ImagePath {
    /// `-` is standard input or output; `./-` is a file of that name.
    pub fn new(path: &Path) -> Self {
        if path.as_os_str() == "-" {
            Self::Stdio
        } else {
            Self::File(path.to_owned())
        }
    }
}

/// Where a copy comes from or goes to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Place {
    /// An NBD export.
    Nbd(NbdUri),
    /// A file or block device.
    Path(PathBuf),
    /// Standard input or output.
    Stdio,
    /// Nowhere.
    Null,
}

impl Place {
    /// Parses an NBD URI, `-`, `null:`, or a path; `./-` and `./null:` are files.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`]: a URI that is none, or of something else.
    pub fn parse(text: &OsStr) -> Result<Self> {
        match text.to_str() {
            Some("-") => Ok(Self::Stdio),
            Some("null:") => Ok(Self::Null),
            Some(uri) if uri.split_once("://").is_some_and(|(scheme, _)| is_scheme(scheme)) => uri
                .parse()
                .map(Self::Nbd)
                .map_err(|error| Error::new(ErrorKind::Usage, format!("{}: {error}", shown(uri)))),
            _ => Ok(Self::Path(text.into())),
        }
    }
}

fn is_scheme(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'))
}

/// Parses places. A TLS directory of the command line is for those URIs that name none.
///
/// # Errors
/// [`ErrorKind::Usage`]: as [`Place::parse`], or a TLS directory where nothing is encrypted.
pub fn places<const N: usize>(texts: [&OsString; N], tls_directory: Option<&Path>) -> Result<[Place; N]> {
    let mut parsed = Vec::new();
    for text in texts {
        parsed.push(match Place::parse(text)? {
            Place::Nbd(uri) => Place::Nbd(uri.or_tls_directory(tls_directory)),
            place => place,
        });
    }
    let encrypted = |place: &Place| matches!(place, Place::Nbd(uri) if uri.tls.is_some());
    if tls_directory.is_some() && !parsed.iter().any(encrypted) {
        let message = "nothing is encrypted, so there is no use for --tls-dir: write nbds://";
        return Err(Error::new(ErrorKind::Usage, message));
    }
    Ok(parsed.try_into().expect("as many as there were"))
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nbd(uri) => uri.fmt(f),
            Self::Path(path) => path.display().fmt(f),
            Self::Stdio => f.write_str("-"),
            Self::Null => f.write_str("null:"),
        }
    }
}

/// A duration as people write it: `30` and `30s` are seconds; `500ms`, `1.5m`, `1h30m`.
///
/// # Errors
/// What a duration is.
pub fn parse_duration(text: &str) -> Result<Duration, &'static str> {
    const WHAT: &str = "a duration is a number of seconds, or numbers with units: 500ms, 30s, 5m, 1h30m, 2d";
    let mut rest = text.trim();
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return Err(WHAT);
    }
    while !rest.is_empty() {
        let end = |test: fn(char) -> bool, text: &str| text.find(test).unwrap_or(text.len());
        let (number, unit) = rest.split_at(end(|c| !c.is_ascii_digit() && c != '.', rest));
        let (unit, next) = unit.split_at(end(|c| c.is_ascii_digit() || c == '.', unit));
        let seconds = match unit.trim() {
            "ms" => 0.001,
            "s" | "sec" => 1.0,
            "" if rest == text.trim() => 1.0,
            "m" | "min" => 60.0,
            "h" => 3600.0,
            "d" => 86_400.0,
            _ => return Err(WHAT),
        };
        let number: f64 = number.parse().map_err(|_| WHAT)?;
        let part = Duration::try_from_secs_f64(number * seconds).map_err(|_| WHAT)?;
        total = total.checked_add(part).ok_or(WHAT)?;
        rest = next;
    }
    // Timers count from now on, and must not overflow.
    if total > Duration::from_secs(86_400 * 36_500) {
        return Err("that is longer than a century");
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tls_directory_needs_something_to_encrypt() {
        let directory = Some(Path::new("/pki"));
        assert_eq!(
            nbd_uri("nbd://h", directory).unwrap_err().kind(),
            ErrorKind::Usage
        );
        assert_eq!(nbd_uri("nbd://h", None).unwrap().tls, None);
        let named = |text, expected: &str| {
            let uri = nbd_uri(text, directory).unwrap();
            assert_eq!(uri.tls.unwrap().directory(), Some(Path::new(expected)));
        };
        named("nbds://h", "/pki");
        named("nbds://h?tls-certificates=/mine", "/mine");
    }

    #[test]
    fn luns_split_at_the_first_equals_sign_unless_they_begin_like_a_path() {
        let id = |text| Some(Identity::from_operator(text).unwrap());
        let parsed = |text| LunArgument::parse(text).map(|l| (l.identity, l.path));
        assert_eq!(parsed("lun0=/a=b").unwrap(), (id("lun0"), "/a=b".into()));
        assert_eq!(
            parsed("naa:50=/dev/sdb").unwrap(),
            (id("naa:50"), "/dev/sdb".into())
        );
        assert_eq!(
            parsed("/dev/disk/by-path/ip-1:a=b,c").unwrap(),
            (None, "/dev/disk/by-path/ip-1:a=b,c".into())
        );
        assert_eq!(parsed("./x=y").unwrap(), (None, "./x=y".into()));
        for bad in ["lun0=", "=path", "plain", ""] {
            assert_eq!(
                LunArgument::parse(bad).unwrap_err().kind(),
                ErrorKind::Usage,
                "{bad}"
            );
        }
    }

    #[test]
    fn ranges_are_what_follows_the_last_at_sign_if_it_reads_so() {
        let parsed = |text: &str| {
            let lun = LunArgument::parse(text).unwrap();
            let ranges: Vec<_> = lun.allowed.iter().map(|r| (r.start(), r.end())).collect();
            (lun.path, ranges)
        };
        assert_eq!(
            parsed("lun0=/dev/sdb@1M-2M,1G-"),
            ("/dev/sdb".into(), vec![(1 << 20, 2 << 20), (1 << 30, u64::MAX)])
        );
        assert_eq!(parsed("/dev/sdb@0-4096"), ("/dev/sdb".into(), vec![(0, 4096)]));
        for whole in ["/a@b", "/a@1", "/a@2-1", "/a@1-1", "/a@1-2,x", "/a@", "/a@-5"] {
            assert_eq!(parsed(whole), (whole.into(), Vec::new()), "{whole}");
        }
        for text in ["id:lun0=/dev/sdb@1048576-2097152,1073741824-", "/a@b", "naa:5=/x"] {
            assert_eq!(LunArgument::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(parsed("/a@1-2@0-"), ("/a@1-2".into(), vec![(0, u64::MAX)]));
    }

    #[test]
    fn passwords_are_not_told() {
        for uri in [
            "nbd://u:secret@h/vm",
            "nbds+unix://u:secr@et@/vm?socket=/s",
            "ssh+nbd://secret@h",
        ] {
            for error in [
                nbd_uri(uri, None).unwrap_err(),
                Place::parse(uri.as_ref()).unwrap_err(),
            ] {
                let told = error.to_string();
                assert!(told.contains("://USER@") && !told.contains("secr"), "{told}");
            }
        }
        assert_eq!(shown("nbd://h/vm@1?x"), "nbd://h/vm@1?x");
    }

    #[test]
    fn places_are_told_apart() {
        let parsed = |text: &str| Place::parse(OsStr::new(text));
        assert_eq!(parsed("-").unwrap(), Place::Stdio);
        assert_eq!(parsed("null:").unwrap(), Place::Null);
        for path in ["./-", "null", "a:b", "/x://y", "1x://y"] {
            assert_eq!(parsed(path).unwrap(), Place::Path(path.into()), "{path}");
        }
        let uri = "nbd+unix:///vm?socket=/run/s";
        assert_eq!(parsed(uri).unwrap(), Place::Nbd(uri.parse().unwrap()));
        for bad in ["http://h/x", "nbd:///x", "ssh+nbd://x"] {
            assert_eq!(parsed(bad).unwrap_err().kind(), ErrorKind::Usage, "{bad}");
        }
    }

    #[test]
    fn durations_are_what_people_mean() {
        for (text, milliseconds) in [
            ("30", 30_000),
            ("0", 0),
            ("0s", 0),
            ("500ms", 500),
            ("1.5s", 1500),
            ("0.25", 250),
            ("5m", 300_000),
            ("2min", 120_000),
            ("1h30m", 5_400_000),
            ("1d", 86_400_000),
            (" 3 s", 3000),
        ] {
            assert_eq!(
                parse_duration(text),
                Ok(Duration::from_millis(milliseconds)),
                "{text}"
            );
        }
        for bad in [
            "",
            "s",
            "-1s",
            "1x",
            "1h30",
            "1..5",
            "1e3",
            "inf",
            "1s1",
            "99999999d",
        ] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }
}

//! How arguments with an equals sign are split: paths hold colons, commas and equals signs.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;
use volmap::cow::{CopyAreaSpec, OnFull};
use volmap::identity::Identity;
use volmap::limits::HOLD_MAX;

use super::size::parse_size;
use crate::error::{Error, ErrorKind};

/// Longest name of a volume or frozen image: an export name `NAME@ID.tag` stays far below NBD's 4096 bytes, and a clone
/// named after it below a file system's 255.
const NAME_MAX: usize = 100;

/// A name of a volume, origin, tag or frozen image: `[A-Za-z0-9._-]+`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Deserialize)]
#[serde(try_from = "String")]
pub struct VolumeName(String);

/// Why a text is no name.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NameError {
    /// Another byte than the allowed ones, or none at all.
    #[error("a name holds letters, digits, '.', '_' and '-', and at least one of them")]
    Malformed,
    /// Longer than 100 bytes.
    #[error("a name has at most {NAME_MAX} characters")]
    TooLong,
}

fn allowed(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')
}

impl FromStr for VolumeName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.is_empty() || !text.chars().all(allowed) {
            Err(NameError::Malformed)
        } else if text.len() > NAME_MAX {
            Err(NameError::TooLong)
        } else {
            Ok(Self(text.to_owned()))
        }
    }
}

impl TryFrom<String> for VolumeName {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl VolumeName {
    /// The name of a volume that was given without one: its file name, other characters replaced by `-`.
    ///
    /// # Errors
    /// [`NameError::Malformed`] where the path has no file name.
    pub fn from_path(path: &Path) -> Result<Self, NameError> {
        let name = path.file_name().ok_or(NameError::Malformed)?;
        let name = name.to_string_lossy();
        Ok(Self(
            name.chars()
                .take(NAME_MAX)
                .map(|c| if allowed(c) { c } else { '-' })
                .collect(),
        ))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for VolumeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Splits `NAME=PATH`: an argument that begins with `/` or `.` is wholly a path, any other is split at its first `=`.
pub fn split_name(argument: &str) -> (Option<&str>, &str) {
    if argument.starts_with(['/', '.']) {
        return (None, argument);
    }
    match argument.split_once('=') {
        Some((name, path)) => (Some(name), path),
        None => (None, argument),
    }
}

fn usage(argument: &str, option: &str, why: impl fmt::Display) -> Error {
    Error::new(ErrorKind::Usage, format!("{option} {argument}: {why}"))
}

/// `[NAME=]VOLUME`.
pub(super) fn volume(argument: &str) -> Result<(VolumeName, PathBuf), Error> {
    let (name, path) = split_name(argument);
    let path = PathBuf::from(path);
    let name = match name {
        Some(name) => name.parse(),
        None => VolumeName::from_path(&path),
    }
    .map_err(|why| usage(argument, "VOLUME", why))?;
    if path.as_os_str().is_empty() {
        return Err(usage(argument, "VOLUME", "there is no path behind the '='"));
    }
    Ok((name, path))
}

/// `NAME=PATH` of an option that needs the name.
pub(super) fn named(option: &str, argument: &str) -> Result<(VolumeName, PathBuf), Error> {
    let (name, path) = split_name(argument);
    let name = name.ok_or_else(|| usage(argument, option, "write NAME=PATH"))?;
    let name = name
        .parse()
        .map_err(|why: NameError| usage(argument, option, why))?;
    if path.is_empty() {
        return Err(usage(argument, option, "there is no path behind the '='"));
    }
    Ok((name, PathBuf::from(path)))
}

/// `PATH[,tls=off]`: the path, and whether it goes without TLS.
///
/// # Errors
/// [`ErrorKind::Usage`].
pub fn socket(argument: &Path) -> Result<(PathBuf, bool), Error> {
    let bytes = argument.as_os_str().as_bytes();
    let (path, plaintext) = match bytes.strip_suffix(b",tls=off") {
        Some(path) => (path, true),
        None => (bytes, false),
    };
    if path.is_empty() {
        return Err(usage(
            &argument.to_string_lossy(),
            "--socket",
            "the path is empty",
        ));
    }
    Ok((OsStr::from_bytes(path).into(), plaintext))
}

/// `PATH[,size=SIZE][,on-full=break|hold[:SECONDS]]`: only what is at the end, each option once, is split off. The rest is a path.
pub(super) fn copy_area(argument: &str) -> Result<CopyAreaSpec, Error> {
    let (mut path, mut size, mut on_full) = (argument, None, None);
    while let Some((before, option)) = path.rsplit_once(',') {
        match option.split_once('=') {
            // A slash behind it: it was part of a path.
            Some(("size", value)) if size.is_none() && !value.contains('/') => {
                size = Some(parse_size(value).map_err(|why| usage(argument, "--copy-area", why))?);
            }
            Some(("on-full", value)) if on_full.is_none() && !value.contains('/') => {
                let most = HOLD_MAX.as_secs();
                let ways = format_args!("on-full is break, hold or hold:SECONDS, of 1 to {most} seconds");
                let parsed = parse_on_full(value);
                on_full = Some(parsed.ok_or_else(|| usage(argument, "--copy-area", ways))?);
            }
            _ => break,
        }
        path = before;
    }
    if path.is_empty() {
        return Err(usage(argument, "--copy-area", "the path is empty"));
    }
    Ok(CopyAreaSpec {
        path: PathBuf::from(path),
        size,
        on_full: on_full.unwrap_or_default(),
    })
}

pub(super) fn parse_on_full(value: &str) -> Option<OnFull> {
    if value == "break" {
        return Some(OnFull::Break);
    }
    if value == "hold" {
        return Some(OnFull::HOLD);
    }
    let limit = Duration::from_secs(value.strip_prefix("hold:")?.parse().ok()?);
    (Duration::from_secs(1)..=HOLD_MAX)
        .contains(&limit)
        .then_some(OnFull::Hold(limit))
}

/// `--identity PATH=ID`, split at the last `=`: identities given by an operator hold none.
///
/// # Errors
/// [`ErrorKind::Usage`].
pub fn identities(arguments: &[String]) -> Result<Vec<(PathBuf, Identity)>, Error> {
    let parse = |argument: &String| {
        let (path, id) = argument
            .rsplit_once('=')
            .filter(|(path, _)| !path.is_empty())
            .ok_or_else(|| usage(argument, "--identity", "write PATH=ID"))?;
        let identity = Identity::from_operator(id).map_err(|why| usage(argument, "--identity", why))?;
        Ok((PathBuf::from(path), identity))
    };
    arguments.iter().map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_begins_like_a_path_is_a_path() {
        assert_eq!(split_name("/a=b"), (None, "/a=b"));
        assert_eq!(split_name("./a=b"), (None, "./a=b"));
        assert_eq!(split_name("../a=b"), (None, "../a=b"));
        assert_eq!(split_name("a=/b=c"), (Some("a"), "/b=c"));
        assert_eq!(split_name("vm.img"), (None, "vm.img"));
        let by_path = "db=/dev/disk/by-path/ip-10.0.0.1:3260-iscsi-iqn.2001:x,t=1-lun-0";
        assert_eq!(split_name(by_path), (Some("db"), &by_path[3..]));
    }

    #[test]
    fn a_volume_without_a_name_gets_that_of_its_file() {
        assert_eq!(volume("/vm/a b=ü.img").unwrap().0.as_str(), "a-b--.img");
        assert_eq!(volume("db=/vm/x").unwrap().0.as_str(), "db");
        for bad in ["a b=/x", "=/x", "a/b=/x", "db=", "/", ".."] {
            assert_eq!(volume(bad).unwrap_err().kind(), ErrorKind::Usage, "{bad}");
        }
    }

    #[test]
    fn names_end_at_their_limit() {
        for (len, fits) in [(NAME_MAX - 1, true), (NAME_MAX, true), (NAME_MAX + 1, false)] {
            assert_eq!("x".repeat(len).parse::<VolumeName>().is_ok(), fits);
        }
        assert_eq!("a@b".parse::<VolumeName>(), Err(NameError::Malformed));
        assert_eq!("".parse::<VolumeName>(), Err(NameError::Malformed));
    }

    #[test]
    fn only_a_trailing_size_is_split_off_a_copy_area() {
        let parsed = |argument: &str| {
            let area = copy_area(argument).unwrap();
            (area.path.to_str().unwrap().to_owned(), area.size)
        };
        assert_eq!(parsed("/a,size=4K"), ("/a".into(), Some(4096)));
        assert_eq!(parsed("/a,b=c"), ("/a,b=c".into(), None));
        assert_eq!(parsed("/a,size=1/b"), ("/a,size=1/b".into(), None));
        assert_eq!(parsed("/a,size=1,size=2"), ("/a,size=1".into(), Some(2)));
        assert_eq!(parsed("/a,b,size=1,on-full=hold"), ("/a,b".into(), Some(1)));
        assert_eq!(parsed("/a,on-full=break,size=1"), ("/a".into(), Some(1)));
        assert_eq!(parsed("/a,on-full=x/b"), ("/a,on-full=x/b".into(), None));
        assert_eq!(copy_area("/a,size=x").unwrap_err().kind(), ErrorKind::Usage);
        assert_eq!(copy_area(",size=1").unwrap_err().kind(), ErrorKind::Usage);
    }

    #[test]
    fn a_full_copy_area_breaks_or_holds_for_a_time_within_limits() {
        let on_full = |argument: &str| copy_area(argument).map(|area| area.on_full);
        let seconds = |seconds| OnFull::Hold(Duration::from_secs(seconds));
        assert_eq!(on_full("/a").unwrap(), OnFull::Break);
        assert_eq!(on_full("/a,on-full=break").unwrap(), OnFull::Break);
        assert_eq!(on_full("/a,on-full=hold").unwrap(), seconds(60));
        for (limit, fits) in [(0, false), (1, true), (3600, true), (3601, false)] {
            let parsed = on_full(&format!("/a,on-full=hold:{limit}"));
            assert_eq!(parsed.ok(), fits.then(|| seconds(limit)), "{limit}");
        }
        for bad in [
            "",
            "wait",
            "hold:",
            "hold:-1",
            "hold:1s",
            "hold:18446744073709551616",
        ] {
            let parsed = on_full(&format!("/a,on-full={bad}"));
            assert_eq!(parsed.unwrap_err().kind(), ErrorKind::Usage, "{bad}");
        }
    }

    #[test]
    fn only_a_trailing_word_on_tls_is_split_off_a_socket() {
        let parsed = |argument: &str| socket(argument.as_ref()).unwrap();
        assert_eq!(parsed("/s"), ("/s".into(), false));
        assert_eq!(parsed("/s,tls=off"), ("/s".into(), true));
        assert_eq!(parsed("/s,tls=off/s"), ("/s,tls=off/s".into(), false));
        for bad in [",tls=off", ""] {
            assert_eq!(socket(bad.as_ref()).unwrap_err().kind(), ErrorKind::Usage);
        }
    }

    #[test]
    fn identities_split_at_the_last_equals_sign() {
        let parsed = identities(&["/a=b=naa:5000".to_owned(), "/x=lun0".to_owned()]).unwrap();
        assert_eq!(parsed[0].0, Path::new("/a=b"));
        assert_eq!(parsed[0].1.as_str(), "naa:5000");
        assert_eq!(parsed[1].1.as_str(), "id:lun0");
        for bad in ["/x", "=x", "/x="] {
            assert_eq!(
                identities(&[bad.to_owned()]).unwrap_err().kind(),
                ErrorKind::Usage
            );
        }
    }
}

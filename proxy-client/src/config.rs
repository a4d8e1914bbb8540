//! From raw arguments to what a job takes: parse, don't validate later.

use std::path::{Path, PathBuf};

use volmap::identity::Identity;

use crate::error::{Error, ErrorKind, Result};

/// A disk that the operator lets a job read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LunArgument {
    /// The host's name for it; `None`: its own identity.
    pub identity: Option<Identity>,
    /// Where it is on this machine.
    pub path: PathBuf,
}

impl LunArgument {
    /// Parses `[ID=]PATH`. What begins with `/` or `.` is wholly a path, since paths hold `=` and `:`.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`].
    pub fn parse(text: &str) -> Result<Self> {
        let usage = |message: String| Error::new(ErrorKind::Usage, message);
        if text.starts_with(['/', '.']) {
            return Ok(Self {
                identity: None,
                path: text.into(),
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
                })
            }
            None => Err(usage(format!(
                "--lun {text}: say ID=PATH, or a path that begins with / or ."
            ))),
        }
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

#[cfg(test)]
mod tests {
    use super::*;

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
}

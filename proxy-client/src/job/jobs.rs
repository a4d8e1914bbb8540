//! `jobs`: those of a daemon, asked of it.

use std::fmt;
use std::path::Path;

use indicatif::HumanBytes;
use nbd_export::proxy::{CopyAreaFill, JobList, JobReport, ProxyClient, ProxyError, ProxyUrl};

use crate::error::{Error, ErrorKind, Result};
use crate::escaped::escaped;

/// A way to the daemon at `url`.
///
/// # Errors
/// [`ErrorKind::Usage`], or certificates that cannot be used.
pub fn daemon_at(url: &str, tls_directory: Option<&Path>) -> Result<ProxyClient> {
    let url: ProxyUrl = url
        .parse()
        .map_err(|error| Error::new(ErrorKind::Usage, format!("--daemon {url}: {error}")))?;
    ProxyClient::new(url, tls_directory).map_err(failed)
}

/// What a daemon's refusal is to this program.
pub fn failed(error: ProxyError) -> Error {
    let kind = match &error {
        ProxyError::Lost(_) => ErrorKind::DaemonLost,
        ProxyError::Untrusted(_) => ErrorKind::HostUntrusted,
        ProxyError::NoCertificates => ErrorKind::Usage,
        ProxyError::Refused { .. } | ProxyError::Strange(_) => ErrorKind::DaemonRefused,
    };
    Error::new(kind, "the daemon").caused_by(error)
}

/// A line for each job.
pub struct Lines<'a>(pub &'a JobList);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for job in &self.0.jobs {
            writeln!(f, "{}", Line(job))?;
        }
        Ok(())
    }
}

/// One job on one line.
pub struct Line<'a>(pub &'a JobReport);

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let job = self.0;
        let request = &job.request;
        write!(
            f,
            "{:>5}  {:<9}  {}/{}",
            job.id,
            job.state.name(),
            escaped(&request.host),
            escaped(&request.volume)
        )?;
        if let Some(progress) = job.progress.filter(|progress| progress.size > 0) {
            let percent = u128::from(progress.done) * 100 / u128::from(progress.size);
            write!(
                f,
                "  {percent} % of {}, direct {}, nbd {}",
                HumanBytes(progress.size),
                HumanBytes(progress.direct),
                HumanBytes(progress.nbd)
            )?;
            if let Some(CopyAreaFill { used, size }) = progress.copy_area {
                write!(f, ", copy area {} of {}", HumanBytes(used), HumanBytes(size))?;
            }
        }
        if let Some(image) = job
            .image
            .as_deref()
            .filter(|_| job.state.is_final() && job.verified)
        {
            write!(f, "  {}", escaped(image))?;
        }
        if let Some(failure) = &job.failure {
            write!(f, "  {}: {}", escaped(&failure.kind), escaped(&failure.message))?;
        }
        if let Some(note) = job.notes.last() {
            write!(f, "  ({})", escaped(note))?;
        }
        Ok(())
    }
}

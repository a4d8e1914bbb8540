//! Talks to a daemon: one request, one answer, one connection each.

use std::io;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use super::model::{DaemonStatus, ErrorBody, JobLimits, JobList, JobReport, JobRequest};
use super::url::ProxyUrl;
use crate::tls::{ClientTls, TlsError};

/// Longest answer that is taken: thousands of jobs with their reports.
const ANSWER_MAX: usize = 64 << 20;

/// Time for one request and its answer.
const DEADLINE: Duration = Duration::from_secs(30);

/// Why a daemon did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// It is not there, or was lost: the same request may be made again.
    #[error("no answer: {0}")]
    Lost(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It, or we, could not prove who they are.
    #[error(transparent)]
    Untrusted(#[from] TlsError),
    /// An https URL, and no directory with certificates.
    #[error("certificates on both sides are needed: give --tls-dir")]
    NoCertificates,
    /// It said no.
    #[error("{}", .body.message)]
    Refused {
        /// HTTP's number.
        status: u16,
        /// What it said.
        body: ErrorBody,
    },
    /// It does not speak our language.
    #[error("not the answer of a proxy's daemon: {0}")]
    Strange(String),
}

impl ProxyError {
    /// Whether asking again may help.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Lost(_) => true,
            Self::Refused { status, .. } => *status >= 500 || *status == 429,
            Self::Untrusted(_) | Self::NoCertificates | Self::Strange(_) => false,
        }
    }

    fn lost(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Lost(error.into())
    }
}

/// A way to a daemon.
#[derive(Clone)]
pub struct ProxyClient {
    url: ProxyUrl,
    tls: Option<ClientTls>,
}

impl ProxyClient {
    /// For the daemon at `url`; certificates are read at once.
    ///
    /// # Errors
    /// They cannot be used, or there are none and there have to be.
    pub fn new(url: ProxyUrl, tls_directory: Option<&Path>) -> Result<Self, ProxyError> {
        let tls = match (&url, tls_directory) {
            (ProxyUrl::Unix(_), _) => None,
            (ProxyUrl::Https { .. }, None) => return Err(ProxyError::NoCertificates),
            (ProxyUrl::Https { .. }, Some(directory)) => Some(ClientTls::load(directory)?),
        };
        Ok(Self { url, tls })
    }

    /// Where it is.
    pub fn url(&self) -> &ProxyUrl {
        &self.url
    }

    /// Hands a job over. Once this has returned the daemon has it on its disk.
    ///
    /// # Errors
    /// [`ProxyError`]; after [`ProxyError::Lost`] the daemon may have the job or not, and the same request asks for the same job.
    pub async fn submit(&self, job: &JobRequest) -> Result<JobReport, ProxyError> {
        self.ask(Method::POST, "/v1/jobs", Some(job)).await
    }

    /// A job.
    ///
    /// # Errors
    /// [`ProxyError`].
    pub async fn job(&self, id: u64) -> Result<JobReport, ProxyError> {
        self.ask(Method::GET, &format!("/v1/jobs/{id}"), NOTHING).await
    }

    /// All jobs that we may see.
    ///
    /// # Errors
    /// [`ProxyError`].
    pub async fn jobs(&self) -> Result<JobList, ProxyError> {
        self.ask(Method::GET, "/v1/jobs", NOTHING).await
    }

    /// Ends a job; nothing is left of it.
    ///
    /// # Errors
    /// [`ProxyError`].
    pub async fn cancel(&self, id: u64) -> Result<JobReport, ProxyError> {
        self.ask(Method::DELETE, &format!("/v1/jobs/{id}"), NOTHING).await
    }

    /// Sets how fast a job may read, also while it does.
    ///
    /// # Errors
    /// [`ProxyError`].
    pub async fn limit(&self, id: u64, limits: &JobLimits) -> Result<JobReport, ProxyError> {
        let path = format!("/v1/jobs/{id}/limits");
        self.ask(Method::PUT, &path, Some(limits)).await
    }

    /// What the daemon does.
    ///
    /// # Errors
    /// [`ProxyError`].
    pub async fn status(&self) -> Result<DaemonStatus, ProxyError> {
        self.ask(Method::GET, "/v1/status", NOTHING).await
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, ProxyError> {
        let body = match body {
            Some(body) => serde_json::to_vec(body).map_err(|error| ProxyError::Strange(error.to_string()))?,
            None => Vec::new(),
        };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "proxy")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| ProxyError::Strange(error.to_string()))?;
        let answered = timeout(DEADLINE, self.exchange(request)).await;
        let (status, answer) =
            answered.map_err(|_| ProxyError::lost(io::Error::from(io::ErrorKind::TimedOut)))??;
        if status.is_success() {
            return serde_json::from_slice(&answer).map_err(|error| ProxyError::Strange(error.to_string()));
        }
        match serde_json::from_slice(&answer) {
            Ok(body) => Err(ProxyError::Refused {
                status: status.as_u16(),
                body,
            }),
            Err(_) => Err(ProxyError::Strange(format!("HTTP status {status}"))),
        }
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<(StatusCode, Bytes), ProxyError> {
        match (&self.url, &self.tls) {
            (ProxyUrl::Unix(path), _) => {
                let stream = UnixStream::connect(path).await.map_err(ProxyError::lost)?;
                converse(stream, request).await
            }
            (ProxyUrl::Https { host, port }, Some(tls)) => {
                let stream = TcpStream::connect((host.as_str(), *port))
                    .await
                    .map_err(ProxyError::lost)?;
                let stream = match tls.connect(stream, host).await {
                    Ok(stream) => stream,
                    Err(error) if error.is_connection_lost() => return Err(ProxyError::lost(error)),
                    Err(error) => return Err(error.into()),
                };
                converse(stream, request).await
            }
            (ProxyUrl::Https { .. }, None) => Err(ProxyError::NoCertificates),
        }
    }
}

const NOTHING: Option<&()> = None;

async fn converse<S>(stream: S, request: Request<Full<Bytes>>) -> Result<(StatusCode, Bytes), ProxyError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(ProxyError::lost)?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(ProxyError::lost)?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_MAX).collect().await;
        Ok((status, body.map_err(ProxyError::Lost)?.to_bytes()))
    };
    let mut exchange = std::pin::pin!(exchange);
    tokio::select! {
        answered = &mut exchange => answered,
        // The connection has to be driven; where it ends first, the exchange says how.
        ended = connection => match ended {
            Ok(()) => exchange.await,
            Err(error) => Err(ProxyError::lost(error)),
        },
    }
}

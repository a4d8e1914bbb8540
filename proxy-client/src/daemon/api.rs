//! The API: HTTP and JSON (docs/daemon.md).

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Body;
use hyper::header::{ALLOW, CONTENT_TYPE};
use hyper::{Method, Request, Response, StatusCode};
use nbd_export::proxy::{DaemonStatus, ErrorBody, JobList, JobReport, JobRequest, LunStatus};
use nbd_export::server::Client;
use serde::Serialize;
use tokio::time::timeout;

use super::limits::{BODY_MAX, REQUEST_DEADLINE};
use super::queue::Submitted;
use super::scheduler::Scheduler;
use crate::error::{Error, ErrorKind};

/// An answer.
pub(super) type Answer = Response<Full<Bytes>>;

/// A refusal.
struct Refusal {
    status: StatusCode,
    kind: &'static str,
    message: String,
}

impl Refusal {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            kind,
            message: message.into(),
        }
    }

    fn not_found() -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "not-found",
            "there is nothing of that name for you",
        )
    }

    fn forbidden() -> Self {
        Self::new(
            StatusCode::FORBIDDEN,
            "forbidden",
            "the configuration does not let you do this",
        )
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        match error.kind() {
            ErrorKind::Usage => Self::new(StatusCode::BAD_REQUEST, "bad-request", error.to_string()),
            _ => {
                tracing::error!(%error, "a request failed");
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", error.to_string())
            }
        }
    }
}

/// Answers one request of a client.
pub(super) async fn answer<B>(scheduler: Arc<Scheduler>, client: Arc<Client>, request: Request<B>) -> Answer
where
    B: Body<Data = Bytes> + Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let answered = route(&scheduler, &client, request).await;
    let answer = answered.unwrap_or_else(|refusal| {
        let Refusal {
            status,
            kind,
            message,
        } = refusal;
        let body = ErrorBody {
            kind: kind.to_owned(),
            message,
        };
        let mut answer = json(status, &body);
        if status == StatusCode::METHOD_NOT_ALLOWED {
            answer
                .headers_mut()
                .insert(ALLOW, "GET, POST, PUT, DELETE".parse().expect("a header"));
        }
        answer
    });
    tracing::debug!(%method, path, status = answer.status().as_u16(), names = ?client.names, "request");
    answer
}

async fn route<B>(scheduler: &Arc<Scheduler>, client: &Client, request: Request<B>) -> Result<Answer, Refusal>
where
    B: Body<Data = Bytes> + Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let path = request.uri().path().to_owned();
    let parts: Vec<&str> = path.split('/').skip(1).collect();
    match (request.method(), &parts[..]) {
        (&Method::POST, ["v1", "jobs"]) => {
            let job = body(request).await?;
            submit(scheduler, client, job).await
        }
        (&Method::GET, ["v1", "jobs"]) => Ok(json(StatusCode::OK, &list(scheduler, client))),
        (&Method::GET, ["v1", "jobs", id]) => {
            let job = find(scheduler, client, id)?;
            Ok(json(StatusCode::OK, &scheduler.with_progress(job)))
        }
        (&Method::DELETE, ["v1", "jobs", id]) => {
            let job = find(scheduler, client, id)?;
            let (asked, id) = (Arc::clone(scheduler), job.id);
            on_thread(move || asked.cancel(id)).await?;
            let job = scheduler.queue.job(id).ok_or_else(Refusal::not_found)?;
            Ok(json(StatusCode::OK, &scheduler.with_progress(job)))
        }
        (&Method::PUT, ["v1", "jobs", id, "limits"]) => {
            let job = find(scheduler, client, id)?;
            // A host that hurries is not its own judge.
            if !scheduler.config.is_operator(client) {
                return Err(Refusal::forbidden());
            }
            let limits = body(request).await?;
            let (asked, id) = (Arc::clone(scheduler), job.id);
            let job = on_thread(move || asked.limit(id, limits)).await?;
            Ok(json(StatusCode::OK, &scheduler.with_progress(job)))
        }
        (&Method::GET, ["v1", "status"]) if scheduler.config.is_operator(client) => {
            Ok(json(StatusCode::OK, &status(scheduler)))
        }
        (&Method::GET, ["metrics"]) if scheduler.config.is_operator(client) => {
            let jobs = scheduler.queue.jobs().into_iter();
            let jobs: Vec<_> = jobs.map(|job| scheduler.with_progress(job)).collect();
            let text = scheduler.metrics.text(&jobs, scheduler.repository.free());
            let mut answer = Response::new(Full::from(text));
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            answer
                .headers_mut()
                .insert(CONTENT_TYPE, kind.parse().expect("a header"));
            Ok(answer)
        }
        (&Method::GET, ["v1", "status"] | ["metrics"]) => Err(Refusal::forbidden()),
        (_, ["v1", "jobs" | "status"] | ["v1", "jobs", _] | ["v1", "jobs", _, "limits"] | ["metrics"]) => {
            Err(Refusal::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "bad-request",
                "not with this method",
            ))
        }
        _ => Err(Refusal::not_found()),
    }
}

/// The JSON that a client sent, within its bounds.
async fn body<B, T>(request: Request<B>) -> Result<T, Refusal>
where
    B: Body<Data = Bytes> + Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    T: serde::de::DeserializeOwned,
{
    let bad = |message: String| Refusal::new(StatusCode::BAD_REQUEST, "bad-request", message);
    let collected = timeout(
        REQUEST_DEADLINE,
        Limited::new(request.into_body(), BODY_MAX).collect(),
    );
    let collected = collected.await.map_err(|_| {
        Refusal::new(
            StatusCode::REQUEST_TIMEOUT,
            "too-slow",
            "the request took too long to arrive",
        )
    })?;
    let bytes = collected.map_err(|error| match error.downcast_ref::<LengthLimitError>() {
        Some(_) => Refusal::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "too-large",
            format!("a request has at most {BODY_MAX} bytes"),
        ),
        None => bad(error.to_string()),
    })?;
    serde_json::from_slice(&bytes.to_bytes()).map_err(|error| bad(format!("not a request: {error}")))
}

async fn submit(scheduler: &Arc<Scheduler>, client: &Client, job: JobRequest) -> Result<Answer, Refusal> {
    // Of a host that it may not have a client does not learn whether there is one.
    if !scheduler.config.is_for(&job.host, client) {
        return Err(Refusal::forbidden());
    }
    scheduler.config.check(&job)?;
    let (queue, most) = (Arc::clone(&scheduler.queue), scheduler.config.queue);
    let submitted = on_thread(move || queue.submit(job, most)).await?;
    match submitted {
        Submitted::New(job) => {
            let JobReport { id, request, .. } = &job;
            tracing::info!(
                job = id,
                host = request.host,
                volume = request.volume,
                export = request.export,
                "accepted"
            );
            scheduler.wake();
            Ok(json(StatusCode::CREATED, &job))
        }
        Submitted::Known(job) => Ok(json(StatusCode::OK, &scheduler.with_progress(job))),
        Submitted::Full => Err(Refusal::new(
            StatusCode::TOO_MANY_REQUESTS,
            "queue-full",
            "as many jobs wait as may; try again later",
        )),
    }
}

/// A job that a client may see; others are unknown to it.
fn find(scheduler: &Scheduler, client: &Client, id: &str) -> Result<JobReport, Refusal> {
    let job = id.parse().ok().and_then(|id| scheduler.queue.job(id));
    job.filter(|job| may_see(scheduler, client, job))
        .ok_or_else(Refusal::not_found)
}

/// A host that is no longer configured is its operators'.
fn may_see(scheduler: &Scheduler, client: &Client, job: &JobReport) -> bool {
    scheduler.config.is_for(&job.request.host, client) || scheduler.config.is_operator(client)
}

fn list(scheduler: &Scheduler, client: &Client) -> JobList {
    let jobs = scheduler.queue.jobs().into_iter().rev();
    let seen = jobs.filter(|job| may_see(scheduler, client, job));
    JobList {
        jobs: seen.map(|job| scheduler.with_progress(job)).collect(),
    }
}

fn status(scheduler: &Scheduler) -> DaemonStatus {
    let jobs = scheduler.queue.jobs();
    let running = scheduler.running_count();
    let open = jobs.iter().filter(|job| !job.state.is_final()).count();
    let luns = scheduler.config.luns.keys();
    DaemonStatus {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        repository: scheduler.repository.root().display().to_string(),
        repository_free: scheduler.repository.free(),
        queued: open.saturating_sub(running),
        running,
        most: scheduler.config.jobs,
        luns: luns
            .map(|name| LunStatus {
                name: name.clone(),
                jobs: scheduler.readers_of(name),
            })
            .collect(),
    }
}

fn json(status: StatusCode, value: &impl Serialize) -> Answer {
    let text = serde_json::to_vec(value).unwrap_or_default();
    let mut answer = Response::new(Full::from(text));
    *answer.status_mut() = status;
    answer
        .headers_mut()
        .insert(CONTENT_TYPE, "application/json".parse().expect("a header"));
    answer
}

/// The queue waits for its disk.
async fn on_thread<T: Send + 'static>(
    work: impl FnOnce() -> crate::error::Result<T> + Send + 'static,
) -> Result<T, Refusal> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => Ok(result?),
        Err(error) => {
            tracing::error!(%error, "a request ended in disorder");
            let message = "the daemon met a bug; its log says where";
            Err(Refusal::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "internal",
                message,
            ))
        }
    }
}

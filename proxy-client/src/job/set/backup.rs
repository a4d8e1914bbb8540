//! Backs up a set, one export after the other.

use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};

use nbd_export::proto::ExportName;
use nbd_export::uri::NbdUri;
use serde::Serialize;
use uuid::Uuid;

use super::asked_for::{AskedFor, asked_for};
use super::manifest::{SetImage, SetManifest};
use crate::config::ImagePath;
use crate::error::{Error, ErrorKind, Result};
use crate::image_source::ImageSource;
use crate::job::backup::{BackupOptions, backup_unless};
use crate::job::info::{details, list};
use crate::job::resume::{ResumeOptions, resume_unless};
use crate::job::thread::on_thread;
use crate::job::unfinished::refuse_resumable;
use crate::nbd::Deadlines;
use crate::output::PartialFile;
use crate::progress::Progress;
use crate::report::{BackupReport, verdict_on};
use crate::transport::direct::LunOpener;

/// What the context is called that names a frozen image.
const FROZEN: &str = "x-volmap:frozen:";

/// What the file of an image is called behind the name of its volume.
pub(super) const IMAGE_SUFFIX: &str = ".vbi.zst";

/// A set to be backed up: its exports as they are listed now.
#[derive(Clone, Debug)]
pub struct SetTarget {
    set: Option<String>,
    frozen_at: Option<String>,
    members: Vec<Member>,
}

#[derive(Clone, Debug)]
struct Member {
    uri: NbdUri,
    volume: String,
    frozen: Option<Uuid>,
}

/// What became of a set.
#[derive(Debug, Serialize)]
pub struct SetReport {
    /// Its manifest.
    #[serde(flatten)]
    pub manifest: SetManifest,
    /// The report of each image, in their order; null for one that an earlier attempt had finished.
    pub reports: Vec<Option<BackupReport>>,
    #[serde(skip)]
    verdict: Option<Error>,
}

impl SetReport {
    /// What the command ends with: the first thing that was not as it should be.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`], [`ErrorKind::PolicyMissed`].
    pub fn into_verdict(self) -> Result<()> {
        self.verdict.map_or(Ok(()), Err)
    }
}

/// Looks which exports there are: those that were given, or all of a set at the server of the one that was given. Of `NAME@new` the host
/// freezes a set, unless an earlier attempt at this manifest had it do that.
///
/// # Errors
/// [`ErrorKind::Usage`]: they are of several sets, or have one name. [`ErrorKind::HostIncompatible`]: there is no such set, or not all of
/// it is offered to us. [`ErrorKind::FrozenImageGone`]: it is the one that an earlier attempt began with. [`ErrorKind::OutputExists`]: nothing
/// is frozen for a manifest that is there.
pub async fn members(
    uris: &[NbdUri],
    set: Option<&str>,
    manifest: &Path,
    deadlines: Deadlines,
) -> Result<SetTarget> {
    let asked_for = match (set, uris) {
        (Some(set), [server]) => Some(asked_for(server, set, manifest, deadlines).await?),
        _ => None,
    };
    let mut found = Vec::new();
    match (&asked_for, uris) {
        (Some(AskedFor { name: set, .. }), [server]) => {
            for export in list(server).await?.exports {
                if word(&export.description, "set") == Some(set.as_str()) {
                    let export = ExportName::new(&export.name).map_err(|error| {
                        Error::new(ErrorKind::HostMisbehaved, "an export has a name that is none")
                            .caused_by(error)
                    })?;
                    found.push(NbdUri {
                        export,
                        ..server.clone()
                    });
                }
            }
        }
        (None, uris) if set.is_none() => found.extend_from_slice(uris),
        _ => {
            return Err(Error::new(
                ErrorKind::Usage,
                "--set: give the URI of one server, of any export of it",
            ));
        }
    }
    let mut target = SetTarget {
        set: None,
        frozen_at: None,
        members: Vec::new(),
    };
    let mut first: Option<Told> = None;
    for uri in found {
        let about = details(&uri).await?;
        let told = Told::by(&uri, &about.description)?;
        match &first {
            None => {
                target.frozen_at = word(&about.description, "frozen-at").map(str::to_owned);
                target.set.clone_from(&told.set);
                first = Some(told);
            }
            Some(first) if told != *first => {
                let message = format!(
                    "{uri} is not of the same set of the same server as the first, so nothing says that they are of one instant"
                );
                return Err(Error::new(ErrorKind::Usage, message));
            }
            Some(_) => {}
        }
        let named = about.contexts.iter().find_map(|name| name.strip_prefix(FROZEN));
        let volume = volume_of(uri.export.as_str());
        if volume.is_empty() || target.members.iter().any(|member| member.volume == volume) {
            let message = format!("two exports are of a volume called {volume:?}, or one has no name");
            return Err(Error::new(ErrorKind::Usage, message));
        }
        target.members.push(Member {
            uri,
            volume,
            frozen: named.and_then(|uuid| uuid.parse().ok()),
        });
    }
    let offered = target.members.len();
    let missing = match (asked_for, first.and_then(|told| told.count)) {
        (
            Some(AskedFor {
                name, begun: true, ..
            }),
            _,
        ) if offered == 0 => {
            let message = format!(
                "the images of an earlier attempt are of the frozen set {name}, which is not there any more: remove them to begin again"
            );
            return Err(Error::new(ErrorKind::FrozenImageGone, message).at_path(manifest));
        }
        (Some(AskedFor { name, .. }), _) if offered == 0 => {
            Some(format!("there is no frozen set {name} at this server"))
        }
        (_, Some(count)) if count != offered => Some(format!(
            "the frozen set has {count} volumes, and these are {offered}"
        )),
        _ => None,
    };
    match missing {
        Some(message) => Err(Error::new(ErrorKind::HostIncompatible, message)),
        None => Ok(target),
    }
}

/// What a server says of the set that an export is of; nothing where it is of none. A name alone is no set: servers that are set up alike have
/// sets of one name.
#[derive(PartialEq, Eq, Debug)]
struct Told {
    set: Option<String>,
    count: Option<usize>,
    server: Option<NbdUri>,
}

impl Told {
    fn by(uri: &NbdUri, description: &str) -> Result<Self> {
        let Some(set) = word(description, "set") else {
            return Ok(Self {
                set: None,
                count: None,
                server: None,
            });
        };
        let Some(count) = word(description, "set-members").and_then(|count| count.parse().ok()) else {
            let message = format!("it says that it is of the set {set}, and not of how many volumes");
            return Err(Error::new(ErrorKind::HostIncompatible, message).of_volume(uri.export.as_str()));
        };
        Ok(Self {
            set: Some(set.to_owned()),
            count: Some(count),
            server: Some(NbdUri {
                export: ExportName::default(),
                ..uri.clone()
            }),
        })
    }
}

/// The value of a key in what an export says of itself.
pub(super) fn word<'a>(description: &'a str, key: &str) -> Option<&'a str> {
    let mut words = description.split_ascii_whitespace();
    words.find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
}

/// What the volume of an export is called in the names of files.
pub(super) fn volume_of(export: &str) -> String {
    let volume = export.split('@').next().unwrap_or_default();
    volume.replace(['/', '\0'], "-")
}

/// The file of the image of a volume, beside the manifest.
pub(super) fn image_of(manifest: &Path, volume: &str) -> String {
    format!("{}.{volume}{IMAGE_SUFFIX}", stem(manifest))
}

/// What the files of a set begin with.
pub(super) fn stem(manifest: &Path) -> String {
    let name = manifest.file_name().unwrap_or_default().to_string_lossy();
    let stem = name.strip_suffix(".json").unwrap_or(&name);
    stem.strip_suffix(".set").unwrap_or(stem).to_owned()
}

impl SetTarget {
    /// The jobs: one image each beside the manifest, otherwise as `options` say.
    fn jobs(&self, manifest: &Path, options: &BackupOptions) -> Vec<(String, PathBuf, BackupOptions)> {
        let job = |member: &Member| {
            let path = manifest.with_file_name(image_of(manifest, &member.volume));
            let options = BackupOptions {
                uri: member.uri.clone(),
                frozen: member.frozen,
                output: ImagePath::File(path.clone()),
                ..options.clone()
            };
            (member.volume.clone(), path, options)
        };
        self.members.iter().map(job).collect()
    }
}

/// Backs up a set, and writes its manifest when every image is complete. What an earlier attempt finished is kept where it is of the
/// same frozen image, and what it began is resumed. `host_is_this_machine` is for that.
///
/// # Errors
/// Those of a backup; images that were finished are kept. [`ErrorKind::OutputExists`]: there is a manifest, or an image of another frozen
/// image, of the name.
pub async fn back_up_set(
    target: &SetTarget,
    manifest: &Path,
    options: &BackupOptions,
    host_is_this_machine: bool,
    opener: &dyn LunOpener,
    stop: impl Future<Output = Error> + Send,
    progress: &Progress,
) -> Result<SetReport> {
    // Its `.partial` keeps others from the same set, and is gone if this fails.
    let file = PartialFile::create(manifest)?;
    let mut stop = pin!(stop);
    let mut reports = Vec::new();
    let mut images = Vec::new();
    let mut verdict = None;
    for (volume, path, job) in target.jobs(manifest, options) {
        let report = one(&job, &path, host_is_this_machine, opener, stop.as_mut(), progress).await?;
        let (header, end) = ImageSource::open(&path)?.outline()?;
        // However it came to be there.
        if job.frozen.is_some_and(|frozen| frozen != header.frozen) {
            return Err(another(&path));
        }
        let found = verdict_on(&end, options.require_direct);
        verdict = verdict.or(found.err());
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        images.push(SetImage::new(volume, name.into_owned(), &header, &end));
        reports.push(report);
    }
    let manifest = SetManifest::new(target.set.clone(), target.frozen_at.clone(), images);
    let text = format!("{:#}\n", serde_json::json!(manifest));
    on_thread(move || {
        use std::os::unix::fs::FileExt;

        let written = file.file().write_all_at(text.as_bytes(), 0);
        written.map_err(|error| Error::io("writing the manifest", file.partial_path(), error))?;
        file.commit()
    })
    .await?;
    Ok(SetReport {
        manifest,
        reports,
        verdict,
    })
}

/// One image: begun, or resumed, or there already.
async fn one(
    job: &BackupOptions,
    path: &Path,
    host_is_this_machine: bool,
    opener: &dyn LunOpener,
    mut stop: Pin<&mut (impl Future<Output = Error> + Send)>,
    progress: &Progress,
) -> Result<Option<BackupReport>> {
    if path.exists() {
        let (header, _) = ImageSource::open(path)?.outline()?;
        if job.frozen == Some(header.frozen) {
            return Ok(None);
        }
        return Err(another(path));
    }
    match refuse_resumable(path).await {
        // Without a frozen image nothing tells of which instant it is.
        Err(error) if error.kind() == ErrorKind::OutputExists && job.frozen.is_some() => {}
        other => {
            other?;
            return backup_unless(job, opener, stop.as_mut(), progress)
                .await
                .map(Some);
        }
    }
    match resume_unless(
        &as_told_now(job, path, host_is_this_machine),
        opener,
        stop.as_mut(),
        progress,
    )
    .await?
    {
        crate::job::resume::Resumed::Finished(report) => Ok(Some(*report)),
        crate::job::resume::Resumed::WasWhole(_) => Ok(None),
    }
}

/// What was begun goes on with what the command says now.
fn as_told_now(job: &BackupOptions, path: &Path, host_is_this_machine: bool) -> ResumeOptions {
    ResumeOptions {
        frozen: job.frozen,
        uri: Some(job.uri.clone()),
        // What an image says of paths and of ranges is as old as the image.
        luns: job.luns.clone(),
        only_these_luns: true,
        host_is_this_machine,
        require_direct: job.require_direct,
        audit_percent: Some(job.audit_percent),
        no_fallback: Some(job.no_fallback),
        checkpoints: job.checkpoints.unwrap_or_default(),
        nbd: job.nbd,
        direct_timeout: job.direct_timeout,
        throttle: job.throttle.clone(),
        spool: job.spool.clone(),
        ..ResumeOptions::new(path)
    }
}

fn another(path: &Path) -> Error {
    let message = "there is an image of this name already, and it is not of this frozen image";
    Error::new(ErrorKind::OutputExists, message).at_path(path)
}

#[cfg(test)]
mod tests {
    use std::num::NonZero;
    use std::time::Duration;

    use super::*;
    use crate::config::LunArgument;
    use crate::nbd::{Deadlines, PoolOptions};
    use crate::pipeline::{CheckpointEvery, Throttle, ThrottleLimits};

    #[test]
    fn what_was_begun_is_told_what_the_command_says_now() {
        let limits = ThrottleLimits {
            bytes_per_second: NonZero::new(5),
            reads_in_flight: NonZero::new(2),
            host_latency: Some(Duration::from_secs(3)),
        };
        let job = BackupOptions {
            frozen: Some(Uuid::from_u128(7)),
            luns: vec![LunArgument::parse("lun0=/dev/sdb@0-4096").unwrap()],
            require_direct: Some(30.0),
            no_fallback: true,
            audit_percent: 2.5,
            checkpoints: Some(CheckpointEvery {
                bytes: 77,
                time: Duration::from_secs(8),
            }),
            nbd: PoolOptions {
                connections: 3,
                deadlines: Deadlines::with_request(Duration::from_secs(11)),
                reconnect: Duration::from_secs(12),
            },
            direct_timeout: Duration::from_secs(13),
            throttle: Throttle::new(limits),
            ..BackupOptions::new("nbd://host/vm".parse().unwrap(), ImagePath::Stdio)
        };
        let told = as_told_now(&job, Path::new("mon.vm.vbi.zst"), true);
        assert_eq!(told.image, Path::new("mon.vm.vbi.zst"));
        assert_eq!((told.frozen, told.uri), (job.frozen, Some(job.uri)));
        // What the image says of LUNs does not count, nor what it says of anything that can be told.
        assert_eq!((told.luns, told.only_these_luns), (job.luns, true));
        assert!(told.host_is_this_machine);
        assert_eq!(told.require_direct, job.require_direct);
        assert_eq!(
            (told.no_fallback, told.audit_percent),
            (Some(true), Some(job.audit_percent))
        );
        assert_eq!(Some(told.checkpoints), job.checkpoints);
        assert_eq!((told.nbd, told.direct_timeout), (job.nbd, job.direct_timeout));
        assert_eq!(told.throttle.limits(), limits);
        // What is set later counts as well.
        job.throttle.set(ThrottleLimits::default());
        assert_eq!(told.throttle.limits(), ThrottleLimits::default());
    }

    #[test]
    fn a_set_is_told_by_its_server_its_name_and_its_count() {
        let told = |uri: &str, description: &str| Told::by(&uri.parse().unwrap(), description);
        let a = told("nbd://one/a", "frozen image: set=db set-members=2").unwrap();
        assert_eq!(
            a,
            told("nbd://one/b", "set=db set-members=2 held-by=lease").unwrap()
        );
        for (uri, description) in [
            ("nbd://two/b", "set=db set-members=2"),
            ("nbd://one:10810/b", "set=db set-members=2"),
            ("nbd://one/b", "set=db set-members=3"),
            ("nbd://one/b", "set=other set-members=2"),
            ("nbd://one/b", ""),
        ] {
            assert_ne!(a, told(uri, description).unwrap(), "{uri} {description}");
        }
        // Volumes of no set may be of several servers.
        assert_eq!(told("nbd://one/a", "").unwrap(), told("nbd://two/b", "").unwrap());
        for uncounted in ["set=db", "set=db set-members=", "set=db set-members=some"] {
            let error = told("nbd://one/a", uncounted).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::HostIncompatible);
        }
    }
}

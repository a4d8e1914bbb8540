//! Frozen images that clients have made: a volume or set whose policy allows it is offered as `NAME@new`, and whoever enters that gets a
//! frozen image, or a frozen set, of its own, `NAME@ID`, under a hold. The hold is renewed while anybody reads the image, and when nobody does it outlasts a lost
//! connection by its time; then the image is thawed. However long somebody reads, it is renewed up to an age alone.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use super::around::WhileAnother;
use super::registry::Host;
use crate::config::OnRequest;
use crate::error::{Error, ErrorKind};
use crate::export::SetExport;
use crate::proto::ErrorText;
use crate::proto::handshake::Refusal;
use crate::server::{Client, Exports, Found};

/// The ID that stands for an image that is made when it is entered; none is called so.
pub(super) const NEW: &str = "new";

/// What clients had made.
#[derive(Debug, Default)]
pub(super) struct Requests {
    rules: OnRequest,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Frozen images and sets that were made on request and may still be there, by what they are thawed by.
    made: BTreeMap<String, Made>,
    /// When one was begun last, by volume or set.
    begun: BTreeMap<String, Instant>,
    /// Freezes under way, by volume or set.
    under_way: BTreeMap<String, usize>,
}

#[derive(Clone, Copy, Debug)]
struct Made {
    since: Instant,
    /// It is being thawed, which may take long: until then its snapshot or clone is there.
    is_ending: bool,
}

impl Requests {
    pub(super) fn under(rules: OnRequest) -> Self {
        Self {
            rules,
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The volume or set that is frozen for whoever enters this export.
    pub(super) fn asked_for<'a>(&self, export: &'a str) -> Option<&'a str> {
        let (name, id) = export.split_once('@')?;
        let is_allowed = self.rules.names.iter().any(|known| known.as_str() == name);
        (id == NEW && is_allowed).then_some(name)
    }

    /// Lets a freeze begin, if there are not too many and the last one is long enough ago. `is_there` tells what is.
    fn begin(&self, name: &str, is_there: impl Fn(&str) -> bool) -> Result<UnderWay<'_>, Refusal> {
        let mut state = self.state();
        state.made.retain(|name, made| made.is_ending || is_there(name));
        let is_of = |made: &str| made.split_once('@').is_some_and(|(of, _)| of == name);
        let there = state.made.keys().filter(|made| is_of(made)).count();
        let under_way = state.under_way.get(name).copied().unwrap_or(0);
        let OnRequest {
            most, every, hold, ..
        } = self.rules;
        let not_now = |text: String| Err(Refusal::NotNow(ErrorText::new(text)));
        if there + under_way >= most {
            return not_now(format!(
                "{name} has {most} frozen images or sets that were made on request, and may not have more: each ends {} s after the last \
                 connection to it, or with a thaw",
                hold.as_secs()
            ));
        }
        let since = state.begun.get(name).map(Instant::elapsed);
        if let Some(rest) = since.and_then(|since| every.checked_sub(since)) {
            return not_now(format!(
                "{name} was frozen on request a moment ago: again in {} s",
                rest.as_secs() + 1
            ));
        }
        state.begun.insert(name.to_owned(), Instant::now());
        *state.under_way.entry(name.to_owned()).or_default() += 1;
        Ok(UnderWay {
            requests: self,
            name: name.to_owned(),
        })
    }

    /// It is going to be thawed; `None` where it was not made on request, or somebody else thaws it.
    pub(super) fn ending(&self, name: &str) -> Option<Ending<'_>> {
        let mut state = self.state();
        let made = state.made.get_mut(name).filter(|made| !made.is_ending)?;
        made.is_ending = true;
        Some(Ending {
            requests: self,
            name: name.to_owned(),
        })
    }
}

/// What was made on request, while it is thawed: it keeps its place until it is dropped.
pub(super) struct Ending<'a> {
    requests: &'a Requests,
    name: String,
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.requests.state().made.remove(&self.name);
    }
}

/// A freeze that somebody waits for.
struct UnderWay<'a> {
    requests: &'a Requests,
    name: String,
}

impl UnderWay<'_> {
    /// It came to this.
    fn made(self, name: &str) {
        let made = Made {
            since: Instant::now(),
            is_ending: false,
        };
        self.requests.state().made.insert(name.to_owned(), made);
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        let mut state = self.requests.state();
        if let Some(count) = state.under_way.get_mut(&self.name) {
            *count = count.saturating_sub(1);
        }
    }
}

impl Host {
    /// Whether a client gets a frozen image, or a frozen set, by this name. They are read-only, so it is the allow lists alone that keep it from them.
    pub(super) fn makes_on_request(&self, export: &str, client: &Client) -> bool {
        let name = self.requests.asked_for(export);
        name.is_some_and(|name| self.admits(name, client))
    }

    /// Makes it. Blocks.
    pub(super) fn make_on_request(&self, export: &str, client: &Client) -> Result<Found, Refusal> {
        let name = self.requests.asked_for(export).ok_or(Refusal::Unknown)?;
        if !self.admits(name, client) {
            return Err(Refusal::Unknown);
        }
        let made = self.freeze_on_request(name)?;
        let found = match self.set(name) {
            Some(_) => self.found_set(made),
            None => self.open(&made, client),
        };
        let found = found.ok_or(Refusal::Shutdown)?;
        Ok(Found { made: true, ..found })
    }

    fn found_set(&self, name: String) -> Option<Found> {
        let members = self.exports_of(&name);
        let set = members.first()?.circumstances().set.clone()?;
        Some(Found {
            name,
            rotational: false,
            made: true,
            export: Arc::new(SetExport::of(set, members)),
        })
    }

    /// Ends what was made, because whoever asked for it is gone. Blocks.
    pub(super) fn unmake_on_request(&self, name: &str) {
        tracing::info!(export = name, "whoever had it made is gone");
        match self.thaw_for_good(name) {
            // Thawed by somebody else, or with the whole host.
            Err(error) if error.kind() == ErrorKind::UnknownName => {}
            Err(error) => tracing::error!(export = name, %error, "after a freeze that nobody waited for"),
            Ok(()) => {}
        }
    }

    /// Freezes a volume or set for a client, under a hold, and gives the name of the export or of the frozen set. Blocks.
    ///
    /// # Errors
    /// There are enough of them, or it cannot be frozen.
    fn freeze_on_request(&self, name: &str) -> Result<String, Refusal> {
        let begun = self.requests.begin(name, |made| self.is_served(made))?;
        let OnRequest { hold, longest, .. } = self.requests.rules;
        let frozen = self.freeze_held(name, None, Some(hold.min(longest)), WhileAnother::Fails);
        let frozen = frozen.map_err(|error| refusal(name, &error))?;
        let made = frozen.first().ok_or(Refusal::Unknown)?.thawed_by();
        tracing::info!(export = made, "frozen on request of a client");
        begun.made(made);
        Ok(made.to_owned())
    }

    fn made_on_request(&self) -> Vec<(String, Made)> {
        let state = self.requests.state();
        let made = state.made.iter().filter(|(_, made)| !made.is_ending);
        made.map(|(export, made)| (export.clone(), *made)).collect()
    }

    /// Keeps what clients had made for as long as somebody reads it, up to its longest age.
    pub fn keep_what_is_read(&self) {
        let OnRequest { hold, longest, .. } = self.requests.rules;
        for (export, made) in self.made_on_request() {
            if self.is_open(&export) {
                // Whoever promised more keeps that.
                let rest = longest.saturating_sub(made.since.elapsed());
                self.holds.prolong(&export, hold.min(rest));
            }
        }
    }

    /// Looks whether what clients had made still stands, and thaws what does not: it is of no use to anybody, takes room on the host, and takes its
    /// place from others. Blocks, where a disk does not answer for ever; the thaws are on threads of their own.
    pub fn look_for_what_is_gone(self: &Arc<Self>) -> Vec<JoinHandle<()>> {
        let mut thaws = Vec::new();
        for (export, _) in self.made_on_request() {
            if self.is_served(&export) && !self.stands(&export) {
                tracing::warn!(export, "made on request of a client, and its content is lost");
                // Where there is no thread for it, the next look finds it again.
                thaws.extend(self.thaw_aside(export));
            }
        }
        thaws
    }
}

/// What a client is told of a freeze that failed: not what the host's paths and hooks say. The log has that.
fn refusal(name: &str, error: &Error) -> Refusal {
    tracing::warn!(export = name, %error, "not frozen on request of a client");
    let text = |what| ErrorText::new(format!("{name} could not be frozen: {what}"));
    match error.kind() {
        ErrorKind::Busy => Refusal::NotNow(text("it is busy, try again later")),
        ErrorKind::System => Refusal::Shutdown,
        ErrorKind::Hook => Refusal::Failed(text("a hook failed, the log of the agent says how")),
        _ => Refusal::Failed(text("the log of the agent says why")),
    }
}

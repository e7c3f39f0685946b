//! A new data directory for a server that does not start: the old one is set aside, the container makes a cluster in the
//! new one as it did the first time, and everything is loaded into that. What fails brings the old directory back.

use super::{INITIALISING, PostgresTarget};
use crate::change;
use crate::docker::Place;
use crate::mounts;
use crate::run_journal::{How, RunJournal, Step};
use crate::source::{Context, SourceError};
use crate::target::{Work, make_empty_like};

impl PostgresTarget<'_> {
    /// The place of the data directory, if another one can take its name.
    pub(super) fn replaceable(&self, context: &Context<'_>, work: &Work<'_>) -> Result<Place, SourceError> {
        let place = self.place(context)?;
        let data = place.host_path().ok_or_else(|| {
            SourceError::hinted(
                place.describe(),
                "it cannot be reached without the engine, so no new data directory can be made there",
                "empty it by hand and start the container; then restore without --fresh",
            )
        })?;
        if change::beside(&data, work.id) == data.join(change::NEW) {
            return Err(SourceError::hinted(
                data.display().to_string(),
                "it is a mount point, and a server makes new data only in an empty directory",
                "empty it by hand and start the container; then restore without --fresh",
            ));
        }
        mounts::must_hold_none(&data)?;
        Ok(place)
    }

    /// Fills the cluster that the container has made in its new data directory.
    pub(super) fn fill(&self, context: &Context<'_>, work: &Work<'_>) -> Result<Vec<String>, SourceError> {
        let docker = context.docker()?;
        let container = docker.find(&self.source.selector)?;
        let asleep = !container.is_active();
        if asleep {
            // The journal knows it, so that whoever recovers stops it before the data is exchanged again.
            let journal = context.holds.journal();
            journal.record(&Step::Hold(container.to_held(How::Stop)))?;
            docker.start(&container)?;
            journal.record(&Step::Released { id: container.id.clone() })?;
        }
        let filled = (|| {
            let mut server = self.source.server_in(context, container.clone())?;
            server.await_ready(INITIALISING)?;
            let warnings = self.bring(context, None, work, server)?;
            if let Some(databases) = self.loaded.borrow_mut().take() {
                // What is replaced is what the container has just made.
                databases.apply(Some(docker))?;
                databases.finish(Some(docker))?;
            }
            Ok(warnings)
        })();
        if filled.is_err() && asleep {
            docker.undisturbed().take_hold(&container, How::Stop)?;
        }
        filled
    }
}

/// An empty directory beside the live one, with its owner and mode.
pub(super) fn make_directory(
    place: &Place,
    journal: &RunJournal,
    work: &Work<'_>,
) -> Result<(), SourceError> {
    let live = place.host_path().unwrap_or_default();
    let new = change::beside(&live, work.id);
    journal.record(&work.scratch(&new))?;
    make_empty_like(&live, &new)
}

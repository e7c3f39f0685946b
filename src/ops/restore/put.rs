//! One component put in place: from the first byte beside the live data to the last of the old. What could go wrong: a
//! component that is half old and half new; so each step is in the journal before its act, the old data stays until the
//! new one is proved, and what fails is taken back as a whole.

use super::{Chosen, ComponentOutcome, Fate, Restore};
use crate::change::{Change, Kept};
use crate::docker::Container;
use crate::docker::hold::Hold;
use crate::hint::chain;
use crate::run_journal::{JournalError, Step};
use crate::source::SourceError;
use crate::target::{Target, Work};

impl Restore<'_> {
    /// The containers that were stopped for it. What is known of the component, also when it failed, is in `outcome`: it is
    /// `Restored` as soon as that is decided. `unsaved`: why the old data is in no safety copy.
    pub(super) fn put(
        &self,
        target: &dyn Target,
        chosen: &Chosen<'_>,
        unsaved: Option<&str>,
        outcome: &mut ComponentOutcome,
    ) -> Result<Vec<Container>, SourceError> {
        let work = self.work_of(chosen);
        let journal = self.holds.journal();
        let engine = self.docker.as_ref().ok();
        self.holds.begin_changes(engine)?;
        self.world.monitor.phase(&format!("restoring {}", chosen.name), Some(chosen.component.bytes_in));
        let (hold, change) = match self.make_ready(target, &work, outcome) {
            Ok(ready) => ready,
            Err(e) => {
                self.clear_scratch(chosen.name, &mut outcome.warnings);
                return Err(e);
            }
        };
        journal.record(&Step::Change { component: chosen.name.to_owned(), change: change.clone() })?;
        // From here on, only what is said below is known to be there.
        outcome.fate = Fate::Kept;
        let containers = hold.as_ref().map_or(Vec::new(), |h| h.containers().to_vec());
        match self.make_live(target, &work, &change, hold.as_ref()) {
            Ok(warnings) => outcome.warnings.extend(warnings),
            Err(e) if self.request.keep => {
                let kept = change.keep_failed(work.id, engine).map_err(SourceError::from);
                let kept = kept.and_then(|kept| self.settled(chosen.name).map(|()| kept).map_err(Into::into));
                outcome.warnings.extend(match kept {
                    Ok(Kept::Nothing) => None,
                    Ok(Kept::Old(old)) => Some(format!("the new data is live; the old data is in {old}")),
                    Ok(Kept::New(new)) => Some(format!("the old data is live; the new data is in {new}")),
                    Err(worse) => {
                        // Nobody may use what may be half of both.
                        outcome.warnings.push(self.world.vault.scrub(&chain(&e)));
                        if let Some(hold) = hold {
                            hold.abandon(&format!("what failed could not be kept: {}", chain(&worse)));
                        }
                        return Err(worse);
                    }
                });
                end(hold);
                return Err(e);
            }
            Err(e) => {
                self.take_back(chosen.name, &change, hold, &e, outcome)?;
                return Err(e);
            }
        }
        let keep = (unsaved.is_some() || target.keeps_old()).then(|| work.id.to_owned());
        // What is not written down as good would be rolled back after a kill, with all that clients wrote since.
        if let Err(e) = journal.record(&Step::Committed { component: chosen.name.to_owned(), keep }) {
            let e = e.into();
            self.take_back(chosen.name, &change, hold, &e, outcome)?;
            return Err(e);
        }
        outcome.fate = Fate::Restored;
        match unsaved {
            _ if target.keeps_old() => {
                let kept = change.keep(work.id, engine)?;
                outcome.warnings.extend(kept.map(|old| format!("what was there is kept in {old}")));
            }
            Some(why) => outcome.warnings.extend(change.keep(work.id, engine)?.map(|old| {
                format!("what was there is in no safety copy ({why}); it is kept in {old}: remove it when all is well")
            })),
            None => change.finish(engine)?,
        }
        self.settled(chosen.name)?;
        end(hold);
        Ok(containers)
    }

    /// The new data beside the old, everybody stopped who uses it, and the change that will make it live.
    fn make_ready(
        &self,
        target: &dyn Target,
        work: &Work<'_>,
        outcome: &mut ComponentOutcome,
    ) -> Result<(Option<Hold<'_>>, Change), SourceError> {
        let context = self.context();
        let journal = self.holds.journal();
        outcome.warnings.extend(target.prepare(&context, journal, work)?);
        let hold = match target.place() {
            Some(place) => Some(self.holds.stop_all(context.docker()?, place, self.world.cancel)?),
            None => None,
        };
        let change = target.change(&context, journal, work)?;
        Ok((hold, change))
    }

    fn make_live(
        &self,
        target: &dyn Target,
        work: &Work<'_>,
        change: &Change,
        hold: Option<&Hold<'_>>,
    ) -> Result<Vec<String>, SourceError> {
        change.apply(self.docker.as_ref().ok())?;
        if let Some(hold) = hold {
            hold.start()?;
        }
        target.check(&self.context(), work, hold.map_or(&[], |h| h.containers()))
    }

    /// The old data again, and whoever was stopped for it runs with it. `reason`: why the new data is not good, which is
    /// told also when taking it back fails.
    fn take_back(
        &self,
        component: &str,
        change: &Change,
        hold: Option<Hold<'_>>,
        reason: &SourceError,
        outcome: &mut ComponentOutcome,
    ) -> Result<(), SourceError> {
        let undone = (|| -> Result<(), SourceError> {
            if let Some(hold) = &hold {
                hold.stop()?;
            }
            Ok(change.undo(self.docker.as_ref().ok())?)
        })();
        if let Err(worse) = undone {
            outcome.warnings.push(self.world.vault.scrub(&chain(reason)));
            outcome.of_backup = !reason.is_of_this_machine();
            // The journal still has it, and recover tries again; until then nobody may use that data.
            if let Some(hold) = hold {
                hold.abandon(&format!("the old data could not be brought back: {}", chain(&worse)));
            }
            return Err(worse);
        }
        outcome.fate = Fate::RolledBack;
        if let Err(e) = self.settled(component) {
            // Recover looks again, and finds the old data.
            outcome.warnings.push(chain(&e));
        }
        end(hold);
        Ok(())
    }

    fn settled(&self, component: &str) -> Result<(), JournalError> {
        self.holds.journal().record(&Step::Settled { component: component.to_owned() })
    }

    /// Removes what lies beside the live data of a component that was never changed.
    fn clear_scratch(&self, component: &str, warnings: &mut Vec<String>) {
        let Ok(pending) = self.holds.journal().pending() else { return };
        for (_, scratch) in pending.scratch.iter().filter(|(c, _)| c == component) {
            if let Err(e) = scratch.remove(self.docker.as_ref().ok()) {
                warnings.push(format!("{scratch} could not be removed: {}", chain(&e)));
                return;
            }
        }
        // If it cannot be written, recover looks again and finds nothing.
        let _ = self.settled(component);
    }
}

fn end(hold: Option<Hold<'_>>) {
    if let Some(hold) = hold {
        hold.end();
    }
}

//! A volume or directory that only the engine can mount, written through a helper container that has it mounted and does
//! nothing else. What could go wrong: a helper that is gone when a killed restore is to be undone; so the journal knows it,
//! and the change names paths within it, which are found again when it is started again.

use std::cell::OnceCell;
use std::path::{Path, PathBuf};

use super::{Compared, Existing, Target, TreeTarget, Work};
use crate::archive::tree::{Exclude, TreeError};
use crate::change::{self, Change, Scratch};
use crate::docker::{Container, DockerError, Place};
use crate::manifest::Component;
use crate::run_journal::{RunJournal, Step};
use crate::source::{Context, SourceError};

pub struct WindowTarget {
    place: Place,
    /// Image for the helper, of a container that is known to be there; None for any.
    image: Option<String>,
    exclude: Exclude,
    open: OnceCell<Opened>,
}

/// The place seen through its helper.
struct Opened {
    helper: String,
    /// Root of the helper, for this host.
    root: PathBuf,
    tree: TreeTarget,
}

impl WindowTarget {
    pub fn new(place: Place, image: Option<String>, exclude: Exclude) -> Self {
        Self { place, image, exclude, open: OnceCell::new() }
    }

    fn opened(&self, context: &Context<'_>) -> Result<&Opened, SourceError> {
        if let Some(opened) = self.open.get() {
            return Ok(opened);
        }
        let docker = context.docker()?;
        let started = (|| {
            let (helper, window) = context.holds.open_window(docker, &self.place, self.image.as_deref())?;
            let root = docker.window(&helper)?;
            Ok::<_, SourceError>((helper, window, root))
        })();
        let (helper, window, root) = started.map_err(|e| match e {
            SourceError::Docker(e @ (DockerError::Refused { .. } | DockerError::NoWindow { .. })) => {
                SourceError::hinted(
                    self.place.describe(),
                    crate::hint::chain(&e),
                    "a helper container must mount it, and its image must have `sleep`: is the volume's device or \
                     server there? else restore it elsewhere with --to DIR, then follow RESTORE.md",
                )
            }
            e => e,
        })?;
        // Links mean the helper's own files there, which are nobody's data.
        let inside = docker.without_links(&helper, &Path::new(window).join(&self.place.rest))?;
        if !inside.starts_with(window) {
            return Err(TreeError::Outside { path: PathBuf::from(self.place.describe()) }.into());
        }
        let tree = TreeTarget {
            live: root.join(inside.strip_prefix("/").unwrap_or(&inside)),
            what: self.place.describe(),
            place: Some(self.place.clone()),
            exclude: self.exclude.clone(),
        };
        Ok(self.open.get_or_init(|| Opened { helper, root, tree }))
    }
}

impl Opened {
    /// A path of this host as the helper has it.
    fn inside(&self, path: &Path) -> PathBuf {
        Path::new("/").join(path.strip_prefix(&self.root).unwrap_or(path))
    }
}

impl Target for WindowTarget {
    fn describe(&self) -> String {
        self.place.describe()
    }

    fn place(&self) -> Option<&Place> {
        Some(&self.place)
    }

    fn existing(&self, _: &Context<'_>) -> Result<Existing, SourceError> {
        Ok(Existing::Something("what only the engine can reach".into()))
    }

    /// The room there is not known before it is mounted.
    fn survey(&self, context: &Context<'_>, work: &Work<'_>) -> Result<(PathBuf, u64), SourceError> {
        TreeTarget::survey_member(context, work)?;
        Ok((work.dir.to_owned(), 0))
    }

    fn prepare(
        &self,
        context: &Context<'_>,
        journal: &RunJournal,
        work: &Work<'_>,
    ) -> Result<Vec<String>, SourceError> {
        let opened = self.opened(context)?;
        let beside = change::beside(&opened.tree.live, work.id);
        let scratch = Scratch::Window { helper: opened.helper.clone(), path: opened.inside(&beside) };
        journal.record(&Step::Scratch { component: work.name.to_owned(), scratch })?;
        opened.tree.unpack(context, work, &beside)
    }

    fn change(&self, context: &Context<'_>, _: &RunJournal, work: &Work<'_>) -> Result<Change, SourceError> {
        let opened = self.opened(context)?;
        let inner = opened.tree.exchange(context, work)?.with_paths(|path| opened.inside(path));
        Ok(Change::Window { helper: opened.helper.clone(), inner: Box::new(inner) })
    }

    fn check(
        &self,
        context: &Context<'_>,
        work: &Work<'_>,
        containers: &[Container],
    ) -> Result<Vec<String>, SourceError> {
        self.opened(context)?.tree.check(context, work, containers)
    }

    fn compare(&self, context: &Context<'_>, component: &Component) -> Result<Vec<Compared>, SourceError> {
        self.opened(context)?.tree.compare(context, component)
    }
}

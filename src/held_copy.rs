//! A copy of a directory that containers write to: whoever can write there is held, the tree is read, and they go on.
//! What could go wrong: a copy of no moment at all, or a service that waits for us longer than it must. So the hold ends
//! when the last byte is read, and the copy counts only if nobody could write from the first byte to the last.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::archive::compress::Staged;
use crate::archive::engine_tree;
use crate::archive::tarfile::TarWriter;
use crate::archive::tree::{self, Exclude, TreeError, TreeReport, TreeRules, Watch};
use crate::cancel::Cancel;
use crate::config::Section;
use crate::docker::hold::HoldError;
use crate::docker::{Container, Docker, Place, Seat};
use crate::manifest::Component;
use crate::run_journal::How;
use crate::source::{Context, SET_ASIDE, SourceError, exclude, quote};
use crate::staging::Stage;

/// What happens to the writers while a copy is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Consistency {
    Stop,
    Pause,
    /// Nothing: for data whose files never change once they are written.
    Live,
}

impl Consistency {
    pub fn word(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Pause => "pause",
            Self::Live => "live",
        }
    }

    fn how(self) -> Option<How> {
        match self {
            Self::Stop => Some(How::Stop),
            Self::Pause => Some(How::Pause),
            Self::Live => None,
        }
    }
}

/// What a source says of its copy.
#[derive(Debug, Clone)]
pub struct CopySettings {
    pub consistency: Consistency,
    pub max_pause: Duration,
    pub exclude: Exclude,
    pub allow_empty: bool,
    pub idle: Duration,
}

impl CopySettings {
    /// Asks the table of a source. `idle` limits the engine's silence.
    pub fn read(s: &Section<'_>, default: Consistency, idle: Duration) -> Self {
        let mut words =
            [("pause", Consistency::Pause), ("stop", Consistency::Stop), ("live", Consistency::Live)];
        // The first one is the default.
        words.sort_by_key(|(word, _)| *word != default.word());
        Self {
            consistency: s.choice(
                "consistency",
                &words,
                "What happens to the containers that can write there, while it is read",
            ),
            max_pause: s.duration_or(
                "max_pause",
                Duration::from_secs(600),
                "Longest time for which they are paused or stopped; then they go on, and the source fails",
            ),
            exclude: exclude(s),
            allow_empty: s.flag("allow_empty", false, "An empty directory is no failure"),
            idle,
        }
    }
}

impl CopySettings {
    /// The same, and this pattern is left out too.
    pub fn leaving_out(mut self, pattern: &str) -> Self {
        let mut patterns = self.exclude.patterns().to_vec();
        patterns.push(pattern.to_owned());
        if let Ok(exclude) = Exclude::new(&patterns) {
            self.exclude = exclude;
        }
        self
    }

    fn rules(&self, context: &Context<'_>) -> TreeRules {
        TreeRules {
            exclude: self.exclude.clone(),
            own_dirs: context.own_dirs.to_vec(),
            cross_mounts: false,
            allow_empty: self.allow_empty,
            mounted: Vec::new(),
        }
    }
}

/// Bytes that a copy would read, where that can be known without the engine.
pub fn estimate(
    place: &Place,
    settings: &CopySettings,
    context: &Context<'_>,
) -> Result<Option<u64>, SourceError> {
    let Some(base) = &place.base else { return Ok(None) };
    let root = tree::beneath(base, &place.rest)?;
    Ok(Some(tree::inventory(&root, &settings.rules(context), context.cancel)?.report.bytes))
}

/// A copy to be made.
pub struct HeldCopy<'a> {
    pub place: &'a Place,
    /// The container that the place was found by.
    pub container: Option<&'a Container>,
    pub settings: &'a CopySettings,
    /// Name in the archive, without the suffix of its compression.
    pub member: &'a str,
}

/// A copy that lies in staging.
pub struct Copied {
    pub staged: Staged,
    pub report: TreeReport,
    /// For how long writers were held.
    pub paused: Duration,
    pub warnings: Vec<String>,
}

impl HeldCopy<'_> {
    pub fn take(
        &self,
        context: &Context<'_>,
        stage: &Stage<'_>,
        watch: &mut dyn Watch,
    ) -> Result<Copied, SourceError> {
        let docker = context.docker()?;
        self.refuse_to_lose_it(docker)?;
        let mut tar = TarWriter::new(stage.compressed(self.member)?);
        let (report, paused) = match self.settings.consistency.how() {
            None => (self.read(context, docker, context.cancel, &mut tar, watch)?, Duration::ZERO),
            Some(how) => {
                let limit = self.settings.max_pause;
                let hold = context.holds.hold(docker, self.place, how, limit, context.cancel)?;
                match self.read(context, docker, hold.cancel(), &mut tar, watch) {
                    Ok(report) => (report, hold.release()?),
                    Err(SourceError::Interrupted(_)) => return Err(hold.why_interrupted().into()),
                    Err(e) => return Err(e),
                }
            }
        };
        let staged = tar.finish().and_then(|w| w.finish()).map_err(SourceError::write(self.member))?;
        let mut warnings = report.warnings();
        if self.place.base.is_none() && !self.reads_the_process() {
            warnings.push(engine_tree::DROPPED.to_owned());
        }
        if !self.place.nested.is_empty() {
            warnings
                .push(format!("not part of it, being mounts of their own: {}", self.place.nested.join(", ")));
        }
        Ok(Copied { staged, report, paused, warnings })
    }

    fn in_layer(&self) -> bool {
        matches!(self.place.seat, Seat::Layer { .. })
    }

    /// The layer of a paused container: the engine reads nothing there, but its frozen process still shows it.
    fn reads_the_process(&self) -> bool {
        self.in_layer() && self.settings.consistency == Consistency::Pause
    }

    /// A container that is removed when it stops takes its layer along, and a volume in memory goes with its last
    /// container: to stop it would lose the only copy.
    fn refuse_to_lose_it(&self, docker: &Docker) -> Result<(), SourceError> {
        if self.settings.consistency != Consistency::Stop {
            return Ok(());
        }
        if let Some(volume) = self.place.volume()
            && docker.lies_in_memory(volume)?
        {
            return Err(SourceError::hinted(
                volume,
                "it lies in memory, and is lost when its containers stop",
                "set consistency = \"pause\"",
            ));
        }
        match self.container {
            Some(c) if self.in_layer() && c.auto_remove => Err(SourceError::hinted(
                c.name.clone(),
                "it is removed when it stops, and its data lies in its own layer",
                "mount a volume at its data, or set consistency = \"pause\"",
            )),
            _ => Ok(()),
        }
    }

    fn read<W: Write>(
        &self,
        context: &Context<'_>,
        docker: &Docker,
        cancel: &Cancel,
        tar: &mut TarWriter<W>,
        watch: &mut dyn Watch,
    ) -> Result<TreeReport, SourceError> {
        let mut rules = self.settings.rules(context);
        if let Seat::Layer { .. } = self.place.seat {
            let inside = self.place.nested.iter();
            rules.mounted = inside
                .filter_map(|m| Path::new(m).strip_prefix(&self.place.rest).ok().map(Path::to_owned))
                .collect();
        }
        let rest = &self.place.rest;
        if let Some(base) = &self.place.base {
            let root = tree::beneath(base, rest)?;
            return Ok(tree::pack(&root, &rules, tar, watch, cancel, context.monitor)?);
        }
        let shown = PathBuf::from(self.place.describe());
        let mut through_engine = |container: &str, path: PathBuf| -> Result<TreeReport, SourceError> {
            // The dot: what is in the directory, under names that do not repeat its own.
            let path = path.join(".").display().to_string();
            let sent = docker.download(container, &path, self.settings.idle);
            Ok(engine_tree::repack(&shown, sent, &rules, tar, watch, cancel, context.monitor)?)
        };
        match &self.place.seat {
            Seat::Volume { .. } | Seat::Bind { .. } => {
                let image = self.container.map(|c| c.image_id.as_str());
                context.holds.with_helper(docker, self.place, image, |helper, window| {
                    let wanted = Path::new(window).join(rest);
                    // Links mean the helper's own files there, which are nobody's data.
                    let real = docker.without_links(helper, &wanted)?;
                    if !real.starts_with(window) {
                        return Err(TreeError::Outside { path: shown.clone() }.into());
                    }
                    through_engine(helper, real)
                })
            }
            Seat::Layer { container } if self.reads_the_process() => {
                let now = docker.look(container)?.unwrap_or_default();
                let root = layer_of(&now, docker.is_local(), rest)?;
                let packed = tree::pack(root.path(), &rules, tar, watch, cancel, context.monitor);
                Ok(packed.map_err(|e| e.renamed(root.path(), rest))?)
            }
            Seat::Layer { container } => {
                let busy = match self.settings.consistency {
                    Consistency::Live => Some(context.holds.in_use(container, cancel)?),
                    _ => None,
                };
                let report = through_engine(container, rest.clone());
                drop(busy);
                report
            }
        }
    }
}

/// A directory as the container's own process sees it.
fn layer_of(container: &Container, local: bool, path: &Path) -> Result<tree::Opened, SourceError> {
    let hopeless = |why: &str| {
        SourceError::hinted(
            container.name.clone(),
            format!("{} lies in its own layer, {why}", path.display()),
            "mount a volume there in the Compose file, or set consistency = \"stop\"",
        )
    };
    if !local || container.pid == 0 {
        return Err(hopeless("and its process is not one of this host"));
    }
    let process = PathBuf::from(format!("/proc/{}", container.pid));
    let root = tree::Opened::below_root(&process.join("root"), path)?;
    // Asked after the directory was opened: a number that was given to another process by then shows its group.
    if !container.is_process_of_this_host() {
        return Err(hopeless("and its process cannot be told from others"));
    }
    Ok(root)
}

/// Commands that put a copy back into the volume or directory that it came from.
pub fn guide(name: &str, component: &Component) -> String {
    let fact = |key: &str| component.facts.get(key).and_then(Value::as_str);
    let member = component.members.iter().find(|m| m.contains(".tar")).map_or("", String::as_str);
    let unpack = format!("tar --numeric-owner --xattrs --xattrs-include='*' -xpf {member} -C \"$dir\"");
    match (fact("volume"), fact("directory"), fact("below").filter(|b| !b.is_empty())) {
        (Some(volume), _, below) if component.facts.contains_key(THROUGH) => {
            engine_guide(name, member, volume, below, fact("image_id"))
        }
        (Some(volume), _, below) => {
            let below = below.map_or_else(String::new, |b| format!("/{b}"));
            format!(
                "Volume `{volume}`. As root; its containers are stopped, what is there now is set aside beside it, and the \
                 copy is unpacked:\n\n```\n\
                 containers=$(docker ps -q --filter volume={v})\n\
                 dir=$(docker volume inspect -f '{{{{if .Options}}}}{{{{.Options.device}}}}{{{{else}}}}{{{{.Mountpoint}}}}{{{{end}}}}' {v}){b}\n\
                 [ -z \"$containers\" ] || docker stop $containers\n{SET_ASIDE}\n{unpack}\n\
                 [ -z \"$containers\" ] || docker start $containers\n```\n",
                v = quote(volume),
                b = if below.is_empty() { String::new() } else { quote(&below) },
            )
        }
        (None, Some(directory), _) => format!(
            "Directory `{directory}`. As root, with the containers that use it stopped:\n\n```\n\
             dir={}\n{SET_ASIDE}\n{unpack}\n```\n",
            quote(directory)
        ),
        _ => {
            let (container, path) =
                (fact("container").unwrap_or("CONTAINER"), fact("path").unwrap_or("/path"));
            format!(
                "It lay in the own layer of the container `{container}`, at `{path}`. Unpack it into a new directory, and \
                 mount that there in the Compose file:\n\n```\n\
                 mkdir -p /srv/restored/{name}\n\
                 tar --numeric-owner --xattrs --xattrs-include='*' -xpf {member} -C /srv/restored/{name}\n```\n"
            )
        }
    }
}

/// For a volume that has no directory on the host: a container that is removed at once does the work.
fn engine_guide(name: &str, member: &str, volume: &str, below: Option<&str>, image: Option<&str>) -> String {
    let unpacked = match member.rsplit_once('.') {
        Some((_, "gz")) => format!("gzip -dc {member}"),
        Some((_, "zst")) => format!("zstd -dc {member}"),
        _ => format!("cat {member}"),
    };
    let image = image.map_or_else(|| "$(docker images -q | head -n 1)".to_owned(), quote);
    format!(
        "Volume `{volume}`, which only the engine can mount. Its containers are stopped, what is there now goes into \
         `{name}.before.tar`, and the copy is unpacked, by a container of an image that has `sh`, `find` and `tar`; where \
         the first line names one that has not, put another one there:\n\n```\n\
         image={image}\n\
         containers=$(docker ps -q --filter volume={v})\n\
         inside() {{ docker run --rm -i --network none --user 0 -v {v}:/window --workdir /window{b} --entrypoint sh \"$image\" -euc \"$1\"; }}\n\
         [ -z \"$containers\" ] || docker stop $containers\n\
         inside 'tar -cf - .' > {name}.before.tar\n\
         {unpacked} | inside 'find . -mindepth 1 -delete; tar -xpf -'\n\
         [ -z \"$containers\" ] || docker start $containers\n```\n",
        v = quote(volume),
        b = below.map_or_else(String::new, |b| quote(&format!("/{b}"))),
    )
}

/// Fact of a volume that was read through a container.
const THROUGH: &str = "read_through";

/// Facts that `guide` and a restore need.
pub fn facts(place: &Place, container_path: Option<&str>, into: &mut serde_json::Map<String, Value>) {
    match &place.seat {
        Seat::Volume { name } => {
            into.insert("volume".into(), name.clone().into());
            into.insert("below".into(), place.rest.display().to_string().into());
            if place.base.is_none() {
                into.insert(THROUGH.into(), "engine".into());
            }
        }
        Seat::Bind { source } => {
            into.insert("directory".into(), source.join(&place.rest).display().to_string().into());
        }
        Seat::Layer { .. } => {}
    }
    if let Some(path) = container_path {
        into.insert("path".into(), path.into());
    }
}

impl From<TreeError> for SourceError {
    fn from(e: TreeError) -> Self {
        match e {
            TreeError::Interrupted(i) => Self::Interrupted(i),
            TreeError::Write(source) => Self::Write { member: "the tar".into(), source },
            e => Self::Tree(e),
        }
    }
}

impl From<HoldError> for SourceError {
    fn from(e: HoldError) -> Self {
        match e {
            HoldError::Interrupted(i) => Self::Interrupted(i),
            HoldError::Docker(e) => Self::Docker(e),
            e => Self::Hold(e),
        }
    }
}

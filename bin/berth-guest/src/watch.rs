//! Telling of changes below a path, by inotify(7).
//!
//! A directory is watched by itself, so a tree takes a watch per directory, and a new directory is watched as soon as
//! its making is told. What was put into it before that is found by looking, and told as made; if its making is told
//! once more afterwards, that is left out. Symlinks are not followed but at the path itself, and file systems of the
//! kernel's below it are not watched, since they do not tell.
//!
//! Everything that happens is told, or it is told that something was lost: there is no third way.

use std::collections::{HashMap, HashSet};
use std::io::Write;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};

use berth_wire::{Change, ChangeKind, Failure, FailureCode, Outcome, Watch};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, ReadFlags, WatchFlags};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use crate::failure::{self, Result};
use crate::places::{self, PLACE, file_type, identity};

/// Events that are read at once, in bytes.
const BUFFER: usize = 8 * 1024;
/// How long the second half of a move may take to come. The kernel queues both at once, but not as one.
const MOVE: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };

/// Carries out the request: a [`Change`] per line to `output`, until what is watched is gone or `stop` is readable.
pub(crate) fn watch(request: &Watch, output: &mut impl Write, stop: &OwnedFd) -> Result<Outcome> {
    let mut path = failure::absolute(&request.path)?;
    let fail = |errno| failure::at("watch", path, errno);
    let top = places::open(CWD, path, PLACE).map_err(fail)?;
    let stat = rustix::fs::fstat(&top).map_err(fail)?;
    let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
    let inotify = inotify::init(flags).map_err(|errno| limit("start to watch", path, errno))?;
    while path.len() > 1 && path.ends_with(b"/") {
        path = &path[..path.len() - 1];
    }
    // Held open it would not be gone when it is removed.
    drop(top);
    let is_dir = file_type(&stat) == FileType::Directory;
    let mut watcher = Watcher {
        inotify,
        output,
        path,
        stat,
        is_dir,
        recursive: request.recursive && is_dir,
        root: 0,
        above: None,
        dirs: HashMap::new(),
        told: HashSet::new(),
        moving: None,
    };
    watcher.begin()?;
    watcher.tell(ChangeKind::Ready, b"", None, is_dir)?;
    watcher.serve(stop)
}

struct Watcher<'a, W> {
    inotify: OwnedFd,
    output: &'a mut W,
    /// What is watched, as it was asked for.
    path: &'a [u8],
    stat: Stat,
    is_dir: bool,
    recursive: bool,
    /// Number of the watch of the top.
    root: i32,
    /// Number of the watch of the directory that the top, a directory, is in.
    above: Option<i32>,
    /// Paths, relative to the top, of the directories that are watched.
    dirs: HashMap<i32, Vec<u8>>,
    /// What was found by looking, and whose making may be told yet.
    told: HashSet<Vec<u8>>,
    /// The first half of a move.
    moving: Option<Moving>,
}

/// Something that has left a place.
struct Moving {
    cookie: u32,
    path: Vec<u8>,
    is_dir: bool,
}

/// An event, copied out of the buffer.
struct Event {
    watch: i32,
    flags: ReadFlags,
    cookie: u32,
    name: Option<Vec<u8>>,
}

impl<W: Write> Watcher<'_, W> {
    /// Sets all the watches that there are to be now.
    fn begin(&mut self) -> Result<()> {
        self.root = self.add(b"")?.ok_or_else(|| failure::at("watch", self.path, Errno::NOENT))?.0;
        self.watch_above()?;
        if self.recursive { self.look(b"".to_vec(), false) } else { Ok(()) }
    }

    /// A directory that somebody works in, or has open, does not tell that it was removed; the one above does.
    fn watch_above(&mut self) -> Result<()> {
        if !self.is_dir {
            return Ok(());
        }
        let path = [self.path, b"/.."].concat();
        let fail = |errno| limit("watch", &path, errno);
        let above = places::open(CWD, &path, PLACE).map_err(fail)?;
        // The root is in itself.
        if identity(&rustix::fs::fstat(&above).map_err(fail)?) != identity(&self.stat) {
            let flags = WatchFlags::DELETE | WatchFlags::MOVED_FROM;
            let watch = inotify::add_watch(&self.inotify, by_descriptor(&above), flags).map_err(fail)?;
            self.above = Some(watch);
        }
        Ok(())
    }

    fn serve(&mut self, stop: &OwnedFd) -> Result<Outcome> {
        loop {
            self.output.flush().map_err(|_| cancelled())?;
            let mut waiting = [PollFd::new(&self.inotify, PollFlags::IN), PollFd::new(stop, PollFlags::IN)];
            let ready = match poll(&mut waiting, self.moving.is_some().then_some(&MOVE)) {
                Ok(ready) => ready,
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(failure::at("wait for changes of", self.path, errno)),
            };
            let stopped = !waiting[1].revents().is_empty();
            if stopped {
                return Err(cancelled());
            }
            if ready == 0 {
                self.moved_away()?;
                continue;
            }
            self.read()?;
        }
    }

    /// Everything that is queued.
    fn read(&mut self) -> Result<()> {
        let mut buffer = [MaybeUninit::uninit(); BUFFER];
        loop {
            let mut events = Vec::new();
            let mut reader = inotify::Reader::new(&self.inotify, &mut buffer);
            let more = loop {
                match reader.next() {
                    Ok(event) => events.push(Event {
                        watch: event.wd(),
                        flags: event.events(),
                        cookie: event.cookie(),
                        name: event.file_name().map(|name| name.to_bytes().to_vec()),
                    }),
                    Err(Errno::INTR) => continue,
                    Err(Errno::AGAIN) => break false,
                    Err(errno) => return Err(failure::at("read changes of", self.path, errno)),
                }
                if reader.is_buffer_empty() {
                    break true;
                }
            };
            for event in events {
                self.handle(event)?;
            }
            if !more {
                // Whatever was made before it was found has been told by now.
                self.told.clear();
                return Ok(());
            }
        }
    }

    fn handle(&mut self, event: Event) -> Result<()> {
        if event.flags.contains(ReadFlags::QUEUE_OVERFLOW) {
            return self.overflow();
        }
        if Some(event.watch) == self.above {
            return if self.is_there() { Ok(()) } else { self.gone() };
        }
        if event.flags.contains(ReadFlags::IGNORED) && event.watch != self.root {
            self.dirs.remove(&event.watch);
            return Ok(());
        }
        match event.name {
            None if event.watch == self.root => self.of_top(event.flags),
            // The directory above tells of it by name.
            None => Ok(()),
            Some(name) => {
                // Of one that is not watched any more, from before that was so.
                let Some(dir) = self.dirs.get(&event.watch) else { return Ok(()) };
                let path = join(dir, &name);
                self.of_entry(event.flags, event.cookie, path)
            }
        }
    }

    fn of_top(&mut self, flags: ReadFlags) -> Result<()> {
        let gone = ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF | ReadFlags::UNMOUNT | ReadFlags::IGNORED;
        // A file that somebody has open is gone when it has no name, but is not deleted yet.
        if flags.intersects(gone) || (!self.is_dir && flags.contains(ReadFlags::ATTRIB) && !self.is_there()) {
            return self.gone();
        }
        self.plain(flags, b"", self.is_dir)
    }

    /// The last word.
    fn gone(&mut self) -> Result<()> {
        self.moved_away()?;
        self.tell(ChangeKind::Removed, b"", None, self.is_dir)?;
        self.output.flush().map_err(|_| cancelled())?;
        Err(failure::because(FailureCode::NotFound, "what is watched is gone", Some(self.path)))
    }

    fn is_there(&self) -> bool {
        self.open_top().is_some()
    }

    /// What is watched, if it is still where it was.
    fn open_top(&self) -> Option<OwnedFd> {
        let top = places::open(CWD, self.path, PLACE).ok()?;
        let now = rustix::fs::fstat(&top).ok()?;
        (identity(&now) == identity(&self.stat)).then_some(top)
    }

    fn of_entry(&mut self, flags: ReadFlags, cookie: u32, path: Vec<u8>) -> Result<()> {
        let is_dir = flags.contains(ReadFlags::ISDIR);
        if flags.contains(ReadFlags::MOVED_TO) {
            return self.moved_here(cookie, path, is_dir);
        }
        self.moved_away()?;
        if flags.contains(ReadFlags::MOVED_FROM) {
            self.told.remove(&path);
            self.moving = Some(Moving { cookie, path, is_dir });
        } else if flags.contains(ReadFlags::CREATE) {
            self.made(path, is_dir)?;
        } else if flags.contains(ReadFlags::DELETE) {
            self.told.remove(&path);
            self.tell(ChangeKind::Removed, &path, None, is_dir)?;
        } else {
            self.plain(flags, &path, is_dir)?;
        }
        Ok(())
    }

    fn plain(&mut self, flags: ReadFlags, path: &[u8], is_dir: bool) -> Result<()> {
        for (flag, kind) in [
            (ReadFlags::MODIFY, ChangeKind::Modified),
            (ReadFlags::ATTRIB, ChangeKind::Attributes),
            (ReadFlags::CLOSE_WRITE, ChangeKind::Closed),
        ] {
            if flags.contains(flag) {
                self.tell(kind, path, None, is_dir)?;
            }
        }
        Ok(())
    }

    fn made(&mut self, path: Vec<u8>, is_dir: bool) -> Result<()> {
        if self.told.remove(&path) {
            return Ok(());
        }
        self.tell(ChangeKind::Created, &path, None, is_dir)?;
        if is_dir && self.recursive { self.look(path, true) } else { Ok(()) }
    }

    fn moved_here(&mut self, cookie: u32, path: Vec<u8>, is_dir: bool) -> Result<()> {
        let Some(moving) = self.moving.take_if(|moving| moving.cookie == cookie) else {
            self.moved_away()?;
            return self.made(path, is_dir);
        };
        if self.told.remove(&path) {
            // Found by looking, and told as made, before this.
            return self.tell(ChangeKind::Removed, &moving.path, None, is_dir);
        }
        self.tell(ChangeKind::Moved, &path, Some(&moving.path), is_dir)?;
        if is_dir {
            for dir in self.dirs.values_mut() {
                if let Some(rest) = below(dir, &moving.path) {
                    *dir = [&path[..], rest].concat();
                }
            }
        }
        Ok(())
    }

    /// What has left a place, and has come to none that is watched.
    fn moved_away(&mut self) -> Result<()> {
        let Some(moving) = self.moving.take() else { return Ok(()) };
        if moving.is_dir {
            self.dirs.retain(|watch, dir| {
                let gone = below(dir, &moving.path).is_some();
                if gone {
                    let _ = inotify::remove_watch(&self.inotify, *watch);
                }
                !gone
            });
        }
        self.tell(ChangeKind::Removed, &moving.path, None, moving.is_dir)
    }

    /// After lost events nothing is known of what is where: everything is looked at again.
    fn overflow(&mut self) -> Result<()> {
        self.moving = None;
        self.tell(ChangeKind::Overflow, b"", None, self.is_dir)?;
        if !self.is_there() {
            return self.gone();
        }
        if !self.recursive {
            return Ok(());
        }
        let before: Vec<i32> = self.dirs.drain().map(|(watch, _)| watch).collect();
        self.dirs.insert(self.root, Vec::new());
        self.look(b"".to_vec(), false)?;
        for watch in before.into_iter().filter(|watch| !self.dirs.contains_key(watch)) {
            let _ = inotify::remove_watch(&self.inotify, watch);
        }
        Ok(())
    }

    /// Watches all directories in and below `path`, and tells of what is there where that is new.
    fn look(&mut self, path: Vec<u8>, is_new: bool) -> Result<()> {
        let mut left = vec![path];
        while let Some(path) = left.pop() {
            let Some((_, dir)) = self.add(&path)? else { continue };
            let opened = rustix::fs::openat(
                &dir,
                ".",
                OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
                Mode::empty(),
            );
            let opened = opened.map_err(|errno| failure::at("read directory", &self.shown(&path), errno))?;
            for entry in Dir::new(opened).map_err(|errno| failure::at("read directory", self.path, errno))? {
                let entry = entry.map_err(|errno| failure::at("read directory", self.path, errno))?;
                let name = entry.file_name().to_bytes();
                if name == b"." || name == b".." {
                    continue;
                }
                let is_dir = match entry.file_type() {
                    FileType::Unknown => rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW)
                        .is_ok_and(|stat| file_type(&stat) == FileType::Directory),
                    kind => kind == FileType::Directory,
                };
                let path = join(&path, name);
                if is_new {
                    self.tell(ChangeKind::Created, &path, None, is_dir)?;
                    self.told.insert(path.clone());
                }
                if is_dir {
                    left.push(path);
                }
            }
        }
        Ok(())
    }

    /// Watches one directory, or the top; `None` for one that is gone, or that is the kernel's.
    fn add(&mut self, path: &[u8]) -> Result<Option<(i32, OwnedFd)>> {
        let fail = |errno| limit("watch", &self.shown(path), errno);
        let Some(top) = self.open_top() else { return Ok(None) };
        let opened = if path.is_empty() {
            top
        } else {
            let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
            match rustix::fs::openat2(&top, path, PLACE | OFlags::DIRECTORY, Mode::empty(), resolve) {
                Ok(opened) => opened,
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
                Err(errno) => return Err(fail(errno)),
            }
        };
        if !path.is_empty() && places::is_the_kernel_s(&opened) {
            return Ok(None);
        }
        let mut flags = WatchFlags::MODIFY | WatchFlags::ATTRIB | WatchFlags::CLOSE_WRITE;
        flags |= WatchFlags::CREATE | WatchFlags::DELETE | WatchFlags::MOVE | WatchFlags::EXCL_UNLINK;
        if path.is_empty() {
            flags |= WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF;
        }
        match inotify::add_watch(&self.inotify, by_descriptor(&opened), flags) {
            Ok(watch) => {
                self.dirs.insert(watch, path.to_vec());
                Ok(Some((watch, opened)))
            }
            Err(errno) => Err(fail(errno)),
        }
    }

    fn tell(&mut self, kind: ChangeKind, path: &[u8], from: Option<&[u8]>, is_dir: bool) -> Result<()> {
        let shown = |path: &[u8]| failure::shown(&self.shown(path));
        let change = Change { kind, path: shown(path), from: from.map(shown), is_dir };
        let mut line = Vec::new();
        berth_wire::encode_change(&change, &mut line)
            .map_err(|error| failure::because(FailureCode::Io, error.to_string(), Some(self.path)))?;
        self.output.write_all(&line).map_err(|_| cancelled())
    }

    /// The absolute path.
    fn shown(&self, path: &[u8]) -> Vec<u8> {
        match (path, self.path) {
            (b"", top) => top.to_vec(),
            (path, b"/") => [b"/", path].concat(),
            (path, top) => [top, b"/", path].concat(),
        }
    }
}

/// There is no call that takes a descriptor. This path leads to what is open, whatever its name is by now.
fn by_descriptor(opened: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", opened.as_raw_fd())
}

fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() { name.to_vec() } else { [dir, b"/", name].concat() }
}

/// What is left of `path` below `top`, with its slash; nothing of `top` itself.
fn below<'a>(path: &'a [u8], top: &[u8]) -> Option<&'a [u8]> {
    path.strip_prefix(top).filter(|rest| rest.is_empty() || rest.starts_with(b"/"))
}

/// inotify(7): no more watches are "no space", no more watchers "too many open files".
fn limit(operation: &str, path: &[u8], errno: Errno) -> Failure {
    let which = match errno {
        Errno::NOSPC => "fs.inotify.max_user_watches",
        Errno::MFILE => "fs.inotify.max_user_instances, or of open files,",
        other => return failure::at(operation, path, other),
    };
    let message = format!("{operation}: the machine's limit {which} is reached");
    failure::because(FailureCode::Limit, message, Some(path))
}

fn cancelled() -> Failure {
    failure::because(FailureCode::Cancelled, "nobody takes the changes any more", None)
}

//! Users as the sandbox's own `/etc/passwd` and `/etc/group` know them, by the rules of container runtimes.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;

use berth_sys::spawn::Ids;
use rustix::fs::OFlags;
use rustix::io::Errno;

/// Longest account file that is read; a longer one is an error, not half an answer.
const MAX_FILE: u64 = 16 << 20;

/// Who a command runs as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) ids: Ids,
    /// Absent for a number that has no name.
    pub(crate) name: Option<String>,
    pub(crate) home: String,
    pub(crate) shell: Option<String>,
}

/// Why a user specification names nobody. The texts are for the one who wrote it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    #[error("no user {0:?} in /etc/passwd")]
    User(String),
    #[error("no group {0:?} in /etc/group")]
    Group(String),
    #[error("{0} cannot be read: {1}")]
    Read(&'static str, String),
}

/// Looks `spec` up: `user` or `user:group`, each a name or a number; root when absent.
pub(crate) fn lookup(spec: Option<&str>) -> Result<User, Error> {
    let spec = spec.unwrap_or("0");
    resolve(spec, &or_nothing(read("/etc/passwd"), spec)?, &or_nothing(read("/etc/group"), spec)?)
}

/// What was read, or nothing where that failed and numbers say it all: a command in the sandbox that is root may put there
/// what it likes, and must not keep others out by that.
fn or_nothing(read: Result<String, Error>, spec: &str) -> Result<String, Error> {
    let (user, group) = spec.split_once(':').unwrap_or((spec, ""));
    let is_number = |text: &str| text.is_empty() || number(text).is_some();
    let needs_no_names = (user == "root" || is_number(user)) && is_number(group);
    if needs_no_names { Ok(read.unwrap_or_default()) } else { read }
}

/// Names of ids, for people to read. What has none, or cannot be looked up, is shown as its number.
#[derive(Debug, Default)]
pub(crate) struct Names {
    users: HashMap<u32, String>,
    groups: HashMap<u32, String>,
}

impl Names {
    /// Those of the sandbox, as they are now.
    pub(crate) fn read() -> Self {
        Self::parse(&read("/etc/passwd").unwrap_or_default(), &read("/etc/group").unwrap_or_default())
    }

    fn parse(passwd: &str, group: &str) -> Self {
        let mut names = Self::default();
        // The first line of an id counts, as everywhere.
        for account in passwd.lines().filter_map(account) {
            names.users.entry(account.uid).or_insert_with(|| account.name.into());
        }
        for group in group.lines().filter_map(parse_group) {
            names.groups.entry(group.gid).or_insert_with(|| group.name.into());
        }
        names
    }

    pub(crate) fn user(&self, uid: u32) -> String {
        self.users.get(&uid).cloned().unwrap_or_else(|| uid.to_string())
    }

    pub(crate) fn group(&self, gid: u32) -> String {
        self.groups.get(&gid).cloned().unwrap_or_else(|| gid.to_string())
    }
}

/// A small text file of the sandbox's. One that is not there is an empty one: an image from scratch has none.
///
/// The loop waits for this, and whoever is root in the sandbox decides what is there: a FIFO or a terminal must not
/// keep it for ever.
pub(crate) fn read(path: &'static str) -> Result<String, Error> {
    let fail = |error: std::io::Error| Error::Read(path, error.to_string());
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = match crate::places::open(rustix::fs::CWD, path.as_bytes(), flags) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT) => return Ok(String::new()),
        Err(errno) => return Err(fail(errno.into())),
    };
    if !file.metadata().map_err(fail)?.is_file() {
        return Err(Error::Read(path, "not a regular file".to_owned()));
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(fail)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(Error::Read(path, format!("longer than {MAX_FILE} bytes")));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
    shell: &'a str,
}

struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

fn resolve(spec: &str, passwd: &str, group: &str) -> Result<User, Error> {
    let (user, group_name) = match spec.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (spec, None),
    };
    let user = match user {
        "" => "0",
        // Whoever prepares a sandbox asks for root by name; an image from scratch has no list with that name.
        "root" if find_account(user, passwd).is_none() => "0",
        user => user,
    };
    let account = find_account(user, passwd);
    let uid = match &account {
        Some(account) => account.uid,
        None => number(user).ok_or_else(|| Error::User(user.into()))?,
    };
    let (gid, groups) = match group_name {
        Some(name) => (find_group(name, group)?, Vec::new()),
        None => (account.as_ref().map_or(0, |account| account.gid), memberships(account.as_ref(), group)),
    };
    Ok(User {
        ids: Ids { uid, gid, groups },
        name: account.as_ref().map(|account| account.name.to_owned()),
        home: account
            .as_ref()
            .map(|account| account.home)
            .filter(|home| !home.is_empty())
            .unwrap_or("/")
            .into(),
        shell: account.map(|account| account.shell.to_owned()).filter(|shell| !shell.is_empty()),
    })
}

/// A name goes before a number: a user may be called `1000`.
fn find_account<'a>(user: &str, passwd: &'a str) -> Option<Account<'a>> {
    let accounts = || passwd.lines().filter_map(account);
    accounts().find(|account| account.name == user).or_else(|| {
        let uid = number(user)?;
        accounts().find(|account| account.uid == uid)
    })
}

fn find_group(name: &str, group: &str) -> Result<u32, Error> {
    let named = group.lines().filter_map(parse_group).find(|group| group.name == name).map(|group| group.gid);
    named.or_else(|| number(name)).ok_or_else(|| Error::Group(name.into()))
}

fn memberships(account: Option<&Account<'_>>, group: &str) -> Vec<u32> {
    let Some(account) = account else { return Vec::new() };
    let groups = group.lines().filter_map(parse_group);
    groups
        .filter(|group| group.members.split(',').any(|name| name == account.name))
        .map(|group| group.gid)
        .collect()
}

fn account(line: &str) -> Option<Account<'_>> {
    let mut fields = line.trim_end().split(':');
    let name = fields.next().filter(|name| !name.is_empty())?;
    let uid = number(fields.nth(1)?)?;
    let gid = number(fields.next()?)?;
    let home = fields.nth(1).unwrap_or("");
    Some(Account { name, uid, gid, home, shell: fields.next().unwrap_or("") })
}

fn parse_group(line: &str) -> Option<Group<'_>> {
    let mut fields = line.trim_end().split(':');
    let name = fields.next().filter(|name| !name.is_empty())?;
    let gid = number(fields.nth(1)?)?;
    Some(Group { name, gid, members: fields.next().unwrap_or("") })
}

/// Ids above `i32::MAX` are refused as container runtimes do; -1 would mean "unchanged" to the kernel.
fn number(text: &str) -> Option<u32> {
    text.parse().ok().filter(|id| *id <= i32::MAX as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\n# comment\nbad\napp:x:1000:1001:App:/home/app:/bin/sh\n\
                          bare:x:7:8\n1234:x:5:5::/five:\n";
    const GROUP: &str = "root:x:0:\napp:x:1001:\nwheel:x:10:root,app\nvideo:x:44:app\n";

    fn resolved(spec: &str) -> Result<(u32, u32, Vec<u32>, String), Error> {
        let user = resolve(spec, PASSWD, GROUP)?;
        Ok((user.ids.uid, user.ids.gid, user.ids.groups, user.home))
    }

    #[test]
    fn names_numbers_and_groups() {
        assert_eq!(resolved("app"), Ok((1000, 1001, vec![10, 44], "/home/app".into())));
        assert_eq!(resolved("1000"), Ok((1000, 1001, vec![10, 44], "/home/app".into())));
        assert_eq!(resolved("app:video"), Ok((1000, 44, vec![], "/home/app".into())));
        assert_eq!(resolved("app:77"), Ok((1000, 77, vec![], "/home/app".into())));
        assert_eq!(resolved("4242"), Ok((4242, 0, vec![], "/".into())));
        assert_eq!(resolved("4242:4243"), Ok((4242, 4243, vec![], "/".into())));
        assert_eq!(resolved("bare"), Ok((7, 8, vec![], "/".into())));
        assert_eq!(resolved("1234"), Ok((5, 5, vec![], "/five".into())));
        assert_eq!(resolved("0"), Ok((0, 0, vec![10], "/root".into())));
        assert_eq!(resolved(":wheel"), Ok((0, 10, vec![], "/root".into())));
    }

    #[test]
    fn ids_are_shown_by_their_first_name() {
        let names = Names::parse(&format!("{PASSWD}again:x:1000:1::/:\n"), GROUP);
        assert_eq!([names.user(1000), names.user(4242)], ["app", "4242"]);
        assert_eq!([names.group(44), names.group(4242)], ["video", "4242"]);
    }

    #[test]
    fn root_needs_no_list() {
        let root = resolve("root", "", "").expect("root is always there");
        assert_eq!((root.ids.uid, root.ids.gid, root.name, root.home), (0, 0, None, "/".into()));
        let renamed =
            resolve("root", "admin:x:0:0::/home/admin:/bin/sh\n", "").expect("root is always there");
        assert_eq!((renamed.ids.uid, renamed.home), (0, "/home/admin".into()));
    }

    #[test]
    fn a_list_that_cannot_be_read_keeps_out_those_alone_who_are_to_be_looked_up() {
        let unread = || Err(Error::Read("/etc/passwd", "not a regular file".into()));
        for spec in ["0", "root", "", "1000", "1000:1000", "root:0"] {
            assert_eq!(or_nothing(unread(), spec), Ok(String::new()), "{spec}");
        }
        for spec in ["app", "0:wheel", "app:0"] {
            assert_eq!(or_nothing(unread(), spec), unread(), "{spec}");
        }
        assert_eq!(or_nothing(Ok("x".into()), "0"), Ok("x".into()));
    }

    #[test]
    fn who_is_not_there_is_named() {
        assert_eq!(resolved("nobody"), Err(Error::User("nobody".into())));
        assert_eq!(resolved("app:nogroup"), Err(Error::Group("nogroup".into())));
        assert_eq!(resolved("4294967295"), Err(Error::User("4294967295".into())));
        assert_eq!(resolved("-1"), Err(Error::User("-1".into())));
    }
}

//! What is told of a file: as numbers, and as the line that `ls -l` would show.

use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{FileType, Stat};

use crate::users::Names;

const DAY: u64 = 24 * 60 * 60;
/// Older (or newer) than this, a file's year is shown in place of its hour: half a year, as ls has it.
const RECENT: u64 = 182 * DAY;
const MONTHS: [(&str, u64); 12] = [
    ("Jan", 31),
    ("Feb", 28),
    ("Mar", 31),
    ("Apr", 30),
    ("May", 31),
    ("Jun", 30),
    ("Jul", 31),
    ("Aug", 31),
    ("Sep", 30),
    ("Oct", 31),
    ("Nov", 30),
    ("Dec", 31),
];

/// Attributes of a file, those that are known or to be set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Attributes {
    /// In bytes.
    pub(super) size: Option<u64>,
    /// User and group.
    pub(super) owner: Option<(u32, u32)>,
    /// Kind and permission bits.
    pub(super) mode: Option<u32>,
    /// Of the last access and change, in seconds since the epoch.
    pub(super) times: Option<(u32, u32)>,
}

impl Attributes {
    pub(super) fn of(stat: &Stat) -> Self {
        Self {
            size: Some(u64::try_from(stat.st_size).unwrap_or(0)),
            owner: Some((stat.st_uid, stat.st_gid)),
            mode: Some(stat.st_mode),
            times: Some((seconds(stat.st_atime), seconds(stat.st_mtime))),
        }
    }
}

/// The format ends in 2106 and begins in 1970; what lies outside is shown as its nearest end.
fn seconds(time: i64) -> u32 {
    u32::try_from(time.max(0)).unwrap_or(u32::MAX)
}

/// The line of `ls -l` for a name, without the target of a link; times are in UTC.
pub(super) fn long_name(name: &[u8], stat: &Stat, names: &Names) -> Vec<u8> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
    let mut line = format!(
        "{} {:>4} {:<8} {:<8} {:>8} {} ",
        mode_text(stat.st_mode),
        stat.st_nlink,
        names.user(stat.st_uid),
        names.group(stat.st_gid),
        stat.st_size,
        time_text(seconds(stat.st_mtime).into(), now),
    )
    .into_bytes();
    line.extend_from_slice(name);
    line
}

/// The same where nothing but the name could be learnt.
pub(super) fn unknown(name: &[u8]) -> Vec<u8> {
    let unknown = "?";
    let mut line =
        format!("?--------- {unknown:>4} {unknown:<8} {unknown:<8} {unknown:>8} {unknown:<12} ").into_bytes();
    line.extend_from_slice(name);
    line
}

fn mode_text(mode: u32) -> String {
    let mut text = String::with_capacity(10);
    text.push(match FileType::from_raw_mode(mode) {
        FileType::RegularFile => '-',
        FileType::Directory => 'd',
        FileType::Symlink => 'l',
        FileType::Fifo => 'p',
        FileType::Socket => 's',
        FileType::CharacterDevice => 'c',
        FileType::BlockDevice => 'b',
        FileType::Unknown => '?',
    });
    // Of user, group and others: the shift of their bits, the special bit, and how that is shown.
    for (shift, special, shown) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits = mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (mode & special != 0, bits & 1 != 0) {
            (false, false) => '-',
            (false, true) => 'x',
            (true, true) => shown,
            (true, false) => shown.to_ascii_uppercase(),
        });
    }
    text
}

fn time_text(time: u64, now: u64) -> String {
    let (year, month, day) = date(time / DAY);
    if time.abs_diff(now) < RECENT {
        let minutes = time % DAY / 60;
        format!("{month} {day:>2} {:02}:{:02}", minutes / 60, minutes % 60)
    } else {
        format!("{month} {day:>2}  {year}")
    }
}

/// The date of a day, counted from the epoch. There are some hundred years at most to go through.
fn date(mut days: u64) -> (u64, &'static str, u64) {
    let is_leap =
        |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let mut year = 1970;
    while days >= 365 + u64::from(is_leap(year)) {
        days -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    for (index, (name, length)) in MONTHS.into_iter().enumerate() {
        let length = length + u64::from(index == 1 && is_leap(year));
        if days < length {
            return (year, name, days + 1);
        }
        days -= length;
    }
    (year, MONTHS[11].0, days + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_read_as_those_of_ls() {
        for (mode, text) in [
            (0o100_644, "-rw-r--r--"),
            (0o040_755, "drwxr-xr-x"),
            (0o120_777, "lrwxrwxrwx"),
            (0o104_755, "-rwsr-xr-x"),
            (0o106_644, "-rwSr-Sr--"),
            (0o041_777, "drwxrwxrwt"),
            (0o041_776, "drwxrwxrwT"),
            (0o010_600, "prw-------"),
        ] {
            assert_eq!(mode_text(mode), text);
        }
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        // As `date -u -d @N` has them.
        for (time, text) in [
            (0, "Jan  1  1970"),
            (951_782_400, "Feb 29  2000"),
            (1_709_164_800, "Feb 29  2024"),
            (1_735_689_599, "Dec 31  2024"),
            (1_735_689_600, "Jan  1  2025"),
            (u64::from(u32::MAX), "Feb  7  2106"),
        ] {
            assert_eq!(time_text(time, 1_800_000_000), text);
        }
        assert_eq!(time_text(1_735_689_599, 1_735_689_600), "Dec 31 23:59");
    }
}

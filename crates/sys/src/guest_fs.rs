//! Looking at files with another user's eyes.

use std::io;

use rustix::thread::Gid;

/// Gives this *thread* the file-system rights of a user: his uid, gid and groups, and none of root's capabilities over
/// files. Meant for a thread that ends after the look; there is no way back.
///
/// setfsuid(2), setgroups(2): the raw calls change the calling thread alone, unlike the C library's.
pub fn see_as(uid: u32, gid: u32, groups: &[u32]) -> io::Result<()> {
    let groups: Vec<Gid> = groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    rustix::thread::set_thread_groups(&groups)?;
    set_fs_id(libc::SYS_setfsgid, gid)?;
    set_fs_id(libc::SYS_setfsuid, uid)
}

/// The calls answer with the old id whether or not they worked, so a second call tells.
fn set_fs_id(call: libc::c_long, id: u32) -> io::Result<()> {
    // SAFETY: touches no memory.
    let _ = unsafe { libc::syscall(call, id) };
    // SAFETY: as above; -1 is no id, so nothing changes.
    let now = unsafe { libc::syscall(call, u32::MAX) };
    // An id above i32::MAX comes back as a negative number in some kernels' int; compare the low 32 bits.
    if now as u32 == id { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EPERM)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_user_does_not_see_into_a_private_directory() {
        if !rustix::process::geteuid().is_root() {
            println!("SKIP: needs root");
            return;
        }
        let dir = std::env::temp_dir().join(format!("berth-see-as-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        std::fs::set_permissions(&dir, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        std::fs::write(dir.join("file"), "").unwrap();
        let inside = dir.join("file");
        let seen = std::thread::spawn(move || {
            see_as(65534, 65534, &[]).unwrap();
            inside.metadata().map_err(|error| error.kind())
        });
        assert_eq!(seen.join().unwrap().unwrap_err(), io::ErrorKind::PermissionDenied);
        assert!(dir.join("file").metadata().is_ok());
        std::fs::remove_dir_all(&dir).unwrap();
    }
}

//! The three files of `/etc` that belong to a sandbox and not to its image.

use std::io;
use std::net::Ipv4Addr;
use std::path::Path;

use berth_jail::spec::EtcFiles;
use berth_net::Slot;

/// Name of their directory, beside the upper one.
const DIR: &str = "etc";

/// Takes them away again, before the upper directory becomes a tree of its own.
pub(crate) fn remove(upper: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(upper.with_file_name(DIR)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Writes them beside `upper`, in the sandbox's own directory on this machine.
pub(crate) fn write(upper: &Path, hostname: &str, slot: &Slot) -> io::Result<EtcFiles> {
    let dir = upper.with_file_name(DIR);
    std::fs::create_dir_all(&dir)?;
    let file = |name: &str, text: &str| {
        let path = dir.join(name);
        std::fs::write(&path, text)?;
        io::Result::Ok(Some(path))
    };
    Ok(EtcFiles {
        resolv_conf: file("resolv.conf", slot.resolv_conf())?,
        hosts: file("hosts", &hosts(hostname, slot.address()))?,
        hostname: file("hostname", &format!("{hostname}\n"))?,
    })
}

/// The sandbox's own name leads to its own address, so that programs which look themselves up find it without DNS.
fn hosts(hostname: &str, address: Option<Ipv4Addr>) -> String {
    let own = address.unwrap_or(Ipv4Addr::new(127, 0, 1, 1));
    format!(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\n\
         ff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n{own}\t{hostname}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_name_always_resolves() {
        assert!(hosts("box", None).ends_with("127.0.1.1\tbox\n"));
        assert!(hosts("box", Some(Ipv4Addr::new(10, 0, 0, 7))).ends_with("10.0.0.7\tbox\n"));
    }
}

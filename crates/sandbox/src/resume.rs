//! What is written down of a running container, so that another daemon can take it over: text for a database, opaque to
//! whoever keeps it.

use std::path::PathBuf;

use berth_jail::Identity;
use berth_jail::cgroup::Cgroup;
use berth_net::KeptSlot;
use berth_types::sandbox::StartPhases;
use berth_wire::GENERATION;
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::driver::Limits;

/// Raised with every change of [`Record`].
const FORMAT: u32 = 1;

/// All that is not found again by the sandbox's id: its directories and its socket are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    format: u32,
    /// Generation of the protocol that its guest speaks, to the end of its days.
    generation: u32,
    pub(crate) process: Identity,
    pub(crate) stubs: Vec<PathBuf>,
    pub(crate) cgroup: Cgroup,
    pub(crate) slot: KeptSlot,
    pub(crate) limits: Limits,
    pub(crate) phases: StartPhases,
}

/// What every record begins with, whichever berth wrote it.
#[derive(Deserialize)]
struct Head {
    format: u32,
    generation: u32,
}

impl Record {
    pub(crate) fn new(
        process: Identity,
        stubs: Vec<PathBuf>,
        cgroup: Cgroup,
        slot: KeptSlot,
        limits: Limits,
        phases: StartPhases,
    ) -> Record {
        let (format, generation) = (FORMAT, GENERATION);
        Record { format, generation, process, stubs, cgroup, slot, limits, phases }
    }

    /// As text.
    pub(crate) fn write(&self) -> Result<String, Error> {
        serde_json::to_string(self).map_err(Error::Record)
    }

    /// From text that another daemon wrote, maybe one of another berth.
    pub(crate) fn read(text: &str) -> Result<Record, Error> {
        let Head { format, generation } = serde_json::from_str(text).map_err(Error::Record)?;
        if generation != GENERATION {
            return Err(Error::OtherGeneration { theirs: generation });
        }
        if format != FORMAT {
            return Err(Error::OtherFormat { theirs: format });
        }
        serde_json::from_str(text).map_err(Error::Record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"{"format":1,"generation":GEN,"process":{"boot":"b","pid":7,"started":99},"stubs":["proc"],"cgroup":{"version":"v2","dirs":["/g"],"memory":null,"cpu":null,"pids":null,"processes":"/g","reserved":null},"slot":{"link":null,"ids":{"first":100000,"count":65536}},"limits":{"cpus":1.5,"cpu_request":null,"memory_bytes":null,"memory_request_bytes":null,"storage_bytes":1024,"storage_inodes":null,"pids":null},"phases":{"disk_ms":1.5,"network_ms":0.0,"cgroups_ms":0.0,"launch_ms":0.0,"guest_ms":0.0}}"#;

    fn text() -> String {
        TEXT.replace("GEN", &GENERATION.to_string())
    }

    #[test]
    fn what_is_written_down_today_is_read_tomorrow() {
        let record = Record::read(&text()).unwrap();
        assert_eq!(record.process, Identity { boot: "b".to_owned(), pid: 7, started: 99 });
        assert_eq!((record.limits.cpus, record.limits.storage_bytes), (Some(1.5), Some(1024)));
        assert_eq!(Record::read(&record.write().unwrap()).unwrap(), record);
    }

    #[test]
    fn records_of_another_berth_are_told_from_nonsense() {
        let changed = |from: &str, to: &str| Record::read(&text().replace(from, to)).unwrap_err();
        let own = format!(r#""generation":{GENERATION},"#);
        let other = changed(&own, r#""generation":0,"news":1,"#);
        assert!(matches!(other, Error::OtherGeneration { theirs: 0 }), "{other}");
        let other = changed(r#""format":1,"#, r#""format":9,"news":1,"#);
        assert!(matches!(other, Error::OtherFormat { theirs: 9 }), "{other}");
        assert!(matches!(changed("stubs", "stub"), Error::Record(_)));
        assert!(matches!(Record::read(""), Err(Error::Record(_))));
        assert!(matches!(Record::read("{}"), Err(Error::Record(_))));
    }
}

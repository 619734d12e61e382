//! The configuration file: one TOML, every key optional, unknown keys refused.
//!
//! Defaults are overridden by the file, the file by the environment, that by flags. What a value means is written at its
//! field; `docs/configuration.md` shows them all with their defaults, and a test holds it to that.

mod builds;
mod images;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};

use builds::BuildsConfig;
use images::ImagesConfig;

/// How far the networks that are kept ready may grow, as a multiple of `network.pool`, while many are asked for at once.
const POOL_GROWTH: usize = 8;

/// The kernel has no more process ids. proc(5), pid_max.
const MOST_PIDS: u64 = 4 << 20;

/// Highest id that the kernel and programs take.
const LAST_ID: u32 = i32::MAX.cast_unsigned();

/// Longest that a sandbox waits for another daemon: a day.
const MAX_ORPHAN_SECONDS: u64 = 86_400;

/// Where the file is looked for when nobody names one.
const DEFAULT_PATH: &str = "/etc/berth/berth.toml";

/// In place of a password that `berth config show` would print.
const HIDDEN: &str = "(hidden)";

/// What the file may hold.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    /// Where layers, images and sandboxes live.
    pub(crate) data_dir: PathBuf,
    /// Where the daemon listens.
    pub(crate) host: String,
    /// Registries: mirrors, credentials.
    pub(crate) registry: berth_node::RegistryConfig,
    /// The disk that sandboxes write to.
    pub(crate) disk: DiskConfig,
    /// Limits of sandboxes, and what is set aside for them.
    pub(crate) limits: LimitsConfig,
    /// What becomes of sandboxes when the daemon ends.
    pub(crate) sandboxes: SandboxesConfig,
    /// How much of images and layers is kept, and for how long.
    pub(crate) images: ImagesConfig,
    /// How Dockerfiles are built.
    pub(crate) builds: BuildsConfig,
    /// What keeps sandboxes and the machine apart.
    pub(crate) isolation: IsolationConfig,
    /// Networks of sandboxes.
    pub(crate) network: NetworkConfig,
    /// The SSH door.
    pub(crate) ssh: SshConfig,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            data_dir: PathBuf::from("/var/lib/berth"),
            host: "unix:///run/berth/berth.sock".to_owned(),
            registry: Default::default(),
            disk: Default::default(),
            limits: Default::default(),
            sandboxes: Default::default(),
            images: Default::default(),
            builds: Default::default(),
            isolation: Default::default(),
            network: Default::default(),
            ssh: Default::default(),
        }
    }
}

/// `[disk]`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct DiskConfig {
    /// How writable layers are kept: `auto` takes the best that the data directory can have, any other is insisted on.
    pub(crate) engine: DiskEngine,
    /// Size in MB at which a pool file that Berth makes begins; it grows as it fills.
    pub(crate) pool_size_mb: u64,
    /// Size in MB that the pool file never exceeds; 0 means as much as the file system below has, less the reserve.
    pub(crate) pool_max_mb: u64,
    /// Whether quotas may be switched on on the btrfs that the data directory is on; other programs notice.
    pub(crate) enable_native_quota: bool,
    /// Disk in MB that is kept free for the machine; a twentieth, from 1024 to 4096, when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reserve_mb: Option<u64>,
}

impl Default for DiskConfig {
    fn default() -> DiskConfig {
        DiskConfig {
            engine: DiskEngine::Auto,
            pool_size_mb: 4096,
            pool_max_mb: 0,
            enable_native_quota: false,
            reserve_mb: None,
        }
    }
}

/// Ways to keep writable layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum DiskEngine {
    /// The best that there is.
    Auto,
    /// btrfs, which the data directory is on.
    Btrfs,
    /// btrfs in a pool file of Berth's own.
    #[serde(rename = "btrfs-loop")]
    BtrfsLoop,
    /// XFS with project quotas.
    Xfs,
    /// Directories; no limit of storage is enforced.
    Plain,
}

/// `[limits]`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct LimitsConfig {
    /// Limit of storage in MB of a sandbox that asks for none, where the disk engine enforces it; 0 means none.
    pub(crate) default_storage_mb: u64,
    /// Limit of processes of a sandbox that asks for none; 0 means none.
    pub(crate) default_pids: u64,
    /// Whether limits of storage are waived where the disk engine cannot enforce them.
    pub(crate) allow_unenforced_storage: bool,
    /// Limits of memory are divided by this for what is set aside; 1 promises no memory twice.
    pub(crate) memory_overcommit: f64,
    /// Limits of storage are divided by this for what is set aside; 1 promises no disk twice.
    pub(crate) storage_overcommit: f64,
    /// Memory in MB that is set aside for a sandbox without limit or request.
    pub(crate) assumed_memory_mb: u64,
    /// Disk in MB that is set aside for a sandbox that asks for none.
    pub(crate) assumed_storage_mb: u64,
    /// Memory in MB that is kept for the machine; a twentieth, at least 256 and at most a quarter of it all, when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) memory_reserve_mb: Option<u64>,
}

impl Default for LimitsConfig {
    fn default() -> LimitsConfig {
        let policy = berth_node::LimitPolicy::default();
        LimitsConfig {
            default_storage_mb: policy.default_storage_mb,
            default_pids: policy.default_pids,
            allow_unenforced_storage: policy.allow_unenforced_storage,
            memory_overcommit: policy.memory_overcommit,
            storage_overcommit: policy.storage_overcommit,
            assumed_memory_mb: policy.assumed_memory_mb,
            assumed_storage_mb: policy.assumed_storage_mb,
            memory_reserve_mb: None,
        }
    }
}

/// `[sandboxes]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct SandboxesConfig {
    /// How long sandboxes live on when the daemon is gone, in seconds, for the next one to take them over; 0: they end with it.
    pub(crate) orphan_seconds: u64,
    /// Whether a daemon that is told to end leaves its sandboxes running, as one does that is killed.
    pub(crate) keep_on_stop: bool,
    /// Certificates (PEM) that sandboxes are to trust beside the machine's; nothing is offered to them when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ca_bundle: Option<PathBuf>,
}

impl Default for SandboxesConfig {
    fn default() -> SandboxesConfig {
        SandboxesConfig { orphan_seconds: 300, keep_on_stop: false, ca_bundle: None }
    }
}

impl SandboxesConfig {
    fn check(&self) -> anyhow::Result<()> {
        let (orphan, keep) = (self.orphan_seconds, self.keep_on_stop);
        ensure!(orphan <= MAX_ORPHAN_SECONDS, "orphan_seconds = {orphan} is more than {MAX_ORPHAN_SECONDS}");
        ensure!(
            orphan > 0 || !keep,
            "keep_on_stop = true with orphan_seconds = 0: sandboxes that end with the daemon cannot be kept"
        );
        Ok(())
    }
}

/// `[isolation]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct IsolationConfig {
    /// Whether sandboxes get a user namespace of their own unless they ask for none.
    pub(crate) user_namespaces: bool,
    /// First user and group id of the machine that sandboxes may have.
    pub(crate) first_id: u32,
    /// Last one.
    pub(crate) last_id: u32,
    /// How many each sandbox gets.
    pub(crate) ids_per_sandbox: u32,
}

impl Default for IsolationConfig {
    fn default() -> IsolationConfig {
        IsolationConfig {
            user_namespaces: true,
            first_id: 1_073_741_824,
            last_id: 2_147_352_575,
            ids_per_sandbox: 262_144,
        }
    }
}

/// `[network]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct NetworkConfig {
    /// IPv4 range that sandboxes get their addresses from; one that is free is chosen when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) range: Option<ipnet::Ipv4Net>,
    /// How many networks of each kind are kept ready ahead of sandboxes.
    pub(crate) pool: u32,
}

impl Default for NetworkConfig {
    fn default() -> NetworkConfig {
        NetworkConfig { range: None, pool: 32 }
    }
}

/// `[ssh]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct SshConfig {
    /// Whether sandboxes can be entered by SSH.
    pub(crate) enabled: bool,
    /// Address and port to listen on from the start on; on a free port of loopback once somebody asks when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) listen: Option<SocketAddr>,
}

impl Default for SshConfig {
    fn default() -> SshConfig {
        SshConfig { enabled: true, listen: None }
    }
}

impl SshConfig {
    fn check(&self) -> anyhow::Result<()> {
        ensure!(
            self.enabled || self.listen.is_none(),
            "listen with enabled = false: a door that is off listens nowhere"
        );
        Ok(())
    }
}

impl Config {
    /// Reads `path`, or the default one if there is any, and checks what it says.
    pub(crate) fn load(path: Option<&Path>) -> anyhow::Result<Config> {
        let (path, named) = path.map_or((Path::new(DEFAULT_PATH), false), |path| (path, true));
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !named => {
                return Ok(Config::default());
            }
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        Config::parse(&text).with_context(|| format!("{} is not a valid configuration", path.display()))
    }

    fn parse(text: &str) -> anyhow::Result<Config> {
        let config: Config = toml::from_str(text)?;
        config.disk.check().context("[disk]")?;
        config.limits.check().context("[limits]")?;
        config.sandboxes.check().context("[sandboxes]")?;
        config.images.check().context("[images]")?;
        config.builds.check().context("[builds]")?;
        config.isolation.check().context("[isolation]")?;
        config.ssh.check().context("[ssh]")?;
        Ok(config)
    }

    /// What the environment says in place of the file.
    pub(crate) fn apply_environment(&mut self) {
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        if let Some(host) = set("BERTH_HOST") {
            self.host = host;
        }
        if let Some(data_dir) = set("BERTH_DATA_DIR") {
            self.data_dir = data_dir.into();
        }
    }

    /// What the node is to limit and set aside.
    pub(crate) fn limit_policy(&self) -> berth_node::LimitPolicy {
        berth_node::LimitPolicy {
            default_storage_mb: self.limits.default_storage_mb,
            default_pids: self.limits.default_pids,
            allow_unenforced_storage: self.limits.allow_unenforced_storage,
            memory_overcommit: self.limits.memory_overcommit,
            storage_overcommit: self.limits.storage_overcommit,
            assumed_memory_mb: self.limits.assumed_memory_mb,
            assumed_storage_mb: self.limits.assumed_storage_mb,
            memory_reserve_mb: self.limits.memory_reserve_mb,
        }
    }

    /// How long sandboxes live on without a daemon.
    pub(crate) fn orphan(&self) -> Option<Duration> {
        Some(self.sandboxes.orphan_seconds).filter(|seconds| *seconds > 0).map(Duration::from_secs)
    }

    /// Where and how writable layers are kept.
    pub(crate) fn disk_options(&self) -> berth_disk::Options {
        const MB: u64 = 1 << 20;
        let disk = &self.disk;
        berth_disk::Options {
            engine: match disk.engine {
                DiskEngine::Auto => None,
                DiskEngine::Btrfs => Some(berth_disk::Kind::Btrfs),
                DiskEngine::BtrfsLoop => Some(berth_disk::Kind::BtrfsLoop),
                DiskEngine::Xfs => Some(berth_disk::Kind::Xfs),
                DiskEngine::Plain => Some(berth_disk::Kind::Plain),
            },
            enable_native_quota: disk.enable_native_quota,
            reserve: disk.reserve_mb.map(|mb| mb.saturating_mul(MB)),
            pool: berth_disk::PoolOptions {
                initial: disk.pool_size_mb.saturating_mul(MB),
                step: disk.pool_size_mb.saturating_mul(MB),
                max: (disk.pool_max_mb > 0).then(|| disk.pool_max_mb.saturating_mul(MB)),
                ..berth_disk::PoolOptions::default()
            },
        }
    }

    /// Networks of sandboxes.
    pub(crate) fn network_options(&self) -> berth_net::Options {
        let kept = self.network.pool as usize;
        berth_net::Options {
            range: self.network.range,
            pool: berth_net::PoolSizes {
                isolated: kept,
                connected: kept,
                most: kept.saturating_mul(POOL_GROWTH).min(berth_net::MOST_KEPT),
            },
            ..berth_net::Options::default()
        }
    }

    /// The SSH door.
    pub(crate) fn ssh_options(&self) -> berth_daemon::SshOptions {
        berth_daemon::SshOptions { enabled: self.ssh.enabled, listen: self.ssh.listen }
    }

    /// Ids for users of sandboxes.
    pub(crate) fn ids(&self) -> Option<berth_node::IdOptions> {
        let IsolationConfig { user_namespaces, first_id, last_id, ids_per_sandbox } = self.isolation;
        let ids = berth_node::IdOptions { first: first_id, last: last_id, per_sandbox: ids_per_sandbox };
        user_namespaces.then_some(ids)
    }

    /// The whole of it as TOML, passwords hidden.
    pub(crate) fn show(&self) -> anyhow::Result<String> {
        toml::to_string(&Shown::of(self)).context("cannot print the configuration")
    }
}

impl DiskConfig {
    fn check(&self) -> anyhow::Result<()> {
        let (size, max) = (self.pool_size_mb, self.pool_max_mb);
        ensure!(size >= 256, "pool_size_mb = {size}: a pool takes at least 256");
        ensure!(max == 0 || max >= size, "pool_max_mb = {max} is less than pool_size_mb, which is {size}");
        Ok(())
    }
}

impl LimitsConfig {
    fn check(&self) -> anyhow::Result<()> {
        for (key, value) in
            [("memory_overcommit", self.memory_overcommit), ("storage_overcommit", self.storage_overcommit)]
        {
            ensure!(
                value.is_finite() && (1.0..=1000.0).contains(&value),
                "{key} = {value} is not 1 to 1000; 1 promises nothing twice"
            );
        }
        let sizes = [
            ("default_storage_mb", self.default_storage_mb),
            ("assumed_memory_mb", self.assumed_memory_mb),
            ("assumed_storage_mb", self.assumed_storage_mb),
        ];
        for (key, value) in sizes {
            ensure!(value <= u64::MAX >> 20, "{key} = {value} is more than any machine has");
        }
        ensure!(
            self.default_pids == 0 || (8..=MOST_PIDS).contains(&self.default_pids),
            "default_pids = {}: a sandbox needs at least 8, the kernel takes at most {MOST_PIDS}, and 0 means no limit",
            self.default_pids
        );
        Ok(())
    }
}

impl IsolationConfig {
    fn check(&self) -> anyhow::Result<()> {
        let (first, last, each) = (self.first_id, self.last_id, self.ids_per_sandbox);
        ensure!(first >= 65_536, "first_id = {first}: ids below 65536 belong to the machine's own users");
        ensure!(each >= 65_536, "ids_per_sandbox = {each}: images use ids up to 65535, so at least 65536");
        ensure!(last <= LAST_ID, "last_id = {last} is above {LAST_ID}");
        ensure!(
            last >= first && u64::from(last) - u64::from(first) + 1 >= u64::from(each),
            "first_id = {first} to last_id = {last} has no room for one sandbox of {each} ids"
        );
        Ok(())
    }
}

/// What `berth config show` prints.
#[derive(Serialize)]
struct Shown<'a> {
    data_dir: &'a Path,
    host: &'a str,
    registry: ShownRegistry<'a>,
    disk: &'a DiskConfig,
    limits: &'a LimitsConfig,
    sandboxes: &'a SandboxesConfig,
    images: &'a ImagesConfig,
    builds: &'a BuildsConfig,
    isolation: &'a IsolationConfig,
    network: &'a NetworkConfig,
    ssh: &'a SshConfig,
}

#[derive(Serialize)]
struct ShownRegistry<'a> {
    upstream: bool,
    insecure: &'a [String],
    unverified: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    ca_bundle: Option<&'a Path>,
    #[serde(skip_serializing_if = "Option::is_none")]
    proxy: Option<String>,
    no_proxy: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    docker_config: Option<&'a Path>,
    parallel_downloads: usize,
    mirrors: &'a std::collections::BTreeMap<String, Vec<String>>,
    auth: std::collections::BTreeMap<&'a str, ShownAuth<'a>>,
}

#[derive(Serialize)]
struct ShownAuth<'a> {
    username: &'a str,
    password: &'static str,
}

/// A URL whose user and password are hidden.
fn without_password(url: &str) -> String {
    match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, host))) => format!("{scheme}://{HIDDEN}@{host}"),
        (None, Some((_, host))) => format!("{HIDDEN}@{host}"),
        (_, None) => url.to_owned(),
    }
}

impl<'a> Shown<'a> {
    fn of(config: &'a Config) -> Shown<'a> {
        let registry = &config.registry;
        let auth = registry
            .auth
            .iter()
            .map(|(host, auth)| (host.as_str(), ShownAuth { username: &auth.username, password: HIDDEN }));
        Shown {
            data_dir: &config.data_dir,
            host: &config.host,
            registry: ShownRegistry {
                upstream: registry.upstream,
                insecure: &registry.insecure,
                unverified: &registry.unverified,
                ca_bundle: registry.ca_bundle.as_deref(),
                proxy: registry.proxy.as_deref().map(without_password),
                no_proxy: &registry.no_proxy,
                docker_config: registry.docker_config.as_deref(),
                parallel_downloads: registry.parallel_downloads,
                mirrors: &registry.mirrors,
                auth: auth.collect(),
            },
            disk: &config.disk,
            limits: &config.limits,
            sandboxes: &config.sandboxes,
            images: &config.images,
            builds: &config.builds,
            isolation: &config.isolation,
            network: &config.network,
            ssh: &config.ssh,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_key_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("berth.toml");
        std::fs::write(&path, "[network]\nrnage = \"10.0.0.0/8\"\n").unwrap();
        let error = format!("{:#}", Config::load(Some(&path)).unwrap_err());
        assert!(error.contains("rnage") && error.contains("range"), "{error}");
        assert!(Config::load(Some(&dir.path().join("absent"))).is_err());
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_key_and_value() {
        for (text, key) in [
            ("[limits]\nmemory_overcommit = 0.5", "memory_overcommit = 0.5"),
            ("[limits]\nstorage_overcommit = nan", "storage_overcommit = NaN"),
            ("[limits]\ndefault_pids = 3", "default_pids = 3"),
            ("[limits]\ndefault_pids = 5000000", "default_pids = 5000000"),
            ("[limits]\ndefault_storage_mb = 17592186044416", "default_storage_mb = 17592186044416"),
            ("[sandboxes]\norphan_seconds = 86401", "orphan_seconds = 86401"),
            ("[sandboxes]\norphan_seconds = 0\nkeep_on_stop = true", "keep_on_stop = true"),
            ("[images]\nmin_free_percent = 91", "min_free_percent = 91"),
            ("[images]\ncheck_seconds = 0", "check_seconds = 0"),
            ("[builds]\nmemory_mb = 1", "memory_mb = 1"),
            ("[builds]\npids = 7", "pids = 7"),
            ("[builds]\ncpus = 0.0", "cpus = 0"),
            ("[builds]\ntimeout_seconds = 604801", "timeout_seconds = 604801"),
            ("[builds]\nnetwork = \"some\"", "some"),
            ("[isolation]\nlast_id = 4294967295", "last_id = 4294967295"),
            ("[ssh]\nlisten = \"localhost\"", "listen = \"localhost\""),
            ("[ssh]\nlisten = \"127.0.0.1:22\"\nenabled = false", "listen with enabled = false"),
            ("[limits]\ndefault_storage_mb = -1", "default_storage_mb"),
            ("[disk]\nengine = \"zfs\"", "zfs"),
            ("[disk]\npool_size_mb = 1", "pool_size_mb = 1"),
            ("[disk]\npool_size_mb = 4096\npool_max_mb = 1024", "pool_max_mb = 1024"),
            ("[isolation]\nfirst_id = 1000", "first_id = 1000"),
            ("[isolation]\nids_per_sandbox = 1", "ids_per_sandbox = 1"),
            ("[isolation]\nfirst_id = 100000\nlast_id = 100001", "last_id = 100001"),
        ] {
            let error = format!("{:#}", Config::parse(text).unwrap_err());
            assert!(error.contains(key), "{text}: {error}");
        }
    }

    #[test]
    fn what_is_shown_can_be_read_again_and_tells_no_password() {
        let text = "data_dir = \"/data\"\n[limits]\nmemory_overcommit = 1\n[disk]\nreserve_mb = 7\n\
                    [registry]\nproxy = \"http://me:secret@proxy.lan:3128\"\n\
                    [registry.auth.\"r.lan\"]\nusername = \"me\"\npassword = \"secret\"\n";
        let config = Config::parse(text).unwrap();
        let shown = config.show().unwrap();
        assert!(!shown.contains("secret") && shown.contains(HIDDEN), "{shown}");
        assert!(shown.contains("@proxy.lan:3128"), "{shown}");
        let again = Config::parse(&shown).unwrap();
        assert_eq!((&again.limits, &again.disk), (&config.limits, &config.disk));
        assert_eq!(again.data_dir, Path::new("/data"));
    }

    #[test]
    fn the_document_shows_every_key_with_its_default() {
        let document = include_str!("../../../docs/configuration.md");
        let shown = Config::default().show().unwrap();
        for line in shown.lines().filter(|line| line.contains(" = ")) {
            let (key, value) = line.split_once(" = ").unwrap();
            let has = |text: &str| {
                let text = text.trim_start_matches("# ");
                text.split_once(" = ")
                    .is_some_and(|(name, rest)| name.trim() == key && rest.starts_with(value))
            };
            let exempt = ["insecure"].contains(&key);
            assert!(exempt || document.lines().any(has), "docs/configuration.md does not show {line:?}");
        }
    }
}

//! What a build may do: the machine's policy, and what one request asks for within it. Pure.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use berth_image::Digest;
use berth_sandbox::Limits;
use berth_types::image::{BasePull, BasicAuth, BuildImage};
use berth_types::sandbox::{Committed, NetworkMode, Resources};
use sha2::{Digest as _, Sha256};

use super::remotes;
use crate::Error;
use crate::fetch::Proxies;
use crate::resources::{Enforces, LimitPolicy, settle_step};

/// Most bytes of one secret, as in BuildKit.
const MAX_SECRET: usize = 500 * 1024;

/// How this machine's builds run: `[builds]` of the configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct BuildPolicy {
    /// What `RUN` reaches at most; a request may ask for less, never for more.
    pub network: NetworkMode,
    /// Limits of each step's sandbox where the request names none.
    pub resources: Resources,
    /// Most steps that run at a time, over all builds; absent: of one build as many as there are processors, and at least
    /// two, and over all builds four times as many.
    pub parallel_steps: Option<usize>,
    /// Longest that a build may take, uploads not counted.
    pub timeout: Option<Duration>,
    /// Most bytes that the contexts of builds under way may have together.
    pub context_bytes: Option<u64>,
    /// Most bytes that cache mounts may have together; those that were not used for longest go first.
    pub cache_bytes: Option<u64>,
    /// Certificates (PEM) that steps are to trust beside the machine's; absent: nothing is offered to them.
    pub ca_bundle: Option<PathBuf>,
}

impl Default for BuildPolicy {
    fn default() -> BuildPolicy {
        BuildPolicy {
            network: NetworkMode::Public,
            resources: Resources::default(),
            parallel_steps: None,
            timeout: None,
            context_bytes: Some(32 << 30),
            cache_bytes: Some(20 << 30),
            ca_bundle: None,
        }
    }
}

/// What one build does beside its plan, settled against the policy.
#[derive(Clone)]
pub(super) struct Settings {
    /// Whether every step runs again.
    pub(super) no_cache: bool,
    /// When the registries of base images are asked.
    pub(super) pull: BasePull,
    /// Whether `RUN` reaches the network, but where it says otherwise itself.
    pub(super) public_network: bool,
    /// Limits of every step's sandbox.
    pub(super) limits: Limits,
    /// What is set aside for each of them.
    pub(super) wants: Committed,
    /// What `RUN --mount=type=secret` finds, by id.
    pub(super) secrets: BTreeMap<String, Vec<u8>>,
    /// Credentials by registry host, before the daemon's own.
    pub(super) auth: BTreeMap<String, BasicAuth>,
    /// By way of whom `ADD` fetches.
    pub(super) proxies: Proxies,
    /// An image that goes by this name in the Dockerfile, whatever registries have.
    pub(super) named: Option<(String, Digest)>,
}

impl Settings {
    /// Settles a request.
    ///
    /// # Errors
    /// [`Error::BadRequest`] for a secret that is not base64 or too long, and for limits that no sandbox has;
    /// [`Error::StorageUnenforced`].
    pub(super) fn new(
        request: &BuildImage,
        policy: &BuildPolicy,
        limits: &LimitPolicy,
        engine: Enforces,
    ) -> Result<Settings, Error> {
        if let Some(resources) = &request.resources {
            crate::request::check_resources(resources)?;
        }
        let mut secrets = BTreeMap::new();
        for (id, secret) in &request.secrets {
            let bytes =
                STANDARD.decode(&secret.0).map_err(|_| bad("secrets", format!("{id:?} is not base64")))?;
            if bytes.len() > MAX_SECRET {
                return Err(bad("secrets", format!("{id:?} has more than {MAX_SECRET} bytes")));
            }
            secrets.insert(id.clone(), bytes);
        }
        let resources = merged(request.resources.as_ref(), &policy.resources);
        let (limits, wants) = settle_step(&resources, limits, engine)?;
        Ok(Settings {
            no_cache: request.no_cache,
            pull: request.pull,
            public_network: (request.network, policy.network) == (NetworkMode::Public, NetworkMode::Public),
            limits,
            wants,
            secrets,
            auth: request.auth.clone(),
            proxies: remotes::proxies(&request.build_args),
            named: None,
        })
    }

    /// The same for a build on top of an image, which its Dockerfile calls `name`.
    pub(super) fn on_top_of(&self, name: &str, image: Digest) -> Settings {
        Settings {
            // What was asked for was asked for the image below; this one is here.
            pull: BasePull::Never,
            secrets: BTreeMap::new(),
            auth: BTreeMap::new(),
            proxies: Proxies::default(),
            named: Some((name.to_owned(), image)),
            ..*self
        }
    }
}

/// Hash over everything of a request but its context that decides what a build does, so that equal ones can be one. Secrets
/// and passwords are in it only as part of the hash: nobody joins a build with other credentials than his own.
pub(super) fn options_key(request: &BuildImage) -> String {
    let without = BuildImage { tags: Vec::new(), manifest: None, ..request.clone() };
    // Maps are sorted; the API's own types always serialise.
    let json = serde_json::to_vec(&without).unwrap_or_default();
    hex(&Sha256::digest(&json))
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What the request asks for, and the policy where it asks for nothing.
fn merged(asked: Option<&Resources>, policy: &Resources) -> Resources {
    let asked = asked.cloned().unwrap_or_default();
    Resources {
        cpus: asked.cpus.or(policy.cpus),
        cpu_request: asked.cpu_request.or(policy.cpu_request),
        memory_mb: asked.memory_mb.or(policy.memory_mb),
        memory_request_mb: asked.memory_request_mb.or(policy.memory_request_mb),
        storage_mb: asked.storage_mb.or(policy.storage_mb),
        storage_inodes: asked.storage_inodes.or(policy.storage_inodes),
        pids: asked.pids.or(policy.pids),
    }
}

fn bad(field: &'static str, problem: String) -> Error {
    Error::BadRequest { field, problem }
}

#[cfg(test)]
mod tests {
    use berth_types::image::Secret;

    use super::*;

    fn settled(request: &BuildImage, policy: &BuildPolicy) -> Result<Settings, Error> {
        Settings::new(request, policy, &LimitPolicy::default(), Enforces { bytes: true, inodes: true })
    }

    fn request(change: impl FnOnce(&mut BuildImage)) -> BuildImage {
        let mut request = BuildImage::default();
        change(&mut request);
        request
    }

    #[test]
    fn builds_differ_by_what_they_do_and_not_by_their_tags() {
        let plain = options_key(&BuildImage::default());
        assert_eq!(plain, options_key(&request(|r| r.tags = vec!["a".into()])));
        let secret = |value: &str| {
            options_key(&request(|r| drop(r.secrets.insert("id".into(), Secret(STANDARD.encode(value))))))
        };
        let password = |word: &str| {
            let auth = BasicAuth { username: "u".into(), password: word.into() };
            options_key(&request(|r| drop(r.auth.insert("registry.example".into(), auth))))
        };
        let mut keys = vec![
            plain,
            secret("one"),
            secret("two"),
            password("one"),
            password("two"),
            options_key(&request(|r| r.no_cache = true)),
            options_key(&request(|r| r.pull = BasePull::Refresh)),
            options_key(&request(|r| r.network = NetworkMode::NoNetwork)),
            options_key(&request(|r| r.target = Some("t".into()))),
            options_key(&request(|r| r.packages = vec!["git".into()])),
            options_key(&request(|r| r.dockerfile_text = Some("FROM scratch".into()))),
            options_key(&request(|r| {
                r.resources = Some(Resources { pids: Some(9), ..Resources::default() })
            })),
        ];
        let all = keys.len();
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), all, "each of them does something else");
        assert!(keys.iter().all(|key| key.len() == 64), "nothing of a secret shows");
    }

    #[test]
    fn a_request_gets_less_than_the_policy_and_never_more_network() {
        let policy = BuildPolicy {
            network: NetworkMode::NoNetwork,
            resources: Resources { pids: Some(100), memory_mb: Some(512), ..Resources::default() },
            ..BuildPolicy::default()
        };
        let asked = Resources { memory_mb: Some(64), ..Resources::default() };
        let settings = settled(&request(|r| r.resources = Some(asked)), &policy).unwrap();
        assert!(!settings.public_network);
        assert_eq!((settings.limits.pids, settings.limits.memory_bytes), (Some(100), Some(64 << 20)));
        let open = settled(&request(|r| r.network = NetworkMode::NoNetwork), &BuildPolicy::default());
        assert!(!open.unwrap().public_network);
        assert!(settled(&BuildImage::default(), &BuildPolicy::default()).unwrap().public_network);
    }

    #[test]
    fn secrets_are_base64_of_bounded_bytes() {
        let with = |text: String| request(|r| drop(r.secrets.insert("token".into(), Secret(text))));
        let settings = |text: String| settled(&with(text), &BuildPolicy::default());
        assert_eq!(settings(STANDARD.encode("hi")).unwrap().secrets["token"], b"hi");
        let refused = settings("no!".into()).map(drop).unwrap_err().to_string();
        assert_eq!(refused, "secrets: \"token\" is not base64");
        assert!(settings(STANDARD.encode(vec![0; MAX_SECRET + 1])).is_err());
    }
}

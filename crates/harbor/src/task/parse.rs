//! `task.toml` → [`TaskConfig`]: Harbor's rules, made strict about types and values.

use berth_types::sandbox::NetworkMode;

use super::config::{
    AgentSection, Artifact, EnvEntry, EnvTable, EnvironmentSection, Healthcheck, Package, TaskConfig,
    Unsupported, VerifierSection,
};
use super::reader::{Document, Item, Located, Section};
use super::{Error, Warning};
use std::path::Path;

/// Longest limit that is taken, in seconds: ten years. Beyond it a number is a mistake.
const LONGEST: f64 = 315_360_000.0;

const POSITIVE_SECONDS: &str = "a number of seconds above 0";
const SECONDS: &str = "a number of seconds, at least 0";

/// Parse the text of the `task.toml` at `file`.
pub(super) fn parse(file: &Path, text: &str) -> Result<(TaskConfig, Vec<Warning>), Error> {
    let doc = Document::new(file, text);
    let table = doc.parse()?;
    let config = Parser::default().task(&Section::root(&doc, &table))?;
    // Keys of the root are checked last, so that every known one has been asked for.
    Ok((config, doc.into_warnings()))
}

#[derive(Default)]
struct Parser {
    unsupported: Vec<Unsupported>,
}

/// `network_mode` and `allowed_hosts` of a section, still unmerged.
struct Network {
    mode: Option<Located<Mode>>,
    hosts: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Mode {
    Public,
    NoNetwork,
    Allowlist,
}

impl Parser {
    fn task(mut self, root: &Section<'_, '_>) -> Result<TaskConfig, Error> {
        let schema_version = schema_version(root)?;
        let package = root.section("task")?.map(package).transpose()?;
        // `[metadata]` is the task author's own; nothing in it is checked.
        root.section("metadata")?;
        let source = root.string("source")?.map(|source| source.value);
        let (environment, baseline) = match root.section("environment")? {
            Some(section) => self.environment(section)?,
            None => (EnvironmentSection::default(), Mode::Public),
        };
        let agent = match root.section("agent")? {
            Some(section) => self.agent(section, baseline)?,
            None => AgentSection::default(),
        };
        let verifier = match root.section("verifier")? {
            Some(section) => self.verifier(section, baseline)?,
            None => VerifierSection::default(),
        };
        let solution_env = match root.section("solution")? {
            Some(section) => {
                let env = env_table(&section, "env")?;
                section.finish();
                env
            }
            None => EnvTable::default(),
        };
        root.string("multi_step_reward_strategy")?;
        if let Some(line) = root.filled("steps")? {
            self.refuse("multi-step tasks ([[steps]])", line);
        }
        let artifacts = self.artifacts(root)?;
        root.unknown_keys();
        self.unsupported.sort_by_key(|unsupported| unsupported.line);
        Ok(TaskConfig {
            schema_version,
            package,
            source,
            agent,
            verifier,
            environment,
            solution_env,
            artifacts,
            unsupported: self.unsupported,
        })
    }

    fn agent(&mut self, section: Section<'_, '_>, baseline: Mode) -> Result<AgentSection, Error> {
        let agent =
            AgentSection { timeout_sec: positive(&section, "timeout_sec")?, user: section.user("user")? };
        self.phase_network(&section, baseline, "[agent]")?;
        section.finish();
        Ok(agent)
    }

    fn verifier(&mut self, section: Section<'_, '_>, baseline: Mode) -> Result<VerifierSection, Error> {
        let default = VerifierSection::default();
        let verifier = VerifierSection {
            timeout_sec: positive(&section, "timeout_sec")?.unwrap_or(default.timeout_sec),
            env: env_table(&section, "env")?,
            user: section.user("user")?,
        };
        self.phase_network(&section, baseline, "[verifier]")?;
        self.verifier_mode(&section)?;
        if let Some(line) = section.filled("collect")? {
            self.refuse("collect hooks ([[verifier.collect]])", line);
        }
        section.finish();
        Ok(verifier)
    }

    fn verifier_mode(&mut self, section: &Section<'_, '_>) -> Result<(), Error> {
        let environment = section.filled("environment")?;
        let mode = section.string("environment_mode")?;
        let expected = "\"shared\" or \"separate\"";
        match mode.as_ref().map(|mode| (mode.value.as_str(), mode.line)) {
            None | Some(("shared", _)) if environment.is_none() => {}
            None => self.refuse("a separate verifier ([verifier.environment])", environment.unwrap_or(1)),
            Some(("shared", line)) => {
                let found = "\"shared\" beside [verifier.environment]".to_owned();
                return Err(section.invalid("environment_mode", line, "\"separate\"", found));
            }
            Some(("separate", line)) => {
                self.refuse("a separate verifier (environment_mode = \"separate\")", line);
            }
            Some((other, line)) => {
                return Err(section.invalid("environment_mode", line, expected, format!("{other:?}")));
            }
        }
        Ok(())
    }

    fn environment(&mut self, section: Section<'_, '_>) -> Result<(EnvironmentSection, Mode), Error> {
        let default = EnvironmentSection::default();
        let baseline = self.baseline_network(&section)?;
        self.unsupported_of_environment(&section)?;
        let at_least_one = "a number of cores, at least 0.01";
        let environment = EnvironmentSection {
            build_timeout_sec: positive(&section, "build_timeout_sec")?.unwrap_or(default.build_timeout_sec),
            docker_image: non_empty(&section, "docker_image")?,
            cpus: section.number("cpus", at_least_one, |cpus| cpus >= 0.01)?.map(|cpus| cpus.value),
            memory_mb: megabytes(&section, "memory_mb", "memory")?,
            storage_mb: megabytes(&section, "storage_mb", "storage")?,
            env: env_table(&section, "env")?,
            skills_dir: non_empty(&section, "skills_dir")?,
            healthcheck: section.section("healthcheck")?.map(healthcheck).transpose()?,
            workdir: workdir(&section)?,
            network: if baseline == Mode::NoNetwork { NetworkMode::NoNetwork } else { NetworkMode::Public },
        };
        section.finish();
        Ok((environment, baseline))
    }

    fn unsupported_of_environment(&mut self, section: &Section<'_, '_>) -> Result<(), Error> {
        if let Some(os) = section.string("os")? {
            match os.value.to_lowercase().as_str() {
                "linux" => {}
                "windows" => self.refuse("Windows environments (os = \"windows\")", os.line),
                _ => {
                    return Err(section.invalid(
                        "os",
                        os.line,
                        "\"linux\" or \"windows\"",
                        format!("{:?}", os.value),
                    ));
                }
            }
        }
        if let Some(gpus) = section.whole("gpus", "a whole number, at least 0", 0)?
            && gpus.value > 0
        {
            self.refuse("GPUs", gpus.line);
        }
        section.strings("gpu_types")?;
        if let Some(line) = section.line_of("tpu") {
            self.refuse("TPUs ([environment.tpu])", line);
        }
        if let Some(line) = section.filled("mcp_servers")? {
            self.refuse("MCP servers ([[environment.mcp_servers]])", line);
        }
        Ok(())
    }

    fn baseline_network(&mut self, section: &Section<'_, '_>) -> Result<Mode, Error> {
        let network = network(section)?;
        let allow_internet = section.boolean("allow_internet")?;
        if let Some(allow) = &allow_internet {
            let message = "environment.allow_internet is deprecated; use environment.network_mode";
            section.warn(allow.line, message.to_owned());
        }
        let mode = match (&network.mode, allow_internet) {
            (Some(mode), _) => mode.value,
            (None, Some(allow)) if !allow.value && !network.hosts => Mode::NoNetwork,
            _ => Mode::Public,
        };
        if let (Mode::Allowlist, Some(found)) = (mode, network.mode) {
            self.refuse("network_mode = \"allowlist\"", found.line);
        }
        Ok(mode)
    }

    fn phase_network(&mut self, section: &Section<'_, '_>, baseline: Mode, name: &str) -> Result<(), Error> {
        if let Some(mode) = network(section)?.mode
            && (mode.value != baseline || mode.value == Mode::Allowlist)
        {
            let what = format!("a network_mode of {name} that differs from the environment's");
            self.refuse(&what, mode.line);
        }
        Ok(())
    }

    fn artifacts(&mut self, root: &Section<'_, '_>) -> Result<Vec<Artifact>, Error> {
        let mut artifacts = Vec::new();
        for item in root.items("artifacts")? {
            let (artifact, line) = match item {
                Item::Text(source) => (Artifact { source: source.value, ..Artifact::default() }, source.line),
                Item::Table(section, line) => (artifact(root, section, line)?, line),
            };
            check_artifact(root, &artifact, line)?;
            if artifact.service.as_deref().is_some_and(|service| service != "main") {
                self.refuse("artifacts of a service other than main", line);
            } else if !artifact.source.starts_with('/') {
                self.refuse("artifacts with a relative source", line);
            }
            artifacts.push(artifact);
        }
        Ok(artifacts)
    }

    fn refuse(&mut self, what: &str, line: usize) {
        self.unsupported.push(Unsupported { what: what.to_owned(), line });
    }
}

fn schema_version(root: &Section<'_, '_>) -> Result<String, Error> {
    let old = root.string("version")?;
    let Some(version) = root.string("schema_version")?.or(old) else { return Ok("1.4".to_owned()) };
    let minor = version.value.strip_prefix("1.").and_then(|minor| minor.parse::<u32>().ok());
    match minor {
        Some(0..=4) => {}
        Some(_) => root.warn(
            version.line,
            format!("schema_version {} is newer than 1.4; newer keys are unknown here", version.value),
        ),
        None => {
            let found = format!("{:?}", version.value);
            return Err(root.invalid("schema_version", version.line, "\"1.0\" to \"1.4\"", found));
        }
    }
    Ok(version.value)
}

fn package(section: Section<'_, '_>) -> Result<Package, Error> {
    let expected = "\"org/name\" of letters, digits, '.', '_' and '-'";
    let Some(name) = section.string("name")? else {
        let line = section.line_of("name").or(section.first_line()).unwrap_or(1);
        return Err(section.invalid("name", line, expected, "nothing".to_owned()));
    };
    if !is_package_name(&name.value) {
        return Err(section.invalid("name", name.line, expected, format!("{:?}", name.value)));
    }
    let version = section.string("version")?.map(|version| version.value);
    section.string("description")?;
    section.items("authors")?;
    section.strings("keywords")?;
    section.finish();
    Ok(Package { name: name.value, version })
}

fn is_package_name(name: &str) -> bool {
    let part = |part: &str| {
        part.starts_with(|first: char| first.is_ascii_alphanumeric())
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
    };
    !name.contains("..") && name.split_once('/').is_some_and(|(org, short)| part(org) && part(short))
}

fn healthcheck(section: Section<'_, '_>) -> Result<Healthcheck, Error> {
    let Some(command) = section.string("command")? else {
        let line = section.first_line().unwrap_or(1);
        return Err(section.invalid("command", line, "a line for the shell", "nothing".to_owned()));
    };
    let seconds = |key: &'static str, default: f64| -> Result<f64, Error> {
        let found = section.number(key, SECONDS, |seconds| (0.0..=LONGEST).contains(&seconds))?;
        Ok(found.map_or(default, |seconds| seconds.value))
    };
    let healthcheck = Healthcheck {
        command: command.value,
        interval_sec: seconds("interval_sec", 5.0)?,
        timeout_sec: seconds("timeout_sec", 30.0)?,
        start_period_sec: seconds("start_period_sec", 0.0)?,
        start_interval_sec: seconds("start_interval_sec", 5.0)?,
        retries: section
            .whole("retries", "a whole number, at least 0", 0)?
            .map_or(3, |retries| retries.value),
    };
    section.finish();
    Ok(healthcheck)
}

fn network(section: &Section<'_, '_>) -> Result<Network, Error> {
    let hosts_line = section.line_of("allowed_hosts");
    section.strings("allowed_hosts")?;
    let mode = match section.string("network_mode")? {
        None => None,
        Some(found) => {
            let value = match found.value.as_str() {
                "public" => Mode::Public,
                "no-network" => Mode::NoNetwork,
                "allowlist" => Mode::Allowlist,
                other => {
                    let expected = "\"public\", \"no-network\" or \"allowlist\"";
                    return Err(section.invalid("network_mode", found.line, expected, format!("{other:?}")));
                }
            };
            Some(Located { value, line: found.line })
        }
    };
    let allowlist = mode.as_ref().is_some_and(|mode| mode.value == Mode::Allowlist);
    if let (Some(line), false) = (hosts_line, allowlist) {
        let found = "hosts without it".to_owned();
        return Err(section.invalid("allowed_hosts", line, "network_mode = \"allowlist\" beside it", found));
    }
    Ok(Network { mode, hosts: hosts_line.is_some() })
}

fn artifact(root: &Section<'_, '_>, section: Section<'_, '_>, line: usize) -> Result<Artifact, Error> {
    let Some(source) = section.string("source")? else {
        return Err(root.invalid("artifacts.source", line, "a path", "nothing".to_owned()));
    };
    let artifact = Artifact {
        source: source.value,
        destination: non_empty_or_none(&section, "destination")?,
        exclude: section.strings("exclude")?.unwrap_or_default(),
        service: non_empty_or_none(&section, "service")?,
    };
    section.finish();
    Ok(artifact)
}

fn check_artifact(root: &Section<'_, '_>, artifact: &Artifact, line: usize) -> Result<(), Error> {
    let climbs = |path: &str| path.split('/').any(|part| part == "..");
    if climbs(&artifact.source) {
        let found = format!("{:?}", artifact.source);
        return Err(root.invalid("artifacts.source", line, "a path without \"..\"", found));
    }
    let Some(destination) = &artifact.destination else { return Ok(()) };
    let names_nothing = destination.split('/').all(|part| part.is_empty() || part == ".");
    let reserved = destination.trim_end_matches('/') == "manifest.json";
    if destination.starts_with('/')
        || destination.contains('\\')
        || climbs(destination)
        || names_nothing
        || reserved
    {
        let expected = "a relative path without \"..\" or backslash, other than manifest.json";
        return Err(root.invalid("artifacts.destination", line, expected, format!("{destination:?}")));
    }
    Ok(())
}

fn env_table(section: &Section<'_, '_>, key: &'static str) -> Result<EnvTable, Error> {
    let mut entries = Vec::new();
    for (name, value) in section.strings_table(key)? {
        if name.is_empty() || name.contains(['=', '\0']) {
            let expected = "names of variables, without '=' or NUL";
            return Err(section.invalid(key, value.line, expected, format!("{name:?}")));
        }
        entries.push(EnvEntry { name, value: value.value, line: value.line });
    }
    Ok(EnvTable { entries })
}

fn positive(section: &Section<'_, '_>, key: &'static str) -> Result<Option<f64>, Error> {
    let accept = |seconds: f64| seconds > 0.0 && seconds <= LONGEST;
    Ok(section.number(key, POSITIVE_SECONDS, accept)?.map(|seconds| seconds.value))
}

fn non_empty(section: &Section<'_, '_>, key: &'static str) -> Result<Option<String>, Error> {
    match section.string(key)? {
        Some(text) if text.value.trim().is_empty() => {
            Err(section.invalid(key, text.line, "a string that is not empty", "an empty one".to_owned()))
        }
        text => Ok(text.map(|text| text.value)),
    }
}

fn non_empty_or_none(section: &Section<'_, '_>, key: &'static str) -> Result<Option<String>, Error> {
    Ok(section.string(key)?.map(|text| text.value).filter(|text| !text.is_empty()))
}

fn workdir(section: &Section<'_, '_>) -> Result<Option<String>, Error> {
    match section.string("workdir")? {
        Some(path) if !path.value.starts_with('/') => {
            Err(section.invalid("workdir", path.line, "an absolute path", format!("{:?}", path.value)))
        }
        path => Ok(path.map(|path| path.value)),
    }
}

/// A size in MB, or the older spelling as a string with a unit.
fn megabytes(
    section: &Section<'_, '_>,
    key: &'static str,
    legacy: &'static str,
) -> Result<Option<u64>, Error> {
    let current = section.whole(key, "a whole number of MB, at least 1", 1)?;
    let Some(old) = section.string(legacy)? else { return Ok(current.map(|size| size.value)) };
    section.warn(old.line, format!("environment.{legacy} is deprecated; use environment.{key}"));
    let expected = "a size such as \"2G\" or \"512M\" that makes a whole number of MB";
    let Some(size) = parse_size(&old.value) else {
        return Err(section.invalid(legacy, old.line, expected, format!("{:?}", old.value)));
    };
    match current {
        Some(current) if current.value != size => {
            let found = format!("{:?} ({size} MB) beside {key} = {}", old.value, current.value);
            Err(section.invalid(legacy, old.line, "the same size in both spellings", found))
        }
        _ => Ok(Some(size)),
    }
}

fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim().to_uppercase();
    let unit = text.chars().last()?;
    let number: f64 = text.strip_suffix(unit)?.trim().parse().ok()?;
    let megabytes = match unit {
        'G' => number * 1024.0,
        'M' => number,
        'K' => number / 1024.0,
        _ => return None,
    };
    ((1.0..=9e15).contains(&megabytes) && megabytes.fract() == 0.0).then_some(megabytes as u64)
}

impl Default for VerifierSection {
    fn default() -> Self {
        Self { timeout_sec: 600.0, env: EnvTable::default(), user: None }
    }
}

impl Default for EnvironmentSection {
    fn default() -> Self {
        Self {
            build_timeout_sec: 600.0,
            docker_image: None,
            cpus: None,
            memory_mb: None,
            storage_mb: None,
            env: EnvTable::default(),
            skills_dir: None,
            healthcheck: None,
            workdir: None,
            network: NetworkMode::Public,
        }
    }
}

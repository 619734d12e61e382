//! The image config: Docker's JSON, edited in place so that fields Berth does not know survive.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::instruction::{CommandLine, Healthcheck};
use crate::runner::LayerId;
use crate::variables::{Environment, normal_platform};

/// `PATH` of an image whose config has none.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// An image config under construction.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Config(Map<String, Value>);

impl Config {
    /// Config of `FROM scratch`.
    pub(crate) fn scratch(platform: &str) -> Self {
        let platform = normal_platform(platform);
        let mut parts = platform.split('/');
        let mut config = Map::new();
        config.insert("os".to_owned(), parts.next().into());
        config.insert("architecture".to_owned(), parts.next().into());
        if let Some(variant) = parts.next() {
            config.insert("variant".to_owned(), variant.into());
        }
        Self(config).with_path()
    }

    /// Config of a base image; what belongs to that very image (its time, its container) goes.
    pub(crate) fn of_base(value: &Value) -> Self {
        let mut config = value.as_object().cloned().unwrap_or_default();
        for own in ["created", "rootfs", "id", "parent", "container", "container_config"] {
            config.remove(own);
        }
        Self(config).with_path()
    }

    fn with_path(mut self) -> Self {
        let mut environment = self.environment();
        if environment.get("PATH").is_none() {
            environment.set("PATH", DEFAULT_PATH);
            self.set_environment(&environment);
        }
        self
    }

    fn get(&self, key: &str) -> Option<&Value> {
        self.0.get("config")?.get(key)
    }

    pub(crate) fn set(&mut self, key: &str, value: Value) {
        let slot = self.0.entry("config").or_insert_with(|| json!({}));
        if !slot.is_object() {
            *slot = json!({});
        }
        if let Some(config) = slot.as_object_mut() {
            config.insert(key.to_owned(), value);
        }
    }

    fn strings(&self, key: &str) -> Vec<String> {
        let values = self.get(key).and_then(Value::as_array);
        values.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    }

    fn text(&self, key: &str) -> String {
        self.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
    }

    pub(crate) fn environment(&self) -> Environment {
        Environment::from_lines(self.strings("Env").iter().map(String::as_str))
    }

    pub(crate) fn set_environment(&mut self, environment: &Environment) {
        self.set("Env", environment.lines().into());
    }

    /// `WORKDIR`, `/` when none is set.
    pub(crate) fn workdir(&self) -> String {
        let workdir = self.text("WorkingDir");
        if workdir.is_empty() { "/".to_owned() } else { workdir }
    }

    /// `USER`, empty for root.
    pub(crate) fn user(&self) -> String {
        self.text("User")
    }

    /// `SHELL`.
    pub(crate) fn shell(&self) -> Vec<String> {
        let shell = self.strings("Shell");
        if shell.is_empty() { vec!["/bin/sh".to_owned(), "-c".to_owned()] } else { shell }
    }

    /// Whether a `SHELL` was chosen.
    pub(crate) fn has_shell(&self) -> bool {
        !self.strings("Shell").is_empty()
    }

    /// The program and arguments that a command stands for.
    pub(crate) fn argv(&self, command: &CommandLine) -> Vec<String> {
        match command {
            CommandLine::Exec(argv) => argv.clone(),
            CommandLine::Shell(line) => [self.shell(), vec![line.clone()]].concat(),
        }
    }

    pub(crate) fn set_cmd(&mut self, argv: &[String]) {
        self.set("Cmd", argv.into());
        self.set("ArgsEscaped", true.into());
    }

    /// Sets `ENTRYPOINT`; a `CMD` that the base image brought is dropped, for it was meant for another one.
    pub(crate) fn set_entrypoint(&mut self, argv: &[String], own_cmd: bool) {
        self.set("Entrypoint", if argv.is_empty() { Value::Null } else { argv.into() });
        if !own_cmd {
            self.set("Cmd", Value::Null);
        }
    }

    /// Adds keys to one of the config's sets (`ExposedPorts`, `Volumes`).
    pub(crate) fn add_to_set(&mut self, key: &str, members: &[String]) {
        let mut set = self.get(key).and_then(Value::as_object).cloned().unwrap_or_default();
        set.extend(members.iter().map(|member| (member.clone(), json!({}))));
        self.set(key, set.into());
    }

    pub(crate) fn add_labels(&mut self, labels: &[(String, String)]) {
        let mut all = self.get("Labels").and_then(Value::as_object).cloned().unwrap_or_default();
        all.extend(labels.iter().map(|(key, value)| (key.clone(), value.as_str().into())));
        self.set("Labels", all.into());
    }

    pub(crate) fn set_healthcheck(&mut self, check: &Healthcheck) {
        let Some(command) = &check.command else {
            return self.set("Healthcheck", json!({ "Test": ["NONE"] }));
        };
        let test = match command {
            CommandLine::Exec(argv) => [vec!["CMD".to_owned()], argv.clone()].concat(),
            CommandLine::Shell(line) => vec!["CMD-SHELL".to_owned(), line.clone()],
        };
        let times = [
            ("Interval", check.interval),
            ("Timeout", check.timeout),
            ("StartPeriod", check.start_period),
            ("StartInterval", check.start_interval),
            ("Retries", check.retries.map(i64::from)),
        ];
        let mut value: BTreeMap<&str, Value> = BTreeMap::from([("Test", test.into())]);
        value.extend(times.into_iter().filter_map(|(key, time)| Some((key, time?.into()))));
        self.set("Healthcheck", json!(value));
    }

    pub(crate) fn set_author(&mut self, author: &str) {
        self.0.insert("author".to_owned(), author.into());
    }

    pub(crate) fn add_trigger(&mut self, trigger: &str) {
        let mut triggers = self.strings("OnBuild");
        triggers.push(trigger.to_owned());
        self.set("OnBuild", triggers.into());
    }

    /// Takes the `ONBUILD` triggers out, to be run now.
    pub(crate) fn take_triggers(&mut self) -> Vec<String> {
        let triggers = self.strings("OnBuild");
        if let Some(config) = self.0.get_mut("config").and_then(Value::as_object_mut) {
            config.remove("OnBuild");
        }
        triggers
    }

    /// Adds a history entry; whether its layer is empty is known only after the step ran.
    pub(crate) fn add_history(&mut self, created_by: &str) {
        let history = self.0.entry("history").or_insert_with(|| json!([]));
        if let Some(entries) = history.as_array_mut() {
            entries.push(json!({ "created_by": created_by, "comment": "berth", "empty_layer": true }));
        }
    }

    /// Number of history entries so far.
    pub(crate) fn history_len(&self) -> usize {
        self.0.get("history").and_then(Value::as_array).map_or(0, Vec::len)
    }

    /// The config as it stands, without times and layers: what a key may be made of.
    pub(crate) fn value(&self) -> Value {
        self.0.clone().into()
    }

    /// The finished config: times set, layers named, and each history entry that made a layer marked so.
    pub(crate) fn finish(&self, layers: &[LayerId], own_history: &[(usize, bool)], now: &str) -> Value {
        let mut config = self.0.clone();
        config.insert("created".to_owned(), now.into());
        let layers: Vec<&str> = layers.iter().map(|layer| layer.0.as_str()).collect();
        config.insert("rootfs".to_owned(), json!({ "type": "layers", "diff_ids": layers }));
        if let Some(history) = config.get_mut("history").and_then(Value::as_array_mut) {
            for (index, made_layer) in own_history {
                let Some(entry) = history.get_mut(*index).and_then(Value::as_object_mut) else { continue };
                entry.insert("created".to_owned(), now.into());
                if *made_layer {
                    entry.remove("empty_layer");
                }
            }
        }
        config.into()
    }
}

/// JSON with sorted keys, whatever order the value was built in.
pub(crate) fn canonical(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let sorted: BTreeMap<&String, &Value> = map.iter().collect();
            let fields: Vec<String> = sorted
                .into_iter()
                .map(|(key, value)| format!("{}:{}", json!(key), canonical(value)))
                .collect();
            format!("{{{}}}", fields.join(","))
        }
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(canonical).collect();
            format!("[{}]", items.join(","))
        }
        other => other.to_string(),
    }
}

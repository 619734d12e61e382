//! Whole jobs against a platform in memory.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use berth_types::error::{ApiError, Kind};
use berth_types::exec::Limit;
use serde_json::Value;
use tempfile::TempDir;

use super::*;
use crate::env::fake::{Fake, Files, Reply, square_2};
use crate::verdict::Failure;

/// A task directory and a place for jobs, both gone when dropped.
struct Bench {
    dir: TempDir,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let bench = Self { dir };
        let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/tasks/square-2");
        copy_dir(&example, &bench.task());
        bench
    }

    fn task(&self) -> PathBuf {
        self.dir.path().join("square-2")
    }

    fn append(&self, toml: &str) {
        let path = self.task().join("task.toml");
        fs::write(&path, fs::read_to_string(&path).unwrap() + toml).unwrap();
    }

    fn replace(&self, from: &str, to: &str) {
        let path = self.task().join("task.toml");
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{from}");
        fs::write(&path, text.replacen(from, to, 1)).unwrap();
    }

    fn options(&self, agent: Agent) -> JobOptions {
        let jobs_dir = self.dir.path().join("jobs");
        JobOptions { jobs_dir, job_name: Some("job".to_owned()), ..JobOptions::new(vec![self.task()], agent) }
    }

    async fn run(&self, fake: &Fake, agent: Agent) -> TrialOutcome {
        let mut outcome = run(fake, self.options(agent), &()).await.unwrap();
        assert_eq!(outcome.trials.len(), 1);
        outcome.trials.remove(0)
    }
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap().path();
        let target = to.join(entry.file_name().unwrap());
        if entry.is_dir() {
            copy_dir(&entry, &target);
        } else {
            fs::copy(&entry, &target).unwrap();
        }
    }
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// The record without what differs from run to run.
fn steady(bench: &Bench, outcome: &TrialOutcome, path: &Path) -> Value {
    let mut value = read_json(path);
    let root = bench.dir.path().canonicalize().unwrap();
    scrub(&mut value, &[(root.to_str().unwrap(), "/bench"), (&outcome.name, "TRIAL")]);
    value
}

fn scrub(value: &mut Value, names: &[(&str, &str)]) {
    match value {
        Value::String(text) => {
            for (from, to) in names {
                *text = text.replace(from, to);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| scrub(item, names)),
        Value::Object(entries) => {
            for (key, item) in entries.iter_mut() {
                if (key.ends_with("_at") || matches!(key.as_str(), "id" | "job_id")) && item.is_string() {
                    *item = Value::String(format!("<{key}>"));
                }
                scrub(item, names);
            }
        }
        _ => {}
    }
}

fn reward(outcome: &TrialOutcome) -> Option<f64> {
    outcome.verdict.single_reward()
}

fn failure(outcome: &TrialOutcome) -> Option<Failure> {
    outcome.exception.as_ref().map(|exception| exception.failure)
}

fn files_below(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut pending = vec![dir.to_owned()];
    while let Some(path) = pending.pop() {
        if path.is_dir() {
            pending.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else {
            found.push(path.strip_prefix(dir).unwrap().display().to_string());
        }
    }
    found.sort();
    found
}

/// The CLI runs a job beside its progress display, on any thread.
#[test]
fn a_job_can_move_between_threads() {
    fn movable<T: Send>(_: T) {}
    let client = Client::new(berth_client::Host::Unix("/nowhere".into()));
    movable(run_job(&client, JobOptions::new(Vec::new(), Agent::Nop), &()));
}

#[tokio::test(start_paused = true)]
async fn an_oracle_trial_is_these_calls_and_earns_its_reward() {
    let (bench, fake) = (Bench::new(), Fake::new(square_2));
    let outcome = bench.run(&fake, Agent::Oracle).await;
    assert_eq!(reward(&outcome), Some(1.0));
    assert_eq!(fake.alive(), 0);
    insta::assert_snapshot!(fake.log().join("\n"));
}

#[tokio::test(start_paused = true)]
async fn a_nop_trial_earns_nothing() {
    let (bench, fake) = (Bench::new(), Fake::new(square_2));
    let outcome = bench.run(&fake, Agent::Nop).await;
    assert_eq!(outcome.verdict, Verdict::Reward([("reward".to_owned(), 0.0.to_json())].into()));
    assert_eq!(fake.alive(), 0);
}

trait ToJson {
    fn to_json(self) -> serde_json::Number;
}

impl ToJson for f64 {
    fn to_json(self) -> serde_json::Number {
        serde_json::Number::from_f64(self).unwrap()
    }
}

#[tokio::test(start_paused = true)]
async fn the_results_are_harbors() {
    let (bench, fake) = (Bench::new(), Fake::new(square_2));
    let outcome = bench.run(&fake, Agent::Oracle).await;
    let job = bench.dir.path().join("jobs/job");
    let files = files_below(&job).join("\n").replace(&outcome.name, "TRIAL");
    insta::assert_snapshot!("layout", files);
    for name in ["config", "lock", "result"] {
        let file = format!("{name}.json");
        insta::assert_json_snapshot!(format!("job_{name}"), steady(&bench, &outcome, &job.join(&file)));
        insta::assert_json_snapshot!(
            format!("trial_{name}"),
            steady(&bench, &outcome, &outcome.dir.join(&file))
        );
    }
    let manifest = steady(&bench, &outcome, &outcome.dir.join("artifacts/manifest.json"));
    insta::assert_json_snapshot!("manifest", manifest);
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_gets_what_the_task_asks_for() {
    let (bench, fake) = (Bench::new(), Fake::new(square_2));
    bench.append("network_mode = \"no-network\"\nworkdir = \"/work\"\n[environment.env]\nA = \"1\"\nB = \"${NO_SUCH_VARIABLE:-two}\"\n");
    bench.replace("[agent]\n", "[agent]\nuser = \"agent\"\n");
    bench.replace("[verifier]\n", "[verifier]\nuser = 0\n");
    bench.append("[solution.env]\nFROM_TASK = \"1\"\n[verifier.env]\nJUDGE = \"${NO_SUCH_VARIABLE:-}\"\n");
    let mut options = bench.options(Agent::Oracle);
    options.env = BTreeMap::from([("A".to_owned(), "over".to_owned())]);
    run(&fake, options, &()).await.unwrap();
    let request = fake.requests().remove(0);
    assert_eq!(request.network, berth_types::sandbox::NetworkMode::NoNetwork);
    assert_eq!(request.workdir.as_deref(), Some("/work"));
    assert_eq!(request.resources.cpus, Some(1.0));
    assert_eq!(request.resources.memory_mb, Some(1024));
    assert_eq!(request.resources.storage_mb, Some(1024));
    let env: Vec<(&str, &str)> = request.env.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!(env, [("A", "over"), ("B", "two")]);
    assert_eq!(
        fake.count(
            "exec user=agent limit=Some(30.0) env=[\"DEBIAN_FRONTEND\", \"FROM_TASK\"] (/solution/solve.sh)"
        ),
        1
    );
    assert_eq!(fake.count("exec user=0 limit=Some(30.0) env=[\"JUDGE\"] (/tests/test.sh)"), 1);
}

#[tokio::test(start_paused = true)]
async fn scripts_without_the_execute_bit_are_run_all_the_same() {
    use std::os::unix::fs::PermissionsExt;
    let (bench, fake) = (Bench::new(), Fake::new(square_2));
    for script in ["solution/solve.sh", "tests/test.sh"] {
        fs::set_permissions(bench.task().join(script), fs::Permissions::from_mode(0o644)).unwrap();
    }
    let outcome = bench.run(&fake, Agent::Oracle).await;
    assert_eq!(reward(&outcome), Some(1.0));
    assert_eq!(fake.count("upload tar"), 2);
}

#[tokio::test(start_paused = true)]
async fn attempts_share_one_build_and_keep_to_the_concurrency() {
    let (bench, mut fake) = (Bench::new(), Fake::new(square_2));
    fake.build_takes = Duration::from_secs(5);
    let options = JobOptions { attempts: 12, concurrency: 4, ..bench.options(Agent::Oracle) };
    let outcome = run(&fake, options, &()).await.unwrap();
    assert_eq!(outcome.trials.len(), 12);
    assert_eq!(outcome.means, BTreeMap::from([("reward".to_owned(), 1.0)]));
    assert_eq!(fake.count("build"), 1);
    assert_eq!(fake.most_alive(), 4);
    assert_eq!(fake.alive(), 0);
    let stats = read_json(&outcome.dir.join("result.json"))["stats"].clone();
    assert_eq!(stats["n_completed_trials"], 12);
    assert_eq!(stats["evals"]["oracle__adhoc"]["pass_at_k"]["10"], 1.0);
}

#[tokio::test(start_paused = true)]
async fn a_directory_of_tasks_is_a_dataset() {
    let (bench, fake) = (Bench::new(), Fake::new(square_2));
    let set = bench.dir.path().join("set");
    for name in ["one", "two"] {
        copy_dir(&bench.task(), &set.join(name));
    }
    fs::create_dir(set.join("no-task")).unwrap();
    let options = JobOptions { tasks: vec![set], ..bench.options(Agent::Oracle) };
    let outcome = run(&fake, options, &()).await.unwrap();
    assert_eq!(outcome.trials.len(), 2);
    assert!(outcome.trials[0].name.starts_with("one__"));
    let config = read_json(&outcome.dir.join("config.json"));
    assert_eq!(config["tasks"], serde_json::json!([]));
    assert_eq!(config["datasets"].as_array().unwrap().len(), 1);
    let stats = read_json(&outcome.dir.join("result.json"))["stats"].clone();
    assert_eq!(stats["evals"]["oracle__set"]["n_trials"], 2);
}

#[tokio::test(start_paused = true)]
async fn a_failing_agent_command_is_recorded_and_verified() {
    let fake = Fake::new(|request: &_, files: &mut Files| {
        let request: &berth_types::exec::ExecRequest = request;
        match request.env.get("BERTH_INSTRUCTION") {
            Some(instruction) => {
                assert_eq!(instruction, "Write the square of 2 to /tmp/answer.txt.\n");
                files.insert("/tmp/answer.txt".to_owned(), (b"4".to_vec(), 0o644));
                // Must not stand in for the output that this side saw.
                files.insert("/logs/agent/command.txt".to_owned(), (b"forged".to_vec(), 0o644));
                Reply::Exit(3, "thinking\n")
            }
            None => square_2(request, files),
        }
    });
    let bench = Bench::new();
    let outcome = bench.run(&fake, Agent::Command("my-agent --solve".to_owned())).await;
    assert_eq!((reward(&outcome), outcome.agent_exit_code), (Some(1.0), Some(3)));
    assert_eq!(fs::read_to_string(outcome.dir.join("agent/command.txt")).unwrap(), "thinking\n");
    assert_eq!(fs::read_to_string(outcome.dir.join("agent/exit-code.txt")).unwrap(), "3");
    let result = read_json(&outcome.dir.join("result.json"));
    assert_eq!(result["agent_info"]["name"], "command");
    assert_eq!(result["agent_result"]["metadata"]["exit_code"], 3);
    assert_eq!(fake.count("upload /logs/agent"), 1);
    let left: Vec<String> = fs::read_dir(&outcome.dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with('.'))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn limits_that_agent_and_verifier_meet_are_recorded_as_the_tasks_failure() {
    let fake = Fake::new(|request: &_, _: &mut Files| {
        let request: &berth_types::exec::ExecRequest = request;
        if request.id.as_deref() == Some("agent") {
            return Reply::Met(137, ExitReason::OutOfMemory, &[Limit::Memory]);
        }
        Reply::Met(1, ExitReason::Exited, &[Limit::Disk])
    });
    let bench = Bench::new();
    let outcome = bench.run(&fake, Agent::Oracle).await;
    assert_eq!(outcome.verdict, Verdict::TaskFailed(Failure::RewardFileNotFound));
    let result = read_json(&outcome.dir.join("result.json"));
    let metadata = &result["agent_result"]["metadata"];
    assert_eq!(
        (&metadata["reason"], &metadata["limits_hit"][0]),
        (&json!("out_of_memory"), &json!("memory"))
    );
    let message = result["exception_info"]["exception_message"].as_str().unwrap();
    assert!(message.contains("the sandbox's disk was full"), "{message}");
    let log = fs::read_to_string(outcome.dir.join("trial.log")).unwrap();
    assert!(log.contains("agent: exit code 137, out of memory; the command was killed"), "{log}");
}

#[tokio::test]
async fn what_fails_on_a_full_machine_is_never_the_tasks_failure() {
    for who in ["agent", "verifier"] {
        let fake = Fake::new(move |request: &_, files: &mut Files| {
            let request: &berth_types::exec::ExecRequest = request;
            if request.id.as_deref() == Some(who) {
                return Reply::MachineFull(1);
            }
            square_2(request, files)
        });
        let bench = Bench::new();
        let outcome = bench.run(&fake, Agent::Oracle).await;
        assert_eq!(outcome.verdict, Verdict::Infrastructure(Failure::RuntimeRequest), "{who}");
        let result = read_json(&outcome.dir.join("result.json"));
        let message = result["exception_info"]["exception_message"].as_str().unwrap();
        assert!(message.contains("machine was full"), "{message}");
        assert_eq!(result["verifier_result"], Value::Null, "{who}");
    }
}

#[tokio::test]
async fn tests_that_do_not_pass_on_a_full_machine_are_not_believed() {
    let fails = |request: &berth_types::exec::ExecRequest, files: &mut Files| {
        if request.id.as_deref() == Some("verifier") {
            files.insert("/logs/verifier/reward.txt".to_owned(), (b"0".to_vec(), 0o644));
        }
        Reply::Exit(0, "")
    };
    let outcome = Bench::new().run(&Fake::new(fails), Agent::Oracle).await;
    assert_eq!(reward(&outcome), Some(0.0));
    let mut fake = Fake::new(fails);
    fake.machine_full = true;
    let outcome = Bench::new().run(&fake, Agent::Oracle).await;
    assert_eq!(outcome.verdict, Verdict::Infrastructure(Failure::RuntimeRequest));
    // What passed has passed.
    let mut fake = Fake::new(square_2);
    fake.machine_full = true;
    assert_eq!(reward(&Bench::new().run(&fake, Agent::Oracle).await), Some(1.0));
}

#[tokio::test(start_paused = true)]
async fn an_agent_out_of_time_is_killed_and_its_work_is_graded() {
    let fake = Fake::new(|request: &_, files: &mut Files| {
        let request: &berth_types::exec::ExecRequest = request;
        if request.id.as_deref() == Some("agent") {
            files.insert("/tmp/answer.txt".to_owned(), (b"4".to_vec(), 0o644));
            return Reply::Hang;
        }
        square_2(request, files)
    });
    let bench = Bench::new();
    let outcome = bench.run(&fake, Agent::Oracle).await;
    assert_eq!((reward(&outcome), failure(&outcome)), (Some(1.0), Some(Failure::AgentTimeout)));
    let result = read_json(&outcome.dir.join("result.json"));
    assert_eq!(result["exception_info"]["exception_type"], "AgentTimeoutError");
    assert_eq!(result["exception_info"]["exception_message"], "agent execution timed out after 30 seconds");
    assert_eq!(result["verifier_result"]["rewards"]["reward"], 1.0);
    assert!(outcome.dir.join("exception.txt").exists());
}

#[tokio::test(start_paused = true)]
async fn a_verifier_may_fail_in_its_own_ways() {
    let table: [(&str, Failure); 4] = [
        ("hang", Failure::VerifierTimeout),
        ("nothing", Failure::RewardFileNotFound),
        ("empty", Failure::RewardFileEmpty),
        ("nonsense", Failure::VerifierOutputParse),
    ];
    for (does, expected) in table {
        let fake = Fake::new(move |request: &_, files: &mut Files| {
            let request: &berth_types::exec::ExecRequest = request;
            if request.id.as_deref() != Some("verifier") {
                return square_2(request, files);
            }
            let mut write = |content: &[u8]| {
                files.insert("/logs/verifier/reward.txt".to_owned(), (content.to_vec(), 0o644));
                Reply::Exit(0, "")
            };
            match does {
                "hang" => Reply::Hang,
                "empty" => write(b""),
                "nonsense" => write(b"well done"),
                _ => Reply::NotStarted("no shell in the image"),
            }
        });
        let bench = Bench::new();
        let outcome = bench.run(&fake, Agent::Oracle).await;
        assert_eq!(failure(&outcome), Some(expected));
        assert_eq!(outcome.verdict, Verdict::TaskFailed(expected));
        assert_eq!(fake.alive(), 0);
    }
}

/// Whatever call it is at which the daemon goes away: no trial that lost its sandbox is graded.
#[tokio::test(start_paused = true)]
async fn a_daemon_that_goes_away_never_earns_a_reward() {
    let bench = Bench::new();
    let whole = Fake::new(square_2);
    bench.run(&whole, Agent::Oracle).await;
    let calls = whole.log();
    // From here on the verifier has spoken; only the sandbox's end is missing.
    let spoken = calls.iter().position(|line| line == "download /logs/verifier").unwrap() + 1;
    for (away_from, call) in calls.iter().enumerate() {
        let bench = Bench::new();
        let mut fake = Fake::new(square_2);
        fake.away_from = away_from;
        let outcome = bench.run(&fake, Agent::Oracle).await;
        if away_from < spoken {
            assert!(matches!(outcome.verdict, Verdict::Infrastructure(_)), "{call}: {outcome:?}");
            let result = read_json(&outcome.dir.join("result.json"));
            assert_eq!(result["verifier_result"], Value::Null);
        } else {
            assert_eq!(reward(&outcome), Some(1.0), "{call}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_build_is_told_once_and_fails_every_trial() {
    let (bench, mut fake) = (Bench::new(), Fake::new(square_2));
    fake.build = Box::new(|| {
        let error = ApiError::new(Kind::User, "build_failed", "step 2 failed");
        Err(error.with_details(serde_json::json!({
            "step": 2, "steps": 2, "instruction": "RUN false", "file": "Dockerfile", "line": 4,
            "exit_code": 1, "output_tail": ["oh no"],
        })))
    });
    let options = JobOptions { attempts: 3, ..bench.options(Agent::Oracle) };
    let outcome = run(&fake, options, &()).await.unwrap();
    for trial in &outcome.trials {
        assert_eq!(trial.verdict, Verdict::Infrastructure(Failure::SandboxBuildFailed));
        let message = &trial.exception.as_ref().unwrap().message;
        assert!(message.contains("step 2 of 2 (Dockerfile:4): RUN false"), "{message}");
        assert!(message.contains("oh no"), "{message}");
    }
    assert_eq!(fake.count("build"), 1);
    assert_eq!(outcome.means, BTreeMap::new());
}

#[tokio::test(start_paused = true)]
async fn a_start_that_takes_too_long_is_an_infrastructure_failure() {
    let (bench, mut fake) = (Bench::new(), Fake::new(square_2));
    fake.build_takes = Duration::from_secs(601);
    let outcome = bench.run(&fake, Agent::Oracle).await;
    assert_eq!(outcome.verdict, Verdict::Infrastructure(Failure::EnvironmentStartTimeout));
    let mut fake = Fake::new(square_2);
    fake.build_takes = Duration::from_secs(601);
    let options = JobOptions {
        timeout_multiplier: 2.0,
        job_name: Some("longer".to_owned()),
        ..bench.options(Agent::Oracle)
    };
    assert_eq!(reward(&run(&fake, options, &()).await.unwrap().trials[0]), Some(1.0));
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_job_saves_the_logs_and_deletes_its_sandboxes() {
    let fake = Fake::new(|request: &_, files: &mut Files| {
        files.insert("/logs/agent/half.txt".to_owned(), (b"half".to_vec(), 0o644));
        let _: &berth_types::exec::ExecRequest = request;
        Reply::Hang
    });
    let bench = Bench::new();
    let options = JobOptions { attempts: 3, concurrency: 2, ..bench.options(Agent::Oracle) };
    let cancel = options.cancel.clone();
    let job = run(&fake, options, &());
    let stop = async {
        tokio::time::sleep(Duration::from_secs(10)).await;
        cancel.cancel();
    };
    let outcome = tokio::join!(job, stop).0.unwrap();
    assert!(outcome.cancelled);
    assert_eq!(outcome.trials.len(), 2);
    for trial in &outcome.trials {
        assert_eq!(trial.verdict, Verdict::Cancelled);
        assert_eq!(fs::read_to_string(trial.dir.join("agent/half.txt")).unwrap(), "half");
        let result = read_json(&trial.dir.join("result.json"));
        assert_eq!(result["exception_info"]["exception_type"], "CancelledError");
        assert!(result["agent_execution"]["finished_at"].is_string());
    }
    assert_eq!(fake.alive(), 0);
    let stats = read_json(&outcome.dir.join("result.json"))["stats"].clone();
    assert_eq!(
        (&stats["n_cancelled_trials"], &stats["n_pending_trials"]),
        (&Value::from(2), &Value::from(1))
    );
}

#[tokio::test(start_paused = true)]
async fn a_healthcheck_is_repeated_until_it_passes_or_its_retries_are_used_up() {
    for (fails, expected) in [(0, None), (2, None), (3, Some(Failure::Healthcheck))] {
        let seen = std::sync::atomic::AtomicUsize::new(0);
        let fake = Fake::new(move |request: &_, files: &mut Files| {
            let request: &berth_types::exec::ExecRequest = request;
            if request.command != berth_types::exec::Command::Shell("curl localhost".to_owned()) {
                return square_2(request, files);
            }
            match seen.fetch_add(1, std::sync::atomic::Ordering::SeqCst) < fails {
                true => Reply::Exit(1, ""),
                false => Reply::Exit(0, ""),
            }
        });
        let bench = Bench::new();
        bench.append("[environment.healthcheck]\ncommand = \"curl localhost\"\n");
        let outcome = bench.run(&fake, Agent::Oracle).await;
        assert_eq!(failure(&outcome), expected, "{fails} failures");
    }
}

#[tokio::test(start_paused = true)]
async fn artifacts_are_fetched_and_accounted_for() {
    let fake = Fake::new(|request: &_, files: &mut Files| {
        files.insert("/logs/artifacts/a.txt".to_owned(), (b"a".to_vec(), 0o644));
        files.insert("/app/out.csv".to_owned(), (b"1,2".to_vec(), 0o644));
        square_2(request, files)
    });
    let bench = Bench::new();
    let path = bench.task().join("task.toml");
    let artifacts =
        "artifacts = [\"/app/out.csv\", { source = \"/gone\", destination = \"kept\" }, \"/logs\"]\n";
    fs::write(&path, artifacts.to_owned() + &fs::read_to_string(&path).unwrap()).unwrap();
    let outcome = bench.run(&fake, Agent::Oracle).await;
    assert_eq!(reward(&outcome), Some(1.0));
    let manifest = read_json(&outcome.dir.join("artifacts/manifest.json"));
    let told: Vec<String> = manifest
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| {
            format!("{} {} {}", entry["destination"], entry["type"], entry["status"]).replace('"', "")
        })
        .collect();
    assert_eq!(
        told,
        [
            "artifacts/logs/artifacts directory ok",
            "artifacts/app/out.csv file ok",
            "artifacts/kept file failed",
            "artifacts/logs directory skipped",
        ]
    );
    assert_eq!(fs::read_to_string(outcome.dir.join("artifacts/app/out.csv")).unwrap(), "1,2");
}

#[tokio::test(start_paused = true)]
async fn a_prebuilt_image_is_pulled_and_loose_files_go_to_the_working_directory() {
    let (bench, fake) = (Bench::new(), Fake::new(square_2));
    fs::rename(bench.task().join("environment/Dockerfile"), bench.task().join("environment/data.txt"))
        .unwrap();
    bench.append("docker_image = \"debian:bookworm\"\n");
    let outcome = bench.run(&fake, Agent::Oracle).await;
    assert_eq!(reward(&outcome), Some(1.0));
    assert_eq!(fake.count("pull debian:bookworm Missing"), 1);
    assert_eq!(fake.count("upload /app"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_kept_sandbox_outlives_its_lease() {
    let (bench, fake) = (Bench::new(), Fake::new(square_2));
    let options = JobOptions { delete: false, ..bench.options(Agent::Oracle) };
    run(&fake, options, &()).await.unwrap();
    assert_eq!((fake.count("keep"), fake.count("release"), fake.alive()), (1, 1, 1));
}

#[tokio::test(start_paused = true)]
async fn nothing_starts_when_a_job_cannot_be_run() {
    let (bench, fake) = (Bench::new(), Fake::new(square_2));
    let wrong = |change: &dyn Fn(&mut JobOptions)| {
        let mut options = bench.options(Agent::Oracle);
        change(&mut options);
        options
    };
    let cases = [
        (wrong(&|options| options.tasks.clear()), Kind::User),
        (wrong(&|options| options.tasks = vec!["/no/such/task".into()]), Kind::NotFound),
        (wrong(&|options| options.tasks = vec![bench.task().join("tests")]), Kind::NotFound),
        (wrong(&|options| options.attempts = 0), Kind::User),
        (wrong(&|options| options.concurrency = 0), Kind::User),
        (wrong(&|options| options.timeout_multiplier = f64::NAN), Kind::User),
        (wrong(&|options| options.job_name = Some("../up".to_owned())), Kind::User),
    ];
    for (options, kind) in cases {
        let error = run(&fake, options.clone(), &()).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
    }
    assert_eq!(fake.calls(), 0);
    assert!(!bench.dir.path().join("jobs").exists());
}

#[tokio::test(start_paused = true)]
async fn a_job_of_the_same_name_is_not_touched() {
    let (bench, fake) = (Bench::new(), Fake::new(square_2));
    bench.run(&fake, Agent::Nop).await;
    let error = run(&fake, bench.options(Agent::Nop), &()).await.unwrap_err();
    assert!(matches!(error, Error::JobExists { .. }), "{error}");
    assert_eq!(error.kind(), Kind::Conflict);
}

#[tokio::test(start_paused = true)]
async fn progress_is_told_in_order() {
    #[derive(Default)]
    struct Notes(Mutex<Vec<String>>);
    impl Observer for Notes {
        fn event(&self, event: Event<'_>) {
            let note = match event {
                Event::JobStarted { trials, .. } => format!("job of {trials}"),
                Event::TrialStarted { task, .. } => format!("trial of {task}"),
                Event::PhaseStarted { phase, .. } => format!("{phase:?}"),
                Event::Image { progress, .. } => format!("{progress:?}"),
                Event::Queued { place, .. } => format!("{place:?}"),
                Event::TrialFinished { outcome } => format!("{:?}", outcome.verdict.single_reward()),
            };
            self.0.lock().unwrap().push(note);
        }
    }
    let (bench, fake, notes) = (Bench::new(), Fake::new(square_2), Notes::default());
    run(&fake, bench.options(Agent::Oracle), &notes).await.unwrap();
    insta::assert_snapshot!(notes.0.lock().unwrap().join("\n"));
}

#!/usr/bin/env python3
"""Load a job directory that `berth run` wrote with Harbor's own models, as `harbor view` and `harbor job resume` do.

    python validate_layout.py JOBDIR [JOBDIR ...]

Needs Harbor (Python >= 3.12). Prints one line a file, and exits non-zero when Harbor would refuse any of them or would
silently pass over a field that Berth writes.
"""

import json
import sys
from pathlib import Path

from harbor.models.job.config import JobConfig
from harbor.models.job.lock import JobLock, TrialLock
from harbor.models.job.result import JobResult
from harbor.models.trial.artifact_manifest import ArtifactManifestEntry
from harbor.models.trial.config import TrialConfig
from harbor.models.trial.result import TrialResult

try:
    from harbor.models.trial.error_policy import ERROR_POLICIES
except ModuleNotFoundError:  # Harbor 0.24 has no table of them yet
    ERROR_POLICIES = None

problems: list[str] = []


def load(model, path: Path):
    """Validate a file; its model or None."""
    try:
        text = path.read_text()
        loaded = model.model_validate_json(text)
    except Exception as error:  # every way to fail is a finding
        problems.append(f"{path}: {error}")
        return None
    report_lost(json.loads(text), json.loads(loaded.model_dump_json()), path, "")
    print(f"ok  {model.__name__:12} {path}")
    return loaded


def report_lost(written, read, path: Path, where: str) -> None:
    """Harbor's models drop keys that they do not know: name each."""
    if isinstance(written, dict) and isinstance(read, dict):
        for key, value in written.items():
            if key in read:
                report_lost(value, read[key], path, f"{where}.{key}")
            elif value not in ({}, [], None):
                problems.append(f"{path}: {where}.{key} is not read by Harbor")
    elif isinstance(written, list) and isinstance(read, list):
        for index, (one, other) in enumerate(zip(written, read)):
            report_lost(one, other, path, f"{where}[{index}]")


def check_trial(trial_dir: Path, locks: list[TrialLock], job_dir: Path) -> TrialResult | None:
    config = load(TrialConfig, trial_dir / "config.json")
    lock = load(TrialLock, trial_dir / "lock.json")
    result = load(TrialResult, trial_dir / "result.json")
    if lock is not None and lock not in locks:
        problems.append(f"{trial_dir}/lock.json: not among the trials of the job's lock.json")
    if config is not None and config.trials_dir.name != job_dir.name:
        problems.append(f"{trial_dir}/config.json: trials_dir {config.trials_dir} is not the job's directory")
    if result is None:
        return None
    if config is not None and result.config != config:
        problems.append(f"{trial_dir}/result.json: its config is not config.json")
    if result.trial_name != trial_dir.name:
        problems.append(f"{trial_dir}/result.json: trial_name is {result.trial_name}")
    exception = result.exception_info
    if exception is not None and ERROR_POLICIES is not None and exception.exception_type not in ERROR_POLICIES:
        problems.append(f"{trial_dir}/result.json: Harbor has no policy for {exception.exception_type}")
    manifest = trial_dir / "artifacts" / "manifest.json"
    if manifest.exists():
        for entry in json.loads(manifest.read_text()):
            ArtifactManifestEntry.model_validate(entry)
        print(f"ok  {'manifest':12} {manifest}")
    return result


def check_job(job_dir: Path) -> None:
    load(JobConfig, job_dir / "config.json")
    lock = load(JobLock, job_dir / "lock.json")
    job = load(JobResult, job_dir / "result.json")
    locks = lock.trials if lock is not None else []
    trial_dirs = sorted(path for path in job_dir.iterdir() if (path / "config.json").exists())
    results = [check_trial(trial_dir, locks, job_dir) for trial_dir in trial_dirs]
    if job is None:
        return
    if not trial_dirs:
        problems.append(f"{job_dir}: holds no trial")
    # What Harbor itself would count from these trials.
    counted = type(job.stats).from_trial_results(
        [result for result in results if result is not None], n_total_trials=job.n_total_trials
    )
    for name, stats in counted.evals.items():
        written = job.stats.evals.get(name)
        if written is None:
            problems.append(f"{job_dir}/result.json: no eval {name}")
            continue
        for field in ("n_trials", "n_errors", "reward_stats", "exception_stats"):
            mine, harbors = plain(getattr(written, field)), plain(getattr(stats, field))
            if mine != harbors:
                problems.append(f"{job_dir}/result.json: {name}.{field} is {mine}, Harbor counts {harbors}")
    for field in ("n_completed_trials", "n_errored_trials", "n_pending_trials", "n_cancelled_trials"):
        if getattr(job.stats, field) != getattr(counted, field):
            problems.append(f"{job_dir}/result.json: {field} is not what Harbor counts")


def plain(value):
    """Nested default dicts and lists, comparable whatever the order in which trials ended."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return sorted(value) if isinstance(value, list) else value


def main() -> int:
    if len(sys.argv) < 2:
        print(__doc__, file=sys.stderr)
        return 64
    for argument in sys.argv[1:]:
        check_job(Path(argument))
    for problem in problems:
        print(f"BAD {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

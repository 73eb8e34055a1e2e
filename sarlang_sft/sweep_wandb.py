"""A sweep on a W&B server: created or rejoined there, its trials handed out by W&B's own agents, one per GPU set."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import wandb
import yaml
from tqdm import tqdm

from sarlang_sft.bounded_calls import BoundedCalls
from sarlang_sft.errors import STOPPED_EXIT, InputError
from sarlang_sft.run_files import FINISHED as RUN_FINISHED
from sarlang_sft.run_files import STOPPED as RUN_STOPPED
from sarlang_sft.run_files import holder_of, state_of
from sarlang_sft.sweep_files import Sweep
from sarlang_sft.sweep_local import BEAT, EVERY, Follower, run_local, stop_on_signals
from sarlang_sft.trial_processes import LOG, End, Slot, judge, torchrun
from sarlang_sft.trial_processes import PATIENCE as TRIAL_PATIENCE
from sarlang_sft.trials import FINISHED, INTERRUPTED, RUNNING, STOPPED_EARLY, Trial, Trials

PROJECT = "sarlang-sft"
PATIENCE = 60.0  # seconds for an answer of the server
UNKNOWN = -signal.SIGKILL  # exit code of a trial whose torchrun said none: it may have been killed, and goes on
ALIVE = ("PENDING", "RUNNING", "PAUSED")  # states of a sweep; in others the server turns agents away
OTHERWISE = "or search without a server: --backend local"


def run_wandb(sweep: Sweep, trials: Trials, folders: Path, slots: list[Slot]) -> bool:
    """Run W&B's agents until the server has no more trials; those that were interrupted go on first.

    Args:
        folders: Holds the output folder of every trial, named by its run's id in W&B.
        slots: Where trials run, one agent each.

    Returns:
        Whether all is done; False if the sweep was asked to stop.

    Raises:
        InputError: The server does not answer, the first trials all failed, or an agent did.
    """
    path = trials.wandb or create(sweep, trials, folders, slots[0].ranks)
    print(f"W&B: other machines join this sweep by `wandb agent {path}`", flush=True)
    take_over(trials, folders, path)  # from agents that were killed with their sweep
    while True:
        # W&B never hands out a run again whose process was killed: what is interrupted goes on under its id here.
        if not run_local(sweep, trials, folders, slots, 0, lambda trial: environment_of(path, folders, trial), False):
            return False
        if is_over(path):
            return True
        if not run_agents(sweep, trials, folders, slots, path):
            return False
        if all(trial.state != INTERRUPTED for trial in trials.all()):
            return True


def is_over(path: str) -> bool:
    """Whether the server has ended the sweep."""
    found: list[str] = []
    failure = BoundedCalls(most_hanging=1).run(lambda: found.append(wandb.Api().sweep(path).state), PATIENCE)
    if failure:
        raise InputError(f"--backend wandb: the sweep {path} cannot be found: {failure}; try again later, {OTHERWISE}")
    return found[0].upper() not in ALIVE


def check_login() -> None:
    """Raise [`InputError`] unless there is a server that takes the key; never asks on the terminal."""
    mode = wandb.setup().settings.mode
    if mode in ("offline", "dryrun", "disabled"):
        raise InputError(f"--backend wandb: W&B is set to {mode} (WANDB_MODE, `wandb offline`); unset it, {OTHERWISE}")
    found: list[bool] = []
    failure = BoundedCalls(most_hanging=1).run(lambda: found.append(wandb.login(prompt=False, verify=True)), PATIENCE)
    if failure:
        raise InputError(f"--backend wandb: {failure}; try again later, {OTHERWISE}")
    if found == [False]:
        raise InputError(f"--backend wandb: no API key; `wandb login` or WANDB_API_KEY brings one, {OTHERWISE}")


def create(sweep: Sweep, trials: Trials, folders: Path, ranks: int) -> str:
    """Create the sweep on the server; entity/project/id."""
    metric = {**sweep.content["metric"], "name": sweep.metric.replace("eval_", "eval/", 1)}
    content = {**sweep.content, "metric": metric, "command": command(sweep.program, folders, ranks)}
    entity = os.environ.get("WANDB_ENTITY") or content.get("entity")
    project = os.environ.get("WANDB_PROJECT") or content.get("project") or PROJECT
    found: list[str] = []
    failure = BoundedCalls(most_hanging=1).run(
        lambda: found.append(wandb.sweep(content, entity=entity, project=project)), PATIENCE
    )
    if failure:
        raise InputError(f"--backend wandb: the sweep cannot be created: {failure}; try again later, {OTHERWISE}")
    parts = [os.environ.get("WANDB_ENTITY"), os.environ["WANDB_PROJECT"], found[0]]  # as the server has named them
    trials.join_wandb("/".join(part for part in parts if part))
    return trials.wandb


def command(program: Path, folders: Path, ranks: int) -> list[str]:
    """How an agent starts a trial: torchrun in the folder of its run, the output into a file there."""
    folder = f'{shlex.quote(str(folders))}/"$WANDB_RUN_ID"'
    start = shlex.join(torchrun(program, ranks, python="python"))
    options = f'--output_dir {folder} --resume auto --disable_tqdm true "$@"'
    return ["sh", "-c", f"mkdir -p {folder} && exec {start} {options} >> {folder}/{LOG} 2>&1", "trial", "${args}"]


def environment_of(path: str, folders: Path, trial: Trial | None) -> dict[str, str]:
    """Variables for an agent, or for a trial as an agent starts it; W&B's own files go beside the trials."""
    *owner, sweep_id = path.split("/")
    names = dict(zip(("WANDB_PROJECT", "WANDB_ENTITY"), reversed(owner), strict=False))
    python = str(Path(sys.executable).parent)
    common = {
        **names,
        "WANDB_DIR": str(folders.parent.absolute()),
        "PATH": f"{python}{os.pathsep}{os.environ['PATH']}",
    }
    if trial is None:
        # A trial that is stopped has the time for its checkpoint, and then counts as a failed one to its agent.
        return {**common, "WANDB_AGENT_KILL_DELAY": str(TRIAL_PATIENCE), "WANDB_AGENT_MAX_INITIAL_FAILURES": "100000"}
    ids = {"WANDB_SWEEP_ID": sweep_id, "WANDB_RUN_ID": trial.id}
    return {**common, **ids, "WANDB_SWEEP_PARAM_PATH": str(params_file(path, folders, trial.id))}


def params_file(path: str, folders: Path, run_id: str) -> Path:
    """Where an agent notes the values of a run."""
    return folders.parent.absolute() / "wandb" / f"sweep-{path.split('/')[-1]}" / f"config-{run_id}.yaml"


def run_agents(sweep: Sweep, trials: Trials, folders: Path, slots: list[Slot], path: str) -> bool:
    """Start an agent per slot and follow their trials; False if asked to stop."""
    agents = [start_agent(path, folders, slot, number) for number, slot in enumerate(slots)]
    cap = sweep.content.get("run_cap")
    with stop_on_signals() as request, tqdm(desc="trials", unit=" trials", total=cap) as bar:
        follower, told = Follower(sweep, trials, bar), False
        follower.show()
        beat = time.monotonic()
        while any(agent.poll() is None for agent in agents):
            if request.reason and not told:
                told = True
                for agent in agents:
                    agent.send_signal(signal.SIGTERM)
            over = time.monotonic()
            seconds, beat = (over - beat, over) if over - beat > BEAT else (0.0, beat)
            watch(follower, folders, path, bool(request.reason), seconds)
            time.sleep(EVERY)
        watch(follower, folders, path, bool(request.reason), 0.0)
        close_all(follower, folders, bool(request.reason))
        follower.check_first()
        failed = [number for number, agent in enumerate(agents) if agent.returncode]
        if failed and not request.reason:
            raise InputError(f"--backend wandb: an agent failed, see {agent_log(folders, failed[0])}; {OTHERWISE}")
        return not request.reason


def start_agent(path: str, folders: Path, slot: Slot, number: int) -> subprocess.Popen:
    """W&B's own agent; it passes signals on and waits for its trial."""
    environment = {**os.environ, **environment_of(path, folders, None)}
    if slot.gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(slot.gpus)
    tied = [sys.executable, "-m", "sarlang_sft.tied", sys.executable]
    words = [*tied, "-m", "wandb", "agent", "--forward-signals", path]
    with open(agent_log(folders, number), "ab") as log:
        return subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, process_group=0
        )


def agent_log(folders: Path, number: int) -> Path:
    """What an agent prints."""
    return folders.parent / f"agent-{number}.log"


def take_over(trials: Trials, folders: Path, path: str) -> list[Trial]:
    """Trials that agents have started since this was asked last."""
    known = {trial.id for trial in trials.all()}
    new = []
    for folder in sorted(folders.glob("*/"), key=lambda one: one.stat().st_ctime):
        values = params_file(path, folders, folder.name)
        if folder.name not in known and values.is_file():
            content = yaml.safe_load(values.read_text(encoding="utf-8"))
            params = {name: entry["value"] for name, entry in content.items() if isinstance(entry, dict)}
            new.append(trials.add(params, folder.name))
    return new


def watch(follower: Follower, folders: Path, path: str, stopping: bool, seconds: float) -> None:
    """Take over new trials, what they evaluated, and which are over.

    Args:
        seconds: Since this was asked for last, to count for those that run; 0 to count later.
    """
    trials, may_stop = follower.trials, "early_terminate" in follower.sweep.content  # the server
    for trial in take_over(trials, folders, path):
        trials.set_running(trial)
        follower.say(trial, "started")
    for trial in trials.all():
        if trial.state != RUNNING:
            continue
        folder = folders / trial.id
        trials.add_seconds(trial, seconds)
        trial, state = follower.look(trial, folder), state_of(folder)
        if state == RUN_FINISHED:
            follower.close(trial, folder, End(FINISHED, 0, ""), False)
        elif state == RUN_STOPPED and not stopping and may_stop and holder_of(folder) is None:
            follower.close(trial, folder, End(STOPPED_EARLY, STOPPED_EXIT, ""), False)
        elif seconds and not stopping and (end := end_of(folder, "")).exit_code != UNKNOWN:
            follower.close(trial, folder, end, False)
            follower.check_first()


def end_of(folder: Path, stopped: str) -> End:
    """How a trial of an agent ended, by what it printed; see `judge`.

    A torchrun that said nothing of its ranks still runs, was killed, or is about to end with its agent.
    """
    log = folder / LOG
    printed = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    return judge(printed, UNKNOWN, state_of(folder), stopped)


def close_all(follower: Follower, folders: Path, stopping: bool) -> None:
    """Judge the trials that are left, the agents having ended."""
    for trial in follower.trials.all():
        if trial.state == RUNNING:
            end = end_of(folders / trial.id, INTERRUPTED if stopping else "")
            follower.close(trial, folders / trial.id, end, False)

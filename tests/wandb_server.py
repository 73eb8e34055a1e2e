"""A W&B server on 127.0.0.1, as far as runs of metrics and sweeps need one: it keeps what it gets, can fall silent."""

import gzip
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
import yaml

HISTORY = "wandb-history.jsonl"
OF_USERS = tuple(f"WANDB_{name}" for name in ("API_KEY", "BASE_URL", "DATA_DIR", "DIR", "ENTITY", "MODE", "PROJECT"))
ENTITY = {"id": "e", "name": "me"}
VIEWER = {"id": "u", "entity": "me", "username": "me", "email": "me@example.org", "flags": "{}"}


class WandbServer(ThreadingHTTPServer):
    """Keeps `runs`: per id a dict of `config` and of the lines of every streamed file; and a sweep.

    Attributes:
        sweep: What was asked for.
        planned: Values of the runs that agents are still to be given, one at a time each.
        handed: Ids of those that they were.
        stops: Ids of runs that are to be stopped.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.runs: dict[str, dict[str, Any]] = {}
        self.silent, self.over = Event(), Event()
        self.refused: set[str] = set()
        self.sweep: dict[str, Any] = {}
        self.planned: list[dict[str, Any]] = []
        self.handed: list[str] = []
        self.stops: set[str] = set()
        self.state = "RUNNING"

    def environment(self) -> dict[str, str]:
        """What makes wandb talk to this server."""
        return {"WANDB_BASE_URL": f"http://127.0.0.1:{self.server_port}", "WANDB_API_KEY": 40 * "0"}

    def history(self, run_id: str) -> list[dict[str, Any]]:
        """The logged lines of a run."""
        return [json.loads(line) for line in self.runs[run_id].get(HISTORY, [])]

    def config(self, run_id: str) -> dict[str, Any]:
        """The configuration of a run without what wandb adds to it."""
        config = json.loads(self.runs[run_id]["config"])
        return {name: entry["value"] for name, entry in config.items() if name != "_wandb"}

    def resume_status(self, run_id: str) -> dict[str, Any] | None:
        """What a client that continues a run has to know of it."""
        if run_id not in self.runs:
            return None
        run = self.runs[run_id]
        lines = {key: run.get(name, []) for key, name in (("history", HISTORY), ("events", "wandb-events.jsonl"))}
        status = {f"{key}LineCount": len(value) for key, value in lines.items()}
        status |= {f"{key}Tail": json.dumps(value[-1:]) for key, value in lines.items()}
        summary = run.get("wandb-summary.json", ["{}"])[-1]
        fixed = {"name": run_id, "displayName": None, "tags": [], "notes": None, "wandbConfig": '{"t": 1}'}
        return {**status, **fixed, "config": run["config"], "summaryMetrics": summary, "logLineCount": 0}

    def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        """The data of a GraphQL answer; empty for what is not needed."""
        if operation in ("Viewer", "GetDefaultEntity"):
            return {"viewer": {**VIEWER, "teams": {"edges": []}}}
        if operation == "RunResumeStatus":
            return {"model": {"id": "p", "entity": ENTITY, "bucket": self.resume_status(variables["name"])}}
        if operation == "UpsertBucket":
            name, project = variables["name"], {"id": "p", "name": variables["project"], "entity": ENTITY}
            run = self.runs.setdefault(name, {})
            run["config"] = variables["config"] or run["config"]
            bucket = {"id": name, "name": name, "displayName": variables["displayName"], "project": project}
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if operation == "UpsertSweep":
            self.sweep = yaml.safe_load(variables["config"])
            project = {"id": "p", "name": variables["projectName"], "entity": ENTITY}
            return {"upsertSweep": {"sweep": {"name": "s1", "project": project}, "configValidationWarnings": []}}
        if operation in ("SweepWithRuns", "GetSweep"):
            sweep = {"id": "s", "name": "s1", "state": self.state, "config": yaml.safe_dump(self.sweep)}
            return {"project": {"sweep": {**sweep, "runs": {"edges": []}}}}
        if operation == "CreateAgent":
            return {"createAgent": {"agent": {"id": "a"}}}
        if operation == "Heartbeat":
            commands = self.commands(json.loads(variables["runState"]))
            return {"agentHeartbeat": {"agent": {"id": "a"}, "commands": json.dumps(commands)}}
        return {}

    def commands(self, running: dict[str, bool]) -> list[dict[str, Any]]:
        """What an agent is to do, one of whose runs may be under way."""
        if running:
            return [{"type": "stop", "run_id": run} for run in running if run in self.stops]
        if not self.planned:
            return [{"type": "exit"}]
        self.handed.append(f"run{len(self.handed)}")
        args = {name: {"value": value} for name, value in self.planned.pop(0).items()}
        return [{"type": "run", "run_id": self.handed[-1], "program": self.sweep["program"], "args": args}]

    def stream(self, run_id: str, files: dict[str, dict[str, Any]]) -> None:
        """Lines of files, from an offset on."""
        for name, part in files.items():
            lines = self.runs[run_id].setdefault(name, [])
            lines[part["offset"] :] = part["content"]


class Handler(BaseHTTPRequestHandler):
    """GraphQL and file streams; uploads of files are refused, which wandb takes."""

    protocol_version = "HTTP/1.1"
    server: WandbServer

    def do_POST(self) -> None:
        """Answer, or say nothing until the server is taken down."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.server.silent.is_set():
            self.server.over.wait()
            return
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        if self.path == "/graphql":
            request = json.loads(body)
            operation, data = re.search(r"(?:query|mutation)\s+(\w+)", request["query"])[1], {}
            if operation not in self.server.refused:
                data = self.server.answer(operation, request.get("variables") or {})
            self.reply({"data": data} if data else {"errors": [{"message": f"{operation} is refused"}]})
        elif self.path.endswith("/file_stream"):
            self.server.stream(self.path.split("/")[4], json.loads(body).get("files") or {})
            self.reply({"exitcode": None, "limits": {}})
        else:
            self.send_error(404)

    def reply(self, answer: dict[str, Any]) -> None:
        """Send JSON."""
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Keep the tests' output clean."""


@contextmanager
def wandb_server() -> Iterator[WandbServer]:
    """A running server."""
    with WandbServer() as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.over.set()
        server.shutdown()


def seclude_wandb(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put wandb out of reach of the settings, keys and folders of whoever runs the tests."""
    for name in OF_USERS:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "NETRC"):
        monkeypatch.setenv(name, str(folder / "elsewhere" / name))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")

"""A provider that speaks the protocol of api.openai.com for files, fine-tuning jobs, models and chat over real HTTP.

It keeps what it is given and trains nothing: a test says how far a job is. `respond` lets a test answer otherwise, or hold an answer back.
"""

from __future__ import annotations

import asyncio
import email
import email.policy
import itertools
import json
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

KEY = "sk-right-key-0123456789"
_ENDED = ("succeeded", "failed", "cancelled")


@dataclass(frozen=True, slots=True)
class Seen:
    """A request as it arrived: `POST /files`."""

    call: str
    key: str
    body: Any


@dataclass(frozen=True, slots=True)
class Reply:
    """What is sent. `lost`: the request is done, and the connection cut instead of an answer."""

    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    lost: bool = False


def failure(status: int, message: str, code: str | None = None, **headers: str) -> Reply:
    """An error in OpenAI's form; in names of headers `_` stands for `-`."""
    body = {"error": {"message": message, "type": code or "invalid_request_error", "param": None, "code": code}}
    return Reply(body, status, {name.replace("_", "-"): value for name, value in headers.items()})


@dataclass(slots=True)
class HostedServer:
    """`respond` gets each request before it is done, and may answer in its place; `seen` keeps all."""

    respond: Callable[[Seen], Reply | None] = lambda _seen: None
    seen: list[Seen] = field(default_factory=list)
    keys: set[str] = field(default_factory=lambda: {KEY})
    files: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    events: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    models: set[str] = field(default_factory=lambda: {"gpt-small"})
    answers_as: dict[str, str] = field(default_factory=dict)
    """Names in answers, where they are not those asked for."""
    url: str = ""
    changed: threading.Condition = field(default_factory=threading.Condition)
    _number: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def calls(self, call: str) -> list[Any]:
        """Bodies of all requests of a kind."""
        return [seen.body for seen in list(self.seen) if seen.call == call]

    def the_job(self) -> dict[str, Any]:
        """The only one."""
        [job] = self.jobs.values()
        return job

    def step(self, number: int, count: int, loss: float, **more: float) -> None:
        """The only job is at a step."""
        job = self.the_job()
        job["status"] = "running"
        data = {"step": number, "total_steps": count, "train_loss": loss, **more}
        self._tell(job["id"], f"Step {number}/{count}: training loss={loss}", "metrics", data)

    def succeed(self, model: str = "ft:gpt-small:acme:one:abc123") -> None:
        """The only job has made a model."""
        self.models.add(model)
        self._end("succeeded", fine_tuned_model=model, trained_tokens=420)

    def fail(self, message: str, code: str, param: str | None = None) -> None:
        """The only job cannot be done."""
        self._end("failed", error={"message": message, "code": code, "param": param})

    async def until(self, fits: Callable[[], object]) -> None:
        """Returns once it does, looked at after each request. Raises AssertionError after 60 s."""

        def wait() -> bool:
            with self.changed:
                return bool(self.changed.wait_for(fits, timeout=60))

        assert await asyncio.to_thread(wait), [seen.call for seen in self.seen]

    def reply(self, seen: Seen) -> Reply:
        """To a request that was just kept."""
        if seen.key not in self.keys:
            return failure(401, f"Incorrect API key provided: {seen.key}.", "invalid_api_key")
        early = self.respond(seen)
        if early is not None and not early.lost:
            return early
        done = self._done(seen)
        return done if early is None else Reply(done.body, lost=True)

    def _done(self, seen: Seen) -> Reply:
        method, _, path = seen.call.partition(" /")
        match [method, *path.split("/")]:
            case ["POST", "files"]:
                reply = self._upload(seen.body)
            case ["GET", "files", *rest]:
                reply = self._get_files(*rest)
            case ["GET", "models", name]:
                there = name in self.models
                reply = Reply(_model(name)) if there else failure(404, f"The model '{name}' does not exist", "model_not_found")
            case ["GET", "models"]:
                reply = _page([_model(name) for name in sorted(self.models)])
            case ["POST", "fine_tuning", "jobs"]:
                reply = self._create(seen.body)
            case ["GET", "fine_tuning", "jobs"]:
                wanted = {name[9:-1]: value[0] for name, value in seen.body.items() if name.startswith("metadata[")}
                reply = _page([job for job in reversed(self.jobs.values()) if wanted.items() <= job["metadata"].items()])
            case [_, "fine_tuning", "jobs", id_, *rest] if id_ in self.jobs:
                reply = self._of_job(id_, rest, seen.body)
            case ["POST", "chat", "completions"]:
                reply = self._chat(seen.body)
            case _:
                reply = failure(404, f"Could not find {path}")
        return reply

    def _get_files(self, id_: str = "") -> Reply:
        if not id_:
            return _page([self._file(each) for each in reversed(self.files)])
        return Reply(self._file(id_)) if id_ in self.files else failure(404, f"No such File object: {id_}")

    def _of_job(self, id_: str, rest: list[str], body: Any) -> Reply:
        if rest == ["events"]:
            return self._events(id_, body)
        if rest == ["cancel"]:
            if self.jobs[id_]["status"] in _ENDED:
                return failure(400, f"Job has already completed: {id_}")
            self.jobs[id_] |= {"status": "cancelled", "finished_at": int(time.time())}
        return Reply(self.jobs[id_])

    def _upload(self, form: dict[str, tuple[str, bytes]]) -> Reply:
        if form["purpose"][1] != b"fine-tune":
            return failure(400, "purpose must be fine-tune")
        id_ = f"file-{next(self._number)}"
        self.files[id_] = form["file"]
        return Reply(self._file(id_))

    def _file(self, id_: str) -> dict[str, Any]:
        name, content = self.files[id_]
        about = {"id": id_, "object": "file", "bytes": len(content), "created_at": 1, "filename": name}
        return about | {"purpose": "fine-tune", "status": "processed"}

    def _create(self, body: dict[str, Any]) -> Reply:
        known = {"model", "training_file", "validation_file", "suffix", "seed", "metadata", "method"}
        strange = sorted(body.keys() - known)
        if strange:
            return failure(400, f"Unrecognized request argument supplied: {strange[0]}")
        if body["model"] not in self.models:
            return failure(404, f"The model '{body['model']}' does not exist", "model_not_found")
        for name in ("training_file", "validation_file"):
            if body.get(name) is not None and body[name] not in self.files:
                return failure(400, f"invalid {name}: {body[name]}")
        id_ = f"ftjob-{next(self._number)}"
        chosen = (body.get("method") or {}).get("supervised", {}).get("hyperparameters", {})
        self.jobs[id_] = {
            **{
                "id": id_,
                "object": "fine_tuning.job",
                "created_at": int(time.time()),
                "organization_id": "org-1",
                "status": "validating_files",
            },
            **{"model": body["model"], "training_file": body["training_file"], "validation_file": body.get("validation_file")},
            **{"fine_tuned_model": None, "finished_at": None, "trained_tokens": None, "error": None, "result_files": []},
            **{"seed": body["seed"], "metadata": body["metadata"], "suffix": body["suffix"]},
            "hyperparameters": {"n_epochs": "auto"} | chosen,
        }
        self._tell(id_, f"Created fine-tuning job: {id_}", "message", {})
        return Reply(self.jobs[id_])

    def _events(self, id_: str, query: dict[str, list[str]]) -> Reply:
        newest = self.events[id_][::-1]
        after = query.get("after", [""])[0]
        start = next((place for place, event in enumerate(newest, 1) if event["id"] == after), 0)
        # Pages are small here, so that every test turns some.
        return _page(newest[start : start + 3], more=len(newest) > start + 3)

    def _chat(self, body: dict[str, Any]) -> Reply:
        if body["model"] not in self.models:
            return failure(404, f"The model '{body['model']}' does not exist", "model_not_found")
        message = {"role": "assistant", "content": "in the harbour", "refusal": None}
        finish = "length" if body.get("max_tokens", 16) < 3 else "stop"
        choice = {"index": 0, "finish_reason": finish, "message": message, "logprobs": None}
        usage = {"prompt_tokens": 1000, "completion_tokens": 3, "total_tokens": 1003}
        name = self.answers_as.get(body["model"], body["model"])
        return Reply({"id": "x", "object": "chat.completion", "created": 1, "model": name, "choices": [choice], "usage": usage})

    def _tell(self, id_: str, message: str, kind: str, data: dict[str, Any]) -> None:
        about = {"object": "fine_tuning.job.event", "created_at": int(time.time()), "level": "info"}
        event = about | {"id": f"ftevent-{next(self._number)}", "message": message, "type": kind, "data": data}
        self.events.setdefault(id_, []).append(event)

    def _end(self, status: str, **more: Any) -> None:
        job = self.the_job()
        job |= {"status": status, "finished_at": job["created_at"] + 90, **more}
        self._tell(job["id"], f"The job has {status}", "message", {})


def _page(data: list[dict[str, Any]], more: bool = False) -> Reply:
    return Reply({"object": "list", "data": data, "has_more": more})


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 1, "owned_by": "acme"}


def _body(method: str, query: str, kind: str, data: bytes) -> Any:
    if method == "GET":
        return parse_qs(query)
    if not kind.startswith("multipart/form-data"):
        return json.loads(data or b"{}")
    whole = email.message_from_bytes(f"content-type: {kind}\r\n\r\n".encode() + data, policy=email.policy.HTTP)
    parts = [(part.get_param("name", header="content-disposition"), part) for part in whole.walk() if not part.is_multipart()]
    return {str(name): (part.get_filename() or "", part.get_payload(decode=True)) for name, part in parts}


def _handler(server: HostedServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            place = urlsplit(self.path)
            data = self.rfile.read(int(self.headers.get("content-length") or 0))
            body = _body(self.command, place.query, self.headers.get("content-type", ""), data)
            seen = Seen(f"{self.command} {place.path.removeprefix('/v1')}", self.headers["authorization"].removeprefix("Bearer "), body)
            with server.changed:
                server.seen.append(seen)
                server.changed.notify_all()
            reply = server.reply(seen)
            content = json.dumps(reply.body).encode()
            with server.changed:
                server.changed.notify_all()
            if reply.lost:
                self.close_connection = True
                return
            try:
                self.send_response(reply.status)
                for name, value in ({"content-type": "application/json", "content-length": str(len(content))} | reply.headers).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)
            except OSError:
                self.close_connection = True  # the trainer was killed meanwhile, as some tests want

        def do_GET(self) -> None:
            self._answer()

        def do_POST(self) -> None:
            self._answer()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the library's name
            pass

    return Handler


@asynccontextmanager
async def providing() -> AsyncIterator[HostedServer]:
    """A provider while it is needed."""
    server = HostedServer()
    http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(server))
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, args=(0.05,))
    thread.start()
    server.url = f"http://127.0.0.1:{http.server_port}/v1"
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()

"""Speaks to a running ComfyUI server: requests over HTTP, and a run followed over the websocket.

Needs the package websocket-client; everything else is the standard library.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import websocket

REQUEST_SECONDS = 120
SILENCE_SECONDS = 5
RECORD_SECONDS = 10


class ServerError(RuntimeError):
    """The server did not start, died, or refused a request."""


class NodeError(ServerError):
    """A node raised; `node_type` and `message` say which and what, `traceback` is the server's."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.node_id = str(data.get("node_id"))
        self.node_type = str(data.get("node_type"))
        self.message = str(data.get("exception_message", "")).strip()
        self.traceback = "".join(data.get("traceback") or ())
        super().__init__(f"{self.node_type} (node {self.node_id}): {self.message}")


class InterruptedRunError(ServerError):
    """The run was ended by an interrupt."""


class Event(NamedTuple):
    """One message of a run, as the server sent it: progress, executing, executed, execution_cached, ..."""

    type: str
    data: dict[str, Any]


class OutputFile(NamedTuple):
    """A file that a node saved or previewed, by the names under which /view serves it."""

    node: str
    filename: str
    subfolder: str
    type: str


class ComfyClient:
    """One client of the server on this machine's `port`, with one websocket for all runs that it queues."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.client_id = uuid.uuid4().hex
        self._socket: websocket.WebSocket | None = None

    @property
    def url(self) -> str:
        """The server's address, without a slash at the end."""
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str, **query: str) -> bytes:
        """Returns the body of a GET request; raises ServerError unless the server answers with success."""
        return self._request(path + ("?" + urllib.parse.urlencode(query) if query else ""))

    def post(self, path: str, body: dict[str, Any]) -> bytes:
        """Posts JSON and returns the body of the answer."""
        return self._request(path, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def object_info(self) -> dict[str, Any]:
        """Every node type of the server with its inputs and outputs."""
        return json.loads(self.get("/object_info"))

    def templates(self) -> dict[str, list[str]]:
        """Names of the example workflows by pack."""
        return json.loads(self.get("/workflow_templates"))

    def upload_image(self, path: Path) -> str:
        """Puts a picture into the input folder and returns the name that LoadImage takes."""
        boundary = uuid.uuid4().hex
        head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{path.name}"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        )
        body = head.encode() + path.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
        kind = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        answer = json.loads(self._request("/upload/image", body, kind))
        return "/".join(filter(None, (answer.get("subfolder"), answer["name"])))

    def queue(self, prompt: dict[str, Any]) -> str:
        """Queues an API workflow and returns its prompt id; a refused one raises with every reason in the message."""
        self._connected()
        return json.loads(self.post("/prompt", {"prompt": prompt, "client_id": self.client_id}))["prompt_id"]

    def interrupt(self, prompt_id: str | None = None) -> None:
        """Interrupts the running workflow, or only the named one if it is the running one."""
        self.post("/interrupt", {"prompt_id": prompt_id} if prompt_id else {})

    def history(self, prompt_id: str) -> dict[str, Any]:
        """The server's record of a finished run: outputs, status, messages."""
        deadline = time.monotonic() + RECORD_SECONDS
        while time.monotonic() < deadline:  # the record is written shortly after the run's last message
            record = json.loads(self.get(f"/history/{prompt_id}"))
            if prompt_id in record:
                return record[prompt_id]
            time.sleep(0.1)
        raise ServerError(f"the server has no record of the run {prompt_id}")

    def output_files(self, prompt_id: str) -> list[OutputFile]:
        """Files that the run's nodes saved, in the order in which the server lists the nodes."""
        return [
            OutputFile(node, entry["filename"], entry.get("subfolder", ""), entry.get("type", "output"))
            for node, shown in self.history(prompt_id)["outputs"].items()
            for entries in shown.values()
            if isinstance(entries, list)
            for entry in entries
            if isinstance(entry, dict) and "filename" in entry
        ]

    def view(self, file: OutputFile) -> bytes:
        """The content of an output file."""
        return self.get("/view", filename=file.filename, subfolder=file.subfolder, type=file.type)

    def events(self, prompt_id: str) -> Iterator[Event]:
        """Yields the run's messages until it succeeds; raises NodeError or InterruptedRunError when it does not."""
        connection = self._connected()
        while True:
            try:
                message = connection.recv()
            except websocket.WebSocketTimeoutException:
                self.check_alive()
                continue
            except (websocket.WebSocketException, OSError) as error:
                self.check_alive()
                raise ServerError(f"the connection to the server broke: {error}") from error
            if not isinstance(message, str):  # a preview picture
                continue
            event = Event(**{key: json.loads(message).get(key) for key in Event._fields})
            if not isinstance(event.data, dict) or event.data.get("prompt_id") != prompt_id:
                continue
            if event.type == "execution_error":
                raise NodeError(event.data)
            if event.type == "execution_interrupted":
                raise InterruptedRunError(f"interrupted in {event.data.get('node_type')}")
            yield event
            if event.type == "execution_success":
                return

    def run(self, prompt: dict[str, Any]) -> list[OutputFile]:
        """Queues a workflow, waits for its end and returns its files."""
        prompt_id = self.queue(prompt)
        for _ in self.events(prompt_id):
            pass
        return self.output_files(prompt_id)

    def close(self) -> None:
        """Closes the websocket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def check_alive(self) -> None:
        """Raises ServerError if the server is known to have ended; called whenever it has been silent for a while."""

    def _connected(self) -> websocket.WebSocket:
        if self._socket is None:
            address = f"ws://127.0.0.1:{self.port}/ws?clientId={self.client_id}"
            self._socket = websocket.create_connection(address, timeout=SILENCE_SECONDS, http_no_proxy=["127.0.0.1"])
        return self._socket

    def _request(self, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> bytes:
        request = urllib.request.Request(self.url + path, data=body, headers=headers or {})
        # No proxy: the server is on this machine whatever the environment says.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=REQUEST_SECONDS) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            raise ServerError(f"{path}: {_reason(error.code, error.read())}") from None


def _reason(status: int, body: bytes) -> str:
    """Puts the server's answer to a refused request into words, node by node where it names nodes."""
    try:
        answer = json.loads(body)
    except ValueError:
        return f"HTTP {status} {body[:500].decode(errors='replace')}".strip()
    if not isinstance(answer, dict) or "error" not in answer:
        return f"HTTP {status} {answer}"
    error = answer["error"]
    reasons = [str(error.get("message")) if isinstance(error, dict) else str(error)]
    for node_id, found in (answer.get("node_errors") or {}).items():
        for problem in found["errors"]:
            reasons.append(f"{found['class_type']} (node {node_id}): {problem['message']}: {problem['details']}")
    return "; ".join(reasons)

"""Stand-in for Ollama or for the backend of the stack: `standin.py ollama|backend`, in a container.

ollama    port 11434: /api/tags names the models below /root/.ollama. Where there is none, one of 3 MB
          is made at the start, in the layout of the real program: manifest, blobs, the key of the host.
backend   port 8000: /health and /ready answer, every request is a line in /app/logs/backend.log.

What could go wrong: PID 1 gets no default action for TERM, and `docker stop` would wait 10 s; so the
program installs one. Whatever is asked that the real one does not have is a 404, not a friendly 200.
"""

import hashlib
import http.server
import json
import os
import pathlib
import random
import signal
import sys

MODELS = pathlib.Path("/root/.ollama/models")
LIBRARY = MODELS / "manifests/registry.ollama.ai/library"
LOG = pathlib.Path("/app/logs/backend.log")


def blob(content):
    """Stores CONTENT under its digest, as the real one does; returns the entry for a manifest."""
    digest = hashlib.sha256(content).hexdigest()
    path = MODELS / "blobs" / f"sha256-{digest}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return {"digest": f"sha256:{digest}", "size": len(content)}


def make_model():
    layer = blob(random.Random(7).randbytes(3_000_000))
    manifest = {"schemaVersion": 2, "config": blob(b'{"model_format":"gguf"}'), "layers": [layer]}
    path = LIBRARY / "stand-in" / "latest"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(manifest))
    key = MODELS.parent / "id_ed25519"
    key.write_text("the stand-in's key\n")
    key.chmod(0o600)


def tags():
    models = []
    for path in sorted(LIBRARY.glob("*/*")):
        layers = json.loads(path.read_text())["layers"]
        size = sum((MODELS / "blobs" / e["digest"].replace(":", "-")).stat().st_size for e in layers)
        models.append({"name": f"{path.parent.name}:{path.name}", "size": size})
    return {"models": models}


def log(line):
    with LOG.open("a") as f:
        f.write(line + "\n")


class Handler(http.server.BaseHTTPRequestHandler):
    answers = {}

    def do_GET(self):
        answer = self.answers.get(self.path)
        body = json.dumps(answer() if answer else {"error": "not found"}).encode()
        self.send_response(200 if answer else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, form, *args):
        if LOG.parent.is_dir():
            log(form % args)


def main():
    kind = sys.argv[1]
    if kind == "ollama":
        if not LIBRARY.is_dir():
            make_model()
        port, Handler.answers = 11434, {"/api/tags": tags, "/api/version": lambda: {"version": "0.0.0"}}
    elif kind == "backend":
        LOG.parent.mkdir(parents=True, exist_ok=True)
        log(f"started with pid {os.getpid()}")
        port = 8000
        Handler.answers = {"/health": lambda: {"status": "healthy"}, "/ready": lambda: {"status": "ready"}}
    else:
        sys.exit("usage: standin.py ollama|backend")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    http.server.ThreadingHTTPServer(("0.0.0.0", port), Handler).serve_forever()


main()

"""llama.cpp's server, in a process of its own: llama_cpp_server.py MODEL.gguf CONTEXT REQUESTS.json ANSWERS.json

REQUESTS is a list of [path, body] to post one after another; ANSWERS what came back.
"""

from __future__ import annotations

import json
import sys
import urllib.request
from pathlib import Path

import xllamacpp as llama_cpp


def main(model: str, context: int, requests: Path, answers: Path) -> None:
    """Starts the server, asks, writes."""
    parameters = llama_cpp.CommonParams()
    parameters.model.path = model
    parameters.n_ctx, parameters.n_parallel = context, 1
    parameters.ctx_shift, parameters.warmup, parameters.fit_params = True, False, False
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    parameters.cache_type_k = parameters.cache_type_v = llama_cpp.ggml_type.GGML_TYPE_F32
    server = llama_cpp.Server(parameters)
    found = []
    for path, body in json.loads(requests.read_text()):
        request = urllib.request.Request(
            server.listening_address + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=600) as response:
            found.append(json.loads(response.read()))
    answers.write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]))

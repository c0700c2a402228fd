"""llama.cpp's own server on a GGUF file, as the wheel xllamacpp brings it, and files with other metadata."""

import json
import shutil
from contextlib import contextmanager
from urllib.request import Request, urlopen

import gguf


@contextmanager
def llama_server(path, threads=1):
    """Run the server in this process, and give its address."""
    import xllamacpp

    options = xllamacpp.CommonParams()
    options.model.path = str(path)
    options.port = 0  # any that is free
    options.n_ctx = 512
    options.n_parallel = 1
    options.cpuparams.n_threads = threads
    options.warmup = False
    options.verbosity = 0
    server = xllamacpp.Server(options)
    yield server.listening_address
    del server


def post(url, value):
    """Return what a server answers to a JSON value."""
    request = Request(url, json.dumps(value).encode(), {"Content-Type": "application/json"})
    with urlopen(request) as response:
        return json.load(response)


def with_metadata(source, target, **values):
    """Copy a GGUF file, with other numbers in its metadata; a dot in a name is written as two underscores."""
    shutil.copy(source, target)
    reader = gguf.GGUFReader(target, "r+")
    for name, value in values.items():
        field = reader.fields[name.replace("__", ".")]
        field.parts[field.data[0]][:] = value
    reader.data.flush()
    return target

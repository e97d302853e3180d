"""Where shards can lie: on the disk, on servers of all manners, in an object store."""

import atexit
import contextlib
import functools
import logging
import sys
from pathlib import Path

import fsspec
import pytest
from object_store import forget_file_systems

# The server of the benchmarks, in a process of its own: what it is like, `answering` says.
sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from serving import serving

LATENCY = 0.002
AWAY = ("single ranges", "several ranges", "no ranges", "memory", "s3")
"""Asked for several ranges, object stores send the whole object."""
PLACES = ("local", *AWAY)


@contextlib.contextmanager
def at(place, folder, **conditions):
    """The URL that the files of a folder have at a place, where they are as they are now."""
    if place == "local":
        yield str(folder)
    elif place == "memory":
        with _in_memory(folder) as url:
            yield url
    elif place == "s3":
        with _in_s3(folder) as url:
            yield url
    else:
        ranges = {"single ranges": "single", "several ranges": "multi", "no ranges": "none"}
        with serving(folder, ranges=ranges[place], latency=LATENCY, **conditions) as server:
            yield server.url


@contextlib.contextmanager
def _in_memory(folder):
    files = fsspec.filesystem("memory")
    bucket = f"/bucket{len(files.store)}"
    for path in folder.iterdir():
        files.pipe_file(f"{bucket}/{path.name}", path.read_bytes())
    try:
        yield f"memory:/{bucket}"
    finally:
        files.rm(bucket, recursive=True)


@functools.cache
def _s3_server():
    """One for all tests of this process, as file systems of fsspec are kept: its URL."""
    moto = pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    atexit.register(server.stop)
    return "http://{}:{}".format(*server.get_host_and_port())


@contextlib.contextmanager
def _in_s3(folder):
    """A server of moto, named by the environment as one's own would be."""
    settings = {
        "AWS_ENDPOINT_URL": _s3_server(),
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        forget_file_systems()
        client = pytest.importorskip("boto3").client("s3")
        bucket = f"bucket{len(client.list_buckets()['Buckets'])}"
        client.create_bucket(Bucket=bucket)
        for path in folder.iterdir():
            client.put_object(Bucket=bucket, Key=path.name, Body=path.read_bytes())
        yield f"s3://{bucket}"

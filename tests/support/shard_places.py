"""Where shards can lie: on the disk, on servers of all manners, in an object store."""

import contextlib
import logging
import sys
from pathlib import Path

import fsspec
import pytest

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


@contextlib.contextmanager
def _in_s3(folder):
    """A server of moto, named by the environment as one's own would be."""
    moto = pytest.importorskip("moto.server")
    boto3 = pytest.importorskip("boto3")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        with pytest.MonkeyPatch.context() as patch:
            host, port = server.get_host_and_port()
            for name, value in {
                "AWS_ENDPOINT_URL": f"http://{host}:{port}",
                "AWS_ACCESS_KEY_ID": "someone",
                "AWS_SECRET_ACCESS_KEY": "secret",
                "AWS_DEFAULT_REGION": "us-east-1",
                "AWS_ALLOW_HTTP": "true",
            }.items():
                patch.setenv(name, value)
            client = boto3.client("s3")
            client.create_bucket(Bucket="bucket")
            for path in folder.iterdir():
                client.put_object(Bucket="bucket", Key=path.name, Body=path.read_bytes())
            yield "s3://bucket"
    finally:
        server.stop()

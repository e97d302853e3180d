"""An object store of moto's in a process of its own, whose keys and endpoint are those of AWS."""

import contextlib
import os
import subprocess
import sys

import pytest

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "not-to-be-shown",
    "AWS_DEFAULT_REGION": "eu-central-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
_PROGRAM = """
import logging, sys
from moto.server import ThreadedMotoServer
from werkzeug.serving import WSGIRequestHandler
logging.getLogger("werkzeug").disabled = True
# As stores do, and not a connection for each request.
WSGIRequestHandler.protocol_version = "HTTP/1.1"
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def object_store():
    """Yield a client of a store with the bucket "bucket", of which the environment tells."""
    boto3, _ = pytest.importorskip("boto3"), pytest.importorskip("moto.server")
    command = [sys.executable, "-c", _PROGRAM]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        endpoint = f"http://127.0.0.1:{process.stdout.readline().decode().strip()}"
        before = dict(os.environ)
        os.environ.update(ENVIRONMENT | {"AWS_ENDPOINT_URL": endpoint})
        forget_file_systems()
        try:
            client = boto3.client("s3")
            region = {"LocationConstraint": ENVIRONMENT["AWS_DEFAULT_REGION"]}
            client.create_bucket(Bucket="bucket", CreateBucketConfiguration=region)
            yield client
        finally:
            os.environ.clear()
            os.environ.update(before)
            process.kill()


def forget_file_systems():
    """Let file systems be made anew: fsspec keeps them, with the endpoint that there was."""
    pytest.importorskip("s3fs").S3FileSystem.clear_instance_cache()


def signed(client, key):
    """A URL of an object that holds for a while."""
    return client.generate_presigned_url("get_object", Params={"Bucket": "bucket", "Key": key})

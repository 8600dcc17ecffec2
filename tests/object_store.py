"""An S3-compatible server of this process, and how a user would upload a run to it."""

import contextlib
import os
from pathlib import Path
from unittest import mock

import boto3
import requests
from moto.server import ThreadedMotoServer

BUCKET = "traces"
KEYS = {"AWS_ACCESS_KEY_ID": "anyone", "AWS_SECRET_ACCESS_KEY": "anything"}


@contextlib.contextmanager
def local_store(cache: Path):
    """A store with one empty bucket; what is read of it is copied into `cache`."""
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    url = f"http://127.0.0.1:{server.get_host_and_port()[1]}"
    environment = KEYS | {
        "AWS_ENDPOINT_URL": url,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_MAX_ATTEMPTS": "1",
        "DYNAMICS_CACHE": str(cache),
    }
    with mock.patch.dict(os.environ, environment):
        requests.post(f"{url}/moto-api/reset", timeout=30)  # its stores outlive it
        client = boto3.client("s3")
        client.create_bucket(Bucket=BUCKET)
        try:
            yield Store(server, client)
        finally:
            server.stop()


class Store:
    """The server, and a client of it that is not ours."""

    def __init__(self, server, client):
        self.server, self.client = server, client

    def upload(self, folder: Path, prefix: str, *, but=()):
        """Files of a folder, temporary ones left out; returns the URL."""
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder).as_posix()
            if path.is_file() and name not in but and ".tmp-" not in name:
                self.put(f"{prefix}/{name}", path.read_bytes())
        return f"s3://{BUCKET}/{prefix}"

    def put(self, key, data):
        self.client.put_object(Bucket=BUCKET, Key=key, Body=data)

    def delete(self, key):
        self.client.delete_object(Bucket=BUCKET, Key=key)

    def keys(self, prefix=""):
        found = self.client.list_objects_v2(Bucket=BUCKET, Prefix=prefix)
        return [item["Key"] for item in found.get("Contents", [])]

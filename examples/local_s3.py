"""A local S3 server for the examples: moto's, in a process of its own, with authentication on."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import boto3

# moto verifies signatures after this many requests: those that make the user and its key.
UNSIGNED_REQUESTS = 3


@contextmanager
def local_s3() -> Iterator[str]:
    """Runs a server on a free port of 127.0.0.1 and yields its endpoint.

    Meanwhile the environment holds the endpoint and the keys of a user who may do anything, so
    that boto3, torchnpy and DataLoader workers find them as they would find a real store's.
    """
    environment = dict(os.environ)
    server = subprocess.Popen(
        [sys.executable, __file__],
        env=environment | {"INITIAL_NO_AUTH_ACTION_COUNT": str(UNSIGNED_REQUESTS)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # a line for each request
        text=True,
    )
    assert server.stdin
    assert server.stdout
    try:
        port = server.stdout.readline().strip()
        if not port:
            raise RuntimeError("moto's server did not start; is moto[server] installed?")
        endpoint = f"http://127.0.0.1:{port}"
        os.environ.pop("AWS_PROFILE", None)
        os.environ.pop("AWS_SESSION_TOKEN", None)
        os.environ |= {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ENDPOINT_URL_S3": endpoint,
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "nobody",
            "AWS_SECRET_ACCESS_KEY": "unsigned",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }
        key = _create_user()
        os.environ["AWS_ACCESS_KEY_ID"] = key["AccessKeyId"]
        os.environ["AWS_SECRET_ACCESS_KEY"] = key["SecretAccessKey"]
        yield endpoint
    finally:
        os.environ.clear()
        os.environ.update(environment)
        server.stdin.close()  # it ends with its standard input
        server.wait()


def _create_user() -> dict[str, str]:
    iam = boto3.Session().client("iam")  # the default session would remember these keys
    iam.create_user(UserName="example")
    everything = {"Effect": "Allow", "Action": "*", "Resource": "*"}
    iam.put_user_policy(
        UserName="example",
        PolicyName="everything",
        PolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": [everything]}),
    )
    return iam.create_access_key(UserName="example")["AccessKey"]


def _serve_until_input_ends() -> None:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    print(server.get_host_and_port()[1], flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    _serve_until_input_ends()

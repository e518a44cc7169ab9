"""moto's S3, as a process that verifies every signature."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import boto3

# The actions that make the user; all later ones are authenticated.
SETUP_ACTIONS = 3
POLICY = '{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"*","Resource":"*"}]}'
SCRIPT = """
import sys, time
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print("http://%s:%d" % server.get_host_and_port(), flush=True)
sys.stdin.read()
"""


class MotoServer:
    """Starts at once; ends when closed, or when the tests end however they do."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={"INITIAL_NO_AUTH_ACTION_COUNT": str(SETUP_ACTIONS), "PATH": "/usr/bin:/bin"},
        )
        assert self._process.stdout
        self.endpoint = self._process.stdout.readline().strip()
        iam = self._boto3("iam", "any", "any")
        iam.create_user(UserName="reader")
        key = iam.create_access_key(UserName="reader")["AccessKey"]
        iam.put_user_policy(UserName="reader", PolicyName="all", PolicyDocument=POLICY)
        self.key_id: str = key["AccessKeyId"]
        self.secret: str = key["SecretAccessKey"]
        self.s3 = self._boto3("s3", self.key_id, self.secret)
        self.s3.create_bucket(Bucket="bucket")

    def put(self, key: str, body: bytes) -> str:
        """Stores an object in `bucket`; its s3:// URL."""
        self.s3.put_object(Bucket="bucket", Key=key, Body=body)
        return f"s3://bucket/{key}"

    def close(self) -> None:
        self._process.communicate("")

    def _boto3(self, service: str, key_id: str, secret: str) -> Any:
        return boto3.client(
            service,
            endpoint_url=self.endpoint,
            aws_access_key_id=key_id,
            aws_secret_access_key=secret,
            region_name="us-east-1",
        )

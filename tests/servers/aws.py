"""The services that hand out AWS credentials: STS, EC2's and a container's metadata."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qsl

from .http import Answer, ObjectServer, Request
from .s3 import Key, S3Server


class AwsServer(ObjectServer):
    """Makes keys that the S3 server knows; paths: / (STS), /latest/... (IMDSv2), /container."""

    def __init__(self, s3: S3Server) -> None:
        self.s3 = s3
        self.lifetime_s = 3600.0
        self.container_token: str | None = None
        self.calls: list[dict[str, str]] = []  # of STS
        self.bodies: list[bytes] = []
        self._count = 0
        self._lock = threading.Lock()
        super().__init__()

    def make_key(self) -> dict[str, str]:
        with self._lock:
            self._count += 1
            name = f"ASIA{self._count:04}"
        key = Key(f"secret/{name}+", f"token/{name}==")
        self.s3.keys[name] = key
        end = datetime.now(UTC) + timedelta(seconds=self.lifetime_s)
        return {
            "AccessKeyId": name,
            "SecretAccessKey": key.secret,
            "Token": key.token or "",
            "Expiration": end.strftime("%Y-%m-%dT%H:%M:%SZ"),
        }

    @property
    def made(self) -> int:
        return self._count

    def answer(self, request: Request) -> Answer:
        if request.path == "/container":
            if request.headers.get("authorization") != self.container_token:
                return Answer(401, {}, b'{"code":"AccessDenied","message":"wrong token"}')
            return Answer(200, {}, json.dumps(self.make_key()).encode())
        if request.path == "/latest/api/token":
            allowed = request.method == "PUT"
            return Answer(200, {}, b"imds-token") if allowed else Answer(405)
        path = "/latest/meta-data/iam/security-credentials/"
        if request.path.startswith(path):
            if request.headers.get("x-aws-ec2-metadata-token") != "imds-token":
                return Answer(401)
            if request.path == path:
                return Answer(200, {}, b"role")
            return Answer(200, {}, json.dumps({"Code": "Success"} | self.make_key()).encode())
        return self._assume(request)

    def _assume(self, request: Request) -> Answer:
        call = dict(parse_qsl(request.body.decode()))
        self.calls.append(call)
        action = call["Action"]
        signed = request.headers.get("authorization", "").partition("Credential=")[2].split("/")[0]
        if action == "AssumeRole" and signed not in self.s3.keys:
            return _sts_error("InvalidClientTokenId", "The security token is invalid")
        if action == "AssumeRoleWithWebIdentity" and (
            signed or call["WebIdentityToken"] != "identity"
        ):
            return _sts_error("InvalidIdentityToken", "No such identity")
        key = self.make_key()
        key["SessionToken"] = key.pop("Token")
        fields = "".join(f"<{name}>{value}</{name}>" for name, value in key.items())
        text = (
            f'<{action}Response xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><{action}Result>'
            f"<Credentials>{fields}</Credentials></{action}Result></{action}Response>"
        )
        return Answer(200, {"Content-Type": "text/xml"}, text.encode())


def _sts_error(code: str, message: str) -> Answer:
    text = f"<ErrorResponse><Error><Code>{code}</Code><Message>{message}</Message></Error>"
    return Answer(403, {"Content-Type": "text/xml"}, f"{text}</ErrorResponse>".encode())

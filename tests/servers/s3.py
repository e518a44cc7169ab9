"""An S3 store that checks signatures with botocore's own signer."""

from __future__ import annotations

import base64
import functools
import hashlib
import zlib
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, quote, unquote
from xml.sax.saxutils import escape

from botocore.auth import S3SigV4Auth, S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from .http import Answer, ObjectServer, Request, s3_error


@dataclass
class Key:
    secret: str
    token: str | None = None
    expired: bool = False


@dataclass
class Bucket:
    region: str = "us-east-1"
    public: bool = False
    requester_pays: bool = False
    objects: dict[str, bytes] = field(default_factory=dict)
    checksums: dict[str, dict[str, str]] = field(default_factory=dict)  # headers by key


@functools.cache
def _crc_table(polynomial: int) -> list[int]:
    table = []
    for remainder in range(256):
        for _ in range(8):
            remainder = remainder >> 1 ^ (polynomial if remainder & 1 else 0)
        table.append(remainder)
    return table


def _crc(data: bytes, width: int, polynomial: int) -> int:
    table, mask = _crc_table(polynomial), (1 << width) - 1
    crc = mask
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    return crc ^ mask


def checksum(algorithm: str, data: bytes) -> str:
    """As S3 writes it: base64 of the big-endian value."""
    digests = {
        "crc32": lambda: zlib.crc32(data).to_bytes(4, "big"),
        "crc32c": lambda: _crc(data, 32, 0x82F63B78).to_bytes(4, "big"),
        "crc64nvme": lambda: _crc(data, 64, 0x9A6C9329AC4BC9B5).to_bytes(8, "big"),
        "sha256": lambda: hashlib.sha256(data).digest(),
    }
    return base64.b64encode(digests[algorithm]()).decode()


class SignatureError(Exception):
    """The S3 error code and what is wrong."""


class S3Server(ObjectServer):
    """Buckets over ObjectServer, path style or virtual-hosted below `localhost`."""

    def __init__(self, *args: object, page_count: int = 1000, **kwargs: object) -> None:
        self.keys = {"AKIDEXAMPLE": Key("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY")}
        self.buckets: dict[str, Bucket] = {"bucket": Bucket()}
        self.page_count = page_count
        self.wrong_region_status = 400
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]

    def put_key(self, key: str, body: bytes, bucket: str = "bucket") -> str:
        """Stores an object; its s3:// URL."""
        self.buckets[bucket].objects[key] = body
        return f"s3://{bucket}/{key}"

    def keep_checksum(self, key: str, algorithm: str, *, parts: int = 0) -> None:
        """Of an object in `bucket`; over the checksums of so many parts, or of all its bytes."""
        bucket = self.buckets["bucket"]
        value = checksum(algorithm, bucket.objects[key]) + (f"-{parts}" if parts else "")
        bucket.checksums[key] = {
            f"x-amz-checksum-{algorithm}": value,
            "x-amz-checksum-type": "COMPOSITE" if parts else "FULL_OBJECT",
        }

    def answer(self, request: Request) -> Answer:
        name, key = self._locate(request)
        bucket = self.buckets.get(name)
        if bucket is None:
            return s3_error(404, "NoSuchBucket", "The bucket does not exist")(request, Answer(404))
        try:
            self._check_access(request, bucket)
        except SignatureError as error:
            code, message = error.args
            wrong_region = code == "AuthorizationHeaderMalformed"
            http_status = self.wrong_region_status if wrong_region else 403
            fault = s3_error(http_status, code, message, x_amz_bucket_region=bucket.region)
            return fault(request, Answer(0))
        if not key and "list-type=2" in request.query:
            return self._list(name, bucket, dict(parse_qsl(request.query, keep_blank_values=True)))
        if key not in bucket.objects:
            return s3_error(404, "NoSuchKey", "The key does not exist")(request, Answer(404))
        self.objects[request.path] = bucket.objects[key]
        answer = super().answer(request)
        # None with a range: S3, MinIO and Ceph do so.
        if request.headers.get("x-amz-checksum-mode") == "ENABLED" and answer.status == 200:
            answer.headers |= bucket.checksums.get(key, {})
        return answer

    def _locate(self, request: Request) -> tuple[str, str]:
        host = request.headers["host"].rpartition(":")[0]
        if host.endswith(".localhost"):
            return host.removesuffix(".localhost"), request.path[1:]
        bucket, _, key = request.path[1:].partition("/")
        return bucket, key

    def _check_access(self, request: Request, bucket: Bucket) -> None:
        if bucket.requester_pays and request.headers.get("x-amz-request-payer") != "requester":
            raise SignatureError("AccessDenied", "requester pays")
        query = dict(parse_qsl(request.query, keep_blank_values=True))
        if "authorization" in request.headers:
            self._check_header(request, bucket)
        elif "X-Amz-Signature" in query:
            self._check_query(request, query, bucket)
        elif not bucket.public:
            raise SignatureError("AccessDenied", "anonymous")

    def _check_header(self, request: Request, bucket: Bucket) -> None:
        algorithm, _, rest = request.headers["authorization"].partition(" ")
        fields = dict(part.strip().split("=", 1) for part in rest.split(","))
        signed = fields["SignedHeaders"].split(";")
        unsigned = [h for h in request.headers if h.startswith("x-amz-") and h not in signed]
        if algorithm != "AWS4-HMAC-SHA256" or "host" not in signed or unsigned:
            raise SignatureError("AccessDenied", f"these must be signed: host, {unsigned}")
        if request.headers["x-amz-content-sha256"] not in (
            "UNSIGNED-PAYLOAD",
            hashlib.sha256(b"").hexdigest(),
        ):
            raise SignatureError("XAmzContentSHA256Mismatch", "of the empty body")
        identifier, key, region = self._scope(fields["Credential"], bucket)
        if request.headers.get("x-amz-security-token") != key.token:
            raise SignatureError("InvalidToken", "the session token is wrong")
        if key.expired:
            raise SignatureError("ExpiredToken", "The provided token has expired.")
        signer = S3SigV4Auth(Credentials(identifier, key.secret), "s3", region)
        expected = _sign(
            signer,
            request,
            _canonical_query(request.query),
            {name: request.headers[name] for name in signed},
            request.headers["x-amz-date"],
        )
        if expected != fields["Signature"]:
            raise SignatureError("SignatureDoesNotMatch", "The signature does not match")

    def _check_query(self, request: Request, query: dict[str, str], bucket: Bucket) -> None:
        identifier, key, region = self._scope(query["X-Amz-Credential"], bucket)
        rest = "&".join(
            part for part in request.query.split("&") if not part.startswith("X-Amz-Signature=")
        )
        signer = S3SigV4QueryAuth(Credentials(identifier, key.secret), "s3", region)
        headers = {"host": request.headers["host"]}
        date = query["X-Amz-Date"]
        if (
            _sign(signer, request, _canonical_query(rest), headers, date)
            != query["X-Amz-Signature"]
        ):
            raise SignatureError("SignatureDoesNotMatch", "The signature does not match")

    def _scope(self, credential: str, bucket: Bucket) -> tuple[str, Key, str]:
        identifier, _, region, service, _ = credential.split("/")
        if identifier not in self.keys:
            raise SignatureError("InvalidAccessKeyId", "no such key")
        if service != "s3" or region != bucket.region:
            raise SignatureError(
                "AuthorizationHeaderMalformed", f"the region is wrong; expecting '{bucket.region}'"
            )
        return identifier, self.keys[identifier], region

    def _list(self, name: str, bucket: Bucket, query: dict[str, str]) -> Answer:
        encode = quote if query.get("encoding-type") == "url" else escape
        keys = sorted(key for key in bucket.objects if key.startswith(query.get("prefix", "")))
        begin = int(query.get("continuation-token", "page 0").removeprefix("page "))
        page = keys[begin : begin + self.page_count]
        more = begin + self.page_count < len(keys)
        after = f"page {begin + self.page_count}" if more else ""
        contents = "".join(
            f"<Contents><Key>{encode(key)}</Key><LastModified>2024-05-06T07:08:09.000Z</LastModified>"
            f"<ETag>&quot;{hashlib.md5(bucket.objects[key]).hexdigest()}&quot;</ETag>"
            f"<Size>{len(bucket.objects[key])}</Size><StorageClass>STANDARD</StorageClass></Contents>"
            for key in page
        )
        body = (
            '<?xml version="1.0" encoding="UTF-8"?>'
            '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"{'<EncodingType>url</EncodingType>' if encode is quote else ''}"
            f"<Name>{name}</Name><KeyCount>{len(page)}</KeyCount>"
            f"<IsTruncated>{str(more).lower()}</IsTruncated>"
            f"<NextContinuationToken>{after}</NextContinuationToken>{contents}</ListBucketResult>"
        )
        return Answer(200, {"Content-Type": "application/xml"}, body.encode())


def _canonical_query(query: str) -> str:
    parts = [part.partition("=") for part in query.split("&") if part]
    pairs = [(quote(unquote(k), safe="-_.~"), quote(unquote(v), safe="-_.~")) for k, _, v in parts]
    return "&".join(f"{name}={value}" for name, value in sorted(pairs))


def _sign(
    signer: S3SigV4Auth, request: Request, query: str, headers: dict[str, str], date: str
) -> str:
    """botocore's signature of the request, with its path encoded as S3 encodes it."""
    path = quote(
        unquote(request.raw_path, errors="surrogateescape"), safe="/-_.~", errors="surrogateescape"
    )
    url = f"http://{request.headers['host']}{path}" + (f"?{query}" if query else "")
    signable = AWSRequest(request.method, url, headers=headers)
    signable.context["timestamp"] = date
    text = signer.string_to_sign(signable, signer.canonical_request(signable))
    return str(signer.signature(text, signable))

"""An S3 store that checks signatures with botocore's own signer."""

from __future__ import annotations

import base64
import functools
import hashlib
import zlib
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, quote, unquote
from xml.etree import ElementTree
from xml.sax.saxutils import escape

import crc32c
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
class Part:
    body: bytes
    etag: str
    checksum: str


@dataclass
class Upload:
    key: str
    checksums: bool  # asked for
    parts: dict[int, Part] = field(default_factory=dict)


@dataclass
class Bucket:
    region: str = "us-east-1"
    public: bool = False
    requester_pays: bool = False
    objects: dict[str, bytes] = field(default_factory=dict)
    checksums: dict[str, dict[str, str]] = field(default_factory=dict)  # headers by key
    etags: dict[str, str] = field(default_factory=dict)  # of uploads in parts
    uploads: dict[str, Upload] = field(default_factory=dict)  # under way, by id
    aborted: list[str] = field(default_factory=list)  # ids


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
        "crc32c": lambda: crc32c.crc32c(data).to_bytes(4, "big"),
        "crc64nvme": lambda: _crc(data, 64, 0x9A6C9329AC4BC9B5).to_bytes(8, "big"),
        "sha256": lambda: hashlib.sha256(data).digest(),
    }
    return base64.b64encode(digests[algorithm]()).decode()


class SignatureError(Exception):
    """The S3 error code and what is wrong."""


class S3Error(Exception):
    """Status, code and words."""


class S3Server(ObjectServer):
    """Buckets over ObjectServer, path style or virtual-hosted below `localhost`."""

    def __init__(self, *args: object, page_count: int = 1000, **kwargs: object) -> None:
        self.keys = {"AKIDEXAMPLE": Key("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY")}
        self.buckets: dict[str, Bucket] = {"bucket": Bucket()}
        self.page_count = page_count
        self.wrong_region_status = 400
        self.knows_checksums = True
        self.knows_whole_checksums = True  # of uploads in parts
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
        if request.method in ("PUT", "POST", "DELETE"):
            try:
                return self._change(request, bucket, key)
            except S3Error as error:
                return s3_error(*error.args)(request, Answer(0))
        if key not in bucket.objects:
            return s3_error(404, "NoSuchKey", "The key does not exist")(request, Answer(404))
        self.objects[request.path] = bucket.objects[key]
        if key in bucket.etags:
            self.etags[request.path] = bucket.etags[key]
        answer = super().answer(request)
        # None with a range: S3, MinIO and Ceph do so.
        if request.headers.get("x-amz-checksum-mode") == "ENABLED" and answer.status == 200:
            answer.headers |= bucket.checksums.get(key, {})
        return answer

    def names(self, request: Request) -> list[str]:
        """Its path; before that what is done there: "PUT", "begin", "part 3", "end", "abort"."""
        query = dict(parse_qsl(request.query, keep_blank_values=True))
        if "partNumber" in query:
            return [f"part {query['partNumber']}", "part", request.path]
        verbs = {"POST": "end" if "uploadId" in query else "begin", "DELETE": "abort"}
        return [verbs.get(request.method, request.method), request.path]

    def _change(self, request: Request, bucket: Bucket, key: str) -> Answer:
        query = dict(parse_qsl(request.query, keep_blank_values=True))
        sums = [h for h in request.headers if h.startswith("x-amz-checksum-")]
        if sums and not self.knows_checksums:
            raise S3Error(501, "NotImplemented", f"Header '{sums[0]}' not implemented (checksum)")
        if "uploads" in query:
            return self._begin(request, bucket, key)
        if "uploadId" in query:
            upload = bucket.uploads.get(query["uploadId"])
            if upload is None or upload.key != key:
                raise S3Error(404, "NoSuchUpload", "The specified upload does not exist")
            if request.method == "PUT":
                return self._put_part(request, upload, int(query["partNumber"]))
            if request.method == "DELETE":
                bucket.aborted.append(query["uploadId"])
                del bucket.uploads[query["uploadId"]]
                return Answer(204)
            return self._end(request, bucket, query["uploadId"])
        self._check_condition(request, bucket, key)
        headers = self._check_body(request)
        self._store(bucket, key, request.body, headers)
        return Answer(200, headers | {"ETag": f'"{hashlib.md5(request.body).hexdigest()}"'})

    def _store(self, bucket: Bucket, key: str, body: bytes, checksums: dict[str, str]) -> None:
        bucket.objects[key] = body
        bucket.checksums[key] = checksums
        bucket.etags.pop(key, None)
        for path in (f"/bucket/{key}", f"/{key}"):
            self.etags.pop(path, None)

    def _check_condition(self, request: Request, bucket: Bucket, key: str) -> None:
        if request.headers.get("if-none-match") == "*" and key in bucket.objects:
            raise S3Error(412, "PreconditionFailed", "At least one of the pre-conditions failed")

    def _check_body(self, request: Request) -> dict[str, str]:
        """Of what is sent; the headers that tell its checksum."""
        found = request.headers.get("x-amz-checksum-crc32c")
        if found is None:
            return {}
        if found != checksum("crc32c", request.body):
            raise S3Error(400, "BadDigest", "The CRC32C you specified did not match")
        return {"x-amz-checksum-crc32c": found, "x-amz-checksum-type": "FULL_OBJECT"}

    def _begin(self, request: Request, bucket: Bucket, key: str) -> Answer:
        identifier = f"upload +/={len(bucket.uploads) + len(bucket.aborted)}"
        asked = request.headers.get("x-amz-checksum-algorithm") == "CRC32C"
        bucket.uploads[identifier] = Upload(key, asked)
        headers = {"Content-Type": "application/xml"}
        if asked:
            kind = "FULL_OBJECT" if self.knows_whole_checksums else "COMPOSITE"
            headers |= {"x-amz-checksum-algorithm": "CRC32C", "x-amz-checksum-type": kind}
        return Answer(
            200,
            headers,
            '<?xml version="1.0" encoding="UTF-8"?><InitiateMultipartUploadResult '
            'xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<UploadId>{identifier}</UploadId></InitiateMultipartUploadResult>".encode(),
        )

    def _put_part(self, request: Request, upload: Upload, number: int) -> Answer:
        if not 1 <= number <= 10_000:
            raise S3Error(400, "InvalidArgument", "Part number must be 1 to 10000")
        headers = self._check_body(request)
        etag = f'"{hashlib.md5(request.body).hexdigest()}"'
        value = headers.get("x-amz-checksum-crc32c", "")
        upload.parts[number] = Part(request.body, etag, value)
        return Answer(200, {"ETag": etag, "x-amz-checksum-crc32c": value})

    def _end(self, request: Request, bucket: Bucket, identifier: str) -> Answer:
        upload = bucket.uploads[identifier]
        named = [
            {child.tag.rpartition("}")[2]: child.text or "" for child in part}
            for part in ElementTree.fromstring(request.body)
        ]
        numbers = [int(part["PartNumber"]) for part in named]
        if numbers != sorted(set(numbers)) or not numbers:
            raise S3Error(400, "InvalidPartOrder", "The parts are not in order")
        parts = []
        for part in named:
            found = upload.parts.get(int(part["PartNumber"]))
            if found is None or found.etag != part["ETag"]:
                raise S3Error(400, "InvalidPart", "A part is not there")
            if upload.checksums and part.get("ChecksumCRC32C") != found.checksum:
                raise S3Error(400, "InvalidRequest", "The checksum of a part is missing")
            parts.append(found)
        if any(len(part.body) < 5 << 20 for part in parts[:-1]):
            raise S3Error(400, "EntityTooSmall", "A part is too small")
        body = b"".join(part.body for part in parts)
        told = request.headers.get("x-amz-checksum-crc32c")
        if told is not None and told != checksum("crc32c", body):
            raise S3Error(400, "BadDigest", "The CRC32C you specified did not match")
        self._check_condition(request, bucket, upload.key)
        kept = {}
        if upload.checksums and self.knows_whole_checksums:
            kept = {
                "x-amz-checksum-crc32c": checksum("crc32c", body),
                "x-amz-checksum-type": "FULL_OBJECT",
            }
        self._store(bucket, upload.key, body, kept)
        digests = b"".join(bytes.fromhex(part.etag.strip('"')) for part in parts)
        etag = f'"{hashlib.md5(digests).hexdigest()}-{len(parts)}"'
        bucket.etags[upload.key] = etag
        del bucket.uploads[identifier]
        kind = "CompleteMultipartUploadResult"
        text = f"<{kind}><ETag>{escape(etag)}</ETag></{kind}>"
        return Answer(200, {"Content-Type": "application/xml"}, text.encode())

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
        payload_hash = request.headers["x-amz-content-sha256"]
        if payload_hash not in (
            "UNSIGNED-PAYLOAD",
            payload_hash == "UNSIGNED-PAYLOAD" or hashlib.sha256(request.body).hexdigest(),
        ):
            raise SignatureError("XAmzContentSHA256Mismatch", "of the body")
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

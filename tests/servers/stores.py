"""S3 servers that differ from AWS as MinIO, Ceph's gateway, R2, Google's and Swift do, where a
reader meets it: tags, regions, errors, listings."""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import quote, quote_plus
from xml.sax.saxutils import escape

from .http import Answer, Request
from .s3 import Bucket, S3Server

AWS_NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
DECLARATION = '<?xml version="1.0" encoding="UTF-8"?>\n'


def md5_tag(body: bytes) -> str:
    return f'"{hashlib.md5(body).hexdigest()}"'


def multipart_tag(body: bytes) -> str:
    return f'"{hashlib.md5(body).hexdigest()}-3"'


@dataclass(frozen=True)
class Dialect:
    region: str = "us-east-1"
    tag: Callable[[bytes], str] = md5_tag
    namespace: str = AWS_NAMESPACE
    declaration: str = DECLARATION
    encodes_keys: bool = True
    encode: Callable[[str], str] = quote  # keys, where that is asked for
    counts_keys: bool = True
    quotes_listed_tags: bool = True
    entry: str = ""  # what else an entry of a listing has
    headers: tuple[tuple[str, str], ...] = ()
    names_region: bool = False  # in a header
    error: str = "<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    token: Callable[[str], str] = lambda key: key  # after this key


def _opaque(key: str) -> str:
    return base64.b64encode(f"+/{key}?&".encode()).decode()


DIALECTS = {
    "minio": Dialect(
        tag=multipart_tag,
        encode=functools.partial(quote_plus, safe="/"),
        names_region=True,
        headers=(("Server", "MinIO"), ("Vary", "Origin"), ("X-Amz-Request-Id", "17C0A1")),
        error="<Error><Code>{code}</Code><Message>{message}</Message><Key>{key}</Key>"
        "<BucketName>{bucket}</BucketName><Resource>/{bucket}/{key}</Resource>"
        "<Region>{region}</Region><RequestId>17C0A1</RequestId><HostId>dd9025</HostId></Error>",
        token=lambda key: f"{key}[minio_cache:v2,return:]",
    ),
    "ceph": Dialect(
        region="default",
        encode=functools.partial(quote, safe=""),
        headers=(("x-rgw-object-type", "Normal"), ("x-amz-request-id", "tx00000a")),
        error="<Error><Code>{code}</Code><Message></Message><BucketName>{bucket}</BucketName>"
        "<RequestId>tx00000a-default</RequestId><HostId>10-default-default</HostId></Error>",
        entry="<Owner><ID>reader</ID><DisplayName>Reader</DisplayName></Owner><Type>Normal</Type>",
    ),
    "r2": Dialect(
        region="auto",
        tag=multipart_tag,
        headers=(("Server", "cloudflare"), ("CF-RAY", "8d78d775ceb88873-LHR"), ("Vary", "Origin")),
        counts_keys=False,
        token=_opaque,
    ),
    "google": Dialect(
        region="auto",
        namespace="http://doc.s3.amazonaws.com/2006-03-01",
        declaration="<?xml version='1.0' encoding='UTF-8'?>",
        encodes_keys=False,
        headers=(
            ("x-goog-generation", "1715151515"),
            ("x-goog-hash", "crc32c=AAAAAA=="),
            ("x-goog-stored-content-encoding", "identity"),
            ("Server", "UploadServer"),
        ),
        error="<Error><Code>{code}</Code><Message>{message}</Message>"
        "<Details>No such object: {bucket}/{key}</Details></Error>",
        entry="<Generation>1715151515</Generation><MetaGeneration>1</MetaGeneration>",
        token=_opaque,
    ),
    "swift": Dialect(
        region="RegionOne",
        headers=(("X-Trans-Id", "tx00000b"), ("X-Openstack-Request-Id", "tx00000b")),
        error="<Error><Code>{code}</Code><Message>{message}</Message>"
        "<RequestId>tx00000b</RequestId></Error>",
        token=_opaque,
    ),
    "unquoted": Dialect(
        tag=lambda body: hashlib.md5(body).hexdigest(),
        namespace="",
        declaration="",
        encodes_keys=False,
        counts_keys=False,
        quotes_listed_tags=False,
    ),
    "weak": Dialect(tag=lambda body: "W/" + md5_tag(body), namespace="", token=_opaque),
}


class StoreServer(S3Server):
    """One bucket, `bucket`, of a store that speaks `dialect`; signatures are checked."""

    def __init__(self, dialect: Dialect, page_count: int = 2) -> None:
        super().__init__(page_count=page_count)
        self.dialect = dialect
        self.buckets = {"bucket": Bucket(region=dialect.region)}

    def put_key(self, key: str, body: bytes, bucket: str = "bucket") -> str:
        self.etags[f"/{bucket}/{key}"] = self.dialect.tag(body)
        return super().put_key(key, body, bucket)

    def answer(self, request: Request) -> Answer:
        answer = super().answer(request)
        answer.headers.pop("x-amz-bucket-region", None)
        answer.headers |= dict(self.dialect.headers)
        if self.dialect.names_region:
            answer.headers["x-amz-bucket-region"] = self.dialect.region
        found = re.search(rb"<Code>(.*)</Code><Message>(.*)</Message>", answer.body)
        if answer.status >= 400 and found:
            bucket, _, key = request.path[1:].partition("/")
            code, message = (group.decode() for group in found.groups())
            fields = {"code": code, "message": escape(message), "key": escape(key)}
            text = self.dialect.error.format(**fields, bucket=bucket, region=self.dialect.region)
            answer.body = (self.dialect.declaration + text).encode()
        return answer

    def _list(self, name: str, bucket: Bucket, query: dict[str, str]) -> Answer:
        dialect = self.dialect
        is_encoded = dialect.encodes_keys and query.get("encoding-type") == "url"
        keys = sorted(key for key in bucket.objects if key.startswith(query.get("prefix", "")))
        after = query.get("continuation-token")
        begin = next((i + 1 for i, key in enumerate(keys) if dialect.token(key) == after), 0)
        assert (begin > 0) == (after is not None), "a token that was never handed out"
        page = keys[begin : begin + self.page_count]
        is_cut = begin + self.page_count < len(keys)
        parts = [f"<Name>{name}</Name><Prefix>{escape(query.get('prefix', ''))}</Prefix>"]
        if is_encoded:
            parts.append("<EncodingType>url</EncodingType>")
        if dialect.counts_keys:
            parts.append(f"<KeyCount>{len(page)}</KeyCount>")
        parts.append(f"<IsTruncated>{str(is_cut).lower()}</IsTruncated>")
        if is_cut:
            token = escape(dialect.token(page[-1]))
            parts.append(f"<NextContinuationToken>{token}</NextContinuationToken>")
        parts += [self._entry(key, bucket.objects[key], is_encoded) for key in page]
        space = f' xmlns="{dialect.namespace}"' if dialect.namespace else ""
        body = f"{dialect.declaration}<ListBucketResult{space}>{''.join(parts)}</ListBucketResult>"
        return Answer(200, {"Content-Type": "application/xml"}, body.encode())

    def _entry(self, key: str, body: bytes, is_encoded: bool) -> str:
        shown = self.dialect.encode(key) if is_encoded else escape(key)
        tag = self.dialect.tag(body)
        if not self.dialect.quotes_listed_tags:
            tag = tag.strip('"')
        return (
            f"<Contents><Key>{shown}</Key>{self.dialect.entry}"
            "<LastModified>2024-05-06T07:08:09.000Z</LastModified>"
            f"<ETag>{escape(tag)}</ETag><Size>{len(body)}</Size></Contents>"
        )

"""The exceptions of torchnpy. Each is made from one message, so it survives a worker process."""


class FormatError(ValueError):
    """The bytes break the format's specification, or a size they declare exceeds a limit."""


class UnsupportedError(NotImplementedError, ValueError):
    """The data is valid but refused: object arrays, text, a feature that the source lacks."""


class TransportError(OSError):
    """An object could not be read or written: the message has its name, status and attempts."""


class ObjectNotFoundError(TransportError, FileNotFoundError):
    """There is no such object: HTTP 404, or no such file."""


class AccessDeniedError(TransportError, PermissionError):
    """The object may not be read: HTTP 401 or 403, no credentials, or a file's permissions."""


class TransportTimeoutError(TransportError, TimeoutError):
    """No connection, or no bytes, in the time allowed."""


class ObjectExistsError(TransportError, FileExistsError):
    """There is an object, or a file, where ``if_none_match`` allows none."""


class LockError(OSError):
    """Another writer holds the file."""

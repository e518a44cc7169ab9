"""The frame of the commands: options of the client, errors as lines, exit statuses."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import click

from torchnpy import doctor
from torchnpy.cli import plain
from torchnpy.cli.output import print_error, printable
from torchnpy.client import Client
from torchnpy.errors import TransportError

_FAILED, _WRONG_USAGE, _INTERRUPTED, _PIPE_CLOSED = 1, 2, 130, 141

_CLIENT_OPTIONS: list[tuple[tuple[str, ...], dict[str, Any]]] = [
    (("--endpoint",), {"metavar": "URL", "help": "The S3 service (MinIO, Ceph, R2...)."}),
    (("--region",), {"help": "The region to begin with."}),
    (("--profile",), {"help": "Section of ~/.aws/config and ~/.aws/credentials."}),
    (("--anonymous",), {"is_flag": True, "help": "Do not sign requests."}),
    (("--addressing",), {"type": click.Choice(["auto", "path", "virtual"])}),
    (("--requester-pays",), {"is_flag": True, "help": "Accept that the requester is charged."}),
    (("--header",), {"multiple": True, "metavar": "NAME:VALUE", "help": "Sent with each request."}),
    (("--ca-bundle",), {"metavar": "FILE", "help": "Certificates to trust."}),
    (("--no-verify-tls",), {"is_flag": True, "help": "Accept any certificate."}),
    (("--proxy",), {"metavar": "URL"}),
    (("--http2",), {"is_flag": True, "help": "Use HTTP/2 where the server has it."}),
    (("--checksums",), {"is_flag": True, "help": "Compare with the checksums that S3 keeps."}),
    (("--max-in-flight",), {"type": int, "metavar": "N", "help": "Requests at once (64)."}),
    (("--retries",), {"type": int, "metavar": "N", "help": "Attempts in all (10)."}),
    (("--retry-timeout",), {"type": float, "metavar": "SECONDS"}),
    (("--deadline",), {"type": float, "metavar": "SECONDS", "help": "For one read or write."}),
    (("--verbose", "-v"), {"is_flag": True, "help": "Tell each request on stderr."}),
    (("--debug",), {"is_flag": True, "help": "Show the traceback of an error."}),
]

# Options of torchnpy.Client that are not called as it calls them.
_SECONDS = {"retry_timeout": "retry_timeout_s", "deadline": "deadline_s"}


def _shared_options(*, hidden: bool) -> list[click.Parameter]:
    # No default: what is given to the command counts before what is given to `torchnpy`.
    return [
        click.Option(names, **{"default": None, "hidden": hidden, "expose_value": True, **settings})
        for names, settings in _CLIENT_OPTIONS
    ]


_SHARED_NAMES = [str(option.name) for option in _shared_options(hidden=True)]


class Reported(Exception):
    """Something failed, and stderr has it already."""


class Session:
    """What the commands share: the client, and how failures are told."""

    def __init__(self) -> None:
        self.options: dict[str, Any] = {}
        self.failed = False

    @property
    def debug(self) -> bool:
        return bool(self.options.get("debug"))

    @cached_property
    def client(self) -> Client:
        """Raises click.UsageError for an option that is wrong."""
        options = dict(self.options)
        options.pop("debug", None)
        options.pop("verbose", None)
        if options.pop("anonymous", False):
            options["credentials"] = "anonymous"
        if options.pop("no_verify_tls", False):
            options["verify_tls"] = False
        if headers := options.pop("header", ()):
            options["headers"] = dict(_parse_header(header) for header in headers)
        try:
            return Client(**{_SECONDS.get(name, name): item for name, item in options.items()})
        except ValueError as error:
            raise click.UsageError(str(error)) from error

    def add_options(self, parameters: dict[str, Any]) -> None:
        """Takes its own out of a command's parameters."""
        given = {name: parameters.pop(name) for name in _SHARED_NAMES if name in parameters}
        self.options |= {name: value for name, value in given.items() if value not in (None, ())}

    def fail(self, error: Exception) -> None:
        """Tells what failed; the command goes on, and will end with status 1."""
        self.failed = True
        if self.debug:
            # No traceback of ours: values in it may be names of objects.
            sys.stderr.write("".join(map(_printable_lines, traceback.format_exception(error))))
        print_error(describe(error))

    @contextlib.contextmanager
    def reporting(self) -> Iterator[None]:
        """What fails inside is told, and does not end the command."""
        try:
            yield
        except Exception as error:
            if is_for_the_frame(error):
                raise
            self.fail(error)

    def finish(self) -> None:
        """Raises when something failed before."""
        if self.failed:
            raise Reported


def is_for_the_frame(error: Exception) -> bool:
    """Not about an object: wrong usage, nobody reads what is printed, or all is told."""
    kinds = (click.ClickException, click.exceptions.Exit, Reported, BrokenPipeError)
    return isinstance(error, kinds) and not isinstance(error, TransportError)


def describe(error: Exception) -> str:
    """Why, in a line."""
    if isinstance(error, KeyError) and error.args:
        return str(error.args[0])
    if isinstance(error, MemoryError) and not str(error):
        return "not enough memory"
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        name = os.fsdecode(error.filename) if isinstance(error.filename, bytes) else error.filename
        return f"{name}: {error.strerror}"
    if isinstance(error, (OSError, ValueError)):
        return str(error)
    return f"{type(error).__name__}: {error}"


def _printable_lines(text: str) -> str:
    return "".join(printable(line) + "\n" for line in text.splitlines())


def _parse_header(header: str) -> tuple[str, str]:
    name, colon, value = header.partition(":")
    if not colon or not name.strip():
        raise click.UsageError("--header: expected NAME:VALUE but found no colon or no name")
    return name.strip(), value.strip()


class Command(click.Command):
    """A command that takes the client's options too."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params = [*self.params, *_shared_options(hidden=True)]

    def invoke(self, context: click.Context) -> Any:
        session: Session = context.obj
        session.add_options(context.params)
        with _logged(bool(session.options.get("verbose"))):
            result = super().invoke(context)
        session.finish()
        return result


class _Group(click.Group):
    command_class = Command

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params = [*self.params, *_shared_options(hidden=False)]

    def invoke(self, context: click.Context) -> Any:
        context.obj.add_options(context.params)
        return super().invoke(context)


class _LogLines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        print_error(record.getMessage())


@contextlib.contextmanager
def _logged(verbose: bool) -> Iterator[None]:
    """The library's warnings, and with ``verbose`` its requests, are lines on stderr."""
    logger, handler = logging.getLogger("torchnpy"), _LogLines()
    level = logger.level
    logger.addHandler(handler)
    if verbose:
        logger.setLevel(logging.DEBUG)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: print_error(str(message))
            yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def _plain_option(name: str, answer: Callable[[], int], help: str) -> Callable[..., Any]:
    """An option that is answered instead of a command."""

    def callback(context: click.Context, _: click.Parameter, wanted: bool) -> None:
        if wanted:
            context.exit(answer())

    settings: dict[str, Any] = {"is_flag": True, "is_eager": True, "expose_value": False}
    return click.option(name, callback=callback, help=help, **settings)


@click.group(cls=_Group, context_settings={"help_option_names": ["--help", "-h"]})
@_plain_option("--version", plain.print_version, "Print the version; with --verbose: as doctor.")
@_plain_option("--cmake-prefix", plain.print_cmake_prefix, "Print what CMAKE_PREFIX_PATH takes.")
def app() -> None:
    """NumPy files on disk, HTTP and S3.

    Names are paths, file://, http(s):// and s3://bucket/key. A name with --recursive, or one that
    ends in a slash, is a folder or a prefix. The options below may also stand behind the command.
    """


command: Callable[..., Callable[[Callable[..., Any]], click.Command]] = app.command


@app.command("doctor", cls=click.Command, short_help="Tell what a bug report needs, and advice.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def _doctor(context: click.Context, as_json: bool) -> None:
    """Tell what a bug report needs to know about this installation, and advice."""
    if ignored := context.obj.options.keys() - {"debug", "verbose"}:
        raise click.UsageError(
            f"expected no options of the client but found {', '.join(sorted(ignored))}; set the "
            "variables of the environment"
        )
    context.exit(doctor.main(["--json"] if as_json else []))


def run(arguments: Sequence[str]) -> int:
    """The exit status of the command."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError):  # it is something simpler
            # Names need not be of the terminal's encoding.
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    session = Session()
    try:
        with app.make_context("torchnpy", list(arguments), obj=session) as context:
            app.invoke(context)
        if sys.stdout is not None:  # as it is when the shell closed it
            sys.stdout.flush()
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        return _WRONG_USAGE
    except click.UsageError as error:
        return _tell_usage(error)
    except Reported:
        return _FAILED
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError as error:
        if isinstance(error, TransportError):
            session.fail(error)
            return _FAILED
        _forget_stdout()
        return _PIPE_CLOSED
    except Exception as error:
        session.fail(error)
        return _FAILED
    return 0


def _tell_usage(error: click.UsageError) -> int:
    path = error.ctx.command_path if error.ctx else "torchnpy"
    message = error.format_message().rstrip(".")
    sys.stderr.write(f"{path}: {printable(message)}; see {path} --help\n")
    return _WRONG_USAGE


def _forget_stdout() -> None:
    """What is still in its buffer goes nowhere, so that the interpreter's end is quiet."""
    with contextlib.suppress(Exception):
        stdout = sys.__stdout__
        if stdout is not None and sys.stdout is stdout:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stdout.fileno())
            os.close(null)

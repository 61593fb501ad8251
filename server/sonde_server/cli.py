"""The `sonde-server` command."""

import argparse
import importlib.util
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

from .config import SettingError, Settings
from .errors import UnsupportedModel
from .serving.certificates import CertificateError
from .serving.logs import configure
from .serving.tokens import TokenFileError, make_token

NEEDED = ("torch", "transformers", "grpc_health", "grpc_reflection", "prometheus_client")


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT, then let calls in progress finish. Returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    other = {"token": _token, "ray": _ray}.get(given[0]) if given else None
    if other is not None:
        return other(given[1:])
    try:
        settings = Settings.from_environment_and_flags(given)
    except SettingError as error:
        return _fail(str(error), code=2)
    if any(importlib.util.find_spec(name) is None for name in NEEDED):
        return _fail("needs its extra: pip install 'sonde[server]'", separator=" ")
    if settings.telemetry and importlib.util.find_spec("opentelemetry") is None:
        return _fail("--telemetry needs its extra: pip install 'sonde[server,telemetry]'")
    configure(settings.log_format)
    try:
        return _serve(settings)
    except (OSError, UnsupportedModel, TokenFileError, CertificateError) as error:
        return _fail(" ".join(str(error).split()))


# The grace period if the model no longer runs.
FAILED_GRACE = 5.0
# After the grace period, the time for the current batch to notice that nobody waits for it.
OVERTIME_SECONDS = 10.0


class _Interrupted(BaseException):
    """A signal arrived while the model was loading."""


def _serve(settings: Settings) -> int:
    from .serving.server import Server
    from .sharing.scheduler import leave_the_cores_to_the_model

    stopping = threading.Event()
    loading = True

    def stop(_number: int, _frame: FrameType | None) -> None:
        # A second signal ends the process at once.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        stopping.set()
        if loading:
            raise _Interrupted

    def reload(_number: int, _frame: FrameType | None) -> None:
        server.reload()

    server = Server(settings, on_failure=stopping.set)
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGHUP, reload)
    try:
        server.start()
        loading = False
    except _Interrupted:
        server.stop(0)
        # The model's thread is still loading, and the interpreter cannot shut down cleanly while it computes.
        _exit(0)
    leave_the_cores_to_the_model()
    stopping.wait()
    code, grace = (1, min(settings.grace, FAILED_GRACE)) if server.failed else (0, settings.grace)
    logging.getLogger(__name__).info("stopping: calls in progress have %g seconds", grace)
    # Do not wait for ever for work that does not stop, such as a pass that cannot be interrupted.
    overdue = threading.Timer(grace + OVERTIME_SECONDS, _give_up, (code,))
    overdue.daemon = True
    overdue.start()
    server.stop(grace)
    overdue.cancel()
    return code


def _give_up(code: int) -> None:
    logging.getLogger(__name__).warning("calls in progress did not end in time; exiting")
    _exit(code)


def _exit(code: int) -> NoReturn:
    logging.shutdown()
    os._exit(code)


def _ray(arguments: Sequence[str]) -> int:
    """Serve replicas on Ray until SIGTERM or SIGINT."""
    if any(importlib.util.find_spec(name) is None for name in (*NEEDED, "ray")):
        return _fail("ray needs its extras: pip install 'sonde[server,ray]'", separator=" ")
    from .ray.deploying import run
    from .ray.settings import RaySettings

    try:
        settings = RaySettings.from_environment_and_flags(arguments)
    except SettingError as error:
        return _fail(str(error), code=2)
    configure(settings.log_format)
    try:
        return run(settings)
    except (OSError, RuntimeError) as error:
        return _fail(str(error))


def _token(arguments: Sequence[str]) -> int:
    """Make a token. Prints its line for the file on standard output, and the token on standard error."""
    parser = argparse.ArgumentParser(
        prog="sonde-server token",
        description="Make a bearer token. Prints the line for the file of --tokens on standard output, and the token "
        "itself, which is not stored anywhere, on standard error.",
    )
    parser.add_argument("name", metavar="NAME", help="name of the owner, for logs and metrics")
    try:
        token, line = make_token(parser.parse_args(arguments).name)
    except TokenFileError as error:
        return _fail(str(error), code=2)
    print(line)
    print(token, file=sys.stderr)
    return 0


def _fail(text: str, code: int = 1, separator: str = ": ") -> int:
    print(f"sonde-server{separator}{text}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())

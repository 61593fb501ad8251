"""The `sonde-server` command."""

import importlib.util
import logging
import signal
import sys
import threading
from collections.abc import Sequence
from types import FrameType

from .config import SettingError, Settings
from .errors import UnsupportedModel

NEEDED = ("torch", "transformers", "grpc_health", "grpc_reflection")


def main(arguments: Sequence[str] | None = None) -> int:
    """Serves until SIGTERM or SIGINT, then lets calls in progress finish. Returns the exit code."""
    try:
        settings = Settings.from_environment_and_flags(sys.argv[1:] if arguments is None else arguments)
    except SettingError as error:
        return _fail(str(error), code=2)
    if any(importlib.util.find_spec(name) is None for name in NEEDED):
        return _fail("needs its extra: pip install 'sonde[server]'", separator=" ")
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    # Libraries speak up only when something is wrong.
    for name in ("httpx", "huggingface_hub", "transformers"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        return _serve(settings)
    except (OSError, UnsupportedModel) as error:
        return _fail(" ".join(str(error).split()))


class _Interrupted(BaseException):
    """A signal came while the model was loading."""


def _serve(settings: Settings) -> int:
    from .app import Server

    stopping = threading.Event()
    loading = True

    def stop(_number: int, _frame: FrameType | None) -> None:
        # A second signal does not wait.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        stopping.set()
        if loading:
            raise _Interrupted

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    server = Server(settings)
    try:
        server.start()
        loading = False
    except _Interrupted:
        server.stop(0)
        return 0
    stopping.wait()
    logging.getLogger(__name__).info("stopping: calls in progress have %g seconds", settings.grace)
    server.stop()
    return 0


def _fail(text: str, code: int = 1, separator: str = ": ") -> int:
    print(f"sonde-server{separator}{text}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())

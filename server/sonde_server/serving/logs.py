"""Log lines, for people or as JSON, on standard error; and a line for every call."""

import json
import logging
import sys
import time
from typing import Final

import grpc

from .guards.calls import Call, current_call

_log = logging.getLogger(__name__)
# Libraries speak up only when something is wrong.
_QUIET: Final = ("httpx", "huggingface_hub", "transformers", "opentelemetry")
_INSPECTION: Final = ("Trace", "Intervene")


class JsonFormatter(logging.Formatter):
    """One JSON object a line; what is known of the call under way stands in every line of it."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, object] = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        call = current_call()
        if call is not None:
            line |= {"request_id": call.id, "caller": call.caller, "method": call.name}
            if call.trace_id:
                line["trace_id"] = call.trace_id
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure(log_format: str) -> None:
    """Sends the log to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else logging.Formatter("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


class CallLog:
    """A line for every call that asks the model; the others only at level debug."""

    def began(self, call: Call) -> None:
        """Says nothing yet."""

    def ended(self, call: Call, code: grpc.StatusCode, seconds: float) -> None:
        """Says how it ended."""
        level = logging.INFO if call.name in _INSPECTION else logging.DEBUG
        # Names can come from certificates: what would break the line is written as an escape.
        caller = call.caller.encode("unicode_escape").decode() or "-"
        fields = {"code": code.name, "seconds": round(seconds, 6), "runs": call.runs, "caller": call.caller}
        message = "%s %s %s by %s in %.3f s, %d runs"
        _log.log(level, message, call.id, call.name, code.name, caller, seconds, call.runs, extra={"fields": fields})

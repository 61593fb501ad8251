"""Writes the log to standard error, as text or as JSON, with a line for every call."""

import json
import logging
import sys
import time
from typing import Final

import grpc

from .guards.calls import Call, current_call

_log = logging.getLogger(__name__)
# These libraries log warnings and errors only.
_QUIET: Final = ("httpx", "huggingface_hub", "transformers", "opentelemetry")
_INSPECTION: Final = ("Trace", "Intervene")


class JsonFormatter(logging.Formatter):
    """One JSON object per line. Lines that belong to a call have its id, caller and method."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
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
    """Send the log to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else logging.Formatter("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


class CallLog:
    """Logs every Trace and Intervene at level info, all other calls at level debug."""

    def began(self, call: Call) -> None:
        """Do nothing: the line is written at the end."""

    def ended(self, call: Call, code: grpc.StatusCode, seconds: float) -> None:
        """Log how the call ended."""
        level = logging.INFO if call.name in _INSPECTION else logging.DEBUG
        # Names can come from certificates: escape what would break the line.
        caller = call.caller.encode("unicode_escape").decode() or "-"
        fields = {"code": code.name, "seconds": round(seconds, 6), "runs": call.runs, "caller": call.caller}
        message = "%s %s %s by %s in %.3f s, %d runs"
        _log.log(level, message, call.id, call.name, code.name, caller, seconds, call.runs, extra={"fields": fields})

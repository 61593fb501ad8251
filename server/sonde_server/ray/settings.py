"""The settings of a deployment: those of a server, and those of its replicas."""

from dataclasses import dataclass
from typing import ClassVar

from ..config import SettingError, Settings, setting

UNUSED = ("tls_cert", "tls_key", "tls_client_ca", "health_port", "max_connection_age")
"""Settings of a server that Ray's proxies do not support."""


@dataclass(frozen=True, slots=True)
class RaySettings(Settings):
    """The settings. Each field is a flag of `sonde-server ray` and a variable, as those of a server."""

    COMMAND: ClassVar[str] = "sonde-server ray"
    DESCRIPTION: ClassVar[str] = (
        "Serve replicas of a model behind the gRPC proxies of Ray Serve: on the cluster that RAY_ADDRESS names, else "
        "on this machine."
    )
    EPILOG: ClassVar[str] = (
        "Every setting is also an environment variable; flags take precedence. Ray's proxies listen on all interfaces "
        "of their machines, at --port, without encryption. --host is the address for metrics. Limits apply to each "
        "replica."
    )

    application: str = setting(
        "sonde", "name of the application in Ray; if there are several, callers name one in the metadata"
    )
    replicas: int = setting(
        1, "number of replicas, each with the whole model; with --max-replicas, the minimum", least=1
    )
    max_replicas: int | None = setting(
        None, "maximum number of replicas, for autoscaling; none means always --replicas", kind=int, least=1
    )
    gpus_per_replica: float | None = setting(
        None, "GPUs of each replica; none means 1 if the cluster has any and --device is not cpu", kind=float, least=0
    )
    cpus_per_replica: float = setting(1.0, "CPUs that Ray reserves for each replica", least=0)
    target_requests: float = setting(8.0, "autoscaling: requests in progress per replica to aim for", least=0.1)
    target_queued_runs: int = setting(5_000, "autoscaling: queued runs per replica to aim for", least=1)
    upscale_delay: float = setting(30.0, "autoscaling: seconds of higher load before replicas are added", least=0)
    downscale_delay: float = setting(600.0, "autoscaling: seconds of lower load before replicas are removed", least=0)

    def _check_access(self) -> None:
        for name in UNUSED:
            if getattr(self, name) is not None:
                flag = "--" + name.replace("_", "-")
                raise SettingError(f"{flag}: not supported by Ray's proxies; see docs/guides/ray.md")
        if self.tokens is None and not self.insecure:
            raise SettingError(
                "--tokens: Ray's proxies can be reached from other machines, and anybody could use the model; set a "
                "token file that every replica can read, or --insecure to allow that"
            )
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise SettingError(
                f"--max-replicas: expected at least --replicas ({self.replicas}), got {self.max_replicas}"
            )
        if self.device_map is not None and self.device != "auto":
            raise SettingError(
                f"--device: cannot be combined with --device-map, got {self.device!r}; leave out one of them"
            )

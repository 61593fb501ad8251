"""The settings of a deployment: those of a server, and how many of it."""

from dataclasses import dataclass
from typing import ClassVar

from ..config import SettingError, Settings, setting

UNUSED = ("tls_cert", "tls_key", "tls_client_ca", "health_port", "max_connection_age")
"""Settings of a server that has the way to its callers in its own hands."""


@dataclass(frozen=True, slots=True)
class RaySettings(Settings):
    """How replicas are run. Each field is a flag of `sonde-server ray` and a variable, as those of a server are."""

    COMMAND: ClassVar[str] = "sonde-server ray"
    DESCRIPTION: ClassVar[str] = (
        "Serves replicas of a model behind the gRPC proxies of Ray Serve: on the cluster that RAY_ADDRESS names, else "
        "on this machine."
    )
    EPILOG: ClassVar[str] = (
        "Every setting is also an environment variable; a flag goes before it. Ray's proxies listen on every interface "
        "of their machines, at --port, and do not encrypt. --host is where metrics are answered. Limits are those of "
        "each replica."
    )

    application: str = setting("sonde", "what Ray calls the application; callers of several name it in the metadata")
    replicas: int = setting(1, "replicas, each with the whole model; with --max-replicas, the fewest", least=1)
    max_replicas: int | None = setting(
        None, "most replicas: as many run as the work asks for; none: always as many as --replicas", kind=int, least=1
    )
    gpus_per_replica: float | None = setting(
        None, "GPUs of each replica; none: 1 where the cluster has any and --device is not cpu", kind=float, least=0
    )
    cpus_per_replica: float = setting(1.0, "CPUs that Ray sets aside for each replica", least=0)
    target_requests: float = setting(
        8.0, "requests in progress that each replica is to have, where their number changes", least=0.1
    )
    target_queued_runs: int = setting(
        5_000, "runs in line that each replica is to have, where their number changes", least=1
    )
    upscale_delay: float = setting(30.0, "seconds that more work must last before replicas are added", least=0)
    downscale_delay: float = setting(600.0, "seconds that less work must last before replicas are taken away", least=0)

    def _check_access(self) -> None:
        for name in UNUSED:
            if getattr(self, name) is not None:
                flag = "--" + name.replace("_", "-")
                raise SettingError(f"{flag}: Ray's proxies listen, and do not know it; see docs/guides/ray.md")
        if self.tokens is None and not self.insecure:
            raise SettingError(
                "--tokens: Ray's proxies can be reached from other machines, and anybody could use the model; give a "
                "file of tokens that every replica can read, or --insecure to let everybody in"
            )
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise SettingError(f"--max-replicas: {self.max_replicas} is less than --replicas, {self.replicas}")
        if self.device_map is not None and self.device != "auto":
            raise SettingError(f"--device: {self.device!r} says where all of the model lies; leave out --device-map")

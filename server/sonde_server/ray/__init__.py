"""The server as a deployment of Ray Serve: replicas behind Ray's gRPC proxies, on one machine or a cluster.

import sonde_server.ray

settings = sonde_server.ray.RaySettings(model="gpt2", replicas=4, insecure=True)
sonde_server.ray.start(settings)  # Ray Serve with its gRPC proxies, unless the cluster has them already
ray.serve.run(sonde_server.ray.application(settings), name="sonde", route_prefix="/sonde")

`sonde-server ray` does the same. In a configuration file of Ray Serve, name `sonde_server.ray:build`.
"""

from .deploying import application, build, start
from .proxying import add_to_server
from .settings import RaySettings

__all__ = ["RaySettings", "add_to_server", "application", "build", "start"]

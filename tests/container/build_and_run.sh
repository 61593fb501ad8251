#!/bin/sh
# Builds the container image and runs it as it is meant to be run: read-only, without privileges, as nobody. Checks its
# user, that it becomes healthy, answers GetModel, and stops when asked.
#
#   tests/container/build_and_run.sh [ENGINE [BUILD ARGUMENT...]]
#
# ENGINE is podman or docker (default: the first that is installed). It needs a Docker-compatible engine and the base image, so
# it is not part of `make test`; without an engine it says so and succeeds. PYTHON (default .venv/bin/python) has the client;
# MODEL names a directory to serve instead of the embedded model; with SKIP_BUILD the image sonde:test is there already.
set -eu
cd "$(dirname "$0")/../.."
engine=${1:-$(command -v podman || command -v docker || true)}
[ $# -eq 0 ] || shift
if [ -z "$engine" ]; then
    echo "no container engine is installed: nothing was checked"
    exit 0
fi
python=${PYTHON:-.venv/bin/python}
image=sonde:test
port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')

# podman's own image format drops HEALTHCHECK.
case $engine in *podman) format="--format docker" ;; *) format="" ;; esac
# shellcheck disable=SC2086
[ -n "${SKIP_BUILD:-}" ] || "$engine" build $format -t "$image" "$@" .

set --
serve=""
if [ -n "${MODEL:-}" ]; then
    set -- --volume "$(realpath "$MODEL"):/model:ro"
    serve="--model /model"
fi

# On the host's network, so that loopback is enough and nothing is published.
# shellcheck disable=SC2086
container=$("$engine" run -d "$@" --network host --read-only --tmpfs /tmp --cap-drop all \
    --security-opt no-new-privileges -e SONDE_HOST=127.0.0.1 -e SONDE_PORT="$port" "$image" $serve)
finish() {
    status=$?
    [ "$status" -eq 0 ] || "$engine" logs "$container" || true
    "$engine" rm -f "$container" >/dev/null
    exit "$status"
}
trap finish EXIT

user=$("$engine" exec "$container" python -c 'import os; print(os.getuid(), os.getgid())')
[ "$user" = "10001 10001" ] || { echo "runs as $user"; exit 1; }
if "$engine" exec "$container" touch /opt/sonde/written 2>/dev/null; then
    echo "the root file system can be written to"
    exit 1
fi

tries=0
until "$engine" exec "$container" python -m sonde_server.healthcheck; do
    tries=$((tries + 1))
    [ "$tries" -lt 60 ] || { echo "does not become healthy"; exit 1; }
    sleep 1
done

"$python" - "$port" <<'PROGRAM'
import sys

import sonde

with sonde.Client(f"127.0.0.1:{sys.argv[1]}") as client:
    print(client.model)
PROGRAM

"$engine" stop -t 20 "$container" >/dev/null
code=$("$engine" inspect --format '{{.State.ExitCode}}' "$container")
[ "$code" -eq 0 ] || { echo "stopped with exit code $code"; exit 1; }
"$engine" image inspect --format 'image: {{.Size}} bytes' "$image"
echo "container: all good"

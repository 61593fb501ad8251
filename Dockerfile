# Sonde's server, with the embedded model inside. For CPUs or GPUs, by the build of torch that is installed:
#
#   docker build -t sonde .
#       installs torch as pip finds it on its default index. On the public one that is, for Linux, a build for CUDA, which
#       runs on CPUs as well but takes several GB.
#   docker build -t sonde:cpu --build-arg PIP_INDEX_ARGS="--extra-index-url URL" .
#       a slim image for CPUs, with URL the index of CPU builds that torch's installation page names.
#   docker build -t sonde:cuda --build-arg PIP_INDEX_ARGS="--extra-index-url URL" .
#       an image for the CUDA version of a GPU host, with URL the index of that. The driver comes from the host, by the
#       NVIDIA container toolkit.
#   --build-arg TORCH="torch==2.14.0"
#       another version of torch than the one that Sonde is tested with.
#
#   docker run --rm --read-only --tmpfs /tmp --cap-drop all -p 127.0.0.1:50051:50051 sonde --insecure
#   docker run --rm --gpus all -v ~/models:/models:ro -p 127.0.0.1:50051:50051 sonde:cuda --insecure --model /models/NAME
#
# It needs BuildKit, which is what docker builds with since version 23, or Buildah or Podman, with `--format docker`:
# their own format has no place for the health check. tests/test_container.py builds and runs it.

FROM python:3.11-slim AS dependencies

ARG TORCH="torch==2.13.0"
ARG PIP_INDEX_ARGS=""
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1

# An environment without pip of its own, filled by the image's pip. torch first and by itself: the largest part, which
# a change of the other requirements leaves alone. The user of the image must be able to read what a builder with a
# strict umask installs.
# hadolint ignore=DL3013,SC2086
RUN umask 022 \
    && python -m venv --without-pip /opt/sonde \
    && python -m pip --python /opt/sonde/bin/python install ${PIP_INDEX_ARGS} "${TORCH}"

# Then what else the server needs, from the metadata alone.
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY client/sonde/_version.py client/sonde/_version.py
# hadolint ignore=DL3013,SC2086
RUN umask 022 \
    && mkdir -p server/sonde_server proto/sonde/v1 \
    && touch client/sonde/__init__.py server/sonde_server/__init__.py \
    && grep -v '^torch==' constraints.txt > /tmp/constraints.txt \
    && python -m pip --python /opt/sonde/bin/python install ${PIP_INDEX_ARGS} --constraint /tmp/constraints.txt \
        '.[server,gguf,vision]' \
    && python -m pip --python /opt/sonde/bin/python uninstall --yes sonde

FROM dependencies AS wheel

COPY proto proto
COPY client client
COPY server server
# hadolint ignore=DL3013,SC2086
RUN umask 022 \
    && python -m pip wheel ${PIP_INDEX_ARGS} --constraint /tmp/constraints.txt --no-deps --wheel-dir /wheel .

FROM python:3.11-slim

LABEL org.opencontainers.image.title="Sonde" \
      org.opencontainers.image.description="See inside a transformer and change it, over gRPC" \
      org.opencontainers.image.licenses="Apache-2.0"

# The requirements and Sonde are layers of their own: another version of Sonde is a small download.
COPY --from=dependencies /opt/sonde /opt/sonde
# hadolint ignore=DL3013
RUN --mount=type=bind,from=wheel,source=/wheel,target=/wheel \
    umask 022 \
    && python -m pip --python /opt/sonde/bin/python install --no-cache-dir --no-index --no-deps /wheel/*.whl

# Outside the container only published ports are reachable, so the server listens to all of its own network. Health has
# a port of its own, which stays without TLS and token.
ENV PATH=/opt/sonde/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    SONDE_HOST=0.0.0.0 \
    SONDE_PORT=50051 \
    SONDE_HEALTH_PORT=50052 \
    HF_HOME=/tmp/huggingface \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /tmp
USER 10001:10001
EXPOSE 50051
HEALTHCHECK --interval=10s --timeout=6s --start-period=120s --retries=3 \
    CMD ["python", "-m", "sonde_server.healthcheck"]
ENTRYPOINT ["sonde-server"]

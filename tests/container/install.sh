#!/bin/sh
# Installs what the image is built and run with, on Debian, for root, unless docker does it; says what is missing to
# anybody else. debootstrap makes the base image where no registry can be reached.
set -eu
! docker info >/dev/null 2>&1 || exit 0
exec "$(dirname "$0")/../../.ci/apt_install.sh" podman runc catatonit debootstrap

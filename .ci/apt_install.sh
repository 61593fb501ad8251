#!/bin/sh
# Installs packages of Debian where they are missing: apt_install.sh PACKAGE... Root gets them; anybody else is told
# what is missing, which is no failure.
set -eu

missing=""
for package in "$@"; do
    dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed ||
        missing="$missing $package"
done
[ -n "$missing" ] || exit 0
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    echo "Not installed, so that the tests that need them are skipped:$missing" >&2
    exit 0
fi
echo "Installing$missing"
apt-get update -qq </dev/null
# shellcheck disable=SC2086
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing </dev/null >/dev/null

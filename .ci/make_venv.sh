#!/bin/sh
# Creates an empty virtual environment: make_venv.sh DIRECTORY [PYTHON]. What was in DIRECTORY before is removed.
#
# Debian splits venv from python3. Root, as in a container or on a CI machine, gets the missing package; anybody else
# is told its name.
set -eu
directory=$1
python=${2:-python3}

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "Sonde needs Python 3.11 or newer, found: $("$python" --version 2>&1). Name another with PYTHON=..." >&2
    exit 1
fi
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    package="python$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv"
    if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
        echo "$python cannot create virtual environments: install $package (Debian: apt-get install $package)" >&2
        exit 1
    fi
    echo "Installing $package"
    apt-get update -qq </dev/null
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$package" </dev/null
fi
"$python" -m venv --clear "$directory"

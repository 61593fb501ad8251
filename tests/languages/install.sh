#!/bin/sh
# Installs what the examples in other languages are built with, on Debian, for root; says what is missing to anybody else.
# Node is taken as it is found: Debian's npm alone is several hundred packages.
set -eu
packages="make g++ pkg-config jq protobuf-compiler libgrpc++-dev protobuf-compiler-grpc golang-go protoc-gen-go
    protoc-gen-go-grpc golang-google-grpc-dev golang-google-protobuf-dev golang-google-genproto-dev"

missing=""
for package in $packages; do
    dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing="$missing $package"
done
[ -n "$missing" ] || exit 0
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    echo "Not installed, so that the examples that need them are skipped:$missing" >&2
    exit 0
fi
echo "Installing$missing"
apt-get update -qq </dev/null
# shellcheck disable=SC2086
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing </dev/null >/dev/null

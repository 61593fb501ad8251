#!/bin/sh
# Installs what the examples in other languages are built with, on Debian, for root; says what is missing to anybody else.
# Node is taken as it is found: Debian's npm alone is several hundred packages.
set -eu
exec "$(dirname "$0")/../../.ci/apt_install.sh" make g++ pkg-config jq \
    protobuf-compiler libgrpc++-dev protobuf-compiler-grpc \
    golang-go protoc-gen-go protoc-gen-go-grpc golang-google-grpc-dev golang-google-protobuf-dev golang-google-genproto-dev

//go:build !modules
// +build !modules

package main

// Debian's gRPC 1.33 marshals with an older protobuf library than the stubs need. This codec replaces it. With gRPC as a
// module you do not need it: go build -tags modules.

import (
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // so that it registers before the codec here
	"google.golang.org/protobuf/proto"
)

type codec struct{}

func (codec) Marshal(message interface{}) ([]byte, error) {
	return proto.Marshal(message.(proto.Message))
}

func (codec) Unmarshal(data []byte, message interface{}) error {
	return proto.Unmarshal(data, message.(proto.Message))
}

func (codec) Name() string { return "proto" }

func init() { encoding.RegisterCodec(codec{}) }

package main

import (
	"encoding/binary"
	"fmt"
	"math"

	"example.com/sonde/inspection"
)

// float32s makes a tensor for a request. Without a shape it is a single value.
func float32s(values []float32, shape ...int32) *inspection.Tensor {
	data := make([]byte, 4*len(values))
	for index, value := range values {
		binary.LittleEndian.PutUint32(data[4*index:], math.Float32bits(value))
	}
	return &inspection.Tensor{DataType: inspection.DataType_DATA_TYPE_FLOAT32, Shape: shape, Data: data}
}

// numbers reads a tensor of an answer, row by row. An unset field has no values.
func numbers(tensor *inspection.Tensor) []float32 {
	values := make([]float32, len(tensor.GetData())/4)
	for index := range values {
		bits := binary.LittleEndian.Uint32(tensor.Data[4*index:])
		switch tensor.DataType {
		case inspection.DataType_DATA_TYPE_FLOAT32:
			values[index] = math.Float32frombits(bits)
		case inspection.DataType_DATA_TYPE_INT32: // token ids and ranks: exact up to 2^24
			values[index] = float32(int32(bits))
		default:
			panic(fmt.Sprintf("a tensor of type %v", tensor.DataType))
		}
	}
	return values
}

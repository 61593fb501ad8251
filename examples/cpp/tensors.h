// Converts tensors of the contract to numbers. Their bytes are little-endian, row by row, and may be unaligned.
#pragma once

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "sonde/v1/inspection.pb.h"

// A float32 tensor for a request. Without a shape it is a single value.
inline sonde::v1::Tensor Float32(const std::vector<float>& values, const std::vector<int>& shape) {
  sonde::v1::Tensor tensor;
  tensor.set_data_type(sonde::v1::DATA_TYPE_FLOAT32);
  for (int length : shape) tensor.add_shape(length);
  for (float value : values) {
    std::uint32_t bits = 0;
    std::memcpy(&bits, &value, sizeof bits);
    for (int shift = 0; shift < 32; shift += 8) tensor.mutable_data()->push_back(static_cast<char>(bits >> shift));
  }
  return tensor;
}

// The values of a tensor in an answer. A double holds both float32 and int32 exactly. An unset field has no values.
inline std::vector<double> Numbers(const sonde::v1::Tensor& tensor) {
  std::vector<double> values;
  const auto* bytes = reinterpret_cast<const unsigned char*>(tensor.data().data());
  for (std::size_t at = 0; at < tensor.data().size(); at += 4) {
    std::uint32_t bits = 0;
    for (int byte = 0; byte < 4; ++byte) bits |= static_cast<std::uint32_t>(bytes[at + byte]) << (8 * byte);
    if (tensor.data_type() == sonde::v1::DATA_TYPE_FLOAT32) {
      float value = 0;
      std::memcpy(&value, &bits, sizeof value);
      values.push_back(value);
    } else if (tensor.data_type() == sonde::v1::DATA_TYPE_INT32) {
      values.push_back(static_cast<std::int32_t>(bits));
    } else {
      throw std::runtime_error("a tensor of type " + sonde::v1::DataType_Name(tensor.data_type()));
    }
  }
  return values;
}

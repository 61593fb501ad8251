// The requests of this example.
#pragma once

#include <cstdint>
#include <vector>

#include "sonde/v1/inspection.pb.h"

// Where does the model store what it knows about the subject? The answer has a grid for each of three components.
sonde::v1::TraceRequest CausalTrace(int samples, std::int64_t seed);

// The mean over four facts of a causal trace, in parts of two facts each.
sonde::v1::TraceRequest Facts(const std::vector<int>& layers);

// Sets each head or neuron to zero, at each position or at all positions together.
sonde::v1::InterveneRequest Ablations(sonde::v1::Component component, const std::vector<int>& layers,
                                      const std::vector<sonde::v1::Axis>& together);

// A layer and a neuron that the model does not have.
sonde::v1::InterveneRequest Wrong();

// Three runs: one adds a direction, one sets a number, and one adds noise together with a knockout.
sonde::v1::InterveneRequest Edits(int hidden_size);
